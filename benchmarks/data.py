"""The images of a suite by use: to pretrain on; and for each task to train on, to validate and to test with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..core.data.audit import audit
from ..core.data.classification import LabeledImages, LabelKeys, keys_below
from ..core.data.classification_reader import single_label_parts
from ..core.data.groups import groups_of
from ..core.data.images import ImageSet
from ..core.data.labeled_dataset import Splits
from ..core.data.missing_splits import audited_splits
from ..core.data.pixel_format import PixelFormat
from ..core.data.sources import find_sources
from ..core.errors import DataError
from ..core.progress import progress_logger
from ..core.seeding import stream
from ..core.terminal import quoted
from ..transfer.tasks import CLASSIFY, task_type
from .leakage import LeakageGuard, NearDuplicatePair, Subset
from .suite import BenchConfig
from .suite_data import SuiteData

POOL_SHARE = 0.8
"""Of the training images with labels, where ``data.pool`` is not given."""


@dataclass(frozen=True)
class TaskImages:
    """A task's images: ``splits.train`` is what labelled examples are drawn from. ``digests`` hash each split, in order.

    ``contents`` hash each training image, for cross-validation, which has no validation images; else it is empty.
    """

    splits: Splits[Any]
    digests: Mapping[str, str]
    contents: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Images by use."""
        train, val, test = (len(part) for _, part in self.splits.items())
        return {"labelled source": train, "validation": val, "test": test}


@dataclass(frozen=True)
class SuiteImages:
    """The images of a suite; the pool has none that is validated or tested with on any task, by content.

    ``labelled_pool`` has the pool's labels, for a supervised arm; None where it has none. ``findings`` says in words what the
    leakage guard found and left out, ``pairs`` shows the near-duplicates.
    """

    pool: ImageSet
    pool_digest: str
    labelled_pool: LabeledImages | None
    tasks: Mapping[str, TaskImages]
    gray: bool
    findings: tuple[str, ...]
    pairs: tuple[NearDuplicatePair, ...] = ()

    @cached_property
    def classify(self) -> Splits[LabeledImages]:
        """The suite's own images with a class each."""
        return self.tasks[CLASSIFY].splits


def read_suite_images(config: BenchConfig) -> SuiteImages:
    """Read, scan and split the images; those of validation and test, and near-duplicates of them, are left out elsewhere."""
    data, guard = config.data, LeakageGuard(config.data.near, config.form, config.shown)
    tasks = {name: _read_task(config, name, guard) for name in config.designs if name != CLASSIFY}
    labelled_pool: LabeledImages | None = None
    if data.path is None:
        pool = _read_unlabelled(data, guard, config.form)
        return _suite_images(pool, None, tasks, guard)
    _require_folder(data.path)
    with keys_below("data."):
        keys = LabelKeys(None, data.layout, data.label_column, data.group, config.slices)
        parts = single_label_parts(data.path, keys)
        if data.cross:
            parts = _without_validation(parts, guard)
        wanted = 0 if isinstance(data.val, str) else data.val
        splits, manifest = audited_splits(
            parts, data.path, wanted, data.test, data.seed, data.broken, group=data.group, form=config.form
        )
    guard.report_broken("", len(manifest.rejected))
    train, val, test = (Subset(part, manifest.splits[name].hashes, range(len(part))) for name, part in splits.items())
    val = guard.add_evaluated(CLASSIFY, val, test, data.group)
    if data.unlabelled is None:
        chosen, train = _split_pool(train, data)
        own = guard.without_leaks(chosen, "pool", list(guard.evaluated))
        labelled_pool = own.selected()
        pool = _PretrainingImages(labelled_pool.images, own.digest, manifest.gray)
        train = guard.without(train, own.contents, "labelled source", "the pool")
    else:
        pool = _read_unlabelled(data, guard, config.form)
    train = guard.without_leaks(train, "labelled source", [CLASSIFY])
    images = _task_images({"train": train, "val": val, "test": test}, f"data.path={data.path}", cross=data.cross)
    return _suite_images(pool, labelled_pool, {CLASSIFY: images, **tasks}, guard)


def _suite_images(
    pool: _PretrainingImages, labelled: LabeledImages | None, tasks: Mapping[str, TaskImages], guard: LeakageGuard
) -> SuiteImages:
    guard.check_shown(pool.images)
    findings = tuple(guard.findings), tuple(guard.pairs)
    return SuiteImages(pool.images, pool.digest, labelled, tasks, pool.gray, *findings)


def _without_validation(parts: dict[str, LabeledImages], guard: LeakageGuard) -> dict[str, LabeledImages]:
    """The parts with no validation image, whatever the data has, for cross-validation."""
    if "train" not in parts:
        return parts
    if "val" in parts:
        guard.findings.append(
            f"The validation split of the data ({len(parts['val']):,} images) is not used: with data.val=cross settings are "
            "chosen within the labelled images of each seed."
        )
    return {**parts, "val": parts["train"].subset([])}


def _require_folder(path: str) -> None:
    if not Path(path).exists():
        raise DataError(
            f"data.path={path}: no such folder or CSV. Give data.path=...; that of the quickstart is brought by "
            f"maelift data fashion-mnist out={quoted(path)}."
        )


def count_of(wanted: int | float, whole: int) -> int:
    """How many of ``whole`` a count or a share is."""
    return wanted if isinstance(wanted, int) else int(wanted * whole)


def _split_pool(train: Subset, data: SuiteData) -> tuple[Subset, Subset]:
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
        order, count = _with_full_groups(train, order, count, data.group)
    pool, rest = (sorted(int(index) for index in part) for part in (order[:count], order[count:]))
    return Subset(train.images, train.hashes, pool), Subset(train.images, train.hashes, rest)


def _with_full_groups(train: Subset, order: NDArray[np.int64], count: int, group: str) -> tuple[NDArray[np.int64], int]:
    """The order with all of a group where its first image is, and the count nearest to ``count`` that cuts no group."""
    groups = groups_of(train.selected(), group)
    first: dict[str, int] = {}
    for place, index in enumerate(order.tolist()):
        first.setdefault(groups[index], place)
    together = np.array(sorted(order.tolist(), key=lambda index: first[groups[index]]), dtype=np.int64)
    ends = [n for n in range(1, len(together)) if groups[together[n]] != groups[together[n - 1]]]
    if not ends:
        raise DataError(f"data.group={group}: all training images are of one group, of which no pool can be split off.")
    return together, min(ends, key=lambda end: abs(end - count))


@dataclass(frozen=True)
class _PretrainingImages:
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
        """Empty: the images have no labels."""
        return ""

    def subset(self, indices: Sequence[int]) -> _UnlabeledView:
        """The images with these numbers."""
        return _UnlabeledView(self.images.subset(indices))


def _read_unlabelled(data: SuiteData, guard: LeakageGuard, form: PixelFormat) -> _PretrainingImages:
    """The images to pretrain on that have no labels."""
    images = find_sources(cast("str | tuple[str, ...]", data.unlabelled), slices=form.slices)
    _, manifest = audit(images, data.broken, progress_logger("scanning the pool"), form)
    guard.report_broken("pool: ", len(manifest.rejected))
    if manifest.rejected:
        images = images.subset(manifest.kept)
    part = Subset(_UnlabeledView(images), manifest.hashes, range(len(images)))
    part = guard.without_groups(guard.without_leaks(part, "pool", list(guard.evaluated)), "pool")
    if data.pool is not None:
        count = count_of(data.pool, len(part.indices))
        if not 0 < count <= len(part.indices):
            raise DataError(
                f"data.pool={data.pool}: data.unlabelled has {len(part.indices)} images that may be pretrained on."
            )
        order = stream(data.seed, "pool").permutation(len(part.indices))[:count]
        part = Subset(part.images, part.hashes, sorted(part.indices[int(number)] for number in order))
    if not part.indices:
        raise DataError("data.unlabelled: no image is left, all are in validation or test too.")
    return _PretrainingImages(part.selected().images, part.digest, all(manifest.gray))


def _read_task(config: BenchConfig, name: str, guard: LeakageGuard) -> TaskImages:
    """The images of a task with data of its own."""
    own = config.tasks[name]
    if not Path(own.data).exists():
        raise DataError(
            f"tasks.{name}.data={own.data}: no such folder or file. That of the quickstart is brought by "
            f"maelift data fashion-scenes out={quoted(own.data)} pool=0."
        )
    recipe = config.transfer(name)
    with keys_below(f"tasks.{name}.recipe."):
        splits, manifest = task_type(recipe).read_audited(replace(recipe, max_rejected=config.data.broken), config.form)
    guard.report_broken(f"{name}: ", len(manifest.rejected))
    train, val, test = (Subset(part, manifest.splits[split].hashes, range(len(part))) for split, part in splits.items())
    val = guard.add_evaluated(name, val, test, recipe.group)
    train = guard.without_leaks(train, f"{name}'s labelled source", [name])
    parts = {"train": train, "val": val, "test": test}
    return _task_images(parts, f"tasks.{name}.data={own.data}")


def _task_images(parts: Mapping[str, Subset], where: str, *, cross: bool = False) -> TaskImages:
    for split, part in parts.items():
        if not part.indices and not (cross and split == "val"):
            raise DataError(f"{where}: no image is left for {split}: all are in another split too.")
    splits = Splits(parts["train"].selected(), parts["val"].selected(), parts["test"].selected())
    train = parts["train"]
    contents = tuple(train.hashes[index] for index in train.indices) if cross else ()
    return TaskImages(splits, {split: part.digest for split, part in parts.items()}, contents)
