"""The one training loop: accumulation, mixed precision, clipping, evaluation, checkpoints, exact resume."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Generic

import torch
from torch import Tensor, nn

from ..compute_types import Precision
from ..device import autocast
from ..distributed import Ranks, full_tensor, no_grad_sync, peer_failure_as_error
from ..errors import MaeliftError
from ..progress import duration
from ..seeding import reseed, seeded_rng
from ..signals import Interrupted, StopRequested, StopSignals
from ..system_errors import MEMORY_ADVICE, is_out_of_memory
from .checkpoints import Checkpoints
from .ema import M
from .loader import Batch, Batches
from .optimizers import set_learning_rate
from .recovery import Diverged, GradScaler, Recovery
from .schedule import Schedule
from .state import State
from .tracker import EVENTS_FILE, REWIND, Tracker

logger = logging.getLogger("maelift")

Objective = Callable[[nn.Module, Batch], Tensor]
"""From the (wrapped) model and a micro-batch to the scalar loss, the mean over the micro-batch."""
Evaluate = Callable[[M, int], Mapping[str, float]]
"""From the model to evaluate (with the averaged weights, where there are such) and the step to named metrics."""

MAX_NAMED_IMAGES = 4
"""Images of a skipped batch that are named on the terminal."""


class OutOfMemory(MaeliftError):
    """The machine's memory is too small for a step; the state after the steps before is saved."""


@dataclass(frozen=True)
class Callbacks(Generic[M]):
    """What runs between the steps: evaluation, checkpoints, logging and recovery from divergence.

    ``evaluate`` runs after the steps in ``evaluate_at``; the weights with the highest ``best_metric`` are saved. After
    ``patience`` evaluations without a better one the run ends. The state is saved to ``checkpoints`` every
    ``checkpoint_seconds``, and when the run is stopped. Without ``recovery`` a loss that isn't finite ends the run;
    ``image_names`` maps the indices of a batch to the names of its images, for the events. ``first_batch`` receives the
    micro-batches of this process for the first step of a new run, which it must not change.
    """

    evaluate: Evaluate[M] | None = None
    evaluate_at: frozenset[int] = frozenset()
    best_metric: str | None = None
    patience: int | None = None
    checkpoints: Checkpoints | None = None
    checkpoint_seconds: float = 300.0
    log_every: int = 50
    recovery: Recovery | None = None
    image_names: Callable[[Tensor], list[str]] | None = None
    first_batch: Callable[[Sequence[Batch]], object] | None = None


def train(
    state: State[M],
    batches: Batches,
    objective: Objective,
    schedule: Schedule,
    *,
    seed: int,
    ranks: Ranks,
    tracker: Tracker,
    callbacks: Callbacks[M],
    precision: Precision = "auto",
    clip_grad: float | None = None,
) -> None:
    """Train ``state.model`` from ``state.step`` to ``schedule.steps``, in place.

    It ends earlier when ``callbacks.patience`` runs out. Logged losses are means over the global batch. On SIGINT, SIGTERM
    or SIGHUP it saves the state and raises Interrupted. A loss or gradient that isn't finite never reaches the weights;
    raises Diverged where ``callbacks.recovery`` allows no more of them. Raises PeerFailure when another process has died.
    """
    model = ranks.wrap(state.model)
    model.train()
    tracker.resume_from(state.step)
    if _out_of_patience(state, callbacks):
        return  # it was saved when it ended
    with StopSignals.caught() as signals, seeded_rng(seed, "training"), peer_failure_as_error():
        run = _TrainingRun(
            state, model, objective, schedule, seed, ranks, tracker, callbacks, precision, clip_grad, signals
        )
        if run.evaluation_due:  # it was stopped before that
            run.evaluate()
            run.checkpoint()
        while not run.done:
            for micro_batches in run.load(batches.steps(state.step, schedule.steps)):
                if state.step == 0 and callbacks.first_batch is not None:
                    callbacks.first_batch(micro_batches)
                rewound = not run.step(micro_batches)
                if rewound:
                    break
                run.evaluate()
                run.checkpoint()
                if run.done:
                    break
            if signals.received is not None and not run.done:  # it came while images were loaded
                run.checkpoint()


@dataclass
class _TrainingRun(Generic[M]):
    """A training under way: a step, then the evaluation and the checkpoint that are due after it."""

    state: State[M]
    model: nn.Module
    objective: Objective
    schedule: Schedule
    seed: int
    ranks: Ranks
    tracker: Tracker
    callbacks: Callbacks[M]
    precision: Precision
    clip_grad: float | None
    signals: StopSignals

    def __post_init__(self) -> None:
        self.started = time.monotonic() - self.state.seconds
        self.saved = time.monotonic()
        self.done = self.state.step == self.schedule.steps
        if self.precision == "float16" and not self.state.grad_scaler.enabled:
            self.state.grad_scaler = GradScaler.for_precision(self.precision)

    def step(self, micro_batches: list[Batch]) -> bool:
        """One step of the optimiser; none where the loss or gradient isn't usable, or a stop is requested.

        False when the run was rewound to a checkpoint instead, so that other batches come next.
        """
        state, number = self.state, self.state.step
        if number in state.divergence.avoid:
            state.step += 1
            return True
        rate = self.schedule.lr_at(number) * state.divergence.lr_factor
        set_learning_rate(state.optimizer, rate)
        reseed(self.seed, "step", number, self.ranks.rank)
        try:
            with self._stoppable():
                summed = self._accumulate(micro_batches)
        except StopRequested:
            state.optimizer.zero_grad(set_to_none=True)
            return True
        loss = float(self.ranks.mean(summed))
        norm = self._gradient_norm()
        problem = self._problem(loss, norm)
        overflow = math.isfinite(loss) and state.grad_scaler.overflowed(norm)
        if problem is None:
            state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        if problem is not None and not overflow:
            return self._recover(problem, micro_batches)
        state.step += 1
        if problem is None:
            state.divergence.step_done(loss)
            if state.average is not None:
                state.average.update(state.model, state.step)
        self.tracker.progress(state.step, loss)
        if problem is None and (state.step == self.schedule.steps or state.step % self.callbacks.log_every == 0):
            self.tracker.log(state.step, {"train/loss": loss, "lr": rate, "gradient_norm": norm})
        return True

    def evaluate(self) -> None:
        """Evaluate the model if it is due; the run is done after its last step, or when patience runs out.

        A stop that is requested meanwhile ends the evaluation; the run that is continued does it then.
        """
        state, callbacks = self.state, self.callbacks
        self.done = state.step == self.schedule.steps
        if not self.evaluation_due:
            return
        if callbacks.evaluate is not None:
            cancelled = False
            with self.tracker.paused():
                # Sharded parameters are gathered by all processes together.
                model = state.eval_model() if self.ranks.is_main or state.unsharded is not None else None
                if model is not None and self.ranks.is_main:
                    cancelled = not self._evaluate(model, callbacks.evaluate)
            self.model.train()
            if self.ranks.any(cancelled):
                self.done = False
                return
        state.evaluated_at = state.step
        if self.ranks.any(_out_of_patience(state, callbacks)):
            logger.info(
                "no better %s in %d evaluations: ended after step %d of %d",
                callbacks.best_metric,
                state.evaluations_since_best,
                state.step,
                self.schedule.steps,
            )
            self.done = True

    def checkpoint(self) -> None:
        """Update the run's time, evaluations included; save the state where it is due, or a stop is requested.

        Raises Interrupted after a stop.
        """
        state, checkpoints = self.state, self.callbacks.checkpoints
        state.seconds = time.monotonic() - self.started
        stop = self.ranks.any(self.signals.received is not None)
        if checkpoints is not None and (stop or self.done or (self._checkpoint_due() and not checkpoints.busy)):
            checkpoints.save(state.step, state.tensors(), state.extra_state(), wait=stop or self.done)
            self.saved = time.monotonic()
        if stop and (not self.done or checkpoints is not None):
            raise _interrupted(state, self.schedule, self.callbacks, self.signals)

    @property
    def evaluation_due(self) -> bool:
        """Whether the model is to be evaluated before the next step."""
        return self.state.step in self.callbacks.evaluate_at and self.state.evaluated_at != self.state.step

    def _evaluate(self, model: M, evaluate: Evaluate[M]) -> bool:
        """Evaluate the model, and store the best weights; False when a stop has ended it."""
        state, best_metric = self.state, self.callbacks.best_metric
        model.eval()
        try:
            with self.signals.at_once(), torch.no_grad():
                metrics = evaluate(model, state.step)
        except StopRequested:
            return False
        if metrics:
            self.tracker.log(state.step, metrics)
        state.evaluations_since_best += 1
        if best_metric is not None and metrics[best_metric] > state.best_value:
            state.evaluations_since_best = 0
            state.best_value, state.best_step = metrics[best_metric], state.step
            state.best_weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        return True

    def load(self, steps: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
        """The micro-batches of each step until a stop is requested; the tracker notes how long each was waited for."""
        while True:
            began = time.monotonic()
            try:
                with self._stoppable():
                    micro_batches = next(steps, None)
            except StopRequested:
                return
            if micro_batches is None:
                return
            self.tracker.add_data_wait(time.monotonic() - began)
            yield micro_batches

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """In one process, end the block when a stop is requested, and save the state when memory runs out.

        Several processes end a step together, else some would wait for the others.
        """
        if self.ranks.world_size > 1:
            yield
            return
        try:
            with self.signals.at_once():
                yield
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self._save_without_memory()
            raise OutOfMemory(f"step {self.state.step + 1} of {self.schedule.steps}: {MEMORY_ADVICE}") from error

    def _save_without_memory(self) -> None:
        """Save the state after the steps so far, if the memory suffices for that."""
        self.state.optimizer.zero_grad(set_to_none=True)
        step, checkpoints = self.state.step, self.callbacks.checkpoints
        with suppress(MemoryError, RuntimeError):
            if checkpoints is not None and step:
                checkpoints.save(step, self.state.tensors(), self.state.extra_state(), wait=True)

    def _checkpoint_due(self) -> bool:
        """Whether it is time to save; not right after skipped steps, as a rewind would go back to that state."""
        late = time.monotonic() - self.saved >= self.callbacks.checkpoint_seconds
        return self.state.divergence.skipped == 0 and self.ranks.any(self.ranks.is_main and late)

    def _accumulate(self, micro_batches: list[Batch]) -> Tensor:
        """Gradients of the mean loss over the micro-batches; returns that mean, detached, in float32."""
        total = torch.zeros((), device=self.ranks.device)
        for number, batch in enumerate(micro_batches, 1):
            with no_grad_sync(self.model) if number < len(micro_batches) else nullcontext():
                with autocast(self.ranks.device, self.precision):
                    loss = self.objective(self.model, batch) / len(micro_batches)
                (loss * self.state.grad_scaler.scale).backward()  # type: ignore[no-untyped-call]
            total += loss.detach().float()
        return total

    def _gradient_norm(self) -> float:
        """The norm of the full gradient before clipping; clips it in place."""
        parameters = [parameter for parameter in self.state.model.parameters() if parameter.grad is not None]
        if self.state.grad_scaler.enabled:
            for parameter in parameters:
                parameter.grad.div_(self.state.grad_scaler.scale)  # type: ignore[union-attr]
        return float(full_tensor(nn.utils.clip_grad_norm_(parameters, self.clip_grad or math.inf)))

    def _problem(self, loss: float, norm: float) -> str | None:
        """Why a step must not reach the weights; None where it may."""
        if not math.isfinite(loss):
            return f"the training loss is {loss}"
        if not math.isfinite(norm):
            return f"the gradient's norm is {norm}"
        recovery = self.callbacks.recovery
        if recovery is not None and self.state.divergence.is_spike(loss, recovery.spike):
            return f"the training loss jumps to {loss:.4g}"
        return None

    def _recover(self, problem: str, micro_batches: list[Batch]) -> bool:
        """Skip the step; after too many in a row rewind to the last checkpoint, and return False.

        Raises Diverged where that is not allowed, or has been done too often.
        """
        state, recovery, checkpoints = self.state, self.callbacks.recovery, self.callbacks.checkpoints
        where, advice = f"{problem} at step {state.step + 1}", "Lower the learning rate, or set clip_grad."
        if recovery is None:
            raise Diverged(f"{where}; the weights were left as they were. {advice}")
        images = self._image_names(micro_batches)
        state.divergence.step_skipped(state.step)
        state.step += 1
        self.tracker.event(state.step, "skip", f"{problem}; the step was skipped{_first_names(images)}", images)
        if state.divergence.skipped <= recovery.skips:
            return True
        before = state.divergence
        if before.rewinds == recovery.rewinds:
            raise Diverged(
                f"{where}, after {before.skipped} skipped in a row and going back {before.rewinds} times. {advice} "
                f"{EVENTS_FILE} names the images."
            )
        if checkpoints is not None:
            checkpoints.finish()
        if checkpoints is None or not state.load(checkpoints):
            raise Diverged(f"{where}, after {before.skipped} skipped in a row; no checkpoint to go back to. {advice}")
        state.divergence.rewound(recovery.slow_down, before)
        self.tracker.rewind_to(state.step)
        self.tracker.event(
            state.step,
            REWIND,
            f"{before.skipped} steps in a row were skipped: went back to step {state.step}, with "
            f"{state.divergence.lr_factor:g} of the learning rate",
        )
        checkpoints.save(state.step, state.tensors(), state.extra_state(), wait=True)
        return False

    def _image_names(self, micro_batches: list[Batch]) -> list[str]:
        """The images of the global batch, each once."""
        if self.callbacks.image_names is None:
            return []
        names = self.callbacks.image_names(torch.cat([batch.indices for batch in micro_batches]))
        return list(dict.fromkeys(self.ranks.all_gather(names)))


def _first_names(images: Sequence[str]) -> str:
    """The first images of a batch, as the terminal shows them."""
    if not images:
        return ""
    more = len(images) - MAX_NAMED_IMAGES
    others = f" and {more:,} more, see {EVENTS_FILE}" if more > 0 else ""
    return f"; its images: {', '.join(images[:MAX_NAMED_IMAGES])}{others}"


def _out_of_patience(state: State[M], callbacks: Callbacks[M]) -> bool:
    return callbacks.patience is not None and state.evaluations_since_best >= callbacks.patience


def _interrupted(state: State[M], schedule: Schedule, callbacks: Callbacks[M], signals: StopSignals) -> Interrupted:
    done = f"stopped after step {state.step} of {schedule.steps} ({duration(state.seconds)})"
    if callbacks.checkpoints is None:
        return Interrupted(f"{done}; nothing was saved.", signals.received or 2)
    return Interrupted(f"{done}; saved. The same command goes on from there.", signals.received or 2)
