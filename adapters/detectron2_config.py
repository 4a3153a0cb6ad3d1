"""LazyConfigs for detectron2: the keys of an export, ViTDet's recipe by width, the text, the annotation files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..core.errors import ConfigError, DataError
from ..core.files import read_regular
from ..core.models.encoder import Encoder
from ..core.models.encoder_spec import EncoderSpec
from ..version import __version__
from .bundle import ExportConfig
from .detectron2_format import float32_numbers, image_format, value_range_text
from .vitdet_sizes import DetectorShape, usual_global_blocks, windowed_blocks

TEMPLATES = Path(__file__).with_name("templates")
WIDTHS = {768: "b_100ep", 1024: "l_100ep", 1280: "h_75ep"}
"""ViTDet's configs after MAE by width: projects/ViTDet/configs/COCO/mask_rcnn_vitdet_*.py of detectron2's repository."""


@dataclass(frozen=True)
class Detectron2Export(ExportConfig):
    """Weights, and LazyConfigs of Mask and Cascade R-CNN which detectron2's own tool trains."""

    image_size: int | None = None
    """side of the square in pixels that images are fitted into; null: 64 patches (1024 for patch 16)"""
    patch_size: int | None = None
    """pixels a side of a patch, to resample the patch kernel to (16 for ViT-H's 14); null: as trained"""
    window_size: int | None = None
    """patches a side of the attention windows, 0 for none; null: the divisor of the grid nearest to 14, none up to 16×16"""
    out_channels: int = 256
    """channels of every level of the pyramid"""
    num_classes: int | None = None
    """classes without the background; null: the categories of train_json, else COCO's 80"""
    batch_size: int = 16
    """images an iteration, on all GPUs together; the learning rate is 1e-4 × batch_size / 64"""
    epochs: int | None = None
    """passes over the training images; null: ViTDet's for this width"""
    train_json: str | None = None
    """COCO-style annotations to train on; null: coco_2017_train, under DETECTRON2_DATASETS"""
    train_images: str | None = None
    """folder of the training images; null: that of train_json"""
    val_json: str | None = None
    """COCO-style annotations to evaluate on; null: none with a train_json, else coco_2017_val"""
    val_images: str | None = None
    """folder of the images to evaluate on; null: that of val_json"""

    def __post_init__(self) -> None:
        for key in ("image_size", "patch_size", "out_channels", "num_classes", "batch_size", "epochs"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(key, value, "a whole number of at least 1")
        for key, needed in (("train_images", "train_json"), ("val_images", "val_json"), ("val_json", "train_json")):
            if getattr(self, key) is not None and getattr(self, needed) is None:
                raise ConfigError(key, getattr(self, key), f"{needed} with it")


def config_texts(encoder: Encoder, shape: DetectorShape, config: Detectron2Export) -> dict[str, str]:
    """The LazyConfigs of an export, by file name; raises DataError and ConfigError for the data that ``config`` names."""
    data = read_data(config)
    constants = [
        *encoder_lines(encoder, shape.scales),
        *export_lines(config, shape, data),
        *recipe_lines(encoder.spec, config, data.train),
    ]
    texts = {name: (TEMPLATES / f"{name}.in").read_text() for name in ("mask_rcnn.py", "cascade_mask_rcnn.py")}
    return {name: text.replace("@CONSTANTS@", "\n".join(constants)) for name, text in texts.items()}


@dataclass(frozen=True)
class Recipe:
    """What ViTDet's configs change with the encoder's width; ``source`` says which one, or that it lies between."""

    drop_path: float
    layer_decay: float
    epochs: int
    norm_weight_decay: float
    source: str


def recipe(spec: EncoderSpec) -> Recipe:
    """ViTDet's values; between its widths interpolated. Below ViT-B only drop path shrinks, in proportion to the width."""
    widths, dim = list(WIDTHS), spec.embed_dim
    return Recipe(
        drop_path=round(float(np.interp(dim, [0, *widths], [0.0, 0.1, 0.4, 0.5])), 3),
        layer_decay=round(float(np.interp(dim, widths, [0.7, 0.8, 0.9])), 3),
        epochs=round(float(np.interp(dim, widths, [100, 100, 75]))),
        norm_weight_decay=0.1 if dim >= 1280 else 0.0,
        source=(
            f"mask_rcnn_vitdet_{WIDTHS[dim]}.py"
            if dim in WIDTHS
            else f"interpolated to width {dim} from ViTDet's configs (768, 1024, 1280), none of which is as wide"
        ),
    )


def encoder_lines(encoder: Encoder, scales: Sequence[float]) -> list[str]:
    """The constants of ``mask_rcnn.py`` that describe the encoder."""
    spec, preprocessing = encoder.spec, encoder.preprocessing
    readable = image_format(preprocessing)
    return [
        f"# ---- the encoder (maelift {__version__}); weights.pth fits these values only ----",
        f"image_format = {_quoted(readable)}"
        + ("" if readable else "  # detectron2 reads no such images: give mappers of your own"),
        f"pixel_mean = {float32_numbers(preprocessing.pixel_mean)}  # of values {value_range_text(preprocessing)}",
        f"pixel_std = {float32_numbers(preprocessing.pixel_std)}",
        f"channels, patch_size = {spec.channels}, {spec.patch_size}",
        f"embed_dim, depth, num_heads, mlp_ratio = {spec.embed_dim}, {spec.depth}, {spec.num_heads}, {spec.mlp_ratio:g}",
        f"norm_eps = {spec.norm_eps!r}  # detectron2's own default is 1e-5",
        f"pretrain_img_size = {spec.image_size[0]}  # the grid of the position embeddings, in pixels",
        f"pretrain_use_cls_token = {spec.class_token}  # whether they begin with one of the class token",
        f"scales = {tuple(scales)}  # of the pyramid's levels (ViTDet, Sec. 3)",
        "",
    ]


def export_lines(config: Detectron2Export, shape: DetectorShape, data: Data) -> list[str]:
    """The constants of ``mask_rcnn.py`` that were chosen at the export."""
    train, val, size = data.train, data.val, shape.size[0]
    classes = config.num_classes or (len(train.categories) if train else 80)
    return [
        "# ---- sizes ----",
        f"image_size = {size}  # pixels, square",
        f"window_size = {shape.window}  # patches a side, 0: none; must divide {size} / patch_size",
        f"out_channels = {config.out_channels}",
        f"num_classes = {classes}  # without the background",
        "",
        "# ---- data, COCO style; None: COCO itself, under DETECTRON2_DATASETS ----",
        f"train_json, train_images = {_path(train, 'json')}, {_path(train, 'images')}",
        f"val_json, val_images = {_path(val, 'json')}, {_path(val, 'images')}",
        f'mask_format = {_quoted(train.mask_format if train else "polygon")}  # "bitmask" for RLE, None: boxes only',
        "",
    ]


def recipe_lines(spec: EncoderSpec, config: Detectron2Export, train: CocoFile | None) -> list[str]:
    """The constants of ``mask_rcnn.py`` that say how to train, each with its source."""
    values = recipe(spec)
    blocks = ", ".join(map(str, usual_global_blocks(spec.depth)))
    images, counted = (
        (train.num_images, "with annotations") if train else (118000, "of COCO, as ViTDet's configs count them")
    )
    epochs, source = (config.epochs, "given at the export") if config.epochs else (values.epochs, values.source)
    return [
        "# ---- recipe: ViTDet after MAE (detectron2's repository, projects/ViTDet/configs/COCO) ----",
        f"batch_size = {config.batch_size}  # on all GPUs together",
        "learning_rate = 1e-4 * batch_size / 64  # 1e-4 at 64 images; scaled linearly",
        f"epochs = {epochs}  # {source}",
        f"num_images = {images}  # {counted}",
        f"drop_path = {values.drop_path}  # {values.source}",
        f"layer_decay = {values.layer_decay}  # the same",
        f"norm_weight_decay = {values.norm_weight_decay}  # of norms and positions; the same",
        f"global_blocks = [{blocks}]  # the last of each quarter attends everywhere (ViTDet, Sec. 3)",
    ]


def zoo_overrides(encoder: Encoder, num_classes: int | None = None) -> tuple[list[str], list[str]]:
    """Changes that ViTDet's config of ViT-B needs for this encoder: overrides for the command line, and lines of Python."""
    spec, values = encoder.spec, recipe(encoder.spec)
    readable = image_format(encoder.preprocessing)
    changes: list[tuple[str, object, object]] = [
        ("model.pixel_mean", float32_numbers(encoder.preprocessing.pixel_mean), [123.675, 116.28, 103.53]),
        ("model.pixel_std", float32_numbers(encoder.preprocessing.pixel_std), [58.395, 57.12, 57.375]),
        ("model.input_format", readable, "RGB"),
        ("dataloader.train.mapper.image_format", readable, "RGB"),
        ("model.backbone.net.in_chans", spec.channels, 3),
        ("model.backbone.net.embed_dim", spec.embed_dim, 768),
        ("model.backbone.net.depth", spec.depth, 12),
        ("model.backbone.net.num_heads", spec.num_heads, 12),
        ("model.backbone.net.mlp_ratio", spec.mlp_ratio, 4.0),
        ("model.backbone.net.drop_path_rate", values.drop_path, 0.1),
        ("model.backbone.net.window_size", 16, 14),  # 14 doesn't tile the 64 patches of 1024 pixels
        ("model.backbone.net.window_block_indexes", windowed_blocks(spec.depth), [0, 1, 3, 4, 6, 7, 9, 10]),
        ("model.backbone.net.pretrain_img_size", spec.image_size[0], 224),
        ("model.backbone.net.pretrain_use_cls_token", spec.class_token, True),
        ("model.roi_heads.num_classes", num_classes or 80, 80),
    ]
    words = ["train.init_checkpoint={out}/weights.pth"]
    words += [_word(key, value) for key, value, stock in changes if value != stock and value is not None]
    python = []
    if spec.norm_eps != 1e-6:
        python.append(f"model.backbone.net.norm_layer = partial(nn.LayerNorm, eps={spec.norm_eps!r})")
    if (spec.depth, values.layer_decay) != (12, 0.7):
        decay = f"partial(get_vit_lr_decay_rate, num_layers={spec.depth}, lr_decay_rate={values.layer_decay})"
        python.append(f"optimizer.params.lr_factor_func = {decay}")
    return words, python


def _word(key: str, value: object) -> str:
    text = str(value).replace(" ", "")
    return f"'{key}={text}'" if isinstance(value, list) else f"{key}={text}"


@dataclass(frozen=True)
class CocoFile:
    """A COCO-style dataset; paths are absolute, ``num_images`` counts the images with annotations.

    ``mask_format``: detectron2's name for its masks, "polygon" or "bitmask", None when it has boxes only.
    """

    json: Path
    images: Path
    num_images: int
    categories: tuple[int, ...]
    mask_format: str | None


@dataclass(frozen=True)
class Data:
    """The datasets of an export, None for COCO itself."""

    train: CocoFile | None
    val: CocoFile | None


def read_data(config: Detectron2Export) -> Data:
    """Read the annotations that the export names; raises DataError, and ConfigError for a ``num_classes`` too small."""
    train = read_coco("train_json", config.train_json, config.train_images)
    val = read_coco("val_json", config.val_json, config.val_images)
    if train and config.num_classes and config.num_classes < len(train.categories):
        raise ConfigError("num_classes", config.num_classes, f"at least the {len(train.categories)} of {train.json}")
    if train and not train.num_images:
        raise DataError(f"train_json={train.json}: no image has annotations. There is nothing to train on.")
    if train and val and train.categories != val.categories:
        raise DataError(
            f"val_json={val.json}: its category ids {some_of(val.categories)} are not those of train_json, "
            f"{some_of(train.categories)}. Expected the same, since detectors count classes in the order of the ids."
        )
    return Data(train, val)


def read_coco(key: str, path: str | None, images: str | None) -> CocoFile | None:
    """The dataset of a COCO-style JSON, None without one; raises DataError, naming the key, for what is none."""
    if path is None:
        return None
    file = Path(path).absolute()
    folder = Path(images).absolute() if images else file.parent
    try:
        content = json.loads(read_regular(file))
        records, annotations = content["images"], [item for item in content["annotations"] if not item.get("iscrowd")]
        categories = tuple(sorted(int(item["id"]) for item in content["categories"]))
        first = folder / min(records, key=lambda item: item["id"])["file_name"]
        kinds = {type(item["segmentation"]) for item in annotations if item.get("segmentation")}
        annotated = {item["image_id"] for item in annotations}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{key}={path}: not COCO-style annotations ({type(error).__name__}: {error}). Expected images, annotations and "
            "categories, as in instances_train2017.json."
        ) from error
    if not first.is_file():
        raise DataError(
            f"{key}={path}: {first}: no such image. Give {key.replace('json', 'images')}, the images' folder."
        )
    mask_format = ("bitmask" if dict in kinds else "polygon") if kinds else None
    return CocoFile(file, folder, len(annotated), categories, mask_format)


def _quoted(text: str | None) -> str:
    return "None" if text is None else json.dumps(text, ensure_ascii=False)


def _path(coco: CocoFile | None, which: str) -> str:
    return _quoted(str(getattr(coco, which)) if coco else None)


def some_of(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:5])) + (f" … ({len(numbers)})" if len(numbers) > 5 else "")
