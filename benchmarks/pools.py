"""The images of a suite, parted by use: to pretrain on; and for each task to learn from, to choose by and to judge by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from ..core.audit import audit
from ..core.config import DataError
from ..core.images import ImageSet
from ..core.labels import LabeledImages, Splits, audit_splits, read_splits
from ..core.randomness import stream
from ..core.sources import find_sources
from ..core.tracking import counting
from .suite import CLASSIFY, BenchConfig, SuiteData

POOL_SHARE = 0.8
"""Of the training images with labels, where ``data.pool`` is not given."""


@dataclass(frozen=True)
class TaskImages:
    """A task's images: ``splits.train`` is what labelled examples are drawn from. ``digests`` hash each split, in order."""

    splits: Splits[Any]
    digests: Mapping[str, str]
    gray: bool

    @property
    def counts(self) -> dict[str, int]:
        """Images by use."""
        train, val, test = (len(part) for _, part in self.splits.items())
        return {"labelled source": train, "validation": val, "test": test}


@dataclass(frozen=True)
class Pools:
    """The images of a suite; none that is validated or tested with on any task is pretrained on, by content.

    ``labelled_pool`` has the pool's labels, for a supervised arm; None where it has none. ``findings`` says in words what the
    overlap check found and did.
    """

    pool: ImageSet
    pool_digest: str
    labelled_pool: LabeledImages | None
    tasks: Mapping[str, TaskImages]
    gray: bool
    findings: tuple[str, ...]

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

    def taken(self) -> Any:
        """These images."""
        return self.images.subset(list(self.indices))


def read_pools(config: BenchConfig) -> Pools:
    """Read, look through and part the images; an image that is in validation or test too is dropped elsewhere."""
    data, findings = config.data, list[str]()
    tasks, held_back = dict[str, TaskImages](), set[str]()
    for name in config.designs:
        if name != CLASSIFY:
            tasks[name], contents = _task(config, name, findings)
            held_back |= contents
    if data.path is None:
        pool = _unlabelled(data, held_back, findings)
        return Pools(pool.images, pool.digest, None, tasks, pool.gray, tuple(findings))
    _need_folder(data.path)
    splits, manifest = audit_splits(read_splits(data.path, data.val, data.test, data.seed), data.broken)
    if manifest.rejected:
        findings.append(f"Broken images that were left out: {len(manifest.rejected)}.")
    train, val, test = (_Part(part, manifest.splits[name].hashes, range(len(part))) for name, part in splits.items())
    val = _told(val, val.without(test.contents), "validation", "test", findings)
    held_back |= test.contents | val.contents
    labelled_pool: LabeledImages | None = None
    if data.unlabelled is None:
        chosen, train = _parted(train, data)
        kept = _told(chosen, chosen.without(held_back), "pool", "validation or test", findings)
        labelled_pool = kept.taken()
        pool = _Pool(labelled_pool.images, kept.digest, manifest.gray)
        train = _told(
            train, train.without(held_back | kept.contents), "labelled source", "pool, validation or test", findings
        )
    else:
        pool = _unlabelled(data, held_back, findings)
        train = _told(train, train.without(held_back), "labelled source", "validation or test", findings)
    own = _images({"train": train, "val": val, "test": test}, f"data.path={data.path}", manifest.gray)
    return Pools(pool.images, pool.digest, labelled_pool, {CLASSIFY: own, **tasks}, pool.gray, tuple(findings))


def _need_folder(path: str) -> None:
    if not Path(path).exists():
        raise DataError(
            f"data.path={path}: no such folder or CSV. Give data.path=...; that of the quickstart is brought by "
            f"maelift data fashion-mnist out={path}."
        )


def _parted(train: _Part, data: SuiteData) -> tuple[_Part, _Part]:
    """The training images that are pretrained on, and those that labelled examples are drawn from."""
    order = stream(data.seed, "pool").permutation(len(train.indices))
    wanted = POOL_SHARE if data.pool is None else data.pool
    count = wanted if isinstance(wanted, int) else int(wanted * len(order))
    if not 0 < count < len(order):
        raise DataError(
            f"data.pool={wanted}: {data.path} has {len(order)} training images besides validation and test; expected "
            "a count below that, so that some are left to draw labelled examples from."
        )
    pool, rest = (sorted(int(index) for index in part) for part in (order[:count], order[count:]))
    return _Part(train.images, train.hashes, pool), _Part(train.images, train.hashes, rest)


@dataclass(frozen=True)
class _Pool:
    """What is pretrained on; ``digest`` hashes names and contents, and labels where there are some."""

    images: ImageSet
    digest: str
    gray: bool


def _unlabelled(data: SuiteData, held_back: set[str], findings: list[str]) -> _Pool:
    """The images to pretrain on that have no labels."""
    images = find_sources(cast("str | tuple[str, ...]", data.unlabelled))
    _, manifest = audit(images, data.broken, counting("looking through the pool"))
    if manifest.rejected:
        findings.append(f"Broken images of the pool that were left out: {len(manifest.rejected)}.")
        images = images.subset(manifest.kept)
    kept = [index for index, content in enumerate(manifest.hashes) if content not in held_back]
    findings.append(_finding("pool", len(images) - len(kept), "validation or test"))
    if data.pool is not None:
        count = data.pool if isinstance(data.pool, int) else int(data.pool * len(kept))
        if not 0 < count <= len(kept):
            raise DataError(f"data.pool={data.pool}: data.unlabelled has {len(kept)} images that may be pretrained on.")
        order = stream(data.seed, "pool").permutation(len(kept))[:count]
        kept = sorted(kept[int(number)] for number in order)
    if not kept:
        raise DataError("data.unlabelled: no image is left, as all are in validation or test too.")
    digest = hashlib.sha256()
    for index in kept:
        digest.update(f"{images.name(index)}\t{manifest.hashes[index]}\n".encode("utf-8", "surrogateescape"))
    return _Pool(images.subset(kept), digest.hexdigest(), all(manifest.gray))


def _task(config: BenchConfig, name: str, findings: list[str]) -> tuple[TaskImages, set[str]]:
    """The images of a task with data of its own, and the contents of those that it is judged by."""
    own = config.task(name)
    if not Path(own.data).exists():
        raise DataError(
            f"tasks.{name}.data={own.data}: no such folder or file. That of the quickstart is brought by "
            f"maelift data fashion-scenes out={own.data} pool=0."
        )
    recipe = config.transfer(name)
    splits, manifest = audit_splits(recipe.chosen_task().read(recipe), config.data.broken)
    if manifest.rejected:
        findings.append(f"{name}: broken images that were left out: {len(manifest.rejected)}.")
    train, val, test = (_Part(part, manifest.splits[split].hashes, range(len(part))) for split, part in splits.items())
    val = _told(val, val.without(test.contents), f"{name}'s validation", "test", findings)
    judged = test.contents | val.contents
    train = _told(train, train.without(judged), f"{name}'s labelled source", "validation or test", findings)
    parts = {"train": train, "val": val, "test": test}
    return _images(parts, f"tasks.{name}.data={own.data}", manifest.gray), judged


def _images(parts: Mapping[str, _Part], where: str, gray: bool) -> TaskImages:
    for split, part in parts.items():
        if not part.indices:
            raise DataError(f"{where}: no image is left for {split}, as all of it is elsewhere too.")
    splits = Splits(parts["train"].taken(), parts["val"].taken(), parts["test"].taken())
    return TaskImages(splits, {split: part.digest for split, part in parts.items()}, gray)


def _told(before: _Part, after: _Part, part: str, others: str, findings: list[str]) -> _Part:
    findings.append(_finding(part, len(before.indices) - len(after.indices), others))
    return after


def _finding(part: str, dropped: int, others: str) -> str:
    if dropped == 0:
        return f"No image of the {part} is in {others} too, by content."
    return f"Images of the {part} that are in {others} too, by content, and were left out of the {part}: {dropped}."
