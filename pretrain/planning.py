"""What a pretraining would do and cost, before it is run."""

from __future__ import annotations

from pathlib import Path

import torch

from ..core.cost import block_flops, encoder_flops, training_memory, training_seconds
from ..core.distributed import choose_device
from ..core.encoder import preset_spec
from ..core.plan import Plan
from ..core.sources import find_sources
from ..core.weights import ENCODER_FILE
from .config import PretrainConfig
from .mae import MaskedAutoencoder
from .masking import num_visible
from .pool import check_split


def plan(config: PretrainConfig) -> Plan:
    """What ``pretrain`` would do and roughly cost; writes nothing and opens only a few images."""
    images = find_sources(config.data)
    on_slurm = config.launch == "slurm"
    check_split(config, len(images), config.slurm.processes if on_slurm else 1)
    channels = config.channels or 3
    spec = preset_spec(config.model, image_size=config.image_size, patch_size=config.patch_size, channels=channels)
    with torch.device("meta"):
        model = MaskedAutoencoder(spec, config.decoder)
    visible = num_visible(spec.num_patches, config.masking.ratio)
    width, depth = config.decoder.embed_dim, config.decoder.depth
    flops = encoder_flops(spec, visible) + depth * block_flops(spec.num_patches + 1, width)
    held_out = config.held_out_count(len(images))
    pool = len(images) - held_out
    steps = config.steps(pool)
    encoder_parameters = sum(p.numel() for name, p in model.named_parameters() if not name.startswith(("dec", "mask")))
    activations = (visible + 1) * spec.embed_dim * spec.depth + (spec.num_patches + 1) * width * depth
    device = choose_device(config.device)
    return Plan(
        lines=(
            (
                "images",
                f"{len(images)} found in {config.sources}: {pool} to train on, {held_out} held out (unchecked yet)",
            ),
            ("encoder", f"{config.model}, {spec.image_size[0]}×{spec.image_size[1]} px, patch {spec.patch_size} px"),
            ("patches", f"{visible} of {spec.num_patches} visible to the encoder"),
            ("encoder alone", f"{encoder_parameters:,} parameters"),
            ("learning rate", f"{config.peak_lr:.3g} after warm-up"),
            ("device", str(device)),
            *(
                [("job", f"{config.slurm.processes} processes on {config.slurm.nodes} machines of SLURM")]
                if on_slurm
                else []
            ),
            ("result", str(Path(config.out) / ENCODER_FILE)),
        ),
        parameters=sum(p.numel() for p in model.parameters()),
        steps=steps,
        seconds=training_seconds(flops, steps * config.batch_size, device),
        memory_bytes=training_memory(
            sum(p.numel() for p in model.parameters()), activations, config.batch_size // config.accumulate
        ),
    )
