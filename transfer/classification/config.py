"""The keys of ``maelift transfer classify``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from ...core.data.classification import ClassFolderLayout
from ...core.data.transforms import check_turn
from ...core.errors import ConfigError
from ...core.models.pooling import Pooling
from ..config import TransferConfig
from ..recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class ClassifyRecipe(Recipe):
    """How a classifier is trained; the numbers for each init are in transfer/recipes/."""

    label_smoothing: float
    """share of the target spread over all classes"""
    mixup: float
    """mixup's alpha; 0: off"""
    cutmix: float
    """cutmix's alpha; 0: off"""
    random_erasing: float
    """probability that a rectangle of an image is filled with noise"""
    crop_scale: tuple[float, float]
    """smallest and largest area of a training crop, as shares of the image"""
    flip: bool
    """mirror every second training image left to right, at random"""
    turn: bool = False
    """with flip, also turn training images by quarters at random: for those that have no up, such as taken from above"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("mixup", "cutmix"):
            if getattr(self, key) < 0:
                raise ConfigError(key, getattr(self, key), "0 or more")
        for key in ("label_smoothing", "random_erasing"):
            if not 0 <= getattr(self, key) < 1:
                raise ConfigError(key, getattr(self, key), "a share from 0 to below 1")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ConfigError("crop_scale", list(self.crop_scale), "two shares with 0 < smallest <= largest <= 1")
        check_turn(self.turn, self.flip)

    def check_passes(self, count: int) -> None:
        """Raise ConfigError when a step can't be split into ``count`` passes, over all processes and accumulations."""
        super().check_passes(count)
        if (self.mixup or self.cutmix) and self.batch_size // count % 2:
            expected = f"a multiple of {2 * count} (2 × processes × accumulate), as mixup and cutmix pair images"
            raise ConfigError("batch_size", self.batch_size, expected)


Method = Literal["full", "partial", "lora", "linear", "attentive", "knn"]

PROBES = ("linear", "attentive", "knn")
"""The methods that leave the encoder as it is, and compute its features once."""


LORA_TARGETS = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
"""The linear layers of a block that may get low-rank updates, by their short names."""


@dataclass(frozen=True)
class Lora:
    """Low-rank updates: ``W + alpha / rank * B A`` with A (rank, in), B (out, rank), B zero at first."""

    rank: int = 8
    """method=lora: rank of the updates"""
    alpha: float = 16.0
    """method=lora: the updates are scaled by alpha / rank"""
    dropout: float = 0.0
    """method=lora: probability that an input of an update is left out"""
    targets: tuple[str, ...] = ("qkv", "proj")
    """method=lora: layers of each block that are updated: some of qkv, proj, fc1, fc2"""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError("rank", self.rank, "a whole number of at least 1")
        if self.alpha <= 0:
            raise ConfigError("alpha", self.alpha, "a number above 0")
        if not 0 <= self.dropout < 1:
            raise ConfigError("dropout", self.dropout, "a share from 0 to below 1")
        strange = [name for name in self.targets if name not in LORA_TARGETS]
        if strange or not self.targets:
            raise ConfigError("targets", list(self.targets), f"some of {', '.join(LORA_TARGETS)}")


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(TransferConfig, ClassifyRecipe):
    """Fine-tune an encoder on labelled images, evaluate it by a probe, or train the same architecture from scratch.

    ``data`` are class folders (also train/ val/ test/ of them), a CSV, a folder of idx files, or tar shards. A CSV has the
    columns path,label[,split], for several labels an image with ``|`` or ``;`` between them, or path[,split] and a column of
    0 and 1 for each class. Shards (a folder of .tar, or shards/{000..009}.tar) hold KEY.jpg with KEY.cls or KEY.json.
    """

    task_name: ClassVar[str] = "classify"
    method: Method = "full"
    """what is trained: all, the last blocks, low-rank updates, or with a frozen encoder a linear, attentive or kNN probe"""
    multi_label: bool | None = None
    """images have any number of classes each; null: as the data says (a column a class, or several labels in a cell)"""
    layout: ClassFolderLayout = "auto"
    """class_folders: every folder is a class, whatever its name; auto: folders that may be something else are refused"""
    label_column: str | tuple[str, ...] | None = None
    """the CSV's column of labels, or [a,b,c]: its columns of 0 and 1, a class each; null: as the header says"""
    blocks: float = 1.0
    """method=partial: last blocks that are trained; 0.5: the last one's MLP; 0: the head alone"""
    lora: Lora = field(default_factory=Lora)
    features: Pooling = "mean"
    """method=linear or knn: mean of the patch tokens, class_token, both side by side, or of timm's models head: what their own
    classifier gets"""
    crops: int = 0
    """method=linear or attentive: random crops of each training image that features are computed of; 0: the image as evaluated"""
    cache: str | None = None
    """folder for the features, shared with other runs; null: features/ in out. It may be removed when the run has ended"""
    solver: Literal["lars", "lbfgs"] = "lars"
    """method=linear: lars as the paper has it, or lbfgs: logistic regression, which needs no learning rate"""
    l2: float | None = None
    """solver=lbfgs: factor of half the squared weights in the loss (a sum); null: the best on validation from 0.1 to 1000"""
    probe_heads: int | None = None
    """method=attentive: attention heads of the probe; null: the encoder's"""
    neighbours: int = 20
    """method=knn: labelled images that vote"""
    temperature: float | None = 0.07
    """method=knn: votes weigh exp(cosine / temperature); null: all the same"""

    def __post_init__(self) -> None:
        ClassifyRecipe.__post_init__(self)
        TransferConfig.__post_init__(self)
        for key in ("l2", "probe_heads", "neighbours", "temperature"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise ConfigError(key, value, "a number above 0")
        if self.crops < 0 or (self.crops and self.method not in ("linear", "attentive")):
            raise ConfigError("crops", self.crops, "0 or more, with method=linear or attentive")
        if self.blocks < 0 or self.blocks not in (0.5, int(self.blocks)):
            raise ConfigError("blocks", self.blocks, "0, 0.5 or a whole number")
        for key in ("mixup", "cutmix", "random_erasing", "drop_path") if self.method in PROBES else ():
            if getattr(self, key):
                raise ConfigError(
                    key, getattr(self, key), f"0 with method={self.method}, whose features are computed once"
                )

    def recipe_name(self) -> str:
        """The start's recipe for end-to-end fine-tuning, else the method's own."""
        if self.method == "full":
            return super().recipe_name()
        return f"classify_{self.method}" + ("_small" if self.recipe == "small" else "")

    @classmethod
    def recipes(cls) -> dict[str, str]:
        """The recipes by the keys that choose them."""
        methods = ("partial", "lora", *PROBES)
        return {**super().recipes(), **{f"method={method}": f"classify_{method}" for method in methods}}
