"""Signals that ask for a stop: noted or raised, the repeated ones ignored, the impatient ones obeyed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from maelift.core import signals
from maelift.core.signals import Interrupted, StopRequested, StopSignals, interruptible
from maelift.core.threads import CancellingThreadPool


def ask(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def test_a_repeated_signal_is_the_same_request_wherever_it_comes() -> None:
    with StopSignals.caught("maelift test", raising=True) as outer:
        with StopSignals.caught() as inner:
            ask()
            ask()
            assert inner.received == signal.SIGTERM
            with pytest.raises(StopRequested), inner.at_once():
                pytest.fail("the stop was forgotten")
        ask()  # when the inner block has ended well
        ask(signal.SIGINT)
        assert outer.received == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_stop_ends_a_block_in_its_words_and_is_no_exception_that_libraries_catch() -> None:
    with pytest.raises(Interrupted, match="stopped") as caught, interruptible("stopped"):
        try:
            ask(signal.SIGHUP)
        except Exception:
            pytest.fail("caught by a library")
    assert caught.value.exit_code == 129


def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible("stopped"):
            ask(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_threads_do_not_keep_a_stop_waiting() -> None:
    done: list[int] = []

    def work(number: int) -> None:
        time.sleep(0.01)
        done.append(number)

    with pytest.raises(Interrupted), interruptible("stopped"), CancellingThreadPool(1) as pool:
        for number in range(1000):
            pool.submit(work, number)
        ask()
    assert len(done) < 500


PROGRAM = """
import os, signal, sys, time
from maelift.core import signals
from maelift.core.signals import StopSignals
signals.SAME_REQUEST_SECONDS = signals.SHUTDOWN_SECONDS = 0.2
with StopSignals.caught("maelift test", raising=sys.argv[1] == "stuck"):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        pass
    time.sleep(0.4)
    os.kill(os.getpid(), signal.SIGTERM)
    if sys.argv[1] == "impatient":
        os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
"""


@pytest.mark.parametrize("how", ["impatient", "stuck"])
def test_a_later_ctrl_c_ends_the_process_and_so_does_an_end_that_takes_too_long(how: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, timeout=50)
    assert done.returncode == 130 and done.stderr == f"maelift test: ended at once. {signals.RESUME_HINT}\n", (
        done.stderr
    )
