"""Images that a CPU core loads, against torchvision's ImageFolder and the paper's transforms on PIL images.

    python benchmarks/perf/loader.py [data=FOLDER] [images=300] [repeats=5] [crops=4] [size=256] [memory_images=20000] ...

All arms give batches of 224×224 crops (MAE, Appendix A.1: RandomResizedCrop of 0.2 to 1 of the area, bicubic; flip) out of
the same JPEG files, in one process, with one thread, and take turns. torchvision's are normalised float32, ours are bytes, since
they are normalised on the device; the ratio with their normalisation by this CPU is printed too. What is counted is the process's
CPU time a crop, which others on the machine disturb less than they do the clock. Without data= the files are made: 500×375
windows of three photographs that come with scikit-learn and matplotlib. At the end the memory of a worker process over an epoch.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from maelift.core.config import resolve
from maelift.core.data.images import ImageSet, opened
from maelift.core.data.pixel_format import PixelFormat
from maelift.core.data.sampling import Sample, Sampler, Uniforms
from maelift.core.data.sources import find_source
from maelift.core.data.transforms import random_crops, to_array
from maelift.core.distributed import Ranks
from maelift.core.errors import MaeliftError
from maelift.core.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from maelift.core.tools.pack_shards import PackConfig, pack
from maelift.core.training.loader import Batches
from PIL import Image
from torch import Tensor

SIZE = (224, 224)
CPU = Ranks(0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class Benchmark:
    """What is measured."""

    data: str | None = None
    """folder of JPEG files; null: 500×375 windows of photographs"""
    images: int = 300
    """files of the measurement, where they are made"""
    batch_size: int = 64
    """crops in a batch"""
    crops: int = 4
    """crops an image in the arm that takes several of each"""
    size: int = 256
    """shorter side of the shards that are packed smaller"""
    repeats: int = 5
    """measurements of each arm"""
    memory_images: int = 20_000
    """images of the epoch over which a worker's memory is watched; 0: not"""


def main() -> None:
    """Measure, and print."""
    settings = resolve(Benchmark, sys.argv[1:])
    logging.getLogger("maelift").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = Path(settings.data) if settings.data else photographs(folder / "photographs", settings.images)
        pack(PackConfig(str(data), str(folder / "shards")))
        pack(PackConfig(str(data), str(folder / "smaller"), size=settings.size))
        images, shards, smaller = (find_source(str(path)) for path in (data, folder / "shards", folder / "smaller"))
        arms: dict[str, Callable[[], Iterator[Tensor]]] = {
            "torchvision": lambda: theirs(data, settings.batch_size),
            "folder": lambda: ours(images, settings.batch_size),
            "shards": lambda: ours(shards, settings.batch_size),
            f"shards, shorter side {settings.size} px": lambda: ours(smaller, settings.batch_size),
            f"folder, {settings.crops} crops a decode": lambda: ours(images, settings.batch_size, settings.crops),
        }
        report(arms, len(images), settings)
        if settings.memory_images:
            watch_memory(data, folder / "many", settings.memory_images)


def report(arms: dict[str, Callable[[], Iterator[Tensor]]], count: int, settings: Benchmark) -> None:
    """Time the arms in turn, and print what a crop takes and how many times faster than the first each is."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    normalized: dict[str, list[float]] = {name: [] for name in arms}
    preprocessing = Preprocessing.default(3)
    for name in arms:
        next(arms[name]())  # imports, caches of files
    for _ in range(settings.repeats):
        for name, batches in arms.items():
            began, crops, normalizing = time.process_time(), 0, 0.0
            for batch in batches():
                assert batch.shape[1:] == (3, *SIZE)
                crops += len(batch)
                if batch.dtype == torch.uint8:
                    ready = time.process_time()
                    preprocessing.normalize(batch)
                    normalizing += time.process_time() - ready
            all_in_all = time.process_time() - began
            seconds[name].append((all_in_all - normalizing) / crops)
            normalized[name].append(all_in_all / crops)
    baseline = seconds["torchvision"]
    print(
        f"{count} JPEG files to {SIZE[0]}×{SIZE[1]} crops, one process, one thread, CPU time, {settings.repeats} repeats:"
    )
    for name, times in seconds.items():
        ratios = sorted(slow / fast for slow, fast in zip(baseline, times, strict=True))
        with_it = statistics.median(slow / fast for slow, fast in zip(baseline, normalized[name], strict=True))
        milliseconds = sorted(1000 * value for value in times)
        print(
            f"{name}: median {statistics.median(milliseconds):.2f} ms a crop ({milliseconds[0]:.2f} to "
            f"{milliseconds[-1]:.2f}); {statistics.median(ratios):.2f} times torchvision's rate "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f}), {with_it:.2f} with normalisation"
        )


def theirs(data: Path, batch_size: int) -> Iterator[Tensor]:
    """An epoch of batches with torchvision, as the paper's transforms are usually written."""
    from torchvision import datasets, transforms

    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, (0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    images = datasets.ImageFolder(str(data), transform)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
    for start in range(0, len(order) - batch_size + 1, batch_size):
        yield torch.stack([images[index][0] for index in order[start : start + batch_size]])


def ours(images: ImageSet, batch_size: int, crops: int = 1) -> Iterator[Tensor]:
    """An epoch of batches as pretraining gets them."""
    form = PixelFormat(3)

    def make(index: int, draws: Uniforms) -> list[Sample]:
        return [Sample(to_array(crop, 3)) for crop in random_crops(opened(images, index, form), SIZE, draws)]

    order = Sampler(len(images), batch_size // crops, 0)
    batches = Batches(order, make, draws=5, ranks=CPU, crops_per_image=crops)
    for (batch,) in batches.steps(0, len(images) // (batch_size // crops)):
        yield batch.pixels


def photographs(folder: Path, count: int) -> Path:
    """``count`` JPEGs of 500×375 pixels, quality 92: windows of three photographs, in folders as ImageFolder wants them."""
    places = [("sklearn", "datasets/images/china.jpg"), ("sklearn", "datasets/images/flower.jpg")]
    places.append(("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"))
    sources = [Image.open(_home(package) / path).convert("RGB") for package, path in places]
    generator = np.random.default_rng(0)
    for number in range(count):
        source = sources[number % len(sources)]
        width = int(min(source.width, source.height * 4 / 3) * generator.uniform(0.7, 1))
        height = int(width * 3 / 4)
        left = int(generator.integers(0, source.width - width + 1))
        top = int(generator.integers(0, source.height - height + 1))
        window = source.resize((500, 375), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
        path = folder / places[number % len(sources)][1].rsplit("/", 1)[1].removesuffix(".jpg") / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        window.save(path, quality=92)
    return folder


def _home(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise MaeliftError(f"data: {package} and its photographs aren't installed. Give data=FOLDER of JPEG files.")
    return Path(spec.origin).parent


def watch_memory(data: Path, folder: Path, count: int) -> None:
    """Print what a worker process holds for itself alone, along an epoch of ``count`` images (links to the files)."""
    files = sorted(path for path in data.rglob("*") if path.is_file())
    for number in range(count):
        path = folder / f"{number // 1000:03d}" / f"{number:07d}-{'long name ' * 5}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(files[number % len(files)], path)
    images = find_source(str(folder))
    form = PixelFormat(3)

    def make(index: int, draws: Uniforms) -> list[Sample]:
        return [Sample(to_array(crop, 3)) for crop in random_crops(opened(images, index, form), SIZE, draws)]

    steps = count // 50
    batches = Batches(Sampler(len(images), 50, 0), make, draws=5, ranks=CPU, workers=1)
    held: list[float] = []
    for step, _ in enumerate(batches.steps(0, steps)):
        if step % (steps // 10) == steps // 10 - 1:
            (worker,) = multiprocessing.active_children()
            held.append(private_memory(worker.pid or 0))
    listed = ", ".join(f"{value:.1f}" for value in held)
    print(f"memory of a worker's own (MiB) after each tenth of an epoch of {count:,} images: {listed}")


def private_memory(process: int) -> float:
    """What a process doesn't share with another, in MiB (Linux)."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


if __name__ == "__main__":
    try:
        main()
    except MaeliftError as error:
        sys.exit(f"loader.py: {error}")
