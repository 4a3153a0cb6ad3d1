"""Issues of annotated data: ``maelift data check`` lists all, reading raises at the first that no rule fixes."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from ..terminal import printable, quoted

logger = logging.getLogger("maelift")

AUTO_FIXES: Mapping[str, str] = {
    "box beyond its image": "clipped to the image",
    "box without area": "left out",
    "segmentation without area": "left out",
    "segmentations without area only": "the boxes are used, without masks",
    "object twice": "left out",
    "one box of two categories": "both are used",
    "area that can't be": "used as it is: AP by size depends on it; without 'area' it is computed",
    "file by another name": "read from there",
    "image that can't be opened": "left out",
    "label file without image": "left out",
    "images without label files": "used as background, without objects",
    "annotation file without image": "left out",
    "image without annotation file": "left out, as its objects are unknown",
    "annotations in no image set": "left out",
    "corners from 0": "read as coordinates between pixels",
    "difficult objects": "not trained on, and ignored by the evaluation",
    "another kind of annotations": "not read",
    "equal category names": "distinguished by their ids",
    "object without segmentation": "masks are neither trained on nor evaluated",
    "mask without image": "left out",
    "masks by another name": "used for them",
    "another folder of masks": "not read",
    "listed class in no mask": "it has no scores",
    "one class in all masks": "no other class can be learned",
}
"""Kinds of issues that don't stop a run, with how they are handled; all others raise DataError."""


@dataclass(frozen=True)
class DataIssue:
    """An issue of a data set: its kind, its file, the location in the file, and a description."""

    kind: str
    file: Path
    where: str
    what: str

    def text(self) -> str:
        """The issue in one line."""
        return f"{self.file}: {self.where}: {self.what}" if self.where else f"{self.file}: {self.what}"


def raise_on_errors(issues: Sequence[DataIssue], data: str | Path) -> None:
    """Raise DataError with the first issue that no rule fixes; log the counts of those that are fixed."""
    serious = [issue for issue in issues if issue.kind not in AUTO_FIXES]
    if serious:
        others = f" There are {len(serious) - 1:,} more issues." if len(serious) > 1 else ""
        raise DataError(f"{printable(serious[0].text())}.{others} 'maelift data check {quoted(data)}' lists all.")
    counts = Counter((issue.file, issue.kind) for issue in issues)
    for (file, kind), count in counts.items():
        logger.warning("%s: %d × %s (%s)", file, count, kind, AUTO_FIXES[kind])
