"""What labelled images of every task have in common, their splits, and draws of a few labelled images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from typing_extensions import Self

from ..errors import DataError
from .images import ImageSet
from .splits import Strata

LARGEST_DRAW = 0.2
"""Share of the labelled images that a seed may draw: of more, different seeds draw many of the same."""


class LabeledDataset(Protocol):
    """Annotated images, for any task."""

    @property
    def images(self) -> ImageSet: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def min_train(self) -> int:
        """Fewest images that must remain for training when other splits are drawn from them."""
        ...

    def __len__(self) -> int: ...

    def subset(self, indices: Sequence[int]) -> Self:
        """The images with these numbers, in this order."""
        ...

    def label_text(self, index: int) -> str:
        """Everything the image's target depends on, as text; data sets with equal texts and images are equal."""
        ...

    def label_sampling_order(self, seed: int) -> list[int]:
        """All images in an order whose every prefix is a balanced sample, so that smaller label counts are nested in larger."""
        ...

    @property
    def strata(self) -> Strata:
        """The classes of each image, by which missing splits are stratified."""
        ...


Images = TypeVar("Images", bound=LabeledDataset)


@dataclass(frozen=True)
class Splits(Generic[Images]):
    """Training, validation and test images, which share their classes."""

    train: Images
    val: Images
    test: Images

    def items(self) -> tuple[tuple[str, Images], ...]:
        """The splits with their names."""
        return ("train", self.train), ("val", self.val), ("test", self.test)

    def named(self, split: str) -> Images:
        """The split of this name; raises DataError for another."""
        splits = dict(self.items())
        if split not in splits:
            raise DataError(f"split '{split}': expected train, val or test.")
        return splits[split]


def draw_labeled(labeled: Images, count: float | int, seed: int) -> Images:
    """The first ``count`` images (or that share) of ``labeled``'s ``label_sampling_order``.

    Nested: with one seed, a smaller sample is part of a larger one. Raises DataError when there are too few images, and for
    fewer than ``min_train``.
    """
    number = count if isinstance(count, int) else round(count * len(labeled))
    if number > len(labeled):
        raise DataError(f"labels={count}: there are only {len(labeled)} labelled images. Expected fewer.")
    if number < labeled.min_train:
        raise DataError(f"labels={count} makes {number} images: expected {min_train_text(labeled)}.")
    return labeled.subset(labeled.label_sampling_order(seed)[:number])


def min_train_text(images: LabeledDataset) -> str:
    """Fewest training images in words, for messages."""
    least = images.min_train
    return f"at least {least}" + (", at least one of each class" if least > 1 else "")
