"""Weights of others under our names: what their parts are called, and what of them an encoder has no place for."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import CheckpointError


@dataclass(frozen=True)
class Foreign:
    """Tensors of others under our names.

    ``method``: what kind of weights they are; ``notes``: what was left out, ``warnings``: what the features owe to that;
    ``final_norm``: whether there was one.
    """

    method: str
    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    final_norm: bool = True


@dataclass(frozen=True)
class Facts:
    """What the files beside weights say of their shape, and tensors don't."""

    num_heads: int | None = None
    norm_eps: float | None = None
    image_size: tuple[int, int] | None = None


NOT_ENCODER = re.compile(
    r"(decoder_.*|decoder\..*|mask_token|head\..*|head_drop.*|fc_norm\..*|(vit\.)?pooler\..*|classifier\..*)"
)
"""Decoders of masked autoencoders and classifiers, with the norms that those have of their own."""
_HEADS = re.compile(
    r"((decode_head|auxiliary_head|neck|head|data_preprocessor|target_generator|rpn_head|roi_head|bbox_head|mask_head"
    r"|proposal_generator|roi_heads|rpn|sem_seg_head|simfp_\d+|top_block)\..*|pixel_mean|pixel_std)"
)
"""What segmentors and detectors have beside their backbone's ViT."""
_RELATIVE = re.compile(r"blocks\.\d+\.attn\.(relative_position_bias_table|rel_pos_h|rel_pos_w)")
_MM_NAMES = (
    ("patch_embed.projection.*", "patch_embed.proj.*"),
    *((f"layers.*.{norm}{number}.*", f"blocks.*.norm{number}.*") for norm in ("ln", "norm") for number in (1, 2)),
    *((f"layers.*.attn.{layer}.*", f"blocks.*.attn.{layer}.*") for layer in ("qkv", "proj")),
    ("layers.*.attn.attn.in_proj_*", "blocks.*.attn.qkv.*"),
    ("layers.*.attn.attn.out_proj.*", "blocks.*.attn.proj.*"),
    ("layers.*.ffn.layers.0.0.*", "blocks.*.mlp.fc1.*"),
    ("layers.*.ffn.layers.1.*", "blocks.*.mlp.fc2.*"),
    *((f"layers.*.{name}", f"blocks.*.{name}") for name in ("gamma_1", "gamma_2", "attn.q_bias", "attn.v_bias")),
    ("layers.*.attn.relative_position_*", "blocks.*.attn.relative_position_*"),
    ("ln1.*", "norm.*"),
    ("norm1.*", "norm.*"),
)
"""The names of mmsegmentation's and mmpretrain's MAE, BEiT and VisionTransformer, and ours."""


def rename(name: str, table: Iterable[tuple[str, str]]) -> str:
    """The name by the first row (pattern, replacement) that fits it, "*" standing for the same words; else as it is."""
    for pattern, replacement in table:
        if found := re.fullmatch(re.escape(pattern).replace(r"\*", r"(\w+)"), name):
            return "".join(
                itertools.chain(*itertools.zip_longest(replacement.split("*"), found.groups(), fillvalue=""))
            )
    return name


def without_heads(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...], str]:
    """The encoder's tensors of a model, what was left out, and the prefix that they had.

    Of segmentors and detectors, the ViT stands under "backbone." or "backbone.net."; names that are neither its own nor
    those of a known head are kept, to be told as unknown.
    """
    left: list[str] = []
    before = ""
    for prefix in ("backbone.", "net."):
        if not any(name.startswith(prefix) for name in state):
            continue
        left += [name for name in state if not name.startswith(prefix) and _HEADS.fullmatch(name)]
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name not in left}
        before += prefix
    left += [name for name in state if NOT_ENCODER.fullmatch(name)]
    state = {name: tensor for name, tensor in state.items() if name not in left}
    groups = Counter("decoder" if name.startswith("decoder") else name.split(".")[0] for name in left)
    notes = tuple(f"left out: {name} ({count} tensor{'s' if count > 1 else ''})" for name, count in groups.items())
    return dict(state), notes, before


def from_mm(state: Mapping[str, Tensor], notes: Iterable[str]) -> Foreign:
    """Tensors of mmsegmentation or mmpretrain under our names; those that it doesn't know stay as they are."""
    classifier = [name for name in state if re.fullmatch(r"(ln2|norm2)\..*", name)]  # norms the mean of the tokens
    ours = {rename(name, _MM_NAMES): tensor for name, tensor in state.items() if name not in classifier}
    for name in [name for name in ours if name.endswith(".attn.q_bias")]:
        block = name.removesuffix("q_bias")
        if f"{block}v_bias" in ours and f"{block}qkv.bias" not in ours:
            query, value = ours.pop(name), ours.pop(f"{block}v_bias")
            ours[f"{block}qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
    kernel = ours.get("patch_embed.proj.weight")
    if kernel is not None and "patch_embed.proj.bias" not in ours and any(".attn.attn." in name for name in state):
        ours["patch_embed.proj.bias"] = kernel.new_zeros(len(kernel))
        notes = (*notes, "the patch embedding has no bias (patch_bias=False): zeros take its place")
    if any("gamma_1" in name for name in ours):
        method = "mmseg MAE"
    elif any("mask" in note or "neck" in note for note in notes):
        method = "mmpretrain MAE"
    else:
        method = "mmseg or mmpretrain ViT"
    return Foreign(method, ours, tuple(notes), final_norm=_has_norm(ours))


def settle(source: str, foreign: Foreign, *, dense: bool, drop_relative_positions: bool) -> Foreign:
    """Bring what our encoder lacks into it, where that leaves the features as they are, else refuse.

    Layer scale is multiplied into the layers before it. Relative positions of zero are left out; others only with
    ``drop_relative_positions``, else CheckpointError. ``dense``: the weights are a backbone's, which may have no final
    norm; then one without weights takes its place.
    """
    foreign = _without_relative_positions(source, _fold_layer_scale(foreign), drop_relative_positions)
    state = foreign.state
    final_norm = _has_norm(state)
    if final_norm or not (dense or any("fc_norm" in note for note in foreign.notes)):
        return replace(foreign, final_norm=final_norm)
    dim = state["pos_embed"].shape[-1] if "pos_embed" in state else 0
    plain = {"norm.weight": torch.ones(dim), "norm.bias": torch.zeros(dim)}
    warning = (
        "no final norm: one with weights of one and biases of zero stands in its place. The tokens before it are those of the "
        "file"
    )
    return replace(foreign, state={**state, **plain}, warnings=(*foreign.warnings, warning), final_norm=False)


def without_class_row(state: dict[str, Tensor], image_size: tuple[int, int] | None) -> dict[str, Tensor]:
    """Where there is no class token, drop the row that the positions may still have for it.

    With an image size (height, width) in pixels that is certain; without one, the grid is taken to be square.
    """
    if "cls_token" in state or "pos_embed" not in state or "patch_embed.proj.weight" not in state:
        return state
    count, patch = state["pos_embed"].shape[1], state["patch_embed.proj.weight"].shape[-1]
    if image_size is not None:
        extra = count == 1 + (image_size[0] // patch) * (image_size[1] // patch)
    else:
        extra = not _is_square(count) and _is_square(count - 1)
    return {**state, "pos_embed": state["pos_embed"][:, 1:]} if extra else state


def facts_beside(path: Path, method: str) -> Facts:
    """Heads, epsilon and image size from the ``config.json`` or ``backbone.json`` beside weights.

    transformers' ViTMAE configurations say an epsilon of 1e-12, a default that the weights were not trained with: theirs
    stays open.
    """
    if method.startswith("transformers"):
        config = read_json(path.with_name("config.json"))
        eps = None if config.get("model_type") == "vit_mae" else config.get("layer_norm_eps")
        return Facts(_whole(config.get("num_attention_heads")), _real(eps), _size(config.get("image_size")))
    if path.name == "backbone.pth":
        settings = read_json(path.with_name("backbone.json")).get("backbone", {})
        return Facts(
            _whole(settings.get("num_heads")), _real(settings.get("norm_eps")), _size(settings.get("image_size"))
        )
    config = read_json(path.with_name("config.json"))
    if method.startswith("timm") and "architecture" in config:
        arguments = config.get("model_args") or {}
        eps = 1e-5 if "_clip_" in str(config["architecture"]) else None
        return Facts(_whole(arguments.get("num_heads")), eps, _size(arguments.get("img_size")))
    return Facts()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no such file, or it holds something else."""
    try:
        content = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _fold_layer_scale(foreign: Foreign) -> Foreign:
    state, folded = dict(foreign.state), False
    for name in foreign.state:
        found = re.fullmatch(r"(blocks\.\d+\.)gamma_([12])", name)
        layer = f"{found[1]}{'attn.proj' if found[2] == '1' else 'mlp.fc2'}" if found else ""
        if f"{layer}.weight" not in state or f"{layer}.bias" not in state:
            continue
        scale = state.pop(name)
        if not torch.equal(scale, torch.ones_like(scale)):
            state[f"{layer}.weight"] = state[f"{layer}.weight"] * scale[:, None]
            state[f"{layer}.bias"] = state[f"{layer}.bias"] * scale
            folded = True
    notes = (
        ("layer scale is multiplied into attn.proj and mlp.fc2, which leaves the features as they are",)
        if folded
        else ()
    )
    return replace(foreign, state=state, notes=(*foreign.notes, *notes))


def _without_relative_positions(source: str, foreign: Foreign, drop: bool) -> Foreign:
    state = {name: value for name, value in foreign.state.items() if not name.endswith(".attn.relative_position_index")}
    relative = [name for name in state if _RELATIVE.fullmatch(name)]
    if not relative:
        return replace(foreign, state=state)
    kept = {name: value for name, value in state.items() if name not in relative}
    learned = [name for name in relative if state[name].count_nonzero()]
    if not learned:
        return replace(foreign, state=kept, notes=(*foreign.notes, "left out: relative positions, all of them zero"))
    if not drop:
        more = f" and {len(learned) - 1} more" if len(learned) > 1 else ""
        raise CheckpointError(
            f"{source}: its attention has relative positions ({learned[0]}{more}), which a plain ViT has not: without them "
            f"the features are others. To do without: maelift import {source} out=... drop_relative_positions=true"
        )
    warning = (
        f"relative positions are left out ({len(learned)} tensors): the features are not those of the file's model"
    )
    return replace(foreign, state=kept, warnings=(*foreign.warnings, warning))


def _has_norm(state: Mapping[str, Tensor]) -> bool:
    return "norm.weight" in state or "norm.bias" in state


def _is_square(count: int) -> bool:
    return count > 0 and math.isqrt(count) ** 2 == count


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _real(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _size(value: object) -> tuple[int, int] | None:
    if isinstance(value, int):
        return (value, value)
    if isinstance(value, list) and len(value) == 2 and all(isinstance(side, int) for side in value):
        return (value[0], value[1])
    return None
