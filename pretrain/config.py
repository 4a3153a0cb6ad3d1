"""What a pretraining may be told: every key of ``maelift pretrain`` (MAE, Appendix A.1, Table 8)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import yaml

from ..core.config import raw_value, resolve
from ..core.data.decode import PixelFormat, background_colour
from ..core.device import Precision
from ..core.distributed import Parallel
from ..core.errors import ConfigError
from ..core.models.encoder_spec import ModelName, preset_spec
from ..core.slurm import Slurm
from ..core.training.recovery import Recovery
from .data import Crop
from .mae import DecoderConfig
from .masking import Masking
from .online_probe import ProbeConfig

RECIPES = Path(__file__).parent / "recipes"


def recipe_defaults(name: str) -> dict[str, Any]:
    """The numbers of a recipe, "vit_base", say, from pretrain/recipes/."""
    path = RECIPES / f"{name}.yaml"
    if not path.is_file():
        there = ", ".join(sorted(found.stem for found in RECIPES.glob("*.yaml")))
        raise ConfigError("recipe", name, f"a recipe that is there: {there}")
    return cast(dict[str, Any], yaml.safe_load(path.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class PretrainConfig:
    """Pretrain a masked autoencoder on unlabelled images."""

    data: str | tuple[str, ...]
    """folder of images, list of paths (.txt, .csv), tar shards, Parquet, idx or .npy file; several as [A,B]"""
    out: str
    """folder for the encoder file, checkpoints, metrics and pictures"""
    mix: tuple[float, ...] | None = None
    """shares in which several sources are drawn from, one a source; null: every image once an epoch"""
    model: ModelName = "vit_base"
    """the encoder's shape"""
    image_size: int | tuple[int, int] | None = None
    """pixels, one side or [height,width]; null: the model's usual one"""
    patch_size: int | None = None
    """pixels a side of a patch; null: the model's usual one"""
    channels: int | None = None
    """1 (gray), 3 (colour), 4 (transparency or a fourth band), or what the files have; null: theirs, 3 for gray and colour"""
    value_range: tuple[float, float] | None = None
    """lowest and highest value of float arrays or deep images as stored; null: integers, brought to 0 to 255"""
    background: str = "white"
    """colour that transparent pixels are composited on: white, black, '#rrggbb', or drop: what is stored under them"""
    statistics: Literal["auto", "imagenet", "data"] = "auto"
    """mean and deviation for normalising; auto: ImageNet's for colour, the data's own for gray"""
    masking: Masking = field(default_factory=Masking)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    crop: Crop = field(default_factory=Crop)
    init: str | None = None
    """weights to begin with: an encoder file, those of the reference MAE, timm or transformers, or timm:NAME; null: none"""
    init_decoder: Literal["auto", "new"] = "auto"
    """auto: the decoder that goes with init, where there is one of this shape; new: drawn"""
    norm_pix_loss: bool = True
    """predict each patch normalised by its own mean and deviation (paper Table 1d)"""
    epochs: float = 800.0
    """times that every image is seen; the paper's 800 to 1600 are for a million images"""
    batch_size: int = 256
    """images in a step, over all processes and accumulations (the paper's: 4096)"""
    accumulate: int | Literal["auto"] = 1
    """passes that a step is split into, to save memory; auto: as few as fit into the GPU's"""
    crops_per_image: int = 1
    """crops of each image in a batch, decoded once: faster where loading is slow; the batch holds fewer images"""
    base_lr: float = 1.5e-4
    """learning rate for a batch of 256; that used is base_lr * batch_size / 256"""
    lr: float | None = None
    """learning rate itself; null: from base_lr"""
    warmup_epochs: float | None = None
    """epochs of linear warm-up; null: 5 % of the epochs, as the paper's 40 of 800"""
    weight_decay: float = 0.05
    """AdamW's weight decay; none for vectors and biases"""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's momenta"""
    layer_decay: float = 1.0
    """factor of the learning rate from each block to the one below; for going on from weights"""
    ema_decay: float | None = None
    """keep an average of the weights, which is judged and written, with so much of it left each step; null: none"""
    clip_grad: float | None = None
    """largest norm of the gradient; null: not clipped"""
    precision: Precision = "auto"
    """of the forward pass; auto: bfloat16 on a GPU that has it, else float32. float16 scales its loss"""
    parallel: Parallel = "ddp"
    """with several processes; ddp: each has the whole model, fsdp: each has a part of the parameters (FSDP2)"""
    compile: bool = False
    """compile the transformer blocks: faster on a GPU, after minutes of compiling"""
    activation_checkpointing: bool = False
    """compute the blocks' activations anew in the backward pass, to save memory for a third more time"""
    recovery: Recovery = field(default_factory=Recovery)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to train; auto: a GPU when there is one"""
    launch: Literal["here", "slurm"] = "here"
    """here, or hand it to SLURM as a job that saves before its time is up, is queued again, and goes on"""
    slurm: Slurm = field(default_factory=Slurm)
    workers: int | None = None
    """processes that load images; null: one a core, none for idx files"""
    holdout: int | float = 0.02
    """images kept out of training for the masked loss, a share or a count (at most 1000 by share)"""
    evaluations: int = 20
    """times that the held-out loss and the pictures are made during the run"""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    log_every: int = 50
    """steps between two records of the training loss"""
    wandb: str | None = None
    """Weights & Biases project that gets the metrics too; null: none does"""
    checkpoint_minutes: float = 5.0
    """minutes between two checkpoints"""
    checkpoints: int = 3
    """checkpoints kept while the run lasts; where the newest is damaged, the one before takes its place"""
    max_rejected: float = 0.05
    """largest share of broken images that is put up with"""
    audit: Literal["auto", "full", "light"] = "auto"
    """images opened before training; full: every one, light: those held out and a sample, auto: light above 200,000"""
    reindex: bool = False
    """list and look through the images from the start; what was kept of earlier runs doesn't count"""
    seed: int = 0
    """seeds every random draw"""
    recipe: str | None = None
    """take the other keys' defaults from pretrain/recipes: vit_tiny, vit_small, vit_base, vit_large, vit_huge; null: no"""

    def __post_init__(self) -> None:
        positive = (
            "epochs",
            "batch_size",
            "base_lr",
            "checkpoint_minutes",
            "evaluations",
            "log_every",
            "checkpoints",
        )
        for key in (*positive, "accumulate", "lr", "clip_grad"):
            value = getattr(self, key)
            if value not in (None, "auto") and value <= 0:
                raise ConfigError(key, value, "a number above 0")
        for key in ("weight_decay", "holdout", "workers", "seed", "warmup_epochs"):
            value = getattr(self, key)
            if value is not None and value < 0:
                raise ConfigError(key, value, "0 or more")
        if isinstance(self.holdout, float) and self.holdout >= 1:
            raise ConfigError("holdout", self.holdout, "a share below 1, or a whole number of images")
        if self.warmup_epochs is not None and self.warmup_epochs >= self.epochs:
            expected = f"fewer than epochs={self.epochs:g}"
            raise ConfigError("warmup_epochs", self.warmup_epochs, expected, "With null it is 5 % of them.")
        if self.mix is not None and (
            isinstance(self.data, str) or len(self.mix) != len(self.data) or min(self.mix) <= 0
        ):
            count = 1 if isinstance(self.data, str) else len(self.data)
            raise ConfigError("mix", list(self.mix), f"a number above 0 for each of several sources; data has {count}")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError("layer_decay", self.layer_decay, "a factor above 0, up to 1")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ConfigError("ema_decay", self.ema_decay, "a share between 0 and 1, or null")
        if not 0 <= self.max_rejected <= 1:
            raise ConfigError("max_rejected", self.max_rejected, "a share from 0 to 1")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError("betas", list(self.betas), "two numbers from 0 to below 1")
        if self.channels is not None and self.channels < 1:
            raise ConfigError("channels", self.channels, "1 or more, or null")
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise ConfigError("value_range", list(self.value_range), "[lowest,highest], the lowest first")
        background_colour(self.background)
        if self.crops_per_image < 1 or self.batch_size % self.crops_per_image:
            raise ConfigError("crops_per_image", self.crops_per_image, f"a divisor of batch_size={self.batch_size}")
        if self.statistics == "imagenet" and self.channels not in (None, 3):
            expected = f"data or auto, as channels={self.channels} has no ImageNet statistics"
            raise ConfigError("statistics", self.statistics, expected)
        spec = preset_spec(self.model, image_size=self.image_size, patch_size=self.patch_size)
        self.masking.check_grid(spec.grid)
        if self.masking.in_encoder and self.decoder.attention == "cross":
            raise ConfigError("decoder.attention", "cross", "self with masking.in_encoder=true")

    @classmethod
    def resolve(cls, overrides: Sequence[str] | Mapping[str, object] = (), file: Path | None = None) -> PretrainConfig:
        """The configuration: what the user says, over the recipe that it names."""
        name = raw_value("recipe", overrides, file)
        return resolve(cls, overrides, file, {} if name in (None, "null") else recipe_defaults(str(name)))

    @property
    def sources(self) -> str:
        """What ``data`` names, in words."""
        return self.data if isinstance(self.data, str) else ", ".join(self.data)

    @property
    def passes(self) -> int:
        """Passes that a step is split into as far as is known before the model is there."""
        return 1 if self.accumulate == "auto" else self.accumulate

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up."""
        return self.lr if self.lr is not None else self.base_lr * self.batch_size / 256

    def form(self, channels: int | None = None) -> PixelFormat:
        """What is made of the values in the files; ``channels``: those found, where the key doesn't say."""
        return PixelFormat(self.channels or channels, self.value_range, background_colour(self.background))

    def steps(self, pool: int) -> int:
        """Steps of the optimiser for a pool of so many images."""
        return max(1, math.ceil(self.epochs * pool / self.batch_size))

    def held_out_count(self, count: int) -> int:
        """How many of ``count`` images are kept out of training."""
        if isinstance(self.holdout, int):
            return self.holdout
        return min(1000, int(self.holdout * count))
