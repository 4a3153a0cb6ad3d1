"""The images of a pretraining run: the pool to train on, those held out, and their samples."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..core.cache import cache_file, load, save
from ..core.data.audit import Manifest, audit, check_rejected, common_channels, summary_lines, write_rejected
from ..core.data.channel_statistics import channel_statistics, statistics_sample
from ..core.data.image_scan import CACHED_SECONDS, FORMAT, scan_images
from ..core.data.images import FileBacked, ImageSet, opened
from ..core.data.pixel_format import PixelFormat
from ..core.data.reading_keys import StatedValues
from ..core.data.sampling import Sample, Uniforms
from ..core.data.sources import find_sources
from ..core.data.string_table import StringTable
from ..core.data.transforms import fit_and_crop, to_array
from ..core.errors import ConfigError, DataError
from ..core.models.encoder_spec import preset_spec
from ..core.models.preprocessing import Preprocessing, band_names, channel_names, reading_fields
from ..core.processes import Processes
from ..core.progress import duration, progress_logger
from ..core.seeding import stream
from .config import PretrainConfig

logger = logging.getLogger("maelift")

FULL_AUDIT = 200_000
"""Images up to which ``audit=auto`` opens each before training: it takes minutes, and is done once."""
SAMPLE = 512
"""Images beside those held out that are opened to find channels and bits, where not all are."""


@dataclass(frozen=True)
class Source:
    """The images of a run: the pool to train on, those held out, and the crops that are made of them."""

    pool: ImageSet
    held_out: ImageSet
    manifest: Manifest
    config: PretrainConfig
    size: tuple[int, int]
    channels: int
    stated: StatedValues = field(default_factory=StatedValues)
    """what the files state of their channels"""

    @property
    def form(self) -> PixelFormat:
        """What is made of the values in the files."""
        return self.stated.stated_in(self.config.form(self.channels))

    def crops(self, index: int, draws: Uniforms) -> list[Sample]:
        """Random crops of an image of the pool, one a row of ``draws`` (K, 5)."""
        crops = self.config.crop.crops(opened(self.pool, index, self.form), self.size, draws)
        return [Sample(to_array(crop, self.channels)) for crop in crops]

    def center(self, index: int, draws: Uniforms) -> Sample:
        """A held-out image, its centre fitted to the size."""
        return self.fitted(self.held_out, index)

    def shown(self, index: int, draws: Uniforms) -> Sample:
        """An image for the pictures of reconstructions: a held-out one or, where none is held out, one of the pool."""
        return self.fitted(self.held_out if len(self.held_out) else self.pool, index)

    def fitted(self, images: ImageSet, index: int) -> Sample:
        """An image of any set, its centre fitted to the size; or the next sound one, as some may have broken meanwhile."""
        reason = DataError("no images")
        for tried in range(len(images)):
            try:
                image = opened(images, (index + tried) % len(images), self.form).pixels()
                return Sample(to_array(fit_and_crop(image, self.size), self.channels))
            except DataError as error:
                logger.warning("pretrain: %s; another image takes its place in evaluation", error)
                reason = error
        raise reason


def find_pool(config: PretrainConfig, ranks: Processes) -> ImageSet:
    """The images of the run's sources; raises DataError where the processes don't find the same.

    The main process goes first, so that the others find a long list cached.
    """
    if ranks.world_size == 1:
        return find_sources(config.data, config.reindex, config.slices)
    ranks.broadcast(lambda: len(find_sources(config.data, config.reindex, config.slices)))
    images = find_sources(config.data, slices=config.slices)
    found = f"{len(images)} {images.listed().digest if isinstance(images, FileBacked) else ''}"
    if len(set(ranks.all_gather([found]))) > 1:
        raise DataError(
            f"data={config.sources}: the processes find different images there. Expected one storage for all."
        )
    return images


def read_source(config: PretrainConfig, images: ImageSet, folder: Path, ranks: Processes) -> Source:
    """Scan the images, all or a few of them as ``config.audit`` says, and hold some out."""
    begin = time.monotonic()
    light = config.audit == "light" or (config.audit == "auto" and len(images) > FULL_AUDIT)
    stated = StatedValues.of(images, config.form())
    form = stated.stated_in(config.form())
    pool, held_out, manifest = (_scan_sample if light else _scan_all)(config, images, form, ranks)
    if ranks.is_main:
        if manifest.rejected:
            write_rejected(folder / "rejected.csv", manifest.rejected)
            logger.warning(
                "pretrain: %d of %d images are broken and left out; see %s",
                len(manifest.rejected),
                len(manifest.rejected) + len(manifest.kept),
                folder / "rejected.csv",
            )
        if manifest.unusual:
            write_rejected(folder / "unusual.csv", manifest.unusual, "note")
            logger.info("pretrain: %d images are unusual, but read; see unusual.csv", len(manifest.unusual))
            for line in summary_lines(len(manifest.kept), manifest.unusual):
                logger.warning("pretrain: %s", line)
        scanned = len(manifest.kept) + len(manifest.rejected)
        logger.info("pretrain: %d images scanned in %s", scanned, duration(time.monotonic() - begin))
        if light:
            logger.info(
                "pretrain: the other %d are opened when they are trained on; the broken ones will stand in quarantine.csv "
                "(audit=full opens all beforehand)",
                len(images) - scanned,
            )
    channels = config.channel_count or common_channels(manifest.channels)
    spec = preset_spec(config.model, image_size=config.image_size, patch_size=config.patch_size)
    return Source(pool, held_out, manifest, config, spec.image_size, channels, stated)


def _scan_all(
    config: PretrainConfig, images: ImageSet, form: PixelFormat, ranks: Processes
) -> tuple[ImageSet, ImageSet, Manifest]:
    """The sound images to train on and to hold out, where each is opened."""
    progress = progress_logger("pretrain: scanning")
    sound, manifest = audit(images, config.max_rejected, progress, form, ranks=ranks, forget=config.reindex)
    check_split(config, len(sound), ranks.world_size)
    held_out = config.held_out_count(len(sound))
    order = stream(config.seed, "held out").permutation(len(sound))
    return sound.subset(np.sort(order[held_out:])), sound.subset(np.sort(order[:held_out])), manifest


def _scan_sample(
    config: PretrainConfig, images: ImageSet, form: PixelFormat, ranks: Processes
) -> tuple[ImageSet, ImageSet, Manifest]:
    """The same, where those held out are opened, and a sample of the others to find channels and bits."""
    held_out = config.held_out_count(len(images))
    order = stream(config.seed, "held out").permutation(len(images))
    scanned = order[: held_out + max(SAMPLE, math.ceil(config.max_rejected * held_out))]
    progress = progress_logger("pretrain: scanning")
    table = scan_images(images, form, scanned, progress=progress, ranks=ranks, forget=config.reindex)
    listed = (
        images.listed().digest if isinstance(images, FileBacked) else StringTable.of(map(images.name, order)).digest
    )
    manifest = Manifest.of(table, images, scanned, listed)
    check_rejected(manifest.rejected, len(scanned), config.max_rejected)
    kept = np.array(manifest.kept[:held_out], dtype=np.int64)
    pool = np.ones(len(images), dtype=bool)
    pool[scanned] = False
    pool[list(manifest.kept)] = True
    pool[kept] = False
    check_split(config, len(kept) + int(pool.sum()), ranks.world_size)
    return images.subset(np.flatnonzero(pool)), images.subset(np.sort(kept)), manifest


def data_preprocessing(config: PretrainConfig, source: Source) -> Preprocessing:
    usual_range = config.value_range in (None, (0.0, 255.0)) and config.window is None
    if config.statistics == "imagenet" or (config.statistics == "auto" and source.channels == 3 and usual_range):
        usual = Preprocessing.default(source.channels)
    else:
        usual = Preprocessing(channel_names(source.channels), *_statistics(config, source))
    return replace(
        usual,
        channel_names=source.stated.names or band_names(source.form.bands) or usual.channel_names,
        **reading_fields(source.form),
        value_range=config.value_range or usual.value_range,
        bit_depth=source.manifest.bits,
        background=config.background,
    )


def _statistics(config: PretrainConfig, source: Source) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the pool's channels; from the cache, where the same images were measured."""
    pool, file = source.pool, None
    if isinstance(pool, FileBacked) and (origin := pool.origin()) is not None:
        sample = statistics_sample(len(pool), seed=config.seed)
        seen = (pool.listed().subset(sample).digest, str(pool.file_stats(sample).tolist()))
        file = cache_file("statistics", FORMAT, origin, *seen, repr(source.form))
    found = None if config.reindex or file is None else load(file)
    if found is None:
        began = time.monotonic()
        mean, std = channel_statistics(pool, source.channels, seed=config.seed, form=source.form)
        if file is not None and time.monotonic() - began > CACHED_SECONDS:
            save(file, {"statistics": np.array([mean, std])}, {"kind": "statistics"})
        return mean, std
    mean, std = (tuple(float(value) for value in row) for row in found[0]["statistics"])
    return mean, std


def check_split(config: PretrainConfig, images: int, world_size: int) -> None:
    """Raise unless the images suffice for a batch and the batch can be split."""
    parts = world_size * config.passes
    if config.batch_size % parts:
        raise ConfigError(
            "batch_size",
            config.batch_size,
            f"a multiple of {parts} ({world_size} processes × accumulate={config.accumulate})",
        )
    pool = images - config.held_out_count(images)
    if pool < config.batch_size:
        raise DataError(
            f"batch_size={config.batch_size}, but only {max(pool, 0)} images to train on "
            f"({images} in {config.sources}, {config.held_out_count(images)} held out). "
            "Use a smaller batch_size or more images."
        )
