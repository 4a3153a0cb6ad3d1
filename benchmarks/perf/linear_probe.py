"""90 epochs of linear probing on cached features against running the encoder in each epoch.

    python benchmarks/perf/linear_probe.py [data=data/fashion-mnist] [images=500] [repeats=3] [encoder=FILE] ...

Both arms make the same steps (LARS; transfer/recipes/classify_linear_small.yaml's rate and the paper's 90 epochs) on the same
images from the same head, are timed from the images to the trained head, and take turns. Nothing is extrapolated.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from maelift.core.config import resolve
from maelift.core.data.classification_reader import read_splits
from maelift.core.data.images import opened
from maelift.core.data.labeled_dataset import Splits, draw_labeled
from maelift.core.distributed import Ranks
from maelift.core.errors import MaeliftError
from maelift.core.models.encoder import Encoder
from maelift.core.models.encoder_file import load_encoder
from maelift.core.models.encoder_spec import preset_spec
from maelift.core.models.probes import pool
from maelift.core.training.tracker import Tracker
from maelift.transfer.classification.config import ClassifyConfig
from maelift.transfer.classification.evaluation import evaluate_classifier
from maelift.transfer.classification.features import FeatureRequest, FeatureRows
from maelift.transfer.classification.model import Classifier
from maelift.transfer.classification.probe import ProbeTask
from maelift.transfer.finetune import fit
from maelift.transfer.init_weights import fresh_encoder
from torch import Tensor


@dataclass(frozen=True)
class Benchmark:
    """What is measured."""

    data: str = "data/fashion-mnist"
    """labelled images"""
    encoder: str | None = None
    """encoder file; null: random weights of this shape"""
    model: str = "vit_tiny"
    """shape of the random encoder"""
    image_size: int = 28
    """its image size in pixels"""
    patch_size: int = 7
    """its patch size in pixels"""
    images: int = 500
    """training images"""
    epochs: int = 90
    """the paper's"""
    repeats: int = 3
    """measurements of each arm"""
    threads: int = 1
    """of torch"""


class ComputedRows(FeatureRows):
    """Features that are computed whenever they are asked for."""

    def __init__(self, wanted: FeatureRequest) -> None:
        self._wanted = wanted

    def __len__(self) -> int:
        return self._wanted.shape[0]

    @torch.inference_mode()
    def _compute(self, rows: list[int]) -> Tensor:
        encoder = self._wanted.encoder
        pixels = torch.from_numpy(np.stack([self._wanted.pixels(row) for row in rows]))
        return pool(encoder.forward_features(encoder.preprocessing.normalize(pixels)), self._wanted.pooling)

    def take(self, rows: Tensor) -> Tensor:
        parts = [self._compute(part.tolist()) for part in torch.split(rows, 250)]
        return torch.cat(parts).clone()


class Reextracting(ProbeTask):
    """The same probe without cached features of the training images."""

    def prepare(self, model: torch.nn.Module) -> None:
        super().prepare(model)
        self.train_rows = ComputedRows(FeatureRequest(self.encoder.eval(), self.splits.train.images, tokens=False))


def measure(
    kind: type[ProbeTask], config: ClassifyConfig, encoder: Encoder, splits: Splits[Any]
) -> tuple[float, float]:
    """Seconds from images to trained head, and the accuracy on the test images."""
    ranks = Ranks(0, 1, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        own = replace(config, out=folder)
        task = kind(own, encoder, splits, ranks)
        began = time.perf_counter()
        with Tracker(Path(folder), "probe", total=task.steps(), images_per_step=1, active=False) as tracker:
            found = fit(task, seed=0, tracker=tracker, evaluations=1, workers=0)
        seconds = time.perf_counter() - began
        assert isinstance(found.model, Classifier)
        return seconds, evaluate_classifier(found.model, splits.test, "test", ranks).metrics["top1"] or 0.0


def main() -> None:
    """Measure, and print."""
    settings = resolve(Benchmark, sys.argv[1:])
    torch.set_num_threads(settings.threads)
    splits = read_splits(settings.data, val=200)
    splits = replace(
        splits, train=draw_labeled(splits.train, settings.images, 0), test=draw_labeled(splits.test, 2000, 0)
    )
    if settings.encoder:
        encoder = load_encoder(settings.encoder)
    else:
        channels = 1 if opened(splits.train.images, 0).pixels().shape[2] == 1 else 3
        shape = {"image_size": settings.image_size, "patch_size": settings.patch_size, "channels": channels}
        spec = preset_spec(settings.model, **shape)
        encoder = fresh_encoder(spec, Encoder(spec).preprocessing, 0)
    keys = {"data": settings.data, "out": "", "encoder": "given", "method": "linear", "workers": 0}
    config = ClassifyConfig.resolve({**keys, "epochs": settings.epochs, "lr": 3.0})
    arms: dict[str, type[ProbeTask]] = {"re-extracting": Reextracting, "cached": ProbeTask}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    accuracy: dict[str, float] = {}
    for _ in range(settings.repeats):
        for name, kind in arms.items():
            taken, accuracy[name] = measure(kind, config, encoder, splits)
            seconds[name].append(taken)
    spec = encoder.spec
    print(
        f"linear probe, {settings.epochs} epochs of {settings.images} images at {spec.image_size[0]}×{spec.image_size[1]} px, "
        f"encoder of dim {spec.embed_dim}, depth {spec.depth}, patch {spec.patch_size}; {settings.threads} thread(s), CPU"
    )
    for name in arms:
        times = sorted(seconds[name])
        print(
            f"{name}: median {statistics.median(times):.2f} s ({times[0]:.2f} to {times[-1]:.2f}, {len(times)} repeats); "
            f"test accuracy {100 * accuracy[name]:.2f} % ({len(splits.test)} images)"
        )
    ratios = sorted(slow / fast for slow, fast in zip(*seconds.values(), strict=True))
    print(
        f"cached is {statistics.median(ratios):.1f} times faster ({ratios[0]:.1f} to {ratios[-1]:.1f}), extraction included"
    )


if __name__ == "__main__":
    try:
        main()
    except MaeliftError as error:
        sys.exit(f"linear_probe.py: {error}")
