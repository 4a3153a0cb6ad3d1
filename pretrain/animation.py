"""The reconstructions of a run as an animation over its training, with the hidden patches framed, for its report."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..core.data.composite import picture_grid
from ..core.models.encoder_spec import preset_spec
from .data import Source
from .evaluation import fixed_noise, picture_columns, shown_count
from .masking import random_mask

MOST_FRAMES = 20
MOST_BYTES = 3_000_000
WIDTHS = (640, 480, 360, 240, 160)
"""Widths of the animation in pixels, of which the largest is taken that gives few enough bytes."""
ACROSS, GAP = 4, 4
MILLISECONDS, AT_THE_END = 350, 2500
LINE = (255, 221, 51)
"""The colour of the line between visible and hidden patches."""
BAR = 18
"""Pixels of height of the bar below the pictures, with the step and how far the training is."""


@dataclass(frozen=True)
class Animation:
    """``moving``: an APNG of ``frames`` pictures; ``still``: its last picture as PNG, for readers who want no motion."""

    moving: bytes
    still: bytes
    frames: int


def reconstruction_animation(pictures: Mapping[int, Path], source: Source) -> Animation | None:
    """The reconstructions of up to ``MOST_FRAMES`` of the pictures by step; None of fewer than two.

    It has less than ``MOST_BYTES``, where need be by smaller pictures; None if the smallest have more.
    """
    steps = sorted(pictures)
    if len(steps) < 2:
        return None
    count = min(MOST_FRAMES, len(steps))
    chosen = sorted({steps[round(number * (len(steps) - 1) / (count - 1))] for number in range(count)})
    hidden = hidden_patches(source)
    tiles = {step: _rebuilt(pictures[step], hidden) for step in chosen}
    across = min(ACROSS, len(hidden))
    widest = across * (tiles[chosen[0]][0].width + GAP) - GAP
    for width in sorted({min(width, widest) for width in WIDTHS}, reverse=True):
        frames = [_frame(tiles[step], width, step, steps[-1]) for step in chosen]
        if len(_encoded(frames[-1:])) * len(frames) > 2 * MOST_BYTES:
            continue  # not encoded in vain: frames share half of their pixels at most
        moving = _encoded(frames)
        if len(moving) < MOST_BYTES:
            return Animation(moving, _encoded(frames[-1:]), len(frames))
    return None


def hidden_patches(source: Source) -> NDArray[np.bool_]:
    """Which patches (count, rows, columns) are hidden in a run's pictures of reconstructions: the same in each."""
    config = source.config
    grid = preset_spec(config.model, image_size=config.image_size, patch_size=config.patch_size).grid
    noise = fixed_noise(config.seed, shown_count(source), config.masking, grid)
    found: NDArray[np.bool_] = random_mask(noise, config.masking.ratio).hidden.bool().numpy().reshape(-1, *grid)
    return found


def _rebuilt(path: Path, hidden: NDArray[np.bool_]) -> list[Image.Image]:
    """The reconstructions of a picture with lines around what was hidden."""
    with Image.open(path) as file:
        *_, rebuilt = picture_columns(file.convert("RGB"), len(hidden))
    for tile, patches in zip(rebuilt, hidden, strict=True):
        _frame_hidden(tile, patches)
    return rebuilt


def _frame_hidden(tile: Image.Image, hidden: NDArray[np.bool_]) -> None:
    """Draw lines between visible and hidden patches; below the image there may be small pictures of its channels."""
    side = tile.width / hidden.shape[1]
    draw = ImageDraw.Draw(tile)
    for row, column in np.argwhere(hidden[:, 1:] != hidden[:, :-1]):
        x = round((column + 1) * side)
        draw.line((x, round(row * side), x, round((row + 1) * side)), fill=LINE)
    for row, column in np.argwhere(hidden[1:] != hidden[:-1]):
        y = round((row + 1) * side)
        draw.line((round(column * side), y, round((column + 1) * side), y), fill=LINE)


def _frame(tiles: Sequence[Image.Image], width: int, step: int, last: int) -> Image.Image:
    """A frame of ``width`` pixels: the tiles, and below them the step and a bar that grows with it."""
    sheet = picture_grid(tiles, ACROSS, GAP)
    height = max(1, round(sheet.height * width / sheet.width))
    small = sheet if width == sheet.width else sheet.resize((width, height), Image.Resampling.LANCZOS)
    frame = Image.new("RGB", (width, height + BAR), "white")
    frame.paste(small, (0, 0))
    draw = ImageDraw.Draw(frame)
    draw.rectangle((0, height + BAR - 3, round(step / last * (width - 1)), height + BAR - 1), fill=(0, 114, 178))
    draw.text((2, height + 1), f"after {step:,} steps", fill="black", font=ImageFont.load_default(11))
    return frame


def _encoded(frames: Sequence[Image.Image]) -> bytes:
    """Frames as PNG; several as APNG, which stays longer at the last and repeats."""
    buffer = io.BytesIO()
    more = {}
    if len(frames) > 1:
        shown = [*[MILLISECONDS] * (len(frames) - 1), AT_THE_END]
        more = {"save_all": True, "append_images": frames[1:], "duration": shown, "loop": 0}
    frames[0].save(buffer, format="PNG", **more)
    return buffer.getvalue()
