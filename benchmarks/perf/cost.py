"""Time of a training step against its operations, over visible patches, width, depth and processes.

    python benchmarks/perf/cost.py [chart=cost.png] [threads=1] [repeats=5] [processes=2] ...

A training step of a masked autoencoder at 64 px, patch 8, that varies one thing at a time around dim 192, depth 6, 75 % hidden;
decoder 96 × 2. Time is the median of the rounds, operations are counted as the plan counts them (two a multiply-add, backward
twice the forward pass). Where time grows slower than operations, small kernels weigh; where faster, memory does. Then the images
a second of ``maelift pretrain`` on one process and on several of one thread each, with DDP and FSDP2, and the share of an ideal
gain.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from maelift.core.config import resolve
from maelift.core.errors import MaeliftError
from maelift.core.models.cost import block_flops, encoder_flops
from maelift.core.models.encoder_spec import EncoderSpec
from maelift.pretrain.decoder_config import DecoderConfig
from maelift.pretrain.mae import MaskedAutoencoder
from maelift.pretrain.masking import num_visible

BATCH = 32
MIDDLE = EncoderSpec(image_size=(64, 64), patch_size=8, embed_dim=192, depth=6, num_heads=3)
DECODER = DecoderConfig(96, 2, 3)
RATIOS = (0.25, 0.5, 0.75, 0.875)
WIDTHS = (96, 192, 384, 576)
DEPTHS = (3, 6, 12, 24)


@dataclass(frozen=True)
class Point:
    """A model of the sweep."""

    axis: str
    value: int
    spec: EncoderSpec
    ratio: float = 0.75

    @property
    def flops(self) -> float:
        """Operations of a training step an image."""
        visible = num_visible(self.spec.num_patches, self.ratio)
        decoder = DECODER.depth * block_flops(self.spec.num_patches + 1, DECODER.embed_dim)
        return 3 * (encoder_flops(self.spec, visible) + decoder)


@dataclass(frozen=True)
class Benchmark:
    """What is measured."""

    chart: str | None = None
    """file of the chart; null: none"""
    threads: int = 1
    """threads of torch in the sweeps"""
    repeats: int = 5
    """rounds, in each of which every model makes a step"""
    processes: int = 2
    """processes of the second part; 1: leave it out"""
    images: int = 4000
    """images that each of its runs trains on"""


def main() -> None:
    """Measure, print, draw."""
    settings = resolve(Benchmark, sys.argv[1:])
    torch.set_num_threads(settings.threads)
    points = [Point("visible patches", num_visible(64, ratio), MIDDLE, ratio) for ratio in sorted(RATIOS, reverse=True)]
    points += [Point("width", dim, replace(MIDDLE, embed_dim=dim, num_heads=dim // 32)) for dim in WIDTHS]
    points += [Point("depth", depth, replace(MIDDLE, depth=depth)) for depth in DEPTHS]
    times = measure(points, settings.repeats)
    print(
        f"torch {torch.__version__}, {settings.threads} threads, float32, batch {BATCH}, medians of {settings.repeats} rounds"
    )
    for point, taken in zip(points, times, strict=True):
        milliseconds = 1000 * statistics.median(taken) / BATCH
        print(
            f"{point.axis} {point.value}: {milliseconds:.2f} ms an image ({1000 * min(taken) / BATCH:.2f} to "
            f"{1000 * max(taken) / BATCH:.2f}), {point.flops / 1e9:.2f} GFLOP, {point.flops / 1e6 / milliseconds:.0f} GFLOP/s",
            flush=True,
        )
    if settings.chart is not None:
        draw(points, [statistics.median(taken) / BATCH for taken in times], Path(settings.chart))
    if settings.processes > 1:
        scale(settings)


def measure(points: Sequence[Point], repeats: int) -> list[list[float]]:
    """Seconds of training steps of each model, in turns."""
    steps = [_stepper(point) for point in points]
    for step in steps:
        step()
    times: list[list[float]] = [[] for _ in points]
    for _ in range(repeats):
        for taken, step in zip(times, steps, strict=True):
            began = time.perf_counter()
            step()
            taken.append(time.perf_counter() - began)
    return times


def _stepper(point: Point) -> Callable[[], None]:
    model = MaskedAutoencoder(point.spec, DECODER)
    images = torch.randn(BATCH, 3, *point.spec.image_size)
    noise = torch.rand(BATCH, point.spec.num_patches)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def step() -> None:
        model(images, point.ratio, noise).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def draw(points: Sequence[Point], seconds: Sequence[float], path: Path) -> None:
    """A panel an axis: time an image, and what the operations would take at the speed of the model in the middle."""
    from matplotlib.figure import Figure

    middle = next(number for number, point in enumerate(points) if point.spec == MIDDLE and point.ratio == 0.75)
    speed = points[middle].flops / seconds[middle]
    figure = Figure(figsize=(9.6, 3.2), layout="constrained")
    for axes, axis in zip(figure.subplots(1, 3), ("visible patches", "width", "depth"), strict=True):
        here = [number for number, point in enumerate(points) if point.axis == axis]
        values = [points[number].value for number in here]
        axes.plot(values, [1000 * seconds[number] for number in here], marker="o", label="measured")
        ideal = [1000 * points[number].flops / speed for number in here]
        axes.plot(values, ideal, linestyle="--", marker="x", label="by operations")
        axes.set(xlabel=axis, xticks=values, ylim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("ms an image, training step")
    figure.axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def scale(settings: Benchmark) -> None:
    """Images a second on one process and on several."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pixels = np.random.default_rng(0).integers(0, 256, (settings.images, 64, 64, 3), dtype=np.uint8)
        np.save(folder / "images.npy", pixels)
        one = images_a_second(folder, 1, "ddp")
        print(f"1 process: {one:.0f} images/s")
        for parallel in ("ddp", "fsdp"):
            many = images_a_second(folder, settings.processes, parallel)
            share = many / (settings.processes * one)
            print(
                f"{settings.processes} processes, {parallel}: {many:.0f} images/s, {share:.0%} of the ideal gain",
                flush=True,
            )


def images_a_second(folder: Path, processes: int, parallel: str) -> float:
    """The median rate of a run's steps, from its log."""
    out = folder / f"{processes}{parallel}"
    keys = ["model=vit_tiny", "image_size=64", "patch_size=8", "batch_size=64", "epochs=1", "workers=0", "log_every=5"]
    keys += [
        "decoder.embed_dim=96",
        "decoder.depth=2",
        "decoder.num_heads=3",
        "evaluations=1",
        "holdout=64",
        "device=cpu",
    ]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*launcher, "-m", "maelift", "pretrain", f"data={folder / 'images.npy'}", f"out={out}", *keys]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MAELIFT_CACHE": str(folder / "cache")}
    done = subprocess.run([*command, f"parallel={parallel}"], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise MaeliftError(f"a run of {processes} processes failed: {done.stderr[-500:]}")
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rates = [float(record["images_per_second"]) for record in records[1:] if "images_per_second" in record]
    return statistics.median(rates)


if __name__ == "__main__":
    try:
        main()
    except MaeliftError as error:
        sys.exit(f"cost.py: {error}")
