"""The encoder that a transfer starts from: an encoder file, public weights, supervised ones or random ones."""

from __future__ import annotations

from dataclasses import replace
from typing import overload

from ..adapters.pretrained import read_pretrained
from ..core.data.channel_statistics import channel_statistics
from ..core.data.images import ImageSet
from ..core.data.pixel_format import PixelFormat, background_colour
from ..core.data.reading_keys import StatedValues
from ..core.errors import ConfigError
from ..core.models.adapt_backbone import adapt_backbone
from ..core.models.adapt_encoder import is_bgr, to_rgb
from ..core.models.backbone import Backbone, BackboneSpec
from ..core.models.build_backbone import build_backbone
from ..core.models.encoder import Encoder
from ..core.models.encoder_file import EncoderFile
from ..core.models.encoder_spec import EncoderSpec, preset_spec
from ..core.models.preprocessing import EIGHT_BITS, Preprocessing, band_names, channel_names, reading_fields
from ..core.models.timm_spec import TIMM
from ..core.seeding import seeded_rng
from .init_keys import EncoderInit


def read_init_weights(start: EncoderInit) -> EncoderFile[Backbone] | None:
    """The weights that ``start`` names, with the preprocessing that goes with them; None where it names none.

    For training from nothing only their shape is of use: those of a name of timm are random then.
    """
    weights = start.init != "scratch"
    if start.encoder:
        return read_pretrained(start.encoder, "encoder", weights=weights)
    return read_pretrained(start.model, "model", weights=False) if start.model.startswith(TIMM) else None


def init_background(start: EncoderInit, source: EncoderFile[Backbone] | None) -> str:
    """What transparent pixels are composited on: as the user says, as the encoder was trained, or white."""
    return start.background or (source and source.encoder.preprocessing.background) or "white"


def init_form(start: EncoderInit, source: EncoderFile[Backbone] | None) -> PixelFormat:
    """How the images are read: as the user says, else as the encoder was trained, else as gray or colour of 8 or 16 bits."""
    form = PixelFormat(plain=True) if source is None else source.encoder.preprocessing.reading
    return start.changed(replace(form, background=background_colour(init_background(start, source))))


def init_encoder(
    start: EncoderInit, source: EncoderFile[Backbone] | None, images: ImageSet, gray: bool
) -> tuple[Backbone, list[str]]:
    """The encoder that training starts from, and in words what was adapted to the images.

    ``gray``: every image is grayscale. Raises ConfigError for weights that can't be fitted to what ``start`` asks for.
    """
    if source is None:
        return _new_encoder(start, images, gray), []
    encoder, notes = source.encoder, []
    encoder.preprocessing = replace(encoder.preprocessing, background=init_background(start, source))
    _check_patch(start, encoder)
    if is_bgr(encoder.preprocessing):
        encoder = to_rgb(source.plain(str(start.encoder)).encoder)
        notes.append("the encoder's channels are blue, green, red: its patch kernel was reordered for red, green, blue")
    size = (start.image_size, start.image_size) if isinstance(start.image_size, int) else start.image_size
    own = encoder.spec.channels if start.encoder else (1 if gray else 3)
    channels = start.channel_count or own
    form, before = init_form(start, source), encoder.preprocessing
    same_values = (form.value_range, form.window) == (before.reading.value_range, before.window)
    other_images = channels != encoder.spec.channels or not same_values
    stated = StatedValues.of(images, form)
    form, names = stated.stated_in(form), _names(stated, form, channels)
    given = str(start.encoder or start.model)
    encoder, adapted = adapt_backbone(encoder, size or encoder.spec.image_size, channels, given, "encoder", names)
    notes += adapted
    encoder.preprocessing = replace(encoder.preprocessing, **reading_fields(form))
    if other_images:
        encoder.preprocessing = _measured(form, encoder.preprocessing, images, names, stated.bits, start.seed)
        notes.append("images are normalised by their own mean and deviation, as the weights were trained on others")
    if encoder.spec.channels == 1 and not gray:
        notes.append("the encoder has one channel: colour images are read as gray (ITU-R 601)")
    if encoder.spec.channels == 3 and gray:
        notes.append("every image is gray and the encoder has three channels: gray is repeated three times")
    if start.init == "scratch":
        return fresh_encoder(encoder.spec, encoder.preprocessing, start.seed), []
    if start.init == "encoder" and source.provenance.method.startswith("supervised"):
        notes.append("these weights were trained with labels; init=supervised has the recipe for them")
    return encoder, notes


def _check_patch(start: EncoderInit, encoder: Backbone) -> None:
    own = encoder.spec.patch_size if isinstance(encoder, Encoder) else None
    if start.patch_size not in (None, own):
        expected = "null, as the architecture has its own strides" if own is None else f"null, or the encoder's {own}"
        raise ConfigError("patch_size", start.patch_size, expected)


@overload
def fresh_encoder(spec: EncoderSpec, preprocessing: Preprocessing, seed: int) -> Encoder: ...


@overload
def fresh_encoder(spec: BackboneSpec, preprocessing: Preprocessing, seed: int) -> Backbone: ...


def fresh_encoder(spec: BackboneSpec, preprocessing: Preprocessing, seed: int) -> Backbone:
    """An encoder with weights drawn from ``seed``."""
    with seeded_rng(seed, "weights"):
        return build_backbone(spec, preprocessing=preprocessing)


def _new_encoder(start: EncoderInit, images: ImageSet, gray: bool) -> Backbone:
    channels = start.channel_count or (1 if gray else 3)
    spec = preset_spec(start.model, image_size=start.image_size, patch_size=start.patch_size, channels=channels)
    form = init_form(start, None)
    stated = StatedValues.of(images, form)
    form, names = stated.stated_in(form), _names(stated, form, channels)
    usual = replace(Preprocessing.default(channels), background=init_background(start, None), **reading_fields(form))
    if channels != 3 or form.value_range is not None or form.window is not None:
        usual = _measured(form, usual, images, names, stated.bits, start.seed)
    return fresh_encoder(spec, usual, start.seed)


def _names(stated: StatedValues, form: PixelFormat, channels: int) -> tuple[str, ...]:
    """What channels are called: by the files, by the choice of them, or as usual."""
    names = stated.names or band_names(form.bands)
    return names if len(names) == channels else channel_names(channels)


def _measured(
    form: PixelFormat, usual: Preprocessing, images: ImageSet, names: tuple[str, ...], bits: int, seed: int
) -> Preprocessing:
    """The preprocessing for images that are read in a form, with their own mean and deviation."""
    mean, std = channel_statistics(images, len(names), seed=seed, form=form)
    value_range = form.value_range or EIGHT_BITS
    return replace(usual, channel_names=names, mean=mean, std=std, value_range=value_range, bit_depth=bits)
