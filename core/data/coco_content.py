"""Annotations of another layout in COCO's terms, so that one set of rules reads and checks all boxes."""

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
"""Bytes of an annotation file of one image; larger ones are something else."""


@dataclass(frozen=True)
class CocoContent:
    """A split: lists as COCO JSON has them, boxes in pixels; ids of annotations count from 1.

    ``file`` is the file or folder of the annotations and ``places`` says where in it each annotation stands, for messages;
    image files lie below ``root``.
    """

    file: Path
    root: Path
    images: Sequence[Mapping[str, Any]]
    annotations: Sequence[Mapping[str, Any]]
    categories: Sequence[Mapping[str, Any]]
    places: Mapping[int, str] = field(default_factory=dict)
    issues: tuple[DataIssue, ...] = ()


def image_sizes(paths: Sequence[Path], what: str) -> list[tuple[int, int] | str]:
    """(height, width) of each image, upright, from its header; or the reason why it can't be read."""

    def size(path: Path) -> tuple[int, int] | str:
        try:
            return upright_size(path)
        except DataError as error:
            return str(error).removeprefix(f"{path}: ")

    tell, found = progress_logger(f"reading the sizes of the images of {what}"), []
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for one in pool.map(size, paths):
            found.append(one)
            tell(len(found), len(paths))
    return found


def read_text(path: Path) -> str:
    """A small text in UTF-8; raises DataError."""
    try:
        return read_regular(path, MAX_TEXT_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text in UTF-8 (byte {error.start}). Save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: can't be read ({(error.strerror or str(error)).lower()})") from error


def relative_posix_path(path: Path, root: Path) -> str:
    """A path below the root, as COCO's file_name has it."""
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
    file: Path
    places: Mapping[int, str] = field(default_factory=dict)
    """where annotations stand, by their ids, if that isn't JSON"""

    def __post_init__(self) -> None:
        self.found: list[DataIssue] = []

    def place(self, id: int) -> str:
        """Where an annotation stands."""
        return self.places.get(id, f"annotation {id}")

    def add(self, kind: CocoIssueKind, where: str, what: str) -> None:
        self.found.append(DataIssue(kind, self.file, where, what))


@dataclass(frozen=True)
class CocoImage:
    """An image of the JSON."""

    id: int
    name: str
    size: tuple[int, int]


def as_integer(value: object) -> int | None:
    """A whole number that other tools can hold too, 3 or 3.0; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**53:
        return None
    return int(value) if value == int(value) else None


def is_text(value: object) -> bool:
    """Whether a value is a text that can be written to a file: "\\ud800" can't."""
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_pixel_number(value: object) -> bool:
    """Whether a value is a number of a size that pixels can have; NaN and infinity aren't."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15


def short_text(value: object) -> str:
    try:
        text = json.dumps(value, default=str, ensure_ascii=False)
    except (ValueError, RecursionError):  # a number of 5,000 digits, lists in lists without end
        return f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."
