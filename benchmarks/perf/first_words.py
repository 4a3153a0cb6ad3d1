"""Seconds until commands say their first words and end: help, plans, mistakes, and a finished pretraining asked for again.

    python benchmarks/perf/first_words.py [repeats=3]

Each is a process of its own, as a user starts it; the least of the repeats counts, as other work only adds. Beside it stands
``python -c "import torch"`` in the same run, which every command that computes has to wait for.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

MAELIFT = (sys.executable, "-m", "maelift")
TINY = ("model=vit_nano", "image_size=16", "patch_size=4", "epochs=1", "batch_size=8", "evaluations=1", "workers=0")
HELP = ((), ("pretrain", "-h"), ("transfer", "classify", "-h"), ("bench", "-h"), ("export", "-h", "detectron2"))


def seconds(words: tuple[str, ...], folder: Path) -> tuple[float, float]:
    """Until the first line of either stream, and until the end."""
    began = time.perf_counter()
    process = subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    first = time.perf_counter() - began
    process.stdout.read()
    process.wait()
    return first, time.perf_counter() - began


def main() -> None:
    """Print a line for each command."""
    repeats = next((int(word.partition("=")[2]) for word in sys.argv[1:] if word.startswith("repeats=")), 3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for label in ("a", "b"):
            (folder / "photos" / label).mkdir(parents=True)
            for number in range(40):
                pixels = np.random.default_rng(number).integers(0, 256, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "photos" / label / f"{number}.png")
        run = ("pretrain", "data=photos", "out=run", *TINY)
        subprocess.run([*MAELIFT, *run], cwd=folder, check=True, capture_output=True)
        commands = {
            "import torch": (sys.executable, "-c", "import torch; print()"),
            **{f"maelift {' '.join(words)}".rstrip(): (*MAELIFT, *words) for words in HELP},
            "maelift pretrain data=nowhere (a mistake)": (*MAELIFT, "pretrain", "data=nowhere", "out=x"),
            "maelift pretrain --dry-run": (*MAELIFT, *run[:2], "out=other", *TINY, "--dry-run"),
            "maelift pretrain, finished before": (*MAELIFT, *run),
            "maelift init": (*MAELIFT, "init", "photos", "--dry-run"),
        }
        print(f"{'':<44}first words      end   (seconds, least of {repeats})")
        for text, words in commands.items():
            first, end = (min(column) for column in zip(*(seconds(words, folder) for _ in range(repeats)), strict=True))
            print(f"{text:<44}{first:11.2f}{end:9.2f}")


if __name__ == "__main__":
    main()
