"""Several processes: the losses of one, however the work is split; and what happens when one of them dies."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch
from maelift.core.training.tracker import read_metrics
from maelift.tests.preloaded import Started
from maelift.tests.soak import KEYS, soak
from maelift.tests.support import (
    TINY,
    has_checkpoint,
    run_ranks,
    start_maelift,
    start_ranks,
    start_torchrun,
    write_images,
)
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"), 44)


def pretrain(data: Path, out: Path, *keys: str, processes: int = 1) -> list[float]:
    """Pretrain with so many processes; the training losses."""
    done = run_ranks(processes, "pretrain", f"data={data}", f"out={out}", *TINY, "log_every=1", *keys)
    assert done.returncode == 0, done.stderr
    return logged_losses(out)


def logged_losses(out: Path) -> list[float]:
    """The training losses that a run has logged so far."""
    file = out / "metrics.jsonl"
    return [record["train/loss"] for record in read_metrics(file) if "train/loss" in record] if file.exists() else []


def first_losses(run: Started, out: Path) -> list[float]:
    """Those of its first ten steps, once a run at work has made them."""
    while len(found := logged_losses(out)) < 10:
        assert run.poll() is None, run.said()
        time.sleep(0.02)
    return found[:10]


def tensors(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "encoder.safetensors")


@pytest.fixture(scope="module")
def one(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """The run of one process that the others are held against."""
    out = tmp_path_factory.mktemp("one") / "run"
    return out, pretrain(data, out, "epochs=2", "clip_grad=0.5", "ema_decay=0.9")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "keys"),
    [
        (2, ["parallel=fsdp", "accumulate=2", "activation_checkpointing=true"]),
        (4, ["accumulate=2"]),
        (4, ["parallel=fsdp"]),
        (1, ["accumulate=4", "activation_checkpointing=true"]),
    ],
)
def test_any_split_of_the_work_makes_the_losses_of_one_process(
    data: Path, tmp_path: Path, one: tuple[Path, list[float]], processes: int, keys: list[str]
) -> None:
    losses = pretrain(data, tmp_path / "run", "epochs=2", "clip_grad=0.5", "ema_decay=0.9", *keys, processes=processes)
    assert len(losses) == 10 and losses == pytest.approx(one[1], rel=1e-5)
    expected, found = tensors(one[0]), tensors(tmp_path / "run")
    assert expected.keys() == found.keys()
    assert all(torch.allclose(found[name], tensor, atol=2e-4) for name, tensor in expected.items())


@pytest.mark.slow
def test_compiled_blocks_make_the_same_losses(data: Path, tmp_path: Path, one: tuple[Path, list[float]]) -> None:
    losses = pretrain(data, tmp_path / "run", "epochs=2", "clip_grad=0.5", "compile=true")
    assert losses == pytest.approx(one[1], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precisions_train(data: Path, tmp_path: Path, one: tuple[Path, list[float]], precision: str) -> None:
    losses = pretrain(data, tmp_path / "run", "epochs=2", "clip_grad=0.5", f"precision={precision}")
    assert losses != one[1] and losses == pytest.approx(one[1], rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("keys", [[], ["parallel=fsdp"]])
def test_a_run_goes_on_with_other_numbers_of_processes(
    data: Path, tmp_path: Path, one: tuple[Path, list[float]], keys: list[str]
) -> None:
    """Two, then one that makes the same passes, then two; stopped in good order in between."""
    whole, changed = tmp_path / "whole", tmp_path / "changed"
    expected = pretrain(data, whole, "epochs=12", *keys, processes=2)
    for processes in (2, 1):
        before = sorted(path.name for path in changed.glob("checkpoints/*"))
        words = ["pretrain", f"data={data}", f"out={changed}", *TINY, "log_every=1", "epochs=12", *keys]
        words.append(f"accumulate={2 // processes}")
        ranks = start_ranks(processes, *words, "checkpoint_minutes=0.002")
        while sorted(path.name for path in changed.glob("checkpoints/*")) == before and ranks[0].poll() is None:
            time.sleep(0.02)
        for rank in ranks:
            rank.send_signal(signal.SIGTERM)
        said = [rank.communicate(timeout=60)[1] for rank in ranks]
        assert {rank.wait() for rank in ranks} == {128 + signal.SIGTERM} and has_checkpoint(changed), said
    losses = pretrain(data, changed, "epochs=12", *keys, processes=2)
    assert len(losses) == 60 and losses == pytest.approx(expected, rel=1e-6)
    found = tensors(changed)
    for name, tensor in tensors(whole).items():
        assert (found[name] - tensor).norm() <= 1e-6 * tensor.norm(), name


@pytest.mark.slow
def test_a_launcher_s_processes_make_the_losses_of_one_and_its_second_signal_does_not_cut_the_saving_short(
    data: Path, tmp_path: Path
) -> None:
    """The others here are started as torchrun starts them; these by torchrun itself.

    A scheduler asks all processes to stop, and the launcher passes it on to those that it started.
    """
    keys = [f"data={data}", *TINY, "epochs=400", "checkpoint_minutes=60", "log_every=1"]
    alone = start_maelift("pretrain", *keys, f"out={tmp_path / 'alone'}")
    expected = first_losses(alone, tmp_path / "alone")
    alone.kill()
    process = start_torchrun(2, "pretrain", *keys, f"out={tmp_path / 'two'}")
    assert first_losses(process, tmp_path / "two") == pytest.approx(expected, rel=1e-5)
    workers = [child.pid for child in psutil.Process(process.pid).children() if "maelift" in child.cmdline()]
    began = time.monotonic()
    for _ in range(2):
        for each in (*workers, process.pid):
            os.kill(each, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert has_checkpoint(tmp_path / "two") and "saved. The same command goes on" in said, said
    assert time.monotonic() - began < 30  # of which most is torchrun's


@pytest.mark.slow
def test_a_run_that_is_killed_ends_with_the_bits_of_an_uninterrupted_one(tmp_path: Path) -> None:
    """All processes, the launcher alone, and one that trains: the others end soon, and the run goes on."""
    assert soak(tmp_path, kills=3, seed=1, keys=KEYS) == []
