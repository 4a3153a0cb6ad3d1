"""An exponential moving average of a model's weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


class WeightAverage(nn.Module):
    """An exponential moving average of a model's weights: ``average = decay * average + (1 - decay) * weights``."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after ``step`` steps; early on the decay is smaller, so that the start is forgotten."""
        decay = min(self.decay, (1 + step) / (10 + step))
        own, new = self.module.state_dict(), model.state_dict()
        for name, value in own.items():
            if value.is_floating_point():
                value.lerp_(new[name], 1 - decay)
            else:
                value.copy_(new[name])

    def forward(self, *inputs: Any) -> Any:
        return self.module(*inputs)
