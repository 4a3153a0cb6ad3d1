"""The blocks of the decoder of pretraining: of self-attention and of cross-attention."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from timm.layers import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ..core.models.encoder import gather_tokens


class DecoderBlock(Block):  # type: ignore[misc]
    """timm's block, which can also compute its output for some of the tokens only."""

    def forward(self, tokens: Tensor, ids: Tensor | None = None) -> Tensor:
        """Tokens (B, 1 + N, E) to the same, or to those at ``ids`` (B, M) alone, (B, M, E): they attend to all tokens.

        For the last block before a head that needs some tokens only. A decoder has no dropout and no layer scale.
        """
        if ids is None:
            return cast(Tensor, super().forward(tokens))
        dim = tokens.shape[-1]
        normed = self.norm1(tokens)
        weight, bias = self.attn.qkv.weight, self.attn.qkv.bias
        q = F.linear(gather_tokens(normed, ids), weight[:dim], bias[:dim])
        k, v = F.linear(normed, weight[dim:], bias[dim:]).chunk(2, dim=-1)
        q, k, v = (_split_heads(part, self.attn.num_heads) for part in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        chosen = gather_tokens(tokens, ids) + self.attn.proj(attended)
        return cast(Tensor, chosen + self.mlp(self.norm2(chosen)))


class CrossBlock(nn.Module):
    """A decoder block whose queries attend to the encoder's output, not to one another (CrossMAE, arXiv 2401.14391)."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, norm_eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(mlp_ratio * dim))

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        """Queries (B, M, E) and the encoder's tokens (B, 1 + V, E) to (B, M, E)."""
        q = _split_heads(self.q(self.norm1(queries)), self.num_heads)
        k, v = (_split_heads(part, self.num_heads) for part in self.kv(memory).chunk(2, dim=-1))
        queries = queries + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return cast(Tensor, queries + self.mlp(self.norm2(queries)))


def _split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    """(B, M, E) to (B, heads, M, E / heads)."""
    return tokens.view(*tokens.shape[:-1], num_heads, -1).transpose(1, 2)
