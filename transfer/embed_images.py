"""What maelift embed reads: the encoder fitted to the images, images of any source, and their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.data.classification_reader import class_parts
from ..core.data.image_formats import SUFFIXES
from ..core.data.images import ImageSet, opened
from ..core.data.readers.concat import ConcatImages
from ..core.data.readers.folder import FolderImages
from ..core.data.reading_keys import ReadingKeys
from ..core.data.slices import Slices
from ..core.data.sources import find_images_to_use, find_sources, key_named_images
from ..core.data.transforms import fit_and_crop, to_array
from ..core.models.backbone import Backbone
from .embed_config import EmbedConfig
from .init_keys import EncoderInit
from .init_weights import init_encoder, init_form, read_init_weights

SLICE_KEYS = ("slice_axis", "slice_step", "slice_content", "frame")
"""Keys that say which slices of volumes are images, in the configuration and in an encoder's preprocessing."""

CONVERTED = "brought to the encoder's"
"""In the note on an image of other channels."""


@dataclass(frozen=True, eq=False)
class NamedImages:
    """Images with their ``names`` (N), and where they were asked for ``labels`` in words, ``splits`` (N) and all ``classes``."""

    images: ImageSet
    names: Sequence[str]
    labels: Sequence[str] | None = None
    splits: Sequence[str] | None = None
    classes: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False)
class FittedEncoder:
    """An encoder as it fits the images: ``content_hash`` of its file; ``notes`` on what was adapted."""

    encoder: Backbone
    content_hash: str
    notes: Sequence[str]

    def pixels(self, images: ImageSet, number: int) -> tuple[NDArray[np.generic], Sequence[str]]:
        """An image's pixels (C, H, W) as the encoder gets them, not yet normalised, and notes on how they were made.

        The largest centred part with the shape of the encoder's images, resized. Raises DataError for a broken image.
        """
        spec = self.encoder.spec
        image = opened(images, number, self.encoder.preprocessing.reading)
        picture = image.pixels()
        notes = list(image.decoded_notes)
        if picture.shape[2] != spec.channels:
            count = picture.shape[2]
            notes.append(f"{count} channel{'s' if count > 1 else ''}, {CONVERTED} {spec.channels}")
        return to_array(fit_and_crop(picture, spec.image_size), spec.channels), notes


def read_inputs(config: EmbedConfig) -> tuple[FittedEncoder, NamedImages]:
    """The encoder and the images of a configuration.

    Images are read as the encoder was trained, but for what keys say. Raises MaeliftError where one can't be read, or the
    encoder doesn't fit the images.
    """
    start = _start(config, {})
    source = read_init_weights(start)
    assert source is not None  # as an encoder is named
    if all(getattr(config, key) == getattr(ReadingKeys(), key) for key in SLICE_KEYS):
        start = _start(config, {key: getattr(source.encoder.preprocessing, key) for key in SLICE_KEYS})
    images = _read_images(config, init_form(start, source).slices)
    one = (start.channel_count or source.encoder.spec.channels) == 1
    encoder, notes = init_encoder(start, source, images.images, gray=one)
    return FittedEncoder(encoder, source.content_hash, notes), images


def _start(config: EmbedConfig, changes: dict[str, Any]) -> EncoderInit:
    reading = {field.name: getattr(config, field.name) for field in fields(ReadingKeys)}
    return EncoderInit(
        encoder=config.encoder,
        image_size=config.image_size,
        background=config.background,
        seed=config.seed,
        **{**reading, **changes},
    )


def _read_images(config: EmbedConfig, slices: Slices) -> NamedImages:
    with key_named_images():
        if not config.labels:
            single = isinstance(config.images, str) and Path(config.images).suffix.lower() in SUFFIXES
            images = find_images_to_use(config.source, slices) if single else find_sources(config.images, slices=slices)
            return NamedImages(images, [images.name(number) for number in range(len(images))])
        parts = class_parts(config.source, config.label_keys(slices))
    first, *_ = parts.values()
    sets = tuple(part.images for part in parts.values())
    return NamedImages(
        sets[0] if len(sets) == 1 else ConcatImages.of(sets),
        [name for images in sets for name in _names_below(images, Path(config.source))],
        [part.label_text(number) for part in parts.values() for number in range(len(part))],
        [split for split, part in parts.items() for _ in range(len(part))],
        first.classes,
    )


def _names_below(images: ImageSet, data: Path) -> list[str]:
    """The names of a split's images; of those in a folder of the split the paths below the data set's."""
    names = [images.name(number) for number in range(len(images))]
    if isinstance(images, FolderImages) and data in images.root.parents:
        return [f"{images.root.relative_to(data)}/{name}" for name in names]
    return names
