"""The known formats of data sets, the task that reads each, and the evidence by which one was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import DataError

DatasetFormat = Literal["class_folders", "table", "shards", "idx", "coco", "yolo", "voc", "masks", "unlabelled"]


@dataclass(frozen=True)
class FormatInfo:
    """A format in words, the task that reads it, and what it is read for."""

    title: str
    task: str
    """the command is ``maelift transfer TASK``, but for pretrain"""
    holds: str

    @property
    def command(self) -> str:
        """The command that reads the format."""
        return f"maelift {self.task}" if self.task == PRETRAIN else f"maelift transfer {self.task}"


PRETRAIN = "pretrain"
"""What images without annotations are for."""
FORMATS: Mapping[DatasetFormat, FormatInfo] = {
    "class_folders": FormatInfo("class folders", "classify", "labels"),
    "table": FormatInfo("table", "classify", "labels"),
    "shards": FormatInfo("shards", "classify", "labels"),
    "idx": FormatInfo("idx", "classify", "labels"),
    "coco": FormatInfo("COCO", "detect", "boxes"),
    "yolo": FormatInfo("YOLO", "detect", "boxes"),
    "voc": FormatInfo("Pascal VOC", "detect", "boxes"),
    "masks": FormatInfo("masks", "segment", "masks"),
    "unlabelled": FormatInfo("unlabelled", PRETRAIN, "images without labels"),
}


@dataclass(frozen=True)
class FormatEvidence:
    """A format of a data set with its evidence; ``sure``: no other format is plausible."""

    format: DatasetFormat
    evidence: str
    """a sentence without full stop"""
    sure: bool = True
    advice: str = ""
    """what to do where it isn't sure, in sentences"""

    @property
    def task(self) -> str:
        """The task that reads the format."""
        return FORMATS[self.format].task


def ambiguous_format(data: str | Path, found: FormatEvidence) -> DataError:
    """The error for data whose format is ambiguous, with the key that decides."""
    end = "" if found.evidence.endswith("?") else "."
    return DataError(f"data={data}: {found.evidence}{end} {found.advice}")
