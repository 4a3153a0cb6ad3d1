"""The encoder that a transfer starts from: an encoder file, public weights, supervised ones or random ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ..adapters.pretrained import read_pretrained
from ..core.data.channel_statistics import channel_statistics
from ..core.data.images import ImageSet
from ..core.data.pixel_format import background_colour
from ..core.errors import ConfigError, DataError
from ..core.models.adapt_encoder import is_bgr, to_rgb
from ..core.models.encoder import Encoder
from ..core.models.encoder_file import EncoderFile
from ..core.models.encoder_spec import EncoderSpec, ModelName, check_divisible, preset_spec
from ..core.models.preprocessing import Preprocessing
from ..core.seeding import seeded_rng

Init = Literal["encoder", "supervised", "scratch"]


@dataclass(frozen=True, kw_only=True)
class EncoderInit:
    """Which weights training starts from, and the shape of the network."""

    encoder: str | None = None
    """encoder file, weights of the reference MAE, timm or transformers, or timm:NAME to fetch them"""
    init: Init = "encoder"
    """start from these weights, pretrained without labels (encoder) or with (supervised), or from random ones (scratch)"""
    model: ModelName = "vit_base"
    """the shape for init=scratch without an encoder to take it from"""
    image_size: int | tuple[int, int] | None = None
    """pixels, one side or [height,width]; null: the encoder's, or the model's usual one"""
    patch_size: int | None = None
    """pixels a side of a patch for init=scratch without an encoder; null: the model's usual one"""
    background: str | None = None
    """colour that transparent pixels are composited on: white, black, '#rrggbb', or drop: what is stored under them; null: the
    encoder's, else white"""
    seed: int = 0
    """seeds the weights that are drawn, the order and the augmentation"""

    def __post_init__(self) -> None:
        if self.background is not None:
            background_colour(self.background)
        if self.init != "scratch" and not self.encoder:
            raise ConfigError("encoder", self.encoder, "an encoder file, or init=scratch")


def read_init_weights(start: EncoderInit) -> EncoderFile | None:
    """The weights that ``start`` names, with the preprocessing that goes with them; None where it names none."""
    if not start.encoder:
        return None
    return read_pretrained(start.encoder, "encoder")


def init_background(start: EncoderInit, source: EncoderFile | None) -> str:
    """What transparent pixels are composited on: as the user says, as the encoder was trained, or white."""
    return start.background or (source and source.encoder.preprocessing.background) or "white"


def init_encoder(
    start: EncoderInit, source: EncoderFile | None, images: ImageSet, gray: bool
) -> tuple[Encoder, list[str]]:
    """The encoder that training starts from, and in words what was adapted to the images.

    ``gray``: every image is grayscale. Raises DataError for an encoder that these images can't be given to.
    """
    size = (start.image_size, start.image_size) if isinstance(start.image_size, int) else start.image_size
    background = init_background(start, source)
    if source is None:
        return _new_encoder(start, images, gray, background), []
    encoder, notes = source.encoder, []
    encoder.preprocessing = replace(encoder.preprocessing, background=background)
    if start.patch_size not in (None, encoder.spec.patch_size):
        raise ConfigError("patch_size", start.patch_size, f"null, or the encoder's {encoder.spec.patch_size}")
    _need_image_channels(start, encoder)
    if is_bgr(encoder.preprocessing):
        encoder = to_rgb(encoder)
        notes.append("the encoder's channels are blue, green, red: its patch kernel was reordered for red, green, blue")
    if encoder.spec.channels == 1 and not gray:
        notes.append("the encoder has one channel: colour images are read as gray (ITU-R 601)")
    if encoder.spec.channels == 3 and gray:
        notes.append("every image is gray and the encoder has three channels: gray is repeated three times")
    if size is not None and size != encoder.spec.image_size:
        check_divisible(size, encoder.spec.patch_size)
        was, now = ("×".join(map(str, pair)) for pair in (encoder.spec.image_size, size))
        notes.append(f"position embeddings were resized from {was} to {now} pixels")
        encoder = encoder.resized(size)
    if start.init == "scratch":
        return fresh_encoder(encoder.spec, encoder.preprocessing, start.seed), []
    if start.init == "encoder" and source.provenance.method.startswith("supervised"):
        notes.append("these weights were trained with labels; init=supervised has the recipe for them")
    return encoder, notes


def fresh_encoder(spec: EncoderSpec, preprocessing: Preprocessing, seed: int) -> Encoder:
    """An encoder with weights drawn from ``seed``."""
    with seeded_rng(seed, "weights"):
        return Encoder(spec, preprocessing=preprocessing)


def _new_encoder(start: EncoderInit, images: ImageSet, gray: bool, background: str) -> Encoder:
    channels = 1 if gray else 3
    spec = preset_spec(start.model, image_size=start.image_size, patch_size=start.patch_size, channels=channels)
    preprocessing = replace(Preprocessing.default(channels), background=background)
    if channels == 1:
        mean, std = channel_statistics(images, channels, seed=start.seed, form=preprocessing.reading)
        preprocessing = replace(preprocessing, mean=mean, std=std)
    return fresh_encoder(spec, preprocessing, start.seed)


def _need_image_channels(start: EncoderInit, encoder: Encoder) -> None:
    channels, value_range = encoder.spec.channels, encoder.preprocessing.value_range
    if channels not in (1, 3):
        raise DataError(
            f"encoder={start.encoder}: takes {channels} channels, but image files have 1 or 3. "
            "Give an encoder that was pretrained on 1 or 3."
        )
    if value_range != (0.0, 255.0):
        raise DataError(
            f"encoder={start.encoder}: its images have values from {value_range[0]:g} to {value_range[1]:g}, but image files "
            "are read as 0 to 255. Give an encoder that was pretrained on image files."
        )
