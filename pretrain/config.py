"""The configuration of a pretraining: every key of ``maelift pretrain`` (MAE, Appendix A.1, Table 8)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import yaml

from ..core.compute_types import Parallel, Precision
from ..core.config import raw_value, resolve
from ..core.data.composite import PictureKeys
from ..core.data.pixel_format import PixelFormat, background_colour
from ..core.data.reading_keys import ReadingKeys
from ..core.durations import seconds_of
from ..core.errors import ConfigError, show
from ..core.models.encoder_spec import ModelName, preset_spec
from ..core.slurm import SlurmConfig
from ..core.training.recovery import Recovery
from .augmentation import Crop
from .decoder_config import DecoderConfig
from .masking import Masking
from .probe_config import ProbeConfig

RECIPES = Path(__file__).parent / "recipes"
AUTO = "auto"
"""The recipe that is chosen by what is there."""


def recipe_defaults(name: str) -> dict[str, Any]:
    """The defaults of a recipe of pretrain/recipes, as "vit_base"; raises ConfigError for an unknown name."""
    path = RECIPES / f"{name}.yaml"
    if not path.is_file():
        there = ", ".join(sorted(found.stem for found in RECIPES.glob("*.yaml")))
        raise ConfigError("recipe", name, f"one of {there}")
    return cast(dict[str, Any], yaml.safe_load(path.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class PretrainConfig(PictureKeys, ReadingKeys):
    """Pretrain a masked autoencoder on unlabelled images."""

    data: str | tuple[str, ...]
    """folder of images, list of paths (.txt, .csv), tar shards, Parquet, idx or .npy file; several as [A,B]"""
    out: str
    """folder for the encoder file, checkpoints, metrics and report"""
    mix: tuple[float, ...] | None = None
    """sampling share of each source; null: every image once an epoch"""
    model: ModelName = "vit_base"
    """the encoder's shape"""
    image_size: int | tuple[int, int] | None = None
    """pixels, one side or [height,width]; null: the model's usual size"""
    patch_size: int | None = None
    """side of a patch in pixels; null: the model's usual size"""
    background: str = "white"
    """colour that transparent pixels are composited on: white, black, '#rrggbb', or drop: what is stored under them"""
    statistics: Literal["auto", "imagenet", "data"] = "auto"
    """mean and deviation for normalising; auto: ImageNet's for colour, the data's own for gray"""
    masking: Masking = field(default_factory=Masking)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    crop: Crop = field(default_factory=Crop)
    init: str | None = None
    """initial weights: an encoder file, hf:NAME/MODEL to fetch one, weights of the reference MAE, timm or transformers, or
    timm:NAME; null: random"""
    init_decoder: Literal["auto", "new"] = "auto"
    """auto: the decoder that belongs to init, if there is one of this shape; new: random"""
    norm_pix_loss: bool = True
    """predict each patch normalised by its own mean and deviation (paper Table 1d)"""
    epochs: float = 800.0
    """passes over the images; the paper's 800 to 1600 are for a million images"""
    batch_size: int = 256
    """images in a step, over all processes and accumulations (the paper's: 4096)"""
    accumulate: int | Literal["auto"] = 1
    """gradient accumulation: passes a step is split into, to save memory; auto: as few as fit into the GPU's"""
    crops_per_image: int = 1
    """crops of each image in a batch, decoded once: faster where loading is slow; the batch holds fewer images"""
    base_lr: float = 1.5e-4
    """learning rate for a batch of 256; the peak is base_lr * batch_size / 256"""
    lr: float | None = None
    """peak learning rate; null: from base_lr"""
    warmup_epochs: float | None = None
    """epochs of linear warm-up; null: 5 % of the epochs, as the paper's 40 of 800"""
    weight_decay: float = 0.05
    """AdamW's weight decay; not applied to vectors and biases"""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's betas"""
    layer_decay: float = 1.0
    """factor of the learning rate from each block to the one below; useful with init"""
    ema_decay: float | None = None
    """decay per step of an exponential moving average of the weights, which is evaluated and saved; null: no average"""
    clip_grad: float | None = None
    """largest norm of the gradient, clipped above; null: not clipped"""
    precision: Precision = "auto"
    """of the forward pass; auto: bfloat16 on a GPU that has it, else float32. float16 scales its loss"""
    parallel: Parallel = "ddp"
    """with several processes; ddp: each has the full model, fsdp: each has a shard of the parameters (FSDP2)"""
    compile: bool = False
    """compile the transformer blocks: faster on a GPU, after minutes of compiling"""
    activation_checkpointing: bool = False
    """recompute the blocks' activations in the backward pass: saves memory, takes a third more time"""
    recovery: Recovery = field(default_factory=Recovery)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to train; auto: a GPU when there is one"""
    launch: Literal["here", "slurm"] = "here"
    """here, or slurm: submit a job that saves a checkpoint before its time limit, is requeued, and resumes"""
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    workers: int | None = None
    """processes that load images; null: one per core, none for idx files"""
    holdout: int | float = 0.02
    """images held out of training for the evaluation loss, a share or a count (at most 1000 by share)"""
    evaluations: int = 20
    """number of evaluations of held-out loss and reconstructions during the run"""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    log_every: int = 50
    """steps between two records of the training metrics"""
    wandb: str | None = None
    """Weights & Biases project that also gets the metrics; null: none"""
    checkpoint_minutes: float = 5.0
    """minutes between two checkpoints"""
    checkpoints: int = 3
    """checkpoints stored during the run; if the newest is damaged, the one before is used"""
    max_rejected: float = 0.05
    """largest share of broken images that is tolerated"""
    audit: Literal["auto", "full", "light"] = "auto"
    """images opened before training; full: every one, light: those held out and a sample, auto: light above 200,000"""
    reindex: bool = False
    """list and scan the images again, without the cache of earlier runs"""
    seed: int = 0
    """seed of every random draw"""
    recipe: str | None = None
    """defaults of the other keys: auto, chosen by the images, the device and budget; or of pretrain/recipes: vit_tiny, vit_small,
    vit_base, vit_large, vit_huge; null: those here"""
    budget: str | None = None
    """time that the training may take, as 30m or 2h, for recipe=auto; null: 2h"""

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
        self.check_reading()
        if self.budget is not None:
            seconds_of("budget", self.budget)
            if self.recipe != AUTO:
                raise ConfigError("budget", self.budget, "null, but with recipe=auto, which chooses epochs by it")
        self.check_shown()
        background_colour(self.background)
        if self.crops_per_image < 1 or self.batch_size % self.crops_per_image:
            raise ConfigError("crops_per_image", self.crops_per_image, f"a divisor of batch_size={self.batch_size}")
        if self.statistics == "imagenet" and self.channel_count not in (None, 3):
            expected = f"data or auto, as channels={show(self.channels)} has no ImageNet statistics"
            raise ConfigError("statistics", self.statistics, expected)
        spec = preset_spec(self.model, image_size=self.image_size, patch_size=self.patch_size)
        self.masking.check_grid(spec.grid)
        if self.masking.in_encoder and self.decoder.attention == "cross":
            raise ConfigError("decoder.attention", "cross", "self with masking.in_encoder=true")

    @classmethod
    def resolve(cls, overrides: Sequence[str] | Mapping[str, object] = (), file: Path | None = None) -> PretrainConfig:
        """The configuration of a user's overrides and file, with the defaults of the recipe that they name.

        It may not be recipe=auto, which looks at images and machine: that is ``command.resolve_config``.
        """
        name = raw_value("recipe", overrides, file)
        return resolve(cls, overrides, file, {} if name in (None, "null") else recipe_defaults(str(name)))

    @property
    def sources(self) -> str:
        """The sources of ``data``, for messages."""
        return self.data if isinstance(self.data, str) else ", ".join(self.data)

    @property
    def passes(self) -> int:
        """Passes a step is split into; 1 for auto, which is known only with the model."""
        return 1 if self.accumulate == "auto" else self.accumulate

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up."""
        return self.lr if self.lr is not None else self.base_lr * self.batch_size / 256

    def form(self, channels: int | None = None) -> PixelFormat:
        """How stored values are read; ``channels``: those found in the files, used if the key is null."""
        return self.changed(PixelFormat(channels, background=background_colour(self.background)))

    def steps(self, pool: int) -> int:
        """Optimizer steps for ``pool`` images."""
        return max(1, math.ceil(self.epochs * pool / self.batch_size))

    def held_out_count(self, count: int) -> int:
        """How many of ``count`` images are held out of training."""
        if isinstance(self.holdout, int):
            return self.holdout
        return min(1000, int(self.holdout * count))
