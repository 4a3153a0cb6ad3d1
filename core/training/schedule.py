"""The learning rate over the steps of training: warm-up, then cosine, linear or step decay."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


def warmup_cosine(at: float, *, lr: float, warmup: float, total: float, min_lr: float = 0.0) -> float:
    """The learning rate at ``at``: linear from 0 during ``warmup``, then half a cosine down to ``min_lr`` at ``total``.

    All three in one unit, epochs or steps; ``at`` may be fractional (MAE, Appendix A.1).
    """
    if at < warmup:
        return lr * at / warmup
    progress = (at - warmup) / (total - warmup) if total > warmup else 1.0
    return min_lr + (lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))


Decay = Literal["cosine", "linear", "steps"]
"""How the learning rate decays after warm-up: half a cosine, a line, or by 10 after 8/9 and 26/27 of the steps (ViTDet, A.2)."""

STEP_DECAY_AT = (8 / 9, 26 / 27)


@dataclass(frozen=True)
class Schedule:
    """The number of optimiser steps and the learning rate of each: linear ``warmup`` (in steps), then ``decay`` to ``min_lr``."""

    steps: int
    lr: float
    warmup: float = 0.0
    min_lr: float = 0.0
    decay: Decay = "cosine"

    def lr_at(self, step: int) -> float:
        """The learning rate of step number ``step``, from 0."""
        if self.decay == "cosine" or step < self.warmup:
            return warmup_cosine(step, lr=self.lr, warmup=self.warmup, total=self.steps, min_lr=self.min_lr)
        if self.decay == "steps":
            return max(self.min_lr, self.lr * 0.1 ** sum(step >= share * self.steps for share in STEP_DECAY_AT))
        left = 1 - (step - self.warmup) / max(1e-9, self.steps - self.warmup)
        return self.min_lr + (self.lr - self.min_lr) * left


def evenly_spaced_steps(steps: int, times: int) -> frozenset[int]:
    """``times`` steps spread evenly over 1 to ``steps``, the last among them; every step where there are fewer."""
    times = min(times, steps)
    return frozenset(round(steps * (number + 1) / times) for number in range(times))
