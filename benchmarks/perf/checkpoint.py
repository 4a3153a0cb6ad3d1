"""How long training waits for a checkpoint, and how long the thread beside it writes.

    python benchmarks/perf/checkpoint.py [model=vit_base] [repeats=3] [folder=FOLDER]

The state of a run of this model: weights and AdamW's two moments in float32. The peer is ``torch.save`` of the same tensors,
which training would have to wait for. Beside it the share of the default interval that waiting takes.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from maelift.core.config import resolve
from maelift.core.distributed import Ranks
from maelift.core.errors import MaeliftError
from maelift.core.models.encoder_spec import ModelName, preset_spec
from maelift.core.training.checkpoints import Checkpoints
from maelift.pretrain.config import PretrainConfig
from maelift.pretrain.mae import MaskedAutoencoder


@dataclass(frozen=True)
class Benchmark:
    """What is measured."""

    model: ModelName = "vit_base"
    """encoder; the decoder is the paper's"""
    repeats: int = 3
    """saves"""
    folder: str | None = None
    """where to write; null: a temporary folder"""


def main() -> None:
    """Measure, and print."""
    settings = resolve(Benchmark, sys.argv[1:])
    model = MaskedAutoencoder(preset_spec(settings.model, image_size=224))
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for moment in ("first", "second"):
        tensors |= {f"{moment}.{name}": torch.rand_like(parameter) for name, parameter in model.named_parameters()}
    size = sum(tensor.nbytes for tensor in tensors.values()) / 2**30
    waited, written, peer = [], [], []
    with tempfile.TemporaryDirectory(dir=settings.folder) as name:
        checkpoints = Checkpoints(Path(name) / "checkpoints", Ranks(0, 1, torch.device("cpu")), max_saved=1)
        for step in range(1, settings.repeats + 1):
            began = time.monotonic()
            checkpoints.save(step, tensors, {})
            waited.append(time.monotonic() - began)
            checkpoints.finish()
            written.append(time.monotonic() - began)
            began = time.monotonic()
            torch.save(tensors, Path(name) / "complete.pt")
            peer.append(time.monotonic() - began)
    interval = 60 * PretrainConfig.checkpoint_minutes
    wait = statistics.median(waited)
    print(f"{settings.model}, {size:.2f} GiB, medians of {settings.repeats} saves")
    print(
        f"  training waits      {wait:6.2f} s ({min(waited):.2f} to {max(waited):.2f}), {wait / interval:.2%} of the interval"
    )
    complete = statistics.median(written)
    print(f"  written and hashed  {complete:6.2f} s ({min(written):.2f} to {max(written):.2f})")
    print(
        f"  torch.save          {statistics.median(peer):6.2f} s; waiting is {wait / statistics.median(peer):.2f} of it"
    )


if __name__ == "__main__":
    try:
        main()
    except MaeliftError as error:
        sys.exit(f"checkpoint.py: {error}")
