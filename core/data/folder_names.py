"""Usual names of folders and files in data sets: splits, images, annotations."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ..errors import DataError
from .image_formats import SUFFIXES
from .unread import kind_of

SPLIT_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing", "tst"),
}
"""Names of splits in folders, files and table cells, in lower case."""


def _words(text: str) -> list[str]:
    return text.split()


IMAGE_FOLDERS = frozenset(
    _words("images image imgs img jpegimages img_dir photos pictures rgb input inputs leftimg8bit frames raw ")
)
"""Names of folders of images that aren't classes, in lower case."""

ANNOTATION_FOLDERS = frozenset(
    _words(
        "masks mask labels label annotations annotation anns ann ann_dir gt gts gtfine groundtruth "
        "ground_truth segmentation segmentations segmentationclass segmentation_masks seg segs targets target "
        "semantic "
    )
)
"""Names of folders of annotations, in lower case."""

UNSORTED_FOLDERS = frozenset(
    _words(
        "images image imgs img jpegimages photos pictures dcim screenshots downloads unlabelled unlabeled "
        "unsorted thumbnails thumbs "
    )
)
"""Names of folders that aren't classes even among folders that are, in lower case."""

YOLO_FILES = ("data.yaml", "data.yml", "dataset.yaml")
"""Names of YOLO's file of folders and classes."""

VOC_FOLDERS = ("VOC20*", "VOCdevkit", "VOCdevkit/VOC20*")
"""Patterns of the folders of the Pascal VOC challenge when unpacked."""


def split_of(name: str) -> str | None:
    """The split of a name, in any case: "Train", "valid", "dev"; None for other names."""
    lower = name.strip().lower()
    return next((split for split, names in SPLIT_NAMES.items() if lower in names), None)


def split_folders(data: Path) -> dict[str, Path]:
    """The folders in ``data`` that are named after splits; raises DataError for two of one split."""
    found: dict[str, Path] = {}
    for path in subfolders(data).values():
        split = split_of(path.name)
        if split is None:
            continue
        if split in found:
            raise DataError(
                f"data={data}: {found[split].name}/ and {path.name}/ are both the {split} split. Expected one folder for "
                "each split: merge them, or move one elsewhere."
            )
        found[split] = path
    return found


def subfolders(folder: Path) -> dict[str, Path]:
    """The folders in a folder, without hidden ones, by their names in lower case; raises DataError."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: can't be read ({(error.strerror or '').lower()}).") from error
    # Of two that differ only in case, the second is listed under its own name.
    found: dict[str, Path] = {}
    for name in names:
        found[name if name.lower() in found else name.lower()] = folder / name
    return found


def is_image_name(name: str) -> bool:
    """Whether a path has the suffix of an image file."""
    return kind_of(name.replace("\\", "/")) in SUFFIXES
