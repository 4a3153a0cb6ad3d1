"""The grid of patches that a checkpoint's position embeddings were trained on, read from their number."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import CheckpointError
from .encoder_spec import check_divisible
from .weight_files import import_command


@dataclass(frozen=True)
class Grid:
    """The image size (height, width) in pixels that positions are for, the normalized tensors, and assumptions."""

    image_size: tuple[int, int]
    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def normalize_positions(
    source: str, state: dict[str, Tensor], image_size: tuple[int, int] | None, *, patch: int, dense: bool
) -> Grid:
    """Normalize positions to one for each patch, after one for the class token if there is one.

    ``image_size`` (height, width) in pixels determines the grid if it is given. Otherwise a square grid is assumed if that is
    the only possibility; n² positions with a class token can also be n - 1 rows and n + 1 columns and the token: then
    CheckpointError asks for the size. ``dense``: a backbone may have a position for a class token that it lacks.
    """
    positions, class_token = state["pos_embed"], "cls_token" in state
    if positions.ndim != 3 or len(positions) != 1:
        raise CheckpointError(f"{source}: pos_embed has shape {list(positions.shape)}. Expected (1, positions, width).")
    count = positions.shape[1]
    if image_size is not None:
        check_divisible(image_size, patch)
        patches = (image_size[0] // patch) * (image_size[1] // patch)
        if count not in (patches, patches + 1):
            raise CheckpointError(
                f"{source}: image_size={list(image_size)} makes {patches} patches of {patch} pixels, and its positions are for "
                f"{count - class_token}. Give the size that it was trained at; other sizes come where it is used."
            )
        return Grid(image_size, _one_for_each(state, patches), _left_out(count, patches, class_token))
    side = math.isqrt(max(0, count - 1))
    if _is_square(count) and not class_token:
        side = math.isqrt(count)
    elif not _is_square(count - 1) or not (class_token or dense):
        raise CheckpointError(
            f"{source}: {_why_no_grid(count, class_token)} Give the size in pixels: "
            f"{_sizes(source, count, class_token, patch)}"
        )
    size = (side * patch, side * patch)
    notes = [
        f"assumed: a square grid of {side}×{side} patches, {size[0]}×{size[1]} pixels; else give image_size=[height,width]"
    ]
    return Grid(size, _one_for_each(state, side**2), (*notes, *_left_out(count, side**2, class_token)))


def _left_out(count: int, patches: int, class_token: bool) -> tuple[str, ...]:
    if class_token or count == patches:
        return ()
    return ("the first position is assumed to be that of a class token, which the weights lack, and left out",)


def _one_for_each(state: dict[str, Tensor], patches: int) -> dict[str, Tensor]:
    """The state with one position for each patch, and before them one for the class token where there is one.

    In timm the class token may have no position, which is equal to a position of zero.
    """
    positions, class_token = state["pos_embed"], "cls_token" in state
    if class_token and positions.shape[1] == patches:
        positions = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    if not class_token and positions.shape[1] == patches + 1:
        positions = positions[:, 1:]
    return {**state, "pos_embed": positions}


def _why_no_grid(count: int, class_token: bool) -> str:
    if class_token and _is_square(count):
        side = math.isqrt(count)
        return (
            f"{count} positions and a class token are {side}×{side} patches and none for the token, or {count - 1} patches "
            f"(as {_factors(count - 1)[0]}×{_factors(count - 1)[1]}) and one for it."
        )
    return f"{count - class_token} patches{' and a class token' if class_token else ''} are no square grid."


def _sizes(source: str, count: int, class_token: bool, patch: int) -> str:
    """Commands with the sizes that positions may be for."""
    grids = [_factors(count - 1)] if class_token else [_factors(count)]
    if class_token and _is_square(count):
        grids.insert(0, (math.isqrt(count), math.isqrt(count)))
    first, *others = (f"image_size=[{rows * patch},{columns * patch}]" for rows, columns in grids)
    turned = f"image_size=[{grids[-1][1] * patch},{grids[-1][0] * patch}]"
    return f"{import_command(source, first)} (or {', '.join([*others, turned])}; height first)."


def _factors(count: int) -> tuple[int, int]:
    """Rows and columns of a grid of so many patches, as near to a square as it can be."""
    rows = next(side for side in range(math.isqrt(max(1, count)), 0, -1) if count % side == 0)
    return rows, count // rows


def _is_square(count: int) -> bool:
    return count > 0 and math.isqrt(count) ** 2 == count
