"""A training step against transformers' ViTMAEForPreTraining: equal shapes, weights, masks, losses, optimiser.

Run: python benchmarks/perf/training_step.py [threads=1 shapes=[small,middle,base] repeats=7]; every key is below. The arms take
turns; a ratio below 1 means that ours took less time. ``cross`` predicts a quarter of the hidden patches by cross-attention,
which is another computation with the same encoder.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from maelift.core.config import resolve
from maelift.core.errors import MaeliftError
from maelift.core.models.encoder_spec import EncoderSpec
from maelift.core.models.weight_names import from_transformers_names
from maelift.pretrain.decoder_config import DecoderConfig
from maelift.pretrain.mae import CrossAttentionAutoencoder, autoencoder_from_state_dict


@dataclass(frozen=True)
class Shape:
    """An encoder, a decoder and a batch."""

    spec: EncoderSpec
    decoder: DecoderConfig
    batch: int


SHAPES = {
    "small": Shape(
        EncoderSpec(image_size=(32, 32), patch_size=4, channels=3, embed_dim=96, depth=4, num_heads=3),
        DecoderConfig(64, 2, 4),
        64,
    ),
    "middle": Shape(
        EncoderSpec(image_size=(64, 64), patch_size=8, channels=3, embed_dim=192, depth=12, num_heads=3),
        DecoderConfig(96, 2, 4),
        32,
    ),
    "base": Shape(
        EncoderSpec(image_size=(224, 224), patch_size=16, channels=3, embed_dim=768, depth=12, num_heads=12),
        DecoderConfig(512, 8, 16),
        8,
    ),
}


@dataclass(frozen=True)
class Benchmark:
    """What is measured."""

    threads: int = 1
    """threads of torch"""
    shapes: tuple[str, ...] = ("small", "middle", "base")
    """small: dim 96, depth 4, 32 px, patch 4; middle: dim 192, depth 12, 64 px, patch 8; base: ViT-B/16 at 224 px"""
    repeats: int = 7
    """rounds, in each of which every arm makes its steps"""
    seconds: float = 1.5
    """time that an arm's steps take in a round, about"""


def main() -> None:
    """Print a line a shape and arm."""
    settings = resolve(Benchmark, sys.argv[1:])
    unknown = set(settings.shapes) - set(SHAPES)
    if unknown:
        raise MaeliftError(f"shapes={sorted(unknown)}: expected some of {', '.join(SHAPES)}.")
    torch.set_num_threads(settings.threads)
    print(
        f"torch {torch.__version__}, {settings.threads} threads, float32, fused AdamW, medians of {settings.repeats} rounds"
    )
    for name in settings.shapes:
        _compare(name, SHAPES[name], settings)


def _compare(name: str, shape: Shape, settings: Benchmark) -> None:
    images = torch.randn(shape.batch, 3, *shape.spec.image_size)
    noise = torch.rand(shape.batch, shape.spec.num_patches)
    theirs = _transformers(shape)
    ours = autoencoder_from_state_dict(
        from_transformers_names(theirs.state_dict()),
        num_heads=shape.spec.num_heads,
        decoder_num_heads=shape.decoder.num_heads,
        norm_pix_loss=True,
    )
    cross = CrossAttentionAutoencoder(
        shape.spec,
        DecoderConfig(
            shape.decoder.embed_dim, shape.decoder.depth, shape.decoder.num_heads, attention="cross", predict=0.25
        ),
    )
    losses = [
        float(ours(images, 0.75, noise).loss.detach()),
        float(theirs(images, noise=noise).loss.detach()),
    ]
    if abs(losses[0] - losses[1]) > 1e-4 * losses[1]:
        raise MaeliftError(f"{name}: the losses differ, {losses[0]} and {losses[1]}; nothing was measured.")
    arms = {
        "transformers": _stepper(theirs, lambda: theirs(images, noise=noise).loss),
        "maelift": _stepper(ours, lambda: ours(images, 0.75, noise).loss),
        "maelift, cross": _stepper(cross, lambda: cross(images, 0.75, noise).loss),
    }
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    count = max(1, round(settings.seconds / _seconds(arms["transformers"], 1)))
    for step in arms.values():
        step()
    for _ in range(settings.repeats):
        for arm, step in arms.items():
            times[arm].append(_seconds(step, count))
    for arm in ("maelift", "maelift, cross"):
        ratios = [mine / peer for mine, peer in zip(times[arm], times["transformers"], strict=True)]
        print(
            f"{name}, {arm}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) of transformers' "
            f"{1000 * statistics.median(times['transformers']):.1f} ms a step of {shape.batch} images",
            flush=True,
        )


def _stepper(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """A training step of a model."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    model.train()

    def step() -> None:
        loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _seconds(step: Callable[[], None], count: int) -> float:
    """Seconds a step, of so many."""
    began = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - began) / count


def _transformers(shape: Shape) -> torch.nn.Module:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    spec, decoder = shape.spec, shape.decoder
    config = ViTMAEConfig(
        hidden_size=spec.embed_dim,
        num_hidden_layers=spec.depth,
        num_attention_heads=spec.num_heads,
        intermediate_size=4 * spec.embed_dim,
        image_size=spec.image_size[0],
        patch_size=spec.patch_size,
        num_channels=spec.channels,
        decoder_hidden_size=decoder.embed_dim,
        decoder_num_hidden_layers=decoder.depth,
        decoder_num_attention_heads=decoder.num_heads,
        decoder_intermediate_size=4 * decoder.embed_dim,
        mask_ratio=0.75,
        norm_pix_loss=True,
        layer_norm_eps=1e-6,
        attn_implementation="sdpa",
    )
    model: torch.nn.Module = ViTMAEForPreTraining(config)
    return model


if __name__ == "__main__":
    try:
        main()
    except MaeliftError as error:
        sys.exit(f"training_step: {error}")
