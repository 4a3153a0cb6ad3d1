"""Where pixels come from: folders of image files and idx files, decoded so that one bad file never ends a run."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from .config import DataError
from .files import atomic_write_text
from .randomness import stream

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"})
ASPECT_RATIOS = (3 / 4, 4 / 3)

Interpolation = Literal["bicubic", "bilinear", "nearest"]
Pixels = NDArray[np.generic]


class ImageSet(Protocol):
    """Images that are opened by number."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What a person knows the image by: its path below the folder, or its number in an idx file."""
        ...

    def open(self, index: int) -> Image.Image:
        """The upright image in mode "L" or "RGB", or "F" from 0 to 255 for 16-bit gray; raises DataError."""
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
    found = [name for name in files if Path(name).suffix.lower() in SUFFIXES]
    if found:
        return FolderImages(path, tuple(found))
    idx = idx_file(path, "train", "images") or idx_file(path, "", "images")
    if idx is not None:
        return idx_images(idx)
    if not files:
        raise DataError(f"{key}={path}: the folder is empty. Expected images ({kinds()}) or idx files.")
    suffixes = Counter(Path(name).suffix.lower() or "no suffix" for name in files)
    listed = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(5))
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


def kinds() -> str:
    """The kinds of image files that are read, in words."""
    return ", ".join(sorted(suffix.removeprefix(".") for suffix in SUFFIXES))


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


def decode(path: Path, content: bytes | None = None) -> Image.Image:
    """Open an image file: upright by EXIF, mode "L", "RGB", or "F" from 0 to 255 for 16-bit gray.

    ``content`` are its bytes where it isn't a file of its own, but lies in an archive; ``path`` then names it in errors.

    Palettes are mapped to their colours, transparency is dropped, CMYK is converted, of several frames the first is
    taken. Raises DataError with the reason for a file that can't be decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path if content is None else io.BytesIO(content)) as file:
                file.load()
                image = ImageOps.exif_transpose(file)
                return _plain_mode(image)
    except UnidentifiedImageError as error:
        empty = not content if content is not None else path.stat().st_size == 0
        raise DataError(f"{path}: {'an empty file' if empty else 'not an image, whatever its name says'}") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except (OSError, SyntaxError, ValueError, TypeError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: {error}") from error


def as_image(image: str | Path | Image.Image | NDArray[np.generic]) -> Image.Image:
    """An image as ``decode`` gives it, of a file, a PIL image, or an array (H, W) or (H, W, C).

    Arrays are uint8, uint16, or floats from 0 to 255. Raises DataError for others.
    """
    if isinstance(image, (str, Path)):
        return decode(Path(image))
    if isinstance(image, Image.Image):
        return image if image.mode == "F" else _plain_mode(image)  # "F" is what decode makes of 16-bit gray
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim == 2 and array.dtype.kind == "f":
        return Image.fromarray(array.astype(np.float32))
    if array.dtype == np.uint16 and array.ndim == 2:
        return _plain_mode(Image.fromarray(array))
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise DataError(
            f"an array of shape {array.shape} and type {array.dtype}: expected (height, width) of uint8, uint16 or floats "
            "from 0 to 255, or (height, width, 3) of uint8."
        )
    return _plain_mode(Image.fromarray(array))


def stored_pixels(image: str | Path | Image.Image | NDArray[np.generic], channels: int) -> NDArray[np.generic]:
    """The stored values (C, H, W) of a path, a PIL image or an array (H, W) or (H, W, C).

    Files and pictures are read as gray or colour, whichever the encoder takes; other channels only arrays can have.
    """
    if channels in (1, 3) or not isinstance(image, np.ndarray):
        return to_array(as_image(image), channels)
    if image.ndim != 3 or image.shape[2] != channels:
        raise DataError(f"an array of shape {image.shape}: expected (height, width, {channels}).")
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def _plain_mode(image: Image.Image) -> Image.Image:
    if image.mode in ("L", "RGB"):
        return image.copy()
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float32)
        if values.min() < 0 or values.max() > 65535:
            raise DataError("32-bit pixels have no known range; save it with 8 or 16 bits")
        return Image.fromarray(values * np.float32(255 / 65535))
    if image.mode == "F":
        raise DataError("floating-point pixels have no known range; save it with 8 or 16 bits")
    if image.mode in ("1", "LA", "La"):
        return image.convert("L")
    if image.mode in ("P", "PA"):
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def to_array(image: Image.Image, channels: int) -> Pixels:
    """Pixels (C, H, W), uint8, or float32 from 0 to 255 for 16-bit gray; gray from colour by ITU-R 601."""
    if channels == 1:
        gray = image if image.mode in ("L", "F") else image.convert("L")
        return np.asarray(gray)[None]
    if channels != 3:
        raise DataError(f"image files have 1 or 3 channels, not {channels}. Use channels=1 or channels=3.")
    if image.mode == "F":
        return np.repeat(np.asarray(image)[None], 3, axis=0)
    colour = image if image.mode == "RGB" else image.convert("RGB")
    return np.ascontiguousarray(np.asarray(colour).transpose(2, 0, 1))


def random_resized_crop(
    image: Image.Image,
    size: tuple[int, int],
    draws: NDArray[np.float64],
    scale: tuple[float, float] = (0.2, 1.0),
    interpolation: Interpolation = "bicubic",
) -> Image.Image:
    """A random part of an image resized to ``size`` (height, width), mirrored when the last draw is below 0.5.

    ``draws`` are five numbers in [0, 1): area (uniform within ``scale``), aspect ratio (log-uniform from 3/4 to 4/3),
    place in y and x, mirroring. A crop that would reach beyond the image is cut to it.
    """
    width, height = image.size
    area = width * height * (scale[0] + (scale[1] - scale[0]) * draws[0])
    low, high = (math.log(ratio) for ratio in ASPECT_RATIOS)
    ratio = math.exp(low + (high - low) * draws[1])
    crop_width = min(width, max(1, round(math.sqrt(area * ratio))))
    crop_height = min(height, max(1, round(math.sqrt(area / ratio))))
    top = int((height - crop_height + 1) * draws[2])
    left = int((width - crop_width + 1) * draws[3])
    box = (left, top, left + crop_width, top + crop_height)
    crop = image.resize((size[1], size[0]), _resampling(interpolation), box=box)
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draws[4] < 0.5 else crop


def fit_and_crop(image: Image.Image, size: tuple[int, int], interpolation: Interpolation = "bicubic") -> Image.Image:
    """The largest centred part of an image with the shape of ``size`` (height, width), resized to it."""
    width, height = image.size
    if (height, width) == size:
        return image
    scale = min(width / size[1], height / size[0])
    crop_width, crop_height = scale * size[1], scale * size[0]
    left, top = (width - crop_width) / 2, (height - crop_height) / 2
    box = (left, top, min(width, left + crop_width), min(height, top + crop_height))
    return image.resize((size[1], size[0]), _resampling(interpolation), box=box)


def _resampling(interpolation: Interpolation) -> Image.Resampling:
    return Image.Resampling[interpolation.upper()]


@dataclass(frozen=True)
class Manifest:
    """What a look at every image found, one entry a sound image; ``rejected`` holds (name, reason) of the others.

    ``hashes`` are of the decoded pixels, the same for one picture in two formats; ``kept`` are the sound images'
    numbers among all; ``gray`` says which are grayscale.
    """

    names: tuple[str, ...]
    hashes: tuple[str, ...]
    gray: tuple[bool, ...]
    kept: tuple[int, ...]
    rejected: tuple[tuple[str, str], ...]

    @property
    def digest(self) -> str:
        """A hash of all names and contents, whatever their order."""
        lines = sorted(f"{name}\t{content}\n" for name, content in zip(self.names, self.hashes, strict=True))
        return hashlib.sha256("".join(lines).encode()).hexdigest()


@dataclass(frozen=True)
class _Look:
    name: str
    content: str = ""
    gray: bool = False
    reason: str = ""


def audit(
    images: ImageSet, max_rejected: float = 0.05, progress: Callable[[int, int], None] | None = None
) -> tuple[ImageSet, Manifest]:
    """Open every image once; the sound ones, and what was found.

    ``progress`` is called with (images done, images in all). Raises DataError when the share of broken images is above
    ``max_rejected``, or when none is sound.
    """
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        looks: list[_Look] = []
        for chunk in pool.map(lambda numbers: [_look(images, number) for number in numbers], _chunks(len(images))):
            looks.extend(chunk)
            if progress is not None:
                progress(len(looks), len(images))
    kept = [number for number, look in enumerate(looks) if not look.reason]
    manifest = Manifest(
        names=tuple(looks[number].name for number in kept),
        hashes=tuple(looks[number].content for number in kept),
        gray=tuple(looks[number].gray for number in kept),
        kept=tuple(kept),
        rejected=tuple((look.name, look.reason) for look in looks if look.reason),
    )
    if manifest.rejected and (not kept or len(manifest.rejected) > max_rejected * len(looks)):
        examples = "; ".join(f"{name}: {reason}" for name, reason in manifest.rejected[:3])
        raise DataError(
            f"{len(manifest.rejected)} of {len(looks)} images are broken, more than max_rejected={max_rejected:g} "
            f"allows ({examples}). Mend or remove them, or raise max_rejected."
        )
    return (images if not manifest.rejected else images.subset(kept)), manifest


def write_rejected(path: Path, rejected: Iterable[tuple[str, str]]) -> None:
    """Write the broken images and the reasons as CSV."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["path", "reason"])
    writer.writerows(rejected)
    atomic_write_text(path, table.getvalue())


def channel_statistics(
    images: ImageSet, channels: int, *, limit: int = 2000, seed: int = 0
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation a channel, on the scale [0, 1], over at most ``limit`` images drawn by ``seed``."""
    numbers = stream(seed, "statistics").permutation(len(images))[:limit]
    count, total, squares = 0, np.zeros(channels), np.zeros(channels)
    for number in numbers:
        pixels = to_array(images.open(int(number)), channels).reshape(channels, -1).astype(np.float64) / 255
        count += pixels.shape[1]
        total += pixels.sum(axis=1)
        squares += np.square(pixels).sum(axis=1)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return tuple(float(value) for value in mean), tuple(max(float(value), 1e-3) for value in std)


def _chunks(count: int, size: int = 64) -> list[range]:
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _look(images: ImageSet, number: int) -> _Look:
    name = images.name(number)
    try:
        image = images.open(number)
    except DataError as error:
        return _Look(name, reason=str(error).removeprefix(f"{getattr(images, 'root', '')}/{name}: "))
    pixels = np.asarray(image)
    digest = hashlib.blake2b(f"{image.mode}:{image.size};".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return _Look(name, digest.hexdigest(), gray=image.mode in ("L", "F"))
