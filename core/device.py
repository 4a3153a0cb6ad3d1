"""The device that a run computes on, and the precision of its forward pass."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

import torch

from .compute_types import Precision
from .errors import ConfigError


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


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Compute on so many CPU threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def device_name(device: torch.device) -> str:
    """What a device is called: the GPU's name, or the CPU's as Linux has it, else its architecture."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.machine()
