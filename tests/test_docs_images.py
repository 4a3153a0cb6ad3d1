"""The pages on images of many channels, done as they stand in a folder as a reader might have it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from maelift.core.models.encoder import Encoder
from maelift.core.models.encoder_file import Provenance, read_encoder, save_encoder
from maelift.core.models.encoder_spec import preset_spec
from maelift.tests.support import ROOT, run_page

BANDS = ("light", "slope", "depth", "infrared", "thermal")
SHORTER = {"maelift pretrain data": "image_size=32 epochs=1 batch_size=8 evaluations=1"}

pytestmark = pytest.mark.slow


def write_tile(path: Path, seed: int, bright: int) -> None:
    """A GeoTIFF tile with a strip without data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(1, 5000, (40, 48, 5)).astype(np.uint16)
    values[10:30, 10:30, bright] += 4000
    values[:, :6] = 0
    items = "".join(
        f'<Item name="DESCRIPTION" sample="{n}" role="description">{name}</Item>' for n, name in enumerate(BANDS)
    )
    tags = [(42112, 2, 0, f"<GDALMetadata>{items}</GDALMetadata>", True), (42113, 2, 0, "0", True)]
    tifffile.imwrite(
        path,
        values,
        photometric="minisblack",
        planarconfig="contig",
        compression="deflate",
        metadata=None,
        extratags=tags,
    )


def test_the_page_on_satellite_tiles_does_what_it_says(tmp_path: Path) -> None:
    for number in range(12):
        write_tile(tmp_path / "tiles" / f"{number:02d}.tif", number, number % 2)
    for number in range(24):
        write_tile(
            tmp_path / "labelled" / ("field", "town")[number % 2] / f"{number:02d}.tif", 100 + number, number % 2
        )
    for name, side in (("B02", 40), ("B05", 20)):
        values = np.random.default_rng(side).integers(1, 5000, (side, side)).astype(np.uint16)
        (tmp_path / "scenes").mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / "scenes" / f"here_{name}.tif", values)
    spec = preset_spec("vit_micro", image_size=32)
    save_encoder(Encoder(spec), tmp_path / "colour.safetensors", Provenance("test"))
    shorter = {**SHORTER, "maelift transfer classify encoder": "steps=4 batch_size=8 evaluations=1"}
    printed = run_page(ROOT / "docs" / "satellite.md", tmp_path, shorter=shorter)
    assert "5" in printed and len((tmp_path / "classes.csv").read_text().splitlines()) == 13
    encoder = read_encoder(tmp_path / "runs" / "tiles" / "mae" / "encoder.safetensors").encoder
    assert encoder.preprocessing.channel_names == BANDS and encoder.preprocessing.nodata == 0
    three = read_encoder(tmp_path / "runs" / "tiles" / "three" / "encoder.safetensors").encoder
    assert three.preprocessing.channel_names == ("infrared", "slope", "light") and three.spec.channels == 3
    assert tifffile.imread(tmp_path / "stacked" / "here.tif").shape == (40, 40, 2)


def test_the_page_on_microscopy_does_what_it_says(tmp_path: Path) -> None:
    for number in range(36):
        path = tmp_path / ("fields" if number < 12 else f"labelled/{('control', 'treated')[number % 2]}")
        path.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(number).integers(0, 2000, (3, 36, 40)).astype(np.uint16)
        values[number % 2, 8:24, 8:24] += 2000
        names = {"axes": "CYX", "Channel": {"Name": ["DAPI", "GFP", "Cy5"]}}
        tifffile.imwrite(path / f"{number:02d}.ome.tif", values, photometric="minisblack", metadata=names)
    shorter = {**SHORTER, "maelift transfer classify encoder": "steps=4 batch_size=8 evaluations=1"}
    printed = run_page(ROOT / "docs" / "microscopy.md", tmp_path, shorter=shorter)
    by_array, by_file = printed.strip().splitlines()[-1].split()
    assert by_array == by_file and by_file in ("control", "treated")
    encoder = read_encoder(tmp_path / "runs" / "fields" / "mae" / "encoder.safetensors").encoder
    assert encoder.preprocessing.channel_names == ("DAPI", "GFP", "Cy5")
