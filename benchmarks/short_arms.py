"""Arms in short form, ``arms: [mae, scratch, timm:resnet50.a1_in1k]``: a word each, and what it stands for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..adapters.packaged_weights import PACKAGED
from ..core.config_keys import nearest
from ..core.errors import ConfigError
from ..core.models.hub_names import HF, HubName, is_hub_name
from ..core.models.timm_spec import TIMM

WORDS: Mapping[str, Mapping[str, str]] = {
    "mae": {"start": "mae", "label": "MAE on the pool"},
    "supervised": {"start": "supervised", "label": "trained with the pool's labels"},
    "scratch": {"start": "scratch", "label": "training from scratch"},
    "cnn": {"start": "cnn", "label": "a small CNN from scratch"},
    "pixels": {"start": "pixels", "label": "pixels without a network"},
}
"""Arms without weights of others."""
RECIPE: Mapping[str, Any] = {
    **{"batch_size": 32, "mixup": 0.0, "cutmix": 0.0, "random_erasing": 0.0},
    **{"crop_scale": [0.5, 1.0], "warmup": 0.1},
}
"""The recipe of all arms in short form where the suite extends none: for few labels, as that of ``maelift init``."""
FROZEN = "frozen"
"""After a word and a space: the same start, under probes on its frozen features."""
WITHOUT_RECIPE = ("pixels",)


def expanded(arms: Sequence[object], extended: Mapping[str, Any]) -> dict[str, Any]:
    """The arms of a list, by name; those that the ``extended`` suite has by such a name are taken from there.

    A new one gets what the recipes of all extended arms agree in, so that it is trained as they are. Raises ConfigError for a
    word that stands for no arm, or for one that is there twice.
    """
    found: dict[str, Any] = {}
    for number, word in enumerate(arms):
        key = f"arms[{number}]"
        if not isinstance(word, str):
            raise ConfigError(key, word, "a word in a list of arms; arms with keys stand below their names")
        start, frozen = _parts(word)
        name = _name(start) + ("_frozen" if frozen else "")
        if name in found:
            raise ConfigError(key, word, "each arm once")
        found[name] = extended[name] if name in extended else _arm(key, start, frozen, _common_recipe(extended))
    return found


def _parts(word: str) -> tuple[str, bool]:
    """The start that a word names, and whether it is frozen."""
    start, _, last = word.strip().rpartition(" ")
    return (start.strip(), True) if last == FROZEN and start else (word.strip(), False)


def _name(start: str) -> str:
    """The name of an arm: letters, digits and _."""
    if is_hub_name(start):
        return re.sub(r"\W+", "_", start.removeprefix(HF)).strip("_")
    bare = start.removeprefix(TIMM).partition("@")[0] if start.startswith(TIMM) else start
    return re.sub(r"\W+", "_", Path(bare).stem if _is_file(start) else bare).strip("_")


def _is_file(start: str) -> bool:
    return not start.startswith(TIMM) and (
        "/" in start or Path(start).suffix in (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
    )


def _arm(key: str, start: str, frozen: bool, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a word stands for."""
    keys: dict[str, Any]
    if start in WORDS:
        keys = dict(WORDS[start])
    elif is_hub_name(start):
        keys = {"start": "weights", "weights": str(HubName.parse(start, key)), "label": start.removeprefix(HF)}
    elif start.startswith(TIMM) or start in PACKAGED or _is_file(start):
        label = start.removeprefix(TIMM).partition("@")[0] if start.startswith(TIMM) else Path(start).name
        keys = {"start": "weights", "weights": start, "label": label}
    else:
        close = nearest(start, [*WORDS, *PACKAGED])
        advice = f"Did you mean {close}?" if close else ""
        raise ConfigError(
            key,
            start,
            f"one of {', '.join([*WORDS, *PACKAGED])}, timm:NAME, {HF}NAME/MODEL, or a file of weights",
            advice,
        )
    if frozen:
        return {**keys, "label": f"{keys['label']}, frozen", "frozen": True}
    return keys if start in WITHOUT_RECIPE else {**keys, "recipe": dict(recipe)}


def _common_recipe(extended: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the recipes of all arms of a suite agree in, of those that have one."""
    recipes = [arm["recipe"] for arm in extended.values() if isinstance(arm, Mapping) and arm.get("recipe")]
    if not recipes:
        return RECIPE
    first, *others = recipes
    return {name: value for name, value in first.items() if all(name in own and own[name] == value for own in others)}
