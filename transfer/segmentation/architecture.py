"""The architecture of a segmentor: its head, and the settings of its backbone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from ...adapters.mmseg_config import upernet_blocks, upernet_scales
from ...adapters.torchvision import vit_settings
from ...core.errors import ConfigError
from ...core.models.backbone import Backbone
from ...core.models.encoder import Encoder
from ...core.models.encoder_spec import EncoderSpec

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


def plain_settings(encoder: Encoder, architecture: Architecture, drop_path: float) -> dict[str, Any]:
    """The keywords of ``PlainViT`` for the feature maps that the head reads.

    The class token stays, where possible: it was there in pretraining, and mmseg's MAE has it.
    """
    spec = encoder.spec
    settings = vit_settings(encoder, architecture.window_size)
    patches_only = settings["window_size"] > 0 or architecture.relative_positions
    return settings | {
        "class_token": spec.class_token and not patches_only,
        "use_rel_pos": architecture.relative_positions,
        "out_indices": head_taps(spec.depth, architecture),
        "final_norm": architecture.head == "linear",
        "drop_path": drop_path,
    }


def head_taps(depth: int, architecture: Architecture) -> tuple[int, ...]:
    """The blocks whose maps a head reads: UPerNet's four, for the others the last."""
    return upernet_blocks(depth) if architecture.head == "upernet" else (depth - 1,)


def architecture_on(encoder: Backbone, architecture: Architecture) -> Architecture:
    """The architecture for an encoder: on timm's models without relative positions of ours; raises ConfigError for windows."""
    if isinstance(encoder, Encoder):
        return architecture
    if architecture.window_size:
        raise ConfigError("window_size", architecture.window_size, "0: the attention of timm's models is their own")
    return replace(architecture, relative_positions=False)


def min_patches(spec: EncoderSpec, architecture: Architecture) -> int:
    """Patches a side that an image must have, so that the coarsest map of mmseg's neck has a pixel; ours always has."""
    return round(1 / min(upernet_scales(spec.patch_size, spec.image_size))) if architecture.engine == "mmseg" else 1
