"""The canvas: an image fitted into a detector's fixed size, and masks pasted back into the image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...core.data.transforms import resized_around_gaps
from ...core.models.preprocessing import Preprocessing

Pixels = NDArray[np.generic]


@dataclass(frozen=True, eq=False)
class Canvas:
    """An image fitted into a fixed size, its longer side first, in proportion; the rest, right and below, is the mean.

    ``pixels`` (C, H, W) of stored values; ``size`` (height, width) of the image as it was; ``scale`` (along x, along y):
    what its coordinates are multiplied by.
    """

    pixels: Pixels
    size: tuple[int, int]
    scale: tuple[float, float]

    @classmethod
    def of(cls, image: Pixels, canvas: tuple[int, int], preprocessing: Preprocessing) -> Canvas:
        height, width = image.shape[1:]
        factor = min(canvas[0] / height, canvas[1] / width)
        fitted = (
            min(canvas[0], max(1, round(height * factor))),
            min(canvas[1], max(1, round(width * factor))),
        )
        pixels = empty_canvas(canvas, preprocessing, image.dtype)
        pixels[:, : fitted[0], : fitted[1]] = crop_and_resize(image, (0, 0, width, height), fitted, preprocessing)
        return cls(pixels, (height, width), (fitted[1] / width, fitted[0] / height))


def empty_canvas(canvas: tuple[int, int], preprocessing: Preprocessing, dtype: np.dtype[Any]) -> Pixels:
    """An empty canvas (C, H, W): the mean of every channel, which the encoder sees as zero."""
    mean = np.array(preprocessing.pixel_mean)
    values = np.rint(mean) if np.issubdtype(dtype, np.integer) else mean
    pixels: Pixels = np.broadcast_to(values.astype(dtype)[:, None, None], (len(mean), *canvas)).copy()
    return pixels


def crop_and_resize(
    image: Pixels, box: tuple[float, float, float, float], size: tuple[int, int], preprocessing: Preprocessing
) -> Pixels:
    """The part of an image (C, H, W) within ``box`` (x1, y1, x2, y2, pixels) at another size (height, width)."""
    full = (0, 0, image.shape[2], image.shape[1])
    if box == full and size == image.shape[1:]:
        return image
    method = Image.Resampling[preprocessing.interpolation.upper()]

    def resize(values: Pixels) -> Pixels:
        return np.stack(
            [np.asarray(Image.fromarray(plane).resize((size[1], size[0]), method, box=box)) for plane in values]
        )

    values = image if image.dtype == np.uint8 else image.astype(np.float32)
    return resized_around_gaps(values, resize, 0).astype(image.dtype)


def paste_masks(grids: Tensor, boxes: Tensor, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Masks (n, M, M) of probabilities over boxes (n, 4) to masks of the image, (n, H, W) bool, where they are at least 0.5.

    Each pixel whose middle is in the box is looked up there, between the cells; torchvision's own pasting rounds boxes to
    whole pixels, too coarse for small objects.
    """
    height, width = size
    masks = np.zeros((len(grids), height, width), dtype=bool)
    for number, (grid, box) in enumerate(zip(grids, boxes.tolist(), strict=True)):
        x1, y1 = (max(0, math.ceil(side - 0.5)) for side in box[:2])  # the first pixel whose middle is inside
        x2, y2 = (min(most, math.floor(side + 0.5)) for side, most in zip(box[2:], (width, height), strict=True))
        if x2 <= x1 or y2 <= y1:
            continue
        across = (torch.arange(x1, x2) + 0.5 - box[0]) / (box[2] - box[0]) * 2 - 1
        down = (torch.arange(y1, y2) + 0.5 - box[1]) / (box[3] - box[1]) * 2 - 1
        places = torch.stack(torch.meshgrid(across, down, indexing="xy"), dim=-1)  # (h, w, 2)
        values = F.grid_sample(grid[None, None], places[None], padding_mode="border", align_corners=False)
        masks[number, y1:y2, x1:x2] = (values[0, 0] >= 0.5).numpy()
    return masks
