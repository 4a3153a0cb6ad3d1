"""The configuration that all tasks share."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from typing_extensions import Self

from ..core.compute_types import Precision
from ..core.config import raw_value, resolve
from ..core.config_keys import KeySection, section
from ..core.data.composite import PictureKeys
from ..core.errors import ConfigError, show
from ..core.models.timm_spec import TIMM, TimmSpec
from .init_keys import EncoderInit
from .recipe import RECIPES, Recipe, recipe_defaults
from .run_files import finished_config

AUTO = "auto"
"""The recipe that is chosen by what is there."""
ANY = "any"
"""Stands for an encoder and data until it is known which recipe's numbers are the defaults."""


@dataclass(frozen=True, kw_only=True)
class Paths:
    """What a run reads and where it writes."""

    data: str
    """the annotated images: see the docs page of the task"""
    out: str
    """folder for the model, its test results and metrics"""


@dataclass(frozen=True, kw_only=True)
class TransferConfig(PictureKeys, Recipe, EncoderInit, Paths):
    """The keys that the commands of all tasks share."""

    task_name: ClassVar[str]
    """the task that this configures, as its row in tasks.py names it"""
    recipe: Literal["auto", "paper", "small"] = "paper"
    """paper: as published for the start, for large images and many labels; small: for small images and few labels; auto: one of
    these, by the number of labelled images and the device"""
    labels: int | float | None = None
    """labelled images to train on, a count or a share, the smaller draw in the larger; null: all"""
    val: int | float = 0.1
    """validation images where the data has no such split, a count or a share of the training images"""
    test: int | float = 0.1
    """test images where the data has no such split, a count or a share of the training images"""
    split_seed: int = 0
    """seeds the draws of validation, test and labelled images"""
    group: str | None = None
    """what stays in one split, a patient, video or flight: a column of the CSV, a regular expression over the images' paths
    ("(patient[0-9]+)"), or of GeoTIFF files squares of the map: tile:5000 of 5,000 map units"""
    folds: int | None = None
    """parts that the images are cut into for cross-validation; one of them is the test split, in place of a draw by test"""
    fold: int = 0
    """which of the folds is tested with, from 0"""
    accumulate: int = 1
    """passes that a step is split into, to save memory; random numbers within the model are drawn in each"""
    evaluations: int = 20
    """evaluations on the validation images; the best of these weights are saved"""
    patience: int | None = None
    """early stopping: evaluations without an improvement after which training ends; null: none"""
    precision: Precision = "auto"
    """of the forward pass; auto: bfloat16 on a GPU that has it, else float32"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to train; auto: a GPU when there is one"""
    workers: int | None = None
    """processes that load images; null: one a core, none for idx files"""
    checkpoint_minutes: float = 5.0
    """minutes between two checkpoints"""
    max_rejected: float = 0.05
    """largest share of broken images that is tolerated"""
    evaluate: Literal["train", "val", "test"] | None = None
    """--evaluate SPLIT: score the finished model in out on this split of data (its own, if data is not given)"""

    def __post_init__(self) -> None:
        Recipe.__post_init__(self)
        EncoderInit.__post_init__(self)
        self.check_shown()
        for key in ("accumulate", "evaluations", "patience", "checkpoint_minutes"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise ConfigError(key, value, "a number above 0")
        if self.workers is not None and self.workers < 0:
            raise ConfigError("workers", self.workers, "0 or more")
        if self.folds is not None and self.folds < 2:
            raise ConfigError("folds", self.folds, "2 or more, or null")
        if not 0 <= self.fold < (self.folds or 1):
            raise ConfigError("fold", self.fold, f"0 to {(self.folds or 1) - 1}, with folds={show(self.folds)}")
        self.check_passes(self.accumulate)

    def recipe_name(self) -> str:
        """The file in transfer/recipes/, without its suffix, whose numbers are the defaults of the keys."""
        return f"{self.task_name}_{self.init}" + ("_small" if self.recipe == "small" else "")

    @classmethod
    def resolve(
        cls,
        overrides: Sequence[str] | Mapping[str, object] = (),
        file: Path | None = None,
        *,
        recipe: Literal["paper", "small"] | None = None,
    ) -> Self:
        """The configuration: the given keys, over the recipe that they name or over the finished run that is evaluated.

        ``recipe``: the one that was chosen for recipe=auto, which needs a look at the images: ``auto_recipe.resolve_config``.
        """
        # any recipe that fits the given keys: the right one is known only when these are resolved
        likely = [name for key, name in cls.recipes().items() if _is_given(key, overrides, file)]
        usual = cls.recipe_defaults([f"{cls.task_name}_encoder", *likely][-1])
        first = resolve(cls, overrides, file, {**usual, "encoder": ANY, "data": ANY})
        if first.evaluate is not None:
            return resolve(cls, overrides, file, finished_config(Path(first.out)))
        if recipe is None and first.recipe == AUTO:
            raise ConfigError("recipe", AUTO, "paper or small here, where nothing looks at the images")
        first = replace(first, recipe=recipe or first.recipe)
        defaults = {**cls.recipe_defaults(first.recipe_name()), **first.family_defaults()}
        return replace(resolve(cls, overrides, file, defaults), recipe=first.recipe)

    def family_defaults(self) -> dict[str, Any]:
        """What the architecture that training starts from changes in the recipe; nothing for a plain ViT."""
        spec = self._timm_spec()
        if spec is None:
            return {}
        from .families import family_defaults

        return family_defaults(spec, self.recipe_name())

    def _timm_spec(self) -> TimmSpec | None:
        """The model of timm that training starts from; None for a plain ViT of ours."""
        source = self.encoder or (self.model if self.model.startswith(TIMM) else None)
        if source is None or source == ANY:
            return None
        from ..adapters.pretrained import timm_spec

        return timm_spec(source)

    def recipe_text(self) -> str:
        """The files that the recipe's numbers are from, as the plan shows them."""
        name = f"{self.recipe_folder().parent.name}/recipes/{self.recipe_name()}.yaml"
        spec = self._timm_spec()
        if spec is None:
            return name
        from .families import PLAIN, family_of

        family = family_of(spec)
        return name if family == PLAIN else f"{name}, changed by families/{family}.yaml"

    @classmethod
    def key_sections(cls) -> list[KeySection]:
        """Every key, those of the recipe with their value for each start, for the help."""
        usual, *others = [(chosen, cls.recipe_defaults(name)) for chosen, name in cls.recipes().items()]
        texts = {}
        for key, value in usual[1].items():
            different = [f"with {chosen} {show(own[key])}" for chosen, own in others if own.get(key, value) != value]
            texts[key] = ", ".join([f"default {show(value)}", *different])
        return [section(cls, texts)]

    @classmethod
    def recipe_folder(cls) -> Path:
        """Where the task's recipes are: transfer/recipes/, for another package's task recipes/ next to its configuration."""
        own = cls.__module__.startswith(f"{__package__}.")
        return RECIPES if own else Path(inspect.getfile(cls)).parent / "recipes"

    @classmethod
    def recipe_defaults(cls, name: str) -> dict[str, Any]:
        """The numbers of one of the task's recipes; raises ConfigError where there is none of this name."""
        return recipe_defaults(name, cls.recipe_folder())

    @classmethod
    def recipes(cls) -> dict[str, str]:
        """The recipes by the key that chooses them, the usual one first."""
        names = {f"init={init}": f"{cls.task_name}_{init}" for init in ("encoder", "supervised", "scratch")}
        return {key: name for key, name in names.items() if (cls.recipe_folder() / f"{name}.yaml").is_file()}


def _is_given(key_value: str, overrides: Sequence[str] | Mapping[str, object], file: Path | None) -> bool:
    key, _, value = key_value.partition("=")
    return raw_value(key, overrides, file) == value
