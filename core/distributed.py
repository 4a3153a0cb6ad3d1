"""Distributed training: process group, DDP, FSDP2, collectives, activation checkpointing, compiled blocks.

A run on a GPU differs from one on a CPU only by what ``Ranks.join`` and ``autocast`` choose.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from .device import choose_device
from .errors import MaeliftError

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others, for instance while the main one evaluates the model."""
LAUNCHER_POLL_SECONDS = 0.5
"""Seconds between two checks whether the launcher is still running."""
PEER_FAILURE_MESSAGES = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "timed out",
)
"""Parts of gloo's messages about a process that has ended or hangs."""


@dataclass(frozen=True)
class Ranks:
    """This process among the processes of a run: its number, how many there are, and its device."""

    rank: int
    world_size: int
    device: torch.device

    @classmethod
    @contextmanager
    def join(cls, device: str = "auto") -> Iterator[Ranks]:
        """Join the process group that torchrun describes in the environment (nccl on GPUs, gloo on CPUs); leave it at the end.

        ``device`` is "auto" (a GPU when there is one), "cpu" or "cuda". Without torchrun: one process, no group.
        """
        world_size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", "0")))
        started = world_size > 1 and not dist.is_initialized()
        if started:
            _exit_with_launcher()
            dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=COLLECTIVE_TIMEOUT)
        try:
            yield cls(rank, world_size, chosen)
        finally:
            if started:
                dist.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes files and prints."""
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

    def broadcast(self, compute: Callable[[], T]) -> T:
        """The result of ``compute`` on the main process, on all; a MaeliftError that it raises is raised on all."""
        if self.world_size == 1:
            return compute()
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = compute()
            except MaeliftError as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0, device=self.device)
        result, failure = outcome
        if failure is not None:
            raise failure
        return cast(T, result)

    def all_gather(self, values: list[T]) -> list[T]:
        """The values of all processes, in the order of their ranks."""
        if self.world_size == 1:
            return values
        gathered: list[list[T]] = [[] for _ in range(self.world_size)]
        dist.all_gather_object(gathered, values)
        return [value for part in gathered for value in part]

    def shard(self, model: nn.Module, blocks: Iterable[nn.Module]) -> None:
        """Shard the model's parameters over the processes, in place (FSDP2); each of ``blocks`` is gathered by itself.

        Every parameter is a DTensor then; create the optimiser after this.
        """
        mesh = init_device_mesh(self.device.type, (self.world_size,))
        for block in blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model on its device; under DDP when there are several processes and it isn't sharded."""
        if is_sharded(model):
            return model
        model = model.to(self.device)
        if self.world_size == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)

    def barrier(self) -> None:
        """Wait until every process has reached this."""
        if self.world_size > 1:
            dist.barrier()


def _exit_with_launcher() -> None:
    """Under torchrun, end this process once the launcher has ended.

    Where only the launcher is killed, its processes would train on unnoticed, and beside those of the next command.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(LAUNCHER_POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def is_sharded(model: nn.Module) -> bool:
    """Whether the model's parameters are sharded over the processes."""
    return isinstance(model, FSDPModule)


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor of one that may be sharded over the processes; all of them must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def recompute_activations(blocks: Iterable[nn.Module]) -> None:
    """Activation checkpointing: each block stores only its input for the backward pass, and recomputes the rest."""
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def compile_blocks(blocks: Iterable[nn.Module]) -> None:
    """Compile each block, in place: equal blocks share their code, and the parameters' names stay."""
    for block in blocks:
        block.compile()


@contextmanager
def no_grad_sync(model: nn.Module) -> Iterator[None]:
    """Accumulate gradients within the block in this process only; a backward pass after it sums them over all."""
    if isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
    elif isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)
    else:
        yield


@contextmanager
def peer_failure_as_error() -> Iterator[None]:
    """Turn a collective's error that another process has died or hangs into PeerFailure."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not isinstance(error, dist.DistBackendError) and not any(sign in text for sign in PEER_FAILURE_MESSAGES):
            raise
        raise PeerFailure(
            f"another process of this run has ended or does not respond ({text.splitlines()[0][:200]}). "
            "See its messages; the same command goes on from the last checkpoint."
        ) from error


class PeerFailure(MaeliftError):
    """Another process of the run has died or hangs."""

    exit_code = 1
