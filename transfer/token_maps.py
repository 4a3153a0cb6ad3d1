"""Pictures of patch tokens by their principal components, and of the class token's attention."""

from __future__ import annotations

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.models.attention_maps import class_attention
from ..core.models.backbone import Backbone
from .embed_map import principal_components

PERCENTILES = (1.0, 99.0)
"""Of a component's values that are shown as dark and as bright."""
COLOUR_MAP = "viridis"
"""Of attention: dark to bright, also to the colour-blind and in gray."""


@torch.inference_mode()
def token_pictures(backbone: Backbone, images: Tensor) -> list[NDArray[np.uint8]] | None:
    """Pictures (rows, columns, 3) of the patch tokens of normalised images (B, C, H, W); None where tokens aren't on a grid.

    Red, green and blue are the first three principal components of the tokens of all these images together, as in DINOv2 (Oquab
    et al. 2023, Fig. 1), without its removal of the background.
    """
    features = backbone.forward_features(images)
    rows, columns = features.grid
    batch, count, dim = features.tokens.shape
    if rows * columns != count:
        return None
    scores, _ = principal_components(features.tokens.float().reshape(-1, dim).cpu().numpy(), 3)
    low, high = np.percentile(scores, PERCENTILES, axis=0)
    scaled = np.where(high > low, (scores - low) / np.where(high > low, high - low, 1), 0.5).clip(0, 1)
    pictures = (255 * scaled).round().astype(np.uint8).reshape(batch, rows, columns, 3)
    return list(pictures)


@torch.inference_mode()
def attention_pictures(backbone: Backbone, images: Tensor) -> tuple[list[NDArray[np.uint8]], list[float]] | None:
    """Pictures (rows, columns, 3) of the class token's attention in the last block, the mean over the heads, each from 0 to its
    largest value; and the share of it that the patches have together. None for what has no such attention.

    ``images``: normalised, (B, C, H, W).
    """
    weights = class_attention(backbone, images)
    if weights is None:
        return None
    rows, columns = backbone.forward_features(images[:1]).grid
    mean = weights.float().mean(dim=1).reshape(-1, rows, columns).cpu().numpy()
    colours = matplotlib.colormaps[COLOUR_MAP]
    pictures = [(255 * colours(one / max(float(one.max()), 1e-12))[:, :, :3]).round().astype(np.uint8) for one in mean]
    return pictures, [float(one.sum()) for one in mean]
