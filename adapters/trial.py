"""Trial runs of users' configs: the report of their steps, and an estimate of what a step costs."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ..core.errors import MaeliftError
from ..core.seeding import seeded_rng
from .certificate import Step

T = TypeVar("T")


@dataclass
class TrialReport:
    """The steps of a trial so far; after one that failed the next ones aren't run."""

    steps: list[Step] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return any(step.outcome == "failed" for step in self.steps)

    def record(self, name: str, outcome: str, detail: str) -> None:
        """Record the outcome of a step."""
        self.steps.append(Step(name, outcome, detail))

    def fail(self, name: str, detail: str) -> None:
        """Record a failure, each detail once."""
        if all(step.detail != detail for step in self.steps):
            self.record(name, "failed", detail)

    def skip_steps(self, reason: str) -> None:
        """Record why there is no training and no inference step."""
        for name in ("training step", "inference step"):
            self.record(name, "not run", f"{reason}; the sizes fit, as computed")

    def run(self, name: str, action: Callable[[], tuple[str, T]]) -> T | None:
        """Run a step, which returns a detail and its result; None if it or an earlier step failed."""
        if self.failed:
            self.record(name, "not run", "an earlier step failed")
            return None
        try:
            with seeded_rng(0, "trial of a config"):
                detail, result = action()
        except MaeliftError as error:
            self.record(name, "failed", str(error))
        except Exception as error:  # whatever a config's own parts raise
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
            self.record(name, "failed", f"{type(error).__name__}{f': {reason[:300]}' if reason else ''}")
        else:
            self.record(name, "passed", detail)
            return result
        return None


@dataclass(frozen=True)
class Cost:
    """What a forward pass takes: floating point operations, and bytes of all tensors that it makes."""

    flops: float
    bytes: float


class _Bytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the sizes of the tensors that operations make."""

    total = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and not getattr(func, "is_view", False):
            self.total += made.numel() * made.element_size()
        return made


def check_drop_path(trial: TrialReport, backbone: nn.Module, key: str) -> None:
    """Record drop path rates that are no probabilities, which the frameworks accept."""
    rates = {
        float(rate) for module in backbone.modules() if isinstance(rate := getattr(module, "drop_prob", None), float)
    }
    wrong = [rate for rate in rates if not 0 <= rate < 1]
    if wrong:
        trial.fail("drop path", f"{key}: rates up to {max(wrong, key=abs):g}. Set it to at least 0, and below 1")


def cost_of(model: nn.Module, forward: Callable[[Any], object]) -> Cost | None:
    """The cost of ``forward`` on a copy of the model without values; None where a model needs values to run."""
    try:
        with torch.no_grad():
            empty = copy.deepcopy(model).to("meta").eval()
            size = _Bytes()  # type: ignore[no-untyped-call]
            with FlopCounterMode(display=False) as flops, size:
                forward(empty)
    except Exception:  # data-dependent, or an operator that has no shapes alone
        return None
    return Cost(float(flops.get_total_flops()), size.total)


def skip_reason(cost: Cost | None, seconds: float) -> str | None:
    """Why a training and an inference step are not for this machine; None where they are.

    A training step takes three times the operations of a forward pass, and keeps about what it makes.
    """
    if seconds == 0:
        return "step_seconds=0"
    if cost is None:
        return None
    needed, free = cost.bytes, available_memory()
    if free is not None and needed > 0.7 * free:
        return f"it needs about {needed / 1e9:.1f} GB of memory, of which {free / 1e9:.1f} GB are free"
    took = 4 * cost.flops / speed()
    return f"it takes about {took:.0f} s here, more than step_seconds={seconds:g}" if took > seconds else None


def speed() -> float:
    """Floating point operations a second of a matrix product, measured."""
    matrix = torch.ones(384, 384)
    times = []
    for _ in range(4):
        began = time.perf_counter()
        torch.mm(matrix, matrix)
        times.append(time.perf_counter() - began)
    return 2 * 384.0**3 / max(min(times), 1e-9)


def available_memory() -> float | None:
    """Bytes of memory that are available; None where the system doesn't report them."""
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        return float(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError, IndexError):
        try:
            return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        except (ValueError, OSError, AttributeError):
            return None


def times(size: Sequence[int]) -> str:
    """A size (height, width) as text: 48×64."""
    return f"{int(size[0])}×{int(size[1])}"
