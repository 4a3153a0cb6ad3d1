"""Features of a frozen encoder, computed once and saved in a file."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...core.compute_types import Precision
from ...core.data.images import ImageSet
from ...core.data.transforms import fit_and_crop, random_resized_crop, to_array
from ...core.device import autocast
from ...core.distributed import Ranks
from ...core.errors import MaeliftError
from ...core.files import LockedError, check_regular, lock_file, output_folder
from ...core.models.backbone import Backbone
from ...core.models.contract import content_hash
from ...core.models.pooling import Pooling
from ...core.models.probes import pooled_features
from ...core.progress import progress_logger
from ...core.seeding import stream
from ...core.training.worker_loader import load_in_order
from .task import CROP_DRAWS

logger = logging.getLogger("maelift")

FEATURES_VERSION = 2
"""Raised whenever a change of the code would change the saved features."""

EXTRACT_BATCH = 250

LOCK_WAIT = 30.0
"""Seconds between two words about waiting for another process that computes the same features."""

MAX_BYTES_IN_MEMORY = 2**30
"""Features of up to this size in bytes are loaded into memory, on the device; larger ones are read from disk when needed."""


@dataclass(frozen=True, eq=False)
class FeatureRequest:
    """Which features of which images: with the same of all this, a file of features is reused.

    ``tokens``: all patch tokens in float16 instead of one pooled vector in float32. ``crops``: random crops of each image,
    drawn from ``seed``, ``crop_scale`` and ``flip``; 0: the image itself, as it is evaluated. ``manifest``: the hash of what
    the images contain; without it nothing is reused.
    """

    encoder: Backbone
    images: ImageSet
    tokens: bool
    pooling: Pooling = "mean"
    crops: int = 0
    crop_scale: tuple[float, float] = (0.08, 1.0)
    flip: bool = True
    seed: int = 0
    manifest: str = ""
    precision: Precision = "auto"

    @property
    def shape(self) -> tuple[int, ...]:
        """(images × crops, D), or (images × crops, patches, D)."""
        rows, encoder = len(self.images) * max(1, self.crops), self.encoder
        return (
            (rows, encoder.num_tokens, encoder.embed_dim) if self.tokens else (rows, encoder.pooled_dim(self.pooling))
        )

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """float16 for tokens, of which there are many."""
        return np.dtype(np.float16 if self.tokens else np.float32)

    @property
    def nbytes(self) -> int:
        """Bytes that the features take."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def name(self, device: torch.device) -> str:
        """The file's name: a hash of all that the features depend on."""
        names = hashlib.sha256(
            "\n".join(self.images.name(index) for index in range(len(self.images))).encode("utf-8", "surrogateescape")
        )
        drawn = [self.crops, self.crop_scale, self.flip, self.seed] if self.crops else []
        parts = [
            FEATURES_VERSION,
            content_hash(self.encoder.state_dict()),
            asdict(self.encoder.spec),
            self.encoder.preprocessing.to_json(),
            self.manifest,
            names.hexdigest(),
            "tokens" if self.tokens else self.pooling,
            drawn,
            [self.precision, device.type],
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24] + ".npy"

    def pixels(self, row: int) -> NDArray[np.generic]:
        """The pixels (C, H, W) of the features in a row."""
        spec, form = self.encoder.spec, self.encoder.preprocessing.reading
        if not self.crops:
            return to_array(fit_and_crop(self.images.open(row, form), spec.image_size), spec.channels)
        index, crop = divmod(row, self.crops)
        draws = stream(self.seed, "feature crops", index, crop).random(CROP_DRAWS)
        draws = draws if self.flip else np.append(draws[:4], 1.0)
        crop_image = random_resized_crop(self.images.open(index, form), spec.image_size, draws, self.crop_scale)
        return to_array(crop_image, spec.channels)


def cached_features(
    wanted: FeatureRequest, folder: Path, ranks: Ranks, *, workers: int = 0, what: str = "images"
) -> NDArray[np.generic]:
    """The features of images, ``wanted.shape``, mapped from a file in ``folder``; computed only when it isn't there.

    The processes of ``ranks`` share the work, and ``folder``; other commands that want the same features meanwhile wait for
    them. Raises MaeliftError when they don't fit on the disk.
    """
    path = folder / wanted.name(ranks.device)
    if (stored := _reusable(path, wanted, ranks, what)) is not None:
        return stored
    with ExitStack() as locks:
        ranks.broadcast(lambda: output_folder(folder))
        begun = time.monotonic()
        while not ranks.broadcast(lambda: _locked(path.with_suffix(".lock"), locks)):
            waited = time.monotonic() - begun
            logger.info("features of %s: another process computes them; waiting for %.0f s", what, waited)
        if (stored := _reusable(path, wanted, ranks, what)) is not None:
            return stored
        return _compute(wanted, path, ranks, workers, what)


def _locked(path: Path, locks: ExitStack) -> bool:
    """Whether a lock was got, for as long as ``locks`` is open, within LOCK_WAIT seconds."""
    try:
        locks.enter_context(lock_file(path, LOCK_WAIT))
    except LockedError:
        return False
    return True


def _reusable(path: Path, wanted: FeatureRequest, ranks: Ranks, what: str) -> NDArray[np.generic] | None:
    """The features that were saved before; None, on all of ``ranks``, where one of them finds none, or damaged ones."""
    stored = _mapped(path, wanted) if wanted.manifest else None
    if ranks.any(stored is None):
        if wanted.manifest and path.exists():
            logger.warning("features of %s: %s is damaged and is recomputed", what, path)
        return None
    logger.info("features of %s: %s is reused", what, path)
    return stored


def _compute(wanted: FeatureRequest, path: Path, ranks: Ranks, workers: int, what: str) -> NDArray[np.generic]:
    """Compute features into ``path``, by way of a file of another name; called by one command at a time."""
    part, folder = path.with_suffix(".part"), path.parent

    def allocate() -> None:
        if (free := shutil.disk_usage(folder).free) < wanted.nbytes:
            raise MaeliftError(
                f"features of {what}: they take {wanted.nbytes / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB free. "
                "Give cache=FOLDER on a larger disk, or features of one vector an image (method=linear or knn)."
            )
        part.unlink(missing_ok=True)
        np.lib.format.open_memmap(part, mode="w+", dtype=wanted.dtype, shape=wanted.shape).flush()

    ranks.broadcast(allocate)
    file = cast("np.memmap[tuple[int, ...], np.dtype[np.floating]]", np.lib.format.open_memmap(part, mode="r+"))
    first, last = (wanted.shape[0] * share // ranks.world_size for share in (ranks.rank, ranks.rank + 1))
    _extract(wanted, range(first, last), file, ranks.device, workers, f"features of {what}")
    file.flush()
    ranks.barrier()
    if ranks.is_main:
        part.replace(path)
    ranks.barrier()
    found = _mapped(path, wanted)
    ranks.barrier()
    if found is None:
        raise MaeliftError(f"features of {what}: {path} can't be read again. Give cache=FOLDER on another disk.")
    return found


def _mapped(path: Path, wanted: FeatureRequest) -> NDArray[np.generic] | None:
    """The features of a file; None where it isn't theirs, by its type, its shape and its length."""
    try:
        check_regular(path)
        found: NDArray[np.generic] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, RecursionError, MemoryError):
        return None
    return found if found.shape == wanted.shape and found.dtype == wanted.dtype else None


@torch.inference_mode()
def _extract(
    wanted: FeatureRequest,
    rows: range,
    file: NDArray[np.generic],
    device: torch.device,
    workers: int,
    title: str,
) -> None:
    """Compute the features of ``rows`` into ``file``."""
    encoder = wanted.encoder.to(device).eval()
    log_progress = progress_logger(title)
    chunks = [rows[start : start + EXTRACT_BATCH] for start in range(0, len(rows), EXTRACT_BATCH)]

    def load(number: int) -> Tensor:
        return torch.from_numpy(np.stack([wanted.pixels(row) for row in chunks[number]]))

    def compute(pixels: Tensor) -> Tensor:
        if not wanted.tokens:
            return pooled_features(encoder, pixels, wanted.pooling, wanted.precision)
        with autocast(device, wanted.precision):
            return encoder.forward_features(encoder.preprocessing.normalize(pixels)).tokens

    for chunk, pixels in zip(chunks, load_in_order(load, len(chunks), workers), strict=True):
        result = compute(pixels.to(device))
        file[chunk.start : chunk.stop] = result.float().cpu().numpy().astype(wanted.dtype)
        log_progress(chunk.stop - rows.start, len(rows))


class FeatureRows:
    """Features by row number: on the device where they are few, else read from their file as they are asked for."""

    def __init__(self, file: NDArray[np.generic], device: torch.device) -> None:
        self._file, self._device = file, device
        fits = file.nbytes <= MAX_BYTES_IN_MEMORY
        self._in_memory = torch.from_numpy(np.array(file)).to(device) if fits else None

    def __len__(self) -> int:
        return len(self._file)

    def take(self, rows: Tensor) -> Tensor:
        """The features at ``rows`` (B,) int64, float32, on the device."""
        if self._in_memory is not None:
            return self._in_memory[rows].float()
        return torch.from_numpy(np.asarray(self._file[rows.cpu().numpy()])).to(self._device).float()

    def batches(self, size: int) -> list[Tensor]:
        """The row numbers of all features in order, ``size`` at a time."""
        return list(torch.split(torch.arange(len(self), device=self._device), size))

    def all(self) -> Tensor:
        """All features, float32, on the CPU."""
        return torch.from_numpy(np.array(self._file)).float()
