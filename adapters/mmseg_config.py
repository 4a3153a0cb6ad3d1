"""Configs for mmsegmentation: the keys of an export, the recipe, and the text of the complete configs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from ..core.errors import ConfigError
from ..core.models.adapt_encoder import is_bgr
from ..core.models.encoder import Encoder
from ..core.models.encoder_file import read_encoder
from ..core.models.encoder_spec import check_divisible
from .bundle import ExportConfig

TEMPLATES = Path(__file__).with_name("templates")
HEADS = {"upernet": "UPerNet with an auxiliary FCN head", "fcn": "a light FCN head on the last block"}


@dataclass(frozen=True)
class MmsegExport(ExportConfig):
    """Weights and complete configs for mmsegmentation's own MAE backbone."""

    crop_size: int | tuple[int, int] | None = None
    """pixels of the crops, one side or [height,width], the backbone's only size; null: 32 patches a side (512 for patch 16)"""
    patch_size: int | None = None
    """pixels a side of a patch, to resample the patch kernel to (16 for ViT-H's 14); null: as trained"""
    head_channels: int | None = None
    """channels of the heads; null: the encoder's width"""
    data: str = "data"
    """folder of the images and masks, as the config will name it; it need not be there yet"""
    train_images: str = "images/train"
    """folder of the training images, below data"""
    train_masks: str = "annotations/train"
    """folder of their masks: PNG files of class numbers, named as the images"""
    val_images: str = "images/val"
    """folder of the validation images, below data"""
    val_masks: str = "annotations/val"
    """folder of their masks"""
    image_suffix: str | None = None
    """ending of the image files; null: .jpg, or .tif where images have neither 1 nor 3 channels"""
    num_classes: int | None = None
    """classes; null: as many as classes has names, or 150 (ADE20K)"""
    classes: tuple[str, ...] = ()
    """names of the classes; without them they are numbered"""
    ignore_index: int = 255
    """mask value of pixels that do not count"""
    reduce_zero_label: bool = False
    """whether 0 in the masks means unlabelled and classes start at 1, as in ADE20K"""
    batch_size: int = 16
    """images a step and process; the learning rate is scaled to those of all processes"""
    iterations: int = 160_000
    """steps of training"""
    workers: int = 4
    """processes that load images"""


def crop_of(encoder: Encoder, config: MmsegExport) -> tuple[int, int]:
    """The crop (height, width) in pixels; raises ConfigError for what does not fit the patches or the other keys."""
    patch = encoder.spec.patch_size
    crop = 32 * patch if config.crop_size is None else config.crop_size
    crop = (crop, crop) if isinstance(crop, int) else crop
    try:
        check_divisible(crop, patch)
    except ConfigError as error:
        raise ConfigError(
            "crop_size", list(crop), error.expected, error.advice.replace("image_size", "crop_size")
        ) from error
    if min(crop) < 2 * patch:
        raise ConfigError("crop_size", list(crop), f"at least two patches of {patch} pixels a side")
    for key in ("batch_size", "iterations"):
        if getattr(config, key) < 1:
            raise ConfigError(key, getattr(config, key), "a whole number of at least 1")
    if config.batch_size < 2:
        raise ConfigError(
            "batch_size", config.batch_size, "at least 2", "The heads' batch norm can't learn from one image."
        )
    if config.reduce_zero_label and config.ignore_index != 255:
        raise ConfigError("ignore_index", config.ignore_index, "255, which reduce_zero_label makes of zeros")
    return crop


def class_names(config: MmsegExport) -> tuple[str, ...]:
    """A name for each class; raises ConfigError when names and number disagree."""
    count = config.num_classes or len(config.classes) or 150
    if config.classes and len(config.classes) != count:
        raise ConfigError("num_classes", count, f"{len(config.classes)}, as many as classes has names")
    return config.classes or tuple(f"class{number}" for number in range(count))


def config_text(head: str, encoder: Encoder, crop: tuple[int, int], config: MmsegExport) -> str:
    """A complete mmengine config for one of ``HEADS``."""
    spec, preprocessing = encoder.spec, encoder.preprocessing
    names = class_names(config)
    taps = upernet_blocks(spec.depth) if head == "upernet" else (spec.depth - 1,)
    width = config.head_channels or spec.embed_dim
    decay, drop_path, recipe = recipe_of(spec.depth)
    short, long = min(crop), 4 * max(crop)
    distorted = spec.channels == 3 and is_8_bit(encoder)
    heads = Template((TEMPLATES / f"mmseg_{head}.py.in").read_text("utf-8")).substitute(
        neck=neck(encoder, taps, crop),
        embed_dim=spec.embed_dim,
        head_channels=width,
        auxiliary_channels=min(256, width),
    )
    interval = max(1, config.iterations // 10)
    verbatim = ("data", "train_images", "train_masks", "val_images", "val_masks", "reduce_zero_label", "ignore_index")
    return Template((TEMPLATES / "mmseg.py.in").read_text("utf-8")).substitute(
        {key: inline(getattr(config, key)) for key in (*verbatim, "batch_size", "workers", "iterations")},
        title=f"{HEADS[head][0].upper()}{HEADS[head][1:]}, on an encoder of maelift.",
        name=f"{head}.py",
        crop_size=crop,
        grid_rows=crop[0] // spec.patch_size,
        grid_columns=crop[1] // spec.patch_size,
        stride=tuple(side * 2 // 3 for side in crop),
        num_classes=len(names),
        classes=inline(names),
        data_preprocessor=python(
            data_preprocessor(encoder, crop) | {"seg_pad_val": config.ignore_index, "test_cfg": {"size": crop}}
        ),
        backbone=python(mae_settings(encoder, crop, taps, drop_path)),
        heads=heads,
        loading=inline(loading(encoder)),
        scale=(long, short),
        interpolation=inline(preprocessing.interpolation),
        normalizing="".join(f"    {inline(step)},\n" for step in normalizing(encoder)),
        distortion='    dict(type="PhotoMetricDistortion"),\n' if distorted else "",
        image_suffix=inline(image_suffix(encoder, config)),
        persistent_workers=config.workers > 0,
        recipe=recipe,
        depth=spec.depth,
        layer_decay=decay,
        warmup=min(1500, max(1, config.iterations // 20)),
        interval=interval,
        log_interval=max(1, min(50, interval // 2)),
    )


def python(settings: Mapping[str, Any]) -> str:
    """Settings as the call ``dict(...)``, one a line."""
    lines = [f"    {key}={inline(value)},\n" for key, value in settings.items()]
    return f"dict(\n{''.join(lines)})"


def inline(value: object) -> str:
    """A value as Python text, with double quotes."""
    if isinstance(value, dict):
        return f"dict({', '.join(f'{key}={inline(item)}' for key, item in value.items())})"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return f"[{', '.join(map(inline, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(inline, value))}{',' if len(value) == 1 else ''})"
    return repr(value)


def mae_settings(encoder: Encoder, crop: tuple[int, int], taps: Sequence[int], drop_path: float) -> dict[str, Any]:
    """The config of mmseg's MAE backbone that computes what the encoder computes on crops of this size."""
    return {
        "type": "MAE",
        "init_cfg": {"type": "Pretrained", "checkpoint": "{{ fileDirname }}/weights.pth"},
        **shape_settings(encoder, crop),
        "norm_cfg": {"type": "LN", "eps": encoder.spec.norm_eps},
        "init_values": 1.0,
        "drop_path_rate": drop_path,
        "out_indices": tuple(taps),
    }


def shape_settings(encoder: Encoder, crop: tuple[int, int]) -> dict[str, Any]:
    """The keywords of mmseg's MAE backbone for an encoder's shape."""
    spec = encoder.spec
    return {
        "img_size": crop,
        "patch_size": spec.patch_size,
        "in_channels": spec.channels,
        "embed_dims": spec.embed_dim,
        "num_layers": spec.depth,
        "num_heads": spec.num_heads,
        "mlp_ratio": int(spec.mlp_ratio),
    }


def neck(encoder: Encoder, taps: Sequence[int], crop: tuple[int, int]) -> str:
    """Four maps at strides around 4 to 32 pixels from those of the blocks; finer ones where the grid is small."""
    spec = encoder.spec
    scales = list(upernet_scales(spec.patch_size, crop))
    if len(taps) == 4:
        return f'dict(type="Feature2Pyramid", embed_dim={spec.embed_dim}, rescales={scales}, norm_cfg=norm_cfg)'
    return (
        f'dict(type="MultiLevelNeck", in_channels=[{spec.embed_dim}], out_channels={spec.embed_dim}, scales={scales})'
        "  # too few blocks for four maps"
    )


def upernet_scales(patch_size: int, crop: tuple[int, int]) -> tuple[float, ...]:
    """What UPerNet's four maps are enlarged by, to strides around 4, 8, 16 and 32 pixels; finer where the grid is small."""
    return (2, 1, 0.5, 0.25) if patch_size < 12 and min(crop) >= 4 * patch_size else (4, 2, 1, 0.5)


def upernet_blocks(depth: int) -> tuple[int, ...]:
    """The blocks that UPerNet's four maps come from: at a third, half, two thirds and the end, as in mmseg's configs.

    3, 5, 7, 11 of 12 and 7, 11, 15, 23 of 24; with four or five blocks the last four, with fewer the last one only.
    """
    if depth < 4:
        return (depth - 1,)
    if depth < 6:
        return tuple(range(depth - 4, depth))
    return depth // 3 - 1, depth // 2 - 1, 2 * depth // 3 - 1, depth - 1


def recipe_of(depth: int) -> tuple[float, float, str]:
    """Layer decay and drop path, and where they are from."""
    if depth <= 12:
        return 0.65, 0.1, f"This encoder has {depth} blocks: the values for ViT-B's 12 are kept."
    drop_path = 0.2 if depth <= 24 else 0.3
    return (
        0.75,
        drop_path,
        f"This encoder has {depth} blocks: layer decay 0.75 and drop path {drop_path} are those of fine-tuning MAE for "
        "classification;\n# none are published for segmentation.",
    )


def image_suffix(encoder: Encoder, config: MmsegExport) -> str:
    """The ending of image files; raises ConfigError for more channels in files other than TIFF."""
    usual = ".jpg" if encoder.spec.channels in (1, 3) else ".tif"
    suffix = config.image_suffix or usual
    if encoder.spec.channels not in (1, 3) and suffix.lower() not in (".tif", ".tiff"):
        raise ConfigError(
            "image_suffix",
            suffix,
            f".tif or .tiff for images of {encoder.spec.channels} channels",
            "mmcv reads other files as colour, or exchanges their first and third channel.",
        )
    return suffix


def data_preprocessor(encoder: Encoder | str | Path, size: tuple[int, int] | None = None) -> dict[str, Any]:
    """The ``data_preprocessor`` of a user's own config for an encoder or its file: mean, deviation, channel order.

    Images are padded to ``size`` (height, width) in pixels, or without it to multiples of the patch.
    """
    encoder = encoder if isinstance(encoder, Encoder) else read_encoder(encoder).encoder
    numbers = statistics(encoder) if encoder.spec.channels in (1, 3) else {}  # for others see normalizing
    settings = {
        "type": "SegDataPreProcessor",
        **numbers,
        "bgr_to_rgb": read_as_bgr(encoder),
        "pad_val": 0,
        "seg_pad_val": 255,
    }
    if size is not None:
        return settings | {"size": size}
    patch = encoder.spec.patch_size
    return settings | {"size_divisor": patch, "test_cfg": {"size_divisor": patch}}


def loading(encoder: Encoder | str | Path) -> dict[str, Any]:
    """The step of a pipeline that reads an image file for an encoder: gray, colour, or a TIFF of more channels."""
    encoder = encoder if isinstance(encoder, Encoder) else read_encoder(encoder).encoder
    if encoder.spec.channels not in (1, 3):
        return {"type": "LoadImageFromFile", "imdecode_backend": "tifffile", "to_float32": True}
    if not is_8_bit(encoder):
        return {"type": "LoadImageFromFile", "color_type": "unchanged", "to_float32": True}
    return {"type": "LoadImageFromFile", "color_type": "grayscale" if encoder.spec.channels == 1 else "color"}


def normalizing(encoder: Encoder | str | Path) -> list[dict[str, Any]]:
    """The last step of a pipeline before PackSegInputs for images of neither 1 nor 3 channels, else no step.

    ``SegDataPreProcessor`` takes means of 1 or 3 channels only.
    """
    encoder = encoder if isinstance(encoder, Encoder) else read_encoder(encoder).encoder
    if encoder.spec.channels in (1, 3):
        return []
    return [{"type": "Normalize", **statistics(encoder), "to_rgb": False}]


def statistics(encoder: Encoder) -> dict[str, list[float]]:
    """Mean and deviation in the values of files."""
    scale = encoder.preprocessing.file_scale
    return {
        key: [round(scale * value, 6) for value in getattr(encoder.preprocessing, f"pixel_{key}")]
        for key in ("mean", "std")
    }


def is_8_bit(encoder: Encoder) -> bool:
    """Whether the values of files are those of 8 bits."""
    return encoder.preprocessing.value_range == (0.0, 255.0) and encoder.preprocessing.file_scale == 1


def read_as_bgr(encoder: Encoder) -> bool:
    """Whether what mmcv reads, colours as blue, green, red, must be reversed for the encoder."""
    return encoder.spec.channels == 3 and not is_bgr(encoder.preprocessing)


def overrides(encoder: Encoder, crop: tuple[int, int]) -> str:
    """The overrides after ``--cfg-options`` with which a stock config with the MAE backbone fits the weights."""
    settings = data_preprocessor(encoder, crop)
    backbone = {
        "init_values": 1.0,
        "norm_cfg.type": "LN",
        "norm_cfg.eps": encoder.spec.norm_eps,
        **shape_settings(encoder, crop),
    }
    words = {"model.pretrained": "{out}/weights.pth"}
    words |= {f"model.backbone.{key}": shell(value) for key, value in backbone.items()}
    given = [key for key in ("mean", "std", "bgr_to_rgb", "size") if key in settings]
    words |= {f"model.data_preprocessor.{key}": shell(settings[key]) for key in given}
    words["model.test_cfg.crop_size"] = shell(crop)
    words["model.test_cfg.stride"] = shell(tuple(side * 2 // 3 for side in crop))
    words["train_dataloader.dataset.pipeline.3.crop_size"] = shell(
        crop
    )  # RandomCrop in the configs of mmseg's datasets
    return " ".join(f"{key}={value}" for key, value in words.items())


def shell(value: object) -> str:
    """A value for ``--cfg-options``: sequences quoted and without blanks."""
    text = str(value).replace(" ", "")
    return f'"{text}"' if isinstance(value, list | tuple) else text
