"""Training steps with mask tokens in the encoder against steps without: time and memory saved.

    python benchmarks/perf/asymmetry.py [models=[vit_small,vit_base,vit_large]] [threads=2] [batch=4] [repeats=3] ...

MAE, Tables 1c and 2: ViT-L with a decoder of 8 blocks trains 2.8 times as fast without mask tokens in the encoder, with a
decoder of one block 3.7 times (128 TPU-v3 cores). Here, at 224 px, patch 16, 75 % hidden, decoder width 512: time of a training
step (forward, backward, fused AdamW), arms in turns; and what the forward pass keeps for the backward pass, an image, or on a
GPU the peak of memory.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from maelift.core.compute_types import Precision
from maelift.core.config import resolve
from maelift.core.device import autocast, choose_device
from maelift.core.errors import ConfigError, MaeliftError
from maelift.core.models.encoder_spec import ModelName, preset_spec
from maelift.pretrain.decoder_config import DecoderConfig
from maelift.pretrain.mae import MaskedAutoencoder, build_autoencoder
from torch import Tensor

ARMS = {
    "mask tokens in the encoder, decoder of 8 blocks": (True, DecoderConfig(512, 8, 16)),
    "visible patches only, decoder of 8 blocks": (False, DecoderConfig(512, 8, 16)),
    "visible patches only, decoder of 1 block": (False, DecoderConfig(512, 1, 16)),
    "visible patches only, cross-attending 8 on a quarter": (False, DecoderConfig(512, 8, 16, "cross", 0.25)),
}


@dataclass(frozen=True)
class Benchmark:
    """What is measured."""

    models: tuple[str, ...] = ("vit_small", "vit_base", "vit_large")
    """encoders"""
    batch: int = 4
    """images in a step"""
    threads: int = 2
    """threads of torch"""
    repeats: int = 3
    """rounds, in each of which every arm makes a step"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where"""
    precision: Precision = "auto"
    """of the forward pass"""

    def __post_init__(self) -> None:
        for model in self.models:
            if model not in get_args(ModelName):
                raise ConfigError("models", model, f"some of {', '.join(get_args(ModelName))}")


def main() -> None:
    """Print a table a model."""
    settings = resolve(Benchmark, sys.argv[1:])
    torch.set_num_threads(settings.threads)
    device = choose_device(settings.device)
    print(
        f"torch {torch.__version__}, {device}, {settings.threads} threads, batch {settings.batch}, {settings.repeats} rounds"
    )
    for name in settings.models:
        _compare(name, settings, device)


def _compare(name: str, settings: Benchmark, device: torch.device) -> None:
    spec = preset_spec(cast(ModelName, name), image_size=224)
    images = torch.randn(settings.batch, 3, 224, 224, device=device)
    noise = torch.rand(settings.batch, spec.num_patches, device=device)
    arms: dict[str, Callable[[], None]] = {}
    kept: dict[str, float] = {}
    models: list[MaskedAutoencoder] = []
    for arm, (in_encoder, decoder) in ARMS.items():
        model = build_autoencoder(spec, decoder, masks_in_encoder=in_encoder).to(device)
        if models:  # one encoder for all arms, so that they fit into memory together
            model.blocks = models[0].blocks
        models.append(model)

        def loss(model: MaskedAutoencoder = model) -> Tensor:
            with autocast(device, settings.precision):
                return cast(Tensor, model(images, 0.75, noise).loss)

        arms[arm] = _stepper(model, loss)
        kept[arm] = _kept_mib(model, loss) / settings.batch
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    for step in arms.values():
        step()
    for _ in range(settings.repeats):
        for arm, step in arms.items():
            began = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[arm].append(time.perf_counter() - began)
    first = next(iter(arms))
    for arm in arms:
        ratios = [whole / part for whole, part in zip(times[first], times[arm], strict=True)]
        print(
            f"{name}, {arm}: {1000 * statistics.median(times[arm]) / settings.batch:.0f} ms an image, "
            f"{statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f}); "
            f"{kept[arm]:.0f} MiB of activations an image, {kept[first] / kept[arm]:.2f} times less",
            flush=True,
        )


def _stepper(model: MaskedAutoencoder, loss: Callable[[], Tensor]) -> Callable[[], None]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)

    def step() -> None:
        loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _kept_mib(model: MaskedAutoencoder, loss: Callable[[], Tensor]) -> float:
    """What the forward pass keeps for the backward pass, parameters aside, in MiB."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss()
    return sum(sizes.values()) / 2**20


if __name__ == "__main__":
    try:
        main()
    except MaeliftError as error:
        sys.exit(f"asymmetry.py: {error}")
