"""Annotations of any layout as COCO's lists, so that one set of rules checks all boxes; collects their issues."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors import DataError
from ..files import read_regular
from ..progress import progress_logger
from .box_conventions import ConventionIssue
from .decode import upright_size
from .issues import DataIssue

MAX_TEXT_BYTES = 2**24
"""Largest annotation file of one image, in bytes."""


@dataclass(frozen=True)
class CocoContent:
    """A split as lists of COCO JSON, boxes in pixels; ids of annotations count from 1.

    ``file`` is the file or folder of the annotations, ``locations`` the location of each annotation in it, for messages;
    image files are below ``root``.
    """

    file: Path
    root: Path
    images: Sequence[Mapping[str, Any]]
    annotations: Sequence[Mapping[str, Any]]
    categories: Sequence[Mapping[str, Any]]
    locations: Mapping[int, str] = field(default_factory=dict)
    issues: tuple[DataIssue, ...] = ()


def image_sizes(paths: Sequence[Path], what: str) -> list[tuple[int, int] | str]:
    """(height, width) of each image, upright, from its header; or the reason why it can't be read."""

    def size(path: Path) -> tuple[int, int] | str:
        try:
            return upright_size(path)
        except DataError as error:
            return str(error).removeprefix(f"{path}: ")

    report, found = progress_logger(f"reading the sizes of the images of {what}"), []
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for one in pool.map(size, paths):
            found.append(one)
            report(len(found), len(paths))
    return found


def read_text(path: Path) -> str:
    """The text of a small file in UTF-8; raises DataError."""
    try:
        return read_regular(path, MAX_TEXT_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not text in UTF-8 (byte {error.start}). Save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: can't be read ({(error.strerror or str(error)).lower()})") from error


def relative_posix_path(path: Path, root: Path) -> str:
    """A path relative to the root with forward slashes, as in COCO's file_name."""
    return Path(os.path.relpath(path, root)).as_posix()


CocoIssueKind = Literal[
    ConventionIssue,
    "broken entry",
    "duplicate image id",
    "duplicate image file",
    "duplicate annotation id",
    "duplicate category id",
    "missing file",
    "unknown image id",
    "unknown category id",
    "broken box",
    "broken segmentation",
    "other categories than train",
    "box beyond its image",
    "box without area",
    "segmentation without area",
    "segmentations without area only",
    "equal category names",
    "object without segmentation",
    "object twice",
    "one box of two categories",
    "area that can't be",
    "file by another name",
]


@dataclass
class IssueCollector:
    """Collects the issues of an annotation file."""

    file: Path
    locations: Mapping[int, str] = field(default_factory=dict)
    """the location of each annotation by its id, where the file isn't JSON"""

    def __post_init__(self) -> None:
        self.found: list[DataIssue] = []

    def location(self, id: int) -> str:
        """Where an annotation is in the file."""
        return self.locations.get(id, f"annotation {id}")

    def add(self, kind: CocoIssueKind, where: str, what: str) -> None:
        """Add an issue of the file."""
        self.found.append(DataIssue(kind, self.file, where, what))


@dataclass(frozen=True)
class CocoImage:
    """An image of the JSON; ``size`` is (height, width)."""

    id: int
    name: str
    size: tuple[int, int]


def as_integer(value: object) -> int | None:
    """An integer that doubles can represent, 3 or 3.0; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**53:
        return None
    return int(value) if value == int(value) else None


def is_text(value: object) -> bool:
    """Whether a value is text that UTF-8 can encode: "\\ud800" can't be."""
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_pixel_number(value: object) -> bool:
    """Whether a value is a finite number of a magnitude that pixels can have."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15


def short_text(value: object) -> str:
    """A value as JSON of at most 60 characters, for messages."""
    try:
        text = json.dumps(value, default=str, ensure_ascii=False)
    except (ValueError, RecursionError):  # a number of 5,000 digits, lists in lists without end
        return f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."
