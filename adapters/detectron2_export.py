"""Exports to detectron2: weights, and LazyConfigs of Mask and Cascade R-CNN, which its own tool trains."""

from __future__ import annotations

from pathlib import Path

import torch

from ..core.files import atomic_path, atomic_write_text
from ..core.models.encoder import Encoder
from ..core.models.encoder_file import EncoderFile
from .bundle import Bundle, at_size, check_gelu
from .detectron2_certify import certify_detector, load_detector
from .detectron2_config import Detectron2Export, config_texts, some_of, zoo_overrides
from .detectron2_format import BACKBONE, image_format, load_framework, named_weights, value_range_text, with_square_grid
from .parity import certificate_sizes
from .vitdet_sizes import detectron2_shape, usual_global_blocks, windowed_blocks


def export(file: EncoderFile, folder: Path, config: Detectron2Export) -> Bundle:
    """Write ``weights.pth``, ``mask_rcnn.py`` and ``cascade_mask_rcnn.py``; raises MaeliftError for sizes and data."""
    load_framework()
    advice = (
        "Export to timm, transformers, torchvision or onnx; or take vit_backbone, which has it (docs/detectron2.md)."
    )
    check_gelu(file.encoder, "a config of detectron2's", advice)
    trained = at_size(file.encoder, None, config.patch_size)
    shape = detectron2_shape(trained, config.image_size, config.window_size)
    encoder = with_square_grid(trained, shape.size)
    texts = config_texts(encoder, shape, config)
    with atomic_path(folder / "weights.pth") as temporary:
        torch.save({"model": named_weights(encoder, BACKBONE)}, temporary)
    for name, text in texts.items():
        atomic_write_text(folder / name, text)
    loaded = load_detector(folder / "mask_rcnn.py")
    return Bundle(
        files={
            "weights.pth": "weights, under detectron2's names",
            "mask_rcnn.py": "LazyConfig of Mask R-CNN (ViTDet), with model, data, schedule",
            "cascade_mask_rcnn.py": "the same with Cascade R-CNN's heads",
        },
        certificate=certify_detector(loaded, encoder, certificate_sizes(trained.spec, shape.window), file.content_hash),
        usage=usage(encoder, config),
        notes=notes(encoder, config, shape.window),
    )


def usage(encoder: Encoder, config: Detectron2Export) -> str:
    """The next commands: the bundle's, the overrides for a config of your own, and the backbone in Python."""
    lines = [
        "with detectron2's own tools/lazyconfig_train_net.py (--resume continues a run; the same with cascade_mask_rcnn.py):",
        "  python lazyconfig_train_net.py --config-file {out}/mask_rcnn.py",
    ]
    if encoder.spec.patch_size == 16:
        words, python = zoo_overrides(encoder, config.num_classes)
        lines += ["with a ViTDet config of detectron2's zoo (mask_rcnn_vitdet_b_100ep.py), append these overrides:"]
        lines += [f"  {word}" for word in words]
        if python:
            lines += ["and these lines in it:", *(f"  {line}" for line in python)]
    lines += [
        "in Python:",
        "  from maelift.adapters.detectron2 import vit_backbone  # model.backbone = L(vit_backbone)(encoder=...)",
    ]
    return "\n".join(lines)


def notes(encoder: Encoder, config: Detectron2Export, window: int) -> tuple[str, ...]:
    """What was not exported, and what detectron2 does differently."""
    found = []
    preprocessing, spec = encoder.preprocessing, encoder.spec
    if image_format(preprocessing) is None:
        found.append(
            f"detectron2 reads no images of {spec.channels} channels with values {value_range_text(preprocessing)}: give the "
            "config's dataloaders mappers of your own, which put a (channels, height, width) array of those values under 'image'"
        )
    elif spec.channels == 4:
        found.append(
            "detectron2 resizes RGBA with the fourth channel as opacity, and loses colours where it is 0; if it is a channel "
            "like the others, give the dataloaders mappers of your own"
        )
    if config.train_json and not config.val_json:
        found.append("no val_json: the config trains without evaluation")
    if window and windowed_blocks(spec.depth):
        found.append(
            f"attention in windows of {window} patches but in blocks {some_of(usual_global_blocks(spec.depth))}"
        )
    return tuple(found)
