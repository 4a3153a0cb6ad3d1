"""Formats of other libraries' weights: which one a state dict has, and its tensors normalized to an encoder's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import CheckpointError
from .encoder_shapes import is_our_name, key_mismatch
from .state_dicts import SelectedState
from .weight_files import import_command
from .weight_names import MM_NAMES, from_timm, from_torchvision, from_transformers, rename, without_heads


@dataclass(frozen=True)
class ForeignWeights:
    """Tensors of others under our names.

    ``method``: which library's weights they are; ``notes``: what was left out; ``warnings``: how that changes the features;
    ``final_norm``: whether there was one; ``dense``: they are the backbone of a detector or segmentor; ``ambiguity``: what
    the tensors leave open about the model.
    """

    method: str
    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    final_norm: bool = True
    dense: bool = False
    ambiguity: str | None = None


_RELATIVE = re.compile(r"blocks\.\d+\.attn\.(relative_position_bias_table|rel_pos_h|rel_pos_w)")


def from_mm(state: Mapping[str, Tensor], notes: Iterable[str]) -> ForeignWeights:
    """Tensors of mmsegmentation or mmpretrain under our names; unknown names don't change."""
    classifier = [name for name in state if re.fullmatch(r"(ln2|norm2)\..*", name)]  # norms the mean of the tokens
    ours = {rename(name, MM_NAMES): tensor for name, tensor in state.items() if name not in classifier}
    kernel = ours.get("patch_embed.proj.weight")
    if kernel is not None and "patch_embed.proj.bias" not in ours and any(".attn.attn." in name for name in state):
        ours["patch_embed.proj.bias"] = kernel.new_zeros(len(kernel))
        notes = (*notes, "the patch embedding has no bias (patch_bias=False): zeros are used")
    if any("gamma_1" in name for name in ours):
        method = "mmseg MAE"
    elif any("mask" in note or "neck" in note for note in notes):
        method = "mmpretrain MAE"
    else:
        method = "mmseg or mmpretrain ViT"
    return ForeignWeights(method, ours, tuple(notes), final_norm=_has_norm(ours), dense=True)


def normalize_weights(
    source: str, foreign: ForeignWeights, *, drop_relative_positions: bool, final_norm_hint: bool | None = None
) -> ForeignWeights:
    """Fold parts that our encoder lacks into the tensors that it has, where that leaves the features as they are.

    Layer scale is multiplied into the layers before it. Relative positions of zero are left out; others only with
    ``drop_relative_positions``, else CheckpointError. A ``dense`` backbone may have no final norm; then an identity norm is
    added. ``final_norm_hint``: False where a config states that there is none.
    """
    foreign = _without_relative_positions(source, _fold_layer_scale(foreign), drop_relative_positions)
    state = foreign.state
    final_norm = _has_norm(state)
    pooled = any(re.search(r"left out: (fc_norm|pooler)\b", note) for note in foreign.notes)
    if final_norm or not (foreign.dense or pooled or final_norm_hint is False):
        return replace(foreign, final_norm=final_norm)
    dim = state["pos_embed"].shape[-1] if "pos_embed" in state else 0
    plain = {"norm.weight": torch.ones(dim), "norm.bias": torch.zeros(dim)}
    warning = (
        "no final norm: one with weights of one and biases of zero is added. The tokens before it are those of the file"
    )
    return replace(foreign, state={**state, **plain}, warnings=(*foreign.warnings, warning), final_norm=False)


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
            continue  # of another shape than its block: reported with other mismatches
        if found and sum(other.endswith(f".gamma_{found[2]}") for other in foreign.state) != len(blocks):
            continue  # missing in another block
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
            f"{source}: not a plain ViT ({learned[0]}): only relative positions in its attention, where an encoder adds "
            "positions to the patches."
        )
    if not drop:
        more = f" and {len(learned) - 1} more" if len(learned) > 1 else ""
        raise CheckpointError(
            f"{source}: its attention has relative positions ({learned[0]}{more}), which a plain ViT doesn't have: without them "
            f"the features change. To leave them out: {import_command(source, 'drop_relative_positions=true')}"
        )
    warning = (
        f"relative positions are left out ({len(learned)} tensors): the features are not those of the file's model"
    )
    return replace(foreign, state=kept, warnings=(*foreign.warnings, warning))


def _has_norm(state: Mapping[str, Tensor]) -> bool:
    return "norm.weight" in state or "norm.bias" in state


def merge_projections(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Merge query, key and value into one layer, and add zeros for biases that no block has; returns notes on that.

    Tensors that don't fit together are not changed; they are reported with other mismatches later.
    """
    merged = dict(state)
    for block in [name.removesuffix("query.weight") for name in state if name.endswith(".attn.query.weight")]:
        _join(merged, block, [f"{part}.weight" for part in _PARTS], "qkv.weight", dimensions=2)
    for names in ([f"{part}.bias" for part in _PARTS], ["q_bias", "k_bias", "v_bias"]):
        ends = tuple(f".attn.{name}" for name in names)
        blocks = dict.fromkeys(name[: name.rindex(".attn.") + 6] for name in state if name.endswith(ends))
        # A bias that only some blocks have is a missing tensor of the others.
        usual = [name for name in names if any(f"{block}{name}" in state for block in blocks)]
        for block in blocks:
            if f"{block}qkv.bias" not in merged and all(f"{block}{name}" in state for name in usual):
                _join(merged, block, names, "qkv.bias", dimensions=1)
    notes = []
    for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
        weights = [name for name in merged if re.fullmatch(rf"blocks\.\d+\.{re.escape(layer)}\.weight", name)]
        biases_of = [name.replace(".weight", ".bias") for name in weights]
        if (
            weights
            and not any(name in merged for name in biases_of)
            and all(merged[name].ndim == 2 for name in weights)
        ):
            merged |= {
                bias: merged[name].new_zeros(len(merged[name])) for name, bias in zip(weights, biases_of, strict=True)
            }
            notes.append(f"{layer} has no biases: zeros are used")
    kernel = merged.get("patch_embed.proj.weight")
    if kernel is not None and kernel.ndim > 1 and "patch_embed.proj.bias" not in merged:
        merged["patch_embed.proj.bias"] = kernel.new_zeros(len(kernel))
        notes.append("the patch embedding has no bias: zeros are used")
    return merged, tuple(notes)


_PARTS = ("query", "key", "value")


def _join(state: dict[str, Tensor], block: str, names: Sequence[str], joined: str, *, dimensions: int) -> None:
    """Concatenate query, key and value of a block, with zeros for a missing bias, if their shapes match."""
    found = {name: state[block + name] for name in names if block + name in state}
    if not all(tensor.is_floating_point() for tensor in found.values()):
        return  # concatenation would hide that these are integers
    shapes = {tuple(tensor.shape) for tensor in found.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != dimensions or (dimensions > 1 and len(found) < len(names)):
        return
    like = next(iter(found.values()))
    state[block + joined] = torch.cat([found.get(name, torch.zeros_like(like)) for name in names])
    for name in found:
        del state[block + name]


def _kernel_4d(source: str, kernel: Tensor, width: int | None) -> Tensor:
    """The kernel of the patch embedding with its four dimensions (D, C, p, p); ``width``: that of the tokens, if known.

    The time axis of a kernel of one frame is removed. Raises CheckpointError for other shapes, and says what they are.
    """
    shape = tuple(kernel.shape)
    if kernel.ndim == 5 and shape[2] == 1:
        return kernel.squeeze(2)
    if kernel.ndim == 5:
        raise CheckpointError(
            f"{source}: patches of {'×'.join(map(str, shape[2:]))} (video, volumes): an encoder has those of two dimensions only."
        )
    if kernel.ndim == 2:
        raise CheckpointError(
            f"{source}: its patch embedding is a linear layer on flattened patches ({shape[0]}×{shape[1]}), in an unknown "
            "order of pixels. Expected a convolution's kernel (width, channels, patch, patch): reshape it so, and save."
        )
    if kernel.ndim != 4:
        raise CheckpointError(
            f"{source}: patch_embed.proj.weight has shape {list(shape)}. Expected (width, channels, patch, patch)."
        )
    if width is not None and shape[0] != width and shape[-1] == width:
        raise CheckpointError(
            f"{source}: the kernel of the patch embedding has shape {list(shape)}: the order of TensorFlow and Flax (height, "
            "width, channels, features). Convert the full model to PyTorch, with its library's converter, and give that file."
        )
    return kernel


SIGLIP = "it is like SigLIP's ViTs, of which some have the exact GELU (act=gelu) and some its tanh form (act=gelu_tanh)"

_EVA = "its names are those of EVA and BEiT, whose blocks may norm after each layer or have rotary positions"

_UNBIASED = "its queries and keys have no biases, as in some ViTs whose blocks norm after each layer"


def _ambiguity_of_timm_names(state: Mapping[str, Tensor]) -> str | None:
    """What tensors under timm's names leave open about a model; None if they are those of a plain ViT."""
    if any(re.fullmatch(r"blocks\.\d+\.(attn\.[qv]_bias|attn\.q_proj\.weight|gamma_[12])", name) for name in state):
        return _EVA
    if "blocks.0.attn.qkv.weight" in state and not any(name.endswith(".attn.qkv.bias") for name in state):
        return _UNBIASED
    return SIGLIP if any(name.startswith("attn_pool.") for name in state) else None


def to_our_names(source: str, selected: SelectedState) -> ForeignWeights:
    """The tensors of another library under our names, without decoders, classifiers and other heads.

    Raises CheckpointError for tensors beside the ViT that are those of no known head.
    """
    state, prefix = dict(selected.state), selected.prefix
    with_decoder = any(name.startswith("decoder") for name in (*state, *selected.outside.values()))
    state, notes, unknown = without_heads(state, selected.outside)
    if unknown:
        raise CheckpointError(
            f"{key_mismatch(source, [], unknown, 'an encoder')} To leave them out, take only the module with the ViT: "
            f"{import_command(source, 'weights_key=' + prefix.removesuffix('.'))}"
        )
    if any(name.startswith("embeddings.") for name in state):
        method = "transformers ViTMAE" if with_decoder else "transformers ViT"
        renamed = from_transformers(state)
        siglip = "embeddings.patch_embedding.bias" in state and "cls_token" not in renamed
        foreign = ForeignWeights(method, renamed, notes, ambiguity=SIGLIP if siglip else None)
    elif "patch_embed.projection.weight" in state:
        foreign = from_mm(state, notes)
    elif any(name.startswith("conv_proj.") for name in state):
        foreign = ForeignWeights("torchvision ViT", from_torchvision(state), notes)
    elif prefix.endswith("net.") and "backbone" in prefix:
        foreign = ForeignWeights("detectron2 ViT", state, notes, dense=True)
    else:
        bare = "cls_token" not in state and "norm.weight" not in state
        momentum = re.search(r"(base_encoder|momentum_encoder)\.", prefix)
        method = "reference MAE" if with_decoder else "MoCo v3" if momentum else "plain ViT" if bare else "timm ViT"
        dense = bare or "backbone." in prefix
        foreign = ForeignWeights(
            method, from_timm(state), notes, dense=dense, ambiguity=_ambiguity_of_timm_names(selected.state)
        )
    merged, more = merge_projections(foreign.state)
    return replace(foreign, state=merged, notes=(*foreign.notes, *more))


def with_4d_kernel(source: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with the patch kernel as (D, C, p, p); raises CheckpointError where kernel or positions are missing."""
    needed = ["patch_embed.proj.weight", "pos_embed"]
    if absent := [name for name in needed if name not in state]:
        raise key_mismatch(source, absent, [name for name in state if not is_our_name(name)], "an encoder")
    positions = state["pos_embed"]
    kernel = _kernel_4d(source, state[needed[0]], positions.shape[-1] if positions.ndim else None)
    return {**state, needed[0]: kernel}
