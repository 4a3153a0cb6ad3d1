"""The architecture of a segmentor: its head, and the settings of its backbone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...core.errors import ConfigError

MAX_CHANNELS = 65536
"""Channels of a head at most."""

Engine = Literal["torch", "mmseg"]

Head = Literal["linear", "conv", "upernet"]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The head of a segmentor and how its encoder attends."""

    engine: Engine = "torch"
    """torch: modules of maelift and segmentation_models_pytorch; mmseg: its EncoderDecoder, with its heads and losses"""
    head: Head = "upernet"
    """linear: on the last map; conv: 3×3 convolutions up to the image's own resolution, for small images, in mmseg its FCN
    head; upernet: on four blocks (MAE, A.4)"""
    head_channels: int | None = None
    """channels of the head; null: the encoder's width"""
    window_size: int = 0
    """patches a side of the attention windows of all but four blocks, for big crops; 0: every block attends everywhere"""
    relative_positions: bool = False
    """learn relative positions in attention, from zero (MAE, A.4); then, and with windows, without the class token; timm's models
    have none but their own"""

    def __post_init__(self) -> None:
        if self.head_channels is not None and not 1 <= self.head_channels <= MAX_CHANNELS:
            raise ConfigError(
                "head_channels", self.head_channels, f"a whole number of at least 1, at most {MAX_CHANNELS}"
            )
        if self.window_size < 0:
            raise ConfigError("window_size", self.window_size, "0 or more")
        if self.engine == "mmseg" and self.head == "linear":
            raise ConfigError("head", self.head, "upernet or conv with engine=mmseg")
