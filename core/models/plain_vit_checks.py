"""Checks that a ViT is plain: unsupported parts are found in a state dict or in a timm model, and named."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import CheckpointError

DISTILLED = "a distilled DeiT: its distillation token has no place in an encoder"
REGISTERS = "register tokens, which have no place in an encoder"
DETECTION_TOKENS = "detection tokens (YOLOS), which have no place in an encoder"
ROTARY = "rotary positions (RoPE) in its attention, where an encoder adds positions to the patches"
PRE_NORM = "a norm before the blocks (as CLIP's ViTs have), which has no place in an encoder"
STEM = "a stem of convolutions before the patches (a hybrid ViT), where an encoder has one linear projection"
NO_POSITIONS = "no position embeddings, which an encoder needs"
QK_NORM = "norms of queries and keys (qk-norm), which have no place in an encoder"
INNER_NORM = "norms within attention or MLP, which have no place in an encoder"
GATED_ATTENTION = "gates in its attention, which have no place in an encoder"
GATED = "gated MLPs (SwiGLU), where an encoder has two plain layers"
RMS_NORM = "norms without biases (RMSNorm), where an encoder has LayerNorms"
PARALLEL = "attention and MLP side by side in a block (parallel blocks), where an encoder has one after the other"


def why_not_plain(model: Any) -> str | None:
    """Why a model of timm is not supported; None for a plain ViT."""
    from timm.layers import Attention, Mlp, PatchEmbed
    from timm.models.eva import Eva, EvaAttention, EvaBlock
    from timm.models.vision_transformer import Block, VisionTransformer

    if not isinstance(model, VisionTransformer | Eva):
        return f"a {type(model).__name__}, not a plain ViT"
    block: Any = model.blocks[0]
    attention = getattr(block, "attn", None)
    parts = [
        (getattr(model, "dist_token", None) is not None, DISTILLED),
        (getattr(model, "reg_token", None) is not None, REGISTERS),
        (getattr(model, "rope", None) is not None, ROTARY),
        (not isinstance(model.norm_pre, nn.Identity), PRE_NORM),
        (type(model.patch_embed) is not PatchEmbed, STEM),
        (model.pos_embed is None, NO_POSITIONS),
        (
            type(block) not in (Block, EvaBlock),
            f"its blocks are {type(block).__name__}, not the pre-norm ones of a plain ViT",
        ),
        (type(attention) not in (Attention, EvaAttention), f"its attention is {type(attention).__name__}"),
        (not _is_identity(attention, "q_norm"), QK_NORM),
        (not _is_identity(attention, "norm"), INNER_NORM),
        (getattr(attention, "gate", None) is not None, GATED_ATTENTION),
        (type(getattr(block, "mlp", None)) is not Mlp, GATED),
        (not _is_identity(getattr(block, "mlp", None), "norm"), INNER_NORM),
        (not isinstance(getattr(block, "norm1", None), nn.LayerNorm), RMS_NORM),
    ]
    return next((reason for found, reason in parts if found), None)


def _is_identity(module: Any, name: str) -> bool:
    return isinstance(getattr(module, name, nn.Identity()), nn.Identity)


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


_UNSUPPORTED: tuple[tuple[Callable[[Mapping[str, Tensor]], str | None], str], ...] = (
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
"""Unsupported parts, found by names or shapes, and their descriptions; the first that is found is reported."""


def check_plain_vit(source: str, state: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError, naming the part, for the weights of a ViT that is not plain."""
    for find, reason in _UNSUPPORTED:
        if (name := find(state)) is not None:
            raise CheckpointError(f"{source}: not a plain ViT ({name}): {reason}.")
