"""Test images on which an arm does better than the baseline, and worse: the extremes."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..core.data.composite import Shown
from ..core.data.detection import DetectionImages
from ..core.data.labeled_dataset import LabeledDataset
from ..core.data.pixel_format import PLAIN_FORMAT, Picture, PixelFormat
from ..core.data.segmentation import SegmentationImages
from ..core.report.html import MINUS, data_url
from ..transfer.tasks import ReportedScores
from .leakage import small_picture
from .results import Arm, Example, TaskResult

SHOWN = 6
"""Images won and lost each, an arm."""


def won_and_lost(
    part: TaskResult,
    images: LabeledDataset,
    arms: Sequence[Arm],
    baseline: str,
    form: PixelFormat = PLAIN_FORMAT,
    shown: Shown = None,
) -> Iterator[Example]:
    """Where each arm differs most from the ``baseline`` at the fewest labels, where differences are largest.

    ``images`` are those of the test split, read in a ``form``, of which the channels ``shown`` are drawn; nothing comes of a
    part whose items aren't single images. Ties go by their order.
    """
    labels = min(part.label_counts)
    for arm in arms:
        seeds = sorted(part.by_seed(arm.name, labels).keys() & part.by_seed(baseline, labels).keys())
        if arm.name == baseline or not seeds:
            continue
        ours, theirs = (_sums(part, name, labels, seeds) for name in (arm.name, baseline))
        if not len(ours) == len(theirs) == len(images):
            continue
        gained = ours - theirs
        for won, order in ((True, np.argsort(-gained, kind="stable")), (False, np.argsort(gained, kind="stable"))):
            for index in order[:SHOWN].tolist():
                if gained[index] != 0 and (gained[index] > 0) == won:
                    yield Example(
                        part.name,
                        arm.name,
                        labels,
                        won,
                        images.images.name(index),
                        _shown(images, index),
                        _outcome(part.scores, ours, theirs, index, len(seeds)),
                        to_data_url(small_picture(images.images, index, form, shown)),
                        baseline,
                    )


def _sums(part: TaskResult, arm: str, labels: int, seeds: Sequence[int]) -> NDArray[np.float64]:
    """What each test item brings to the score, summed over the seeds; empty where that isn't known."""
    rows = [part.by_seed(arm, labels)[seed].item_scores() for seed in seeds]
    if len({len(row) for row in rows}) != 1:
        return np.zeros(0)
    total: NDArray[np.float64] = np.sum(rows, axis=0)
    return np.rint(total) if part.scores.is_accuracy else total


def _outcome(
    scores: ReportedScores, ours: NDArray[np.float64], theirs: NDArray[np.float64], index: int, seeds: int
) -> str:
    """How an arm and the baseline did on an image: of accuracy how often they were right, else its part in the difference."""
    if scores.is_accuracy:
        return f"right in {ours[index]:.0f} against {theirs[index]:.0f} of {seeds} seeds"
    parts = 100 * (ours - theirs) / (seeds * len(ours))
    mine, all_ = (f"{value:+.2g}".replace("-", MINUS) for value in (parts[index], parts.sum()))
    return f"brings {mine} of the {all_} points of {scores.label} (mean of {seeds} seeds)"


def _shown(images: LabeledDataset, index: int) -> str:
    """What an image shows: its label, or the classes that were annotated on it."""
    if isinstance(images, (SegmentationImages, DetectionImages)):
        return ", ".join(images.classes[number] for number in images.present[index]) or "nothing"
    return images.label_text(index)


def to_data_url(picture: Picture) -> str:
    """A small picture (H, W) or (H, W, 3), uint8, as an address that holds it."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return data_url(buffer.getvalue(), "png")
