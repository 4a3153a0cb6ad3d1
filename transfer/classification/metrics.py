"""Classification scores, by torchmetrics: of one class an image, or any number of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..metrics import Scores

CALIBRATION_BINS = 15


def single_label_scores(split: str, logits: Tensor, labels: Tensor, classes: Sequence[str]) -> Scores:
    """Scores of logits (N, K) for images with one class each, ``labels`` (N,) int64.

    Metrics: top1, top5, balanced (the mean of the classes' recalls), macro_f1, map (the mean of the classes' average
    precisions, each against the rest), nll (nats) and ece (expected calibration error of the most probable class: 15 bins, L1).
    Means are over the classes that have images in the split; the others' own scores are None. Top-5 is None where there
    are no more than five classes.
    """
    from torchmetrics.functional import classification as metrics

    count = len(classes)
    logits, labels = logits.double().cpu(), labels.long().cpu()
    # torchmetrics takes values that all lie in [0, 1] for probabilities: it is given probabilities, not logits
    probabilities = logits.softmax(dim=1)
    confusion = metrics.multiclass_confusion_matrix(probabilities, labels, count)
    of_class, taken_for = confusion.sum(dim=1), confusion.sum(dim=0)
    right, present = confusion.diag(), of_class > 0
    recall = _ratio(right, of_class)
    f1 = _ratio(2 * right, of_class + taken_for)
    ap = _average_precisions(probabilities, F.one_hot(labels, count))
    return Scores(
        split=split,
        count=len(labels),
        metrics={
            "top1": _mean(logits.argmax(dim=1) == labels),
            "top5": _mean((logits.topk(5, dim=1).indices == labels[:, None]).any(dim=1)) if count > 5 else None,
            "balanced": _mean(recall[present]),
            "macro_f1": _mean(f1[present]),
            "map": _mean(ap[present]),
            "nll": float(F.cross_entropy(logits, labels)),
            "ece": float(metrics.multiclass_calibration_error(probabilities, labels, count, n_bins=CALIBRATION_BINS)),
        },
        per_class=_per_class(
            classes, of_class, {"recall": recall, "precision": _ratio(right, taken_for), "f1": f1, "ap": ap}
        ),
        confusion=tuple(tuple(int(number) for number in row) for row in confusion),
    )


def multi_label_scores(split: str, logits: Tensor, targets: Tensor, classes: Sequence[str]) -> Scores:
    """Scores of logits (N, K) for images with any number of classes each, ``targets`` (N, K) of 0 and 1.

    Metrics: map (the mean of the classes' average precisions), micro_map (of all pairs of image and class at once), macro_f1
    and micro_f1 of the classes with a probability of 0.5 or more, subset (the share of images with exactly the right
    classes) and nll (binary cross-entropy, nats, mean over images and classes). Means are over the classes that have
    images in the split; the others' own scores are None.
    """
    logits, targets = logits.double().cpu(), targets.cpu().long()
    probabilities = logits.sigmoid()
    chosen = logits >= 0
    right = (chosen & (targets == 1)).sum(dim=0)
    of_class, taken_for = targets.sum(dim=0), chosen.sum(dim=0)
    present = of_class > 0
    recall, f1 = _ratio(right, of_class), _ratio(2 * right, of_class + taken_for)
    ap = _average_precisions(probabilities, targets)
    pairs = _average_precisions(probabilities.reshape(-1, 1), targets.reshape(-1, 1))
    return Scores(
        split=split,
        count=len(targets),
        metrics={
            "map": _mean(ap[present]),
            "micro_map": _number(pairs[0]),
            "macro_f1": _mean(f1[present]),
            "micro_f1": _number(_ratio(2 * right.sum(), of_class.sum() + taken_for.sum())),
            "subset": _mean((chosen == (targets == 1)).all(dim=1)),
            "nll": float(F.binary_cross_entropy_with_logits(logits, targets.double())),
        },
        per_class=_per_class(
            classes, of_class, {"recall": recall, "precision": _ratio(right, taken_for), "f1": f1, "ap": ap}
        ),
        confusion=None,
    )


def mean_average_precision(logits: Tensor, targets: Tensor) -> float:
    """The mean of the average precisions of the classes that have images, 0 where none has; logits and targets (N, K)."""
    targets = targets.cpu().long()
    present = targets.sum(dim=0) > 0
    return _mean(_average_precisions(logits.double().cpu().sigmoid(), targets)[present]) or 0.0


def _average_precisions(probabilities: Tensor, targets: Tensor) -> Tensor:
    """The average precision of each class by itself, (K,); nan where no image has it."""
    from torchmetrics.functional.classification import binary_average_precision

    found = torch.full((targets.shape[1],), torch.nan, dtype=torch.float64)
    for number in (targets.sum(dim=0) > 0).nonzero().flatten().tolist():
        found[number] = binary_average_precision(probabilities[:, number], targets[:, number])
    return found


def _per_class(
    classes: Sequence[str], count: Tensor, scores: Mapping[str, Tensor]
) -> dict[str, dict[str, float | None]]:
    """The scores (K,) of each class by name, and its ``count`` of images; without images it has no scores."""
    return {
        name: {
            "count": int(count[number]),
            **{key: _number(value[number]) if count[number] else None for key, value in scores.items()},
        }
        for number, name in enumerate(classes)
    }


def _ratio(part: Tensor, total: Tensor) -> Tensor:
    """part / total; 0 where the total is 0: a class that is never predicted has precision 0."""
    return torch.where(total > 0, part / total.clamp(min=1), 0.0).double()


def _mean(values: Tensor) -> float | None:
    return float(values.double().mean()) if len(values) else None


def _number(value: Tensor) -> float | None:
    return None if value.isnan() else float(value)
