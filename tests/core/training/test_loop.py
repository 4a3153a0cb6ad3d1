"""The training loop: its schedule, averages and evaluations; what stops it, and that it goes on as if it had not."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from maelift.core.data.sampling import Sample, Sampler, each
from maelift.core.distributed import Ranks
from maelift.core.errors import MaeliftError
from maelift.core.signals import Interrupted
from maelift.core.training.checkpoints import Checkpoints
from maelift.core.training.ema import WeightAverage
from maelift.core.training.loader import Batch, Batches
from maelift.core.training.loop import Callbacks, Objective, OutOfMemory, train
from maelift.core.training.recovery import Diverged, Recovery
from maelift.core.training.schedule import Schedule, evenly_spaced_steps, warmup_cosine
from maelift.core.training.state import State
from maelift.core.training.tracker import Tracker, read_events, read_metrics
from maelift.tests.support import has_checkpoint
from torch import nn

ONE = Ranks(0, 1, torch.device("cpu"))
VALUES = np.random.default_rng(0).normal(size=(6, 1, 1, 3)).astype(np.float32)


def objective(model: nn.Module, batch: Batch) -> torch.Tensor:
    """A regression with noise of its own, as drop path and mixup have theirs."""
    inputs = batch.pixels.flatten(1)
    loss: torch.Tensor = (model(inputs + 0.1 * torch.randn_like(inputs)) - inputs.sum(dim=1, keepdim=True)).square()
    return loss.mean()


def quiet_objective(model: nn.Module, batch: Batch) -> torch.Tensor:
    inputs = batch.pixels.flatten(1)
    loss: torch.Tensor = (model(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean()
    return loss


def new_state(*, average: float | None = None) -> State:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    return State(model, optimizer, None if average is None else WeightAverage(model, average))


def run(
    state: State,
    how: Objective = objective,
    *,
    steps: int = 12,
    callbacks: Callbacks | None = None,
    folder: Path | None = None,
    accumulate: int = 1,
    clip_grad: float | None = None,
) -> list[dict[str, float]]:
    """Train ``state``; give what was logged."""
    batches = Batches(
        Sampler(6, 4, 0), each(lambda index, _: Sample(VALUES[index])), draws=1, ranks=ONE, accumulate=accumulate
    )
    record: list[dict[str, float]] = []
    with Tracker(folder, "test", total=steps, images_per_step=4, record=record) as tracker:
        train(
            state,
            batches,
            how,
            Schedule(steps, 0.05),
            seed=0,
            ranks=ONE,
            tracker=tracker,
            callbacks=callbacks or Callbacks(log_every=1),
            clip_grad=clip_grad,
        )
    return record


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def stopping_at(step: int, number: signal.Signals) -> Callable[[nn.Module, Batch], torch.Tensor]:
    """The objective, which sends this process a signal at a step."""

    def send_and_evaluate(model: nn.Module, batch: Batch) -> torch.Tensor:
        if batch.step == step:
            os.kill(os.getpid(), number)
        return objective(model, batch)

    return send_and_evaluate


def test_the_schedule_at_its_ends() -> None:
    schedule = Schedule(100, 0.1, warmup=10, min_lr=0.001)
    assert schedule.lr_at(0) == 0
    assert schedule.lr_at(5) == pytest.approx(0.05)
    assert schedule.lr_at(10) == pytest.approx(0.1)
    assert schedule.lr_at(55) == pytest.approx((0.1 + 0.001) / 2)
    assert schedule.lr_at(100) == pytest.approx(0.001)
    rates = [schedule.lr_at(step) for step in range(101)]
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert Schedule(100, 0.1).lr_at(0) == 0.1
    assert warmup_cosine(3, lr=1.0, warmup=3, total=3, min_lr=0.5) == pytest.approx(0.5)


@pytest.mark.parametrize(("steps", "times"), [(100, 4), (7, 3), (3, 20), (1, 1)])
def test_evaluations_are_spread_evenly_with_one_at_the_end(steps: int, times: int) -> None:
    chosen = sorted(evenly_spaced_steps(steps, times))
    assert len(chosen) == min(steps, times) and chosen[-1] == steps and chosen[0] >= 1
    gaps = np.diff([0, *chosen])
    assert max(gaps) - min(gaps) <= 1


def test_the_average_follows_the_weights() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = WeightAverage(model, 0.9)
    nn.init.ones_(model.weight)
    average.update(model, 1)
    assert float(weights(average.module)) == pytest.approx(1 - 2 / 11)  # early on, the start is forgotten
    average.update(model, 10_000)
    assert float(weights(average.module)) == pytest.approx(1 - 0.9 * 2 / 11)
    assert not any(parameter.requires_grad for parameter in average.module.parameters())


@pytest.mark.parametrize("average", [None, 0.5])
def test_the_weights_of_the_best_evaluation_are_kept(average: float | None) -> None:
    state = new_state(average=average)
    seen: dict[int, torch.Tensor] = {}
    scores = {3: 0.2, 6: 0.8, 9: 0.8, 12: 0.5}

    def evaluate(model: nn.Module, step: int) -> dict[str, float]:
        assert not model.training and not torch.is_grad_enabled()
        assert (model is state.model) == (average is None)
        seen[step] = weights(model)
        return {"val/top1": scores[step]}

    record = run(state, callbacks=Callbacks(evaluate, evenly_spaced_steps(12, 4), "val/top1"))
    assert state.best_step == 6 and state.best_value == 0.8
    assert torch.equal(torch.cat([value.flatten() for value in state.best_weights.values()]), seen[6])
    assert not torch.equal(seen[6], seen[12])
    assert [entry["step"] for entry in record if "val/top1" in entry] == [3, 6, 9, 12]
    assert state.model.training


def test_the_time_of_every_evaluation_counts_the_last_too() -> None:
    durations: list[float] = []

    def evaluate(model: nn.Module, step: int) -> dict[str, float]:
        began = time.monotonic()
        time.sleep(0.2)
        durations.append(time.monotonic() - began)
        return {}

    state = new_state()
    run(state, steps=2, callbacks=Callbacks(evaluate=evaluate, evaluate_at=frozenset({1, 2})))
    assert len(durations) == 2 and state.seconds >= sum(durations)


def test_two_passes_make_the_step_of_one() -> None:
    one, two = new_state(), new_state()
    losses = [
        [entry["train/loss"] for entry in run(state, quiet_objective, accumulate=accumulate)]
        for state, accumulate in ((one, 1), (two, 2))
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert torch.allclose(weights(one.model), weights(two.model), atol=1e-5)


def test_gradients_are_clipped_and_their_norm_is_logged() -> None:
    free, clipped = new_state(), new_state()
    for state in (free, clipped):
        state.optimizer = torch.optim.SGD(state.model.parameters())
    start = weights(free.model)
    norm = run(free, quiet_objective, steps=1)[0]["gradient_norm"]
    assert run(clipped, quiet_objective, steps=1, clip_grad=norm / 4)[0]["gradient_norm"] == pytest.approx(norm)
    whole, part = weights(free.model) - start, weights(clipped.model) - start
    assert torch.allclose(4 * part, whole, rtol=1e-4)


@pytest.mark.parametrize(
    ("what", "break_it"),
    [
        ("training loss is nan at step 4", lambda loss: loss * math.nan),
        ("gradient's norm is nan at step 4", lambda loss: torch.sqrt(loss * 0)),
    ],
)
def test_what_is_not_finite_never_reaches_the_weights(
    what: str, break_it: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    def breaking(model: nn.Module, batch: Batch) -> torch.Tensor:
        loss = objective(model, batch)
        return break_it(loss) if batch.step == 3 else loss

    state, whole = new_state(average=0.9), new_state(average=0.9)
    with pytest.raises(MaeliftError, match=what):
        run(state, breaking)
    batches = Batches(Sampler(6, 4, 0), each(lambda index, _: Sample(VALUES[index])), draws=1, ranks=ONE)
    with Tracker(None, "test", total=12, images_per_step=4) as tracker, pytest.raises(StopIteration):

        def until_there(model: nn.Module, batch: Batch) -> torch.Tensor:
            if batch.step == 3:
                raise StopIteration
            return objective(model, batch)

        train(
            whole, batches, until_there, Schedule(12, 0.05), seed=0, ranks=ONE, tracker=tracker, callbacks=Callbacks()
        )
    assert state.step == 3 and torch.equal(weights(state.model), weights(whole.model))
    assert torch.equal(weights(state.eval_model()), weights(whole.eval_model()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_ends_as_if_it_never_stopped(tmp_path: Path, number: signal.Signals) -> None:
    def evaluate(model: nn.Module, step: int) -> dict[str, float]:
        return {"val/top1": 1 / step}  # the best comes before the stop

    whole = new_state(average=0.9)
    checkpoints = Checkpoints(tmp_path / "checkpoints", ONE)
    callbacks = Callbacks(evaluate, evenly_spaced_steps(12, 6), "val/top1", checkpoints=checkpoints, log_every=1)
    expected, handler = run(whole, callbacks=callbacks), signal.getsignal(number)
    checkpoints.remove()
    with pytest.raises(Interrupted, match=r"stopped after step 5 of 12 .* saved") as caught:
        run(new_state(average=0.9), stopping_at(5, number), callbacks=callbacks, folder=tmp_path)
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) == handler
    with (tmp_path / "metrics.jsonl").open("a") as file:  # what a killed run logged after its checkpoint
        file.write('{"step": 7, "train/loss": 9.0}\n{"step": 8, "tra')
    state = new_state(average=0.9)
    assert state.load(checkpoints) and state.step == 5  # that which the signal came in was given up
    run(state, callbacks=callbacks, folder=tmp_path)
    assert read_metrics(tmp_path / "metrics.jsonl") == expected
    assert torch.equal(weights(state.model), weights(whole.model))
    assert torch.equal(weights(state.eval_model()), weights(whole.eval_model()))
    assert state.best_step == whole.best_step == 2 and state.best_weights
    assert all(torch.equal(value, whole.best_weights[name]) for name, value in state.best_weights.items())


def test_a_stop_does_not_wait_for_the_evaluation_which_is_done_when_the_run_goes_on(tmp_path: Path) -> None:
    asked: list[int] = []

    def evaluate(model: nn.Module, step: int) -> dict[str, float]:
        asked.append(step)
        if asked == [4, 8] or asked == [4, 8, 8, 12]:
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("the evaluation went on")
        return {"val/top1": float(weights(model).sum())}

    checkpoints = Checkpoints(tmp_path / "checkpoints", ONE)
    callbacks = Callbacks(evaluate, evenly_spaced_steps(12, 3), "val/top1", checkpoints=checkpoints, log_every=1)
    for step in (8, 12):
        state = new_state()
        state.load(checkpoints)
        with pytest.raises(Interrupted, match=f"stopped after step {step} of 12"):
            run(state, callbacks=callbacks, folder=tmp_path)
    state = new_state()
    assert state.load(checkpoints) and state.step == 12
    run(state, callbacks=callbacks, folder=tmp_path)
    assert asked == [4, 8, 8, 12, 12]
    asked[:] = [0]
    whole = new_state()
    expected = run(whole, callbacks=Callbacks(evaluate, evenly_spaced_steps(12, 3), "val/top1", log_every=1))
    assert read_metrics(tmp_path / "metrics.jsonl") == expected
    assert torch.equal(weights(state.model), weights(whole.model)) and state.best_step == whole.best_step


def test_a_stop_does_not_wait_for_images(tmp_path: Path) -> None:
    def slow(index: int, draws: object) -> Sample:
        if len(loaded) == 20:
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("the loading went on")
        loaded.append(index)
        return Sample(VALUES[index])

    loaded: list[int] = []
    state, callbacks = new_state(), Callbacks(checkpoints=Checkpoints(tmp_path / "checkpoints", ONE))
    with (
        Tracker(None, "test", total=12, images_per_step=4) as tracker,
        pytest.raises(Interrupted, match="after step 5"),
    ):
        train(
            state,
            Batches(Sampler(6, 4, 0), each(slow), draws=1, ranks=ONE),
            objective,
            Schedule(12, 0.05),
            seed=0,
            ranks=ONE,
            tracker=tracker,
            callbacks=callbacks,
        )
    assert has_checkpoint(tmp_path)


def test_a_step_without_memory_saves_those_before(tmp_path: Path) -> None:
    def hungry(model: nn.Module, batch: Batch) -> torch.Tensor:
        if batch.step == 5:
            torch.empty(2**60)
        return objective(model, batch)

    whole, state = new_state(), new_state()
    run(whole)
    callbacks = Callbacks(checkpoints=Checkpoints(tmp_path / "checkpoints", ONE))
    with pytest.raises(OutOfMemory, match=r"^step 6 of 12: not enough memory\. .*workers=0"):
        run(state, hungry, callbacks=callbacks)
    state = new_state()
    assert state.load(Checkpoints(tmp_path / "checkpoints", ONE)) and state.step == 5
    run(state)
    assert torch.equal(weights(state.model), weights(whole.model))


def test_a_stop_without_a_checkpoint_says_that_nothing_was_saved() -> None:
    with pytest.raises(Interrupted, match="nothing was saved"):
        run(new_state(), stopping_at(2, signal.SIGTERM))


def test_a_new_run_forgets_the_metrics_of_one_that_left_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/loss": 9.0}\n')
    expected = run(new_state(), folder=tmp_path)
    assert read_metrics(tmp_path / "metrics.jsonl") == expected


def broken_at(*steps: int, loss: float = math.nan) -> Objective:
    """The objective, whose loss is ``loss`` at these steps, counted from 0."""

    def sometimes(model: nn.Module, batch: Batch) -> torch.Tensor:
        right = objective(model, batch)
        return right * 0 + loss if batch.step in steps else right

    return sometimes


def test_a_step_that_is_not_finite_is_skipped_and_its_images_are_named(tmp_path: Path) -> None:
    state = new_state()
    callbacks = Callbacks(
        recovery=Recovery(), image_names=lambda indices: [f"{index}.png" for index in indices.tolist()], log_every=1
    )
    record = run(state, broken_at(4, 7), callbacks=callbacks, folder=tmp_path)
    assert [entry["step"] for entry in record] == [1, 2, 3, 4, 6, 7, 9, 10, 11, 12]
    assert torch.isfinite(weights(state.model)).all() and state.divergence.skipped == 0
    events = read_events(tmp_path / "events.jsonl")
    assert [(event.step, event.kind) for event in events] == [(5, "skip"), (8, "skip")]
    assert "training loss is nan" in events[0].text and f"its images: {', '.join(events[0].images)}" in events[0].text
    assert events[0].images == tuple(dict.fromkeys(f"{index}.png" for index in Sampler(6, 4, 0).batch(4)))


def test_after_too_many_skipped_steps_a_run_goes_back_slower_and_leaves_their_batches_out(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", ONE)
    callbacks = Callbacks(recovery=Recovery(skips=1), checkpoints=checkpoints, checkpoint_seconds=0, log_every=1)
    state = new_state(average=0.9)
    record = run(state, broken_at(5, 6), callbacks=callbacks, folder=tmp_path)
    assert (
        state.step == 12
        and state.divergence.rewinds == 1
        and state.divergence.lr_factor == 0.5
        and state.divergence.avoid == {5, 6}
    )
    rewind = next(event for event in read_events(tmp_path / "events.jsonl") if event.kind == "rewind")
    kept = [entry["step"] for entry in read_metrics(tmp_path / "metrics.jsonl")]
    assert kept == sorted(set(kept)) == [1, 2, 3, 4, 5, 8, 9, 10, 11, 12] and rewind.step < 7
    rates = {entry["step"]: entry["lr"] for entry in record}
    assert rates[12] == pytest.approx(0.5 * Schedule(12, 0.05).lr_at(11)) and rates[1] == Schedule(12, 0.05).lr_at(0)
    assert torch.isfinite(weights(state.eval_model())).all()


def test_a_run_that_goes_on_diverging_ends(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", ONE)
    callbacks = Callbacks(recovery=Recovery(skips=0, rewinds=2), checkpoints=checkpoints, checkpoint_seconds=0)
    with pytest.raises(Diverged, match="after 1 skipped in a row and going back 2 times"):
        run(new_state(), broken_at(*range(5, 12)), callbacks=callbacks)
    with pytest.raises(Diverged, match="no checkpoint to go back to"):
        run(new_state(), broken_at(0), callbacks=Callbacks(recovery=Recovery(skips=0)))


def test_a_leap_of_the_loss_is_skipped_where_that_is_asked_for(tmp_path: Path) -> None:
    for spike, skipped in ((50.0, 1), (None, 0)):
        folder = tmp_path / str(spike)
        folder.mkdir()
        callbacks = Callbacks(recovery=Recovery(spike=spike))
        run(new_state(), broken_at(120, loss=1e6), steps=130, callbacks=callbacks, folder=folder)
        assert len(read_events(folder / "events.jsonl")) == skipped


def test_float16_lowers_its_scale_until_gradients_fit_and_goes_on_from_it(tmp_path: Path) -> None:
    def large(model: nn.Module, batch: Batch) -> torch.Tensor:
        return objective(model, batch) * (1.0 if batch.step else 1e35)

    state = new_state()
    checkpoints = Checkpoints(tmp_path / "checkpoints", ONE)
    callbacks = Callbacks(checkpoints=checkpoints, log_every=1)
    batches = Batches(Sampler(6, 4, 0), each(lambda index, _: Sample(VALUES[index])), draws=1, ranks=ONE)
    with Tracker(None, "test", total=6, images_per_step=4) as tracker:
        train(
            state,
            batches,
            large,
            Schedule(6, 0.05),
            seed=0,
            ranks=ONE,
            tracker=tracker,
            callbacks=callbacks,
            precision="float16",
        )
    assert (
        1 < state.grad_scaler.scale < 2.0**16
        and state.grad_scaler.enabled
        and torch.isfinite(weights(state.model)).all()
    )
    other = new_state()
    assert other.load(checkpoints) and other.grad_scaler == state.grad_scaler
