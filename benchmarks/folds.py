"""Cross-validation within the labelled images that a seed draws: which of them each fold leaves out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..core.data.classification import LabeledImages
from ..core.data.groups import groups_of
from ..core.data.splits import cluster, stratified_folds
from ..core.errors import DataError

CROSS_FOLDS = 5
"""Folds of the labelled images of a seed; fewer where there are fewer images, or groups."""


@dataclass(frozen=True)
class Folds:
    """The fold of each labelled image of a seed: ``numbers`` (N,) from 0 without a gap, -1 for what every fold trains on."""

    numbers: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many folds there are."""
        return max(self.numbers) + 1

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many images each fold leaves out."""
        return tuple(self.numbers.count(fold) for fold in range(self.count))

    @property
    def scored(self) -> int:
        """How many images are left out once: those that scores are shares of."""
        return sum(self.sizes)

    @property
    def digest(self) -> str:
        """A hash of the folds, in the order of the images."""
        return hashlib.sha256(json.dumps(self.numbers).encode()).hexdigest()

    def split(self, images: LabeledImages, fold: int) -> tuple[LabeledImages, LabeledImages]:
        """The images that a fold trains on, and those that it leaves out; ``images`` in the order of ``numbers``."""
        train, left_out = (
            [index for index, number in enumerate(self.numbers) if (number == fold) == out] for out in (False, True)
        )
        return images.subset(train), images.subset(left_out)

    def mean(self, scores: Sequence[float]) -> float:
        """The mean of the folds' scores, each by the images that it leaves out: every image counts alike."""
        return sum(size * score for size, score in zip(self.sizes, scores, strict=True)) / self.scored


def cross_folds(images: LabeledImages, seed: int, contents: Sequence[str], group: str | None) -> Folds:
    """The folds of a seed's labelled images, stratified by class; of every class some images are in training in each.

    Images with equal ``contents`` (N,), and those of one ``group`` (``groups_of``), are in one fold. A class whose images all
    belong together is always in training. Raises DataError where fewer than two folds can be made.
    """
    clusters = cluster(len(images), [contents, *([] if group is None else [groups_of(images, group)])])
    folds = stratified_folds(images.strata, min(CROSS_FOLDS, int(clusters.max()) + 1), seed, clusters)
    _keep_classes_in_training(folds, images.targets(), clusters)
    used = np.unique(folds[folds >= 0])
    if len(used) < 2:
        raise DataError(
            f"labels={len(images)}: the images of seed {seed} can't be cross-validated (data.val=cross), as nearly every class "
            "has all of its images in one image or group. Expected more labels, or data.val as a count."
        )
    return Folds(tuple(np.where(folds >= 0, np.searchsorted(used, folds), -1).tolist()))


def _keep_classes_in_training(
    folds: NDArray[np.int64], targets: NDArray[np.int64], clusters: NDArray[np.int64]
) -> None:
    """Take from ``folds`` (N,) the smallest cluster of each class that is in one fold only: groups of several classes may be."""
    for label in np.unique(targets):
        mine = targets == label
        if len(set(folds[mine].tolist())) == 1 and folds[mine][0] >= 0:
            members, sizes = np.unique(clusters[mine], return_counts=True)
            folds[clusters == members[sizes.argmin()]] = -1
