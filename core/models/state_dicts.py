"""Selection of the encoder's state dict in a checkpoint: nested states, EMA and teacher branches, wrapper prefixes."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from ..errors import CheckpointError
from .weight_files import import_command

STATE_KEYS = (
    "model",
    "state_dict",
    "module",
    "model_state_dict",
    "model_state",
    "network",
    "net",
    "weights",
    "params",
    "target_encoder",
    "teacher",
    "encoder",
    "backbone",
    "student",
    "model_ema",
    "state_dict_ema",
    "ema",
    "ema_state_dict",
    "model_ema_state_dict",
)
"""Keys under which checkpoints store a state dict; of several, the first in this order is selected, and logged."""
_NOT_STATES = re.compile(
    r".*(optim|scheduler|scaler|loss|message_hub|amp|rng|callback|loops|head|predictor).*", re.IGNORECASE
)
BRANCHES = (
    "backbone",
    "base_encoder",
    "teacher",
    "target_encoder",
    "encoder_q",
    "online_encoder",
    "online_network",
    "encoder",
    "model",
    "vision_model",
    "student",
    "momentum_encoder",
    "encoder_k",
    "target_network",
    "model_ema",
    "ema_model",
    "ema",
)
"""Modules with a patch embedding; of several in one state, the first in this order is selected, and logged."""
_WRAPPERS = ("module.", "_orig_mod.", "model.", "encoder.", "backbone.")
_ANCHORS = (
    "patch_embed.proj.weight",
    "patch_embed.projection.weight",
    "embeddings.patch_embeddings.projection.weight",
    "embeddings.patch_embedding.weight",
    "conv_proj.weight",
)
"""Names of the patch embedding's kernel in plain ViTs."""


@dataclass(frozen=True)
class SelectedState:
    """The tensors that were selected from a checkpoint.

    ``outside``: names outside the selected module, and the same without the modules they share with its prefix;
    ``records``: the checkpoint's other values; ``notes``: what was selected, one line each; ``prefix``: the prefix that was
    removed from the names.
    """

    state: Mapping[str, Tensor]
    outside: Mapping[str, str] = field(default_factory=dict)
    records: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    prefix: str = ""


# ---- states of a checkpoint


def select_state(source: str, content: object, weights_key: str | None = None) -> SelectedState:
    """The encoder's tensors in a checkpoint, without the prefix of their module.

    ``weights_key`` names a state (model_ema) or a module in it (teacher), with dots for nested ones. Raises CheckpointError
    if there is none, or if there are several and the choice is ambiguous.
    """
    state, records, notes, rest = _state(source, content, weights_key)
    chosen = _branch(source, state, rest)
    return replace(chosen, records=records, notes=(*notes, *chosen.notes))


def full_state(source: str, content: object) -> dict[str, Tensor]:
    """All tensors of a checkpoint's state, under their own names."""
    return _state(source, content, None)[0]


def strip_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state without prefixes of wrappers (module., model., encoder., backbone.) that all names share."""
    common = "".join(itertools.takewhile(_WRAPPERS.__contains__, _common_prefix(state)))
    return {name.removeprefix(common): value for name, value in state.items()}


def _state(
    source: str, content: object, weights_key: str | None
) -> tuple[dict[str, Tensor], dict[str, object], tuple[str, ...], str | None]:
    """A checkpoint's tensors, its records, notes on the selection, and the part of ``weights_key`` that names a module."""
    records: dict[str, object] = {}
    notes: list[str] = []
    rest, path = weights_key, ""
    while isinstance(content, Mapping):
        states = {str(key): value for key, value in content.items() if _holds_tensors(value)}
        own = any(isinstance(value, Tensor) for value in content.values())
        records |= {
            str(key): value for key, value in content.items() if not isinstance(value, Tensor) and key not in states
        }
        named = next((key for key in states if rest == key or (rest or "").startswith(f"{key}.")), None)
        if named is not None and rest is not None:
            content, path, rest = states[named], f"{path}{named}.", rest.removeprefix(named).removeprefix(".") or None
            continue
        others = [key for key in states if not _NOT_STATES.fullmatch(key)]
        if own or not others:
            break
        taken = next((key for key in STATE_KEYS if key in others), others[0] if len(others) == 1 else None)
        if taken is None:
            shown = ", ".join(others[:8])
            raise CheckpointError(
                f"{source}: holds several states ({shown}), and none is called model or state_dict. Say which: "
                f"{import_command(source, f'weights_key={path}{others[0]}')}"
            )
        beside = [key for key in others if key != taken]
        if beside:
            notes.append(
                f"'{path}{taken}' is taken; beside it lie {', '.join(beside)}: weights_key={path}{beside[0]} takes that"
            )
        content, path = states[taken], f"{path}{taken}."
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{source}: holds {_article(type(content).__name__)}. Expected a state dict of tensors.")
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise CheckpointError(f"{source}: holds no tensors. Expected a state dict.")
    return state, records, tuple(notes), rest


def _holds_tensors(value: object) -> bool:
    """Whether a value is a state dict, or a mapping of such."""
    if not isinstance(value, Mapping):
        return False
    return any(
        isinstance(item, Tensor) or (isinstance(item, Mapping) and any(isinstance(x, Tensor) for x in item.values()))
        for item in value.values()
    ) and all(isinstance(key, str) for key in value)


def _article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


# ---- modules within a state


def _branch(source: str, state: Mapping[str, Tensor], wanted: str | None) -> SelectedState:
    """The tensors of the module with the patch embedding, under their names in it.

    Other such modules are left out and counted; names outside of all are listed in ``outside``, as they may be heads.
    """
    if wanted is not None:
        inside = _inside(state, wanted)
        if not inside:
            first = sorted({name.split(".")[0] for name in state})
            raise CheckpointError(
                f"{source}: weights_key={wanted}: nothing of that name. Expected a state or a module of it, as "
                f"{', '.join(first[:8])}."
            )
        rest = len(state) - len(inside)
        said = (f"left out: {rest} tensor{'s' if rest > 1 else ''} outside {wanted}",) if rest else ()
        found = _branch(source, inside, None)
        return replace(found, notes=(*said, *found.notes), prefix=f"{wanted}.{found.prefix}")
    prefixes = _prefixes(state)
    if not prefixes:
        return SelectedState(strip_wrappers(state))
    taken = _preferred(prefixes)
    inside = {name.removeprefix(taken): value for name, value in state.items() if name.startswith(taken)}
    others = sorted((prefix for prefix in prefixes if prefix != taken), key=len, reverse=True)
    roots = {_root(other, taken) for other in others if other}
    left: Counter[str] = Counter()
    outside: dict[str, str] = {}
    for name in state:
        if name.startswith(taken) and not any(name.startswith(root) for root in roots):
            continue
        root = next((root for root in roots if name.startswith(root)), None)
        if root is not None:
            left[root.removesuffix(".")] += 1
        else:
            outside[name] = _without_shared(name, taken)
    inside = {
        name: value for name, value in inside.items() if not any((taken + name).startswith(root) for root in roots)
    }
    what = taken.removesuffix(".") or "the model itself"
    notes = [
        f"{what} is taken, {other} left out ({count} tensors): weights_key={other} takes that"
        for other, count in left.items()
    ]
    return SelectedState(inside, outside, {}, tuple(notes), taken)


def _inside(state: Mapping[str, Tensor], module: str) -> dict[str, Tensor]:
    """The tensors of a module, also below wrappers (module.teacher. for teacher)."""
    start = f"{module}."
    inside = {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}
    if inside:
        return inside
    start = "".join(_common_prefix(state)) + start
    return {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}


def _prefixes(state: Iterable[str]) -> list[str]:
    """The prefixes of patch embeddings, each once; not those of decoders, necks and target generators."""
    found: dict[str, None] = {}
    for name in state:
        for anchor in _ANCHORS:
            before = name.removesuffix(anchor)
            whole = name.endswith(anchor) and (not before or before.endswith("."))
            if whole and not re.match(r"(.*\.)?(decoder|neck|head|target_generator|text_model)\.", before):
                found[before] = None
    return list(found)


def _preferred(prefixes: list[str]) -> str:
    """The preferred one of several modules with a patch embedding: by BRANCHES, averages last, else the first."""
    shared = set.intersection(*(set(prefix.split(".")) for prefix in prefixes))

    def rank(prefix: str) -> tuple[int, int]:
        words = [word for word in prefix.split(".") if word not in shared]
        known = [BRANCHES.index(word) for word in words if word in BRANCHES]
        average = any(re.search(r"ema|momentum|average|swa", word) for word in words)
        return (min(known, default=len(BRANCHES) if average else 0), len(prefix))

    return min(prefixes, key=rank)


def _without_shared(name: str, taken: str) -> str:
    """A name without the modules that it shares with the selected prefix."""
    words, others = name.split("."), taken.split(".")
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(words, others, strict=False)))
    return ".".join(words[same:])


def _root(prefix: str, taken: str) -> str:
    """A prefix up to the first module that differs from the selected one: teacher. of teacher.backbone., beside student."""
    words, others = prefix.split("."), taken.split(".")
    for count, word in enumerate(words, start=1):
        if count > len(others) or word != others[count - 1]:
            return ".".join(words[:count]) + "."
    return prefix


def _common_prefix(state: Iterable[str]) -> list[str]:
    """The modules that all names start with, each with its dot."""
    common: list[str] | None = None
    for name in state:
        words = name.split(".")[:-1]
        if common is None:
            common = words
        else:
            pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(common, words, strict=False))
            common = [word for word, _ in pairs]
    return [f"{word}." for word in common or ()]
