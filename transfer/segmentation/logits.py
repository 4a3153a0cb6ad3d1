"""Logits at another size: resized, their argmax and their loss, in bounded memory."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.data.segmentation import ignore_index

MAX_LOGITS = 2**26
"""Logits that are resized to an image's size together: photographs times many classes would not fit in memory."""


def resized_argmax(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The number of the highest logit (K, h, w), resized to (H, W), at each pixel: uint8, or int64 with over 256 classes.

    Of equal ones the first. Takes a few classes at a time, so that memory is not K times the image.
    """
    kind = torch.uint8 if len(logits) <= 256 else torch.int64
    best = torch.full(size, -math.inf, device=logits.device)
    number = torch.zeros(size, dtype=kind, device=logits.device)
    step = max(1, MAX_LOGITS // math.prod(size))
    for start in range(0, len(logits), step):
        values, places = resize_logits(logits[None, start : start + step], size)[0].max(dim=0)
        higher = values > best
        best = torch.where(higher, values, best)
        number = torch.where(higher, (places + start).to(kind), number)
    return number


def resize_logits(logits: Tensor, size: tuple[int, ...]) -> Tensor:
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def cross_entropy(logits: Tensor, masks: Tensor) -> Tensor:
    """Of logits (B, K, h, w), resized to the masks (B, H, W); the mean over the pixels that count, 0 where none does."""
    resized, ignored = resize_logits(logits.float(), masks.shape[-2:]), ignore_index(logits.shape[1])
    total = F.cross_entropy(resized, masks, ignore_index=ignored, reduction="sum")
    return total / (masks != ignored).sum().clamp(min=1)
