"""The one training loop: accumulation, mixed precision, clipping, EMA, evaluation, checkpoints, exact resume."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data.sampling import Batch, Batches
from ..device import Precision, autocast
from ..distributed import Ranks, full_tensor, no_grad_sync, peer_failure_as_error
from ..errors import MaeliftError
from ..progress import duration
from ..seeding import reseed, seeded_rng
from ..signals import Interrupted, StopAsked, StopSignals
from ..system_errors import MEMORY, out_of_memory
from .checkpoints import Checkpoints
from .optimizers import set_learning_rate
from .recovery import GradScaler, Recovery
from .schedule import Schedule
from .state import State
from .tracker import EVENTS_FILE, Tracker

logger = logging.getLogger("maelift")

Objective = Callable[[nn.Module, Batch], Tensor]
"""From the (wrapped) model and a micro-batch to the scalar loss, the mean over the micro-batch."""
Evaluate = Callable[[nn.Module, int], Mapping[str, float]]
"""From the model to be judged (with the average of the weights, where one is kept) and the step to named metrics."""


SHOWN = 4
"""Images of a skipped batch that are named on the terminal."""


class OutOfMemory(MaeliftError):
    """The machine's memory is too small for a step; what the steps before made is saved."""


class Diverged(MaeliftError):
    """A loss or a gradient that is not finite; the weights are those of the step before."""


@dataclass(frozen=True)
class Callbacks:
    """What happens beside the steps.

    ``evaluate`` runs after the steps in ``evaluate_at``; the weights with the highest ``best_metric`` are kept. After
    ``patience`` evaluations without a better one the run ends. The state is saved to ``checkpoints`` every
    ``checkpoint_seconds``, and when the run is stopped. Without ``recovery`` a loss that isn't finite ends the run;
    ``names`` tells what a person knows a batch's images by, for the events.
    """

    evaluate: Evaluate | None = None
    evaluate_at: frozenset[int] = frozenset()
    best_metric: str | None = None
    patience: int | None = None
    checkpoints: Checkpoints | None = None
    checkpoint_seconds: float = 300.0
    log_every: int = 50
    recovery: Recovery | None = None
    names: Callable[[Tensor], list[str]] | None = None


def train(
    state: State,
    batches: Batches,
    objective: Objective,
    schedule: Schedule,
    *,
    seed: int,
    ranks: Ranks,
    tracker: Tracker,
    upkeep: Callbacks,
    precision: Precision = "auto",
    clip_grad: float | None = None,
) -> None:
    """Train ``state.model`` from ``state.step`` to ``schedule.steps``, in place.

    It ends earlier when ``upkeep.patience`` runs out. Losses that are logged are means over the global batch. Stops in
    good order on SIGINT, SIGTERM or SIGHUP: saves and raises Interrupted. A loss or gradient that isn't finite never reaches the
    weights; raises Diverged where ``upkeep.recovery`` allows no more of them. Raises LostContact when another process
    has died.
    """
    model = ranks.wrap(state.model)
    model.train()
    tracker.go_on_from(state.step)
    if _out_of_patience(state, upkeep):
        return  # it was saved when it ended
    with StopSignals.noted() as signals, seeded_rng(seed, "training"), peer_failure_as_error():
        run = _Run(state, model, objective, schedule, seed, ranks, tracker, upkeep, precision, clip_grad, signals)
        if run.unjudged:  # it was stopped before that
            run.look()
            run.keep()
        while not run.done:
            for micro_batches in run.waited_for(batches.steps(state.step, schedule.steps)):
                went_back = not run.step(micro_batches)
                if went_back:
                    break
                run.look()
                run.keep()
                if run.done:
                    break
            if signals.received is not None and not run.done:  # it came while images were waited for
                run.keep()


@dataclass
class _Run:
    """The training while it lasts: a step, then a look at the model, then what is kept of it."""

    state: State
    model: nn.Module
    objective: Objective
    schedule: Schedule
    seed: int
    ranks: Ranks
    tracker: Tracker
    upkeep: Callbacks
    precision: Precision
    clip_grad: float | None
    signals: StopSignals

    def __post_init__(self) -> None:
        self.began = time.monotonic() - self.state.seconds
        self.saved = time.monotonic()
        self.done = self.state.step == self.schedule.steps
        if self.precision == "float16" and not self.state.scale.moves:
            self.state.scale = GradScaler.for_precision(self.precision)

    def step(self, micro_batches: list[Batch]) -> bool:
        """One step of the optimiser, or none where the loss or the gradient is not to be trusted, or a stop is asked for.

        False when the run has gone back instead, so that other batches come next.
        """
        state, number = self.state, self.state.step
        if number in state.health.avoid:
            state.step += 1
            return True
        rate = self.schedule.lr_at(number) * state.health.factor
        set_learning_rate(state.optimizer, rate)
        reseed(self.seed, "step", number, self.ranks.rank)
        try:
            with self._given_up_on_a_stop():
                summed = self._accumulate(micro_batches)
        except StopAsked:
            state.optimizer.zero_grad(set_to_none=True)
            return True
        except (MemoryError, RuntimeError) as error:
            if self.ranks.world_size == 1 and out_of_memory(error):
                raise self._without_memory() from error
            raise
        loss = float(self.ranks.mean(summed))
        norm = self._gradient_norm()
        trouble = self._trouble(loss, norm)
        overflow = math.isfinite(loss) and state.scale.overflowed(norm)
        if trouble is None:
            state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        if trouble is not None and not overflow:
            return self._recover(trouble, micro_batches)
        state.step += 1
        if trouble is None:
            state.health.good(loss)
            if state.average is not None:
                state.average.update(state.model, state.step)
        self.tracker.progress(state.step, loss)
        if trouble is None and (state.step == self.schedule.steps or state.step % self.upkeep.log_every == 0):
            self.tracker.log(state.step, {"train/loss": loss, "lr": rate, "gradient_norm": norm})
        return True

    def look(self) -> None:
        """Judge the model where it is time; the run is done after its last step, or when patience runs out.

        A stop that is asked for meanwhile is not kept waiting: the run that goes on judges then.
        """
        state, upkeep = self.state, self.upkeep
        self.done = state.step == self.schedule.steps
        if not self.unjudged:
            return
        if upkeep.evaluate is not None:
            given_up = False
            with self.tracker.aside():
                # Where the parameters are spread over the processes, all give their part.
                judged = state.judged if self.ranks.is_main or state.plain is not None else None
                if judged is not None and self.ranks.is_main:
                    given_up = not self._judge(judged, upkeep.evaluate)
            self.model.train()
            if self.ranks.any(given_up):
                self.done = False
                return
        state.judged_at = state.step
        if self.ranks.any(_out_of_patience(state, upkeep)):
            logger.info(
                "no better %s in %d evaluations: ended after step %d of %d",
                upkeep.best_metric,
                state.waited,
                state.step,
                self.schedule.steps,
            )
            self.done = True

    def keep(self) -> None:
        """Note the time, looks at the model with it; save the state where it is due, or where the run is asked to stop.

        Raises Interrupted then.
        """
        state, checkpoints = self.state, self.upkeep.checkpoints
        state.seconds = time.monotonic() - self.began
        stop = self.ranks.any(self.signals.received is not None)
        if checkpoints is not None and (stop or self.done or (self._due() and not checkpoints.busy)):
            checkpoints.save(state.step, state.tensors(), state.facts(), wait=stop or self.done)
            self.saved = time.monotonic()
        if stop and (not self.done or checkpoints is not None):
            raise _interrupted(state, self.schedule, self.upkeep, self.signals)

    @property
    def unjudged(self) -> bool:
        """Whether the model is to be judged before the next step."""
        return self.state.step in self.upkeep.evaluate_at and self.state.judged_at != self.state.step

    def _judge(self, judged: nn.Module, evaluate: Evaluate) -> bool:
        """Judge the model, and keep the best weights; False when that was given up for a stop."""
        state, best_metric = self.state, self.upkeep.best_metric
        judged.eval()
        try:
            with self.signals.at_once(), torch.no_grad():
                metrics = evaluate(judged, state.step)
        except StopAsked:
            return False
        if metrics:
            self.tracker.log(state.step, metrics)
        state.waited += 1
        if best_metric is not None and metrics[best_metric] > state.best_value:
            state.waited = 0
            state.best_value, state.best_step = metrics[best_metric], state.step
            state.best_weights = {name: value.detach().cpu().clone() for name, value in judged.state_dict().items()}
        return True

    def waited_for(self, steps: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
        """The same steps, until a stop is asked for; the tracker is told how long each was waited for."""
        while True:
            began = time.monotonic()
            try:
                with self._given_up_on_a_stop():
                    micro_batches = next(steps, None)
            except StopAsked:
                return
            except (MemoryError, RuntimeError) as error:
                if self.ranks.world_size == 1 and out_of_memory(error):
                    raise self._without_memory() from error
                raise
            if micro_batches is None:
                return
            self.tracker.waited(time.monotonic() - began)
            yield micro_batches

    def _given_up_on_a_stop(self) -> AbstractContextManager[None]:
        """Of one process: a stop is not kept waiting. Several end a step together: who gives up leaves the others waiting."""
        return self.signals.at_once() if self.ranks.world_size == 1 else nullcontext()

    def _without_memory(self) -> OutOfMemory:
        """Save what the steps so far have made; the error that says that there is no memory for the next."""
        self.state.optimizer.zero_grad(set_to_none=True)
        step, checkpoints = self.state.step, self.upkeep.checkpoints
        with suppress(MemoryError, RuntimeError):  # saving takes some too
            if checkpoints is not None and step:
                checkpoints.save(step, self.state.tensors(), self.state.facts(), wait=True)
        return OutOfMemory(f"step {step + 1} of {self.schedule.steps}: {MEMORY}")

    def _due(self) -> bool:
        """Whether it is time to save; not in the midst of trouble, as that is what one would go back to."""
        late = time.monotonic() - self.saved >= self.upkeep.checkpoint_seconds
        return self.state.health.skipped == 0 and self.ranks.any(self.ranks.is_main and late)

    def _accumulate(self, micro_batches: list[Batch]) -> Tensor:
        """Gradients of the mean loss over the micro-batches; returns that mean, detached, in float32."""
        total = torch.zeros((), device=self.ranks.device)
        for number, batch in enumerate(micro_batches, 1):
            with no_grad_sync(self.model) if number < len(micro_batches) else nullcontext():
                with autocast(self.ranks.device, self.precision):
                    loss = self.objective(self.model, batch) / len(micro_batches)
                (loss * self.state.scale.value).backward()  # type: ignore[no-untyped-call]
            total += loss.detach().float()
        return total

    def _gradient_norm(self) -> float:
        """The norm of the whole gradient, which is clipped on the way."""
        parameters = [parameter for parameter in self.state.model.parameters() if parameter.grad is not None]
        if self.state.scale.moves:
            for parameter in parameters:
                parameter.grad.div_(self.state.scale.value)  # type: ignore[union-attr]
        return float(full_tensor(nn.utils.clip_grad_norm_(parameters, self.clip_grad or math.inf)))

    def _trouble(self, loss: float, norm: float) -> str | None:
        """What is wrong with a step, if anything is."""
        if not math.isfinite(loss):
            return f"the training loss is {loss}"
        if not math.isfinite(norm):
            return f"the gradient's norm is {norm}"
        recovery = self.upkeep.recovery
        if recovery is not None and self.state.health.spikes(loss, recovery.spike):
            return f"the training loss leaps to {loss:.4g}"
        return None

    def _recover(self, trouble: str, micro_batches: list[Batch]) -> bool:
        """Skip the step; after too many in a row go back to the last checkpoint, and give False.

        Raises Diverged where that is not allowed, or has been done too often.
        """
        state, recovery, checkpoints = self.state, self.upkeep.recovery, self.upkeep.checkpoints
        where, advice = f"{trouble} at step {state.step + 1}", "Lower the learning rate, or set clip_grad."
        if recovery is None:
            raise Diverged(f"{where}; the weights were left as they were. {advice}")
        images = self._names(micro_batches)
        state.health.bad(state.step)
        state.step += 1
        self.tracker.event(state.step, "skip", f"{trouble}; the step was skipped{_some(images)}", images)
        if state.health.skipped <= recovery.skips:
            return True
        before = state.health
        if before.rewinds == recovery.rewinds:
            raise Diverged(
                f"{where}, after {before.skipped} skipped in a row and going back {before.rewinds} times. {advice} "
                f"{EVENTS_FILE} names the images."
            )
        if checkpoints is not None:
            checkpoints.finish()
        if checkpoints is None or not state.load(checkpoints):
            raise Diverged(f"{where}, after {before.skipped} skipped in a row; no checkpoint to go back to. {advice}")
        state.health.gone_back(recovery.slow_down, before)
        self.tracker.rewind_to(state.step)
        self.tracker.event(
            state.step,
            "rewind",
            f"{before.skipped} steps in a row were skipped: went back to step {state.step}, with "
            f"{state.health.factor:g} of the learning rate",
        )
        checkpoints.save(state.step, state.tensors(), state.facts(), wait=True)
        return False

    def _names(self, micro_batches: list[Batch]) -> list[str]:
        """The images of the global batch, each once."""
        if self.upkeep.names is None:
            return []
        names = self.upkeep.names(torch.cat([batch.indices for batch in micro_batches]))
        return list(dict.fromkeys(self.ranks.all_gather(names)))


def _some(images: Sequence[str]) -> str:
    """A few of a batch's images, as people are told of them."""
    if not images:
        return ""
    more = f" and {len(images) - SHOWN:,} more, see {EVENTS_FILE}" if len(images) > SHOWN else ""
    return f"; its images: {', '.join(images[:SHOWN])}{more}"


def _out_of_patience(state: State, upkeep: Callbacks) -> bool:
    return upkeep.patience is not None and state.waited >= upkeep.patience


def _interrupted(state: State, schedule: Schedule, upkeep: Callbacks, signals: StopSignals) -> Interrupted:
    done = f"stopped after step {state.step} of {schedule.steps} ({duration(state.seconds)})"
    if upkeep.checkpoints is None:
        return Interrupted(f"{done}; nothing was saved.", signals.received or 2)
    return Interrupted(f"{done}; saved. The same command goes on from there.", signals.received or 2)
