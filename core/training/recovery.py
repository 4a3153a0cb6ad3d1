"""What a run does when a loss or gradient isn't finite: skip the step, then go back to a checkpoint with a lower rate."""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError

WINDOW = 100
"""Losses that a spike is compared with the median of."""
GROWTH = 2000
"""Good steps after which the scale of float16's loss is doubled."""


@dataclass(frozen=True)
class Recovery:
    """What happens when a loss or a gradient isn't finite; such a step never reaches the weights."""

    skips: int = 3
    """steps in a row that are skipped; after one more the run goes back to its last checkpoint"""
    rewinds: int = 3
    """times that it goes back before it gives up"""
    slow_down: float = 0.5
    """factor of the learning rate each time that it goes back"""
    spike: float | None = None
    """a loss that is so many times the median of the last 100 is skipped too; null: none is"""

    def __post_init__(self) -> None:
        for key in ("skips", "rewinds"):
            if getattr(self, key) < 0:
                raise ConfigError(key, getattr(self, key), "0 or more")
        if not 0 < self.slow_down <= 1:
            raise ConfigError("slow_down", self.slow_down, "a factor above 0, up to 1")
        if self.spike is not None and self.spike <= 1:
            raise ConfigError("spike", self.spike, "a factor above 1")


@dataclass
class DivergenceMonitor:
    """How a run has fared: what decides whether its next step is skipped, and at which rate it is made."""

    skipped: int = 0
    """steps skipped in a row"""
    rewinds: int = 0
    """times gone back"""
    factor: float = 1.0
    """of the schedule's learning rate"""
    avoid: set[int] = field(default_factory=set)
    """steps whose batches were trouble before going back: they are not tried again"""
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    """the last good ones"""
    trouble: list[int] = field(default_factory=list)
    """steps skipped since the last good one"""

    def spikes(self, loss: float, limit: float | None) -> bool:
        """Whether a loss stands out from the last hundred."""
        full = limit is not None and len(self.losses) == WINDOW
        return full and loss > limit * statistics.median(self.losses)  # type: ignore[operator]

    def good(self, loss: float) -> None:
        """A step was made."""
        self.losses.append(loss)
        self.skipped, self.trouble = 0, []

    def bad(self, step: int) -> None:
        """The step with this number, from 0, was skipped."""
        self.skipped += 1
        self.trouble.append(step)

    def gone_back(self, slow_down: float, before: DivergenceMonitor) -> None:
        """Take over from ``before``, the health when it went back, what must not be forgotten."""
        self.rewinds, self.factor = before.rewinds + 1, before.factor * slow_down
        self.avoid = before.avoid | set(before.trouble)
        self.skipped, self.trouble = 0, []

    def facts(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "skipped": self.skipped,
            "rewinds": self.rewinds,
            "factor": self.factor,
            "avoid": sorted(self.avoid),
            "losses": list(self.losses),
            "trouble": self.trouble,
        }

    @classmethod
    def of(cls, facts: dict[str, Any]) -> DivergenceMonitor:
        """What ``facts`` gave."""
        sets = {"avoid": set(facts["avoid"]), "losses": deque(facts["losses"], maxlen=WINDOW)}
        return cls(**{**facts, **sets})


@dataclass
class GradScaler:
    """The factor that keeps float16's gradients from vanishing: halved when one overflows, doubled after 2,000 good steps.

    torch's GradScaler does the same, but not for gradients that are spread over processes. In other precisions it is 1.
    """

    value: float = 1.0
    good_steps: int = 0
    moves: bool = False

    @classmethod
    def for_precision(cls, precision: str) -> GradScaler:
        return cls(2.0**16, moves=True) if precision == "float16" else cls()

    def overflowed(self, gradient_norm: float) -> bool:
        """After a step: whether its gradients overflowed, which says nothing of the run's health unless the scale is 1."""
        if not self.moves:
            return False
        if math.isfinite(gradient_norm):
            self.good_steps += 1
            if self.good_steps == GROWTH:
                self.value, self.good_steps = min(2.0 * self.value, 2.0**24), 0
            return False
        self.good_steps = 0
        if self.value <= 1:
            return False
        self.value /= 2
        return True
