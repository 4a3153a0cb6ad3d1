"""An exponential moving average (EMA) of a model's weights."""

from __future__ import annotations

import copy
from typing import Generic

import torch
from torch import nn
from typing_extensions import TypeVar

M = TypeVar("M", bound=nn.Module, default=nn.Module)
"""The model's class, where it matters to those who get the model back."""


class WeightAverage(Generic[M]):
    """An exponential moving average of a model's weights: ``average = decay * average + (1 - decay) * weights``.

    ``module`` is a copy of the model with the averaged weights, which need no gradient.
    """

    def __init__(self, model: M, decay: float) -> None:
        self.module: M = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: M, step: int) -> None:
        """Add the weights after ``step`` steps; the decay is smaller early on, so that the initial weights don't linger."""
        decay = min(self.decay, (1 + step) / (10 + step))
        own, new = self.module.state_dict(), model.state_dict()
        for name, value in own.items():
            if value.is_floating_point():
                value.lerp_(new[name], 1 - decay)
            else:
                value.copy_(new[name])
