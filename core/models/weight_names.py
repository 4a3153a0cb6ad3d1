"""Tables of other libraries' names for a plain ViT's tensors, to ours and to transformers', and names of heads."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

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
    """Tensors of transformers' models under our names; unknown names don't change."""
    return _shaped(_renamed(state, _TRANSFORMERS))


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of torchvision's ViTs under our names."""
    return _shaped(_renamed(state, _TORCHVISION))


def from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of timm's and reference models under our names, layer scale as ``gamma_1`` and ``gamma_2``.

    Names of layer scale don't change if only some blocks have it: that is no valid model.
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


_LAYER_NAMES = (
    ("norm1.*", "layernorm_before.*", "layernorm_before.*"),
    ("norm2.*", "layernorm_after.*", "layernorm_after.*"),
    ("attn.query.*", "attention.attention.query.*", "attention.q_proj.*"),
    ("attn.key.*", "attention.attention.key.*", "attention.k_proj.*"),
    ("attn.value.*", "attention.attention.value.*", "attention.v_proj.*"),
    ("attn.proj.*", "attention.output.dense.*", "attention.o_proj.*"),
    ("mlp.fc1.*", "intermediate.dense.*", "mlp.fc1.*"),
    ("mlp.fc2.*", "output.dense.*", "mlp.fc2.*"),
)

_TRANSFORMERS_NAMES = (
    ("cls_token", "embeddings.cls_token", "embeddings.cls_token"),
    ("pos_embed", "embeddings.position_embeddings", "embeddings.position_embeddings"),
    ("patch_embed.proj.*", "embeddings.patch_embeddings.projection.*", "embeddings.patch_embeddings.projection.*"),
    ("norm.*", "layernorm.*", "layernorm.*"),
    *((f"blocks.*.{ours}", f"encoder.layer.*.{old}", f"layers.*.{new}") for ours, old, new in _LAYER_NAMES),
    *(
        (f"decoder_blocks.*.{ours}", f"decoder.decoder_layers.*.{old}", f"decoder.decoder_layers.*.{new}")
        for ours, old, new in _LAYER_NAMES
    ),
    *(
        (f"decoder_blocks.*.{ours}", f"decoder.decoder_encoder.layer.*.{old}", f"decoder.decoder_encoder.layer.*.{new}")
        for ours, old, new in _LAYER_NAMES  # as 5.x saves them
    ),
    *((name, f"decoder.{name}", f"decoder.{name}") for name in ("mask_token", "decoder_pos_embed")),
    *(
        (f"{name}.*", f"decoder.{name}.*", f"decoder.{name}.*")
        for name in ("decoder_embed", "decoder_norm", "decoder_pred")
    ),
)
"""Our names, and transformers' as 4.x and as 5.x have them; "*" stands for a block's number, and for weight or bias."""


def to_transformers_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An encoder's tensors, and a decoder's, under the names of transformers 4.x, which 5.x reads as well."""
    table = [(ours, old) for ours, old, _ in _TRANSFORMERS_NAMES]
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        parts = {name: tensor}
        if ".attn.qkv." in name:
            split = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
            parts = {name.replace(".qkv.", f".{part}."): piece.contiguous() for part, piece in split}
        renamed |= {rename(ours, table): piece for ours, piece in parts.items()}
    return renamed


def from_transformers_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of ``to_transformers_names``, for the names of 4.x and of 5.x; unknown names don't change."""
    table = [(theirs, ours) for ours, old, new in _TRANSFORMERS_NAMES for theirs in (old, new)]
    renamed = {rename(name.removeprefix("vit."), table): tensor for name, tensor in state.items()}
    for name in [name for name in renamed if ".attn.query." in name]:
        parts = [name, name.replace(".query.", ".key."), name.replace(".query.", ".value.")]
        if all(part in renamed for part in parts):
            renamed[name.replace(".query.", ".qkv.")] = torch.cat([renamed.pop(part) for part in parts])
    return renamed


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
"""Other parts of segmentors, detectors and vision-language models."""

MM_NAMES = (
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
    """The name by the first matching row (pattern, replacement), where "*" matches one word; unknown names don't change."""
    for pattern, replacement in table:
        if found := re.fullmatch(re.escape(pattern).replace(r"\*", r"(\w+)"), name):
            return "".join(
                itertools.chain(*itertools.zip_longest(replacement.split("*"), found.groups(), fillvalue=""))
            )
    return name


def without_heads(
    state: Mapping[str, Tensor], outside: Mapping[str, str]
) -> tuple[dict[str, Tensor], tuple[str, ...], list[str]]:
    """The encoder's tensors of a model, notes on what was left out, and names outside its module that are of no known head.

    ``outside``: names outside the module with the patch embedding, and the same without the prefix they share with it.
    """
    left = [short for short in outside.values() if _HEADS.fullmatch(short) or NOT_ENCODER.fullmatch(short)]
    unknown = [name for name, short in outside.items() if short not in left]
    heads = [name for name in state if NOT_ENCODER.fullmatch(name)]
    kept = {name: tensor for name, tensor in state.items() if name not in heads}
    parts = [name.removeprefix("embeddings.") for name in [*left, *heads]]
    groups = Counter("decoder" if name.startswith("decoder") else name.split(".")[0] for name in parts)
    notes = tuple(f"left out: {name} ({count} tensor{'s' if count > 1 else ''})" for name, count in groups.items())
    return kept, notes, unknown
