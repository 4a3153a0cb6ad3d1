"""Annotations of another layout in COCO's terms, so that one set of rules reads and checks all boxes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..files import read_regular
from ..progress import progress_logger
from .decode import upright_size
from .issues import DataIssue

LARGEST_TEXT = 2**24
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
    faults: tuple[DataIssue, ...] = ()


def sizes_of(paths: Sequence[Path], what: str) -> list[tuple[int, int] | str]:
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
        return read_regular(path, LARGEST_TEXT).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text in UTF-8 (byte {error.start}). Save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: can't be read ({(error.strerror or str(error)).lower()})") from error


def below(path: Path, root: Path) -> str:
    """A path below the root, as COCO's file_name has it."""
    return Path(os.path.relpath(path, root)).as_posix()
