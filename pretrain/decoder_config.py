"""The configuration of the decoder of pretraining (MAE, Table 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..core.errors import ConfigError


@dataclass(frozen=True)
class DecoderConfig:
    """The light decoder, thrown away after pretraining."""

    embed_dim: int = 512
    """width of the decoder's tokens, in channels (paper Table 1b)"""
    depth: int = 8
    """number of transformer blocks (paper Table 1a)"""
    num_heads: int = 16
    """attention heads; must divide embed_dim"""
    attention: Literal["self", "cross"] = "self"
    """self: among all patches, as the paper; cross: from hidden patches to the encoder's output only (CrossMAE, 2024)"""
    predict: float = 1.0
    """share of the hidden patches that is predicted in training; below 1 with attention=cross, at 0.25 far cheaper"""

    def __post_init__(self) -> None:
        for key in ("embed_dim", "depth", "num_heads"):
            if getattr(self, key) < 1:
                raise ConfigError(key, getattr(self, key), "a whole number of at least 1")
        if self.embed_dim % self.num_heads:
            raise ConfigError("num_heads", self.num_heads, f"a divisor of the decoder's embed_dim={self.embed_dim}")
        if not 0 < self.predict <= 1:
            raise ConfigError("predict", self.predict, "a share above 0, up to 1")
        if self.predict < 1 and self.attention == "self":
            raise ConfigError("predict", self.predict, "1 with attention=self, where every hidden patch takes part")
        if self.embed_dim % 4:
            raise ConfigError("embed_dim", self.embed_dim, "a multiple of 4 (sine-cosine positions on two axes)")
