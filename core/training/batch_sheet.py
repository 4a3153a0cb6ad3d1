"""The first batch of a training as a picture: a contact sheet of its samples as they are augmented."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..data.composite import levels, picture_grid
from ..files import atomic_path
from ..models.preprocessing import EIGHT_BITS, Preprocessing
from .loader import Batch

BATCH_FILE = "batch.png"
SHOWN = 16
"""Samples on a sheet, at most."""
ACROSS = 4
SIDES = (112, 384)
"""Pixels of the longer side of a sample's picture: small ones are enlarged by whole numbers, large ones made smaller."""
MOST_AS_PNG = 400_000
"""Bytes of a sheet up to which a page has it as it is."""

DrawSample = Callable[[Batch, int], "Image.Image | None"]
"""The picture of a sample of a batch, by its place in it; None where there is nothing to be seen."""


def write_batch_sheet(batches: Sequence[Batch], draw: DrawSample, folder: Path) -> Path | None:
    """Write batch.png of the first samples of a step's micro-batches; None where ``draw`` has no pictures.

    It only reads the batches and draws nothing at random: training goes on as it would without.
    """
    places = ((batch, place) for batch in batches for place in range(len(batch.pixels)))
    drawn = [draw(batch, place) for batch, place in itertools.islice(places, SHOWN)]
    pictures = [_at_most(picture) for picture in drawn if picture is not None]
    if not pictures:
        return None
    sheet, path = picture_grid(pictures, ACROSS), folder / BATCH_FILE
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")
    return path


def sample_levels(pixels: Tensor, ends: NDArray[np.float64] | None) -> NDArray[np.uint8]:
    """The gray levels (H, W, C) of a sample (C, H, W) of stored values; see ``levels``."""
    return levels(pixels.detach().cpu().numpy().transpose(1, 2, 0), ends)


def shown_ends(preprocessing: Preprocessing) -> NDArray[np.float64] | None:
    """The values (C, 2) that pictures show as black and white: those of 8 bits; None: by the percentiles of each image."""
    eight_bits = preprocessing.bit_depth <= 8 and preprocessing.value_range == EIGHT_BITS
    return np.array([EIGHT_BITS] * len(preprocessing.mean)) if eight_bits else None


def enlarged(picture: Image.Image) -> Image.Image:
    """A small picture by whole numbers larger, so that its pixels can be seen."""
    scale = max(1, -(-SIDES[0] // max(picture.size)))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def sheet_for_page(folder: Path) -> tuple[bytes, str] | None:
    """The sheet of a run as (bytes, kind) for its page: small as PNG, else JPEG; None without one."""
    path = folder / BATCH_FILE
    if not path.is_file():
        return None
    if path.stat().st_size <= MOST_AS_PNG:
        return path.read_bytes(), "png"
    buffer = io.BytesIO()
    with Image.open(path) as sheet:
        sheet.convert("RGB").save(buffer, "JPEG", quality=88)
    return buffer.getvalue(), "jpeg"


def _at_most(picture: Image.Image) -> Image.Image:
    scale = SIDES[1] / max(picture.size)
    if scale >= 1:
        return picture
    size = max(1, round(scale * picture.width)), max(1, round(scale * picture.height))
    return picture.resize(size, Image.Resampling.LANCZOS)
