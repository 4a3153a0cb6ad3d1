"""Kills a pretraining of two processes at random moments, saves included, and compares its end with an uninterrupted run's.

What is killed is drawn too: all processes, the launcher alone, or one that trains, each once before any comes again; the
others must be gone soon after.
``python tests/soak.py kills=20 seed=0``; exit code 1 when any tensor differs in any bit.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from maelift.tests.support import TINY, run_ranks, start_ranks, start_torchrun, write_images
from safetensors.torch import load_file

ALL = "all processes"
VICTIMS = {ALL: slice(None), "the launcher": slice(1), "a process that trains": slice(-1, None)}
"""What is killed of the launcher and the processes that it started."""
KEYS = [*TINY, "epochs=16", "log_every=1", "checkpoint_minutes=0.0003"]


def soak(folder: Path, kills: int, seed: int, keys: list[str]) -> list[str]:
    """Run twice in ``folder``, killed ``kills`` times and not at all; the names of the tensors that differ in the end."""
    data = write_images(folder / "data", 64)
    whole, killed = folder / "whole", folder / "killed"
    began = time.monotonic()
    run_ranks(2, "pretrain", f"data={data}", f"out={whole}", *keys).check_returncode()
    usual = time.monotonic() - began
    draws = random.Random(seed)
    command = ("pretrain", f"data={data}", f"out={killed}", *keys)
    done = 0
    left: list[str] = []
    while done < kills and not (killed / "encoder.safetensors").exists():
        left = left or draws.sample(list(VICTIMS), len(VICTIMS))
        # Who is killed together with the launcher can do without one, and begins in a tenth of the time.
        started = start_ranks(2, *command) if left[-1] == ALL else [start_torchrun(2, *command, session=True)]
        before = newest(killed)
        # until it has made a step of its own, and one is saved to go on from: later saves may be cut off, the first not
        while (newest(killed) == before or not saved(killed)) and started[0].poll() is None:
            time.sleep(0.01)
        time.sleep(draws.uniform(0, 0.05 * usual))
        if started[0].poll() is None:
            what = left.pop()
            kill([process.pid for process in started], what)
            done += 1
            print(f"killed {done} of {kills} times: {what}, at {newest(killed)}", flush=True)
        if any([process.wait() == 0 for process in started]) and not (killed / "encoder.safetensors").exists():
            raise RuntimeError("a killed run ended as if it had been complete")
    last = run_ranks(2, *command)
    last.check_returncode()
    if "resuming from step" not in last.stderr:
        raise RuntimeError(f"the killed run began again from nothing: {last.stderr}")
    if done < kills:
        raise RuntimeError(f"the run was over after {done} of {kills} kills: give it more epochs")
    expected, found = (load_file(run / "encoder.safetensors") for run in (whole, killed))
    return [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])]


def kill(started: list[int], what: str) -> None:
    """SIGKILL some processes of a run, and see that none of the others is left after a while."""
    parents = [psutil.Process(number) for number in started]
    everyone = [*parents, *(child for parent in parents for child in parent.children(recursive=True))]
    for process in everyone[VICTIMS[what]]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    _, alive = psutil.wait_procs(everyone, timeout=40)
    if alive:
        raise RuntimeError(f"{what} were killed, but {[process.pid for process in alive]} go on")


def saved(out: Path) -> bool:
    """Whether a run has a checkpoint that is written in full."""
    return any((out / "checkpoints").glob("step-*"))


def newest(out: Path) -> str:
    """The last checkpoint of a run, or nothing; half-written ones count."""
    return max((path.name.lstrip(".") for path in (out / "checkpoints").glob("*step-*")), default="")


def main(words: list[str]) -> int:
    """Soak as the words say, and tell what came of it."""
    given = dict(word.split("=") for word in words)
    kills, seed = int(given.get("kills", 20)), int(given.get("seed", 0))
    with tempfile.TemporaryDirectory() as name:
        different = soak(Path(name), kills, seed, [*KEYS, "epochs=400"])
    print(f"{kills} kills: {'every tensor equal in every bit' if not different else f'different: {different}'}")
    return bool(different)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
