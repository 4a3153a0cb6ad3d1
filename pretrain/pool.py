"""The images of a pretraining: the pool to train on, those held out, and the crops that are made of them."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..core.batches import Sample, Uniforms
from ..core.config import ConfigError, DataError
from ..core.distributed import Ranks
from ..core.encoder import Preprocessing, channel_names, preset_spec
from ..core.images import (
    ImageSet,
    Manifest,
    audit,
    channel_statistics,
    fit_and_crop,
    random_resized_crop,
    to_array,
    write_rejected,
)
from ..core.randomness import stream
from ..core.tracking import counting, duration

if TYPE_CHECKING:
    from .config import PretrainConfig

logger = logging.getLogger("maelift")

CROP_DRAWS = 5


@dataclass(frozen=True)
class Crop:
    """The only augmentation that MAE needs: a random resized crop and a flip (paper Table 1e)."""

    scale: tuple[float, float] = (0.2, 1.0)
    """smallest and largest area of a crop, as shares of the image"""
    flip: bool = True
    """mirror every second image left to right, at random"""

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError("scale", list(self.scale), "two shares with 0 < smallest <= largest <= 1")


@dataclass(frozen=True)
class Source:
    """The images of a run: the pool to train on, those held out, and the crops that are made of them."""

    pool: ImageSet
    held_out: ImageSet
    manifest: Manifest
    config: PretrainConfig
    size: tuple[int, int]
    channels: int

    def crop(self, index: int, draws: Uniforms) -> Sample:
        """A random crop of an image of the pool."""
        crop = self.config.crop
        flips = draws if crop.flip else np.append(draws[:4], 1.0)
        image = random_resized_crop(self.pool.open(index), self.size, flips, crop.scale)
        return Sample(to_array(image, self.channels))

    def whole(self, index: int, draws: Uniforms) -> Sample:
        """A held-out image, its centre fitted to the size."""
        return self._fitted(self.held_out, index)

    def shown(self, index: int, draws: Uniforms) -> Sample:
        """An image for the pictures of reconstructions: a held-out one or, where none is held out, one of the pool."""
        return self._fitted(self.held_out if len(self.held_out) else self.pool, index)

    def _fitted(self, images: ImageSet, index: int) -> Sample:
        return Sample(to_array(fit_and_crop(images.open(index), self.size), self.channels))


def read_source(config: PretrainConfig, images: ImageSet, folder: Path, ranks: Ranks) -> Source:
    """Look through the images once, and set some apart."""
    begin = time.monotonic()
    sound, manifest = audit(images, config.max_rejected, counting("pretrain: looking through"))
    if ranks.is_main:
        if manifest.rejected:
            write_rejected(folder / "rejected.csv", manifest.rejected)
            logger.warning(
                "pretrain: %d of %d images are broken and left out; see %s",
                len(manifest.rejected),
                len(images),
                folder / "rejected.csv",
            )
        logger.info("pretrain: %d images looked through in %s", len(images), duration(time.monotonic() - begin))
    check_split(config, len(sound), ranks.world_size)
    held_out = config.held_out_count(len(sound))
    order = stream(config.seed, "held out").permutation(len(sound))
    channels = config.channels or (1 if all(manifest.gray) else 3)
    spec = preset_spec(config.model, image_size=config.image_size, patch_size=config.patch_size)
    return Source(
        pool=sound.subset(sorted(order[held_out:].tolist())),
        held_out=sound.subset(sorted(order[:held_out].tolist())),
        manifest=manifest,
        config=config,
        size=spec.image_size,
        channels=channels,
    )


def data_preprocessing(config: PretrainConfig, source: Source) -> Preprocessing:
    if config.statistics == "imagenet" or (config.statistics == "auto" and source.channels == 3):
        return Preprocessing.default(source.channels)
    mean, std = channel_statistics(source.pool, source.channels, seed=config.seed)
    return Preprocessing(channel_names(source.channels), mean, std)


def check_split(config: PretrainConfig, images: int, world_size: int) -> None:
    """Raise unless the images suffice for a batch and the batch can be split."""
    parts = world_size * config.accumulate
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
            f"({images} in {config.data}, {config.held_out_count(images)} held out). "
            "Use a smaller batch_size or more images."
        )
