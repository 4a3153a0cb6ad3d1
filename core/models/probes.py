"""Probes of an encoder's features: a linear layer, how it is fitted, attention over the patches, the nearest images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import ConfigError
from .encoder import EncoderSpec, Features

Pooling = Literal["mean", "class_token", "both"]
"""One vector an image: the mean of its patch tokens, its class token, or the two side by side; after the final norm."""

SIMILARITIES = 2**26
"""Similarities that are held at once when neighbours are looked for."""
L2_GRID = (1000.0, 100.0, 10.0, 1.0, 0.1)
"""Strengths of the linear probe's penalty that are tried, the strongest first."""
CHUNK = 2**16
"""Rows of features that the logistic regression takes in double precision at once."""


def pool(features: Features, pooling: Pooling) -> Tensor:
    """Features of images as vectors, (B, ``pooled_dim``)."""
    if pooling == "mean":
        return features.pooled()
    class_token = features.class_token
    assert class_token is not None  # pooled_dim has refused encoders without
    return class_token if pooling == "class_token" else torch.cat([features.pooled(), class_token], dim=1)


def pooled_dim(spec: EncoderSpec, pooling: Pooling) -> int:
    """The length of a pooled vector; raises ConfigError for the class token of an encoder that has none."""
    if pooling != "mean" and not spec.class_token:
        raise ConfigError("features", pooling, "mean, as this encoder has no class token")
    return spec.embed_dim * (2 if pooling == "both" else 1)


class LinearProbe(nn.Module):
    """A linear layer on features that a batch norm without affine has scaled (MAE, Appendix A.1, Table 10)."""

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
        """One linear layer that gives the same logits, with the running mean and variance in its weights."""
        mean, var = cast(Tensor, self.norm.running_mean).double(), cast(Tensor, self.norm.running_var).double()
        weight = self.linear.weight.double() / (var + self.norm.eps).sqrt()
        plain = nn.Linear(self.linear.in_features, self.linear.out_features, device=self.linear.weight.device)
        with torch.no_grad():
            plain.weight.copy_(weight)
            plain.bias.copy_(self.linear.bias.double() - weight @ mean)
        return plain


class AttentiveProbe(nn.Module):
    """One learnt query that attends to the patch tokens, and a linear layer (AIM, El-Nouby et al. 2024, Sec. 5; CAE).

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
    """The classes of the ``k`` labelled images whose features have the highest cosine with an image's.

    With a ``temperature`` a neighbour's vote weighs exp(cosine / temperature), as DINO has it (Caron et al. 2021, Sec. 4.1);
    without, all weigh the same. ``bank`` (n, D) float32 holds the features, of length 1; ``targets`` (n, K) uint8 the classes.
    Logits are those of a class's share of the votes: by softmax, or with ``multi_label`` by sigmoid, they give it back.
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
        """Take in the features (n, D) of labelled images, and their targets (n, K) of 0 and 1."""
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


def linear_fits(
    model: LinearProbe,
    rows: Tensor,
    targets: Tensor,
    strengths: Sequence[float] = L2_GRID,
    *,
    device: torch.device | None = None,
    tolerance: float = 1e-5,
) -> Iterator[float]:
    """Fit ``model`` to features by logistic regression, once for each strength of the penalty, which is given each time.

    ``rows`` (n, D) are scaled by their own mean and deviation, which the model's batch norm keeps. For ``targets`` see
    ``logistic_regression``; each fit starts from the one before.
    """
    std, mean = torch.std_mean(rows, dim=0, correction=0)
    cast(Tensor, model.norm.running_mean).copy_(mean)
    cast(Tensor, model.norm.running_var).copy_(std**2)
    scaled = (rows - mean) / (std**2 + model.norm.eps).sqrt()
    start = None
    for l2 in strengths:
        start = logistic_regression(
            scaled, targets, model.linear.out_features, l2=l2, start=start, device=device, tolerance=tolerance
        )
        with torch.no_grad():
            model.linear.weight.copy_(start[0])
            model.linear.bias.copy_(start[1])
        yield l2


def logistic_regression(
    rows: Tensor,
    targets: Tensor,
    num_classes: int,
    *,
    l2: float,
    start: tuple[Tensor, Tensor] | None = None,
    device: torch.device | None = None,
    tolerance: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """Weights (K, D) and biases (K,), float64, that minimise the summed log loss plus ``l2 / 2`` times the squared weights.

    ``rows`` (n, D); ``targets`` (n,) int64 classes, or (n, K) of 0 and 1 for one regression a class. scikit-learn's
    LogisticRegression with C = 1 / l2 has the same minimum (of two classes it fits one weight vector; here it stands with
    both signs, halved). L-BFGS by scipy, in double precision, until no derivative of the mean loss is above ``tolerance``.
    """
    from scipy.optimize import minimize

    device = device or torch.device("cpu")
    count, dim = rows.shape
    rows, targets = rows.to(device), targets.to(device)
    # w and -w of two classes weigh half as much as the one vector of twice their length
    strength = l2 * (2 if num_classes == 2 and targets.ndim == 1 else 1) / count

    def mean_loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        values = torch.from_numpy(flat).to(device).view(num_classes, dim + 1).requires_grad_()
        weight, bias = values[:, :-1], values[:, -1]
        penalty = strength / 2 * weight.square().sum()
        penalty.backward()  # type: ignore[no-untyped-call]
        total = float(penalty.detach())
        for part, wanted in zip(torch.split(rows, CHUNK), torch.split(targets, CHUNK), strict=True):
            logits = F.linear(part.double(), weight, bias)
            if targets.ndim == 1:
                loss = F.cross_entropy(logits, wanted, reduction="sum") / count
            else:
                loss = F.binary_cross_entropy_with_logits(logits, wanted.double(), reduction="sum") / count
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total, cast(Tensor, values.grad).flatten().cpu().numpy()

    first = torch.zeros(num_classes, dim + 1, dtype=torch.float64)
    if start is not None:
        first = torch.cat([start[0], start[1][:, None]], dim=1)
    found = minimize(
        mean_loss,
        first.flatten().numpy(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 5000, "maxfun": 10000, "gtol": tolerance, "ftol": 0.0, "maxcor": 20},
    )
    values = torch.from_numpy(found.x).view(num_classes, dim + 1)
    return values[:, :-1].clone(), values[:, -1].clone()
