"""A suite of images of five bands and 16 bits: copies are found, weights of three bands fitted, composites shown."""

from __future__ import annotations

from pathlib import Path

import maelift
import numpy as np
import pytest
import tifffile
from maelift.benchmarks.execute import execute
from maelift.benchmarks.suite import BenchConfig
from maelift.benchmarks.suite_reading import SuiteReading
from maelift.core.data.pixel_format import PixelFormat
from maelift.core.models.encoder_file import load_encoder
from maelift.core.tools.fashion_scenes import FashionScenesConfig, fashion_scenes
from maelift.core.tools.scene_bands import NAMES
from maelift.tests.benchmarks.brightness import results
from maelift.tests.benchmarks.canned import use_this_process


def test_gray_and_colour_are_read_as_ever_and_others_by_their_keys() -> None:
    usual = PixelFormat(plain=True, max_nodata=0.9)
    assert all(SuiteReading(channels=count).form == usual for count in (1, 3))
    assert all(SuiteReading(channels=count).plain_images for count in (1, 3))
    five = SuiteReading(channels=5, value_range=(0.0, 4095.0))
    assert five.form == PixelFormat(5, (0.0, 4095.0), plain=True, max_nodata=0.9) and not five.plain_images
    assert five.reading == {"channels": 5, "value_range": [0.0, 4095.0]}
    assert SuiteReading(channels=("nir", "red", "green")).form.bands == ("nir", "red", "green")


@pytest.mark.slow
def test_a_suite_of_five_bands_compares_encoders_of_five_and_of_three(
    fashion_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = {"train": 40, "val": 8, "test": 8, "pool": 60, "bands": 5, "bits": 16, "size": 48, "item_sizes": (14, 20)}
    fashion_scenes(FashionScenesConfig(out=str(tmp_path / "bands"), source=str(fashion_mnist), **scenes))  # type: ignore[arg-type]
    copied = tifffile.imread(tmp_path / "bands" / "images" / "test" / "00003.tif")
    brighter = (copied.astype(np.float64) * 0.9).astype(np.uint16)
    name = tmp_path / "bands" / "pool" / "copy.tif"
    with tifffile.TiffFile(tmp_path / "bands" / "pool" / "00000.tif") as file:
        tags = [(tag, 2, 0, file.pages[0].tags[tag].value, True) for tag in (42112, 42113)]
    tifffile.imwrite(name, brighter, photometric="minisblack", planarconfig="contig", metadata=None, extratags=tags)
    use_this_process(monkeypatch, execute)
    keys = {
        "data": {"unlabelled": str(tmp_path / "bands" / "pool"), "near": "full"},
        "image_size": 48,
        "shown": ["infrared", "light", "thermal"],
        "pretrain_seeds": [0],
        "tasks": {
            "segment": {"data": str(tmp_path / "bands"), "labels": [8], "seeds": [0, 1], "steps": 2, "short": True}
        },
        "arms": {name: {"pretrain": {"epochs": 1, "batch_size": 20}} for name in ("mae", "mae_of_three")},
    }
    config = BenchConfig.resolve({"suite": "multispectral", "out": str(tmp_path / "out"), **keys})
    from maelift.benchmarks.runner import bench

    done = bench(config)
    assert done.error is None and not done.result.missing and done.result.pool == 60  # 61, of which one is a copy
    assert [pair.name for pair in done.result.near] == ["copy.tif"]
    html = (tmp_path / "out" / "report.html").read_text()
    assert done.result.shown == "Of 5 channels these are shown as red, green and blue: infrared, light, thermal."
    assert html.count("data:image/png") + html.count("data:image/jpeg") >= 3
    encoders = {}
    for key, result in results(tmp_path / "out").items():
        if result["run"]["kind"] == "mae":
            encoders[result["run"]["arm"]] = load_encoder(tmp_path / "out" / "runs" / key / "encoder.safetensors")
    assert encoders["mae"].preprocessing.channel_names == NAMES and encoders["mae"].preprocessing.nodata == 0
    assert encoders["mae_of_three"].preprocessing.channel_names == ("light", "infrared", "thermal")
    models = list((tmp_path / "out" / "runs").glob("*/model.safetensors"))
    names = {maelift.load_model(model).preprocessing.channel_names for model in models}
    assert len(models) == 6 and names == {NAMES}
