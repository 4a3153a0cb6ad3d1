"""A look at images before they are trained on: what they are, which are broken and why; kept, as it takes hours for millions."""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..cache import cache_file, load, save
from ..errors import DataError
from ..files import TableWriter, atomic_write_bytes, safe_cell
from .file_index import RACY_SECONDS, packed, unpacked
from .images import FileBacked, ImageSet, opened
from .pixel_format import FLAT_UNDERNEATH, PLAIN_FORMAT, LazyImage, Picture, PixelFormat, is_flat
from .string_table import StringTable
from .transforms import check_channels

if TYPE_CHECKING:
    from ..distributed import Ranks

FORMAT = "2"
"""Of what is kept, and of how images are decoded: raised when a look would tell something else."""
KEPT_SECONDS = 2.0
"""Looking took so long at least, where what was found is kept."""
KEPT_EVERY = 60.0
"""Seconds between two writings of what was found so far, so that one who is interrupted need not begin anew."""
ROUND = 4096
"""Images that a process looks at before the processes tell each other."""
CHUNK = 32

FLAT_IMAGE, TRANSPARENT = "image of one colour", "transparent image"
"""The kinds of these findings in a data check."""
FLAT_NOTE = "one flat colour"
TRANSPARENCY = "transparency"
"""What a note on transparent pixels begins with."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ImageInfo:
    """What a look at an image found: a hash of its pixels, its channels, (height, width), bits, what is unusual about it and how
    it is read all the same; or the ``reason`` why it is broken."""

    name: str
    content: str = ""
    channels: int = 0
    size: tuple[int, int] = (0, 0)
    bits: int = 8
    notes: tuple[str, ...] = ()
    reason: str = ""


class ImageTable:
    """The looks at N images, of which those that are ``done`` (N,) bool are known; the others have not been looked at."""

    def __init__(self, count: int) -> None:
        self.done = np.zeros(count, dtype=bool)
        self._contents = np.zeros((count, 16), dtype=np.uint8)
        self._shapes = np.zeros((count, 4), dtype=np.int32)  # channels, height, width, bits
        self._told: dict[int, tuple[str, tuple[str, ...]]] = {}

    def put(self, number: int, found: ImageInfo) -> None:
        """Note what a look at an image found."""
        self.done[number] = True
        self._contents[number] = np.frombuffer(bytes.fromhex(found.content or "00" * 16), dtype=np.uint8)
        self._shapes[number] = (found.channels, *found.size, found.bits)
        self._told.pop(number, None)
        if found.reason or found.notes:
            self._told[number] = (found.reason, found.notes)

    def told(self, number: int) -> tuple[str, tuple[str, ...]]:
        """Why an image is broken, "" where it isn't; and what is unusual about it."""
        return self._told.get(number, ("", ()))

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
        told = {str(row): self._told[number] for row, number in enumerate(numbers.tolist()) if number in self._told}
        text = json.dumps(told).encode()
        return {
            "contents": self._contents[numbers],
            "shapes": self._shapes[numbers],
            "told": np.frombuffer(text, dtype=np.uint8),
        }

    @staticmethod
    def joined(parts: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
        """The arrays of several, one after the other."""
        told: dict[str, Any] = {}
        begin = 0
        for part in parts:
            told |= {str(begin + int(row)): said for row, said in json.loads(part["told"].tobytes()).items()}
            begin += len(part["contents"])
        joined = {key: np.concatenate([part[key] for part in parts]) for key in ("contents", "shapes")}
        return {**joined, "told": np.frombuffer(json.dumps(told).encode(), dtype=np.uint8)}

    def take(self, numbers: NDArray[np.int64], rows: NDArray[np.int64], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take over what ``rows`` of the arrays say of images."""
        told = json.loads(arrays["told"].tobytes())
        self._contents[numbers], self._shapes[numbers] = arrays["contents"][rows], arrays["shapes"][rows]
        self.done[numbers] = True
        if told:
            for number, row in zip(numbers.tolist(), rows.tolist(), strict=True):
                if (said := told.get(str(row))) is not None:
                    self._told[number] = (said[0], tuple(said[1]))


@dataclass(frozen=True)
class Manifest:
    """What a look at images found, one entry a sound image; ``rejected`` holds (name, reason) of the others.

    ``hashes`` are of the decoded pixels, the same for one picture in two formats; ``kept`` are the sound images' numbers
    among all; ``channels`` how many each has; ``bits`` the most that a value has; ``unusual``: (name, what was found and
    done) of sound images that may not be what was meant. ``listed``: a hash of the names of all images, where only some
    were looked at.
    """

    names: tuple[str, ...]
    hashes: tuple[str, ...]
    channels: tuple[int, ...]
    kept: tuple[int, ...]
    rejected: tuple[tuple[str, str], ...]
    unusual: tuple[tuple[str, str], ...] = ()
    bits: int = 8
    listed: str | None = None

    @classmethod
    def of(
        cls, looks: ImageTable, images: ImageSet, numbers: NDArray[np.int64] | None = None, listed: str | None = None
    ) -> Manifest:
        """The manifest of the images with these numbers, or of all; each must be done."""
        chosen = np.arange(len(images)) if numbers is None else numbers
        broken = np.array([bool(looks.told(number)[0]) for number in chosen.tolist()], dtype=bool)
        sound = chosen[~broken]
        told = [(number, *looks.told(number)) for number in chosen.tolist() if looks.told(number) != ("", ())]
        return cls(
            names=tuple(_names(images).subset(sound)),
            hashes=tuple(looks.contents(sound)),
            channels=tuple(looks.channels(sound)),
            kept=tuple(sound.tolist()),
            rejected=tuple((images.name(number), reason) for number, reason, _ in told if reason),
            unusual=tuple((images.name(number), "; ".join(notes)) for number, reason, notes in told if not reason),
            bits=looks.bits(sound),
            listed=listed,
        )

    @property
    def gray(self) -> tuple[bool, ...]:
        """Which images are grayscale."""
        return tuple(channels == 1 for channels in self.channels)

    @property
    def digest(self) -> str:
        """A hash of all names and contents, whatever their order; where only some were looked at, of the names in their order
        and of the contents known, marked as that."""
        lines = sorted(f"{name}\t{content}\n" for name, content in zip(self.names, self.hashes, strict=True))
        text = (self.listed or "") + "".join(lines)
        marked = "" if self.listed is None else "names-"
        return marked + hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def audit(
    images: ImageSet,
    max_rejected: float = 0.05,
    progress: Progress | None = None,
    form: PixelFormat | None = None,
    *,
    ranks: Ranks | None = None,
    forget: bool = False,
) -> tuple[ImageSet, Manifest]:
    """Open every image once; the sound ones, and what was found.

    All channels and bits of the files are read as ``form`` says, and one whose channels aren't those asked for is broken;
    without it they are opened as gray or colour, for transfer. ``progress``, ``ranks`` and ``forget`` as for
    ``scan_images``. Raises DataError when the share of broken images is above ``max_rejected``, or when none is sound.
    """
    looks = scan_images(images, form, progress=progress, ranks=ranks, forget=forget)
    manifest = Manifest.of(looks, images)
    check_rejected(manifest.rejected, len(images), max_rejected)
    return (images if not manifest.rejected else images.subset(manifest.kept)), manifest


def scan_images(
    images: ImageSet,
    form: PixelFormat | None = None,
    numbers: NDArray[np.int64] | None = None,
    *,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
    forget: bool = False,
) -> ImageTable:
    """Open the images with these numbers, or all, but for those that are known from before and whose files are the same.

    The processes of ``ranks`` each look at a share and tell the others. ``progress`` is called with (images done, images to be
    looked at). ``forget``: what is known from before doesn't count.
    """
    numbers = np.arange(len(images)) if numbers is None else numbers
    memory = _Memory.of(images, form)
    looks = ImageTable(len(images))
    if memory is not None and not forget:
        looks = (
            memory.recalled(looks, numbers)
            if ranks is None
            else ranks.broadcast(lambda: memory.recalled(looks, numbers))
        )
    missing = numbers[~looks.done[numbers]]
    world, rank = (1, 0) if ranks is None else (ranks.world_size, ranks.rank)
    began, began_ns = time.monotonic(), time.time_ns()
    saved, count = began, 0
    pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
    try:
        for start in range(0, len(missing), ROUND * world):
            mine = missing[start : start + ROUND * world][rank::world].tolist()
            parts = [mine[first : first + CHUNK] for first in range(0, len(mine), CHUNK)]
            found: list[tuple[int, ImageInfo]] = []
            for part in pool.map(lambda part: [(number, look(images, number, form)) for number in part], parts):
                found += part
                count += len(part)
                for number, seen in part:
                    looks.put(number, seen)
                if progress is not None:
                    progress(min(count * world, len(missing)), len(missing))
            for number, seen in [] if ranks is None else ranks.all_gather(found):
                looks.put(number, seen)
            if memory is not None and rank == 0 and time.monotonic() - saved > KEPT_EVERY:
                memory.save(looks, began_ns, forget)
                saved = time.monotonic()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        if memory is not None and rank == 0 and count and time.monotonic() - began > KEPT_SECONDS:
            memory.save(looks, began_ns, forget)
    return looks


def remember(images: ImageSet, form: PixelFormat, found: Sequence[ImageInfo], began: int) -> None:
    """Keep what a look at every image found, which began at ``began`` (ns), for the next ``scan_images`` with this form."""
    if (memory := _Memory.of(images, form)) is None or time.time_ns() - began < KEPT_SECONDS * 1e9:
        return
    looks = ImageTable(len(found))
    for number, seen in enumerate(found):
        reason = ""
        if not seen.reason and form.channels is not None:
            try:
                check_channels(seen.channels, form.channels)
            except DataError as error:
                reason = str(error)
        looks.put(number, ImageInfo(seen.name, reason=reason) if reason else seen)
    memory.save(looks, began, forget=False)


def _names(images: ImageSet) -> StringTable:
    """The names of all images."""
    return images.listed() if isinstance(images, FileBacked) else StringTable.of(map(images.name, range(len(images))))


def _equal(one: StringTable, two: StringTable) -> bool:
    """Whether they are the same names, told without making strings of them."""
    if len(one) != len(two):
        return False
    one, two = one.compact(), two.compact()
    return np.array_equal(one.stops, two.stops) and np.array_equal(one.text, two.text)


@dataclass(frozen=True)
class _Memory:
    """What is kept between runs of looks at images of one origin, read in one form."""

    images: FileBacked
    names: StringTable
    file: Path

    @classmethod
    def of(cls, images: ImageSet, form: PixelFormat | None) -> _Memory | None:
        if not isinstance(images, FileBacked) or (origin := images.origin()) is None:
            return None
        return cls(images, images.listed(), cache_file("looks", FORMAT, origin, repr(form)))

    def recalled(self, looks: ImageTable, numbers: NDArray[np.int64]) -> ImageTable:
        """``looks`` with what is known of images whose files are as they were."""
        found = load(self.file)
        if found is None:
            return looks
        try:
            names, stamps = unpacked("names", found[0]), found[0]["stamps"]
            rows = numbers if _equal(names, self.names) else self._rows(names, numbers)
            there, rows = numbers[rows >= 0], rows[rows >= 0]
            same = (self.images.stamps(there) == stamps[rows]).all(axis=1)
            looks.take(there[same], rows[same], found[0])
        except (KeyError, ValueError, IndexError):
            return ImageTable(len(looks.done))  # of another version, or damaged
        return looks

    def save(self, looks: ImageTable, began: int, forget: bool) -> None:
        """Keep what is known, and what was of others of this origin; not of files that changed just before ``began`` (ns)."""
        done = np.flatnonzero(looks.done)
        stamps = self.images.stamps(done)
        settled = (stamps[:, 1:].max(axis=1, initial=0) < began - RACY_SECONDS * 1e9) & (stamps[:, 0] >= 0)
        done, stamps = done[settled], stamps[settled]
        names, rows = self.names.subset(done), looks.rows(done)
        if not forget and (before := self._before(names)) is not None:
            old_names, old_stamps, old_rows = before
            names, stamps = StringTable.joined([names, old_names]), np.concatenate([stamps, old_stamps])
            rows = ImageTable.joined([rows, old_rows])
        save(self.file, {**packed("names", names), "stamps": stamps, **rows}, {"kind": "looks"})

    def _before(self, names: StringTable) -> tuple[StringTable, NDArray[np.int64], dict[str, NDArray[Any]]] | None:
        """What was kept of other images than these: names, stamps and rows; None of none."""
        found = load(self.file)
        try:
            if found is None or _equal(old := unpacked("names", found[0]), names):
                return None
            here = set(names)
            others = np.array([row for row, name in enumerate(old) if name not in here], dtype=np.int64)
            looks = ImageTable(len(others))
            looks.take(np.arange(len(others)), others, found[0])
            return old.subset(others), found[0]["stamps"][others], looks.rows(np.arange(len(others)))
        except (KeyError, ValueError, IndexError):
            return None  # of another version, or damaged

    def _rows(self, names: StringTable, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where images are among the names, -1 for those that aren't."""
        places = {name: row for row, name in enumerate(names)}
        return np.array([places.get(name, -1) for name in self.names.subset(numbers)], dtype=np.int64)


def check_rejected(rejected: Sequence[tuple[str, str]], count: int, max_rejected: float) -> None:
    """Raise DataError when more of ``count`` images are broken than ``max_rejected`` allows, or all."""
    if rejected and (len(rejected) == count or len(rejected) > max_rejected * count):
        examples = "; ".join(f"{name}: {reason}" for name, reason in rejected[:3])
        raise DataError(
            f"{len(rejected)} of {count} images are broken, more than max_rejected={max_rejected:g} "
            f"allows ({examples}). Mend or remove them, or raise max_rejected."
        )


def look(images: ImageSet, number: int, form: PixelFormat | None = None) -> ImageInfo:
    """Open an image and tell what it is; see ``audit``."""
    name, form = images.name(number), form or PLAIN_FORMAT
    try:
        found = opened(images, number, form)
        picture = found.pixels()
        if form.channels is not None:
            check_channels(picture.shape[2], form.channels)
    except DataError as error:
        reason = str(error).removeprefix(f"{getattr(images, 'root', '')}/{name}: ").removeprefix(f"{name}: ")
        return ImageInfo(name, reason=reason)
    return look_at(name, picture, found)


def look_at(name: str, picture: Picture, found: LazyImage) -> ImageInfo:
    """What is reported of a picture that is decoded; ``found`` is what it was decoded from."""
    height, width, channels = picture.shape
    notes = (*found.notes, *found.decoded_notes, *((FLAT_NOTE,) if is_flat(picture) else ()))
    return ImageInfo(name, pixel_hash(picture), channels, (height, width), found.bits, notes)


def flat_text(clear: Sequence[str]) -> str:
    """What is reported of an image of one colour; ``clear`` says what was made of its transparent pixels."""
    return FLAT_NOTE + (f" with {clear[0]}; another background may show what it holds" if clear else "")


def told_once(images: int, unusual: Sequence[tuple[str, str]]) -> list[str]:
    """What a run says of its images in lines: how many have transparency, and how many show one colour only.

    ``unusual`` holds (name, notes) of some of the ``images``.
    """
    lines = []
    treated = Counter(note for _, notes in unusual for note in notes.split("; ") if note.startswith(TRANSPARENCY))
    for note, count in treated.items():
        if note == FLAT_UNDERNEATH:
            lines.append(f"{count} of {images} images are {FLAT_NOTE} without their transparency")
        else:
            lines.append(f"{count} of {images} images have {note} (background=)")
    flat = [(name, notes) for name, notes in unusual if FLAT_NOTE in notes.split("; ")]
    if flat:
        clear = sum(TRANSPARENCY in notes for _, notes in flat)
        also = f", {clear} of them with transparency: another background may show what they hold" if clear else ""
        lines.append(f"{len(flat)} of {images} images are {FLAT_NOTE} ({flat[0][0]}, for example{also})")
    return lines


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
    writer = TableWriter(table)
    writer.writerow(["path", column])
    writer.writerows((name, safe_cell(text)) for name, text in rejected)
    atomic_write_bytes(path, table.getvalue().encode("utf-8", "surrogateescape"))  # names may be of any bytes
