"""The contract of a task: what a new task writes, and the configuration that all tasks share."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from typing_extensions import Self

from ..adapters.pretrained import timm_spec
from ..adapters.published import TIMM
from ..core.config import raw_value, resolve
from ..core.config_keys import KeySection, section
from ..core.data.composite import Display, PictureKeys, Shown
from ..core.data.labeled_dataset import Images, Splits
from ..core.data.missing_splits import SplitManifest, audited_splits, draw_missing_splits
from ..core.data.pixel_format import PixelFormat
from ..core.data.sampling import Sample, Uniforms
from ..core.device import Precision
from ..core.distributed import Ranks
from ..core.errors import ConfigError, show
from ..core.models.backbone import Backbone
from ..core.models.encoder_file import Provenance
from ..core.models.timm_spec import TimmSpec
from ..core.training.loader import Batch
from ..core.training.optimizers import NO_DECAY, parameter_groups
from .init_weights import EncoderInit
from .metrics import Scores
from .recipe import RECIPES, Recipe, recipe_defaults
from .run_files import finished_config
from .visualize import ExampleImage


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
    recipe: Literal["paper", "small"] = "paper"
    """paper: as published for the start, for large images and many labels; small: for small images and few labels"""
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
    def resolve(cls, overrides: Sequence[str] | Mapping[str, object] = (), file: Path | None = None) -> Self:
        """The configuration: the given keys, over the recipe that they name or over the finished run that is evaluated."""
        # any recipe that fits the given keys: the right one is known only when these are resolved
        likely = [name for key, name in cls.recipes().items() if _is_given(key, overrides, file)]
        usual = cls.recipe_defaults([f"{cls.task_name}_encoder", *likely][-1])
        first = resolve(cls, overrides, file, {**usual, "encoder": "any", "data": "any"})
        if first.evaluate is not None:
            return resolve(cls, overrides, file, finished_config(Path(first.out)))
        return resolve(cls, overrides, file, {**cls.recipe_defaults(first.recipe_name()), **first.family_defaults()})

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
        return None if source is None else timm_spec(source)

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


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Within it no parameter of a model asks for a gradient."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in asking:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


Config = TypeVar("Config", bound=Recipe)


class Task(ABC, Generic[Config, Images]):
    """What is particular to a task. A new task is a folder with such a class and a row in tasks.py.

    ``encoder`` holds the weights of the start, at the image size of the run; ``splits`` the images that are trained on,
    validated on and tested on.
    """

    name: ClassVar[str]
    """the word after maelift transfer"""
    best_metric: ClassVar[str]
    """the validation metric whose best weights are saved, "val/top1", say; higher is better"""
    draws: ClassVar[int]
    """uniform draws in [0, 1) that a training sample takes: all of its randomness"""
    encoder_prefix: ClassVar[str] = "encoder."
    """prefix of the encoder's parameters in the model, before timm's names"""
    manifest: str = ""
    """hash of what the images of ``splits`` contain, where a run has scanned them"""
    shown: Shown = None
    """channels that pictures of examples show, as the key of that name says"""

    def __init__(self, config: Config, encoder: Backbone, splits: Splits[Images], ranks: Ranks) -> None:
        self.config, self.encoder, self.splits, self.ranks = config, encoder, splits, ranks

    @classmethod
    @abstractmethod
    def read_parts(cls, config: Any) -> Mapping[str, Images]:
        """The splits of annotated images that ``config.data`` has, by name; data without splits is "train"."""

    @classmethod
    def read(cls, config: Any) -> Splits[Images]:
        """Three splits: those that the data has, and the missing ones drawn from the training images, none of them opened."""
        keys = {"group": config.group, "folds": config.folds, "fold": config.fold}
        parts = cls.read_parts(config)
        return draw_missing_splits(parts, config.data, config.val, config.test, config.split_seed, **keys)

    @classmethod
    def read_audited(cls, config: Any, form: PixelFormat | None = None) -> tuple[Splits[Images], SplitManifest]:
        """The same of images that are opened first: without the broken ones, and with equal pictures in one split.

        ``form``: what is made of the values in their files; see ``audit.audit``.
        """
        keys = {"group": config.group, "folds": config.folds, "fold": config.fold, "form": form}
        parts, rejected = cls.read_parts(config), config.max_rejected
        return audited_splits(parts, config.data, config.val, config.test, config.split_seed, rejected, **keys)

    @abstractmethod
    def build_model(self) -> nn.Module:
        """The encoder under a new head. What the head draws must not depend on the encoder: pairs share their heads."""

    @abstractmethod
    def sample(self, index: int, draws: Uniforms) -> Sample:
        """Training image number ``index``, augmented as ``draws`` (draws,) say, with its target."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss over a micro-batch. ``model`` may be wrapped: call it itself, not its parts."""

    @abstractmethod
    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """Scores on the validation images, ``best_metric`` among them."""

    @abstractmethod
    def score(self, model: nn.Module, images: Images, split: str) -> Scores:
        """All scores of a trained model on a split."""

    def score_items(self, model: nn.Module, images: Images, split: str) -> tuple[Scores, NDArray[np.float64] | None]:
        """``score``, and each item's contribution (items,) to its first metric, which is their mean; None where it isn't known.

        An item is an image or a group of images: what of a test set was drawn by itself.
        """
        return self.score(model, images, split), None

    @abstractmethod
    def save(self, model: nn.Module, path: Path, provenance: Provenance) -> None:
        """Write the model file."""

    @abstractmethod
    def examples(self, model: nn.Module, images: Images, split: str) -> list[ExampleImage]:
        """Images with some right and some wrong predictions, for the summary."""

    def save_encoder(self, model: nn.Module, path: Path, provenance: Provenance) -> None:
        """Write the fine-tuned encoder by itself, where the model has one that other tools can use; nothing by default."""

    @property
    def display(self) -> Display:
        """How images are shown in pictures of examples."""
        return Display(self.encoder.preprocessing.channel_names, self.shown)

    def metric(self) -> str:
        """``best_metric``, or another where the data want it."""
        return self.best_metric

    @torch.no_grad()
    def flops(self, model: nn.Module) -> float:
        """Floating-point operations of the model on one image of the encoder's size, forward: counted on an empty one."""
        with frozen(model), FlopCounterMode(display=False) as counter:  # the counter follows gradients
            model.eval()(torch.zeros(1, self.encoder.spec.channels, *self.encoder.spec.image_size))
        return float(counter.get_total_flops())

    def steps(self) -> int:
        """Steps of the optimiser; 0: the model is finished when it has begun."""
        return self.config.total_steps(len(self.splits.train))

    def images_seen(self) -> float:
        """Images that go through the encoder forward and back; those that go forward only count a third."""
        return self.steps() * self.config.batch_size

    def loader_workers(self, wanted: int | None) -> int:
        """Processes that load training samples; ``wanted`` None: as many as the images take."""
        return self.splits.train.images.default_workers() if wanted is None else wanted

    def prepare(self, model: nn.Module) -> None:
        """What comes before the first step, on every process."""

    def final_model(self, model: nn.Module) -> nn.Module:
        """The trained model as it is scored and saved."""
        return model

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW, or SGD, with layer-wise learning-rate decay."""
        groups = parameter_groups(
            model.named_parameters(),
            weight_decay=self.config.weight_decay,
            depth=self.encoder.num_layers - 1,
            layer_decay=self.config.layer_decay,
            prefix=self.encoder_prefix,
            no_decay=(*NO_DECAY, *self.encoder.no_decay),
            layer_of=self.encoder.layer_of,
        )
        config = self.config
        if config.optimizer == "sgd":
            momentum = config.betas[0]
            return torch.optim.SGD(groups, lr=config.peak_lr, momentum=momentum, nesterov=momentum > 0)
        return torch.optim.AdamW(groups, lr=config.peak_lr, betas=config.betas, fused=True)
