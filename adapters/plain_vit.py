"""The exported backbone for torchvision: read from its folder, with its pyramid and the detectors on it.

Needs torch and torchvision only: exports carry this file with them, as the package ``plain_vit``, and the files ``PARTS``
beside it, which import nothing of maelift either.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from .simple_feature_pyramid import SimpleFeaturePyramid
from .torchvision_detectors import Heads, PyramidRoIAlign, faster_rcnn, mask_rcnn
from .windowed_vit import PlainViT, load_weights

__all__ = [
    "PARTS",
    "Heads",
    "PlainViT",
    "PyramidRoIAlign",
    "SimpleFeaturePyramid",
    "faster_rcnn",
    "load_backbone",
    "load_weights",
    "mask_rcnn",
]

PARTS = ("windowed_vit.py", "simple_feature_pyramid.py", "torchvision_detectors.py")
"""The files that an export carries beside this one."""


def load_backbone(folder: str | Path, *, pretrained: bool = True, **changes: Any) -> SimpleFeaturePyramid:
    """The backbone of an export folder (``backbone.json``, ``backbone.pth``), with a new pyramid.

    ``changes`` are keywords of PlainViT, or ``out_channels`` and ``scale_factors`` of the pyramid. ``pretrained=False``
    gives the same network with new weights, the baseline to compare with.
    """
    settings = json.loads((Path(folder) / "backbone.json").read_text())
    arguments = {**settings["backbone"], **changes}
    pyramid = {key: arguments.pop(key) for key in ("out_channels", "scale_factors") if key in arguments}
    net = PlainViT(**{**arguments, "image_size": tuple(arguments["image_size"])})
    if pretrained:
        load_weights(net, torch.load(Path(folder) / "backbone.pth", map_location="cpu", weights_only=True))
    backbone = SimpleFeaturePyramid(net, **pyramid)
    backbone.transform_settings = settings["transform"]
    return backbone
