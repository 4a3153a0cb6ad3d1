"""The dry run of a pretraining: what it would do, and what it would roughly cost."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from ..core.data.images import ImageSet, opened
from ..core.data.transforms import random_crops
from ..core.device import autocast, choose_device
from ..core.dry_run import Plan
from ..core.errors import DataError
from ..core.models.cost import (
    FLOAT_BYTES,
    MOST_FLOPS,
    block_flops,
    checkpoint_bytes,
    encoder_flops,
    measured_images,
    seconds_an_image,
    training_memory,
    training_seconds,
)
from ..core.models.encoder_spec import EncoderSpec, preset_spec
from ..core.models.stored_contract import ENCODER_FILE
from ..core.models.without_values import without_values
from ..core.progress import duration
from ..core.seeding import seeded_rng, stream
from ..core.training.batch_sheet import BATCH_FILE
from .auto_accumulate import trainable_parameters
from .config import PretrainConfig
from .mae import MaskedAutoencoder, build_autoencoder
from .masking import num_visible

A_DAY = 24 * 3600.0
LONG = "{} are more than a day: recipe=auto budget=2h chooses model, sizes and epochs that fit into two hours here"
LOADED = 24
"""Images that are loaded to measure the speed of loading."""


def plan(config: PretrainConfig, images: ImageSet) -> Plan:
    """What ``pretrain`` would do with the images and roughly cost; writes nothing and opens only a few of them."""
    on_slurm = config.launch == "slurm"
    channels = config.channel_count or 3
    spec = preset_spec(config.model, image_size=config.image_size, patch_size=config.patch_size, channels=channels)
    device = choose_device(config.device)
    model = _on_meta(config, spec)
    visible = num_visible(spec.num_patches, config.masking.ratio)
    width, depth = config.decoder.embed_dim, config.decoder.depth
    held_out = config.held_out_count(len(images))
    pool = len(images) - held_out
    steps = config.steps(pool)
    encoder_parameters = sum(p.numel() for name, p in model.named_parameters() if not name.startswith(("dec", "mask")))
    activations = (visible + 1) * spec.embed_dim * spec.depth + (spec.num_patches + 1) * width * depth
    parameters = sum(p.numel() for p in model.parameters())
    checkpoints = checkpoint_bytes(parameters, config.checkpoints, averaged=config.ema_decay is not None)
    disk = (checkpoints + FLOAT_BYTES * parameters) / 2**30
    processes = config.slurm.processes if on_slurm else 1
    measured = None if on_slurm else _measured(config, spec, device)
    loading = None if on_slurm else loading_seconds(config, images, spec)
    seconds = (
        training_seconds(forward_flops(config, spec), steps * config.batch_size, device)
        if measured is None
        else measured * steps * config.batch_size
    )
    return Plan(
        lines=(
            (
                "images",
                f"{len(images)} found in {config.sources}: {pool} to train on, {held_out} held out (unchecked yet)",
            ),
            ("encoder", f"{config.model}, {spec.image_size[0]}×{spec.image_size[1]} px, patch {spec.patch_size} px"),
            ("augmentation", config.crop.words(spec.image_size).rstrip(".")),
            ("first batch", f"is drawn in {Path(config.out) / BATCH_FILE} before training"),
            ("patches", f"{visible} of {spec.num_patches} visible to the encoder"),
            ("encoder alone", f"{encoder_parameters:,} parameters"),
            ("learning rate", f"{config.peak_lr:.3g} after warm-up"),
            ("device", str(device)),
            *([("step, measured", f"{1000 * measured:.3g} ms an image, one process")] if measured is not None else []),
            *([("loading, measured", f"{1000 * loading:.3g} ms an image and worker")] if loading is not None else []),
            ("disk", f"{disk:.2f} GiB, {config.checkpoints} checkpoints and the files"),
            *(
                [("job", f"{config.slurm.processes} processes on {config.slurm.nodes} machines of SLURM")]
                if on_slurm
                else []
            ),
            ("result", str(Path(config.out) / ENCODER_FILE)),
            *([("beware", LONG.format(duration(seconds)))] if seconds > A_DAY else []),
        ),
        parameters=parameters,
        steps=steps,
        seconds=seconds,
        memory_bytes=training_memory(parameters, activations, config.batch_size // (config.passes * processes)),
    )


def training_seconds_an_image(config: PretrainConfig, spec: EncoderSpec, device: torch.device) -> float:
    """Seconds of training for one image, without loading: measured, or of large models estimated from operations."""
    measured = _measured(config, spec, device)
    return training_seconds(forward_flops(config, spec), 1, device) if measured is None else measured


def forward_flops(config: PretrainConfig, spec: EncoderSpec) -> float:
    """Floating-point operations of a forward pass on an image: encoder on visible patches, decoder on all."""
    visible, decoder, patches = num_visible(spec.num_patches, config.masking.ratio), config.decoder, spec.num_patches
    ends = 2 * patches * decoder.embed_dim * (spec.embed_dim + spec.channels * spec.patch_size**2)
    return encoder_flops(spec, visible) + decoder.depth * block_flops(patches + 1, decoder.embed_dim) + ends


def _measured(config: PretrainConfig, spec: EncoderSpec, device: torch.device) -> float | None:
    """Seconds of training for one image, measured on a few steps with random pixels; None for large models."""
    flops = forward_flops(config, spec)
    if 3 * flops > MOST_FLOPS:
        return None
    with seeded_rng(config.seed, "plan"):
        model = build_autoencoder(spec, config.decoder, masks_in_encoder=config.masking.in_encoder).to(device)
        images = measured_images(flops, config.batch_size // config.passes, device)
        pixels = torch.randn(images, spec.channels, *spec.image_size, device=device)
        trained = trainable_parameters(model)
        optimizer = torch.optim.AdamW(trained, fused=True)

        def step() -> None:
            noise = config.masking.arrange(torch.rand(images, spec.num_patches), spec.grid).to(device)
            with autocast(device, config.precision):
                loss = model(pixels, config.masking.ratio, noise).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return seconds_an_image(step, images, device)


def loading_seconds(config: PretrainConfig, images: ImageSet, spec: EncoderSpec) -> float | None:
    """Seconds that a worker takes to load and crop an image, measured on a few; None if none could be read."""
    draws = stream(config.seed, "plan").random((LOADED, 5))
    numbers = stream(config.seed, "plan", 1).integers(len(images), size=LOADED)
    began, loaded = time.perf_counter(), 0
    for number, row in zip(numbers, draws, strict=True):
        try:
            image = opened(images, int(number), config.form())
            random_crops(image, spec.image_size, row[None], config.crop.scale, reduced=config.crop.reduced_decoding)
        except DataError:
            continue
        loaded += 1
    return (time.perf_counter() - began) / loaded if loaded else None


def mae_parameters(config: PretrainConfig, spec: EncoderSpec) -> int:
    """How many parameters the encoder and its decoder have."""
    return sum(parameter.numel() for parameter in _on_meta(config, spec).parameters())


def _on_meta(config: PretrainConfig, spec: EncoderSpec) -> MaskedAutoencoder:
    """The model on the meta device: shapes without values."""
    with without_values():
        return build_autoencoder(spec, config.decoder, masks_in_encoder=config.masking.in_encoder)
