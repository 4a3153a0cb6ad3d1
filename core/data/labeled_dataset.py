"""What labelled images of every task have in common, their splits, and draws of a few labelled images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from typing_extensions import Self

from ..errors import DataError
from .images import ImageSet
from .splits import Strata


class LabeledDataset(Protocol):
    """Images that someone has annotated, for any task."""

    @property
    def images(self) -> ImageSet: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def min_train(self) -> int:
        """Images that must be left to train on when other splits are drawn from them."""
        ...

    def __len__(self) -> int: ...

    def subset(self, indices: Sequence[int]) -> Self:
        """The images with these numbers, in this order."""
        ...

    def label_text(self, index: int) -> str:
        """All that the image's target depends on; two data sets with equal texts and images are one."""
        ...

    def label_sampling_order(self, seed: int) -> list[int]:
        """All images in an order of which every beginning is a fair draw of labelled images, the smaller in the larger."""
        ...

    @property
    def strata(self) -> Strata:
        """The classes of each image, of which missing splits get their shares."""
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
    """``count`` images (or that share) of ``labeled``'s ``label_sampling_order``.

    Nested: of two draws with one seed the smaller lies in the larger. Raises DataError when there are too few images, or
    fewer are asked for than must be (one a class).
    """
    number = count if isinstance(count, int) else round(count * len(labeled))
    if number > len(labeled):
        raise DataError(f"labels={count}: only {len(labeled)} labelled images are there. Ask for fewer.")
    if number < labeled.min_train:
        raise DataError(f"labels={count} makes {number} images: expected {min_train_text(labeled)}.")
    return labeled.subset(labeled.label_sampling_order(seed)[:number])


def min_train_text(images: LabeledDataset) -> str:
    least = images.min_train
    return f"at least {least}" + (", at least one a class" if least > 1 else "")
