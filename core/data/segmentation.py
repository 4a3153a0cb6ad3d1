"""Data sets of images with a mask each, an image file whose pixel values are classes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .class_lists import NUM_MASK_VALUES, ColourTable
from .mask_files import read_mask
from .readers.folder import FolderImages
from .splits import Strata, rarest_first_order

UNKNOWN_VALUE = -1
"""Class number of values that are neither a class nor ignored."""


@dataclass(frozen=True)
class SegmentationImages:
    """Images with a mask of class numbers each (see ``LabeledDataset``).

    ``masks`` are the files; ``lookup`` (65536,) int64 gives the class number of a file's value, ``ignore_index`` for
    ignored ones, -1 for unknown ones. ``present`` are the classes on each image; ``digests`` hashes of masks.
    """

    images: FolderImages
    masks: tuple[Path, ...]
    classes: tuple[str, ...]
    lookup: NDArray[np.int64]
    present: tuple[tuple[int, ...], ...]
    digests: tuple[str, ...]
    colours: ColourTable | None = None
    """for masks in colour: the value of each colour"""

    def __len__(self) -> int:
        return len(self.masks)

    @property
    def ignore_index(self) -> int:
        """The number of pixels without a class: 255, or 65535 where there are more classes than that."""
        return ignore_index(len(self.classes))

    @property
    def values(self) -> list[int]:
        """The value of each class in the files."""
        return [int(np.flatnonzero(self.lookup == number)[0]) for number in range(len(self.classes))]

    @property
    def min_train(self) -> int:
        """One: an image may show all classes."""
        return 1

    def mask(self, index: int) -> NDArray[np.uint8] | NDArray[np.int64]:
        """(H, W): the class numbers of an image's pixels, from 0, ``ignore_index`` where there is none.

        uint8, or int64 with more than 255 classes. Raises DataError for a mask that can't be read or has changed.
        """
        numbers = self.lookup[read_mask(self.masks[index], self.colours)]
        if numbers.min() == UNKNOWN_VALUE:
            raise DataError(f"{self.masks[index]}: values without a class. The file has changed since the run began")
        return numbers.astype(np.uint8) if self.ignore_index < 256 else numbers

    def subset(self, indices: Sequence[int]) -> SegmentationImages:
        """The images with these numbers, in this order."""
        return SegmentationImages(
            self.images.subset(indices),
            tuple(self.masks[index] for index in indices),
            self.classes,
            self.lookup,
            tuple(self.present[index] for index in indices),
            tuple(self.digests[index] for index in indices),
            self.colours,
        )

    def label_text(self, index: int) -> str:
        """A hash of the mask's class numbers and of all classes' names."""
        names = hashlib.blake2b(repr(self.classes).encode(), digest_size=8).hexdigest()
        return f"{names}:{self.digests[index]}"

    def label_sampling_order(self, seed: int) -> list[int]:
        """An order whose every prefix has all classes about equally often, as far as the images allow."""
        return rarest_first_order(self.present, seed, "labels")

    @property
    def strata(self) -> Strata:
        """The classes on each image."""
        return self.present


def ignore_index(classes: int) -> int:
    """The number of "no class" in masks of this many classes."""
    return 255 if classes <= 255 else NUM_MASK_VALUES - 1
