"""The state of a training run: all that changes from step to step, saved to and loaded from checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..distributed import full_tensor
from ..errors import CheckpointError
from .checkpoints import Checkpoints
from .ema import WeightAverage
from .recovery import DivergenceMonitor, GradScaler

NUMBERS = ("step", "best_value", "best_step", "waited", "judged_at", "seconds")
"""What a state holds beside tensors, health and scale."""


@dataclass
class State:
    """All that changes during a run; with the seed and the configuration it determines what follows.

    ``plain`` is a copy of a model whose parameters are spread over processes, which is filled to be judged and kept.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None = None
    plain: nn.Module | None = None
    step: int = 0
    best_value: float = -math.inf
    best_step: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    waited: int = 0
    """evaluations since the best one"""
    judged_at: int = 0
    """the step after which the model was judged last"""
    seconds: float = 0.0
    health: DivergenceMonitor = field(default_factory=DivergenceMonitor)
    scale: GradScaler = field(default_factory=GradScaler)

    @property
    def judged(self) -> nn.Module:
        """The model that is evaluated and kept: that with the average of the weights, where there is one.

        Where parameters are spread over processes, a copy in one piece; then all must ask for it.
        """
        model = self.average.module if self.average is not None else self.model
        if self.plain is None:
            return model
        self.plain.load_state_dict({name: full_tensor(value) for name, value in model.state_dict().items()})
        return self.plain

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the state, by name: those that training goes on with, not copies."""
        named = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        if self.average is not None:
            named |= {f"average.{name}": value for name, value in self.average.module.state_dict().items()}
        named |= {f"best.{name}": value for name, value in self.best_weights.items()}
        for name, parameter in self.model.named_parameters():
            for slot, value in self.optimizer.state.get(parameter, {}).items():
                named[f"optimizer.{name}.{slot}"] = value
        return named

    def facts(self) -> dict[str, Any]:
        """All else of the state, as JSON holds it."""
        return {
            **{name: getattr(self, name) for name in NUMBERS},
            "health": self.health.facts(),
            "scale": asdict(self.scale),
        }

    def load(self, checkpoints: Checkpoints) -> bool:
        """Go back to the newest state that is whole; False where there is none.

        Raises CheckpointError for the state of another model.
        """
        step = checkpoints.newest()
        if step is None:
            return False
        facts, shapes = checkpoints.facts(step), checkpoints.shapes(step)
        self.best_weights = {
            name.removeprefix("best."): torch.empty(size, dtype=kind)
            for name, (size, kind) in shapes.items()
            if name.startswith("best.")
        }
        self._make_room(shapes)
        own = self.tensors()
        different = sorted(
            {name for name in own if name not in shapes or own[name].shape != shapes[name][0]}
            | (shapes.keys() - own.keys())
        )
        if different:
            raise CheckpointError(
                f"{checkpoints.folder}: not a checkpoint of this run ({len(different)} tensors differ, {different[0]} for "
                "one). Remove it to start anew."
            )
        checkpoints.load(step, own)
        if not checkpoints.is_main:
            self.best_weights = {}  # the main process judges: its are saved, and others' would grow old
        try:
            for name in NUMBERS:
                setattr(self, name, type(getattr(self, name))(facts[name]))
            self.health, self.scale = DivergenceMonitor.of(facts["health"]), GradScaler(**facts["scale"])
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{checkpoints.folder}: step {step} says of the run what can't be ({error!r}). Remove it to start again."
            ) from error
        return True

    def _make_room(self, shapes: Mapping[str, tuple[torch.Size, torch.dtype]]) -> None:
        """Give the optimiser the tensors that the saved one had for each parameter, to be filled."""
        parameters = dict(self.model.named_parameters())
        self.optimizer.state.clear()
        for name, (size, kind) in shapes.items():
            owner, _, slot = name.removeprefix("optimizer.").rpartition(".")
            if not name.startswith("optimizer.") or owner not in parameters:
                continue
            parameter = parameters[owner]
            alike = size == parameter.shape
            room = torch.zeros_like(parameter) if alike else torch.zeros(size, dtype=kind, device=parameter.device)
            self.optimizer.state[parameter][slot] = room.detach()
