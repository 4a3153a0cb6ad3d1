"""A training recipe, and the published numbers in transfer/recipes/."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import yaml

from ..core.errors import ConfigError
from ..core.training.schedule import Decay

RECIPES = Path(__file__).parent / "recipes"
"""The recipes of maelift's own tasks."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained; the numbers of each task and start are in transfer/recipes/."""

    epochs: float
    """passes over the labelled images"""
    steps: int | None = None
    """steps of the optimiser, in place of epochs"""
    batch_size: int
    """labelled images in a step, over all processes and accumulations"""
    base_lr: float
    """learning rate for a batch of 256; that used is base_lr * batch_size / 256"""
    lr: float | None = None
    """learning rate itself; null: from base_lr"""
    layer_decay: float
    """factor on the learning rate from each layer to the one below it; 1: the same for all"""
    weight_decay: float
    """AdamW's weight decay; none for vectors, biases, positions and the class token"""
    betas: tuple[float, float]
    """AdamW's momenta; the first is that of sgd"""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """adamw, or sgd with Nesterov momentum, as convolutional networks with batch norm are trained"""
    warmup: float
    """share of the steps with linear warm-up"""
    schedule: Decay = "cosine"
    """how the rate falls after it: cosine and linear to 0; steps: by 10 after 8/9 and 26/27 of all steps"""
    drop_path: float
    """stochastic depth: probability that the last block is skipped, rising linearly from 0 at the first"""
    ema_decay: float | None
    """decay of the moving average of weights that is evaluated and saved; null: none"""
    clip_grad: float | None
    """largest norm of the gradient; null: not clipped"""

    def __post_init__(self) -> None:
        for key in ("epochs", "steps", "batch_size", "base_lr", "lr", "layer_decay", "clip_grad"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise ConfigError(key, value, "a number above 0")
        if self.weight_decay < 0:
            raise ConfigError("weight_decay", self.weight_decay, "0 or more")
        for key in ("warmup", "drop_path", "ema_decay"):
            value = getattr(self, key)
            if value is not None and not 0 <= value < 1:
                raise ConfigError(key, value, "a share from 0 to below 1")
        if self.layer_decay > 1:
            raise ConfigError("layer_decay", self.layer_decay, "a factor of at most 1")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError("betas", list(self.betas), "two shares from 0 to below 1")

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up."""
        return self.lr if self.lr is not None else self.base_lr * self.batch_size / 256

    def check_passes(self, count: int) -> None:
        """Raise ConfigError when a step can't be split into ``count`` passes, over all processes and accumulations."""
        if self.batch_size % count:
            raise ConfigError("batch_size", self.batch_size, f"a multiple of {count} (processes × accumulate)")

    def total_steps(self, images: int) -> int:
        """Steps of the optimiser for ``images`` labelled images."""
        return self.steps or max(1, math.ceil(self.epochs * images / self.batch_size))


def recipe_defaults(name: str, folder: Path = RECIPES) -> dict[str, Any]:
    """The numbers of a recipe, "classify_encoder", say; raises ConfigError where ``folder`` has none of this name."""
    path = folder / f"{name}.yaml"
    if not path.is_file():
        there = ", ".join(sorted(found.stem for found in path.parent.glob(f"{name.partition('_')[0]}_*.yaml")))
        raise ConfigError("recipe", name, f"a recipe that is there: {there or 'none'}")
    return cast(dict[str, Any], yaml.safe_load(path.read_text(encoding="utf-8")))
