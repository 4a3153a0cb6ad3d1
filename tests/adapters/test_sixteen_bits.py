"""Real files of 16 bits and five channels through each framework: what it computes of them is what the encoder does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import maelift
import numpy as np
import pytest
import tifffile
import torch
from maelift.adapters.parity import Level, reference_features
from maelift.core.data.decode import open_picture
from maelift.core.data.transforms import to_array
from maelift.core.models.encoder import Encoder
from maelift.core.models.preprocessing import Preprocessing
from maelift.tests.core.data.test_channels import gdal_tags
from maelift.tests.support import encoder_file, framework, random_encoder
from numpy.typing import NDArray
from torch import Tensor

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

SIDE = 32
MEAN, STD = (0.30, 0.35, 0.40, 0.45, 0.50), (0.10, 0.15, 0.20, 0.25, 0.30)
NAMES = ("B02", "B03", "B04", "B08", "B11")
Values = NDArray[np.float32]


def written(path: Path, highest: int) -> Path:
    """A GeoTIFF file of five bands of 16 bits, each with a brightness of its own."""
    generator = np.random.default_rng(0)
    shares = generator.random((SIDE, SIDE, 5)) * np.linspace(0.4, 1, 5)
    stored = np.rint(shares * highest).astype(np.uint16)
    layout: dict[str, Any] = {"photometric": "minisblack", "planarconfig": "contig", "compression": "zlib"}
    tifffile.imwrite(path, stored, metadata=None, extratags=gdal_tags(nodata=None), **layout)
    return path


def five_bands(value_range: tuple[float, float] | None) -> Encoder:
    encoder = random_encoder("vit_nano", channels=5, image_size=SIDE)
    encoder.preprocessing = Preprocessing(
        NAMES, MEAN, STD, value_range or (0.0, 255.0), bit_depth=16, background="white", bands=NAMES
    )
    return encoder.eval()


def by_hand(path: Path) -> NDArray[np.float32]:
    """The stored values (H, W, C) of a file, by tifffile alone."""
    found: NDArray[np.float32] = tifffile.imread(path).astype(np.float32)
    return found


def of_timm(folder: Path, path: Path, scale: float) -> Tensor:
    import timm

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.from_numpy((by_hand(path) / scale - MEAN) / STD).permute(2, 0, 1)[None].float()
    return torch.as_tensor(model.forward_features(images))


def of_transformers(folder: Path, path: Path, scale: float) -> Tensor:
    from transformers import ViTImageProcessor, ViTModel

    processor = ViTImageProcessor.from_pretrained(folder)
    values = by_hand(path) / (257 if scale == 65535 else 1)
    images = processor(images=values, input_data_format="channels_last", return_tensors="pt").pixel_values
    return torch.as_tensor(ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()(images).last_hidden_state)


def of_onnx(folder: Path, path: Path, scale: float) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "encoder.onnx"), providers=["CPUExecutionProvider"])
    values = by_hand(path) / (257 if scale == 65535 else 1)
    images = np.ascontiguousarray(values.transpose(2, 0, 1)[None].astype(np.float32))
    token, tokens = session.run(["class_token", "tokens"], {"images": images})
    return torch.cat([torch.from_numpy(token)[:, None], torch.from_numpy(tokens)], dim=1)


def of_torchvision(folder: Path, path: Path, scale: float) -> Tensor:
    sys.path.insert(0, str(folder))
    try:
        from plain_vit import load_backbone, mask_rcnn  # type: ignore[import-not-found]

        model = mask_rcnn(load_backbone(str(folder)), num_classes=3, min_size=SIDE, max_size=SIDE).eval()
        image = torch.from_numpy(by_hand(path) / scale).permute(2, 0, 1).float()
        images = model.transform([image])[0].tensors
        model.backbone.net.attend_everywhere()
        return torch.as_tensor(model.backbone.net(images)[-1].flatten(2).transpose(1, 2))
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.split(".")[0] == "plain_vit"]:
            del sys.modules[name]


def of_detectron2(folder: Path, path: Path, scale: float) -> Tensor:
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import LazyConfig, instantiate

    config = LazyConfig.load(str(folder / "mask_rcnn.py"))
    model = instantiate(config.model).cpu().eval()
    DetectionCheckpointer(model).load(config.train.init_checkpoint)
    values = by_hand(path) / (257 if scale == 65535 else 1)
    image = torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))
    images = ((image - model.pixel_mean) / model.pixel_std)[None]
    return torch.as_tensor(model.backbone.net(images)["last_feat"].flatten(2).transpose(1, 2))


def of_mmseg(folder: Path, path: Path, scale: float) -> Tensor:
    from mmengine.config import Config
    from mmengine.dataset import Compose
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    init_default_scope("mmseg")
    config = Config.fromfile(folder / "fcn.py")
    steps = config.test_dataloader.dataset.pipeline
    read = [step for step in steps if step["type"] in ("LoadImageFromFile", "Normalize")]
    packed = Compose([*read, {"type": "PackSegInputs"}])({"img_path": str(path)})
    preprocessor = MODELS.build(config.model.data_preprocessor)
    images = preprocessor({"inputs": [packed["inputs"]], "data_samples": [packed["data_samples"]]})["inputs"]
    backbone = MODELS.build(config.model.backbone)
    backbone.eval()  # which returns nothing
    backbone.init_weights()
    return torch.as_tensor(backbone(images)[-1].flatten(2).transpose(1, 2))


FRAMEWORKS: dict[str, tuple[Callable[[Path, Path, float], Tensor], dict[str, Any], str]] = {
    "timm": (of_timm, {}, "all"),
    "transformers": (of_transformers, {}, "all"),
    "onnx": (of_onnx, {}, "all"),
    "torchvision": (of_torchvision, {"image_size": SIDE, "out_channels": 8}, "patches"),
    "detectron2": (of_detectron2, {"image_size": SIDE, "out_channels": 8, "window_size": 0}, "patches"),
    "mmseg": (of_mmseg, {"crop_size": SIDE, "head_channels": 8, "classes": ["a", "b"]}, "with class token"),
}


@pytest.mark.parametrize("name", FRAMEWORKS)
@pytest.mark.parametrize("value_range", [None, (0.0, 10_000.0)])
def test_a_file_of_five_bands_of_16_bits_gives_what_the_encoder_gives(
    name: str, value_range: tuple[float, float] | None, tmp_path: Path
) -> None:
    framework(name)
    encoder = five_bands(value_range)
    path = written(tmp_path / "tile.tif", 65535 if value_range is None else 10_000)
    export: Any = maelift.export
    keys = {"encoder": str(encoder_file(tmp_path / "encoder.safetensors", encoder)), "out": str(tmp_path / "out")}
    features, own, tokens = FRAMEWORKS[name]
    if name == "timm" and value_range is not None:
        with pytest.raises(
            maelift.MaeliftError, match=r"0 to 10000, and timm reads 0 to 255 only.*torchvision or onnx"
        ):
            export(to=name, **keys, **own)
        return
    done = export(to=name, **keys, **own)
    assert done.bundle.certificate.passed
    divided = any("give those of 16 bits divided by 257" in note for note in done.bundle.notes)
    assert divided == (value_range is None and name != "mmseg")
    image = open_picture(path, form=encoder.preprocessing.reading).pixels()
    pixels = torch.from_numpy(to_array(image, 5))[None]
    level = Level("last", encoder.spec.depth - 1, normed=tokens == "all", prefix=tokens == "all")
    with torch.inference_mode():
        images = encoder.preprocessing.normalize(pixels)
        (expected,) = reference_features(encoder, images, [level], class_token=tokens != "patches")
        found = features(done.folder, path, 65535.0 if value_range is None else value_range[1])
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize("name", ["timm", "transformers", "onnx", "mmseg"])
def test_an_encoder_with_a_window_is_exported_for_images_that_it_has_been_applied_to(name: str, tmp_path: Path) -> None:
    framework(name)
    encoder = random_encoder("vit_nano", channels=1, image_size=SIDE)
    encoder.preprocessing = replace(encoder.preprocessing, bit_depth=16, window=(40.0, 400.0), nodata=-2000.0)
    export: Any = maelift.export
    own = FRAMEWORKS[name][1]
    file = encoder_file(tmp_path / "encoder.safetensors", encoder)
    done = export(to=name, encoder=str(file), out=str(tmp_path / "out"), **own)
    assert done.bundle.certificate.passed
    assert any(
        "the window [40,400] isn't applied: give images that it has brought to 0 to 255" in note
        for note in done.bundle.notes
    )
    if name == "onnx":  # black is a value like others: only NaN has none
        import onnxruntime

        session = onnxruntime.InferenceSession(str(done.folder / "encoder.onnx"), providers=["CPUExecutionProvider"])
        images = np.random.default_rng(0).integers(0, 256, (1, 1, SIDE, SIDE)).astype(np.float32)
        images[:, :, :8] = 0
        (found,) = session.run(["pooled"], {"images": images})
        with torch.inference_mode():
            level = Level("pooled", encoder.spec.depth - 1, normed=True, pooled=True)
            prepared = encoder.eval().preprocessing.normalize(torch.from_numpy(images))
            (expected,) = reference_features(encoder, prepared, [level])
        assert np.allclose(found, expected[:, 0].numpy(), atol=1e-4)
