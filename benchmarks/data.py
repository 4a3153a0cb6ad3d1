"""The images of a suite, parted by use: to pretrain on; and for each task to learn from, to choose by and to judge by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..core.cache import cache_file, load, save
from ..core.data.audit import audit
from ..core.data.classification import LabeledImages, LabelKeys, keys_below
from ..core.data.classification_reader import single_label_parts
from ..core.data.decode import Picture, picture_of
from ..core.data.groups import groups_of, match_group
from ..core.data.images import ImageSet
from ..core.data.labeled_dataset import Splits
from ..core.data.missing_splits import audited_splits
from ..core.data.near_duplicates import Copy, Thumbnails, find_copies, find_whole_copies
from ..core.data.sources import find_sources
from ..core.errors import DataError
from ..core.progress import progress_logger
from ..core.seeding import stream
from ..core.terminal import quoted
from .suite import BenchConfig, SuiteData
from .task_design import CLASSIFY

MOST_PAIRS = 2 * 10**7
"""Pairs of images that are compared unasked for crops too: 2,000 with 10,000 take 40 seconds on two cores, more with fewer others
longer."""
MOST_WHOLES = 2 * 10**9
"""Pairs that are compared unasked at all."""
SHOWN = 12
"""Pairs of each part that are shown."""
SHOWN_SIDE = 96
COPIES_FORMAT = "2"
"""Raised when others would be found."""

POOL_SHARE = 0.8
"""Of the training images with labels, where ``data.pool`` is not given."""


@dataclass(frozen=True)
class TaskImages:
    """A task's images: ``splits.train`` is what labelled examples are drawn from. ``digests`` hash each split, in order."""

    splits: Splits[Any]
    digests: Mapping[str, str]

    @property
    def counts(self) -> dict[str, int]:
        """Images by use."""
        train, val, test = (len(part) for _, part in self.splits.items())
        return {"labelled source": train, "validation": val, "test": test}


@dataclass(frozen=True)
class Pair:
    """An image that was left out of ``part``, and the one to validate or test with that it is nearly the same as."""

    part: str
    name: str
    other: str
    likeness: float
    pictures: tuple[Picture, Picture]


@dataclass(frozen=True)
class Pools:
    """The images of a suite; none that is validated or tested with on any task is pretrained on, by content.

    ``labelled_pool`` has the pool's labels, for a supervised arm; None where it has none. ``findings`` says in words what the
    overlap check found and did, ``pairs`` shows what was nearly the same.
    """

    pool: ImageSet
    pool_digest: str
    labelled_pool: LabeledImages | None
    tasks: Mapping[str, TaskImages]
    gray: bool
    findings: tuple[str, ...]
    pairs: tuple[Pair, ...] = ()

    @cached_property
    def classify(self) -> Splits[LabeledImages]:
        """The suite's own images with a class each."""
        return self.tasks[CLASSIFY].splits


@dataclass(frozen=True)
class _Part:
    """Some of a set's images by number, with the hash of each image of the set."""

    images: Any
    hashes: Sequence[str]
    indices: Sequence[int]

    def without(self, held_back: set[str]) -> _Part:
        """Those whose content isn't held back."""
        kept = [index for index in self.indices if self.hashes[index] not in held_back]
        return _Part(self.images, self.hashes, kept)

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
    def pictures(self) -> str:
        """A hash of contents alone, in order."""
        return hashlib.sha256("".join(self.hashes[index] for index in self.indices).encode()).hexdigest()

    @cached_property
    def thumbnails(self) -> Thumbnails:
        """Small copies of these images."""
        return Thumbnails.of(self.taken().images)

    def taken(self) -> Any:
        """These images."""
        return self.images.subset(list(self.indices))


def read_pools(config: BenchConfig) -> Pools:
    """Read, look through and part the images; one that is in validation or test too, or nearly, is dropped elsewhere."""
    data, guard = config.data, _LeakageGuard(config.data.near)
    tasks = {name: _task(config, name, guard) for name in config.designs if name != CLASSIFY}
    labelled_pool: LabeledImages | None = None
    if data.path is None:
        pool = _unlabelled(data, guard)
        return guard.pools(pool, None, tasks)
    _need_folder(data.path)
    with keys_below("data."):
        parts = single_label_parts(data.path, LabelKeys(None, data.layout, data.label_column, data.group))
        splits, manifest = audited_splits(
            parts, data.path, data.val, data.test, data.seed, data.broken, group=data.group
        )
    guard.tell_broken("", len(manifest.rejected))
    train, val, test = (_Part(part, manifest.splits[name].hashes, range(len(part))) for name, part in splits.items())
    val = guard.hold_back(CLASSIFY, val, test, data.group)
    if data.unlabelled is None:
        chosen, train = _parted(train, data)
        own = guard.apart(chosen, "pool", list(guard.held))
        labelled_pool = own.taken()
        pool = _Pool(labelled_pool.images, own.digest, manifest.gray)
        train = guard.without(train, own.contents, "labelled source", "the pool")
    else:
        pool = _unlabelled(data, guard)
    train = guard.apart(train, "labelled source", [CLASSIFY])
    images = _images({"train": train, "val": val, "test": test}, f"data.path={data.path}")
    return guard.pools(pool, labelled_pool, {CLASSIFY: images, **tasks})


class _LeakageGuard:
    """Keeps apart what is trained on from what is judged by; remembers what it found, in words and in pairs."""

    def __init__(self, near: str) -> None:
        self._near = near
        self._findings: list[str] = []
        self._pairs: list[Pair] = []
        self.held: dict[str, tuple[_Part, ...]] = {}
        """what each task is validated and tested with"""
        self._groups: list[tuple[str, set[str]]] = []

    def pools(self, pool: _Pool, labelled: LabeledImages | None, tasks: Mapping[str, TaskImages]) -> Pools:
        """All of the images, once they are apart."""
        facts = tuple(self._findings), tuple(self._pairs)
        return Pools(pool.images, pool.digest, labelled, tasks, pool.gray, *facts)

    def tell_broken(self, task: str, count: int) -> None:
        """Remember that broken images were left out."""
        if count:
            self._findings.append(f"{task}Broken images that were left out: {count}.")

    def hold_back(self, task: str, val: _Part, test: _Part, group: str | None) -> _Part:
        """Take in what a task is evaluated on, and its groups; what is left of its validation."""
        if group is not None:
            self._groups.append((group, {*groups_of(val.taken(), group), *groups_of(test.taken(), group)}))
        name = "validation" if task == CLASSIFY else f"{task}'s validation"
        val = self.without(val, test.contents, name, "test")
        self.held[task] = (val, test)
        return val

    def without(self, part: _Part, contents: set[str], name: str, others: str) -> _Part:
        """A part without what has these contents."""
        left = part.without(contents)
        self._findings.append(_finding(name, len(part.indices) - len(left.indices), others))
        return left

    def without_groups(self, part: _Part, name: str) -> _Part:
        """A part without images whose path says that they are of a group that is in validation or test."""
        for group, held in self._groups:
            names = [part.images.images.name(index) for index in part.indices]
            found = [match_group(one, group) for one in names]
            kept = [index for index, own in zip(part.indices, found, strict=True) if own not in held]
            left_out, unknown = len(found) - len(kept), found.count(None)
            self._findings.append(
                f"Images of the {name} that are of a group in validation or test (group {group}), and were left out: "
                f"{left_out}; of {unknown} of {len(found)} the path doesn't say the group."
            )
            part = _Part(part.images, part.hashes, kept)
        return part

    def apart(self, part: _Part, name: str, tasks: Sequence[str]) -> _Part:
        """A part without what these tasks are judged by, and without what is nearly that."""
        held = [one for task in tasks for one in self.held[task]]
        left = self.without(part, set().union(*(one.contents for one in held)), name, "validation or test")
        copies = self._copies(left, name, held)
        numbers = {copy.number for copy, _, _ in copies}
        for copy, other, index in copies[:SHOWN]:
            mine = left.indices[copy.number]
            names = left.images.images.name(mine), other.images.images.name(index)
            pictures = small_picture(left.images.images, mine), small_picture(other.images.images, index)
            self._pairs.append(Pair(name, *names, copy.likeness, pictures))
        return _Part(
            left.images, left.hashes, [one for number, one in enumerate(left.indices) if number not in numbers]
        )

    def _copies(self, part: _Part, name: str, held: Sequence[_Part]) -> list[tuple[Copy, _Part, int]]:
        """Images of a part that are copies of those held back: the copy, and what it is a copy of."""
        rows = [(one, index) for one in held for index in one.indices]
        pairs = len(part.indices) * len(rows)
        wholes = self._near == "auto" and pairs > MOST_PAIRS
        if self._near == "off" or (wholes and pairs > MOST_WHOLES):
            why = "" if self._near == "off" else f": {len(part.indices):,} × {len(rows):,} pairs; data.near=full looks"
            self._findings.append(f"Near-duplicates of validation or test in the {name} were not looked for{why}.")
            return []
        copies = _compared(part, held, name, wholes)
        count, kinds = len(copies), "saved anew, resized, mirrored" + ("" if wholes else ", cropped")
        crops = (
            f" For cropped ones data.near=full looks: {len(part.indices):,} × {len(rows):,} pairs." if wholes else ""
        )
        self._findings.append(
            f"Images of the {name} that are nearly one of validation or test ({kinds}), and were left out: {count}.{crops}"
            if count
            else f"No image of the {name} is nearly one of validation or test ({kinds}).{crops}"
        )
        return [(copy, *rows[copy.original]) for copy in sorted(copies, key=lambda copy: -copy.likeness)]


def _compared(part: _Part, held: Sequence[_Part], name: str, wholes: bool) -> list[Copy]:
    """Images of a part, by their place in it, that are copies of those held back, all in a row; kept for the next time.

    ``wholes``: cropped ones are not looked for.
    """
    place = cache_file("copies", "wholes" if wholes else "all", part.pictures, *(one.pictures for one in held))
    before = load(place)
    if before is not None and before[1].get("format") == COPIES_FORMAT:
        columns = [before[0][column].tolist() for column in ("number", "original", "likeness")]
        return [Copy(*row) for row in zip(*columns, strict=True)]
    ones, others = Thumbnails.of(part.taken().images), Thumbnails.row([one.thumbnails for one in held])
    find = find_whole_copies if wholes else find_copies
    copies = find(ones, others, progress_logger(f"comparing the {name} with validation and test"))
    arrays = {
        "number": np.array([copy.number for copy in copies], dtype=np.int64),
        "original": np.array([copy.original for copy in copies], dtype=np.int64),
        "likeness": np.array([copy.likeness for copy in copies], dtype=np.float64),
    }
    save(place, arrays, {"format": COPIES_FORMAT})
    return copies


def _need_folder(path: str) -> None:
    if not Path(path).exists():
        raise DataError(
            f"data.path={path}: no such folder or CSV. Give data.path=...; that of the quickstart is brought by "
            f"maelift data fashion-mnist out={quoted(path)}."
        )


def count_of(wanted: int | float, whole: int) -> int:
    """How many of ``whole`` a count or a share is."""
    return wanted if isinstance(wanted, int) else int(wanted * whole)


def _parted(train: _Part, data: SuiteData) -> tuple[_Part, _Part]:
    """The training images that are pretrained on, and those that labelled examples are drawn from."""
    order = stream(data.seed, "pool").permutation(len(train.indices))
    wanted = POOL_SHARE if data.pool is None else data.pool
    count = count_of(wanted, len(order))
    if not 0 < count < len(order):
        raise DataError(
            f"data.pool={wanted}: {data.path} has {len(order)} training images besides validation and test; expected "
            "a count below that, so that some are left to draw labelled examples from."
        )
    if data.group is not None:
        order, count = _whole_groups(train, order, count, data.group)
    pool, rest = (sorted(int(index) for index in part) for part in (order[:count], order[count:]))
    return _Part(train.images, train.hashes, pool), _Part(train.images, train.hashes, rest)


def _whole_groups(train: _Part, order: NDArray[np.int64], count: int, group: str) -> tuple[NDArray[np.int64], int]:
    """The order with all of a group where its first image is, and the count nearest to ``count`` that cuts no group."""
    groups = groups_of(train.taken(), group)
    first: dict[str, int] = {}
    for place, index in enumerate(order.tolist()):
        first.setdefault(groups[index], place)
    together = np.array(sorted(order.tolist(), key=lambda index: first[groups[index]]), dtype=np.int64)
    ends = [n for n in range(1, len(together)) if groups[together[n]] != groups[together[n - 1]]]
    if not ends:
        raise DataError(f"data.group={group}: all training images are of one group, of which no pool can be parted.")
    return together, min(ends, key=lambda end: abs(end - count))


@dataclass(frozen=True)
class _Pool:
    """What is pretrained on; ``digest`` hashes names and contents, and labels where there are some."""

    images: ImageSet
    digest: str
    gray: bool


@dataclass(frozen=True)
class _UnlabeledView:
    """Images without labels, in the form of those with."""

    images: ImageSet
    classes: tuple[str, ...] = ()

    def label_text(self, index: int) -> str:
        """None."""
        return ""

    def subset(self, indices: Sequence[int]) -> _UnlabeledView:
        """Some of them."""
        return _UnlabeledView(self.images.subset(indices))


def _unlabelled(data: SuiteData, guard: _LeakageGuard) -> _Pool:
    """The images to pretrain on that have no labels."""
    images = find_sources(cast("str | tuple[str, ...]", data.unlabelled))
    _, manifest = audit(images, data.broken, progress_logger("looking through the pool"))
    guard.tell_broken("pool: ", len(manifest.rejected))
    if manifest.rejected:
        images = images.subset(manifest.kept)
    part = _Part(_UnlabeledView(images), manifest.hashes, range(len(images)))
    part = guard.without_groups(guard.apart(part, "pool", list(guard.held)), "pool")
    if data.pool is not None:
        count = count_of(data.pool, len(part.indices))
        if not 0 < count <= len(part.indices):
            raise DataError(
                f"data.pool={data.pool}: data.unlabelled has {len(part.indices)} images that may be pretrained on."
            )
        order = stream(data.seed, "pool").permutation(len(part.indices))[:count]
        part = _Part(part.images, part.hashes, sorted(part.indices[int(number)] for number in order))
    if not part.indices:
        raise DataError("data.unlabelled: no image is left, as all are in validation or test too.")
    return _Pool(part.taken().images, part.digest, all(manifest.gray))


def _task(config: BenchConfig, name: str, guard: _LeakageGuard) -> TaskImages:
    """The images of a task with data of its own."""
    own = config.task(name)
    if not Path(own.data).exists():
        raise DataError(
            f"tasks.{name}.data={own.data}: no such folder or file. That of the quickstart is brought by "
            f"maelift data fashion-scenes out={quoted(own.data)} pool=0."
        )
    recipe = config.transfer(name)
    with keys_below(f"tasks.{name}.recipe."):
        splits, manifest = recipe.chosen_task().read_audited(replace(recipe, max_rejected=config.data.broken))
    guard.tell_broken(f"{name}: ", len(manifest.rejected))
    train, val, test = (_Part(part, manifest.splits[split].hashes, range(len(part))) for split, part in splits.items())
    val = guard.hold_back(name, val, test, recipe.group)
    train = guard.apart(train, f"{name}'s labelled source", [name])
    parts = {"train": train, "val": val, "test": test}
    return _images(parts, f"tasks.{name}.data={own.data}")


def small_picture(images: ImageSet, index: int) -> Picture:
    """A small copy of an image: (H, W) gray or (H, W, 3), uint8."""
    image = images.open(index)
    values = picture_of(image) if isinstance(image, Image.Image) else image
    values = values[:, :, :3] if values.shape[2] >= 3 else values[:, :, 0]
    picture = Image.fromarray(np.ascontiguousarray(values.astype(np.float32).clip(0, 255).astype(np.uint8)))
    picture.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    return np.asarray(picture)


def _images(parts: Mapping[str, _Part], where: str) -> TaskImages:
    for split, part in parts.items():
        if not part.indices:
            raise DataError(f"{where}: no image is left for {split}, as all of it is elsewhere too.")
    splits = Splits(parts["train"].taken(), parts["val"].taken(), parts["test"].taken())
    return TaskImages(splits, {split: part.digest for split, part in parts.items()})


def _finding(part: str, dropped: int, others: str) -> str:
    if dropped == 0:
        return f"No image of the {part} is in {others} too, by content."
    return f"Images of the {part} that are in {others} too, by content, and were left out of the {part}: {dropped}."
