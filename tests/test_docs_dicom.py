"""The page on DICOM and NIfTI, done as it stands on files that pydicom and nibabel wrote."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from maelift.core.config_keys import describe
from maelift.core.data.reading_keys import PartKeys
from maelift.tests.core.data.readers.test_dicom import dicom
from maelift.tests.core.data.readers.test_nifti import affine, save
from maelift.tests.support import ROOT, SMALL_DECODER, run_page

PAGE = ROOT / "docs" / "dicom.md"
SHORTER = {
    "maelift pretrain data=ct": SMALL_DECODER,
    "maelift pretrain data=mr": SMALL_DECODER,
    "maelift transfer classify encoder=runs/ct": "steps=4 evaluations=1",
    "maelift transfer classify encoder=runs/mr": "steps=4 evaluations=1",
}


def write_files(folder: Path) -> None:
    """24 CT files and 12 volumes of two classes, whose bright part is on one side or the other."""
    draws = np.random.default_rng(0)
    for number in range(24):
        side = number % 2
        values = draws.integers(900, 1100, (36, 36)).astype(np.uint16)
        values[:, 18 * side : 18 * (side + 1)] += 600
        file = folder / "ct" / ("left", "right")[side] / f"{number:02d}.dcm"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(dicom(values, BitsStored=12, RescaleIntercept=-1024, RescaleSlope=1))
    for number in range(12):
        side = number % 2
        values = draws.integers(0, 300, (36, 36, 6)).astype(np.int16)
        values[18 * side : 18 * (side + 1)] += 600
        values[:, :, 5] = 0
        save(folder / "mr" / ("left", "right")[side] / f"{number:02d}.nii.gz", values, affine((1, 1, 3)))


@pytest.mark.slow
def test_the_page_s_commands_run(tmp_path: Path) -> None:
    write_files(tmp_path)
    said = run_page(PAGE, tmp_path, shorter=SHORTER)
    assert "-124 to" not in said and "in the window" in said
    rows = {name: list(csv.DictReader((tmp_path / name).open(newline=""))) for name in ("ct.csv", "mr.csv")}
    assert len(rows["ct.csv"]) == 24 and len(rows["mr.csv"]) == 12 * 3
    assert rows["mr.csv"][0]["path"] == "left/00.nii.gz[1]"
    assert (tmp_path / "shards" / "000000.tar").exists()


def test_every_key_of_parts_is_on_the_page() -> None:
    text = PAGE.read_text()
    assert not [entry.key for entry in describe(PartKeys) if f"`{entry.key}`" not in text]
