"""The state of a training run: everything that changes from step to step, saved to and loaded from checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic

import torch
from torch import Tensor

from ..distributed import full_tensor
from ..errors import CheckpointError
from .checkpoints import Checkpoints
from .ema import M, WeightAverage
from .recovery import DivergenceMonitor, GradScaler

SAVED_NUMBERS = {
    "step": "step",
    "best_value": "best_value",
    "best_step": "best_step",
    "evaluations_since_best": "waited",
    "evaluated_at": "judged_at",
    "seconds": "seconds",
}
"""The state's numbers, by the key that a checkpoint stores each under."""


@dataclass
class State(Generic[M]):
    """Everything that changes during a run; with the seed and the configuration it determines what follows.

    ``unsharded`` is a copy of a model whose parameters are sharded over processes; the full tensors are gathered into it
    for evaluation and export.
    """

    model: M
    optimizer: torch.optim.Optimizer
    average: WeightAverage[M] | None = None
    unsharded: M | None = None
    step: int = 0
    best_value: float = -math.inf
    best_step: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    evaluations_since_best: int = 0
    evaluated_at: int = 0
    """the step after which the model was last evaluated"""
    seconds: float = 0.0
    divergence: DivergenceMonitor = field(default_factory=DivergenceMonitor)
    grad_scaler: GradScaler = field(default_factory=GradScaler)

    def eval_model(self) -> M:
        """The model that is evaluated and exported: with the averaged weights, where there are such.

        Where the parameters are sharded, their full tensors are gathered into a copy; then all processes must call this.
        """
        model = self.average.module if self.average is not None else self.model
        if self.unsharded is None:
            return model
        self.unsharded.load_state_dict({name: full_tensor(value) for name, value in model.state_dict().items()})
        return self.unsharded

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the state, by name: those that training continues with, not copies."""
        named = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        if self.average is not None:
            named |= {f"average.{name}": value for name, value in self.average.module.state_dict().items()}
        named |= {f"best.{name}": value for name, value in self.best_weights.items()}
        for name, parameter in self.model.named_parameters():
            for slot, value in self.optimizer.state.get(parameter, {}).items():
                named[f"optimizer.{name}.{slot}"] = value
        return named

    def extra_state(self) -> dict[str, Any]:
        """What isn't a tensor of the state, as a checkpoint's JSON stores it."""
        return {
            **{key: getattr(self, name) for name, key in SAVED_NUMBERS.items()},
            "health": self.divergence.state_dict(),
            "scale": self.grad_scaler.state_dict(),
        }

    def load(self, checkpoints: Checkpoints) -> bool:
        """Load the newest undamaged state; False where there is none.

        Raises CheckpointError for the state of another model.
        """
        step = checkpoints.newest()
        if step is None:
            return False
        extra, shapes = checkpoints.extra_state(step), checkpoints.shapes(step)
        self.best_weights = {
            name.removeprefix("best."): torch.empty(size, dtype=dtype)
            for name, (size, dtype) in shapes.items()
            if name.startswith("best.")
        }
        self._allocate_optimizer_state(shapes)
        own = self.tensors()
        different = sorted(
            {name for name in own if name not in shapes or own[name].shape != shapes[name][0]}
            | (shapes.keys() - own.keys())
        )
        if different:
            raise CheckpointError(
                f"{checkpoints.folder}: not a checkpoint of this run ({len(different)} tensors differ, {different[0]} for "
                "one). Remove it to start again."
            )
        checkpoints.load(step, own)
        if not checkpoints.is_main:
            self.best_weights = {}  # only the main process evaluates and saves; others' copies would become stale
        try:
            for name, key in SAVED_NUMBERS.items():
                setattr(self, name, type(getattr(self, name))(extra[key]))
            self.divergence = DivergenceMonitor.from_state_dict(extra["health"])
            self.grad_scaler = GradScaler.from_state_dict(extra["scale"])
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{checkpoints.folder}: step {step} has invalid values ({error!r}). Remove it to start again."
            ) from error
        return True

    def _allocate_optimizer_state(self, shapes: Mapping[str, tuple[torch.Size, torch.dtype]]) -> None:
        """Give the optimiser the tensors that the saved one had for each parameter, to be filled."""
        parameters = dict(self.model.named_parameters())
        self.optimizer.state.clear()
        for name, (size, dtype) in shapes.items():
            owner, _, slot = name.removeprefix("optimizer.").rpartition(".")
            if not name.startswith("optimizer.") or owner not in parameters:
                continue
            parameter = parameters[owner]
            alike = size == parameter.shape  # then sharded as the parameter is
            room = torch.zeros_like(parameter) if alike else torch.zeros(size, dtype=dtype, device=parameter.device)
            self.optimizer.state[parameter][slot] = room.detach()
