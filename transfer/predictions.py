"""Predictions for an image: a class, objects, or a class for every pixel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Classification:
    """The classes of an image.

    ``label`` is the most probable class; ``probabilities``: each class's, in the order of the training data; ``labels``: of a
    multi-label model all classes of a probability of 0.5 or more, perhaps none; None of others.
    """

    label: str
    probabilities: Mapping[str, float]
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True, eq=False)
class Detections:
    """The objects found in an image, by descending score.

    ``boxes`` (n, 4) float32: x1, y1, x2, y2 in pixels of the image as it was given; ``scores`` (n,) float32, 0 to 1;
    ``labels`` (n,) int64, numbers into ``classes``; ``masks`` (n, H, W) bool, None from a model without masks.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    masks: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def above(self, score: float) -> Detections:
        """The objects with at least this score."""
        kept = self.scores >= score
        masks = None if self.masks is None else self.masks[kept]
        return Detections(self.boxes[kept], self.scores[kept], self.labels[kept], self.classes, masks)


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A class for every pixel: ``mask`` (H, W) of the image as it was given, unsigned or int64 numbers into ``classes``."""

    mask: NDArray[np.integer]
    classes: tuple[str, ...]
