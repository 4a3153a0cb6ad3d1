"""What folders and files of data sets are usually called: splits, images, annotations."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from ..errors import DataError
from .decode import SUFFIXES

SPLIT_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing", "tst"),
}
"""What folders, files and table cells that hold a split are called, in lower case."""


def _words(text: str) -> list[str]:
    return text.split()


IMAGE_FOLDERS = frozenset(
    _words("images image imgs img jpegimages img_dir photos pictures rgb input inputs leftimg8bit frames raw ")
)
"""Names, in lower case, of folders of images that say nothing about a class."""

ANNOTATION_FOLDERS = frozenset(
    _words(
        "masks mask labels label annotations annotation anns ann ann_dir gt gts gtfine groundtruth "
        "ground_truth segmentation segmentations segmentationclass segmentation_masks seg segs targets target "
        "semantic "
    )
)
"""Names, in lower case, of folders of what belongs to the images beside them."""

UNSORTED_FOLDERS = frozenset(
    _words(
        "images image imgs img jpegimages photos pictures dcim screenshots downloads unlabelled unlabeled "
        "unsorted thumbnails thumbs "
    )
)
"""Names, in lower case, of folders that are no class even beside folders that are."""

YOLO_FILES = ("data.yaml", "data.yml", "dataset.yaml")

VOC_FOLDERS = ("VOC20*", "VOCdevkit", "VOCdevkit/VOC20*")
"""Where the data sets of the challenge lie when they are unpacked."""


def split_of(name: str) -> str | None:
    """The split that a name stands for, in any case: "Train", "valid", "dev"."""
    lower = name.strip().lower()
    return next((split for split, names in SPLIT_NAMES.items() if lower in names), None)


def split_folders(data: Path) -> dict[str, Path]:
    """The folders below ``data`` that are named as splits are; raises DataError for two of one split."""
    found: dict[str, Path] = {}
    for path in subfolders(data).values():
        split = split_of(path.name)
        if split is None:
            continue
        if split in found:
            raise DataError(
                f"data={data}: {found[split].name}/ and {path.name}/ are both the {split} split. Expected one folder a "
                "split: join them, or move one elsewhere."
            )
        found[split] = path
    return found


def subfolders(folder: Path) -> dict[str, Path]:
    """The folders in a folder that aren't hidden, by their names in lower case."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: can't be read ({(error.strerror or '').lower()}).") from error
    # of two that differ in case only, both must stay: the second under its own name
    found: dict[str, Path] = {}
    for name in names:
        found[name if name.lower() in found else name.lower()] = folder / name
    return found


def is_image_name(name: str) -> bool:
    """Whether a path has the suffix of an image file."""
    return PurePosixPath(name.replace("\\", "/")).suffix.lower() in SUFFIXES
