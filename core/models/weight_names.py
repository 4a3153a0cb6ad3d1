"""Other people's names for the parts of a plain ViT, and ours; what of their models has no place in an encoder."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ..errors import CheckpointError
from .weight_hints import (
    DETECTION_TOKENS,
    DISTILLED,
    GATED,
    GATED_ATTENTION,
    INNER_NORM,
    NO_POSITIONS,
    PARALLEL,
    PRE_NORM,
    QK_NORM,
    REGISTERS,
    RMS_NORM,
    ROTARY,
    STEM,
)

_LAYER = r"(?:encoder\.)?layers?\.(\d+)\."
_TRANSFORMERS = (
    (r"embeddings\.(?:cls_token|class_embedding)", "cls_token"),
    (r"embeddings\.(?:position_embeddings|position_embedding\.weight)", "pos_embed"),
    (r"embeddings\.(?:patch_embeddings\.projection|patch_embedding)\.(weight|bias)", r"patch_embed.proj.\1"),
    (r"embeddings\.register_tokens", "reg_token"),
    (r"embeddings\.distillation_token", "dist_token"),
    (r"embeddings\.(detection_tokens|mask_token)", r"\1"),
    (r"(?:post_)?layernorm\.(weight|bias)", r"norm.\1"),
    (r"(?:pre_layrnorm|pre_layernorm)\.(weight|bias)", r"norm_pre.\1"),
    (_LAYER + r"(?:layernorm_before|layer_norm1|norm1)\.(weight|bias)", r"blocks.\1.norm1.\2"),
    (_LAYER + r"(?:layernorm_after|layer_norm2|norm2)\.(weight|bias)", r"blocks.\1.norm2.\2"),
    (
        _LAYER + r"(?:attention\.attention|attention|self_attn)\.(query|key|value)\.(weight|bias)",
        r"blocks.\1.attn.\2.\3",
    ),
    (_LAYER + r"(?:attention\.attention|attention|self_attn)\.q_proj\.(weight|bias)", r"blocks.\1.attn.query.\2"),
    (_LAYER + r"(?:attention\.attention|attention|self_attn)\.k_proj\.(weight|bias)", r"blocks.\1.attn.key.\2"),
    (_LAYER + r"(?:attention\.attention|attention|self_attn)\.v_proj\.(weight|bias)", r"blocks.\1.attn.value.\2"),
    (
        _LAYER + r"(?:attention\.output\.dense|attention\.o_proj|self_attn\.out_proj)\.(weight|bias)",
        r"blocks.\1.attn.proj.\2",
    ),
    (_LAYER + r"(?:intermediate\.dense|mlp\.fc1)\.(weight|bias)", r"blocks.\1.mlp.fc1.\2"),
    (_LAYER + r"(?:output\.dense|mlp\.fc2)\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
    (_LAYER + r"(?:layer_scale([12])\.lambda1|lambda_([12]))", r"blocks.\1.gamma_\2\3"),
    (_LAYER + r"mlp\.(weights_in|weights_out)\.(weight|bias)", r"blocks.\1.mlp.\2.\3"),
    (_LAYER + r"attention\.(?:attention\.)?(relative_position_bias.*)", r"blocks.\1.attn.\2"),
)
"""transformers' names, as its versions 4 and 5 and its model types have them."""
_TORCHVISION = (
    (r"class_token", "cls_token"),
    (r"encoder\.pos_embedding", "pos_embed"),
    (r"conv_proj\.(weight|bias)", r"patch_embed.proj.\1"),
    (r"encoder\.ln\.(weight|bias)", r"norm.\1"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.(weight|bias)", r"blocks.\1.norm\2.\3"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_(weight|bias)", r"blocks.\1.attn.qkv.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.(weight|bias)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:linear_1|0)\.(weight|bias)", r"blocks.\1.mlp.fc1.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:linear_2|3)\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
)
"""torchvision's ``vit_b_16`` and its like."""
_TIMM = (
    (r"blocks\.\d+\.(\d+)\.(.+)", r"blocks.\1.\2"),  # DINOv2's chunks of blocks
    (r"blocks\.(\d+)\.ls([12])\.gamma", r"blocks.\1.gamma_\2"),
    (r"blocks\.(\d+)\.attn\.q_proj\.(weight|bias)", r"blocks.\1.attn.query.\2"),
    (r"blocks\.(\d+)\.attn\.k_proj\.(weight|bias)", r"blocks.\1.attn.key.\2"),
    (r"blocks\.(\d+)\.attn\.v_proj\.(weight|bias)", r"blocks.\1.attn.value.\2"),
    (r"register_tokens", "reg_token"),
)
"""Names of timm's ViTs, and of the reference implementations that they come from, where they are not ours."""


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of transformers' models under our names; those that are not known stay as they are."""
    return _shaped(_renamed(state, _TRANSFORMERS))


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of torchvision's ViTs under our names."""
    return _shaped(_renamed(state, _TORCHVISION))


def from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of timm's and reference models under our names, layer scale as ``gamma_1`` and ``gamma_2``.

    Layer scale that only some blocks have is no model's, and stays as it is.
    """
    renamed = _renamed(state, _TIMM)
    blocks = {found[1] for name in renamed if (found := re.match(r"blocks\.(\d+)\.", name))}
    scaled = [name for name in state if re.fullmatch(r"blocks\.(?:\d+\.)?\d+\.ls[12]\.gamma", name)]
    if scaled and len(scaled) != 2 * len(blocks):
        renamed = {name if name in scaled else _rename(name, _TIMM): value for name, value in state.items()}
    return renamed


def _renamed(state: Mapping[str, Tensor], table: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    return {_rename(name, table): value for name, value in state.items()}


def _rename(name: str, table: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in table:
        if found := re.fullmatch(pattern, name):
            return re.sub(r"\\(\d)", lambda group: found[int(group[1])] or "", replacement)
    return name


def _shaped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tokens and positions with the dimensions that ours have: (1, N, D)."""
    for name, dimensions in (("cls_token", 1), ("pos_embed", 2)):
        if name in state and 1 <= state[name].ndim <= dimensions and state[name].numel():
            state[name] = state[name].reshape(1, -1, state[name].shape[-1])
    return state


# ---- projections and biases


def merge_projections(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Query, key and value as one layer, biases that a model lacks in every block as zeros; and what to know of that.

    What doesn't fit together stays as it is, to be told with what else is no encoder's.
    """
    merged = dict(state)
    for block in [name.removesuffix("query.weight") for name in state if name.endswith(".attn.query.weight")]:
        _join(merged, block, [f"{part}.weight" for part in _PARTS], "qkv.weight", dimensions=2)
    for names in ([f"{part}.bias" for part in _PARTS], ["q_bias", "k_bias", "v_bias"]):
        ends = tuple(f".attn.{name}" for name in names)
        blocks = dict.fromkeys(name[: name.rindex(".attn.") + 6] for name in state if name.endswith(ends))
        # A bias that some blocks have and others lack is a tensor lost, and not one that the model hasn't.
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
            notes.append(f"{layer} has no biases: zeros take their place")
    kernel = merged.get("patch_embed.proj.weight")
    if kernel is not None and kernel.ndim > 1 and "patch_embed.proj.bias" not in merged:
        merged["patch_embed.proj.bias"] = kernel.new_zeros(len(kernel))
        notes.append("the patch embedding has no bias: zeros take its place")
    return merged, tuple(notes)


_PARTS = ("query", "key", "value")


def _join(state: dict[str, Tensor], block: str, names: Sequence[str], joined: str, *, dimensions: int) -> None:
    """Put the tensors of query, key and value in a block together, zeros for a bias that isn't there, if they fit."""
    found = {name: state[block + name] for name in names if block + name in state}
    if not all(tensor.is_floating_point() for tensor in found.values()):
        return  # joined with others, integers would pass for real numbers
    shapes = {tuple(tensor.shape) for tensor in found.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != dimensions or (dimensions > 1 and len(found) < len(names)):
        return
    like = next(iter(found.values()))
    state[block + joined] = torch.cat([found.get(name, torch.zeros_like(like)) for name in names])
    for name in found:
        del state[block + name]


def flat_kernel(source: str, kernel: Tensor, width: int | None) -> Tensor:
    """The kernel of the patch embedding with its four dimensions (D, C, p, p); ``width``: that of the tokens, if known.

    A kernel of one frame is taken without its time; raises CheckpointError for others, saying what they are.
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
            f"{source}: its patch embedding is a linear layer on flattened patches ({shape[0]}×{shape[1]}), in an order of "
            "pixels that is not said. Expected a convolution's kernel (width, channels, patch, patch): reshape it so, and save."
        )
    if kernel.ndim != 4:
        raise CheckpointError(
            f"{source}: patch_embed.proj.weight has shape {list(shape)}. Expected (width, channels, patch, patch)."
        )
    if width is not None and shape[0] != width and shape[-1] == width:
        raise CheckpointError(
            f"{source}: the kernel of the patch embedding has shape {list(shape)}: the order of TensorFlow and Flax (height, "
            "width, channels, features). Convert the whole model to PyTorch, with its library's converter, and give that file."
        )
    return kernel


# ---- what has no place in an encoder


def _some(pattern: str) -> Callable[[Mapping[str, Tensor]], str | None]:
    return lambda state: next((name for name in state if re.search(pattern, name)), None)


def _registers(state: Mapping[str, Tensor]) -> str | None:
    return next(
        (name for name in state if re.fullmatch(r"reg_tokens?|register_tokens?", name) and state[name].numel()), None
    )


def _gated(state: Mapping[str, Tensor]) -> str | None:
    """A layer of a gated MLP: by its name, or by one half of fc1's outputs going into fc2."""
    named = _some(r"\.mlp\.(fc1_[gx]|w1|w2|w3|w12|weights_in|gate_proj|up_proj)\.")(state)
    first, second = (state.get(f"blocks.0.mlp.{layer}.weight") for layer in ("fc1", "fc2"))
    if named or first is None or second is None or first.ndim != 2 or second.ndim != 2:
        return named
    return "blocks.0.mlp.fc1.weight" if len(first) == 2 * second.shape[1] else None


def _without_biases(state: Mapping[str, Tensor]) -> str | None:
    norms = [name for name in state if re.fullmatch(r"(blocks\.\d+\.norm[12]|norm)\.weight", name)]
    biased = any(name.replace(".weight", ".bias") in state for name in norms)
    return norms[0] if norms and not biased else None


def _no_positions(state: Mapping[str, Tensor]) -> str | None:
    plain = "patch_embed.proj.weight" in state and "blocks.0.mlp.fc1.weight" in state and "pos_embed" not in state
    return "pos_embed is not there" if plain else None


_HAS_NO_PLACE: tuple[tuple[Callable[[Mapping[str, Tensor]], str | None], str], ...] = (
    (_some(r"^(dist_token|head_dist)|\.dist_token$|distillation_token"), DISTILLED),
    (_registers, REGISTERS),
    (_some(r"^detection_tokens$|mid_position_embeddings"), DETECTION_TOKENS),
    (_some(r"(^|\.)(norm_pre|pre_layrnorm|pre_layernorm|ln_pre)\."), PRE_NORM),
    (_some(r"patch_embed\.backbone\.|patch_embed\.(proj\.)?\d+\.|patch_embed\.conv\d|conv_proj\.\d"), STEM),
    (_some(r"\.attn\.(q_norm|k_norm)\.|\.(q_norm|k_norm|q_layernorm|k_layernorm)\.weight$"), QK_NORM),
    (_some(r"\.attn\.(norm|inner_attn_ln)\.|\.mlp\.(norm|ffn_ln)\."), INNER_NORM),
    (_some(r"\.attn\.gate\."), GATED_ATTENTION),
    (_gated, GATED),
    (_some(r"^blocks\.\d+\.(in_proj|mlp_out_proj|attn_out_proj|attns|ffns)\."), PARALLEL),
    (_some(r"(^|\.)(rope|rotary|rope_embed|freqs|freqs_cis|inv_freq)(\.|$)"), ROTARY),
    (
        _some(r"\blora_[AB]\b|\.lora_"),
        "low-rank adapters (LoRA) beside the weights: merge them into these, and save again",
    ),
    (_some(r"(^|\.)visual\.(conv1|class_embedding)|^conv1\.weight$.*class_embedding"), PRE_NORM),
    (_without_biases, RMS_NORM),
    (
        _some(r"rel_pos|relative_position"),
        "relative positions in its attention, where an encoder adds positions to the patches",
    ),
    (_no_positions, NO_POSITIONS),
)
"""Parts of other ViTs, found by their names or shapes, and what they are; the first that is found is said."""


def refuse_what_has_no_place(source: str, state: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError, naming the part, for the weights of a ViT that is not plain."""
    for find, reason in _HAS_NO_PLACE:
        if (name := find(state)) is not None:
            raise CheckpointError(f"{source}: not a plain ViT ({name}): {reason}.")
