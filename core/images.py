"""Where pixels come from: folders of image files and idx files, decoded so that one bad file never ends a run."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .config import DataError
from .decoding import (
    ANY_FORMAT,
    ARRAY_SUFFIXES,
    SUFFIXES,
    Opened,
    Picture,
    PixelFormat,
    decode,
    kinds,
    open_picture,
    open_values,
    picture_of,
    plain_mode,
)
from .files import atomic_write_bytes
from .randomness import stream

ASPECT_RATIOS = (3 / 4, 4 / 3)
REDUCTIONS = (8, 4, 2)
"""Factors by which libjpeg decodes at a smaller size."""

Interpolation = Literal["bicubic", "bilinear", "nearest"]
Pixels = NDArray[np.generic]


class ImageSet(Protocol):
    """Images that are opened by number."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What a person knows the image by: its path below the folder, or its number in an idx file."""
        ...

    def open(self, index: int) -> Image.Image | Picture:
        """The upright image in mode "L" or "RGB", or "F" from 0 to 255 for 16-bit gray; of arrays that are none of these, the
        stored values (H, W, C). Raises DataError."""
        ...

    def content(self, index: int) -> bytes | None:
        """The bytes of the image's file, not decoded; None where it is no file but a part of an array. Raises DataError."""
        ...

    def subset(self, indices: Sequence[int]) -> ImageSet:
        """The images with these numbers, in this order."""
        ...

    def default_workers(self) -> int:
        """How many processes it takes to open these images as fast as a model trains on them."""
        ...


@dataclass(frozen=True)
class FolderImages:
    """Image files below ``root``, by their paths relative to it."""

    root: Path
    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return self.paths[index]

    def open(self, index: int) -> Image.Image:
        return decode(self.root / self.paths[index])

    def content(self, index: int) -> bytes:
        path = self.root / self.paths[index]
        try:
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: can't be read ({(error.strerror or '').lower()}).") from error

    def subset(self, indices: Sequence[int]) -> FolderImages:
        return FolderImages(self.root, tuple(self.paths[index] for index in indices))

    def default_workers(self) -> int:
        return min(16, os.cpu_count() or 1)


@dataclass(frozen=True)
class ArrayImages:
    """Images of an idx file: ``array`` (N, H, W) uint8, of which those at ``indices`` are meant."""

    array: NDArray[np.uint8]
    prefix: str
    indices: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return f"{self.prefix}[{self.indices[index]}]"

    def open(self, index: int) -> Image.Image:
        return Image.fromarray(self.array[self.indices[index]])

    def content(self, index: int) -> None:
        return None

    def subset(self, indices: Sequence[int]) -> ArrayImages:
        return ArrayImages(self.array, self.prefix, self.indices[np.asarray(indices, dtype=np.int64)])

    def default_workers(self) -> int:
        return 0


def find_images(data: str | Path, key: str = "data") -> ImageSet:
    """The images in a folder (nested or flat, by sorted path; hidden files left out) or in an idx file.

    A folder with idx files gives the training images. Raises DataError, which names the user's ``key``, when there is
    nothing to be found.
    """
    path = Path(data)
    if path.is_file():
        if not is_idx_images(path):
            raise DataError(f"{key}={path}: a file that is not an idx file of images. Expected that, or a folder.")
        return idx_images(path)
    if not path.is_dir():
        raise DataError(f"{key}={path}: no such folder. Expected a folder of images or an idx file.")
    files = list_files(path)
    suffixes = [Path(name).suffix.lower() for name in files]
    found = [name for name, suffix in zip(files, suffixes, strict=True) if suffix in SUFFIXES]
    found = found or [name for name, suffix in zip(files, suffixes, strict=True) if suffix in ARRAY_SUFFIXES]
    if found:
        return FolderImages(path, tuple(found))
    idx = idx_file(path, "train", "images") or idx_file(path, "", "images")
    if idx is not None:
        return idx_images(idx)
    if not files:
        raise DataError(f"{key}={path}: the folder is empty. Expected images ({kinds()}) or idx files.")
    counts = Counter(suffix or "no suffix" for suffix in suffixes)
    listed = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(5))
    raise DataError(
        f"{key}={path}: no images among its {len(files)} files ({listed}). Expected {kinds()} or idx files."
    )


def list_files(root: Path) -> list[str]:
    """All files below a folder as sorted relative paths, hidden ones left out; raises DataError for unreadable ones."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: can't be read ({(error.strerror or '').lower()}).") from error

    files: list[str] = []
    for folder, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        relative = Path(folder).relative_to(root)
        files.extend((relative / name).as_posix() for name in names if not name.startswith("."))
    return sorted(files)


def idx_file(folder: Path, split: str, content: str) -> Path | None:
    """The idx file of a folder with ``split`` ("train", "t10k") and ``content`` ("images", "labels") in its name."""
    found = [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and f"{content}" in path.name and "idx" in path.name and path.name.startswith(split)
    ]
    return found[0] if found else None


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array of an idx file of bytes, gzipped or not; raises DataError when it isn't one or is cut off."""
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}: can't be read ({error}). Get the file anew.") from error
    if len(content) < 8 or content[:3] != b"\x00\x00\x08":
        raise DataError(f"{path}: not an idx file of bytes. Expected the MNIST format.")
    axes = content[3]
    shape = [int.from_bytes(content[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(axes)]
    begin = 4 + 4 * axes
    if len(content) - begin != math.prod(shape):
        raise DataError(
            f"{path}: {len(content) - begin} bytes of content where its header promises {math.prod(shape)}. "
            "The file is cut off; get it anew."
        )
    return np.frombuffer(content, dtype=np.uint8, offset=begin).reshape(shape)


def is_idx_images(path: Path) -> bool:
    """Whether a file is an idx file, by its first bytes."""
    try:
        with path.open("rb") as file:
            head = file.read(3)
        if head[:2] == b"\x1f\x8b":
            with gzip.open(path) as file:
                head = file.read(3)
    except (OSError, EOFError):
        return False
    return head == b"\x00\x00\x08"


def idx_images(path: Path) -> ArrayImages:
    """The images of an idx file (N, H, W)."""
    array = read_idx(path)
    if array.ndim != 3 or 0 in array.shape:
        raise DataError(f"{path}: an array of shape {array.shape}. Expected images: (count, height, width).")
    return ArrayImages(array, path.name, np.arange(len(array)))


def as_image(image: str | Path | Image.Image | NDArray[np.generic]) -> Image.Image:
    """An image as ``decode`` gives it, of a file, a PIL image, or an array (H, W) or (H, W, C).

    Arrays are uint8, uint16, or floats from 0 to 255. Raises DataError for others.
    """
    if isinstance(image, (str, Path)):
        return decode(Path(image))
    if isinstance(image, Image.Image):
        return image if image.mode == "F" else plain_mode(image)  # "F" is what decode makes of 16-bit gray
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim == 2 and array.dtype.kind == "f":
        return Image.fromarray(array.astype(np.float32))
    if array.dtype == np.uint16 and array.ndim == 2:
        return plain_mode(Image.fromarray(array))
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise DataError(
            f"an array of shape {array.shape} and type {array.dtype}: expected (height, width) of uint8, uint16 or floats "
            "from 0 to 255, or (height, width, 3) of uint8."
        )
    return plain_mode(Image.fromarray(array))


def stored_pixels(image: str | Path | Image.Image | NDArray[np.generic], channels: int) -> NDArray[np.generic]:
    """The stored values (C, H, W) of a path, a PIL image or an array (H, W) or (H, W, C).

    Files and pictures are read as gray or colour, whichever the encoder takes; other channels only arrays can have.
    """
    if channels in (1, 3) or not isinstance(image, np.ndarray):
        return to_array(as_image(image), channels)
    if image.ndim != 3 or image.shape[2] != channels:
        raise DataError(f"an array of shape {image.shape}: expected (height, width, {channels}).")
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def opened(images: ImageSet, index: int, form: PixelFormat = ANY_FORMAT) -> Opened:
    """An image with all its channels and bits, before it is decoded; raises DataError with the reason for a broken one.

    Broken is also what shows nothing: a side of a single pixel.
    """
    return opened_content(images, index, images.content(index), form)


def opened_content(images: ImageSet, index: int, content: bytes | None, form: PixelFormat = ANY_FORMAT) -> Opened:
    """The same where its ``content`` has been read."""
    name = images.name(index)
    found = open_values(images.open(index), form) if content is None else open_picture(Path(name), content, form)
    if min(found.size) < 2:
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
    image: Opened,
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
    top, bottom = (round(value * there[0] / size[0]) for value in (box[0], box[0] + box[2]))
    left, right = (round(value * there[1] / size[1]) for value in (box[1], box[1] + box[3]))
    return top, left, max(1, bottom - top), max(1, right - left)


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


def fit_and_crop(
    image: Image.Image | Picture, size: tuple[int, int], interpolation: Interpolation = "bicubic"
) -> Picture:
    """The largest centred part of an image with the shape of ``size`` (height, width), resized to it: (H, W, C)."""
    picture = picture_of(image) if isinstance(image, Image.Image) else image
    height, width = picture.shape[:2]
    if (height, width) == size:
        return picture
    scale = min(width / size[1], height / size[0])
    crop_width, crop_height = scale * size[1], scale * size[0]
    left, top = (width - crop_width) / 2, (height - crop_height) / 2
    box = (left, top, min(width, left + crop_width), min(height, top + crop_height))
    where, how = (size[1], size[0]), _resampling(interpolation)
    if isinstance(image, Image.Image) or (picture.dtype == np.uint8 and picture.shape[2] in (1, 3)):
        whole = image if isinstance(image, Image.Image) else _image(picture)
        return picture_of(whole.resize(where, how, box=box))
    bands = [Image.fromarray(np.ascontiguousarray(picture[:, :, band])) for band in range(picture.shape[2])]
    return np.stack([np.asarray(band.resize(where, how, box=box)) for band in bands], axis=2)


def _image(picture: Picture) -> Image.Image:
    """The PIL image of a picture of 1 or 3 channels of 8 bits, or 1 of floats."""
    return Image.fromarray(np.ascontiguousarray(picture[:, :, 0] if picture.shape[2] == 1 else picture))


def _resampling(interpolation: Interpolation) -> Image.Resampling:
    return Image.Resampling[interpolation.upper()]


@dataclass(frozen=True)
class Look:
    """What a look at an image found: a hash of its pixels, its channels, (height, width), bits, what is unusual about it and how
    it is read all the same; or the ``reason`` why it is broken."""

    name: str
    content: str = ""
    channels: int = 0
    size: tuple[int, int] = (0, 0)
    bits: int = 8
    notes: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Manifest:
    """What a look at every image found, one entry a sound image; ``rejected`` holds (name, reason) of the others.

    ``hashes`` are of the decoded pixels, the same for one picture in two formats; ``kept`` are the sound images' numbers
    among all; ``channels`` how many each has; ``bits`` the most that a value has; ``unusual``: (name, what was found and
    done) of sound images that may not be what was meant.
    """

    names: tuple[str, ...]
    hashes: tuple[str, ...]
    channels: tuple[int, ...]
    kept: tuple[int, ...]
    rejected: tuple[tuple[str, str], ...]
    unusual: tuple[tuple[str, str], ...] = ()
    bits: int = 8

    @classmethod
    def of(cls, looks: Sequence[Look]) -> Manifest:
        """The manifest of all images' looks, in order."""
        kept = [number for number, look in enumerate(looks) if not look.reason]
        return cls(
            names=tuple(looks[number].name for number in kept),
            hashes=tuple(looks[number].content for number in kept),
            channels=tuple(looks[number].channels for number in kept),
            kept=tuple(kept),
            rejected=tuple((look.name, look.reason) for look in looks if look.reason),
            unusual=tuple(
                (looks[number].name, "; ".join(looks[number].notes)) for number in kept if looks[number].notes
            ),
            bits=max((looks[number].bits for number in kept), default=8),
        )

    @property
    def gray(self) -> tuple[bool, ...]:
        """Which images are grayscale."""
        return tuple(channels == 1 for channels in self.channels)

    @property
    def digest(self) -> str:
        """A hash of all names and contents, whatever their order."""
        lines = sorted(f"{name}\t{content}\n" for name, content in zip(self.names, self.hashes, strict=True))
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def audit(
    images: ImageSet,
    max_rejected: float = 0.05,
    progress: Callable[[int, int], None] | None = None,
    form: PixelFormat | None = None,
) -> tuple[ImageSet, Manifest]:
    """Open every image once; the sound ones, and what was found.

    With ``form`` all channels and bits of the files are read, and one whose channels aren't those asked for is broken;
    else they are opened as gray or colour (``ImageSet.open``). ``progress`` is called with (images done, images in all).
    Raises DataError when the share of broken images is above ``max_rejected``, or when none is sound.
    """
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        looks: list[Look] = []
        for chunk in pool.map(lambda numbers: [look(images, number, form) for number in numbers], _chunks(len(images))):
            looks.extend(chunk)
            if progress is not None:
                progress(len(looks), len(images))
    manifest = Manifest.of(looks)
    check_rejected(manifest.rejected, len(looks), max_rejected)
    return (images if not manifest.rejected else images.subset(manifest.kept)), manifest


def check_rejected(rejected: Sequence[tuple[str, str]], count: int, max_rejected: float) -> None:
    """Raise DataError when more of ``count`` images are broken than ``max_rejected`` allows, or all."""
    if rejected and (len(rejected) == count or len(rejected) > max_rejected * count):
        examples = "; ".join(f"{name}: {reason}" for name, reason in rejected[:3])
        raise DataError(
            f"{len(rejected)} of {count} images are broken, more than max_rejected={max_rejected:g} "
            f"allows ({examples}). Mend or remove them, or raise max_rejected."
        )


def look(images: ImageSet, number: int, form: PixelFormat | None = None) -> Look:
    """Open an image and tell what it is; see ``audit``."""
    name = images.name(number)
    found: Opened | None = None
    try:
        if form is None:
            opened_image = images.open(number)
            picture = picture_of(opened_image) if isinstance(opened_image, Image.Image) else opened_image
        else:
            found = opened(images, number, form)
            picture = found.pixels()
            if form.channels is not None:
                check_channels(picture.shape[2], form.channels)
    except DataError as error:
        reason = str(error).removeprefix(f"{getattr(images, 'root', '')}/{name}: ").removeprefix(f"{name}: ")
        return Look(name, reason=reason)
    return look_at(name, picture, found)


def look_at(name: str, picture: Picture, found: Opened | None = None) -> Look:
    """What is told of a picture that is decoded; ``found`` is what it was decoded from."""
    height, width, channels = picture.shape
    bits, notes = (8, ()) if found is None else (found.bits, found.notes)
    return Look(name, pixel_hash(picture), channels, (height, width), bits, notes)


def pixel_hash(picture: Picture) -> str:
    """A hash of a picture's size and values, 32 hexadecimal digits."""
    height, width, channels = picture.shape
    modes = {("uint8", 1): "L", ("uint8", 3): "RGB", ("float32", 1): "F"}
    mode = modes.get((str(picture.dtype), channels), f"{channels}{picture.dtype}")
    digest = hashlib.blake2b(f"{mode}:{(width, height)};".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(picture).data)
    return digest.hexdigest()


def common_channels(counts: Iterable[int]) -> int:
    """How many channels a run takes for images of so many: 1 where all are gray, 3 for gray and colour, else what all have.

    Raises DataError where they differ otherwise.
    """
    found = Counter(counts)
    if len(found) == 1:
        return next(iter(found))
    if set(found) <= {1, 3}:
        return 3
    listed = ", ".join(f"{count:,} with {channels}" for channels, count in found.most_common(5))
    raise DataError(f"images of different channels ({listed}). Give channels=N; those that have others are left out.")


def write_rejected(path: Path, rejected: Iterable[tuple[str, str]], column: str = "reason") -> None:
    """Write the broken images and the reasons as CSV; or others, and what the ``column`` says of them."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["path", column])
    writer.writerows(rejected)
    atomic_write_bytes(path, table.getvalue().encode("utf-8", "surrogateescape"))  # names may be of any bytes


def channel_statistics(
    images: ImageSet, channels: int, *, limit: int = 2000, seed: int = 0, form: PixelFormat | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation a channel, on the scale [0, 1], over at most ``limit`` images drawn by ``seed``.

    With ``form`` of all channels and bits, where 0 and 1 are the ends of its value range, and without the broken images.
    """
    numbers = stream(seed, "statistics").permutation(len(images))[:limit]
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


def _chunks(count: int, size: int = 64) -> list[range]:
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
