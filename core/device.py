"""The device that a run computes on, and the precision of its forward pass."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from .errors import ConfigError

Precision = Literal["auto", "float32", "bfloat16", "float16"]


def choose_device(device: str, local_rank: int = 0) -> torch.device:
    """The device named "auto", "cpu" or "cuda"; raises ConfigError when the machine has none."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("device", device, "cpu or auto: this machine has no usable CUDA device")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Mixed precision for the forward pass; "auto" is bfloat16 on GPUs that support it, else float32."""
    if precision == "float16":
        return torch.autocast(device.type, dtype=torch.float16)
    wanted = precision == "bfloat16" or (
        precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    return torch.autocast(device.type, dtype=torch.bfloat16) if wanted else nullcontext()
