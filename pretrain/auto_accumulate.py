"""Automatic gradient accumulation: the fewest passes with which a step fits into the GPU's memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..core.device import autocast
from ..core.distributed import Ranks
from ..core.errors import MaeliftError
from ..core.seeding import seeded_rng
from .mae import MaskedAutoencoder

if TYPE_CHECKING:
    from .config import PretrainConfig

logger = logging.getLogger("maelift")

MARGIN = 0.05
"""Share of the GPU's memory that is left free, for fragmentation."""


def auto_accumulate(model: MaskedAutoencoder, config: PretrainConfig, ranks: Ranks) -> int:
    """The fewest passes of equal size that a step fits into memory with, a divisor of each process's batch; 1 on a CPU.

    Each number is tried with a forward and backward pass on random pixels, on all processes at once. The weights don't
    change. Raises MaeliftError where a single image doesn't fit.
    """
    if ranks.device.type != "cuda":
        return 1
    share = config.batch_size // ranks.world_size
    passes = fewest_passes(share, lambda images: _fits(model, images, config, ranks.device), ranks)
    logger.info("pretrain: accumulate=%d: %d images at once fit into the memory", passes, share // passes)
    return passes


def fewest_passes(share: int, fits: Callable[[int], bool], ranks: Ranks) -> int:
    """The smallest divisor of ``share`` images at which they fit on every process; raises MaeliftError if there is none."""
    for passes in range(1, share + 1):
        if share % passes == 0 and not ranks.any(not fits(share // passes)):
            return passes
    raise MaeliftError(
        "accumulate=auto: not even a single image fits into the GPU's memory. Use a smaller model, "
        "activation_checkpointing=true, or parallel=fsdp on several GPUs."
    )


def _fits(model: MaskedAutoencoder, images: int, config: PretrainConfig, device: torch.device) -> bool:
    """Whether a pass of ``images`` images fits into memory together with AdamW's two moments."""
    reserved: list[torch.Tensor] = []
    try:
        reserved += [torch.empty_like(parameter) for _ in range(2) for parameter in trainable_parameters(model)]
        if device.type == "cuda":
            spare = int(MARGIN * torch.cuda.get_device_properties(device).total_memory)
            reserved.append(torch.empty(spare, dtype=torch.uint8, device=device))
        with seeded_rng(config.seed, "fitting"), autocast(device, config.precision):
            pixels = torch.randn(images, model.spec.channels, *model.spec.image_size, device=device)
            noise = config.masking.arrange(torch.rand(images, model.spec.num_patches), model.spec.grid).to(device)
            loss = model(pixels, config.masking.ratio, noise).loss
        loss.backward()
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        model.zero_grad(set_to_none=True)
        reserved.clear()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return True


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that require gradients."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
