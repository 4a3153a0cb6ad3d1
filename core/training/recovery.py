"""Recovery from losses or gradients that aren't finite: skipped steps, rewinds, the loss scale of float16."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError, MaeliftError

SPIKE_WINDOW = 100
"""Losses whose median a spike is compared with."""
GROWTH_INTERVAL = 2000
"""Steps without overflow after which the scale of float16's loss is doubled."""


class Diverged(MaeliftError):
    """A loss or a gradient that is not finite; the weights are those of the step before."""


@dataclass(frozen=True)
class Recovery:
    """What happens when a loss or a gradient isn't finite; such a step never reaches the weights."""

    skips: int = 3
    """steps in a row that are skipped; after one more the run goes back to its last checkpoint"""
    rewinds: int = 3
    """times that it goes back before it fails"""
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
    """Counts skipped steps and rewinds, which decide whether the next step is skipped, and its learning rate."""

    skipped: int = 0
    """steps skipped in a row"""
    rewinds: int = 0
    """times that the run went back to a checkpoint"""
    lr_factor: float = 1.0
    """factor of the schedule's learning rate"""
    avoid: set[int] = field(default_factory=set)
    """steps whose batches led to a rewind: they are not tried again"""
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=SPIKE_WINDOW))
    """the last finite ones"""
    skipped_steps: list[int] = field(default_factory=list)
    """numbers of the steps skipped since the last one that was made"""

    def is_spike(self, loss: float, limit: float | None) -> bool:
        """Whether a loss is more than ``limit`` times the median of the last hundred; never without a limit."""
        if limit is None or len(self.losses) < SPIKE_WINDOW:
            return False
        return loss > limit * statistics.median(self.losses)

    def step_done(self, loss: float) -> None:
        """Note that a step was made."""
        self.losses.append(loss)
        self.skipped, self.skipped_steps = 0, []

    def step_skipped(self, step: int) -> None:
        """Note that the step with this number, from 0, was skipped."""
        self.skipped += 1
        self.skipped_steps.append(step)

    def rewound(self, slow_down: float, before: DivergenceMonitor) -> None:
        """Note a rewind to the state that this is part of, from ``before``, whose counts go on."""
        self.rewinds, self.lr_factor = before.rewinds + 1, before.lr_factor * slow_down
        self.avoid = before.avoid | set(before.skipped_steps)
        self.skipped, self.skipped_steps = 0, []

    def state_dict(self) -> dict[str, Any]:
        """The monitor as a checkpoint's JSON stores it."""
        return {
            "skipped": self.skipped,
            "rewinds": self.rewinds,
            "factor": self.lr_factor,
            "avoid": sorted(self.avoid),
            "losses": list(self.losses),
            "trouble": self.skipped_steps,
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> DivergenceMonitor:
        """The monitor that ``state_dict`` was made of; raises LookupError or TypeError for other content."""
        return cls(
            skipped=state["skipped"],
            rewinds=state["rewinds"],
            lr_factor=state["factor"],
            avoid=set(state["avoid"]),
            losses=deque(state["losses"], maxlen=SPIKE_WINDOW),
            skipped_steps=state["trouble"],
        )


@dataclass
class GradScaler:
    """The factor that saves float16's gradients from underflow: halved on overflow, doubled after 2,000 steps without.

    torch's GradScaler does the same, but not for gradients that are sharded over processes. In other precisions it is 1.
    """

    scale: float = 1.0
    good_steps: int = 0
    enabled: bool = False

    @classmethod
    def for_precision(cls, precision: str) -> GradScaler:
        """A new one: enabled for "float16" only."""
        return cls(2.0**16, enabled=True) if precision == "float16" else cls()

    def overflowed(self, gradient_norm: float) -> bool:
        """Update the scale after a step; whether its gradients overflowed, which isn't divergence unless the scale is 1."""
        if not self.enabled:
            return False
        if math.isfinite(gradient_norm):
            self.good_steps += 1
            if self.good_steps == GROWTH_INTERVAL:
                self.scale, self.good_steps = min(2.0 * self.scale, 2.0**24), 0
            return False
        self.good_steps = 0
        if self.scale <= 1:
            return False
        self.scale /= 2
        return True

    def state_dict(self) -> dict[str, Any]:
        """The scaler as a checkpoint's JSON stores it."""
        return {"value": self.scale, "good_steps": self.good_steps, "moves": self.enabled}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> GradScaler:
        """The scaler that ``state_dict`` was made of; raises LookupError or TypeError for other content."""
        return cls(scale=state["value"], good_steps=state["good_steps"], enabled=state["moves"])
