"""``maelift embed``: features of any images from an encoder, as a file and as a page, with their nearest neighbours."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.data.audit import named_broken, summary_lines, write_rejected
from ..core.data.composite import Display
from ..core.device import choose_device
from ..core.dry_run import Plan
from ..core.errors import ConfigError, DataError, MaeliftError
from ..core.files import output_folder
from ..core.models.pooling import Pooling
from ..core.models.probes import pooled_features
from ..core.progress import progress_logger
from ..core.public_names import public_name
from ..core.training.worker_loader import load_in_order
from ..version import __version__
from .embed_config import EmbedConfig
from .embed_images import CONVERTED, FittedEncoder, NamedImages, read_inputs
from .feature_files import FeatureTable, check_format, read_features, write_features
from .neighbours import nearest_neighbours
from .partial_features import PartialFeatures, request_hash

logger = logging.getLogger("maelift")

Batch = tuple[list[int], Tensor | None, list[tuple[int, str]], list[tuple[int, str]]]
"""Numbers of sound images, their pixels (B, C, H, W), and (number, text) of broken and of unusual ones."""


@dataclass(frozen=True)
class EmbedResult:
    """Where the features and their page are, of how many images, and how many could not be read; the content is read when asked
    for."""

    out: Path
    count: int
    rejected: int
    dim: int
    page: Path | None = None

    @cached_property
    def table(self) -> FeatureTable:
        """The content of the file."""
        return read_features(self.out)

    @property
    def names(self) -> list[str]:
        """The image of each row."""
        return list(self.table.names)

    @property
    def features(self) -> NDArray[np.float32]:
        """The features, (N, D) float32."""
        return self.table.features

    @property
    def labels(self) -> list[str] | None:
        """The class of each image, several as A|B; None without labels=true."""
        return None if self.table.labels is None else list(self.table.labels)

    def summary(self) -> str:
        """The result in a few lines."""
        broken = named_broken(self.rejected, rejected_file(self.out))
        shown = f"\npage: {self.page}" if self.page is not None else ""
        return f"features of {self.count} images, {self.dim} values each: {self.out}{broken}{shown}"


def embed(config: EmbedConfig) -> EmbedResult:
    """Write the features of images, and a page on them; a broken image is left out, counted and named in a file beside.

    A command that was stopped goes on where it was. Raises MaeliftError when the encoder or the images can't be read, when
    something is in the way, or when every image is broken.
    """
    device = choose_device(config.device)
    fitted, images = read_inputs(config)
    out, pooling, dim = _checked(config, fitted, images)
    logger.info("embed: %s images found in %s", f"{len(images):,}", config.source)
    for note in fitted.notes:
        logger.info("embed: %s", note)
    output_folder(out.parent)
    fitted.encoder.to(device).eval()
    request = request_hash(fitted, images, pooling, config.precision, device.type)
    work = _Work(config, fitted, images, pooling, device)
    with PartialFeatures.open(out, request, (len(images), dim)) as partial:
        _compute(work, partial)
        table, kept = _finished_table(work, partial)
        write_features(table, out)
        _report_images(out, images, partial)
        shutil.rmtree(partial.folder)
    page = out.with_suffix(".html")
    if config.page:
        from .embed_page import write_page

        write_page(page, config, fitted, images, table, kept, device)
    return EmbedResult(out, len(kept), len(images) - len(kept), dim, page if config.page else None)


def plan(config: EmbedConfig) -> Plan:
    """What ``embed`` would do; writes nothing."""
    fitted, images = read_inputs(config)
    out, pooling, dim = _checked(config, fitted, images)
    near = f"the {config.neighbours} nearest of each, by cosine" if config.neighbours else "none"
    return Plan(
        (
            ("images", f"{len(images):,} in {config.source} (unchecked yet)"),
            ("classes", f"{len(images.classes)}" if config.labels else "not read (labels=false)"),
            ("encoder", f"{public_name(config.encoder)}, {fitted.encoder.size_text()}"),
            ("features", f"{pooling}, {dim} values each, {4 * dim * len(images) / 1e6:,.1f} MB in all"),
            ("neighbours", near),
            ("device", str(choose_device(config.device))),
            ("result", ", ".join(map(str, (out, out.with_suffix(".html")) if config.page else (out,)))),
        ),
        parameters=sum(parameter.numel() for parameter in fitted.encoder.parameters()),
    )


def rejected_file(out: Path) -> Path:
    """Where broken images are named."""
    return out.with_suffix(".rejected.csv")


def _checked(config: EmbedConfig, fitted: FittedEncoder, images: NamedImages) -> tuple[Path, Pooling, int]:
    """Where the result goes, what is pooled, and its length; raises MaeliftError for what would fail after the computation."""
    out = Path(config.out)
    for path in (out, out.with_suffix(".html")):
        if path.is_dir():
            raise ConfigError("out", config.out, f"the name of a file; {path} is a folder")
    _check_outside(config, out)
    check_format(out, images.names)
    _check_neighbours(config, len(images))
    preprocessing = fitted.encoder.preprocessing
    Display(preprocessing.channel_names, config.shown).positions(len(preprocessing.mean))
    pooling = config.features or fitted.encoder.usual_pooling
    return out, pooling, fitted.encoder.pooled_dim(pooling)


def _check_outside(config: EmbedConfig, out: Path) -> None:
    """Raise ConfigError for a result among the images, where other commands would read it as some."""
    folder = out.absolute().parent.resolve()
    for source in (config.images,) if isinstance(config.images, str) else config.images:
        if Path(source).is_dir() and Path(source).resolve() in (folder, *folder.parents):
            raise ConfigError("out", config.out, f"a file outside of images={source}, where it would be read as images")


def _check_neighbours(config: EmbedConfig, count: int) -> None:
    if config.neighbours and config.neighbours >= count:
        raise ConfigError("neighbours", config.neighbours, f"fewer than the {count} images that can be read")


@dataclass(frozen=True, eq=False)
class _Work:
    """What is computed, from what, and where."""

    config: EmbedConfig
    fitted: FittedEncoder
    images: NamedImages
    pooling: Pooling
    device: torch.device


def _compute(work: _Work, partial: PartialFeatures) -> None:
    """Compute what is missing of ``partial``; saved now and then, and at the end."""
    config, fitted, images = work.config, work.fitted, work.images
    first, count = partial.done, len(images)
    starts = range(first, count, config.batch_size)

    def load(number: int) -> Batch:
        return _load(fitted, images, range(starts[number], min(starts[number] + config.batch_size, count)))

    workers = images.images.default_workers() if config.workers is None else config.workers
    log_progress, clock = progress_logger("embed"), partial.saver()
    for start, (numbers, pixels, rejected, unusual) in zip(
        starts, load_in_order(load, len(starts), workers), strict=True
    ):
        partial.rejected += rejected
        for number, notes in unusual:
            partial.note(number, notes)
        if pixels is not None:
            with torch.inference_mode():
                found = pooled_features(fitted.encoder, pixels.to(work.device), work.pooling, config.precision)
            _check_finite(found, images, numbers)
            partial.vectors[numbers] = found.float().cpu().numpy()
        partial.done = min(start + config.batch_size, count)
        clock.tick()
        log_progress(partial.done - first, count - first)
    partial.save()
    if len(partial.rejected) == count:
        reason = partial.rejected[0][1]
        shutil.rmtree(partial.folder)
        raise DataError(f"images={config.source}: none of {count} can be read; the first: {reason}")


def _load(fitted: FittedEncoder, images: NamedImages, numbers: range) -> Batch:
    sound, arrays, rejected, unusual = [], [], [], []
    for number in numbers:
        try:
            pixels, notes = fitted.pixels(images.images, number)
        except DataError as error:
            rejected.append((number, str(error)))
            continue
        sound.append(number)
        arrays.append(pixels)
        if notes:
            unusual.append((number, "; ".join(notes)))
    return sound, torch.from_numpy(np.stack(arrays)) if arrays else None, rejected, unusual


def _check_finite(found: Tensor, images: NamedImages, numbers: list[int]) -> None:
    wrong = (~found.isfinite().all(dim=1)).nonzero()[:, 0].tolist()
    if wrong:
        raise MaeliftError(
            f"{images.names[numbers[wrong[0]]]}: its features aren't finite. Give precision=float32, or check the encoder."
        )


def _finished_table(work: _Work, partial: PartialFeatures) -> tuple[FeatureTable, NDArray[np.int64]]:
    """The rows of the images that aren't broken, and their numbers."""
    config, fitted, images = work.config, work.fitted, work.images
    kept = partial.kept()
    _check_neighbours(config, len(kept))
    features = np.asarray(partial.vectors[kept])  # in memory, as the folder goes
    texts = [
        None if column is None else [column[number] for number in kept]
        for column in (images.names, images.labels, images.splits)
    ]
    names, labels, splits = texts
    assert names is not None
    near = nearest_neighbours(features, config.neighbours, work.device) if config.neighbours else None
    metadata = {
        "encoder": public_name(config.encoder),
        "encoder_content_hash": fitted.content_hash,
        "image_size": list(fitted.encoder.spec.image_size),
        "preprocessing": fitted.encoder.preprocessing.to_json(),
        "features": work.pooling,
        "precision": config.precision,
        "device": work.device.type,
        "adapted": list(fitted.notes),
        "images": len(images),
        "rejected": len(images) - len(kept),
        "maelift_version": __version__,
    }
    return FeatureTable(names, features, labels, splits, near, metadata), kept


def _report_images(out: Path, images: NamedImages, partial: PartialFeatures) -> None:
    """Name the broken images in a file, and say what was unusual of the others."""
    sound, converted = len(images) - len(partial.rejected), Counter[str]()
    unusual = []
    for notes, (count, first) in partial.unusual.items():
        unusual += [(images.names[first], notes)] * count
        converted.update({note: count for note in notes.split("; ") if CONVERTED in note})
    for line in summary_lines(sound, unusual):
        logger.warning("embed: %s", line)
    for note, count in converted.items():
        logger.warning("embed: %d of %d images have %s", count, sound, note)
    if partial.rejected:
        write_rejected(rejected_file(out), [(images.names[number], reason) for number, reason in partial.rejected])
    else:
        rejected_file(out).unlink(missing_ok=True)  # of an earlier command
