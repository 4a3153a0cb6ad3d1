"""Images for mmseg: written as files, read by a config's own first steps, and normalised by its preprocessor."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..core.errors import CheckpointError, MaeliftError
from ..core.models.adapt_encoder import is_bgr
from ..core.models.encoder import Encoder
from .mmseg_config import inline, loading
from .parity import Pixels


def swaps_channels(preprocessor: Any) -> bool:
    """Whether the preprocessor swaps the first and third channel; tested by running it, as its attributes differ by version."""
    from mmseg.structures import SegDataSample

    images = torch.zeros(2, 3, 2, 2)
    images[1, 0] = 255
    black, marked = preprocessor({"inputs": list(images), "data_samples": [SegDataSample(), SegDataSample()]})["inputs"]
    return bool((marked - black)[2].abs().max() > 0)


def reading_steps(config: Any, loader: str) -> list[Any]:
    """The steps of a dataloader's pipeline that read images and normalise them; those of the other where there is none."""
    dataset = unwrapped((config.get(loader) or config.get("train_dataloader") or config.test_dataloader).dataset)
    named = [(type_name(step), step) for step in dataset.pipeline]
    reading = [step for name, step in named if name.startswith("Load") and "Image" in name][:1]
    return reading + [step for name, step in named if name == "Normalize"]


def unwrapped(dataset: Any) -> Any:
    """The settings of a dataset without wrappers such as RepeatDataset."""
    while "dataset" in dataset:
        dataset = dataset.dataset
    return dataset


def build_preprocessor(config: Any) -> Any:
    """The preprocessor of a config's model, padding left out."""
    from mmseg.registry import MODELS

    settings = copy.deepcopy(config.model.get("data_preprocessor") or config.get("data_preprocessor"))
    if not settings:
        raise CheckpointError("the config has no model.data_preprocessor, so that images are never normalised.")
    for key in ("size", "size_divisor", "test_cfg"):
        settings.pop(key, None)
    return MODELS.build(settings)


def prepare(config: Any, encoder: Encoder, stored: Sequence[Pixels]) -> Tensor:
    """Images (H, W, C) through files, the config's own reading step, and its preprocessor, to (B, C, H, W)."""
    from mmengine.dataset import Compose

    pipeline = Compose([*reading_steps(config, "test_dataloader"), {"type": "PackSegInputs"}])
    with tempfile.TemporaryDirectory() as folder:
        packed = [
            pipeline({"img_path": write_image(image, encoder, Path(folder) / f"{number}")})
            for number, image in enumerate(stored)
        ]
    channels = packed[0]["inputs"].shape[0]
    if channels != encoder.spec.channels:
        raise CheckpointError(
            f"the config reads images of {channels} channels, the encoder needs {encoder.spec.channels}: let its pipelines "
            f"begin with {inline(loading(encoder))}."
        )
    batch = {key: [item[key] for item in packed] for key in ("inputs", "data_samples")}
    return cast(Tensor, build_preprocessor(config)(batch)["inputs"])


def type_name(step: Mapping[str, Any]) -> str:
    """The type in a config's dict, which newer configs give as a class."""
    kind = step["type"]
    return kind if isinstance(kind, str) else str(kind.__name__)


def write_image(image: Pixels, encoder: Encoder, path: Path) -> str:
    """Write an image (H, W, C) in the usual format for its kind: PNG of 8 or 16 bits, TIFF for more channels."""
    channels, scale = image.shape[2], encoder.preprocessing.file_scale
    if scale != 1:
        image = np.rint(image.astype(np.float64) * scale).astype(np.uint16)
    if channels not in (1, 3):
        return write_tiff(image, path.with_suffix(".tif"))
    rgb = image[:, :, ::-1] if is_bgr(encoder.preprocessing) else image
    low, high = encoder.preprocessing.value_range
    file = path.with_suffix(".png")
    if image.dtype == np.uint8:
        Image.fromarray(np.ascontiguousarray(rgb if channels == 3 else rgb[:, :, 0])).save(file)
    elif scale != 1 or (low >= 0 and high <= 65535):
        import cv2

        cv2.imwrite(str(file), np.ascontiguousarray(rgb[:, :, ::-1]).astype(np.uint16))
    else:
        return write_tiff(rgb, path.with_suffix(".tif"))
    return str(file)


def write_tiff(image: Pixels, path: Path) -> str:
    """Write a TIFF, its channels side by side."""
    try:
        import tifffile
    except ModuleNotFoundError as error:
        raise MaeliftError(
            f"tifffile is not installed, and mmcv reads images of {image.shape[2]} channels with it. Install it: "
            "pip install tifffile"
        ) from error
    tifffile.imwrite(path, image, photometric="minisblack", planarconfig="contig")
    return str(path)
