"""Cost estimates before a run: floating-point operations, memory and disk, and time by a short measurement."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from .encoder_spec import EncoderSpec

UTILISATION = 0.5
"""Share of the speed of large matrix products that training reaches: 0.55 to 0.75 was measured for ViTs on a CPU, without
loading the images."""
MOST_FLOPS = 1e12
"""Operations per image above which a step is estimated, not measured, which would take minutes on a CPU."""
ONE_STEP = 2e10
"""Operations of a measured step: about half a second of a CPU core."""

FLOAT_BYTES = 4
"""Bytes of a weight, in memory and in files."""


def block_flops(tokens: int, dim: int, mlp_ratio: float = 4.0) -> float:
    """Floating-point operations of one transformer block on one image, forward (two a multiply-add)."""
    linear = (4 + 2 * mlp_ratio) * tokens * dim**2
    attention = 2 * tokens**2 * dim
    return 2 * (linear + attention)


def encoder_flops(spec: EncoderSpec, visible_patches: int | None = None) -> float:
    """Floating-point operations of an encoder on one image, forward; on all patches or on the visible ones."""
    patches = spec.num_patches if visible_patches is None else visible_patches
    embedding = 2 * patches * spec.patch_size**2 * spec.channels * spec.embed_dim
    tokens = patches + spec.num_prefix_tokens
    return embedding + spec.depth * block_flops(tokens, spec.embed_dim, spec.mlp_ratio)


def training_memory(parameters: int, tokens_times_dim: float, batch_size: int) -> int:
    """Rough bytes for training with AdamW in float32.

    Weights, gradients and two moments, and about 17 activations per token, channel and block saved for the backward pass;
    ``tokens_times_dim`` is the sum of tokens times channels over the blocks, for one image.
    """
    return int(16 * parameters + 4 * 17 * tokens_times_dim * batch_size)


def checkpoint_bytes(parameters: int, stored: int, *, averaged: bool) -> int:
    """Peak disk usage of a run's checkpoints: float32 weights, two moments, and the average if there is one.

    While one is written there is one more than the ``stored`` ones.
    """
    return FLOAT_BYTES * parameters * (3 + averaged) * (stored + 1)


def measured_images(flops_forward: float, batch_size: int, device: torch.device) -> int:
    """Images of a measured step: as close to the batch as ``ONE_STEP`` allows, but at least 16 (128 on a GPU)."""
    affordable = 128 if device.type == "cuda" else 16
    return min(batch_size, max(affordable, int(ONE_STEP / (3 * flops_forward))))


def seconds_an_image(step: Callable[[], object], images: int, device: torch.device, budget: float = 6.0) -> float:
    """Measured seconds per image of a training step on ``images`` images: one warm-up step, then up to three more.

    No step is started after ``budget`` seconds; if the first takes longer, it is the measurement.
    """
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 4 and (not times or time.perf_counter() - began < budget):
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append((time.perf_counter() - start) / images)
    return min(times[1:] or times)


def matmul_speed(device: torch.device, seconds: float = 0.2) -> float:
    """Floating-point operations per second of a 1024 × 1024 float32 matrix product, measured for ``seconds``."""
    left = torch.ones(1024, 1024, device=device)
    _finish(left @ left)
    begin, done = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        _finish(left @ left)
        done += 1
    return done * 2 * 1024**3 / (time.perf_counter() - begin)


def training_seconds(flops_forward: float, images: float, device: torch.device) -> float:
    """Rough seconds to train on ``images`` images: a backward pass costs twice a forward one."""
    return 3 * flops_forward * images / (UTILISATION * matmul_speed(device))


def _finish(result: torch.Tensor) -> None:
    if result.device.type == "cuda":
        torch.cuda.synchronize(result.device)
