"""Weights of others under our names: what their parts are called, and what of them an encoder has no place for."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import CheckpointError
from .encoder import check_divisible
from .weight_parts import command


@dataclass(frozen=True)
class ForeignWeights:
    """Tensors of others under our names.

    ``method``: what kind of weights they are; ``notes``: what was left out, ``warnings``: what the features owe to that;
    ``final_norm``: whether there was one.
    """

    method: str
    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    final_norm: bool = True


NOT_ENCODER = re.compile(
    r"(decoder_.*|decoder\..*|(embeddings\.)?mask_token|head\..*|head_drop.*|fc_norm\..*|pooler\..*|classifier\..*"
    r"|attn_pool\..*|pre_logits\..*|heads\..*|fc\..*|dino_head\..*|ibot_head\..*|projector\..*|projection_head\..*"
    r"|predictor\..*)"
)
"""Decoders of masked autoencoders, classifiers and poolers, with the norms that those have of their own."""
_HEADS = re.compile(
    r"((decode_head|auxiliary_head|neck|head|data_preprocessor|target_generator|rpn_head|roi_head|bbox_head|mask_head"
    r"|proposal_generator|roi_heads|rpn|sem_seg_head|simfp_\d+|top_block|text_model|text|lm_head|text_projection"
    r"|visual_projection|criterion)\..*|pixel_mean|pixel_std|logit_scale|logit_bias)"
)
"""What segmentors, detectors and models of text and images have beside their ViT."""
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


def without_heads(
    state: Mapping[str, Tensor], outside: Mapping[str, str]
) -> tuple[dict[str, Tensor], tuple[str, ...], list[str]]:
    """The encoder's tensors of a model, what was left out, and the names outside of its module that are of no known head.

    ``outside``: names that are not in the module that embeds patches, and what they are called beside it.
    """
    left = [short for short in outside.values() if _HEADS.fullmatch(short) or NOT_ENCODER.fullmatch(short)]
    unknown = [name for name, short in outside.items() if short not in left]
    heads = [name for name in state if NOT_ENCODER.fullmatch(name)]
    kept = {name: tensor for name, tensor in state.items() if name not in heads}
    parts = [name.removeprefix("embeddings.") for name in [*left, *heads]]
    groups = Counter("decoder" if name.startswith("decoder") else name.split(".")[0] for name in parts)
    notes = tuple(f"left out: {name} ({count} tensor{'s' if count > 1 else ''})" for name, count in groups.items())
    return kept, notes, unknown


def from_mm(state: Mapping[str, Tensor], notes: Iterable[str]) -> ForeignWeights:
    """Tensors of mmsegmentation or mmpretrain under our names; those that it doesn't know stay as they are."""
    classifier = [name for name in state if re.fullmatch(r"(ln2|norm2)\..*", name)]  # norms the mean of the tokens
    ours = {rename(name, _MM_NAMES): tensor for name, tensor in state.items() if name not in classifier}
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
    return ForeignWeights(method, ours, tuple(notes), final_norm=_has_norm(ours))


def normalize_weights(
    source: str,
    foreign: ForeignWeights,
    *,
    dense: bool,
    drop_relative_positions: bool,
    final_norm_said: bool | None = None,
) -> ForeignWeights:
    """Bring what our encoder lacks into it, where that leaves the features as they are, else refuse.

    Layer scale is multiplied into the layers before it. Relative positions of zero are left out; others only with
    ``drop_relative_positions``, else CheckpointError. ``dense``: the weights are a backbone's, which may have no final
    norm; then one without weights takes its place. ``final_norm_said``: False where a file says that there is none.
    """
    foreign = _without_relative_positions(source, _fold_layer_scale(foreign), drop_relative_positions)
    state = foreign.state
    final_norm = _has_norm(state)
    pooled = any(re.search(r"left out: (fc_norm|pooler)\b", note) for note in foreign.notes)
    if final_norm or not (dense or pooled or final_norm_said is False):
        return replace(foreign, final_norm=final_norm)
    dim = state["pos_embed"].shape[-1] if "pos_embed" in state else 0
    plain = {"norm.weight": torch.ones(dim), "norm.bias": torch.zeros(dim)}
    warning = (
        "no final norm: one with weights of one and biases of zero stands in its place. The tokens before it are those of the "
        "file"
    )
    return replace(foreign, state={**state, **plain}, warnings=(*foreign.warnings, warning), final_norm=False)


@dataclass(frozen=True)
class Grid:
    """What positions were read as: the image size (height, width) in pixels, the tensors, and what was assumed."""

    image_size: tuple[int, int]
    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def normalize_positions(
    source: str, state: dict[str, Tensor], image_size: tuple[int, int] | None, *, patch: int, dense: bool
) -> Grid:
    """The positions as one for each patch, after one for the class token where there is one.

    ``image_size`` (height, width) in pixels decides, where it is known. Without it a grid is taken to be square where that
    is the one reading; n² positions with a class token may as well be those of n - 1 rows and n + 1 columns and the token:
    then CheckpointError asks. ``dense``: the weights are a backbone's, which may have a position for a token that it lacks.
    """
    positions, class_token = state["pos_embed"], "cls_token" in state
    if positions.ndim != 3 or len(positions) != 1:
        raise CheckpointError(f"{source}: pos_embed has shape {list(positions.shape)}. Expected (1, positions, width).")
    count = positions.shape[1]
    if image_size is not None:
        check_divisible(image_size, patch)
        patches = (image_size[0] // patch) * (image_size[1] // patch)
        if count not in (patches, patches + 1):
            raise CheckpointError(
                f"{source}: image_size={list(image_size)} makes {patches} patches of {patch} pixels, and its positions are for "
                f"{count - class_token}. Give the size that it was trained at; other sizes come where it is used."
            )
        return Grid(image_size, _one_for_each(state, patches), _left_out(count, patches, class_token))
    side = math.isqrt(max(0, count - 1))
    if _is_square(count) and not class_token:
        side = math.isqrt(count)
    elif not _is_square(count - 1) or not (class_token or dense):
        raise CheckpointError(
            f"{source}: {_why_no_grid(count, class_token)} Say the size in pixels: "
            f"{_sizes(source, count, class_token, patch)}"
        )
    size = (side * patch, side * patch)
    notes = [
        f"assumed: a square grid of {side}×{side} patches, {size[0]}×{size[1]} pixels; else give image_size=[height,width]"
    ]
    return Grid(size, _one_for_each(state, side**2), (*notes, *_left_out(count, side**2, class_token)))


def _left_out(count: int, patches: int, class_token: bool) -> tuple[str, ...]:
    if class_token or count == patches:
        return ()
    return ("the first position is taken for that of a class token, which the weights lack, and left out",)


def _one_for_each(state: dict[str, Tensor], patches: int) -> dict[str, Tensor]:
    """The state with one position for each patch, and before them one for the class token where there is one.

    timm can leave the class token without a position of its own, which equals a position of zero.
    """
    positions, class_token = state["pos_embed"], "cls_token" in state
    if class_token and positions.shape[1] == patches:
        positions = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    if not class_token and positions.shape[1] == patches + 1:
        positions = positions[:, 1:]
    return {**state, "pos_embed": positions}


def _why_no_grid(count: int, class_token: bool) -> str:
    if class_token and _is_square(count):
        side = math.isqrt(count)
        return (
            f"{count} positions and a class token are {side}×{side} patches and none for the token, or {count - 1} patches "
            f"(as {_factors(count - 1)[0]}×{_factors(count - 1)[1]}) and one for it."
        )
    return f"{count - class_token} patches{' and a class token' if class_token else ''} are no square grid."


def _sizes(source: str, count: int, class_token: bool, patch: int) -> str:
    """Commands with the sizes that positions may be for."""
    grids = [_factors(count - 1)] if class_token else [_factors(count)]
    if class_token and _is_square(count):
        grids.insert(0, (math.isqrt(count), math.isqrt(count)))
    first, *others = (f"image_size=[{rows * patch},{columns * patch}]" for rows, columns in grids)
    turned = f"image_size=[{grids[-1][1] * patch},{grids[-1][0] * patch}]"
    return f"{command(source, first)} (or {', '.join([*others, turned])}; height first)."


def _factors(count: int) -> tuple[int, int]:
    """Rows and columns of a grid of so many patches, as near to a square as it can be."""
    rows = next(side for side in range(math.isqrt(max(1, count)), 0, -1) if count % side == 0)
    return rows, count // rows


def _fold_layer_scale(foreign: ForeignWeights) -> ForeignWeights:
    state, folded = dict(foreign.state), False
    blocks = {found[1] for name in state if (found := re.match(r"blocks\.(\d+)\.", name))}
    width = state["pos_embed"].shape[-1] if "pos_embed" in state and state["pos_embed"].ndim else None
    for name in foreign.state:
        found = re.fullmatch(r"(blocks\.\d+\.)gamma_([12])", name)
        layer = f"{found[1]}{'attn.proj' if found[2] == '1' else 'mlp.fc2'}" if found else ""
        if f"{layer}.weight" not in state or f"{layer}.bias" not in state:
            continue
        scale = state[name]
        fits = tuple(scale.shape) == (width,) and scale.is_floating_point()
        if not fits or any(tuple(state[f"{layer}.{part}"].shape[:1]) != (width,) for part in ("weight", "bias")):
            continue  # of another shape than its block: told with what else doesn't fit
        if found and sum(other.endswith(f".gamma_{found[2]}") for other in foreign.state) != len(blocks):
            continue  # that of another block is lost
        del state[name]
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


def _without_relative_positions(source: str, foreign: ForeignWeights, drop: bool) -> ForeignWeights:
    state = {name: value for name, value in foreign.state.items() if not name.endswith(".attn.relative_position_index")}
    relative = [name for name in state if _RELATIVE.fullmatch(name)]
    if not relative:
        return replace(foreign, state=state)
    kept = {name: value for name, value in state.items() if name not in relative}
    learned = [name for name in relative if state[name].count_nonzero()]
    if not learned:
        return replace(foreign, state=kept, notes=(*foreign.notes, "left out: relative positions, all of them zero"))
    if "pos_embed" not in state:
        raise CheckpointError(
            f"{source}: not a plain ViT ({learned[0]}): relative positions in its attention and no others, where an encoder adds "
            "positions to the patches."
        )
    if not drop:
        more = f" and {len(learned) - 1} more" if len(learned) > 1 else ""
        raise CheckpointError(
            f"{source}: its attention has relative positions ({learned[0]}{more}), which a plain ViT has not: without them "
            f"the features are others. To do without: {command(source, 'drop_relative_positions=true')}"
        )
    warning = (
        f"relative positions are left out ({len(learned)} tensors): the features are not those of the file's model"
    )
    return replace(foreign, state=kept, warnings=(*foreign.warnings, warning))


def _has_norm(state: Mapping[str, Tensor]) -> bool:
    return "norm.weight" in state or "norm.bias" in state


def _is_square(count: int) -> bool:
    return count > 0 and math.isqrt(count) ** 2 == count
