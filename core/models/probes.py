"""Probes on an encoder's features: linear, attentive and k-nearest-neighbour classifiers."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compute_types import Precision
from ..device import autocast
from ..errors import ConfigError
from .backbone import Backbone, Features
from .pooling import Pooling

SIMILARITIES = 2**26
"""Largest number of similarities in memory at once in the search for neighbours."""


def pool(features: Features, pooling: Pooling) -> Tensor:
    """Features of images as vectors, (B, ``Backbone.pooled_dim``), which has refused what a backbone doesn't have."""
    if pooling == "mean":
        return features.pooled()
    if pooling == "head":
        assert features.head is not None
        return features.head
    class_token = features.class_token
    assert class_token is not None
    return class_token if pooling == "class_token" else torch.cat([features.pooled(), class_token], dim=1)


def pooled_features(encoder: Backbone, pixels: Tensor, pooling: Pooling, precision: Precision) -> Tensor:
    """One vector an image, (B, ``Backbone.pooled_dim``), of stored pixel values (B, C, H, W) on the encoder's device."""
    with autocast(pixels.device, precision):
        return pool(encoder.forward_features(encoder.preprocessing.normalize(pixels)), pooling)


class LinearProbe(nn.Module):
    """A linear layer on features scaled by a batch norm without affine parameters (MAE, Appendix A.1, Table 10)."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(dim, affine=False, eps=1e-6)
        self.linear = nn.Linear(dim, num_classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Pooled features (B, D) to logits (B, K)."""
        return cast(Tensor, self.linear(self.norm(features)))

    def folded(self) -> nn.Linear:
        """One linear layer with the same logits: the running mean and variance are folded into its weights."""
        mean, var = cast(Tensor, self.norm.running_mean).double(), cast(Tensor, self.norm.running_var).double()
        weight = self.linear.weight.double() / (var + self.norm.eps).sqrt()
        plain = nn.Linear(self.linear.in_features, self.linear.out_features, device=self.linear.weight.device)
        with torch.no_grad():
            plain.weight.copy_(weight)
            plain.bias.copy_(self.linear.bias.double() - weight @ mean)
        return plain


class AttentiveProbe(nn.Module):
    """A learned query that attends to the patch tokens, and a linear layer (AIM, El-Nouby et al. 2024, Sec. 5; CAE).

    As in AIM the tokens go through a batch norm without affine first, and the heads' outputs side by side to the linear
    layer, with no projection between.
    """

    def __init__(self, dim: int, num_classes: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ConfigError("probe_heads", num_heads, f"a divisor of the encoder's embed_dim={dim}")
        self.num_heads = num_heads
        self.norm = nn.BatchNorm1d(dim, affine=False, eps=1e-6)
        self.query = nn.Parameter(torch.empty(1, 1, dim))
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.linear = nn.Linear(dim, num_classes)
        nn.init.trunc_normal_(self.query, std=0.02)
        nn.init.trunc_normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Patch tokens (B, N, D) to logits (B, K)."""
        tokens = self.norm(tokens.transpose(1, 2)).transpose(1, 2)
        query = self._split(self.query.expand(len(tokens), -1, -1))
        key, value = self._split(self.key(tokens)), self._split(self.value(tokens))
        attended = F.scaled_dot_product_attention(query, key, value)  # (B, heads, 1, D / heads)
        return cast(Tensor, self.linear(attended.flatten(1)))

    def _split(self, tokens: Tensor) -> Tensor:
        """(B, N, D) to (B, heads, N, D / heads)."""
        return tokens.reshape(*tokens.shape[:2], self.num_heads, -1).transpose(1, 2)


class NearestNeighbours(nn.Module):
    """k-nearest-neighbour classification by cosine similarity of features.

    With a ``temperature`` a neighbour's vote has the weight exp(cosine / temperature), as in DINO (Caron et al. 2021, Sec.
    4.1); without, all have the same. ``bank`` (n, D) float32 are the normalised features, ``targets`` (n, K) uint8 the
    classes. The softmax of the logits, or with ``multi_label`` the sigmoid, is each class's share of the votes.
    """

    bank: Tensor
    targets: Tensor

    def __init__(
        self, dim: int, num_classes: int, count: int, *, k: int, temperature: float | None, multi_label: bool
    ) -> None:
        super().__init__()
        self.k, self.temperature, self.multi_label = k, temperature, multi_label
        self.register_buffer("bank", torch.zeros(count, dim))
        self.register_buffer("targets", torch.zeros(count, num_classes, dtype=torch.uint8))

    @torch.no_grad()
    def fill(self, features: Tensor, targets: Tensor) -> None:
        """Store the features (n, D) of labelled images and their targets (n, K) of 0 and 1."""
        self.bank.copy_(F.normalize(features.float(), dim=1))
        self.targets.copy_(targets)

    def forward(self, features: Tensor) -> Tensor:
        """Pooled features (B, D) to logits (B, K)."""
        rows = max(1, SIMILARITIES // len(self.bank))
        with torch.autocast(features.device.type, enabled=False):
            return torch.cat([self._logits(part.float()) for part in torch.split(features, rows)])

    def _logits(self, features: Tensor) -> Tensor:
        cosines = F.normalize(features, dim=1) @ self.bank.T  # (B, n)
        nearest, indices = cosines.topk(min(self.k, len(self.bank)), dim=1)  # (B, k)
        scaled = nearest / self.temperature if self.temperature else torch.zeros_like(nearest)
        votes = torch.einsum("bk,bkc->bc", scaled.softmax(dim=1), self.targets[indices].float())
        shares = votes.clamp(1e-7, 1 - 1e-7)
        return shares.logit() if self.multi_label else shares.log()
