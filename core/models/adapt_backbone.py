"""A backbone of any kind fitted to another image size and other channels, with notes on what was adapted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from .adapt_encoder import adapt_encoder, channels_note, preprocessing_for
from .backbone import Backbone, words_of_size
from .encoder import Encoder
from .encoder_spec import check_divisible
from .timm_backbone import TimmBackbone


def adapt_backbone(
    backbone: Backbone, image_size: tuple[int, int], channels: int, source: str, key: str, names: Sequence[str] = ()
) -> tuple[Backbone, list[str]]:
    """A backbone for images of ``image_size`` (height, width) and ``channels``, and notes; the same where nothing differs.

    ``names``: what the channels are called, by which known ones get their own weights. Raises ConfigError for sizes and
    channels that it doesn't take; ``source`` and ``key`` are the weights and the user's key for them.
    """
    if isinstance(backbone, Encoder):
        check_divisible(image_size, backbone.spec.patch_size)
        spec = replace(backbone.spec, image_size=image_size, channels=channels)
        return (backbone, []) if spec == backbone.spec else adapt_encoder(backbone, spec, source, key, names)
    return _adapt_timm(cast(TimmBackbone, backbone), image_size, channels, names)


def _adapt_timm(
    backbone: TimmBackbone, image_size: tuple[int, int], channels: int, names: Sequence[str]
) -> tuple[TimmBackbone, list[str]]:
    before, notes = backbone.spec, []
    if before.image_size != image_size and backbone.fixed_size:
        notes.append(f"positions were resized from {words_of_size(before.image_size)} to {words_of_size(image_size)}")
    if before.channels != channels:
        known = backbone.preprocessing.channel_names
        notes.append(f"the first convolution was {channels_note(known, names, channels)}")
    spec = replace(before, image_size=image_size, channels=channels)
    if spec != before:
        backbone = backbone.fitted(spec, names)
        backbone.preprocessing = preprocessing_for(backbone.preprocessing, channels, names)
    backbone.check_size()
    return backbone, notes
