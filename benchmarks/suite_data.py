"""What the images of a suite are used for: the pool, labelled images, validation and test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..core.data.classification import ClassFolderLayout
from ..core.errors import ConfigError
from .public_data import PublicSet


@dataclass(frozen=True)
class SuiteData:
    """What the images of a suite are used for; the parts share no image, by content."""

    path: str | None = None
    """images with a class each: class folders, CSV or idx files; null: classification isn't compared"""
    layout: ClassFolderLayout = "auto"
    """class_folders: every folder of path is a class, whatever its name; auto: folders that may be something else are refused"""
    label_column: str | tuple[str, ...] | None = None
    """path's, a CSV's, column of labels, or [a,b,c]: its columns of 0 and 1, a class each; null: as the header says"""
    unlabelled: str | tuple[str, ...] | None = None
    """images to pretrain on, without labels: what maelift pretrain takes as data; null: a part of path's"""
    pool: int | float | None = None
    """images to pretrain on, a count or a share: of path's training split (null: 0.8), or of unlabelled (null: all)"""
    val: int | float | Literal["cross"] = 0.1
    """validation images where the data has none, a count or share; cross: 5-fold cross-validation of a seed's labelled images"""
    test: int | float = 0.1
    """test images where the data has no such split, a count or a share"""
    seed: int = 0
    """seeds the split"""
    group: str | None = None
    """what stays in one part, a patient, video or flight: a column of the CSV, a regular expression over the images' paths, or of
    GeoTIFF files tile:SIZE, squares of the map; for other tasks it is a key of their recipe"""
    near: Literal["auto", "full", "off"] = "auto"
    """leave near-duplicates of validation or test images out of the pool and of training; auto: of kinds
    that take up to about 5 minutes of one core"""
    broken: float = 0.05
    """largest share of broken images that is tolerated"""
    public: PublicSet | None = None
    """the public data set that the images are of: the report names arms whose weights have seen it; none: of none of these;
    null: by the names of path's last two folders"""

    def __post_init__(self) -> None:
        if self.path is None and self.unlabelled is None:
            raise ConfigError("path", None, "labelled images, or unlabelled ones to pretrain on")
        if self.cross and self.path is None:
            raise ConfigError("val", self.val, "a count or a share, without path")

    @property
    def cross(self) -> bool:
        """Whether settings are chosen by cross-validation within the labelled images of a seed."""
        return self.val == "cross"
