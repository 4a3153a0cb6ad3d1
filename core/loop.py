"""The one training loop: accumulation, mixed precision, clipping, EMA, evaluation, checkpoints, exact resume."""

from __future__ import annotations

import copy
import logging
import math
import pickle
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .batches import Batch, Batches
from .config import CheckpointError, MaeliftError
from .distributed import Interrupted, Precision, Ranks, StopSignals, autocast
from .files import atomic_path
from .optim import set_learning_rate, warmup_cosine
from .randomness import isolated, reseed
from .tracking import Tracker, duration

logger = logging.getLogger("maelift")

Objective = Callable[[nn.Module, Batch], Tensor]
"""From the (wrapped) model and a micro-batch to the scalar loss, the mean over the micro-batch."""
Evaluate = Callable[[nn.Module, int], Mapping[str, float]]
"""From the model to be judged (with the average of the weights, where one is kept) and the step to named metrics."""


class Diverged(MaeliftError):
    """A loss or a gradient that is not finite; the weights are those of the step before."""


Decay = Literal["cosine", "linear", "steps"]
"""How the learning rate falls after warm-up: half a cosine, a line, or by 10 after 8/9 and 26/27 of all steps (ViTDet, A.2)."""
DROPS = (8 / 9, 26 / 27)


@dataclass(frozen=True)
class Schedule:
    """How long, and at which learning rate: linear warm-up, then ``decay``, in steps of the optimiser."""

    steps: int
    lr: float
    warmup: float = 0.0
    min_lr: float = 0.0
    decay: Decay = "cosine"

    def lr_at(self, step: int) -> float:
        """The rate with which step number ``step``, from 0, is made."""
        if self.decay == "cosine" or step < self.warmup:
            return warmup_cosine(step, lr=self.lr, warmup=self.warmup, total=self.steps, min_lr=self.min_lr)
        if self.decay == "steps":
            return max(self.min_lr, self.lr * 0.1 ** sum(step >= share * self.steps for share in DROPS))
        left = 1 - (step - self.warmup) / max(1e-9, self.steps - self.warmup)
        return self.min_lr + (self.lr - self.min_lr) * left


@dataclass(frozen=True)
class Upkeep:
    """What happens beside the steps.

    ``evaluate`` runs after the steps in ``evaluate_at``; the weights with the highest ``best_metric`` are kept. After
    ``patience`` evaluations without a better one the run ends.
    ``checkpoint`` is the file that the state is saved to every ``checkpoint_seconds``, and when the run is stopped.
    """

    evaluate: Evaluate | None = None
    evaluate_at: frozenset[int] = frozenset()
    best_metric: str | None = None
    patience: int | None = None
    checkpoint: Path | None = None
    checkpoint_seconds: float = 300.0
    log_every: int = 50


@dataclass
class State:
    """All that changes during a run; with the seed and the configuration it determines what follows."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None = None
    step: int = 0
    best_value: float = -math.inf
    best_step: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    waited: int = 0
    """evaluations since the best one"""
    seconds: float = 0.0

    @property
    def judged(self) -> nn.Module:
        """The model that is evaluated and kept: that with the average of the weights, where there is one."""
        return self.average.module if self.average is not None else self.model

    def save(self, path: Path) -> None:
        """Write everything to one file, all at once or not at all."""
        content = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "best_weights": self.best_weights,
            **{name: getattr(self, name) for name in ("step", "best_value", "best_step", "waited", "seconds")},
        }
        with atomic_path(path) as temporary:
            torch.save(content, temporary)

    def load(self, path: Path) -> None:
        """Go back to what ``save`` wrote; raises CheckpointError for any other file."""
        try:
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            self.model.load_state_dict(content["model"])
            self.optimizer.load_state_dict(content["optimizer"])
            if self.average is not None:
                self.average.load_state_dict(content["average"])
            for name in ("step", "best_value", "best_step", "best_weights", "waited", "seconds"):
                setattr(self, name, content[name])
        except (
            RuntimeError,
            KeyError,
            TypeError,
            ValueError,
            EOFError,
            AttributeError,
            IndexError,
            struct.error,
            pickle.UnpicklingError,
        ) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise CheckpointError(
                f"{path}: not a checkpoint of this run ({reason}). Remove it to start anew."
            ) from error


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


def train(
    state: State,
    batches: Batches,
    objective: Objective,
    schedule: Schedule,
    *,
    seed: int,
    ranks: Ranks,
    tracker: Tracker,
    upkeep: Upkeep,
    precision: Precision = "auto",
    clip_grad: float | None = None,
) -> None:
    """Train ``state.model`` from ``state.step`` to ``schedule.steps``, in place.

    It ends earlier when ``upkeep.patience`` runs out. Losses that are logged are means over the global batch. Stops in
    good order on SIGINT or SIGTERM: saves and raises Interrupted. Raises Diverged when the loss or its gradient is not
    finite, before it reaches the weights.
    """
    model = ranks.wrap(state.model)
    began, saved = time.monotonic() - state.seconds, time.monotonic()
    model.train()
    tracker.go_on_from(state.step)
    if _out_of_patience(state, upkeep):
        return  # it was saved when it ended
    with StopSignals.noted() as signals, isolated(seed, "training"):
        for micro_batches in batches.steps(state.step, schedule.steps):
            set_learning_rate(state.optimizer, schedule.lr_at(state.step))
            reseed(seed, "step", state.step, ranks.rank)
            loss = _accumulate(model, micro_batches, objective, ranks, precision)
            loss_value = float(ranks.mean(loss))
            _check_finite("training loss", loss_value, state.step)
            gradient_norm = float(nn.utils.clip_grad_norm_(state.model.parameters(), clip_grad or math.inf))
            _check_finite("gradient's norm", gradient_norm, state.step)
            state.optimizer.step()
            state.optimizer.zero_grad(set_to_none=True)
            state.step += 1
            if state.average is not None:
                state.average.update(state.model, state.step)
            state.seconds = time.monotonic() - began
            last = state.step == schedule.steps
            tracker.progress(state.step, loss_value)
            if last or state.step % upkeep.log_every == 0:
                rate = schedule.lr_at(state.step - 1)
                tracker.log(state.step, {"train/loss": loss_value, "lr": rate, "gradient_norm": gradient_norm})
            if ranks.is_main and upkeep.evaluate is not None and state.step in upkeep.evaluate_at:
                _judge(state, upkeep.evaluate, upkeep.best_metric, tracker)
                model.train()
            if state.step in upkeep.evaluate_at and ranks.any(_out_of_patience(state, upkeep)):
                logger.info(
                    "no better %s in %d evaluations: ended after step %d of %d",
                    upkeep.best_metric,
                    state.waited,
                    state.step,
                    schedule.steps,
                )
                last = True
            stop = ranks.any(signals.received is not None)
            if upkeep.checkpoint is not None and (stop or last or _due(saved, upkeep, ranks)):
                if ranks.is_main:
                    state.save(upkeep.checkpoint)
                saved = time.monotonic()
            if last:
                return
            if stop:
                raise _interrupted(state, schedule, upkeep, signals)


def evenly(steps: int, times: int) -> frozenset[int]:
    """``times`` steps spread evenly over 1 to ``steps``, the last among them; every step where there are fewer."""
    times = min(times, steps)
    return frozenset(round(steps * (number + 1) / times) for number in range(times))


def _accumulate(
    model: nn.Module, micro_batches: list[Batch], objective: Objective, ranks: Ranks, precision: Precision
) -> Tensor:
    """Gradients of the mean loss over the micro-batches; returns that mean, detached, in float32."""
    total = torch.zeros((), device=ranks.device)
    for number, batch in enumerate(micro_batches):
        is_last = number == len(micro_batches) - 1
        quiet = model.no_sync() if isinstance(model, DistributedDataParallel) and not is_last else nullcontext()
        with quiet:
            with autocast(ranks.device, precision):
                loss = objective(model, batch) / len(micro_batches)
            loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach().float()
    return total


def _check_finite(what: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise Diverged(
            f"the {what} is {value} at step {step + 1}; the weights were left as they were. "
            "Lower the learning rate, or set clip_grad."
        )


def _judge(state: State, evaluate: Evaluate, best_metric: str | None, tracker: Tracker) -> None:
    state.judged.eval()
    with torch.no_grad():
        metrics = evaluate(state.judged, state.step)
    if metrics:
        tracker.log(state.step, metrics)
    state.waited += 1
    if best_metric is not None and metrics[best_metric] > state.best_value:
        state.waited = 0
        state.best_value, state.best_step = metrics[best_metric], state.step
        state.best_weights = {name: value.detach().cpu().clone() for name, value in state.judged.state_dict().items()}


def _out_of_patience(state: State, upkeep: Upkeep) -> bool:
    return upkeep.patience is not None and state.waited >= upkeep.patience


def _due(saved: float, upkeep: Upkeep, ranks: Ranks) -> bool:
    return ranks.any(ranks.is_main and time.monotonic() - saved >= upkeep.checkpoint_seconds)


def _interrupted(state: State, schedule: Schedule, upkeep: Upkeep, signals: StopSignals) -> Interrupted:
    done = f"stopped after step {state.step} of {schedule.steps} ({duration(state.seconds)})"
    if upkeep.checkpoint is None:
        return Interrupted(f"{done}; nothing was saved.", signals.received or 2)
    return Interrupted(f"{done}; saved. The same command goes on from there.", signals.received or 2)
