"""Masking: which patches are hidden from the encoder, and the table of strategies (MAE, Sec. 3 and Table 1f)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ConfigError, MaeliftError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

StrategyName = Literal["random", "block", "grid"]
"""The names in ``STRATEGIES``, as the type of the key masking.strategy."""
BLOCK_ASPECT = 0.3
"""Smallest height of a block over its width, and of the width over the height, as in BEiT (arXiv 2106.08254, Algorithm 1)."""
SMALLEST_BLOCK = 16
"""Least number of patches in a block, if the image has as many."""


@dataclass(frozen=True)
class Masking:
    """How patches are hidden from the encoder."""

    strategy: StrategyName = "random"
    """random: any patches; block: large blocks, as BEiT; grid: all but one of every four (ratio 0.75); paper Table 1f"""
    ratio: float = 0.75
    """share of patches hidden, in (0, 1); the paper's best is 0.75 (Fig. 5)"""
    in_encoder: bool = False
    """give the encoder mask tokens for hidden patches instead of leaving them out: slower and worse (paper Table 1c)"""

    def __post_init__(self) -> None:
        check_mask_ratio("ratio", self.ratio)
        only = STRATEGIES[self.strategy].ratio
        if only not in (None, self.ratio):
            raise ConfigError("ratio", self.ratio, f"{only:g} with strategy={self.strategy}, which can't have another")

    def check_grid(self, grid: tuple[int, int]) -> None:
        """Raise MaeliftError unless a grid of patches (rows, columns) can be masked this way."""
        num_visible(grid[0] * grid[1], self.ratio)
        cell = STRATEGIES[self.strategy].cell
        if grid[0] % cell or grid[1] % cell:
            others = " or ".join(name for name, strategy in STRATEGIES.items() if strategy.cell == 1)
            expected = f"{others}: {grid[0]}×{grid[1]} patches don't divide into {cell}×{cell}"
            raise ConfigError("masking.strategy", self.strategy, expected)

    def arrange(self, noise: Tensor, grid: tuple[int, int]) -> Tensor:
        """Noise (B, N), uniform in [0, 1), to values whose largest are hidden; their fractional parts remain the noise.

        The N patches lie on ``grid`` (rows, columns).
        """
        hidden = noise.shape[1] - num_visible(noise.shape[1], self.ratio)
        return noise + STRATEGIES[self.strategy].rank(noise, grid, hidden)


def _any_patches(noise: Tensor, grid: tuple[int, int], hidden: int) -> Tensor:
    """(B, N): the same rank for all patches."""
    return noise.new_zeros(noise.shape)


def _blocks(noise: Tensor, grid: tuple[int, int], hidden: int) -> Tensor:
    """(B, N): 0 for patches in no block, higher the earlier a patch was covered; blocks are drawn until enough are."""
    numbers = np.zeros((noise.shape[0], *grid), dtype=np.float32)
    for image, seed in zip(numbers, noise[:, 0].tolist(), strict=True):
        _cover(image, hidden, np.random.default_rng(int(seed * 2**53)))
    order = noise.new_tensor(numbers.reshape(noise.shape))
    return (order.amax(dim=1, keepdim=True) + 1 - order).where(order > 0, order)


def _cover(image: NDArray[np.float32], hidden: int, generator: np.random.Generator) -> None:
    """Number the patches of an image (rows, columns) by the block that first covers them, until so many are covered.

    Blocks may reach beyond the image: else its middle would always be hidden.
    """
    rows, columns = image.shape
    number = 0
    while (left := hidden - np.count_nonzero(image)) > 0:
        number += 1
        area = generator.uniform(min(SMALLEST_BLOCK, left), max(SMALLEST_BLOCK, left))
        aspect = math.exp(generator.uniform(math.log(BLOCK_ASPECT), -math.log(BLOCK_ASPECT)))
        height = min(rows, max(1, round(math.sqrt(area * aspect))))
        width = min(columns, max(1, round(math.sqrt(area / aspect))))
        top, first = generator.integers(rows) - height // 2, generator.integers(columns) - width // 2
        block = image[max(0, top) : top + height, max(0, first) : first + width]
        block[block == 0] = number


def _three_of_four(noise: Tensor, grid: tuple[int, int], hidden: int) -> Tensor:
    """(B, N): 0 for the one visible patch of every 2×2, 1 for the others; which one is drawn for each image."""
    visible = (noise[:, 0] * 4).long()  # (B,), 0 to 3
    rows, columns = np.indices(grid)
    place = visible.new_tensor((2 * (rows % 2) + columns % 2).ravel())  # (N,)
    return (place != visible[:, None]).to(noise.dtype)


@dataclass(frozen=True)
class Strategy:
    """One way to choose the hidden patches. A new one is a function, a row in ``STRATEGIES`` and a ``StrategyName``.

    ``rank`` takes noise (B, N), uniform in [0, 1), the grid of patches (rows, columns) and the number of patches to hide in
    each image, and gives whole numbers (B, N): the patches with the largest are hidden. The noise decides among equal
    ranks, and is the only source of randomness. ``ratio``: the only mask ratio that it can have; ``cell``: rows and columns
    of the grid must be multiples of it.
    """

    rank: Callable[[Tensor, tuple[int, int], int], Tensor]
    ratio: float | None = None
    cell: int = 1


STRATEGIES: Mapping[StrategyName, Strategy] = {
    "random": Strategy(_any_patches),
    "block": Strategy(_blocks),
    "grid": Strategy(_three_of_four, ratio=0.75, cell=2),
}
"""Every masking strategy by its name."""


@dataclass(frozen=True)
class Mask:
    """A split into visible and hidden patches for each image of a batch.

    ``ids_keep`` (B, V) int64: the visible patches in the order in which the encoder gets them; ``ids_restore`` (B, N)
    int64: the index of each patch in the sequence "visible, then hidden"; ``hidden`` (B, N) float32: 1 for hidden;
    ``ids_hidden`` (B, N - V) int64: the hidden patches.
    """

    ids_keep: Tensor
    ids_restore: Tensor
    hidden: Tensor
    ids_hidden: Tensor

    def to(self, device: torch.device) -> Mask:
        """The mask on a device."""
        return Mask(*(part.to(device) for part in (self.ids_keep, self.ids_restore, self.hidden, self.ids_hidden)))

    def some_hidden(self, noise: Tensor, share: float) -> Tensor:
        """A random share of the hidden patches, (B, M) int64, drawn by the fractional part of the noise (B, N); at 1 all."""
        if share == 1:
            return self.ids_hidden
        count = max(1, round(share * self.ids_hidden.shape[1]))
        among = noise.gather(1, self.ids_hidden).frac().argsort(dim=1)[:, :count]
        return self.ids_hidden.gather(1, among)


def check_mask_ratio(key: str, ratio: float) -> None:
    """Raise ConfigError unless 0 < ratio < 1."""
    if not 0 < ratio < 1:
        raise ConfigError(key, ratio, "a share between 0 and 1, both excluded")


def num_visible(num_patches: int, ratio: float) -> int:
    """How many of ``num_patches`` stay visible: N (1 - ratio), rounded down; raises MaeliftError if none or all would."""
    visible = int(num_patches * (1 - ratio))
    if not 0 < visible < num_patches:
        raise MaeliftError(
            f"a mask ratio of {ratio:g} leaves {visible} of {num_patches} patches visible: at least one must be visible "
            "and one hidden. Use a smaller patch_size, a larger image_size or another ratio."
        )
    return visible


def random_mask(noise: Tensor, ratio: float) -> Mask:
    """Hide the patches with the largest ``noise`` (B, N), uniform in [0, 1)."""
    return _split(noise.argsort(dim=1), num_visible(noise.shape[1], ratio))


def mask_of(hidden: Tensor) -> Mask:
    """Hide the patches where ``hidden`` (B, N) bool is true; as many in every image, not all and not none."""
    counts = hidden.sum(dim=1)
    if not (0 < int(counts[0]) < hidden.shape[1] and bool((counts == counts[0]).all())):
        raise MaeliftError(
            f"{sorted(set(counts.tolist()))} of {hidden.shape[1]} patches hidden: expected as many in every image, not all."
        )
    return _split(hidden.char().argsort(dim=1, stable=True), hidden.shape[1] - int(counts[0]))


def _split(ids_shuffle: Tensor, visible: int) -> Mask:
    """The first ``visible`` patches of the order (B, N) are visible."""
    ids_restore = ids_shuffle.argsort(dim=1)
    return Mask(
        ids_keep=ids_shuffle[:, :visible],
        ids_restore=ids_restore,
        hidden=(ids_restore >= visible).float(),
        ids_hidden=ids_shuffle[:, visible:],
    )
