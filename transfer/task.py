"""The contract of a task: what a new task writes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..core.data.composite import Display, Shown
from ..core.data.labeled_dataset import Images, Splits
from ..core.data.missing_splits import SplitManifest, audited_splits, draw_missing_splits
from ..core.data.pixel_format import PixelFormat
from ..core.data.sampling import Sample, Uniforms
from ..core.distributed import Ranks
from ..core.models.backbone import Backbone
from ..core.models.encoder_file import Provenance
from ..core.training.batch_sheet import sample_levels, shown_ends
from ..core.training.loader import Batch
from ..core.training.optimizers import NO_DECAY, parameter_groups
from .config import TransferConfig
from .metrics import Scores
from .recipe import Recipe
from .visualize import ExampleImage

__all__ = ["Config", "Task", "TransferConfig", "frozen"]


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

    def draw_sample(self, batch: Batch, place: int) -> Image.Image | None:
        """A picture of a training sample with its target, for batch.png; None, by default, where there is none."""
        return None

    def sample_picture(self, batch: Batch, place: int, draw: Callable[[Image.Image], Image.Image]) -> Image.Image:
        """The pixels of a training sample as pictures of examples show them, with what ``draw`` adds."""
        values = sample_levels(batch.pixels[place], shown_ends(self.encoder.preprocessing))
        return self.display.with_tiles(draw(self.display.image(values)), values)

    def label_counts(self, images: Images) -> Mapping[str, Sequence[int]]:
        """How often a split has each class, in their order, by what is counted: "images" with the class, by default."""
        found = Counter(label for labels in images.strata for label in set(labels))
        return {"images": [found[number] for number in range(len(images.classes))]}

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
