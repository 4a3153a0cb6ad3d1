"""Where pixels come from: folders of image files and idx files, decoded so that one bad file never ends a run."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError
from ..files import LARGEST_READ, check_regular, open_regular, read_regular
from ..seeding import stream
from .decode import (
    ANY_FORMAT,
    PLAIN_FORMAT,
    LazyImage,
    Picture,
    PixelFormat,
    decode,
    image_of,
    kinds,
    open_picture,
    open_values,
    picture_of,
    plain_mode,
    what_reads,
)
from .file_index import file_stamps, list_files, list_folder
from .string_table import Numbers, StringTable
from .unread import in_brackets, kind_of, tell, tell_beside, unread_text

ASPECT_RATIOS = (3 / 4, 4 / 3)
REDUCTIONS = (8, 4, 2)
"""Factors by which libjpeg decodes at a smaller size."""

GZIP_START = b"\x1f\x8b"
IDX_START = b"\x00\x00\x08"
"""An idx file of bytes; the number of its axes follows."""
HARMLESS_BYTES = 64 * 2**20
MOST_PACKED = 200
"""What is unpacked may be so many times as large as its file, unless it is harmless: images are seldom packed to a tenth."""

Interpolation = Literal["bicubic", "bilinear", "nearest"]
Pixels = NDArray[np.generic]


class ImageSet(Protocol):
    """Images that are opened by number."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What a person knows the image by: its path below the folder, or its number in an idx file."""
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


@dataclass(frozen=True)
class FolderImages:
    """Image files below ``root``, by their paths relative to it."""

    root: Path
    paths: Sequence[str]

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return self.paths[index]

    def open(self, index: int, form: PixelFormat = ANY_FORMAT) -> Image.Image | Picture:
        return decode(self.root / self.paths[index], None, form)

    def content(self, index: int) -> bytes:
        path = self.root / self.paths[index]
        try:
            return read_regular(path)
        except OSError as error:
            raise DataError(f"{path}: {error.strerror or error}") from error

    def subset(self, indices: Numbers) -> FolderImages:
        if isinstance(self.paths, StringTable):
            return FolderImages(self.root, self.paths.subset(indices))
        return FolderImages(self.root, tuple(self.paths[index] for index in indices))

    def default_workers(self) -> int:
        return min(16, os.cpu_count() or 1)

    def origin(self) -> str | None:
        return f"folder {self.root.absolute()}"

    def listed(self) -> StringTable:
        return self.paths if isinstance(self.paths, StringTable) else StringTable.of(self.paths)

    def stamps(self, numbers: Numbers) -> NDArray[np.int64]:
        return file_stamps(os.path.join(self.root, path) for path in self.listed().subset(numbers))


@dataclass(frozen=True)
class ArrayImages:
    """Images of the idx file ``path``: ``array`` (N, H, W) uint8, of which those at ``indices`` are meant."""

    array: NDArray[np.uint8]
    path: Path
    indices: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return f"{self.path.name}[{self.indices[index]}]"

    def open(self, index: int, form: PixelFormat = ANY_FORMAT) -> Image.Image:
        return Image.fromarray(self.array[self.indices[index]])

    def content(self, index: int) -> None:
        return None

    def subset(self, indices: Numbers) -> ArrayImages:
        return ArrayImages(self.array, self.path, self.indices[np.asarray(indices, dtype=np.int64)])

    def default_workers(self) -> int:
        return 0

    def origin(self) -> str | None:
        return f"idx {self.path.absolute()}"

    def listed(self) -> StringTable:
        return StringTable.of(map(self.name, range(len(self))))

    def stamps(self, numbers: Numbers) -> NDArray[np.int64]:
        return file_stamps([os.fspath(self.path)]).repeat(len(numbers), axis=0)


def find_images(data: str | Path, key: str = "data") -> ImageSet:
    """The images in a folder (nested or flat, by sorted path; hidden files left out) or in an idx file.

    A folder with idx files gives the training images. Raises DataError, which names the user's ``key``, when there is
    nothing to be found.
    """
    path = Path(data)
    if not path.is_dir():
        try:
            check_regular(path)
        except FileNotFoundError as error:
            tilde = " A shell leaves ~ as it is in KEY=~/...: give $HOME/... instead." if str(path)[:1] == "~" else ""
            raise DataError(
                f"{key}={path}: no such folder. Expected a folder of images or an idx file.{tilde}"
            ) from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise DataError(f"{key}={path}: {reason}. Expected a folder of images or an idx file.") from error
        if not is_idx_images(path):
            raise DataError(f"{key}={path}: a file that is not an idx file of images. Expected that, or a folder.")
        return idx_images(path)
    listing = list_folder(path)
    if listing.outputs:
        tell(f"{path}: left out, as maelift wrote it: {_few(listing.outputs)}")
    if listing.names:
        if listing.unread:
            tell(f"{path}: {unread_text(len(listing.names), listing.unread)}")
        return FolderImages(path, listing.names)
    idx = idx_file(path, "train", "images") or idx_file(path, "", "images")
    if idx is not None:
        tell_beside(path, [idx], "idx file")
        return idx_images(idx)
    files = list_files(path)
    if not files:
        raise DataError(f"{key}={path}: the folder is empty. Expected images ({kinds()}) or idx files.")
    counts = Counter(map(kind_of, files))
    listed = ", ".join(f"{count} {kind}{in_brackets(kind)}" for kind, count in counts.most_common(5))
    raise DataError(
        f"{key}={path}: no images among its {len(files)} files ({listed}). Expected {kinds()} or idx files."
    )


def _few(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def tell_unused(data: Path, used: Iterable[ImageSet], annotated_by: str, masks: Iterable[Path] = ()) -> None:
    """Say how many images of a folder ``data`` aren't used, as no annotation names them, and which files would be images.

    What lies in the folders ``masks`` is none.
    """
    if not data.is_dir():
        return
    listing = list_folder(data)
    taken = {
        os.path.relpath(os.path.join(part.root, name), data)
        for part in used
        if isinstance(part, FolderImages)
        for name in part.paths
    }
    without = tuple(f"{os.path.relpath(folder, data)}/" for folder in masks)
    images_there = [name for name in listing.names if not name.startswith(without)]
    unused = [name for name in images_there if name not in taken]
    if unused:
        tell(
            f"{data}: {len(unused):,} of {len(images_there):,} images are named by no {annotated_by} and aren't used, such as "
            f"{unused[0]}"
        )
    images = {kind: count for kind, count in listing.unread.items() if what_reads(kind)}
    if images:
        tell(f"{data}: {unread_text(len(listing.names), images)}")


def idx_file(folder: Path, split: str, content: str) -> Path | None:
    """The idx file of a folder with ``split`` ("train", "t10k") and ``content`` ("images", "labels") in its name."""
    found = [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and f"{content}" in path.name and "idx" in path.name and path.name.startswith(split)
    ]
    return found[0] if found else None


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array of an idx file of bytes, gzipped or not; raises DataError when it isn't one or is cut off.

    Its header is compared with the file before anything is read or unpacked.
    """
    try:
        with open_regular(path) as file:
            size, packed = os.fstat(file.fileno()).st_size, file.read(2) == GZIP_START
            file.seek(0)
            stream = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if packed else file
            head = stream.read(4)
            axes = head[3] if len(head) == 4 and head[:3] == IDX_START else 0
            rest = stream.read(4 * axes)
            if not 1 <= axes <= 4 or len(rest) != 4 * axes:
                raise DataError(f"{path}: not an idx file of bytes. Expected the MNIST format.")
            shape = [int.from_bytes(rest[4 * axis : 4 * axis + 4], "big") for axis in range(axes)]
            promised = math.prod(shape)
            if packed and promised > max(HARMLESS_BYTES, MOST_PACKED * size):
                raise DataError(
                    f"{path}: {size:,} bytes that promise to unpack to {promised:,}: a decompression bomb? "
                    "Unpack it with gunzip if it is to be trusted."
                )
            if promised > LARGEST_READ:
                raise DataError(
                    f"{path}: its header promises {promised:,} bytes, more than the {LARGEST_READ:,} that are read of a file. "
                    "Save it as a .npy array, which is mapped, not read."
                )
            there = size - 4 - 4 * axes
            if not packed and there != promised:
                raise DataError(_cut_off(path, there, promised))
            content = stream.read(promised + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: can't be read ({reason}). Get the file again.") from error
    if len(content) != promised:
        raise DataError(_cut_off(path, len(content), promised))
    return np.frombuffer(content, dtype=np.uint8).reshape(shape if promised else [0] * axes)


def _cut_off(path: Path, there: int, promised: int) -> str:
    return f"{path}: {there} bytes of content where its header promises {promised}. The file is cut off; get it again."


def is_idx_images(path: Path) -> bool:
    """Whether a file is an idx file, by its first bytes."""
    try:
        with open_regular(path) as file:
            head = file.read(3)
            if head[:2] == GZIP_START:
                file.seek(0)
                head = gzip.GzipFile(fileobj=file).read(3)
    except (OSError, EOFError, zlib.error):
        return False
    return head == IDX_START


def idx_images(path: Path) -> ArrayImages:
    """The images of an idx file (N, H, W)."""
    array = read_idx(path)
    if array.ndim != 3 or 0 in array.shape:
        raise DataError(f"{path}: an array of shape {array.shape}. Expected images: (count, height, width).")
    return ArrayImages(array, path, np.arange(len(array)))


def as_image(
    image: str | Path | Image.Image | NDArray[np.generic], form: PixelFormat = PLAIN_FORMAT
) -> Image.Image | Picture:
    """An image as ``decode`` gives it, of a file, a PIL image, or an array (H, W) or (H, W, C).

    Arrays are uint8, uint16, or floats from 0 to 255. Transparency is composited as ``form`` says. Raises DataError for others.
    """
    if isinstance(image, (str, Path)):
        return decode(Path(image), None, form)
    if isinstance(image, Image.Image):
        return image if image.mode == "F" else plain_mode(image, form)  # "F" is what decode makes of 16-bit gray
    array = np.asarray(image)
    bands = 1 if array.ndim == 2 else array.shape[2] if array.ndim == 3 else 0
    if array.dtype == np.uint8 and bands == 4:
        return plain_mode(Image.fromarray(array), form)
    if not array.size or bands not in (1, 3) or (array.dtype not in (np.uint8, np.uint16) and array.dtype.kind != "f"):
        raise DataError(
            f"an array of shape {array.shape} and type {array.dtype}: expected (height, width) or (height, width, 3) of "
            "uint8, uint16 or floats from 0 to 255."
        )
    if array.ndim == 2:
        array = array[:, :, None]
    return image_of(array.astype(np.float32) if array.dtype.kind == "f" else open_values(array, form).pixels())


def stored_pixels(
    image: str | Path | Image.Image | NDArray[np.generic], channels: int, form: PixelFormat = PLAIN_FORMAT
) -> NDArray[np.generic]:
    """The stored values (C, H, W) of a path, a PIL image or an array (H, W) or (H, W, C).

    Files and pictures are read as gray or colour, whichever the encoder takes; other channels only arrays can have.
    """
    if channels in (1, 3) or not isinstance(image, np.ndarray):
        return to_array(as_image(image, form), channels)
    if image.ndim != 3 or image.shape[2] != channels:
        raise DataError(f"an array of shape {image.shape}: expected (height, width, {channels}).")
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def opened(images: ImageSet, index: int, form: PixelFormat = ANY_FORMAT) -> LazyImage:
    """An image with all its channels and bits, before it is decoded; raises DataError with the reason for a broken one.

    Broken is also what shows nothing, a side of a single pixel, but for a ``plain`` form.
    """
    return opened_content(images, index, images.content(index), form)


def opened_content(images: ImageSet, index: int, content: bytes | None, form: PixelFormat = ANY_FORMAT) -> LazyImage:
    """The same where its ``content`` has been read."""
    name = images.name(index)
    found = open_values(images.open(index, form), form) if content is None else open_picture(Path(name), content, form)
    if isinstance(images, Sized):
        images.check_size(index, found.size)
    if min(found.size) < 2 and not form.plain:
        height, width = found.size
        raise DataError(f"{name}: {width}×{height} px, too small to show anything")
    return found


def to_array(image: Image.Image | Picture, channels: int) -> Pixels:
    """Pixels (C, H, W), uint8, or float32 for more than 8 bits; gray from colour by ITU-R 601, colour of three equal grays.

    Raises DataError for other channels than were asked for.
    """
    picture = picture_of(image) if isinstance(image, Image.Image) else image
    there = picture.shape[2]
    if there == channels:
        return np.ascontiguousarray(picture.transpose(2, 0, 1))
    if there == 1 and channels == 3:
        return np.repeat(picture.transpose(2, 0, 1), 3, axis=0)
    if there == 3 and channels == 1:
        return _gray(picture)[None]
    raise DataError(_other_channels(there, channels))


def check_channels(there: int, channels: int) -> None:
    """Raise DataError unless ``to_array`` can make ``channels`` of so many."""
    if there != channels and {there, channels} != {1, 3}:
        raise DataError(_other_channels(there, channels))


def _other_channels(there: int, channels: int) -> str:
    return f"{there} channel{'s' if there > 1 else ''}, not {channels} (channels={channels})"


def _gray(picture: Picture) -> Pixels:
    if picture.dtype == np.uint8:
        return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).convert("L"))
    return (picture @ np.array([0.299, 0.587, 0.114], dtype=np.float32)).astype(np.float32)


def random_resized_crop(
    image: Image.Image | Picture,
    size: tuple[int, int],
    draws: NDArray[np.float64],
    scale: tuple[float, float] = (0.2, 1.0),
    interpolation: Interpolation = "bicubic",
) -> Picture:
    """A random part of an image resized to ``size`` (height, width), mirrored when the last draw is below 0.5: (H, W, C).

    ``draws`` are five numbers in [0, 1): area (uniform within ``scale``), aspect ratio (log-uniform from 3/4 to 4/3),
    place in y and x, mirroring. A crop that would reach beyond the image is cut to it. It is cropped, then resized, as in
    torchvision: with antialiasing, uint8 within 1 (seldom 2) of what PIL gives.
    """
    picture = picture_of(image) if isinstance(image, Image.Image) else image
    box = crop_box((picture.shape[0], picture.shape[1]), draws, scale)
    return _resized(picture, box, size, mirrored=bool(draws[4] < 0.5), interpolation=interpolation)


def random_crops(
    image: LazyImage,
    size: tuple[int, int],
    draws: NDArray[np.float64],
    scale: tuple[float, float] = (0.2, 1.0),
    *,
    reduced: bool = True,
) -> list[Picture]:
    """A ``random_resized_crop`` for each row of ``draws`` (K, 5), of an image that is decoded once.

    ``reduced``: a JPEG is decoded at 1/2, 1/4 or 1/8 where each crop still has at least twice the pixels of ``size`` a
    side; crops then lie at whole pixels of the smaller image, and values differ from those of the full one, by 1 of 255 in the
    mean and up to 50 at edges and grain (photographs of 1600 to 4000 pixels). Which factor it is depends on nothing else.
    """
    boxes = [crop_box(image.size, row, scale) for row in draws]
    room = min(min(box[2] / size[0], box[3] / size[1]) for box in boxes)
    reduction = next((factor for factor in REDUCTIONS if room >= 2 * factor), 1) if reduced else 1
    picture = image.pixels(reduction)
    there = (picture.shape[0], picture.shape[1])
    if there != image.size:
        boxes = [_scaled_box(box, image.size, there) for box in boxes]
    return [_resized(picture, box, size, mirrored=bool(row[4] < 0.5)) for box, row in zip(boxes, draws, strict=True)]


def crop_box(
    size: tuple[int, int], draws: NDArray[np.float64], scale: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Top, left, height and width of the ``random_resized_crop`` of an image of ``size`` (height, width), in pixels."""
    height, width = size
    area = width * height * (scale[0] + (scale[1] - scale[0]) * draws[0])
    low, high = (math.log(ratio) for ratio in ASPECT_RATIOS)
    ratio = math.exp(low + (high - low) * draws[1])
    crop_width = min(width, max(1, round(math.sqrt(area * ratio))))
    crop_height = min(height, max(1, round(math.sqrt(area / ratio))))
    return (
        int((height - crop_height + 1) * draws[2]),
        int((width - crop_width + 1) * draws[3]),
        crop_height,
        crop_width,
    )


def _scaled_box(
    box: tuple[int, int, int, int], size: tuple[int, int], there: tuple[int, int]
) -> tuple[int, int, int, int]:
    """A box in an image of ``size`` as one of whole pixels in its copy of the size that is there."""
    top, height = _scaled_span(box[0], box[2], size[0], there[0])
    left, width = _scaled_span(box[1], box[3], size[1], there[1])
    return top, left, height, width


def _scaled_span(start: int, length: int, side: int, there: int) -> tuple[int, int]:
    """Start and length, within ``there`` pixels and of at least one, of a part of ``side`` pixels that are scaled to them."""
    first = min(there - 1, round(start * there / side))
    return first, max(1, round((start + length) * there / side) - first)


def _resized(
    picture: Picture,
    box: tuple[int, int, int, int],
    size: tuple[int, int],
    *,
    mirrored: bool,
    interpolation: Interpolation = "bicubic",
) -> Picture:
    """The part of a picture in ``box`` (top, left, height, width), resized to ``size``: PyTorch's kernels for whole bytes take a
    fifth of PIL's time."""
    import torch
    from torch.nn.functional import interpolate

    top, left, height, width = box
    part = picture[top : top + height, left : left + width]
    if (height, width) != size:
        part = part if part.flags.writeable and min(part.strides) > 0 else part.copy()
        tensor = torch.from_numpy(part).permute(2, 0, 1)[None]
        if interpolation == "nearest":
            tensor = interpolate(tensor, size=size, mode="nearest-exact")
        else:
            tensor = interpolate(tensor, size=size, mode=interpolation, antialias=True)
        part = tensor[0].permute(1, 2, 0).numpy()
    return part[:, ::-1] if mirrored else part


def fitted_box(there: tuple[int, int], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom, in pixels, of the largest centred part of an image of ``there`` with the shape of ``size``.

    Sizes are (height, width). The box lies within the image, whatever rounding does: PIL refuses one that doesn't.
    """
    height, width = there
    scale = min(width / size[1], height / size[0])
    crop_width, crop_height = scale * size[1], scale * size[0]
    left, top = max(0.0, (width - crop_width) / 2), max(0.0, (height - crop_height) / 2)
    return left, top, min(width, left + crop_width), min(height, top + crop_height)


def fit_and_crop(
    image: Image.Image | Picture, size: tuple[int, int], interpolation: Interpolation = "bicubic"
) -> Picture:
    """The largest centred part of an image with the shape of ``size`` (height, width), resized to it: (H, W, C)."""
    picture = picture_of(image) if isinstance(image, Image.Image) else image
    height, width = picture.shape[:2]
    if (height, width) == size:
        return picture
    box = fitted_box((height, width), size)
    return resized_part(image, box, size, interpolation)


def resized_part(
    image: Image.Image | Picture,
    box: tuple[float, float, float, float],
    size: tuple[int, int],
    interpolation: str = "bicubic",
) -> Picture:
    """The part of an image in ``box`` (left, top, right, bottom) resized to ``size`` (height, width) by PIL: (H, W, C)."""
    where, how = (size[1], size[0]), _resampling(interpolation)
    if isinstance(image, Image.Image) or (image.dtype == np.uint8 and image.shape[2] in (1, 3)):
        whole = image if isinstance(image, Image.Image) else _image(image)
        return picture_of(whole.resize(where, how, box=box))
    bands = [Image.fromarray(np.ascontiguousarray(image[:, :, band])) for band in range(image.shape[2])]
    return np.stack([np.asarray(band.resize(where, how, box=box)) for band in bands], axis=2)


def _image(picture: Picture) -> Image.Image:
    """The PIL image of a picture of 1 or 3 channels of 8 bits, or 1 of floats."""
    return Image.fromarray(np.ascontiguousarray(picture[:, :, 0] if picture.shape[2] == 1 else picture))


def _resampling(interpolation: str) -> Image.Resampling:
    return Image.Resampling[interpolation.upper()]


def statistics_sample(count: int, limit: int = 2000, seed: int = 0) -> NDArray[np.int64]:
    """The numbers of the images, of ``count``, that statistics are taken of."""
    return stream(seed, "statistics").permutation(count)[:limit]


def channel_statistics(
    images: ImageSet, channels: int, *, limit: int = 2000, seed: int = 0, form: PixelFormat | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation a channel, on the scale [0, 1], over at most ``limit`` images drawn by ``seed``.

    With ``form`` of all channels and bits, where 0 and 1 are the ends of its value range, and without the broken images.
    """
    numbers = statistics_sample(len(images), limit, seed)
    low, high = (0.0, 255.0) if form is None or form.value_range is None else form.value_range
    count, total, squares = 0, np.zeros(channels), np.zeros(channels)
    for number in numbers:
        if form is None:
            stored = to_array(images.open(int(number)), channels)
        else:
            try:
                stored = to_array(opened(images, int(number), form).pixels(), channels)
            except DataError:
                continue  # it will be found, named and counted when it is trained on
        pixels = (stored.reshape(channels, -1).astype(np.float64) - low) / (high - low)
        count += pixels.shape[1]
        total += pixels.sum(axis=1)
        squares += np.square(pixels).sum(axis=1)
    if count == 0:
        raise DataError(f"none of {len(numbers)} images could be opened for their mean and deviation.")
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return tuple(float(value) for value in mean), tuple(max(float(value), 1e-3) for value in std)
