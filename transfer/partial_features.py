"""Features of images while they are computed: in a folder beside the result, from which a stopped command goes on."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.compute_types import Precision
from ..core.data.images import FileBacked
from ..core.errors import MaeliftError
from ..core.files import atomic_write_text, exclusive_lock, output_folder, read_regular_text
from ..core.models.contract import content_hash
from ..core.models.pooling import Pooling
from .embed_images import FittedEncoder, NamedImages

logger = logging.getLogger("maelift")

SAVE_SECONDS = 30.0
"""Seconds between two moments from which a stopped command can go on."""
VERSION = 1
"""Raised whenever a change of the code would change the features."""
VECTORS, PROGRESS = "features.npy", "progress.json"


@dataclass
class PartialFeatures:
    """The features of the first ``done`` images, in the rows of ``vectors`` (N, D) float32; those of broken images mean nothing.

    ``rejected``: number and reason of each broken image. ``unusual``: how many images have the same notes, and the number of the
    first, by the notes.
    """

    folder: Path
    request: str
    vectors: NDArray[np.float32]
    done: int
    rejected: list[tuple[int, str]]
    unusual: dict[str, tuple[int, int]]

    @classmethod
    @contextmanager
    def open(cls, out: Path, request: str | None, shape: tuple[int, int]) -> Iterator[PartialFeatures]:
        """What has been computed for ``out`` by this ``request``, or nothing yet; locked for one command.

        ``request``: a hash of all that the features depend on; None where that isn't known, so that nothing is reused. The
        caller removes the folder when the result is written.
        """
        folder = out.with_name(f".{out.name}.partial")
        output_folder(folder)
        with exclusive_lock(folder):
            yield cls._stored(folder, request, shape) or cls._new(folder, request or "", shape)

    @classmethod
    def _stored(cls, folder: Path, request: str | None, shape: tuple[int, int]) -> PartialFeatures | None:
        """What an earlier command has left; None where it was another, or is damaged."""
        try:
            stored = json.loads(read_regular_text(folder / PROGRESS))
            if request is None or stored["request"] != request:
                logger.info("embed: %s is of other images or another encoder; starting again", folder)
                return None
            vectors = np.load(folder / VECTORS, mmap_mode="r+", allow_pickle=False)
            rejected = [(int(number), str(text)) for number, text in stored["rejected"]]
            unusual = {str(notes): (int(count), int(first)) for notes, (count, first) in stored["unusual"].items()}
            done = int(stored["done"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError):
            return None
        if vectors.shape != shape or vectors.dtype != np.float32 or not 0 <= done <= shape[0]:
            return None
        logger.info("embed: going on after %s of %s images", f"{done:,}", f"{shape[0]:,}")
        return cls(folder, request, vectors, done, rejected, unusual)

    @classmethod
    def _new(cls, folder: Path, request: str, shape: tuple[int, int]) -> PartialFeatures:
        needed, free = 4 * shape[0] * shape[1], shutil.disk_usage(folder).free
        if free < 2 * needed:  # these, and the result
            raise MaeliftError(
                f"out: the features of {shape[0]:,} images take twice {needed / 1e9:.1f} GB while they are written, and "
                f"{folder.parent} has {free / 1e9:.1f} GB free. Give out on a larger disk."
            )
        (folder / PROGRESS).unlink(missing_ok=True)
        vectors = np.lib.format.open_memmap(folder / VECTORS, mode="w+", dtype=np.float32, shape=shape)
        return cls(folder, request, vectors, 0, [], {})

    def note(self, number: int, notes: str) -> None:
        """Count an image that is unusual."""
        count, first = self.unusual.get(notes, (0, number))
        self.unusual[notes] = (count + 1, first)

    def save(self) -> None:
        """Write to disk what is done so far."""
        if isinstance(self.vectors, np.memmap):
            self.vectors.flush()
        content = {"request": self.request, "done": self.done, "rejected": self.rejected, "unusual": self.unusual}
        atomic_write_text(self.folder / PROGRESS, json.dumps(content))

    def saver(self) -> SaveClock:
        """What saves now and then."""
        return SaveClock(self, time.monotonic())

    def kept(self) -> NDArray[np.int64]:
        """The numbers of the images that aren't broken."""
        sound = np.ones(len(self.vectors), dtype=bool)
        sound[[number for number, _ in self.rejected]] = False
        return np.flatnonzero(sound)


@dataclass
class SaveClock:
    """Saves features that are being computed every ``SAVE_SECONDS``."""

    features: PartialFeatures
    saved: float

    def tick(self) -> None:
        """Save where it is time."""
        if time.monotonic() - self.saved >= SAVE_SECONDS:
            self.features.save()
            self.saved = time.monotonic()


def request_hash(
    fitted: FittedEncoder, images: NamedImages, pooling: Pooling, precision: Precision, device: str
) -> str | None:
    """The hash of all that features depend on: encoder, preprocessing, the images' names and their files' sizes and times.

    None where images aren't files, so that what they contain isn't known before they are read.
    """
    if not isinstance(images.images, FileBacked) or images.images.origin() is None:
        return None
    names = hashlib.sha256("\n".join(images.names).encode("utf-8", "surrogateescape"))
    names.update(np.ascontiguousarray(images.images.file_stats(np.arange(len(images)))).tobytes())
    parts: list[Any] = [
        VERSION,
        content_hash(fitted.encoder.state_dict()),
        asdict(fitted.encoder.spec),
        fitted.encoder.preprocessing.to_json(),
        [pooling, precision, device],
        [images.images.origin(), names.hexdigest()],
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
