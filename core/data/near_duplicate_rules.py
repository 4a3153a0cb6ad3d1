"""Which of the pairs of images that were compared are near-duplicates, by how similar each is and the next ones are.

A pair is one where it is much closer than the next image that was compared (the ratio test of Lowe, "Distinctive image
features from scale-invariant keypoints", 2004), and from a high similarity on where it is clearly closer. Images that are less
similar change nothing. Frames of one fixed camera are all about as close to each other, and differ in a few places, where
something moved: they are none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

SURE_SIMILARITY = 0.988
"""From this similarity on ``SURE_RATIO`` is enough, and others that are so similar to one of the pair are copies of it."""
SURE_RATIO = 0.5
"""A near-duplicate that is so similar is so much closer (1 - similarity) than the next image."""
RATIO = 0.32
"""Below it, a near-duplicate is so much closer (1 - similarity) than the next image."""
RATIO_IN_PARTS = 0.2
"""The same for the similarity without what a watermark may cover."""
RIVAL = 0.85
"""The next image counts as this similar where it is less, as a few images always have a distant next one."""
RIVAL_UNCROPPED = 0.88
"""The same where no crops were compared, so that fewer next images are seen."""
LEAST_SIMILARITY, LEAST_IN_PARTS = 1 - RATIO * (1 - RIVAL), 1 - RATIO_IN_PARTS * (1 - RIVAL)
"""Nothing is a near-duplicate below these similarities, whatever the next image is."""
SAME = 0.5
"""An image that is so much closer to the other one than the pair is (1 - similarity) is another copy of it, no rival."""
LOCAL = 4.0
"""A pair differs in a few places, such as by a watermark, where it is so much closer without the cells that differ most."""
LEAST_DIFFERENCE = 2e-4
"""Pairs that are closer than this (1 - similarity) don't differ."""
SERIES = 2
"""Images, besides the pair, that make it a series: each differs from both in a few places, and is not much farther away."""
SERIES_RATIO = 0.1
"""One of a series that is so much closer (1 - similarity) than the others is a copy."""


class Scores(NamedTuple):
    """The similarity of a pair, and that without the cells that differ most (0 where little would be left)."""

    full: float
    in_parts: float

    @property
    def local(self) -> bool:
        """Whether the pair differs in a few places only."""
        return 1 - self.full >= max(LEAST_DIFFERENCE, LOCAL * (1 - self.in_parts))

    def best(self, other: Scores) -> Scores:
        """The higher of each."""
        return Scores(max(self.full, other.full), max(self.in_parts, other.in_parts))


Row = Mapping[int, Scores]
"""The images that one was compared with."""
AmongOthers = Callable[[set[tuple[int, int]]], Mapping[tuple[int, int], Scores]]
"""Compares pairs of these with one another."""


@dataclass(frozen=True)
class NearDuplicate:
    """Image ``index`` of the one set is a near-duplicate of ``original`` of the other, with this similarity of slopes."""

    index: int
    original: int
    similarity: float


def hopeful(scores: Scores) -> bool:
    """Whether a pair is similar enough to be a near-duplicate, whatever the next images are."""
    return scores.full >= LEAST_SIMILARITY or (scores.in_parts >= LEAST_IN_PARTS and scores.local)


def near_duplicates(rows: Mapping[int, Row], among_others: AmongOthers, *, crops: bool) -> Iterator[NearDuplicate]:
    """Of each image (a row) the most similar pair that is a near-duplicate, in the images' order; ``crops`` were compared too."""
    least_rival = RIVAL if crops else RIVAL_UNCROPPED
    rows = {image: row for image, row in sorted(rows.items()) if any(hopeful(scores) for scores in row.values())}
    chosen = {image: tuple(dict.fromkeys(_closest(row))) for image, row in rows.items()}
    others = among_others(
        {(one, other) for image, found in chosen.items() for one in found for other in rows[image] if other != one}
    )
    for image, row in rows.items():
        for one in chosen[image]:
            to_others = {other: others[one, other] for other in row if other != one}
            if _is_near_duplicate(row, one, to_others, least_rival):
                yield NearDuplicate(image, one, row[one].full)
                break


def _closest(row: Row) -> Iterable[int]:
    """The closest image, and the closest of those that differ in a few places."""
    yield max(row, key=lambda one: row[one])
    yield from sorted((one for one in row if row[one].local), key=lambda one: -row[one].in_parts)[:1]


def _is_near_duplicate(row: Row, one: int, to_others: Row, least_rival: float) -> bool:
    scores = row[one]
    if scores.local and _series(row, one, to_others):
        return False
    copies = max(SAME * (1 - scores.full), 1 - SURE_SIMILARITY)
    rivals = [row[other] for other in to_others if 1 - to_others[other].full > copies]
    ratio = SURE_RATIO if scores.full >= SURE_SIMILARITY else RATIO
    if 1 - scores.full <= ratio * (1 - max([least_rival, *(rival.full for rival in rivals)])):
        return True
    next_one = max([RIVAL, *(rival.in_parts for rival in rivals)])
    return scores.local and 1 - scores.in_parts <= RATIO_IN_PARTS * (1 - next_one)


def _series(row: Row, one: int, to_others: Row) -> bool:
    """Whether others that are not much farther from the image than ``one`` is differ from both in a few places."""
    far = (1 - row[one].full) / SERIES_RATIO
    found = [other for other, scores in to_others.items() if scores.local and row[other].local]
    return sum(1 - row[other].full < far for other in found) >= SERIES
