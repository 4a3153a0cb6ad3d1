"""The shape of an encoder, its bounds, and the named presets (ViT; MAE, Sec. 4.1)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..errors import ConfigError

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"]
"""The activation of the MLPs: the exact GELU is the paper's; others occur in weights of other libraries."""

LARGEST = {"patch_size": 4096, "channels": 65536, "embed_dim": 65536, "depth": 1024, "num_heads": 4096}
"""Upper bounds of a spec's fields, far above the largest ViTs: larger values are errors."""

LARGEST_SIDE = 2**20
"""Largest side of the images, in pixels."""

LARGEST_MLP = 2**20
"""Largest width of the blocks' MLPs."""

LARGEST_EPS = 0.1
"""Largest epsilon of LayerNorm; usual are 1e-12 to 1e-5."""


@dataclass(frozen=True)
class EncoderSpec:
    """The shape of an encoder: all that is needed to build one.

    ``image_size`` is (height, width) in pixels, ``norm_eps`` the epsilon of every LayerNorm, ``act`` the activation of
    every MLP, one of ``Activation``; files without it have the exact GELU.
    """

    image_size: tuple[int, int] = (224, 224)
    patch_size: int = 16
    channels: int = 3
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6
    class_token: bool = True
    act: str = "gelu"

    def __post_init__(self) -> None:
        if self.act not in get_args(Activation):
            raise ConfigError("act", self.act, f"one of {', '.join(get_args(Activation))}")
        for key, most in LARGEST.items():
            if not 1 <= getattr(self, key) <= most:
                raise ConfigError(key, getattr(self, key), f"a whole number of at least 1, at most {most}")
        if not all(1 <= side <= LARGEST_SIDE for side in self.image_size):
            raise ConfigError("image_size", list(self.image_size), f"sides from 1 to {LARGEST_SIDE} pixels")
        if not (math.isfinite(self.mlp_ratio) and 1 <= int(self.embed_dim * self.mlp_ratio) <= LARGEST_MLP):
            expected = f"a number with which the MLPs are 1 to {LARGEST_MLP} wide"
            raise ConfigError("mlp_ratio", self.mlp_ratio, expected)
        if not 0 < self.norm_eps <= LARGEST_EPS:
            raise ConfigError("norm_eps", self.norm_eps, f"a number above 0, at most {LARGEST_EPS:g}")
        check_divisible(self.image_size, self.patch_size)
        if self.embed_dim % self.num_heads:
            raise ConfigError("num_heads", self.num_heads, f"a divisor of embed_dim={self.embed_dim}")
        if self.embed_dim % 4:
            raise ConfigError("embed_dim", self.embed_dim, "a multiple of 4 (sine-cosine positions on two axes)")

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> EncoderSpec:
        """The spec from the JSON of its ``dataclasses.asdict``; raises TypeError for other content."""
        return cls(**{**content, "image_size": tuple(content["image_size"])})

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along (height, width)."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches in an image, N."""
        return math.prod(self.grid)

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before those of the patches: 1 with a class token, else 0."""
        return int(self.class_token)


@dataclass(frozen=True)
class Preset:
    """A named encoder: its shape and its usual image size in pixels."""

    embed_dim: int
    depth: int
    num_heads: int
    patch_size: int = 16
    image_size: int = 224


PRESETS = {
    "vit_nano": Preset(64, 3, 4, patch_size=4, image_size=32),
    "vit_micro": Preset(128, 4, 4, patch_size=8, image_size=64),
    "vit_tiny": Preset(192, 12, 3),
    "vit_small": Preset(384, 12, 6),
    "vit_base": Preset(768, 12, 12),
    "vit_large": Preset(1024, 24, 16),
    "vit_huge": Preset(1280, 32, 16, patch_size=14),
}
"""Encoders by name: the ViT family of the paper, and ``vit_nano`` and ``vit_micro`` for a CPU."""

ModelName = Literal["vit_nano", "vit_micro", "vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge"]


def preset_spec(
    name: str,
    *,
    image_size: int | tuple[int, int] | None = None,
    patch_size: int | None = None,
    channels: int = 3,
) -> EncoderSpec:
    """The spec of a preset at an image size (pixels, one side or (height, width)), patch size and channel count."""
    if name not in PRESETS:
        raise ConfigError("model", name, f"one of {', '.join(PRESETS)}")
    preset = PRESETS[name]
    size = image_size or preset.image_size
    return EncoderSpec(
        image_size=(size, size) if isinstance(size, int) else size,
        patch_size=patch_size or preset.patch_size,
        channels=channels,
        embed_dim=preset.embed_dim,
        depth=preset.depth,
        num_heads=preset.num_heads,
    )


def check_divisible(image_size: tuple[int, int], patch_size: int) -> None:
    """Raise ConfigError unless both sides of ``image_size`` (pixels) are positive multiples of ``patch_size``."""
    if all(side >= patch_size and side % patch_size == 0 for side in image_size):
        return
    fitting = tuple(max(1, round(side / patch_size)) * patch_size for side in image_size)
    raise ConfigError(
        "image_size",
        list(image_size),
        f"multiples of the patch size {patch_size}",
        f"The nearest is image_size=[{fitting[0]},{fitting[1]}]; or choose another patch_size.",
    )


def layer_index(name: str, depth: int) -> int:
    """The layer of a ViT's parameter: 0 for embeddings, 1 to ``depth`` for the blocks, ``depth`` + 1 for the rest."""
    if name.startswith(("cls_token", "pos_embed", "patch_embed")):
        return 0
    found = re.match(r"blocks\.(\d+)\.", name)
    return int(found[1]) + 1 if found else depth + 1
