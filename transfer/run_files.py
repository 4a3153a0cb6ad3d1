"""The files in the folder of a transfer other than the model: splits, test scores, configuration."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.data.labeled_dataset import Images, Splits
from ..core.errors import DataError, MaeliftError
from ..core.files import TableWriter, atomic_path
from ..core.training.run_dir import read_run_config

ENCODER_FILE = "encoder.safetensors"
"""The fine-tuned encoder by itself."""
TEST_FILE = "test.json"
"""The scores of the test split, written last: a run that has it is finished."""

SPLITS_FILE = "splits.csv"
"""Which image is in which split."""


def split_of_run(parts: Mapping[str, Images], data: str, out: Path, split: str) -> Images:
    """A split as the run in ``out`` had it, of all images of ``data``: drawn splits are read from its splits.csv."""
    file = out / SPLITS_FILE
    if split in parts and split != "train":
        return parts[split]
    if "train" not in parts:
        raise DataError(f"data={data}: no training images; found only {', '.join(sorted(parts))}.")
    with file.open(newline="", encoding="utf-8", errors="surrogateescape") as table:
        rows = [row for row in csv.DictReader(table) if row["split"] not in parts]
    drawn = {row["path"]: row["split"] for row in rows}
    train = parts["train"]
    place = {train.images.name(index): index for index in range(len(train))}
    if gone := [name for name in drawn if name not in place]:
        raise DataError(
            f"data={data}: {len(gone)} images of the run's {drawn[gone[0]]} split aren't there, such as {gone[0]} "
            f"({file}). Bring them back, or give other images as data."
        )
    if split == "train":
        return train.subset([index for name, index in place.items() if name not in drawn])
    return train.subset(sorted(place[name] for name, drawn_split in drawn.items() if drawn_split == split))


def finished_config(out: Path) -> dict[str, Any]:
    """The configuration of the run in ``out``; raises MaeliftError when there is no finished one."""
    if not (out / TEST_FILE).is_file() or not (out / "config.yaml").is_file():
        raise MaeliftError(f"out={out}: no finished run. --evaluate scores the model of one; run it without first.")
    return read_run_config(out / "config.yaml")


def write_splits(splits: Splits[Any], path: Path) -> None:
    """Write which image is in which split, drawn or given: those of val and test should be in no pretraining."""
    table = io.StringIO()
    writer = TableWriter(table)
    writer.writerow(["path", "split"])
    for name, part in splits.items():
        writer.writerows([part.images.name(index), name] for index in range(len(part)))
    with atomic_path(path) as temporary:
        temporary.write_text(table.getvalue(), encoding="utf-8", errors="surrogateescape")
