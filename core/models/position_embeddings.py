"""Position embeddings: fixed sine-cosine ones, and resizing to another grid of patches (MAE, Appendix A.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sincos_positions(dim: int, grid: tuple[int, int], num_prefix_tokens: int = 0) -> Tensor:
    """Fixed 2-D sine-cosine position embeddings, (1, P + N, D), float32; zeros for the P prefix tokens.

    Half of the channels encode the column, half the row, each as sines then cosines of geometric frequencies from 1
    down to 1/10000 (MAE, Appendix A.1; MoCo v3).
    """
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = (torch.arange(side, dtype=torch.float64) for side in grid)
    angles = [
        columns.repeat(grid[0]).outer(frequencies),
        rows.repeat_interleave(grid[1]).outer(frequencies),
    ]
    patches = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float()
    return torch.cat([torch.zeros(num_prefix_tokens, dim), patches]).unsqueeze(0)


def resize_positions(
    positions: Tensor, grid: tuple[int, int], new_grid: tuple[int, int], num_prefix_tokens: int
) -> Tensor:
    """Position embeddings (1, P + N, D) of one grid for another: bicubic, not antialiased, prefix tokens kept."""
    if grid == new_grid:
        return positions
    prefix, patches = positions[:, :num_prefix_tokens], positions[:, num_prefix_tokens:]
    plane = patches.reshape(1, *grid, -1).permute(0, 3, 1, 2)  # (1, D, rows, columns)
    precision = torch.promote_types(plane.dtype, torch.float32)  # half precision is too coarse to interpolate in
    plane = F.interpolate(plane.to(precision), size=new_grid, mode="bicubic", align_corners=False)
    resized = plane.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)
    return torch.cat([prefix, resized], dim=1)
