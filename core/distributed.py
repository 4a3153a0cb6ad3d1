"""One process or many: device, process group, DDP, and the signals that ask a run to stop.

All device code stands here: a run on a GPU differs from one on a CPU by what ``Ranks.here`` and ``autocast`` choose.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .config import ConfigError, MaeliftError

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class Ranks:
    """This process among the processes of a run: its number, how many there are, and its device."""

    rank: int
    world_size: int
    device: torch.device

    @classmethod
    @contextmanager
    def here(cls, device: str = "auto") -> Iterator[Ranks]:
        """Join the group that torchrun describes in the environment (nccl on GPUs, gloo on CPUs); leave it at the end.

        ``device`` is "auto" (a GPU when there is one), "cpu" or "cuda". Without torchrun: one process, no group.
        """
        world_size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", "0")))
        started = world_size > 1 and not dist.is_initialized()
        if started:
            dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        try:
            yield cls(rank, world_size, chosen)
        finally:
            if started:
                dist.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes files and speaks."""
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """The mean of ``value`` over the processes."""
        if self.world_size == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.world_size

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set on any process."""
        if self.world_size == 1:
            return flag
        return bool(self.mean(torch.tensor(float(flag), device=self.device)) > 0)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model on its device; under DDP when there are several processes."""
        model = model.to(self.device)
        if self.world_size == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.world_size > 1:
            dist.barrier()


def choose_device(device: str, local_rank: int = 0) -> torch.device:
    """The device named "auto", "cpu" or "cuda"; raises ConfigError when there is no such device."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("device", device, "cpu or auto: this machine has no usable CUDA device")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Mixed precision for the forward pass: bfloat16 where the device is made for it, or where it is asked for."""
    wanted = precision == "bfloat16" or (
        precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    return torch.autocast(device.type, dtype=torch.bfloat16) if wanted else nullcontext()


class Interrupted(MaeliftError):
    """A run was asked to stop and has saved where it was; ``exit_code`` is 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class StopSignals:
    """Notes SIGINT and SIGTERM instead of dying of them; a second one is not held back."""

    def __init__(self) -> None:
        self.received: int | None = None

    @classmethod
    @contextmanager
    def noted(cls) -> Iterator[StopSignals]:
        """Note the signals within the block (nothing is changed outside the main thread)."""
        signals = cls()
        if threading.current_thread() is not threading.main_thread():
            yield signals
            return
        before = {number: signal.signal(number, signals._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield signals
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.received = number
