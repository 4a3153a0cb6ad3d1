"""Which patches the encoder may see: random masking by the order of uniform noise (MAE, Sec. 3, "Masking")."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.config import ConfigError, MaeliftError


@dataclass(frozen=True)
class Masking:
    """How patches are hidden from the encoder."""

    ratio: float = 0.75
    """share of patches hidden, in (0, 1); the paper's best is 0.75 (Fig. 5)"""

    def __post_init__(self) -> None:
        check_mask_ratio("ratio", self.ratio)


@dataclass(frozen=True)
class Mask:
    """One split into visible and hidden patches for each image of a batch.

    ``ids_keep`` (B, V) int64: the visible patches in the order in which the encoder gets them; ``ids_restore`` (B, N)
    int64: where each patch stands in the sequence "visible, then hidden"; ``hidden`` (B, N) float32: 1 for hidden.
    """

    ids_keep: Tensor
    ids_restore: Tensor
    hidden: Tensor


def check_mask_ratio(key: str, ratio: float) -> None:
    """Raise ConfigError unless 0 < ratio < 1."""
    if not 0 < ratio < 1:
        raise ConfigError(key, ratio, "a share between 0 and 1, both excluded")


def num_visible(num_patches: int, ratio: float) -> int:
    """How many of ``num_patches`` stay visible: the whole part of N (1 - ratio); raises when none or all would."""
    visible = int(num_patches * (1 - ratio))
    if not 0 < visible < num_patches:
        raise MaeliftError(
            f"a mask ratio of {ratio:g} leaves {visible} of {num_patches} patches visible: at least one must be visible "
            "and one hidden. Use a smaller patch_size, a larger image_size or another ratio."
        )
    return visible


def random_mask(noise: Tensor, ratio: float) -> Mask:
    """Hide the patches with the largest ``noise`` (B, N), uniform in [0, 1)."""
    visible = num_visible(noise.shape[1], ratio)
    ids_shuffle = noise.argsort(dim=1)
    ids_restore = ids_shuffle.argsort(dim=1)
    return Mask(ids_shuffle[:, :visible], ids_restore, (ids_restore >= visible).to(torch.float32))
