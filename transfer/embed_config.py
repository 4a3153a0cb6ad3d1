"""The keys of ``maelift embed``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..core.compute_types import Precision
from ..core.data.classification import ClassFolderLayout, LabelKeys
from ..core.data.composite import PictureKeys
from ..core.data.pixel_format import background_colour
from ..core.data.reading_keys import ReadingKeys
from ..core.data.slices import Slices
from ..core.errors import ConfigError
from ..core.models.pooling import Pooling

FORMATS = (".parquet", ".npz", ".csv")
"""Suffixes of files of features."""


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(ReadingKeys, PictureKeys):
    """Features of images from an encoder: a file with a vector an image, and a page that shows them."""

    encoder: str
    """encoder file, weights of the reference MAE, timm or transformers, timm:NAME or hf-hub:NAME, timm:NAME@FILE, or
    efficientnet-lite0 (docs/baselines.md)"""
    images: str | tuple[str, ...]
    """image, folder of images (nested or flat), list of paths (.txt, .csv), tar shards, Parquet, idx or .npy file; several as
    [ONE,TWO]; with labels=true one labelled data set, as maelift transfer classify reads it"""
    out: str = "features.parquet"
    """file of features: .parquet (needs pyarrow), .npz or .csv"""
    labels: bool = False
    """also read classes, from class folders, a CSV, idx files or shards; all splits of the data are taken, and named"""
    label_column: str | tuple[str, ...] | None = None
    """with labels: the table's column of labels, or its columns of 0 and 1; null: found by its name"""
    layout: ClassFolderLayout = "auto"
    """with labels: class_folders where every folder is a class; auto: refused where folders may mean something else"""
    multi_label: bool | None = None
    """with labels: whether images have any number of classes each; null: as the data has it"""
    features: Pooling | None = None
    """mean of the patch tokens, class_token, both side by side, or head: what the classifier of a model of timm gets; null: mean,
    or head of a model of timm"""
    neighbours: int = 0
    """nearest other images of each image, by the cosine of their features, exact; 0: none"""
    page: bool = True
    """also write a page beside out, NAME.html: maps of the images, nearest neighbours, patch tokens, attention"""
    image_size: int | tuple[int, int] | None = None
    """pixels, one side or [height,width]; null: the encoder's"""
    background: str | None = None
    """colour that transparent pixels are composited on: white, black, '#rrggbb', or drop; null: the encoder's, else white"""
    batch_size: int = 64
    """images at a time"""
    precision: Precision = "auto"
    """of the computation; auto: bfloat16 on a GPU that has it, else float32"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to run; auto: a GPU when there is one"""
    workers: int | None = None
    """processes that open images; null: as many as the images need"""
    seed: int = 0
    """seeds the draw of the images that the page shows, and t-SNE"""

    def __post_init__(self) -> None:
        self.check_reading()
        self.check_shown()
        if self.background is not None:
            background_colour(self.background)
        if Path(self.out).suffix.lower() not in FORMATS:
            raise ConfigError("out", self.out, f"a file name that ends with {', '.join(FORMATS)}")
        for key, least in (("batch_size", 1), ("neighbours", 0), ("workers", 0)):
            value = getattr(self, key)
            if value is not None and value < least:
                raise ConfigError(key, value, f"{least} or more")
        if self.labels and not isinstance(self.images, str):
            raise ConfigError("images", list(self.images), "a single data set with labels=true")
        if self.shown is not None and not self.page:
            raise ConfigError("shown", self.shown, "null with page=false")
        for key in ("label_column", "multi_label"):
            if getattr(self, key) is not None and not self.labels:
                raise ConfigError(key, getattr(self, key), "null without labels=true")

    @property
    def source(self) -> str:
        """The images' source, in words."""
        return self.images if isinstance(self.images, str) else ", ".join(self.images)

    def label_keys(self, slices: Slices) -> LabelKeys:
        """How labels are read."""
        return LabelKeys(self.multi_label, self.layout, self.label_column, None, slices)
