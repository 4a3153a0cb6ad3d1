"""Loading by worker processes: the same things in the same order, whatever happens to a worker."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from maelift.core.errors import DataError
from maelift.core.training import worker_loader
from maelift.core.training.loader import Batch
from maelift.core.training.worker_loader import load_in_order

COUNT = 40


def batch(number: int) -> Batch:
    """A batch of every kind of array: large, small, empty and without dimensions."""
    random = np.random.default_rng(number)
    targets = tuple(
        {"boxes": torch.from_numpy(random.random((kind % 3, 4), np.float32)), "label": torch.tensor(kind)}
        for kind in range(4)
    )
    pixels = torch.from_numpy(random.integers(0, 256, (4, 3, 80, 80), np.uint8))
    return Batch(pixels, torch.arange(4) + number, number, (0, 4), targets, ((number, "broken"),))


def equal(one: Batch, other: Batch) -> bool:
    """Whether two batches are the same in every bit and type."""
    flat = [[(name, value) for target in each.targets for name, value in target.items()] for each in (one, other)]
    pairs = [(one.pixels, other.pixels), (one.indices, other.indices)]
    pairs += [(left[1], right[1]) for left, right in zip(*flat, strict=True)]
    alike = all(left.dtype == right.dtype and torch.equal(left, right) for left, right in pairs)
    return alike and (one.step, one.rows, one.broken) == (other.step, other.rows, other.broken)


def check(loaded: Iterator[Batch], at: int = -1, strike: Callable[[], None] = lambda: None) -> None:
    """Go through what is loaded, ``strike`` before number ``at``, and see that it is what it should be."""
    count = 0
    for number, found in enumerate(loaded):
        assert equal(found, batch(number)), number
        found.pixels.add_(1)  # it may be written to, as it is this process's alone
        count += 1
        if count == at:
            strike()
    assert count == COUNT and not multiprocessing.active_children()


def workers() -> list[int]:
    """The loader's processes, and no others that the tests have started."""
    return [process.pid for process in multiprocessing.active_children() if process.pid is not None]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_any_number_of_workers_loads_the_same(count: int) -> None:
    check(load_in_order(batch, COUNT, count))


def test_a_system_without_blocks_of_memory_loads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "memfd_create", refuse)
    check(load_in_order(batch, COUNT, 2))


def test_a_gpu_gets_the_same_in_page_locked_memory_one_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[int] = []

    def pin_memory(self: Batch) -> Batch:
        pinned.append(self.step)
        return self

    monkeypatch.setattr(Batch, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    check(load_in_order(batch, COUNT, 2, pin_memory=True), 4, lambda: os.kill(workers()[0], signal.SIGKILL))
    assert sorted(set(pinned)) == list(range(COUNT))
    check(load_in_order(batch, COUNT, 0, pin_memory=True))


def test_one_open_file_a_batch_is_enough() -> None:
    held = list(load_in_order(batch, COUNT, 2))
    opened = len(os.listdir("/proc/self/fd"))
    del held
    assert opened - len(os.listdir("/proc/self/fd")) == COUNT


def test_killed_workers_are_done_without(caplog: pytest.LogCaptureFixture) -> None:
    def kill() -> None:
        os.kill(workers()[-1], signal.SIGKILL)

    with caplog.at_level(logging.WARNING, "maelift"):
        check(load_in_order(batch, COUNT, 3), 4, kill)
    (said,) = [record.getMessage() for record in caplog.records]
    assert "a worker process has died (killed: was the memory used up?)" in said and "workers=1" in said


def test_signals_to_the_whole_group_are_left_to_the_parent() -> None:
    def everyone() -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            for worker in workers():
                os.kill(worker, number)

    check(load_in_order(batch, COUNT, 2), 4, everyone)


def test_workers_that_cannot_be_started_or_have_no_memory_are_done_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    parent = os.getpid()

    def hungry(number: int) -> Batch:
        if os.getpid() != parent and number == 7:
            raise MemoryError
        return batch(number)

    with caplog.at_level(logging.WARNING, "maelift"):
        check(load_in_order(hungry, COUNT, 2))
        assert "too little memory" in caplog.text and "workers=0" in caplog.text

        def refuse() -> int:
            raise BlockingIOError(11, "Resource temporarily unavailable")

        monkeypatch.setattr(os, "fork", refuse)
        check(load_in_order(batch, COUNT, 2))
    assert "can't be started (resource temporarily unavailable)" in caplog.text


def test_a_worker_that_hangs_is_not_silent(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(worker_loader, "SLOW_SECONDS", 0.2)

    def hang() -> None:
        (worker,) = workers()
        os.kill(worker, signal.SIGSTOP)
        threading.Timer(0.5, os.kill, (worker, signal.SIGCONT)).start()

    with caplog.at_level(logging.WARNING, "maelift"):
        check(load_in_order(batch, COUNT, 1), 4, hang)
    assert "waiting for 0 s for the images of a batch; does their storage still answer?" in caplog.text


def test_errors_come_in_their_place_and_as_they_are() -> None:
    def broken(number: int) -> int:
        if number == 5:
            raise DataError("5 is broken")
        if number == 6:
            raise KeyError("ours")
        return number

    for count, kind in ((5, DataError), (6, KeyError)):
        first = 0 if kind is DataError else 6
        loaded = load_in_order(lambda number, first=first: broken(number + first), 10, 2)  # type: ignore[misc]
        with pytest.raises(kind) as caught:
            for _ in range(count + 1):
                next(loaded)
        assert kind is DataError or "in a worker process" in str(caught.value.__cause__)
    assert not multiprocessing.active_children()


def test_workers_end_with_their_parent() -> None:
    line, there = os.pipe()
    parent = os.fork()
    if parent == 0:
        loaded = load_in_order(batch, COUNT, 2)
        next(loaded)
        os.write(there, repr(workers()).encode())
        time.sleep(60)
        os._exit(1)
    begun = [int(number) for number in os.read(line, 1000).decode().strip("[]").split(",")]
    assert len(begun) == 2
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    end = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{worker}/fd/0") for worker in begun):  # of one that has ended nothing is open
        assert time.monotonic() < end
        time.sleep(0.01)
