"""Cross-validation of probes on features: each image is classified by a probe that was fitted without its fold."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.models.logistic_regression import fit_linear_probe
from ...core.models.probes import LinearProbe, NearestNeighbours
from .evaluation import validation_figures

logger = logging.getLogger("maelift")

Predict = Callable[[Tensor, Tensor], Sequence[Tensor]]
"""From the numbers of training rows and of those left out to the logits (m, K) of the latter, once for each setting."""


def left_out_logits(folds: Sequence[int], predict: Predict) -> tuple[Tensor, list[Tensor]]:
    """The numbers (M,) of the rows that a fold leaves out, and for each setting their logits (M, K), on the CPU.

    ``folds`` (N,) are the fold of each row from 0; -1 for those that are always trained on.
    """
    numbers = torch.tensor(folds)
    rows: list[Tensor] = []
    logits: list[Sequence[Tensor]] = []
    for fold in range(int(numbers.max()) + 1):
        train, left_out = ((numbers == fold).eq(out).nonzero().flatten() for out in (False, True))
        rows.append(left_out)
        logits.append(predict(train, left_out))
    return torch.cat(rows), [torch.cat(of_one).float().cpu() for of_one in zip(*logits, strict=True)]


def cross_validated_penalty(
    rows: Tensor,
    targets: Tensor,
    num_classes: int,
    folds: Sequence[int],
    strengths: Sequence[float],
    device: torch.device,
) -> tuple[float, dict[str, float]]:
    """The L2 penalty of a linear probe that does best over all left-out images, and what it reaches on them.

    ``rows`` (N, D), ``targets`` as in ``fit_linear_probe``. Of penalties with equal figures the one of least log loss.
    """

    def predict(train: Tensor, left_out: Tensor) -> list[Tensor]:
        probe = LinearProbe(rows.shape[1], num_classes).to(rows.device).eval()
        fits = fit_linear_probe(probe, rows[train], targets[train], strengths, device=device)
        return [probe(rows[left_out]).detach() for _ in fits]

    numbers, logits = left_out_logits(folds, predict)
    answers = targets[numbers].cpu()
    found: list[tuple[float, float, float, dict[str, float]]] = []
    for l2, of_one in zip(strengths, logits, strict=True):
        figures = validation_figures(of_one, answers)
        (value,) = figures.values()
        logger.info("linear probe: l2=%g: %.2f %% of the images left out", l2, 100 * value)
        found.append((value, -_log_loss(of_one, answers), l2, figures))
    _, _, best, figures = max(found, key=lambda entry: entry[:2])
    return best, figures


def cross_validated_neighbours(
    head: NearestNeighbours, rows: Tensor, targets: Tensor, folds: Sequence[int]
) -> dict[str, float]:
    """What a classifier like ``head`` reaches on each image by the neighbours in other folds than its own.

    ``rows`` (N, D); ``targets`` (N,) classes, or (N, K) of 0 and 1.
    """
    classes = head.targets.shape[1]
    flags = targets if targets.ndim == 2 else F.one_hot(targets, classes)

    def predict(train: Tensor, left_out: Tensor) -> list[Tensor]:
        voting = NearestNeighbours(
            *(rows.shape[1], classes, len(train)),
            k=head.k,
            temperature=head.temperature,
            multi_label=head.multi_label,
        ).to(rows.device)
        voting.fill(rows[train], flags[train])
        return [voting(rows[left_out])]

    numbers, (logits,) = left_out_logits(folds, predict)
    return validation_figures(logits, targets[numbers].cpu())


def _log_loss(logits: Tensor, targets: Tensor) -> float:
    if targets.ndim == 2:
        return float(F.binary_cross_entropy_with_logits(logits, targets))
    return float(F.cross_entropy(logits, targets))
