"""Kills a pretraining of two processes at random moments, saves included, and compares its end with an uninterrupted run's.

``python tests/soak.py kills=20 seed=0``; exit code 1 when any tensor differs in any bit.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from maelift.tests.support import TINY, environment, torchrun, write_images
from safetensors.torch import load_file

KEYS = [*TINY, "epochs=40", "log_every=1", "checkpoint_minutes=0.0003"]


def soak(folder: Path, kills: int, seed: int, keys: list[str]) -> list[str]:
    """Run twice in ``folder``, killed ``kills`` times and not at all; the names of the tensors that differ in the end."""
    data = write_images(folder / "data", 64)
    whole, killed = folder / "whole", folder / "killed"
    began = time.monotonic()
    subprocess.run(torchrun(2, "pretrain", f"data={data}", f"out={whole}", *keys), check=True, env=environment())
    usual = time.monotonic() - began
    draws = random.Random(seed)
    command = torchrun(2, "pretrain", f"data={data}", f"out={killed}", *keys)
    done = 0
    while done < kills and not (killed / "encoder.safetensors").exists():
        process = subprocess.Popen(command, env=environment(), start_new_session=True, stderr=subprocess.DEVNULL)
        before = newest(killed)
        while newest(killed) == before and process.poll() is None:  # until it has made a step of its own
            time.sleep(0.01)
        time.sleep(draws.uniform(0, 0.05 * usual))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            done += 1
        process.wait()
        print(f"killed {done} of {kills} times, at {newest(killed)}", flush=True)
    subprocess.run(command, check=True, env=environment())
    if done < kills:
        raise RuntimeError(f"the run was over after {done} of {kills} kills: give it more epochs")
    expected, found = (load_file(run / "encoder.safetensors") for run in (whole, killed))
    return [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])]


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
