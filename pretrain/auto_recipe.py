"""recipe=auto: model, sizes, decoder, epochs, batch and rate by the images, the device and the time that there is."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..core.config import is_given, resolve
from ..core.data.first_images import first_images
from ..core.data.images import ImageSet
from ..core.data.sources import find_sources
from ..core.device import choose_device
from ..core.durations import seconds_of
from ..core.errors import ConfigError
from ..core.models.encoder_spec import PRESETS, ModelName, preset_spec
from ..core.progress import duration
from ..core.training.run_dir import read_run_config
from ..core.yaml_files import to_dict
from .config import AUTO, PretrainConfig, recipe_defaults
from .dry_run import loading_seconds, training_seconds_an_image

logger = logging.getLogger("maelift")

USUAL_BUDGET = "2h"
SHARE_OF_STEPS = 0.9
"""Of the time; the rest is for scanning the images, evaluations, checkpoints and pictures."""
MOST_EPOCHS = 1600
"""The paper's longest pretraining (Table 3)."""
FEWEST_PATCHES = 7
"""Patches along a side at least, where the images allow it: with fewer there is little to hide."""
SMALLEST_PATCH = 2
STEPS_WANTED = 3000
"""Steps of a pretraining at least, where the batch can be made smaller for it."""


@dataclass(frozen=True)
class Candidate:
    """A model with the largest image that it is given, in pixels a side, and how many images (with repetition) it has to see
    to be worth its size; ``base_lr`` for a batch of 256; ``decoder``: its keys."""

    model: ModelName
    side: int
    images_needed: int
    base_lr: float
    decoder: Mapping[str, Any]

    def sizes(self, usual_side: int) -> tuple[int, int]:
        """Image and patch size in pixels for images whose shorter side is usually so long."""
        patch, side = PRESETS[self.model].patch_size, min(self.side, usual_side)
        while side / patch < FEWEST_PATCHES and patch // 2 >= SMALLEST_PATCH:
            patch //= 2
        return max(2, round(side / patch)) * patch, patch


def _light(width: int, depth: int = 2, heads: int = 4) -> Mapping[str, Any]:
    """A decoder for a small encoder, beside which the paper's would cost more than the encoder itself (Sec. 3)."""
    return {"embed_dim": width, "depth": depth, "num_heads": heads}


CANDIDATES = (
    Candidate("vit_nano", 40, 0, 8e-3, _light(64)),
    Candidate("vit_micro", 96, 300_000, 4e-3, _light(96)),
    Candidate("vit_tiny", 128, 1_500_000, 1.5e-3, _light(128)),
    Candidate("vit_small", 224, 6_000_000, 6e-4, _light(256, 4, 8)),
    Candidate("vit_base", 224, 60_000_000, 1.5e-4, {}),
    Candidate("vit_large", 224, 400_000_000, 1.5e-4, {}),
)
"""From the cheapest on; each is taken where the time suffices for the images that it needs. The rates of the smallest were
measured on Fashion-MNIST (docs/performance.md), those of ViT-B and ViT-L are the paper's, and the others lie between."""


@dataclass(frozen=True)
class Chosen:
    """The keys that were chosen, and why, a line each."""

    keys: Mapping[str, Any]
    reasons: tuple[str, ...]


def resolve_auto(
    overrides: Sequence[str] | Mapping[str, object] = (), file: Path | None = None, images: ImageSet | None = None
) -> PretrainConfig:
    """The configuration with recipe=auto: what the user's overrides and file say, and for the rest what fits.

    A run that is in ``out`` already keeps what was chosen for it. The choices are logged with their reasons. ``images``
    replace those in ``data``. Raises MaeliftError for images that can't be read, and ConfigError where the processes of torchrun
    would have to choose.
    """
    usual = resolve(PretrainConfig, overrides, file)
    before = _choices_before(usual)
    if before is not None:
        logger.info("pretrain: recipe=auto: as it was chosen for the run in %s", usual.out)
        return resolve(PretrainConfig, overrides, file, before)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # each would measure a speed of its own, and train another model
        raise ConfigError(
            "recipe",
            AUTO,
            "a recipe by name, or the keys themselves, with several processes",
            "maelift pretrain ... --show-config in one process prints those that it chooses.",
        )
    chosen = choose(usual, lambda key: is_given(key, overrides, file), images)
    for line in chosen.reasons:
        logger.info("pretrain: recipe=auto: %s", line)
    return resolve(PretrainConfig, overrides, file, chosen.keys)


def _choices_before(config: PretrainConfig) -> dict[str, Any] | None:
    """The configuration of a run in the output folder that was chosen for the same time and images."""
    path = Path(config.out) / "config.yaml"
    if not path.is_file():
        return None
    found, mine = read_run_config(path), to_dict(config)
    same = all(found.get(key) == mine[key] for key in ("recipe", "budget", "data"))
    return {key: value for key, value in found.items() if key not in ("out", "data")} if same else None


def choose(config: PretrainConfig, given: Callable[[str], bool], images: ImageSet | None = None) -> Chosen:
    """The keys that recipe=auto gives; those for which ``given`` is true are the user's, and stay."""
    images = images if images is not None else find_sources(config.data, slices=config.slices)
    look = first_images(images, config)
    side = look.side
    device = choose_device(config.device)
    budget = seconds_of("budget", config.budget or USUAL_BUDGET)
    count = max(1, len(images) - config.held_out_count(len(images)))
    fitting = [one for one in CANDIDATES if config.model == one.model] if given("model") else list(CANDIDATES)
    if not fitting:
        raise ConfigError(
            "model", config.model, f"one of {', '.join(one.model for one in CANDIDATES)} with recipe=auto"
        )
    best: tuple[Candidate, PretrainConfig, float] | None = None
    for candidate in fitting:
        trial = _trial(config, candidate, side, given)
        seconds = _seconds_an_image(trial, images, look.channels, device)
        seen = SHARE_OF_STEPS * budget / seconds
        if best is not None and seen < min(candidate.images_needed, MOST_EPOCHS * count):
            break
        best = candidate, trial, seconds
    assert best is not None
    candidate, trial, seconds = best
    return _settled(trial, candidate, given, count, side, budget, seconds, device)


def _trial(config: PretrainConfig, candidate: Candidate, side: int, given: Callable[[str], bool]) -> PretrainConfig:
    """The configuration with a candidate's model, sizes and decoder."""
    size, patch = candidate.sizes(side)
    patch = config.patch_size if given("patch_size") and config.patch_size is not None else patch
    decoder = config.decoder if given("decoder") else replace(config.decoder, **candidate.decoder)
    return replace(
        config,
        model=candidate.model,
        image_size=config.image_size if given("image_size") else max(1, round(size / patch)) * patch,
        patch_size=patch,
        decoder=decoder,
        batch_size=config.batch_size if given("batch_size") else min(config.batch_size, 64),
    )


def _seconds_an_image(config: PretrainConfig, images: ImageSet, channels: int, device: torch.device) -> float:
    """Seconds of training on an image, loaded, as measured here."""
    spec = preset_spec(
        config.model,
        image_size=config.image_size,
        patch_size=config.patch_size,
        channels=config.channel_count or channels,
    )
    step = training_seconds_an_image(config, spec, device)
    loading = (loading_seconds(config, images, spec) or 0.0) / max(1, os.cpu_count() or 1)
    return max(step, loading) if device.type == "cuda" else step + loading


def _settled(
    trial: PretrainConfig,
    candidate: Candidate,
    given: Callable[[str], bool],
    count: int,
    side: int,
    budget: float,
    seconds: float,
    device: torch.device,
) -> Chosen:
    """The keys of the chosen candidate with epochs, batch and rate, and the reasons."""
    paper = recipe_defaults(candidate.model) if candidate.model in ("vit_base", "vit_large") else {}
    seen = SHARE_OF_STEPS * budget / seconds
    epochs = trial.epochs if given("epochs") else _rounded(min(MOST_EPOCHS, seen / count))
    batch = trial.batch_size if given("batch_size") else _batch_size(epochs * count, count, device)
    keys = {
        key: value for key, value in paper.items() if key not in ("epochs", "warmup_epochs", "batch_size", "decoder")
    }
    keys |= {"model": trial.model, "image_size": trial.image_size, "patch_size": trial.patch_size}
    keys |= {"epochs": epochs, "batch_size": batch, "base_lr": candidate.base_lr}
    decoder = to_dict(trial)["decoder"]
    keys["decoder"] = decoder
    shown = f"{trial.image_size}" if isinstance(trial.image_size, int) else "×".join(map(str, trial.image_size or ()))
    reasons = (
        f"model={trial.model} image_size={shown} patch_size={trial.patch_size}: images are about {side} pixels a side, and "
        f"this is the largest of the models that sees enough images in {duration(budget)} on {device}",
        f"epochs={epochs:g}: {1000 * seconds:.3g} ms an image here, so {epochs * count:,.0f} images of {count:,}"
        + (f" (at most {MOST_EPOCHS} epochs, as in the paper)" if epochs >= MOST_EPOCHS else ""),
        f"batch_size={batch} base_lr={candidate.base_lr:g}: a peak rate of {candidate.base_lr * batch / 256:.2g} over "
        f"{math.ceil(epochs * count / batch):,} steps",
        f"decoder {decoder['embed_dim']} wide, {decoder['depth']} deep: "
        + ("light, as the encoder is small" if candidate.decoder else "the paper's"),
    )
    return Chosen(keys, reasons)


def _batch_size(seen: float, count: int, device: torch.device) -> int:
    """A power of two that leaves enough steps, and an epoch some: 64 to 256 on a CPU, up to 1024 on a GPU."""
    most = 1024 if device.type == "cuda" else 256
    wanted = min(seen / STEPS_WANTED, count / 4, most)
    return max(16, 1 << max(0, int(wanted).bit_length() - 1))


def _rounded(epochs: float) -> float:
    """Three digits, at least a twentieth of an epoch."""
    return max(0.05, float(f"{epochs:.3g}"))
