"""Images of any channels, bits and gaps, all the way: pretrained on, classified, detected, segmented, predicted, exported."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import maelift
import numpy as np
import pytest
import tifffile
import torch
from maelift.cli import main
from maelift.core.models.encoder_file import read_encoder
from maelift.tests.support import framework
from maelift.transfer.trained_model import load_model
from numpy.typing import NDArray
from PIL import Image

SIDE = 20
SHAPE: dict[str, Any] = {"model": "vit_nano", "image_size": 16, "patch_size": 4}
SHORT: dict[str, Any] = {"recipe": "small", "steps": 2, "batch_size": 4, "evaluations": 1}


@dataclass(frozen=True)
class Kind:
    """A kind of images: ``low`` to ``high`` as stored; ``scaled``: 16 bits without a range, brought to 0 to 255."""

    channels: int
    dtype: str
    high: float
    suffix: str
    low: float = 0.0
    gaps: bool = False
    scaled: bool = False

    @property
    def keys(self) -> dict[str, Any]:
        """The keys that say so; gray and colour need no count."""
        own: dict[str, Any] = {} if self.channels in (1, 3) else {"channels": self.channels}
        return own if self.dtype == "uint8" or self.scaled else {**own, "value_range": [self.low, self.high]}

    def image(self, seed: int, label: int) -> NDArray[Any]:
        """An image (H, W, C) whose first or last channel is bright in a square."""
        generator = np.random.default_rng(seed)
        values = generator.uniform(self.low, (self.low + self.high) / 2, (SIDE, SIDE + 4, self.channels))
        values[4:14, 6:16, -label] = self.high
        if self.gaps:
            values[:, :3] = np.nan
        return values.astype(self.dtype) if self.dtype.startswith("f") else np.rint(values).astype(self.dtype)

    def write(self, path: Path, array: NDArray[Any]) -> None:
        """A file as the tools of its format write it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.suffix == "npy":
            np.save(path, array)
        elif self.channels == 1:
            tifffile.imwrite(path, array[:, :, 0], photometric="minisblack", compression="deflate")
        else:
            tifffile.imwrite(path, array, photometric="minisblack", planarconfig="contig", compression="deflate")

    def read(self, path: Path) -> NDArray[np.float32]:
        """The values (H, W, C) that a model is given, by tifffile or numpy alone."""
        array = np.load(path) if self.suffix == "npy" else tifffile.imread(path)
        found: NDArray[np.float32] = array.reshape(SIDE, SIDE + 4, self.channels).astype(np.float32)
        return found / np.float32(257) if self.scaled else found


KINDS = {
    "1 channel, floats with gaps": Kind(1, "float32", 2.5, "tif", low=-1.0, gaps=True),
    "2 channels, 12 of 16 bits": Kind(2, "uint16", 4095, "npy"),
    "4 channels, 8 bits": Kind(4, "uint8", 255, "tif"),
    "5 channels, 16 bits": Kind(5, "uint16", 65535, "tif", scaled=True),
    "13 channels, floats with gaps": Kind(13, "float32", 1.0, "npy", gaps=True),
}


def write_data(folder: Path, kind: Kind) -> None:
    """The same images with a class each, with boxes, and with masks."""
    for split, count in (("train", 12), ("val", 4), ("test", 4)):
        coco: dict[str, Any] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        }
        for number in range(count):
            label = number % 2
            array = kind.image(100 * len(split) + 10 * ord(split[-1]) + number, label)
            name = f"{split}{number}.{kind.suffix}"
            kind.write(folder / "classes" / split / "ab"[label] / name, array)
            kind.write(folder / "coco" / "images" / name, array)
            kind.write(folder / "masks" / "images" / split / name, array)
            mask = np.zeros(array.shape[:2], np.uint8)
            mask[4:14, 6:16] = label + 1
            target = (folder / "masks" / "masks" / split / name).with_suffix(".png")
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(target)
            coco["images"].append({"id": number + 1, "file_name": f"images/{name}", "height": SIDE, "width": SIDE + 4})
            box = {"bbox": [6, 4, 10, 10], "area": 100, "iscrowd": 0}
            coco["annotations"].append({"id": number + 1, "image_id": number + 1, "category_id": label + 1, **box})
        (folder / "coco" / f"{split}.json").write_text(json.dumps(coco))


def onnx_logits(path: Path, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """What onnxruntime makes of stored values (B, H, W, C)."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    logits: NDArray[np.float32] = session.run(["logits"], {"images": images.transpose(0, 3, 1, 2)})[0]
    return logits


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_images_of_any_kind_go_all_the_way(name: str, tmp_path: Path) -> None:
    framework("onnxruntime")
    kind = KINDS[name]
    write_data(tmp_path, kind)
    pretrained = maelift.pretrain(
        data=str(tmp_path / "classes" / "train"),
        out=str(tmp_path / "mae"),
        epochs=1,
        batch_size=4,
        evaluations=1,
        holdout=2,
        shown="all",
        **SHAPE,
        **kind.keys,
    )
    with Image.open(tmp_path / "mae" / "reconstruction.png") as picture:
        rows = -(-kind.channels // 3)  # of small gray tiles, below 112 pixels
        assert picture.height > 2 * 112 + 2 * rows * 32
    preprocessing = read_encoder(pretrained.encoder).encoder.preprocessing
    stored = np.stack([kind.read(path) for path in sorted((tmp_path / "classes" / "train").rglob(f"*.{kind.suffix}"))])
    low, high = preprocessing.value_range
    if kind.channels != 3:
        there = (stored - low) / (high - low)
        assert np.allclose(preprocessing.mean, np.nanmean(there, axis=(0, 1, 2)), atol=0.03)  # two are held out
    assert pretrained.held_out_loss is not None and np.isfinite(pretrained.held_out_loss)
    images = sorted((tmp_path / "classes" / "test").rglob(f"*.{kind.suffix}"))
    arrays = [kind.read(path) for path in images]
    for task, data in (("classify", "classes"), ("detect", "coco"), ("segment", "masks")):
        run: Any = maelift.transfer
        keys = {"encoder": str(pretrained.encoder), "out": str(tmp_path / task), "shown": "all"}
        done = run(task, data=str(tmp_path / data), **keys, **SHORT)
        model: Any = load_model(done.model)
        assert model.preprocessing == preprocessing and model.spec.channels == kind.channels
        given = arrays if kind.dtype != "uint8" else [array.astype(np.uint8) for array in arrays]
        by_file, by_array = model.predict(images), model.predict(given)
        out = tmp_path / f"predicted_{task}"
        words = ["predict", f"model={done.model}", f"images={tmp_path / 'classes' / 'test'}", f"out={out}.csv"]
        if task == "classify":
            assert main([*words, "draw=true", "shown=[1]"]) == 0
            assert len(list(Path(f"{out}.pictures").rglob("*.png"))) == len(images)
            assert main([*words, "draw=true", f"shown=[{kind.channels + 1}]"]) == 2
            with Path(f"{out}.csv").open() as file:
                predicted = {Path(row["path"]).name: row for row in csv.DictReader(file)}
            for path, one, other in zip(images, by_file, by_array, strict=True):
                assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)
                assert float(predicted[path.name]["probability_a"]) == pytest.approx(one.probabilities["a"], abs=1e-4)
            graph = maelift.export(str(done.model), to="onnx", out=str(tmp_path / "onnx")).folder / "model.onnx"
            square = np.stack([array[2:18, 2:18] for array in arrays])
            with torch.inference_mode():
                wanted = model(model.preprocessing.normalize(torch.from_numpy(square.transpose(0, 3, 1, 2))))
            assert np.allclose(onnx_logits(graph, square), wanted.numpy(), atol=1e-4)
        elif task == "detect":
            for one, other in zip(by_file, by_array, strict=True):
                assert np.allclose(one.boxes, other.boxes, atol=1e-2) and np.allclose(
                    one.scores, other.scores, atol=1e-4
                )
        else:
            same = [float((one.mask == other.mask).mean()) for one, other in zip(by_file, by_array, strict=True)]
            assert min(same) > 0.99


@pytest.mark.slow
def test_weights_of_three_channels_are_fitted_to_five_by_name(tmp_path: Path) -> None:
    from maelift.core.models.encoder import Encoder
    from maelift.core.models.encoder_file import Provenance, save_encoder
    from maelift.core.models.encoder_spec import preset_spec
    from maelift.core.models.preprocessing import Preprocessing
    from maelift.tests.core.data.test_channels import gdal_tags

    colour = Encoder(preset_spec("vit_nano", image_size=16, patch_size=4), preprocessing=Preprocessing.default(3))
    save_encoder(colour, tmp_path / "colour.safetensors", Provenance("test"))
    names = ("nir", "Blue", "green", "red", "swir")
    for number in range(20):
        array = np.random.default_rng(number).integers(1, 4000, (SIDE, SIDE, 5)).astype(np.uint16)
        path = tmp_path / "data" / "ab"[number % 2] / f"{number}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        tags = {"metadata": None, "extratags": gdal_tags(names)}
        tifffile.imwrite(path, array, photometric="minisblack", planarconfig="contig", **tags)
    keys: dict[str, Any] = {"data": str(tmp_path / "data"), "encoder": str(tmp_path / "colour.safetensors")}
    done = maelift.transfer(
        "classify", out=str(tmp_path / "run"), channels=5, value_range=[0, 4095], lr=1e-12, **keys, **SHORT
    )
    model: Any = load_model(done.model)
    assert model.preprocessing.channel_names == names and model.preprocessing.nodata == 0
    before, after = (net.state_dict()["patch_embed.proj.weight"] for net in (colour, model.encoder))
    for place, name in enumerate(("red", "green", "blue")):
        own = [given.casefold() for given in names].index(name)
        assert torch.allclose(after[:, own], before[:, place] * 3 / 5, atol=1e-6)
    assert torch.allclose(after[:, 0], before.mean(dim=1) * 3 / 5, atol=1e-6)
    assert torch.allclose(after.sum(dim=1), before.sum(dim=1), atol=1e-5)
