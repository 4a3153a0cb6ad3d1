"""Exact nearest neighbours by the cosine of features, in blocks of bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ..core.models.probes import SIMILARITIES
from ..core.progress import progress_logger


@dataclass(frozen=True)
class Neighbours:
    """The nearest rows of some rows, nearest first: their numbers (Q, K) int64, and their cosines (Q, K) float32."""

    numbers: NDArray[np.int64]
    cosines: NDArray[np.float32]


@torch.inference_mode()
def nearest_neighbours(
    features: NDArray[np.float32], k: int, device: torch.device, rows: Sequence[int] | None = None
) -> Neighbours:
    """The ``k`` nearest other rows of ``features`` (N, D), ``k`` below N, for each of ``rows``, or for all.

    Cosines are computed in float32 on ``device``, as matrix products of at most ``SIMILARITIES`` values at a time. A row of
    zeros has a cosine of 0 with all others.
    """
    bank = F.normalize(torch.from_numpy(np.ascontiguousarray(features)).to(device), dim=1)
    wanted = torch.arange(len(bank)) if rows is None else torch.tensor(list(rows), dtype=torch.int64)
    numbers, cosines, done = [], [], 0
    log_progress = progress_logger("neighbours")
    for part in torch.split(wanted.to(device), max(1, SIMILARITIES // len(bank))):
        similar = bank[part] @ bank.T  # (B, N)
        similar.scatter_(1, part[:, None], -torch.inf)  # an image is no neighbour of itself
        nearest = similar.topk(k, dim=1)
        numbers.append(nearest.indices.cpu().numpy())
        cosines.append(nearest.values.cpu().numpy())
        log_progress(done := done + len(part), len(wanted))
    return Neighbours(np.concatenate(numbers), np.concatenate(cosines))
