"""What each image of a set is like: opened once, in parallel, and cached, as it takes hours for millions."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cache import cache_file, load, save
from ..errors import DataError
from ..processes import Processes
from .file_index import RACY_SECONDS, packed_strings, unpacked_strings
from .images import FileBacked, ImageSet, opened
from .pixel_format import PLAIN_FORMAT, LazyImage, Picture, PixelFormat, is_flat
from .string_table import StringTable
from .transforms import check_channels

FORMAT = "3"
"""Of the cache, and of how images are decoded: raised when a scan would find something else."""

CACHED_SECONDS = 2.0
"""Scans that take so long are cached."""

SAVE_SECONDS = 60.0
"""Seconds between two writings of what was found so far, so that an interrupted scan goes on from there."""

ROUND = 4096
"""Images that a process scans before the processes exchange what they found."""

CHUNK = 32

FLAT_NOTE = "one flat colour"

TRANSPARENCY = "transparency"
"""What a note on transparent pixels begins with."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ImageInfo:
    """What an image is like: a hash of its pixels, its channels, (height, width), bits, what is unusual about it and how it is
    read all the same; or the ``reason`` why it is broken."""

    name: str
    content: str = ""
    channels: int = 0
    size: tuple[int, int] = (0, 0)
    bits: int = 8
    notes: tuple[str, ...] = ()
    reason: str = ""


class ImageTable:
    """What is known of N images, those that are ``done`` (N,) bool; the others have not been opened."""

    def __init__(self, count: int) -> None:
        self.done = np.zeros(count, dtype=bool)
        self._contents = np.zeros((count, 16), dtype=np.uint8)
        self._shapes = np.zeros((count, 4), dtype=np.int32)  # channels, height, width, bits
        self._remarks: dict[int, tuple[str, tuple[str, ...]]] = {}

    def set(self, number: int, found: ImageInfo) -> None:
        """Set what an image is like."""
        self.done[number] = True
        self._contents[number] = np.frombuffer(bytes.fromhex(found.content or "00" * 16), dtype=np.uint8)
        self._shapes[number] = (found.channels, *found.size, found.bits)
        self._remarks.pop(number, None)
        if found.reason or found.notes:
            self._remarks[number] = (found.reason, found.notes)

    def remarks(self, number: int) -> tuple[str, tuple[str, ...]]:
        """Why an image is broken, "" where it isn't; and what is unusual about it."""
        return self._remarks.get(number, ("", ()))

    def contents(self, numbers: NDArray[np.int64]) -> list[str]:
        """The hashes of images' pixels."""
        text = self._contents[numbers].tobytes().hex()
        return [text[start : start + 32] for start in range(0, len(text), 32)]

    def channels(self, numbers: NDArray[np.int64]) -> list[int]:
        """How many channels images have."""
        channels: list[int] = self._shapes[numbers, 0].tolist()
        return channels

    def bits(self, numbers: NDArray[np.int64]) -> int:
        """The most bits that a value of images has; 8 of none."""
        return int(self._shapes[numbers, 3].max(initial=8))

    def rows(self, numbers: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """What is known of these images as arrays."""
        remarks = {
            str(row): self._remarks[number] for row, number in enumerate(numbers.tolist()) if number in self._remarks
        }
        text = json.dumps(remarks).encode()
        return {
            "contents": self._contents[numbers],
            "shapes": self._shapes[numbers],
            "remarks": np.frombuffer(text, dtype=np.uint8),
        }

    @staticmethod
    def joined(parts: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
        """The arrays of several, one after the other."""
        remarks: dict[str, Any] = {}
        begin = 0
        for part in parts:
            remarks |= {str(begin + int(row)): said for row, said in json.loads(part["remarks"].tobytes()).items()}
            begin += len(part["contents"])
        joined = {key: np.concatenate([part[key] for part in parts]) for key in ("contents", "shapes")}
        return {**joined, "remarks": np.frombuffer(json.dumps(remarks).encode(), dtype=np.uint8)}

    def set_rows(self, numbers: NDArray[np.int64], rows: NDArray[np.int64], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Set images from ``rows`` of the arrays."""
        remarks = json.loads(arrays["remarks"].tobytes())
        self._contents[numbers], self._shapes[numbers] = arrays["contents"][rows], arrays["shapes"][rows]
        self.done[numbers] = True
        if remarks:
            for number, row in zip(numbers.tolist(), rows.tolist(), strict=True):
                if (said := remarks.get(str(row))) is not None:
                    self._remarks[number] = (said[0], tuple(said[1]))


def scan_images(
    images: ImageSet,
    form: PixelFormat | None = None,
    numbers: NDArray[np.int64] | None = None,
    *,
    progress: Progress | None = None,
    ranks: Processes | None = None,
    forget: bool = False,
) -> ImageTable:
    """Open the images with these numbers, or all, except those that are cached and whose files have not changed.

    The processes of ``ranks`` each open a share and exchange what they found. ``progress`` is called with (images done, images
    to open). ``forget``: ignore what is cached.
    """
    numbers = np.arange(len(images)) if numbers is None else numbers
    cache = _ScanCache.of(images, form)
    table = ImageTable(len(images))
    if cache is not None and not forget:
        table = cache.load(table, numbers) if ranks is None else ranks.broadcast(lambda: cache.load(table, numbers))
    missing = numbers[~table.done[numbers]]
    world, rank = (1, 0) if ranks is None else (ranks.world_size, ranks.rank)
    began, began_ns = time.monotonic(), time.time_ns()
    saved, count = began, 0
    pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
    try:
        for start in range(0, len(missing), ROUND * world):
            mine = missing[start : start + ROUND * world][rank::world].tolist()
            parts = [mine[first : first + CHUNK] for first in range(0, len(mine), CHUNK)]
            found: list[tuple[int, ImageInfo]] = []
            for part in pool.map(
                lambda part: [(number, read_image_info(images, number, form)) for number in part], parts
            ):
                found += part
                count += len(part)
                for number, seen in part:
                    table.set(number, seen)
                if progress is not None:
                    progress(min(count * world, len(missing)), len(missing))
            for number, seen in [] if ranks is None else ranks.all_gather(found):
                table.set(number, seen)
            if cache is not None and rank == 0 and time.monotonic() - saved > SAVE_SECONDS:
                cache.save(table, began_ns, forget)
                saved = time.monotonic()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        if cache is not None and rank == 0 and count and time.monotonic() - began > CACHED_SECONDS:
            cache.save(table, began_ns, forget)
    return table


def cache_scan(images: ImageSet, form: PixelFormat, found: Sequence[ImageInfo], began: int) -> None:
    """Cache what a scan of every image found, which began at ``began`` (ns), for the next ``scan_images`` with this form."""
    if (cache := _ScanCache.of(images, form)) is None or time.time_ns() - began < CACHED_SECONDS * 1e9:
        return
    table = ImageTable(len(found))
    for number, seen in enumerate(found):
        reason = ""
        if not seen.reason and form.channels is not None:
            try:
                check_channels(seen.channels, form.channels)
            except DataError as error:
                reason = str(error)
        table.set(number, ImageInfo(seen.name, reason=reason) if reason else seen)
    cache.save(table, began, forget=False)


def image_names(images: ImageSet) -> StringTable:
    """The names of all images."""
    return images.listed() if isinstance(images, FileBacked) else StringTable.of(map(images.name, range(len(images))))


def _same_names(one: StringTable, two: StringTable) -> bool:
    """Whether they are the same names, compared without making strings of them."""
    if len(one) != len(two):
        return False
    one, two = one.compact(), two.compact()
    return np.array_equal(one.stops, two.stops) and np.array_equal(one.text, two.text)


@dataclass(frozen=True)
class _ScanCache:
    """The cache of scans of images of one origin, read in one form."""

    images: FileBacked
    names: StringTable
    file: Path

    @classmethod
    def of(cls, images: ImageSet, form: PixelFormat | None) -> _ScanCache | None:
        if not isinstance(images, FileBacked) or (origin := images.origin()) is None:
            return None
        return cls(images, images.listed(), cache_file("scans", FORMAT, origin, repr(form)))

    def load(self, table: ImageTable, numbers: NDArray[np.int64]) -> ImageTable:
        """``table`` with what is cached of images whose files have not changed."""
        found = load(self.file)
        if found is None:
            return table
        try:
            names, stats = unpacked_strings("names", found[0]), found[0]["stats"]
            rows = numbers if _same_names(names, self.names) else self._rows(names, numbers)
            there, rows = numbers[rows >= 0], rows[rows >= 0]
            same = (self.images.file_stats(there) == stats[rows]).all(axis=1)
            table.set_rows(there[same], rows[same], found[0])
        except (KeyError, ValueError, IndexError):
            return ImageTable(len(table.done))  # of another version, or damaged
        return table

    def save(self, table: ImageTable, began: int, forget: bool) -> None:
        """Save what is known, and what was cached of other images; not of files that changed just before ``began`` (ns)."""
        done = np.flatnonzero(table.done)
        stats = self.images.file_stats(done)
        settled = (stats[:, 1:].max(axis=1, initial=0) < began - RACY_SECONDS * 1e9) & (stats[:, 0] >= 0)
        done, stats = done[settled], stats[settled]
        names, rows = self.names.subset(done), table.rows(done)
        if not forget and (before := self._before(names)) is not None:
            old_names, old_stats, old_rows = before
            names, stats = StringTable.joined([names, old_names]), np.concatenate([stats, old_stats])
            rows = ImageTable.joined([rows, old_rows])
        save(self.file, {**packed_strings("names", names), "stats": stats, **rows}, {"kind": "scan"})

    def _before(self, names: StringTable) -> tuple[StringTable, NDArray[np.int64], dict[str, NDArray[Any]]] | None:
        """What was cached of other images than these: names, stats and rows; None of none."""
        found = load(self.file)
        try:
            if found is None or _same_names(old := unpacked_strings("names", found[0]), names):
                return None
            here = set(names)
            others = np.array([row for row, name in enumerate(old) if name not in here], dtype=np.int64)
            table = ImageTable(len(others))
            table.set_rows(np.arange(len(others)), others, found[0])
            return old.subset(others), found[0]["stats"][others], table.rows(np.arange(len(others)))
        except (KeyError, ValueError, IndexError):
            return None  # of another version, or damaged

    def _rows(self, names: StringTable, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where images are among the names, -1 for those that aren't."""
        places = {name: row for row, name in enumerate(names)}
        return np.array([places.get(name, -1) for name in self.names.subset(numbers)], dtype=np.int64)


def read_image_info(images: ImageSet, number: int, form: PixelFormat | None = None) -> ImageInfo:
    """Open an image and describe it; a broken one gets the reason why."""
    name, form = images.name(number), form or PLAIN_FORMAT
    try:
        found = opened(images, number, form)
        picture = found.pixels()
        if form.channels is not None:
            check_channels(picture.shape[2], form.channels)
    except DataError as error:
        reason = str(error).removeprefix(f"{getattr(images, 'root', '')}/{name}: ").removeprefix(f"{name}: ")
        return ImageInfo(name, reason=reason)
    return image_info(name, picture, found)


def image_info(name: str, picture: Picture, found: LazyImage) -> ImageInfo:
    """The description of a decoded image; ``found`` is what it was decoded from."""
    height, width, channels = picture.shape
    notes = (*found.notes, *found.decoded_notes, *((FLAT_NOTE,) if is_flat(picture) else ()))
    return ImageInfo(name, pixel_hash(picture), channels, (height, width), found.bits, notes)


def pixel_hash(picture: Picture) -> str:
    """A hash of a picture's size and values, 32 hexadecimal digits."""
    height, width, channels = picture.shape
    modes = {("uint8", 1): "L", ("uint8", 3): "RGB", ("float32", 1): "F"}
    mode = modes.get((str(picture.dtype), channels), f"{channels}{picture.dtype}")
    digest = hashlib.blake2b(f"{mode}:{(width, height)};".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(picture).data)
    return digest.hexdigest()
