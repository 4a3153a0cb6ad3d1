"""The description of a model of timm as an encoder: architecture, arguments, and the size and channels of its images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError
from .encoder_spec import LARGEST, LARGEST_SIDE

TIMM = "timm:"
"""Before the name of a model of timm, where a user names one."""
SET_HERE = ("num_classes", "in_chans", "img_size", "drop_path_rate")
"""Arguments of ``timm.create_model`` that follow from the other fields, or from the training."""
NO_ARGUMENTS = (
    *SET_HERE,
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_strict",
    "pretrained_filter_fn",
    "pretrained_model_args",
    "checkpoint_path",
    "cache_dir",
    "scriptable",
    "exportable",
    "no_jit",
    "features_only",
    "feature_cfg",
    "feature_cls",
    "out_indices",
    "kwargs_filter",
    "pruned",
)
"""Arguments that say nothing of an architecture, but of the source of weights or of another use."""
LONGEST_NAME, LONGEST_LIST, DEEPEST, LARGEST_NUMBER = 200, 1000, 4, LARGEST["embed_dim"]
"""Bounds of names and arguments, far above those of any model."""


@dataclass(frozen=True)
class TimmSpec:
    """A model of timm: all that is needed to build one.

    ``architecture``: timm's name without the tag of weights; ``image_size`` (height, width) in pixels; ``arguments``: other
    arguments of ``timm.create_model``, as JSON can hold them; ``timm_version``: the version that the weights were saved with.
    """

    architecture: str
    image_size: tuple[int, int] = (224, 224)
    channels: int = 3
    arguments: Mapping[str, Any] = field(default_factory=dict)
    timm_version: str = ""

    def __post_init__(self) -> None:
        if not 0 < len(self.architecture) <= LONGEST_NAME or not self.architecture.replace("_", "").isalnum():
            raise ConfigError("architecture", self.architecture, "the name of a model of timm, without its tag")
        if not 1 <= self.channels <= LARGEST["channels"]:
            raise ConfigError("channels", self.channels, f"a whole number from 1 to {LARGEST['channels']}")
        if not all(1 <= side <= LARGEST_SIDE for side in self.image_size):
            raise ConfigError("image_size", list(self.image_size), f"sides from 1 to {LARGEST_SIDE} pixels")
        for name, value in self.arguments.items():
            if name in NO_ARGUMENTS:
                raise ConfigError(f"arguments.{name}", value, "arguments of the architecture alone")
            if not _is_small(value):
                expected = f"text, numbers up to {LARGEST_NUMBER}, and lists of up to {LONGEST_LIST} of them"
                raise ConfigError(f"arguments.{name}", value, expected)


def _is_small(value: object, level: int = 0) -> bool:
    """Whether a value of an argument is one that an architecture may have."""
    if isinstance(value, Mapping | list | tuple):
        inner = list(value.values()) if isinstance(value, Mapping) else value
        return level < DEEPEST and len(inner) <= LONGEST_LIST and all(_is_small(item, level + 1) for item in inner)
    if isinstance(value, int | float):
        return abs(value) <= LARGEST_NUMBER
    return value is None or (isinstance(value, str) and len(value) <= LONGEST_NAME)
