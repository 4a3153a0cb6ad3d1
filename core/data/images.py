"""Sets of images and how one of them is opened, so that one broken file never ends a run."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError
from .decode import decode, open_picture, open_values, plain_mode
from .pixel_format import ANY_FORMAT, PLAIN_FORMAT, LazyImage, Picture, PixelFormat, image_of
from .string_table import Numbers, StringTable
from .transforms import to_array


class ImageSet(Protocol):
    """Images that are opened by number."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The image's name for a person: its path below the folder, or its number in an idx file."""
        ...

    def open(self, index: int, form: PixelFormat = ANY_FORMAT) -> Image.Image | Picture:
        """The upright image in mode "L" or "RGB", or "F" from 0 to 255 for 16-bit gray; of what is none of these, the values
        (H, W, C), float32 from 0 to 255 for 16-bit colour. Raises DataError."""
        ...

    def content(self, index: int) -> bytes | None:
        """The bytes of the image's file, not decoded; None where it is no file but a part of an array. Raises DataError."""
        ...

    def subset(self, indices: Numbers) -> ImageSet:
        """The images with these numbers, in this order."""
        ...

    def default_workers(self) -> int:
        """How many processes it takes to open these images as fast as a model trains on them."""
        ...


@runtime_checkable
class Sized(Protocol):
    """Images whose annotations say what size each has."""

    def check_size(self, index: int, size: tuple[int, int]) -> None:
        """Raise DataError where an image is of another (height, width)."""
        ...


@runtime_checkable
class OpensParts(Protocol):
    """Images of which some are parts of files: slices of volumes."""

    def open_part(self, index: int, form: PixelFormat) -> LazyImage | None:
        """A part, before it is decoded; None for an image that is a file of its own. Raises DataError."""
        ...


def as_image(
    image: str | Path | Image.Image | NDArray[np.generic], form: PixelFormat = PLAIN_FORMAT
) -> Image.Image | Picture:
    """An image as ``decode`` gives it, of a file, a PIL image, or an array (H, W) or (H, W, C).

    Arrays are uint8, uint16, or floats from 0 to 255; with a value range in ``form`` any numbers as stored, within it. They
    are gray or colour, or have the form's channels. Transparency is composited as ``form`` says. Raises DataError for others.
    """
    if isinstance(image, (str, Path)):
        return decode(Path(image), None, form)
    if isinstance(image, Image.Image):
        return image if image.mode == "F" else plain_mode(image, form)  # "F" is what decode makes of 16-bit gray
    array = np.asarray(image)
    bands = 1 if array.ndim == 2 else array.shape[2] if array.ndim == 3 else 0
    if array.dtype == np.uint8 and bands == 4 and form.channels != 4:
        return plain_mode(Image.fromarray(array), form)
    known = array.dtype in (np.uint8, np.uint16) or array.dtype.kind in ("f" if form.value_range is None else "fiu")
    wanted = _GRAY_OR_COLOUR if form.channels in (None, *_GRAY_OR_COLOUR) else (form.channels,)
    if not array.size or not known or bands not in wanted:
        raise DataError(f"an array of shape {array.shape} and type {array.dtype}: expected {_expected_array(form)}.")
    if array.ndim == 2:
        array = array[:, :, None]
    if array.dtype.kind == "f" and form.value_range is None:
        return image_of(array.astype(np.float32))
    return image_of(open_values(array, form).pixels())


_GRAY_OR_COLOUR = (1, 3)


def _expected_array(form: PixelFormat) -> str:
    """What ``as_image`` takes, in words."""
    usual = form.channels in (None, *_GRAY_OR_COLOUR)
    shapes = "(height, width) or (height, width, 3)" if usual else f"(height, width, {form.channels})"
    if form.value_range is None:
        return f"{shapes} of uint8, uint16 or floats from 0 to 255"
    low, high = form.value_range
    return f"{shapes} of values from {low:g} to {high:g}"


def stored_pixels(
    image: str | Path | Image.Image | NDArray[np.generic], channels: int, form: PixelFormat = PLAIN_FORMAT
) -> NDArray[np.generic]:
    """The stored values (C, H, W) of a path, a PIL image or an array (H, W) or (H, W, C), as ``as_image`` takes them.

    Raises DataError for other channels than ``to_array`` can make ``channels`` of.
    """
    return to_array(as_image(image, form), channels)


def opened(images: ImageSet, index: int, form: PixelFormat = ANY_FORMAT) -> LazyImage:
    """An image with all its channels and bits, before it is decoded; raises DataError with the reason for a broken one.

    Broken is also what shows nothing, a side of a single pixel, but for a ``plain`` form.
    """
    return opened_content(images, index, images.content(index), form)


def opened_content(images: ImageSet, index: int, content: bytes | None, form: PixelFormat = ANY_FORMAT) -> LazyImage:
    """As ``opened``, of ``content`` that has been read."""
    name = images.name(index)
    found = open_picture(Path(name), content, form) if content is not None else _without_content(images, index, form)
    if isinstance(images, Sized):
        images.check_size(index, found.size)
    if min(found.size) < 2 and not form.plain:
        height, width = found.size
        raise DataError(f"{name}: {width}×{height} px, too small to show anything")
    return found


def _without_content(images: ImageSet, index: int, form: PixelFormat) -> LazyImage:
    """An image that is no file: a part of one, or of an array."""
    part = images.open_part(index, form) if isinstance(images, OpensParts) else None
    return part or open_values(images.open(index, form), form)


@runtime_checkable
class FileBacked(Protocol):
    """Images that are stored in files: what was found of them holds as long as the files are the same."""

    def origin(self) -> str | None:
        """Where the images are, which together with a name identifies an image; None where nothing may be cached."""
        ...

    def listed(self) -> StringTable:
        """The names of all."""
        ...

    def file_stats(self, numbers: Numbers) -> NDArray[np.int64]:
        """(len(numbers), 3): size and times (modification, status change; ns) of the file that holds each; -1 without."""
        ...
