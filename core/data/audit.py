"""The audit of images before training: which are sound, which are broken and why, and what is unusual."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..files import TableWriter, atomic_write_bytes, safe_cell
from ..processes import Processes
from .image_scan import FLAT_NOTE, TRANSPARENCY, ImageTable, Progress, image_names, scan_images
from .images import ImageSet
from .pixel_format import FLAT_UNDERNEATH, PixelFormat

FLAT_IMAGE, TRANSPARENT = "image of one colour", "transparent image"
"""The kinds of these findings in a data check."""


@dataclass(frozen=True)
class Manifest:
    """What a scan of images found, one entry a sound image; ``rejected`` holds (name, reason) of the others.

    ``hashes`` are of the decoded pixels, the same for one picture in two formats; ``kept`` are the sound images' numbers
    among all; ``channels`` how many each has; ``bits`` the most that a value has; ``unusual``: (name, what was found and
    done) of sound images that may not be what was meant. ``listed``: a hash of the names of all images, where only some
    were scanned.
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
        cls, table: ImageTable, images: ImageSet, numbers: NDArray[np.int64] | None = None, listed: str | None = None
    ) -> Manifest:
        """The manifest of the images with these numbers, or of all; each must be done."""
        chosen = np.arange(len(images)) if numbers is None else numbers
        broken = np.array([bool(table.remarks(number)[0]) for number in chosen.tolist()], dtype=bool)
        sound = chosen[~broken]
        remarks = [(number, *table.remarks(number)) for number in chosen.tolist() if table.remarks(number) != ("", ())]
        return cls(
            names=tuple(image_names(images).subset(sound)),
            hashes=tuple(table.contents(sound)),
            channels=tuple(table.channels(sound)),
            kept=tuple(sound.tolist()),
            rejected=tuple((images.name(number), reason) for number, reason, _ in remarks if reason),
            unusual=tuple((images.name(number), "; ".join(notes)) for number, reason, notes in remarks if not reason),
            bits=table.bits(sound),
            listed=listed,
        )

    @property
    def gray(self) -> tuple[bool, ...]:
        """Which images are grayscale."""
        return tuple(channels == 1 for channels in self.channels)

    @property
    def digest(self) -> str:
        """A hash of all names and contents, whatever their order; where only some were scanned, of the names in their order
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
    ranks: Processes | None = None,
    forget: bool = False,
) -> tuple[ImageSet, Manifest]:
    """Open every image once; the sound ones, and what was found.

    All channels and bits of the files are read as ``form`` says, and one whose channels aren't those asked for is broken;
    without it they are opened as gray or colour, for transfer. ``progress``, ``ranks`` and ``forget`` as for
    ``scan_images``. Raises DataError when the share of broken images is above ``max_rejected``, or when none is sound.
    """
    table = scan_images(images, form, progress=progress, ranks=ranks, forget=forget)
    manifest = Manifest.of(table, images)
    check_rejected(manifest.rejected, len(images), max_rejected)
    return (images if not manifest.rejected else images.subset(manifest.kept)), manifest


def check_rejected(rejected: Sequence[tuple[str, str]], count: int, max_rejected: float) -> None:
    """Raise DataError when more of ``count`` images are broken than ``max_rejected`` allows, or all."""
    if rejected and (len(rejected) == count or len(rejected) > max_rejected * count):
        examples = "; ".join(f"{name}: {reason}" for name, reason in rejected[:3])
        raise DataError(
            f"{len(rejected)} of {count} images are broken, more than max_rejected={max_rejected:g} "
            f"allows ({examples}). Repair or remove them, or raise max_rejected."
        )


def flat_text(clear: Sequence[str]) -> str:
    """What is reported of an image of one colour; ``clear`` says what was made of its transparent pixels."""
    return FLAT_NOTE + (f" with {clear[0]}; another background may show what it holds" if clear else "")


def summary_lines(images: int, unusual: Sequence[tuple[str, str]]) -> list[str]:
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


def named_broken(count: int, file: Path) -> str:
    """The end of a sentence on a result: how many broken images are left out, and the file that names them; "" for none."""
    what = "1 broken image is" if count == 1 else f"{count} broken images are"
    return f"; {what} named in {file}" if count else ""


def write_rejected(path: Path, rejected: Iterable[tuple[str, str]], column: str = "reason") -> None:
    """Write the broken images and the reasons as CSV; or others, and what the ``column`` says of them."""
    table = io.StringIO()
    writer = TableWriter(table)
    writer.writerow(["path", column])
    writer.writerows((name, safe_cell(text)) for name, text in rejected)
    atomic_write_bytes(path, table.getvalue().encode("utf-8", "surrogateescape"))  # names may be of any bytes
