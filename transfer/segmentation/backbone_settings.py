"""How a segmentor's head uses an encoder: the blocks that it reads, attention, and the smallest image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...adapters.mmseg_config import upernet_blocks, upernet_scales
from ...adapters.torchvision import vit_settings
from ...core.errors import ConfigError
from ...core.models.backbone import Backbone
from ...core.models.encoder import Encoder
from ...core.models.encoder_spec import EncoderSpec
from .architecture import Architecture


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
