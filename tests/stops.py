"""Stops runs at random moments, start-up and saving included, and compares what they end with with uninterrupted ones.

The stops: SIGTERM to the whole process group, a worker process killed, a full disk (a small tmpfs, which needs root). The runs:
a pretraining, a transfer, a suite. Each stop must end in one line, or not at all, without a traceback, and the same command must
go on to the same bits. ``python tests/stops.py stops=20 seed=0 runs=pretrain,transfer,bench kinds=sigterm,worker,disk``;
exit code 1 when anything of that doesn't hold.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import psutil
from maelift.tests.preloaded import Started
from maelift.tests.support import TINY, encoder_file, environment, preloaded, write_images
from PIL import Image
from safetensors.torch import load_file

OFTEN = "checkpoint_minutes=0.0005"
DISK_MIB = 24

SUITE = """
title: stopped again and again
data: {path: classes, pool: 24, val: 12}
labels: [6]
seeds: [0, 1]
model: vit_nano
image_size: 16
patch_size: 8
workers: 2
evaluations: 1
tuning: {rates: [3e-4, 1e-3, 3e-3, 1e-2], max_doublings: 0, max_extensions: 0}
baseline: scratch
arms:
  mae:
    start: mae
    label: pretrained
    pretrain:
      {epochs: 20, batch_size: 8, lr: 1e-3, holdout: 4, evaluations: 1, decoder: {embed_dim: 16, depth: 1, num_heads: 2}}
    recipe: &small {batch_size: 4, mixup: 0.0, cutmix: 0.0, random_erasing: 0.0}
    steps: {6: 3}
  scratch: {start: scratch, label: from scratch, recipe: *small, steps: {6: 3}}
"""


@dataclass(frozen=True)
class Subject:
    """A command that is stopped: its words but ``out``, the file that says that it is done, and what is compared."""

    words: tuple[str, ...]
    finished: str
    result: Callable[[Path], object]


@dataclass
class Outcome:
    """What came of stops of one kind: how many, how each ended, and what was wrong."""

    stops: int = 0
    ended: int = 0
    """stops that ended the command; the others went on"""
    runs: int = 0
    """runs brought to their end, with the bits of an uninterrupted one"""
    seconds: list[float] = field(default_factory=list)
    """from a signal to the end"""
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        slowest = ""
        if self.seconds:
            slowest = f"; ended in {statistics.median(self.seconds):.1f} s, at most {max(self.seconds):.1f} s"
        fine = "all as it should be" if not self.wrong else f"WRONG: {self.wrong}"
        return f"{self.stops} stops, {self.ended} ended the command, {self.runs} runs to the same bits{slowest}; {fine}"


def tensors(out: Path, name: str) -> dict[str, bytes]:
    """Every tensor of a file, as bytes."""
    return {key: tensor.numpy().tobytes() for key, tensor in load_file(out / name).items()}


def subjects(home: Path) -> dict[str, Subject]:
    """The commands, with their data in ``home``."""
    write_images(home / "images", 40)
    for label, level in (("dark", 60), ("light", 190)):
        for split, count in (("train", 30), ("test", 6)):
            (home / "classes" / split / label).mkdir(parents=True)
            for number in range(count):
                values = np.random.default_rng([level, number, count]).integers(level - 50, level + 50, (16, 16, 3))
                Image.fromarray(values.astype(np.uint8)).save(home / "classes" / split / label / f"{number}.png")
    encoder_file(home / "encoder.safetensors")
    (home / "suite.yaml").write_text(SUITE)
    keys = [key for key in TINY if not key.startswith("workers")]
    small = ("steps=30", "batch_size=8", "evaluations=3", "recipe=small", "workers=2", "init=encoder")
    return {
        "pretrain": Subject(
            ("pretrain", "data=images", *keys, "workers=2", "epochs=16", OFTEN),
            "summary.html",
            partial(tensors, name="encoder.safetensors"),
        ),
        "transfer": Subject(
            ("transfer", "classify", "data=classes", "encoder=encoder.safetensors", *small, OFTEN),
            "test.json",
            partial(tensors, name="model.safetensors"),
        ),
        "bench": Subject(("bench", "suite.yaml"), "report.html", lambda out: (out / "results.csv").read_bytes()),
    }


def group(leader: int) -> list[psutil.Process]:
    """The worker processes of a command: loaders, and the forks that do a suite's runs."""
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(leader).children(recursive=True)
        return [child for child in children if not _helper(child)]
    return []


def _helper(process: psutil.Process) -> bool:
    """Whether a process is Python's own, which starts and looks after others."""
    with suppress(psutil.NoSuchProcess):
        parent = process.parent()
        words = " ".join(process.cmdline())
        started = parent is not None and "forkserver" in " ".join(parent.cmdline())
        return "resource_tracker" in words or ("forkserver" in words and not started)
    return True


def _ended_within(run: Started, seconds: float) -> bool:
    """Whether a command ends within so many seconds."""
    end = time.monotonic() + seconds
    while run.poll() is None and time.monotonic() < end:
        time.sleep(min(0.02, seconds))
    return run.poll() is not None


def sigterm(run: Started, out: Path, draws: random.Random) -> bool:
    """SIGTERM to all at once."""
    with suppress(ProcessLookupError):
        os.killpg(run.pid, signal.SIGTERM)
        return True
    return False


def kill_a_worker(run: Started, out: Path, draws: random.Random) -> bool:
    """SIGKILL to one worker process, where there is one."""
    for _ in range(100):
        if workers := group(run.pid):
            with suppress(psutil.NoSuchProcess):
                draws.choice(workers).kill()
                return True
        if _ended_within(run, 0.05):
            break
    return False


def fill_the_disk(run: Started, out: Path, draws: random.Random) -> bool:
    """Leave no room in the file system of ``out``."""
    with suppress(OSError), (out.parent / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
    return True


KINDS: dict[str, Callable[[Started, Path, random.Random], bool]] = {
    "sigterm": sigterm,
    "worker": kill_a_worker,
    "disk": fill_the_disk,
}
CODES = {"sigterm": (0, 143), "worker": (0,), "disk": (0, 2)}
"""What a stopped command may end with: 0 where it went on to its end."""


def stop_again_and_again(
    home: Path, place: Path, subject: Subject, kind: str, stops: int, seed: int, expected: object, usual: float
) -> Outcome:
    """Stop a command ``stops`` times with its output in ``place``, each run until it is done; compare each run's end."""
    outcome, draws, number, failures = Outcome(), random.Random(f"{kind} {seed}"), 0, 0
    while outcome.stops < stops and failures < 3:
        number += 1
        out = place / f"run{number}"
        while not (out / subject.finished).exists():
            run = preloaded().start([*subject.words, f"out={out}"], home, environment(), session=True)
            stopped = False
            if outcome.stops < stops and not _ended_within(run, draws.uniform(0, usual)):
                began = time.monotonic()
                stopped = KINDS[kind](run, out, draws)
                outcome.stops += stopped
            done = subprocess.CompletedProcess(run.words, run.wait(300), *run.said())
            (place / "filler").unlink(missing_ok=True)
            if stopped and done.returncode != 0:
                outcome.ended += 1
                outcome.seconds.append(time.monotonic() - began)
            if (trouble := _trouble(done, CODES[kind] if stopped else (0,), out)) is not None:
                outcome.wrong.append(trouble)
                failures += 1
                if failures == 3:
                    return outcome
        if subject.result(out) == expected:
            outcome.runs += 1
        else:
            outcome.wrong.append(f"run {number} ended with other bits")
        subprocess.run(["rm", "-rf", out], check=True)
    return outcome


def _trouble(done: subprocess.CompletedProcess[str], codes: tuple[int, ...], out: Path) -> str | None:
    """What is wrong with a command's end, if anything is."""
    said = [line for line in done.stderr.splitlines() if line.startswith("maelift ")]
    left = [path.name for path in out.rglob(".*.part") if done.returncode != 0 and path.is_file()]
    if done.returncode not in codes or "Traceback" in done.stderr or len(said) != (done.returncode != 0) or left:
        return f"exit code {done.returncode}, left {left}: {done.stderr[-3000:]}"
    return None


@contextmanager
def small_disk(home: Path) -> Iterator[Path]:
    """A folder in a file system of its own, which is soon full."""
    place = home / "disk"
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def uninterrupted(home: Path, name: str, subject: Subject) -> tuple[object, float]:
    """What a command ends with when nothing stops it, and the seconds that it takes."""
    server, began = preloaded(), time.monotonic()
    done = server.run([*subject.words, f"out={home / name}"], home, environment(), 600)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return subject.result(home / name), time.monotonic() - began


def main(words: list[str]) -> int:
    """Stop as the words say, and tell what came of it."""
    given = dict(word.split("=") for word in words)
    stops, seed = int(given.get("stops", 20)), int(given.get("seed", 0))
    wrong = False
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for name, subject in subjects(home).items():
            if name not in given.get("runs", "pretrain,transfer,bench").split(","):
                continue
            expected, usual = uninterrupted(home, name, subject)
            print(f"{name}: {usual:.1f} s when nothing stops it", flush=True)
            for kind in given.get("kinds", "sigterm,worker,disk").split(","):
                with small_disk(home) if kind == "disk" else _folder(home / kind) as place:
                    found = stop_again_and_again(home, place, subject, kind, stops, seed, expected, usual)
                print(f"{name}, {kind}: {found}", flush=True)
                wrong |= bool(found.wrong)
    return int(wrong)


@contextmanager
def _folder(path: Path) -> Iterator[Path]:
    path.mkdir(exist_ok=True)
    yield path


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
