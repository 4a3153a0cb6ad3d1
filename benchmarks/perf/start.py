"""Time to the first step of a run with a million images; and torchvision's ImageFolder to list them.

    python benchmarks/perf/start.py [images=1000000] [folders=1000] [repeats=3] [audit=full] [tree=FOLDER] ...

The files are links to 60 JPEGs of 500×375 pixels, in a tree of the shape of ImageNet's (tree=FOLDER keeps it for another time).
What is measured is the time from the start of the command ``maelift pretrain`` to the record of its first step of 64 images:
the first time, when the tree is listed and the images are looked at, and then with what was kept, on this machine, whose
page cache knows the folders after the first time. ImageFolder lists the tree between the two, in a process of its own.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from maelift.benchmarks.perf.loader import photographs
from maelift.core.config import resolve
from maelift.core.errors import MaeliftError

SOURCES = 60
LIST_WITH_TORCHVISION = """
import sys
from torchvision.datasets import ImageFolder
print(len(ImageFolder(sys.argv[1])))
"""


@dataclass(frozen=True)
class Benchmark:
    """What is measured."""

    images: int = 1_000_000
    """files in the tree"""
    folders: int = 1000
    """folders that they lie in"""
    tree: str | None = None
    """folder to make the tree in, or that holds it; null: a temporary one"""
    model: str = "vit_nano"
    """encoder; a small one, as its first step counts"""
    image_size: int = 64
    """pixels a side"""
    audit: str = "auto"
    """as of maelift pretrain"""
    repeats: int = 3
    """starts with what was kept"""


def main() -> None:
    """Measure, and print."""
    settings = resolve(Benchmark, sys.argv[1:])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tree = Path(settings.tree) if settings.tree else folder / "tree"
        if not tree.exists():
            make_tree(tree, settings)
        environment = {**os.environ, "MAELIFT_CACHE": str(folder / "cache")}
        first = seconds_to_first_step(settings, tree, folder / "first", environment)
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", LIST_WITH_TORCHVISION, tree], check=True, stdout=subprocess.DEVNULL)
        peer = time.monotonic() - began
        later = [
            seconds_to_first_step(settings, tree, folder / f"again{number}", environment)
            for number in range(settings.repeats)
        ]
    print(f"{settings.images:,} images in {settings.folders:,} folders, audit={settings.audit}")
    print(f"  first start to first step               {first:6.1f} s")
    spread = f"{min(later):.1f} to {max(later):.1f}, {len(later)} starts"
    print(f"  later starts to first step, median      {statistics.median(later):6.1f} s ({spread})")
    print(f"  torchvision's ImageFolder, import and list {peer:3.1f} s; ratio {statistics.median(later) / peer:.2f}")


def make_tree(tree: Path, settings: Benchmark) -> None:
    """Links to a few files, in folders of equally many."""
    sources = sorted(path for path in photographs(tree.with_name(f"{tree.name}.files"), SOURCES).rglob("*.jpg"))
    share = -(-settings.images // settings.folders)
    for number in range(settings.images):
        path = tree / f"n{number // share:08d}" / f"image_{number % share:06d}.JPEG"
        if number % share == 0:
            path.parent.mkdir(parents=True)
        os.link(sources[number % SOURCES], path)


def seconds_to_first_step(settings: Benchmark, tree: Path, out: Path, environment: dict[str, str]) -> float:
    """Seconds from the start of a run to the record of its first step."""
    keys = [
        f"data={tree}",
        f"out={out}",
        f"model={settings.model}",
        f"image_size={settings.image_size}",
        f"audit={settings.audit}",
        "patch_size=16",
        "decoder.depth=1",
        "decoder.embed_dim=64",
        "decoder.num_heads=2",
    ]
    keys += ["batch_size=64", f"epochs={6400 / settings.images}", "evaluations=1", "log_every=1", "device=cpu"]
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-m", "maelift", "pretrain", *keys], env=environment, stdout=subprocess.DEVNULL
    ) as run:
        record = out / "metrics.jsonl"
        while not (record.is_file() and '"train/loss"' in record.read_text()):
            if run.poll() is not None:
                raise MaeliftError(f"the run ended with exit code {run.returncode} before its first step.")
            time.sleep(0.02)
        took = time.monotonic() - began
        run.kill()
    return took


if __name__ == "__main__":
    try:
        main()
    except MaeliftError as error:
        sys.exit(f"start.py: {error}")
