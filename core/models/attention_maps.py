"""Attention weights of the last block of a plain ViT, which fused attention does not give (ViT)."""

from __future__ import annotations

from typing import cast

import torch
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from .backbone import Backbone


def last_attention(backbone: Backbone) -> nn.Module | None:
    """The self-attention of the last block; None where the backbone isn't a plain ViT with a class token.

    Of timm's models those count whose blocks have timm's plain attention: no rotary positions, no windows.
    """
    blocks = getattr(getattr(backbone, "net", backbone), "blocks", None)
    if not backbone.has_class_token or not isinstance(blocks, (nn.ModuleList, nn.Sequential)) or not len(blocks):
        return None
    found = getattr(blocks[-1], "attn", None)
    return found if type(found) is Attention else None


def attention_weights(attention: nn.Module, tokens: Tensor) -> Tensor:
    """The weights softmax(q kᵀ / √d), (B, heads, T, T), of each of T tokens (B, T, D) on all; each row adds up to 1."""
    query, key, _ = _projected(attention, tokens)
    scale = cast(float, attention.scale)
    return (query @ key.transpose(-2, -1) * scale).softmax(dim=-1)


@torch.inference_mode()
def class_attention(backbone: Backbone, images: Tensor) -> Tensor | None:
    """The attention (B, heads, N) of the class token to the N patch tokens in the last block; None where ``last_attention`` is.

    ``images`` (B, C, H, W) are normalised. The rows add up to less than 1: the class token, and registers, have the rest.
    """
    attention = last_attention(backbone)
    if attention is None:
        return None
    found: list[Tensor] = []
    handle = attention.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    try:
        features = backbone.forward_features(images)
    finally:
        handle.remove()
    (tokens,) = found
    return attention_weights(attention, tokens)[:, :, 0, -features.tokens.shape[1] :]


def _projected(attention: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, each (B, heads, T, d), of timm's attention."""
    module = cast(Attention, attention)
    batch, count, _ = tokens.shape
    qkv = module.qkv(tokens).reshape(batch, count, 3, module.num_heads, module.head_dim).permute(2, 0, 3, 1, 4)
    query, key, value = qkv.unbind(0)
    return module.q_norm(query), module.k_norm(key), value
