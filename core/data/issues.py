"""What is wrong in annotated data: told one by one by ``maelift data check``, refused at the first when data is read."""

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
    "box beyond its image": "cut to the image",
    "box without area": "left out",
    "segmentation without area": "left out",
    "segmentations without area only": "the boxes count, without masks",
    "object twice": "left out",
    "one box of two categories": "both stay",
    "area that can't be": "kept, and AP by size goes by it; without 'area' it is computed",
    "file by another name": "taken from there",
    "image that can't be opened": "left out",
    "label file without image": "left out",
    "images without label files": "taken for background: nothing to be found on them",
    "annotation file without image": "left out",
    "image without annotation file": "left out, as nothing says what is on it",
    "annotations in no image set": "left out",
    "corners from 0": "taken as lines between pixels",
    "difficult objects": "not trained on, and ignored by the evaluation",
    "another kind of annotations": "not read",
    "equal category names": "told apart by their ids",
    "object without segmentation": "masks are neither trained on nor evaluated",
    "mask without image": "left out",
    "masks by another name": "taken for theirs",
    "another folder of masks": "not read",
    "listed class in no mask": "it has no figures",
    "one class in all masks": "nothing can be learned from them but that",
}
"""The issues that don't stop a run, by kind, and what is done about them; all others are refused."""


@dataclass(frozen=True)
class DataIssue:
    """Something wrong in a data set: what kind, in which file, at what place in it, and what exactly."""

    kind: str
    file: Path
    where: str
    what: str

    def text(self) -> str:
        """The issue in a line."""
        return f"{self.file}: {self.where}: {self.what}" if self.where else f"{self.file}: {self.what}"


def raise_on_errors(issues: Sequence[DataIssue], data: str | Path) -> None:
    """Raise DataError with the first issue that no rule mends; warn of those that are mended, with their counts."""
    serious = [issue for issue in issues if issue.kind not in AUTO_FIXES]
    if serious:
        others = f" {len(serious) - 1:,} more issues are there." if len(serious) > 1 else ""
        raise DataError(
            f"{printable(serious[0].text())}.{others} 'maelift data check {quoted(data)}' lists what is wrong."
        )
    counts = Counter((issue.file, issue.kind) for issue in issues)
    for (file, kind), count in counts.items():
        logger.warning("%s: %d × %s (%s)", file, count, kind, AUTO_FIXES[kind])
