"""Builds a backbone of the kind that its spec describes: a plain ViT of ours, or a model of timm."""

from __future__ import annotations

from typing import overload

from .backbone import Backbone, BackboneSpec
from .encoder import Encoder
from .encoder_spec import EncoderSpec
from .preprocessing import Preprocessing
from .timm_backbone import TimmBackbone
from .timm_spec import TimmSpec


@overload
def build_backbone(
    spec: EncoderSpec, *, preprocessing: Preprocessing | None = None, drop_path: float = 0.0
) -> Encoder: ...


@overload
def build_backbone(
    spec: BackboneSpec, *, preprocessing: Preprocessing | None = None, drop_path: float = 0.0
) -> Backbone: ...


def build_backbone(
    spec: BackboneSpec, *, preprocessing: Preprocessing | None = None, drop_path: float = 0.0
) -> Backbone:
    """A backbone with random weights, drawn from torch's stream."""
    if isinstance(spec, TimmSpec):
        return TimmBackbone(spec, preprocessing=preprocessing, drop_path=drop_path)
    return Encoder(spec, preprocessing=preprocessing, drop_path=drop_path)
