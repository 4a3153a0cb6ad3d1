"""Segmentation scores: intersection over union, accuracies and Dice, from pixel counts summed over images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.errors import DataError
from ..metrics import Scores

CHUNK = 2**22
"""Pixels that are counted at once, so that an image of any size takes little extra memory."""

Counts = NDArray[np.int64]


class PixelCounts:
    """A confusion matrix of pixels, ``matrix[i, j]``: those of class i that were taken for class j.

    Pixels whose truth is ``ignore_index`` do not count. Memory does not grow with the images.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.matrix: Counts = np.zeros((num_classes, num_classes), dtype=np.int64)
        self.images = 0

    def add(self, predicted: NDArray[np.integer[Any]], truth: NDArray[np.integer[Any]], name: str = "a mask") -> None:
        """Count an image: two masks (H, W) of class numbers; raises DataError for other sizes or numbers."""
        if predicted.shape != truth.shape:
            raise DataError(f"{name}: a prediction of {predicted.shape} for a mask of {truth.shape} pixels.")
        found, due = predicted.reshape(-1), truth.reshape(-1)
        for start in range(0, due.size, CHUNK):
            chunk = due[start : start + CHUNK]
            counted = chunk != self.ignore_index
            rows = chunk[counted].astype(np.int64)
            columns = found[start : start + CHUNK][counted].astype(np.int64)
            for values, what in ((rows, "a mask"), (columns, "a prediction")):
                if values.size and not 0 <= values.min() <= values.max() < self.num_classes:
                    wrong = int(values.min()) if values.min() < 0 else int(values.max())
                    raise DataError(
                        f"{name}: {what} with the value {wrong}: expected class numbers from 0 to {self.num_classes - 1}"
                        f", or {self.ignore_index} for pixels that do not count."
                    )
            pairs = np.bincount(rows * self.num_classes + columns, minlength=self.num_classes**2)
            self.matrix += pairs.reshape(self.matrix.shape)
        self.images += 1

    def merge(self, other: PixelCounts) -> None:
        """Take in the counts of other images."""
        self.matrix += other.matrix
        self.images += other.images

    @property
    def hits(self) -> Counts:
        """Each class's intersection (classes,)."""
        return np.array(self.matrix.diagonal())

    @property
    def unions(self) -> Counts:
        """Each class's union (classes,)."""
        return np.asarray(self.matrix.sum(axis=0) + self.matrix.sum(axis=1) - self.hits)

    def influences(self, images: Sequence[tuple[Counts, Counts]]) -> NDArray[np.float64] | None:
        """The contribution of each image of these counts to mIoU (N,); their mean is mIoU. None without a figure.

        ``images`` are the intersections and unions of each. An image that were there once more would move each class's I/U
        by (i - (I/U) u) / U, where i and u are its own intersection and union: the linear part of what a new draw of images
        would change (Efron, "The Jackknife, the Bootstrap and Other Resampling Plans", 1982, ch. 6).
        """
        known = self.unions > 0
        if not known.any():
            return None
        unions_known = self.unions[known]
        shares = self.hits[known] / unions_known
        hits, unions = (np.array(areas)[:, known] for areas in zip(*images, strict=True))
        moves = ((hits - shares * unions) / unions_known).mean(axis=1)
        return np.asarray(shares.mean() + len(images) * moves, dtype=np.float64)

    def iou(self) -> list[float | None]:
        """Intersection over union of each class; None for one that is neither there nor predicted."""
        return self._shares(lambda hit, due, found: hit, lambda hit, due, found: due + found - hit)

    def accuracy(self) -> list[float | None]:
        """The share of each class's pixels that were found (recall); None for a class that has none."""
        return self._shares(lambda hit, due, found: hit, lambda hit, due, found: due)

    def dice(self) -> list[float | None]:
        """Twice the intersection over the sum of areas (the F-score of pixels); None as in ``iou``."""
        return self._shares(lambda hit, due, found: 2 * hit, lambda hit, due, found: due + found)

    def pixel_accuracy(self) -> float | None:
        """The share of all pixels that are right; None when none counts."""
        total = int(self.matrix.sum())
        return int(self.matrix.trace()) / total if total else None

    def metrics(self) -> dict[str, float | None]:
        """Means over the classes that have a figure, under mmseg's names: mIoU, aAcc (of all pixels), mAcc, mDice."""
        return {
            "mIoU": mean(self.iou()),
            "aAcc": self.pixel_accuracy(),
            "mAcc": mean(self.accuracy()),
            "mDice": mean(self.dice()),
        }

    def scores(self, split: str, classes: tuple[str, ...]) -> Scores:
        """All figures, with each class's and the number of its pixels."""
        pixels = [int(count) for count in self.matrix.sum(axis=1)]
        columns: dict[str, Sequence[float | None]] = {
            "IoU": self.iou(),
            "Acc": self.accuracy(),
            "Dice": self.dice(),
            "pixels": pixels,
        }
        per_class = {
            name: {metric: values[number] for metric, values in columns.items()} for number, name in enumerate(classes)
        }
        return Scores(split=split, count=self.images, metrics=self.metrics(), per_class=per_class)

    def _shares(
        self, part: Callable[[Counts, Counts, Counts], Counts], total: Callable[[Counts, Counts, Counts], Counts]
    ) -> list[float | None]:
        areas = self.matrix.diagonal(), self.matrix.sum(axis=1), self.matrix.sum(axis=0)
        return [
            int(share) / int(all_) if all_ else None for share, all_ in zip(part(*areas), total(*areas), strict=True)
        ]


def mean(values: list[float | None]) -> float | None:
    """The mean of the values that are there; None when none is."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None
