"""Logistic regression by L-BFGS on features, and the linear probe fitted by it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .probes import LinearProbe

L2_GRID = (1000.0, 100.0, 10.0, 1.0, 0.1)
"""L2 penalties of the linear probe's search, the strongest first."""

CHUNK = 2**16
"""Rows of features that are converted to double precision at once."""


def fit_linear_probe(
    model: LinearProbe,
    rows: Tensor,
    targets: Tensor,
    strengths: Sequence[float] = L2_GRID,
    *,
    device: torch.device | None = None,
    tolerance: float = 1e-5,
) -> Iterator[float]:
    """Fit ``model`` to features by logistic regression, once for each L2 penalty, and yield the penalty after each fit.

    ``rows`` (n, D) are scaled by their own mean and deviation, which become those of the model's batch norm. For ``targets`` see
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
