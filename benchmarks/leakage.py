"""No image that a suite is evaluated on is trained on: equal, near-duplicate and grouped images are left out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.cache import cache_file, load, save
from ..core.data.composite import Display, Shown
from ..core.data.groups import groups_of, possible_groups
from ..core.data.images import ImageSet, opened
from ..core.data.near_duplicate_depth import KINDS, Near, search_depth
from ..core.data.near_duplicate_rules import NearDuplicate
from ..core.data.near_duplicates import compare, compare_uncropped
from ..core.data.pixel_format import Picture, PixelFormat
from ..core.data.thumbnails import Thumbnails
from ..core.models.preprocessing import band_names
from ..core.progress import progress_logger
from ..transfer.tasks import CLASSIFY

SHOWN = 12
"""Pairs of each part that are shown."""
SHOWN_SIDE = 96
CACHE_FORMAT = "5"
"""Raised when other near-duplicates would be found."""


@dataclass(frozen=True)
class NearDuplicatePair:
    """An image that was left out of ``part``, and the one to validate or test with that it is a near-duplicate of."""

    part: str
    name: str
    other: str
    similarity: float
    pictures: tuple[Picture, Picture]


@dataclass(frozen=True)
class Subset:
    """Some images of a set by number, with the content hash of each image of the set."""

    images: Any
    hashes: Sequence[str]
    indices: Sequence[int]

    def without(self, contents: set[str]) -> Subset:
        """The images of other contents than these."""
        kept = [index for index in self.indices if self.hashes[index] not in contents]
        return Subset(self.images, self.hashes, kept)

    @property
    def contents(self) -> set[str]:
        """The hashes of these images."""
        return {self.hashes[index] for index in self.indices}

    @property
    def digest(self) -> str:
        """A hash of names, contents and labels, in order."""
        classes = getattr(self.images, "classes", ())
        rows = [
            (self.images.images.name(index), self.hashes[index], self.images.label_text(index))
            for index in self.indices
        ]
        return hashlib.sha256(json.dumps([classes, rows]).encode()).hexdigest()

    @property
    def content_digest(self) -> str:
        """A hash of contents alone, in order."""
        return hashlib.sha256("".join(self.hashes[index] for index in self.indices).encode()).hexdigest()

    def selected(self) -> Any:
        """These images as a set of their own."""
        return self.images.subset(list(self.indices))


class LeakageGuard:
    """Keeps what is trained on apart from what is evaluated on; collects its findings as text and as pairs of images.

    ``near``: the suite's ``data.near``; ``form``: how images are read; ``shown``: which channels pictures show.
    ``evaluated``: what tasks are validated and tested with.
    """

    def __init__(self, near: Near, form: PixelFormat, shown: Shown = None) -> None:
        self.evaluated: dict[str, tuple[Subset, ...]] = {}
        self.findings: list[str] = []
        self.pairs: list[NearDuplicatePair] = []
        self._near, self._form, self._shown = near, form, shown
        self._groups: list[tuple[str, set[str]]] = []

    def check_shown(self, images: ImageSet) -> None:
        """Raise ConfigError where channels are to be shown that images don't have: now, not when the report is written."""
        if isinstance(self._shown, tuple):
            small_picture(images, 0, self._form, self._shown)

    def report_broken(self, task: str, count: int) -> None:
        """Note that broken images were left out."""
        if count:
            self.findings.append(f"{task}Broken images that were left out: {count}.")

    def add_evaluated(self, task: str, val: Subset, test: Subset, group: str | None) -> Subset:
        """Register what a task is evaluated on; returns validation, if any, without what is in test too, or nearly."""
        if group is not None:
            self._groups.append((group, {*groups_of(val.selected(), group), *groups_of(test.selected(), group)}))
        if not val.indices:
            self.evaluated[task] = (test,)
            return val
        name = "validation" if task == CLASSIFY else f"{task}'s validation"
        val = self._without_near(self.without(val, test.contents, name, "test"), name, [test], "test")
        self.evaluated[task] = (val, test)
        return val

    def without(self, part: Subset, contents: set[str], name: str, others: str) -> Subset:
        """A part without the images of these contents."""
        left = part.without(contents)
        dropped = len(part.indices) - len(left.indices)
        self.findings.append(
            f"Images of the {name} that are in {others} too, by content, and were left out of the {name}: {dropped}."
            if dropped
            else f"No image of the {name} is in {others} too, by content."
        )
        return left

    def without_groups(self, part: Subset, name: str) -> Subset:
        """A part without images of a group, as their path or place states it, that is in validation or test."""
        where = _split_names(list(self.evaluated.values()))
        for group, evaluated in self._groups:
            found = possible_groups(part.images.images, part.indices, group)
            kept = [index for index, own in zip(part.indices, found, strict=True) if own not in evaluated]
            left_out, unknown = len(found) - len(kept), found.count(None)
            self.findings.append(
                f"Images of the {name} that are of a group in {where} (group {group}), and were left out: "
                f"{left_out}; of {unknown} of {len(found)} it isn't known."
            )
            part = Subset(part.images, part.hashes, kept)
        return part

    def without_leaks(self, part: Subset, name: str, tasks: Sequence[str]) -> Subset:
        """A part without the images that these tasks are evaluated on, and without near-duplicates of them."""
        evaluated = [one for task in tasks for one in self.evaluated[task]]
        where = _split_names([self.evaluated[task] for task in tasks])
        left = self.without(part, set().union(*(one.contents for one in evaluated)), name, where)
        return self._without_near(left, name, evaluated, where)

    def _without_near(self, left: Subset, name: str, evaluated: Sequence[Subset], others: str) -> Subset:
        """A part without near-duplicates of evaluated images, of which the most similar pairs are kept to be shown."""
        found = self._near_duplicates(left, name, evaluated, others)
        dropped = {pair.index for pair, _, _ in found}
        for pair, other, index in found[:SHOWN]:
            mine = left.indices[pair.index]
            names = left.images.images.name(mine), other.images.images.name(index)
            pictures = (
                small_picture(left.images.images, mine, self._form, self._shown),
                small_picture(other.images.images, index, self._form, self._shown),
            )
            self.pairs.append(NearDuplicatePair(name, *names, pair.similarity, pictures))
        kept = [index for place, index in enumerate(left.indices) if place not in dropped]
        return Subset(left.images, left.hashes, kept)

    def _near_duplicates(
        self, part: Subset, name: str, evaluated: Sequence[Subset], others: str
    ) -> list[tuple[NearDuplicate, Subset, int]]:
        """The near-duplicates of evaluated images in a part, most similar first: the pair, and the image it is similar to."""
        rows = [(one, index) for one in evaluated for index in one.indices]
        pairs = f"{len(part.indices):,} × {len(rows):,} pairs"
        depth = search_depth(self._near, len(part.indices), len(rows))
        if depth == "none":
            why = "" if self._near == "off" else f": {pairs}; data.near=full compares all"
            self.findings.append(f"Near-duplicates of {others} in the {name} were not searched for{why}.")
            return []
        crops = depth == "crops"
        found = _compared(part, evaluated, f"comparing the {name} with {others}", self._form, crops=crops)
        kinds = KINDS + (", cropped" if crops else "")
        also = "" if crops else f" Crops were not searched for: {pairs}; data.near=full compares all."
        self.findings.append(
            f"Images of the {name} that are near-duplicates of {others} ({kinds}), and were left out: "
            f"{len(found)}.{also}"
            if found
            else f"No image of the {name} is a near-duplicate of {others} ({kinds}).{also}"
        )
        return [(pair, *rows[pair.original]) for pair in sorted(found, key=lambda pair: -pair.similarity)]


def _split_names(evaluated: Sequence[tuple[Subset, ...]]) -> str:
    """What tasks are evaluated on; of cross-validation there are no validation images."""
    return "validation or test" if any(len(splits) > 1 for splits in evaluated) else "test"


def _compared(
    part: Subset, evaluated: Sequence[Subset], what: str, form: PixelFormat, *, crops: bool
) -> list[NearDuplicate]:
    """The near-duplicates of evaluated images, numbered one subset after the other, in a part; cached for the next time."""
    digests = [one.content_digest for one in evaluated]
    file = cache_file("near_duplicates", "crops" if crops else "uncropped", part.content_digest, *digests)
    before = load(file)
    if before is not None and before[1].get("format") == CACHE_FORMAT:
        columns = [before[0][column].tolist() for column in ("index", "original", "similarity")]
        return [NearDuplicate(*row) for row in zip(*columns, strict=True)]
    others = Thumbnails.concat([Thumbnails.of(one.selected().images, form) for one in evaluated])
    search = compare if crops else compare_uncropped
    found = search(Thumbnails.of(part.selected().images, form), others, progress_logger(what)).near_duplicates()
    arrays = {
        "index": np.array([pair.index for pair in found], dtype=np.int64),
        "original": np.array([pair.original for pair in found], dtype=np.int64),
        "similarity": np.array([pair.similarity for pair in found], dtype=np.float64),
    }
    save(file, arrays, {"format": CACHE_FORMAT})
    return found


def small_picture(images: ImageSet, index: int, form: PixelFormat, shown: Shown = None) -> Picture:
    """A small copy of an image that is read in a form: (H, W) gray or (H, W, 3), uint8."""
    display, pixels = _display_and_pixels(images, index, form, shown)
    picture = display.image(pixels)
    picture.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    return np.asarray(display.with_tiles(picture, pixels))


def shown_text(images: ImageSet, form: PixelFormat, shown: Shown) -> str:
    """A sentence on the channels that small pictures show, by the first image; empty of gray and colour as they are."""
    display, pixels = _display_and_pixels(images, 0, form, shown)
    return display.caption(pixels.shape[2])


def _display_and_pixels(images: ImageSet, index: int, form: PixelFormat, shown: Shown) -> tuple[Display, Picture]:
    found = opened(images, index, form)
    return Display(found.channel_names if form.bands is None else band_names(form.bands), shown), found.pixels()
