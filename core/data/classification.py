"""Data sets of images with one class each or any number of them, and the keys that say how to read them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .images import ImageSet
from .slices import EVERY_SLICE, Slices
from .splits import (
    Strata,
    rarest_first_order,
    stratified_order,
)

ClassFolderLayout = Literal["auto", "class_folders"]


@dataclass(frozen=True)
class LabelKeys:
    """The keys that say how labels are read where the data leaves it open.

    ``multi_label``: images have any number of classes each, or one; ``layout``: class_folders where every folder is a class,
    whatever its name, auto raises for folders that may mean something else (``dataset_format``); ``label_column``: a table's
    column of labels, or its columns of 0 and 1; ``group``: what must stay in one split; ``slices``: which of volumes are images.
    """

    multi_label: bool | None = None
    layout: ClassFolderLayout = "auto"
    label_column: str | tuple[str, ...] | None = None
    group: str | None = None
    slices: Slices = EVERY_SLICE


@dataclass(frozen=True)
class LabeledImages:
    """Images with a class each: ``labels`` are numbers into ``classes``. See ``LabeledDataset``."""

    images: ImageSet
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    groups: tuple[str, ...] = ()
    """the group of each image, such as a patient; empty where the data doesn't say it"""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def min_train(self) -> int:
        """One image for each class that has some."""
        return len(set(self.labels))

    def subset(self, indices: Sequence[int]) -> LabeledImages:
        """The labelled images with these numbers, in this order."""
        labels = tuple(self.labels[index] for index in indices)
        groups = tuple(self.groups[index] for index in indices) if self.groups else ()
        return LabeledImages(self.images.subset(indices), labels, self.classes, groups)

    def label_text(self, index: int) -> str:
        """The image's class."""
        return self.classes[self.labels[index]]

    def label_sampling_order(self, seed: int) -> list[int]:
        """An order whose every prefix is as even over the classes as the data allows."""
        return stratified_order(self.labels, seed, "labels")

    @property
    def strata(self) -> Strata:
        """The class of each image."""
        return [(label,) for label in self.labels]

    def targets(self) -> NDArray[np.int64]:
        """The class of each image, (N,)."""
        return np.array(self.labels, dtype=np.int64)


@dataclass(frozen=True)
class MultiLabeledImages:
    """Images with any number of classes each: ``labels`` are sorted numbers into ``classes``. See ``LabeledDataset``."""

    images: ImageSet
    labels: tuple[tuple[int, ...], ...]
    classes: tuple[str, ...]
    groups: tuple[str, ...] = ()
    """the group of each image, such as a patient; empty where the data doesn't say it"""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def min_train(self) -> int:
        """One image for each class that has some."""
        return len({label for labels in self.labels for label in labels})

    def subset(self, indices: Sequence[int]) -> MultiLabeledImages:
        """The labelled images with these numbers, in this order."""
        labels = tuple(self.labels[index] for index in indices)
        groups = tuple(self.groups[index] for index in indices) if self.groups else ()
        return MultiLabeledImages(self.images.subset(indices), labels, self.classes, groups)

    def label_text(self, index: int) -> str:
        """The image's classes."""
        return "|".join(self.classes[label] for label in self.labels[index])

    def label_sampling_order(self, seed: int) -> list[int]:
        """An order whose every prefix is as even over the classes as images with several of them allow."""
        return rarest_first_order(self.labels, seed, "labels")

    @property
    def strata(self) -> Strata:
        """The classes of each image."""
        return self.labels

    def targets(self) -> NDArray[np.float32]:
        """1 where an image is of a class, else 0: (N, classes)."""
        targets = np.zeros((len(self), len(self.classes)), dtype=np.float32)
        for index, labels in enumerate(self.labels):
            targets[index, list(labels)] = 1
        return targets


ClassImages: TypeAlias = LabeledImages | MultiLabeledImages


_KEYS = re.compile(r"(?<![\w./])(layout|label_column|group|folds)=")


@contextmanager
def keys_below(prefix: str) -> Iterator[None]:
    """Rename keys in errors about data to what a configuration calls them that has them below ``prefix``, such as "data."."""
    try:
        yield
    except DataError as error:
        raise DataError(_KEYS.sub(rf"{prefix}\1=", str(error))) from error
