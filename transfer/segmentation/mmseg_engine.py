"""Segmentors by mmseg: its EncoderDecoder with its heads and losses, on our plain ViT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...adapters.mmseg_config import MmsegExport, config_text
from ...adapters.windowed_vit import PlainViT, load_weights
from ...core.data.segmentation import ignore_index
from ...core.models.encoder import Encoder
from .architecture import Architecture
from .backbone_settings import plain_settings


def mmseg_logits(network: Any, images: Tensor) -> Tensor:
    """Logits (B, K, H, W) of mmseg's EncoderDecoder, as its inference in mode "whole" gives them."""
    size = images.shape[-2:]
    return cast(Tensor, network.encode_decode(images, [{"img_shape": size, "pad_shape": size} for _ in images]))


def mmseg_loss(network: Any, images: Tensor, masks: Tensor) -> Tensor:
    """The sum of mmseg's own losses: cross-entropy, by its default over all pixels, and 0.4 times the auxiliary head's."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    samples = [
        SegDataSample(gt_sem_seg=PixelData(data=mask[None]), metainfo={"img_shape": tuple(mask.shape)})
        for mask in masks
    ]
    total, _ = network.parse_losses(network.loss(images, samples))
    return cast(Tensor, total)


def mmseg_network(encoder: Encoder, classes: Sequence[str], architecture: Architecture, drop_path: float) -> nn.Module:
    """mmseg's EncoderDecoder, with the heads of the configs that ``maelift export --to mmseg`` writes, on our plain ViT.

    Its SyncBN, which CPUs have not, becomes plain batch norm but in a process group on GPUs.
    """
    from ...adapters.mmseg_model import load_framework, quiet

    load_framework()
    from mmengine.config import Config
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    head = "upernet" if architecture.head == "upernet" else "fcn"
    size = encoder.spec.image_size
    settings = MmsegExport(
        encoder="",
        to="mmseg",
        out="",
        num_classes=len(classes),
        head_channels=architecture.head_channels,
        ignore_index=ignore_index(len(classes)),
    )
    with quiet():
        init_default_scope("mmseg")
        config = Config.fromstring(config_text(head, encoder, size, settings), ".py").model
        config.data_preprocessor = None  # images come normalised
        config.backbone = {"type": PlainViT, **plain_settings(encoder, architecture, drop_path)}
        model: Any = MODELS.build(config)
        model.init_weights()
    load_weights(model.backbone, encoder.state_dict())
    spread = torch.distributed.is_available() and torch.distributed.is_initialized() and torch.cuda.is_available()
    return cast(nn.Module, model if spread else revert_sync_batchnorm(model))
