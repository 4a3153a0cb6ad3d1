"""The feature maps of a model of timm that a segmentor's head reads."""

from __future__ import annotations

from ...adapters.mmseg_config import upernet_blocks
from ...core.errors import ConfigError
from ...core.models.timm_backbone import TimmBackbone, TimmMaps
from .architecture import Head

STAGES = 4
"""Maps that UPerNet reads."""


def map_indices(backbone: TimmBackbone, head: Head) -> list[int]:
    """Which of the backbone's levels a head reads: UPerNet four blocks of a plain ViT or the last four strides, others the last.

    Raises ConfigError for UPerNet on an architecture of fewer strides.
    """
    last = len(backbone.levels) - 1
    if head != "upernet":
        return [last]
    if backbone.plain:
        return list(upernet_blocks(last + 1))
    by_stride = {level.reduction: index for index, level in enumerate(backbone.levels)}
    if len(by_stride) < STAGES:
        expected = f"conv or linear: this architecture has maps of {len(by_stride)} strides, and UPerNet reads {STAGES}"
        raise ConfigError("head", head, expected)
    return [by_stride[stride] for stride in sorted(by_stride)[-STAGES:]]


def timm_maps(backbone: TimmBackbone, head: Head, drop_path: float) -> TimmMaps:
    """The part of a model that gives the maps which a head reads; the linear one's is after the final norm."""
    return TimmMaps(backbone, map_indices(backbone, head), norm=head == "linear", drop_path=drop_path)
