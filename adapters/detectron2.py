"""detectron2 in Python: the encoder as the backbone of a LazyConfig or of a yacs config."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import nn

from ..core.errors import CheckpointError, ConfigError
from ..core.models.encoder import ACTIVATIONS, Encoder
from ..core.models.encoder_file import read_encoder
from ..core.models.encoder_spec import EncoderSpec
from ..core.models.preprocessing import Preprocessing
from .bundle import at_size
from .detectron2_config import recipe
from .detectron2_format import (
    all_close,
    float32_numbers,
    image_format,
    load_framework,
    named_weights,
    quiet,
    with_square_grid,
)
from .vitdet_sizes import (
    detectron2_shape,
    power_of_two_scales,
    windowed_blocks,
)


def vit_backbone(
    encoder: str | Path,
    *,
    image_size: int | None = None,
    patch_size: int | None = None,
    window_size: int | None = None,
    out_channels: int = 256,
    drop_path: float | None = None,
    use_rel_pos: bool = True,
) -> Any:
    """detectron2's ViT and SimpleFeaturePyramid with the weights of an encoder file; for code, or as L(vit_backbone)(...).

    Images (B, C, H, W), normalised as ``pixel_settings`` says, to {"p2": (B, out_channels, H/4, W/4), ...}, the levels
    named by the power of two that is their stride. Unlike detectron2's own pyramid it has images of any size padded at
    the right and bottom, so that windows tile them and nothing is cut off. ``image_size`` (pixels) sizes the relative
    positions, null as at the export; ``window_size`` and ``drop_path`` likewise.
    """
    found = at_size(read_encoder(encoder).encoder, None, patch_size)
    shape = detectron2_shape(found, image_size, window_size)
    return build_backbone(
        found,
        image_size=shape.size[0],
        window_size=shape.window,
        scales=shape.scales,
        out_channels=out_channels,
        drop_path=recipe(found.spec).drop_path if drop_path is None else drop_path,
        use_rel_pos=use_rel_pos,
    )


def build_backbone(
    encoder: Encoder,
    *,
    image_size: int,
    window_size: int,
    out_channels: int,
    drop_path: float,
    use_rel_pos: bool,
    scales: Sequence[float] | None = None,
) -> Any:
    """As ``vit_backbone``, with an encoder's weights; ``image_size`` is the side of a square, ``scales`` the pyramid's."""
    load_framework()
    usual = power_of_two_scales(encoder.spec.patch_size)
    scales, window = tuple(usual if scales is None else scales), window_size
    found = with_square_grid(encoder, (image_size, image_size))
    net = _vit(found.spec, image_size, window, drop_path, use_rel_pos)
    loaded = net.load_state_dict(named_weights(found), strict=False)
    wrong = [*loaded.unexpected_keys, *(name for name in loaded.missing_keys if ".rel_pos_" not in name)]
    if wrong:
        raise CheckpointError(
            f"the encoder's tensors are not those of detectron2's ViT: {', '.join(wrong[:5])} differ."
        )
    coarsest = int(found.spec.patch_size / scales[-1])
    return _padded_pyramid()(
        net,
        in_feature="last_feat",
        out_channels=out_channels,
        scale_factors=scales,
        top_block=_pool_after(f"p{coarsest.bit_length() - 1}"),
        norm="LN",
        multiple=math.lcm(found.spec.patch_size * max(1, window), coarsest),
    )


def pixel_settings(encoder: str | Path) -> dict[str, Any]:
    """``pixel_mean``, ``pixel_std`` and ``input_format`` of detectron2's models, from an encoder file's contract."""
    preprocessing = read_encoder(encoder).encoder.preprocessing
    return {
        "pixel_mean": float32_numbers(preprocessing.pixel_mean),
        "pixel_std": float32_numbers(preprocessing.pixel_std),
        "input_format": image_format(preprocessing),
    }


def add_maelift_config(cfg: Any) -> None:
    """Add the node MODEL.MAELIFT to a yacs config, and make ``build_maelift_vit_fpn_backbone`` known to detectron2.

    ENCODER is the encoder file; IMAGE_SIZE, PATCH_SIZE, OUT_CHANNELS and USE_REL_POS are as in ``vit_backbone``, 0 standing
    for the default; so are WINDOW_SIZE and DROP_PATH, of which -1 is the default.
    """
    from detectron2.config import CfgNode

    register()
    cfg.MODEL.MAELIFT = CfgNode(
        {
            "ENCODER": "",
            "IMAGE_SIZE": 0,
            "PATCH_SIZE": 0,
            "WINDOW_SIZE": -1,
            "OUT_CHANNELS": 256,
            "DROP_PATH": -1.0,
            "USE_REL_POS": True,
        }
    )


def use_encoder(cfg: Any, encoder: str | Path) -> None:
    """Set what a yacs config of a two-stage detector needs for an encoder file, after ``add_maelift_config``.

    The backbone and its file, no other weights, how images are read and normalised, and the pyramid's levels with their
    anchors; keys of MODEL.MAELIFT stay as they are; set PATCH_SIZE before the call.
    """
    found = at_size(read_encoder(encoder).encoder, None, cfg.MODEL.MAELIFT.PATCH_SIZE or None)
    settings = pixel_settings(encoder)
    cfg.MODEL.MAELIFT.ENCODER, cfg.MODEL.WEIGHTS = str(encoder), ""
    cfg.MODEL.BACKBONE.NAME = build_maelift_vit_fpn_backbone.__name__
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = settings["pixel_mean"], settings["pixel_std"]
    cfg.INPUT.FORMAT = settings["input_format"] or cfg.INPUT.FORMAT
    strides = [int(found.spec.patch_size / scale) for scale in power_of_two_scales(found.spec.patch_size)]
    levels = [f"p{stride.bit_length() - 1}" for stride in [*strides, 2 * strides[-1]]]
    cfg.MODEL.RPN.IN_FEATURES, cfg.MODEL.ROI_HEADS.IN_FEATURES = levels, levels[:-1]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8 * stride] for stride in [*strides, 2 * strides[-1]]]


def register() -> None:
    """Put ``build_maelift_vit_fpn_backbone`` into detectron2's registry of backbones; a second call does nothing."""
    load_framework()
    from detectron2.modeling import BACKBONE_REGISTRY

    if build_maelift_vit_fpn_backbone.__name__ not in BACKBONE_REGISTRY:
        BACKBONE_REGISTRY.register(build_maelift_vit_fpn_backbone)


def build_maelift_vit_fpn_backbone(cfg: Any, input_shape: Any) -> Any:
    """``vit_backbone`` of a yacs config's MODEL.MAELIFT; raises ConfigError where the rest of the config doesn't fit it."""
    node = cfg.MODEL.MAELIFT
    if not node.ENCODER:
        raise ConfigError("MODEL.MAELIFT.ENCODER", node.ENCODER, "the path of an encoder file")
    check_yacs_pixels(cfg, read_encoder(node.ENCODER).encoder.preprocessing)
    backbone = vit_backbone(
        node.ENCODER,
        image_size=node.IMAGE_SIZE or None,
        patch_size=node.PATCH_SIZE or None,
        window_size=None if node.WINDOW_SIZE < 0 else node.WINDOW_SIZE,
        out_channels=node.OUT_CHANNELS,
        drop_path=None if node.DROP_PATH < 0 else node.DROP_PATH,
        use_rel_pos=node.USE_REL_POS,
    )
    if cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN":
        check_yacs_levels(cfg, {name: shape.stride for name, shape in backbone.output_shape().items()})
    return backbone


def check_yacs_pixels(cfg: Any, preprocessing: Preprocessing) -> None:
    """Raise ConfigError unless a yacs config reads and normalises images as the encoder's contract says."""
    for key, given, wanted in (
        ("MODEL.PIXEL_MEAN", cfg.MODEL.PIXEL_MEAN, preprocessing.pixel_mean),
        ("MODEL.PIXEL_STD", cfg.MODEL.PIXEL_STD, preprocessing.pixel_std),
    ):
        if not all_close(given, wanted):
            raise ConfigError(key, list(given), f"{float32_numbers(wanted)}, which the encoder was trained with")
    readable = image_format(preprocessing)
    if readable is not None and readable != cfg.INPUT.FORMAT:
        raise ConfigError("INPUT.FORMAT", cfg.INPUT.FORMAT, f'"{readable}", in which order the encoder takes channels')


def check_yacs_levels(cfg: Any, strides: Mapping[str, int]) -> None:
    """Raise ConfigError unless the heads of a yacs config take levels that the backbone has (names to strides)."""
    sizes = [[8 * stride] for stride in strides.values()]
    for key, names, wanted in (
        ("MODEL.RPN.IN_FEATURES", cfg.MODEL.RPN.IN_FEATURES, list(strides)),
        ("MODEL.ROI_HEADS.IN_FEATURES", cfg.MODEL.ROI_HEADS.IN_FEATURES, list(strides)[:-1]),
    ):
        if not set(names) <= set(strides):
            advice = f"Usual is {wanted}, with MODEL.ANCHOR_GENERATOR.SIZES {sizes}."
            raise ConfigError(key, list(names), f"levels of the encoder's pyramid, {', '.join(strides)}", advice)


def _vit(spec: EncoderSpec, image_size: int, window: int, drop_path: float, use_rel_pos: bool) -> Any:
    from detectron2.modeling import ViT

    with quiet():
        return ViT(
            img_size=image_size,
            patch_size=spec.patch_size,
            in_chans=spec.channels,
            embed_dim=spec.embed_dim,
            depth=spec.depth,
            num_heads=spec.num_heads,
            mlp_ratio=spec.mlp_ratio,
            drop_path_rate=drop_path,
            norm_layer=partial(nn.LayerNorm, eps=spec.norm_eps),
            act_layer=ACTIVATIONS[spec.act],
            window_size=window,
            window_block_indexes=windowed_blocks(spec.depth) if window else [],
            use_rel_pos=use_rel_pos,
            pretrain_img_size=spec.image_size[0],
            pretrain_use_cls_token=spec.class_token,
            out_feature="last_feat",
        )


def _pool_after(level: str) -> Any:
    """detectron2's extra level after another than the "p5" that it is written for."""
    from detectron2.modeling.backbone.fpn import LastLevelMaxPool

    block = LastLevelMaxPool()
    block.in_feature = level
    return block


@cache
def _padded_pyramid() -> Callable[..., Any]:
    """The class of ``vit_backbone``, made where detectron2 is imported."""
    from detectron2.modeling import SimpleFeaturePyramid

    class PaddedFeaturePyramid(SimpleFeaturePyramid):  # type: ignore[misc]
        """SimpleFeaturePyramid for images of any size, padded to multiples of ``multiple`` pixels.

        detectron2's own class states it under a misspelt key, which nothing reads, and loses borders; with a square to pad
        to, it crops larger images.
        """

        def __init__(self, net: Any, *, multiple: int, **settings: Any) -> None:
            super().__init__(net, **settings)
            self._size_divisibility = multiple

        @property
        def size_divisibility(self) -> int:
            return self._size_divisibility

    return PaddedFeaturePyramid
