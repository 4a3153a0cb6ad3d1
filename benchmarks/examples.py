"""Test images that an arm gets right more often than the baseline, and less often: the extremes, for a look."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..core.decoding import Picture
from ..core.labels import LabeledImages
from ..core.page import data_url
from .pools import small_picture
from .results import Arm, Example, Part

SHOWN = 6
"""Images won and lost each, an arm."""


def won_and_lost(part: Part, images: LabeledImages, arms: tuple[Arm, ...], baseline: str) -> Iterator[Example]:
    """Where each arm differs most from the baseline at the fewest labels, where differences are largest.

    ``part`` is a classification, whose items are its test ``images``. Ties go by the images' order.
    """
    labels = min(part.label_counts)
    for arm in arms:
        seeds = sorted(part.by_seed(arm.name, labels).keys() & part.by_seed(baseline, labels).keys())
        if arm.name == baseline or not seeds:
            continue
        ours, theirs = (_times_right(part, name, labels, seeds) for name in (arm.name, baseline))
        if not len(ours) == len(theirs) == len(images):
            continue
        gained = ours - theirs
        for won, order in ((True, np.argsort(-gained, kind="stable")), (False, np.argsort(gained, kind="stable"))):
            for index in order[:SHOWN].tolist():
                if gained[index] != 0 and (gained[index] > 0) == won:
                    yield Example(
                        arm.name,
                        labels,
                        won,
                        images.images.name(index),
                        images.label_text(index),
                        int(ours[index]),
                        int(theirs[index]),
                        len(seeds),
                        address(small_picture(images.images, index)),
                    )


def _times_right(part: Part, arm: str, labels: int, seeds: list[int]) -> NDArray[np.int64]:
    """In how many of the seeds each test image is right; empty where that isn't known."""
    rows = [part.by_seed(arm, labels)[seed].item_scores() for seed in seeds]
    if len({len(row) for row in rows}) != 1:
        return np.zeros(0, dtype=np.int64)
    return np.asarray(np.rint(np.sum(rows, axis=0)), dtype=np.int64)


def address(picture: Picture) -> str:
    """A small picture (H, W) or (H, W, 3), uint8, as an address that holds it."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return data_url(buffer.getvalue(), "png")
