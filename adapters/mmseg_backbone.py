"""Modules for users' own mmseg configs: the encoder as backbone, its preprocessor, layer-wise learning rates.

A config names this module in ``custom_imports``; it registers MaeliftViT, MaeliftDataPreProcessor and MaeliftLayerDecay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.optim import DefaultOptimWrapperConstructor
from mmseg.models import SegDataPreProcessor
from mmseg.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS
from torch import Tensor, nn

from ..core.models.encoder_file import read_encoder
from ..core.training.optimizers import parameter_groups
from .mmseg_config import data_preprocessor, statistics
from .torchvision import vit_settings
from .vitdet_sizes import usual_global_blocks
from .windowed_vit import PlainViT, load_weights


@MODELS.register_module()
class MaeliftViT(PlainViT):
    """The encoder of a maelift file: images (B, C, H, W) of any size to maps (B, D, H/p, W/p), one a block in ``out_indices``.

    The shape is read from ``encoder``, the weights only when mmengine initialises a model for training, so that a
    checkpoint loaded afterwards stands. ``window_size`` (patches a side) is that of all blocks but ``global_blocks``, by
    default the last of each quarter. ``class_token``: by default as the encoder has it, and none with windows.
    ``pretrained=False`` gives the same network with new weights, the baseline to compare with. Raises ValueError for
    settings that don't fit each other.
    """

    def __init__(
        self,
        encoder: str,
        out_indices: Sequence[int] = (-1,),
        *,
        window_size: int = 0,
        global_blocks: Sequence[int] | None = None,
        class_token: bool | None = None,
        drop_path_rate: float = 0.0,
        final_norm: bool = False,
        pretrained: bool = True,
    ) -> None:
        if not isinstance(pretrained, bool):
            raise ValueError(
                f"pretrained={pretrained}: expected True or False; the weights are those of encoder={encoder}"
            )
        described = read_encoder(encoder).encoder
        spec = described.spec
        everywhere = usual_global_blocks(spec.depth) if global_blocks is None else tuple(global_blocks)
        if class_token and not spec.class_token:
            raise ValueError(f"class_token=True: {encoder} has no class token")
        if window_size and len(everywhere) == spec.depth:
            raise ValueError(
                f"window_size={window_size}: none of {spec.depth} blocks would have windows; give global_blocks"
            )
        super().__init__(
            **vit_settings(described, 0)
            | {
                "window_size": window_size,
                "class_token": (spec.class_token and not window_size) if class_token is None else class_token,
                "global_blocks": everywhere if window_size else (),
                "out_indices": out_indices,
                "drop_path": drop_path_rate,
                "final_norm": final_norm,
            }
        )
        self.encoder, self.pretrained = encoder, pretrained

    def init_weights(self) -> None:
        """Load the encoder's weights, each of them or none; mmengine calls it before training."""
        if self.pretrained:
            load_weights(self, read_encoder(self.encoder).encoder.state_dict())
        else:
            self.initialize()


@MODELS.register_module()
class MaeliftDataPreProcessor(SegDataPreProcessor):  # type: ignore[misc]
    """mmseg's preprocessor with mean, deviation and channel order of a maelift file; refuses images of other channels.

    Images are padded to ``size`` (height, width) in pixels, or without it to multiples of ``size_divisor``, by default the
    patch; ``test_cfg`` says the same for tests.
    """

    def __init__(
        self,
        encoder: str,
        *,
        size: tuple[int, int] | None = None,
        size_divisor: int | None = None,
        seg_pad_val: int = 255,
        test_cfg: dict[str, Any] | None = None,
        batch_augments: Any = None,
    ) -> None:
        described = read_encoder(encoder).encoder
        settings = data_preprocessor(described)
        divisor = None if size else size_divisor or settings["size_divisor"]
        super().__init__(
            bgr_to_rgb=settings["bgr_to_rgb"],
            size=size,
            size_divisor=divisor,
            pad_val=0,
            seg_pad_val=seg_pad_val,
            test_cfg=test_cfg or settings["test_cfg"],
            batch_augments=batch_augments,
        )
        self.channels = described.spec.channels
        self._enable_normalize = True  # mmengine itself takes means of 1 or 3 channels only
        for key, values in statistics(described).items():
            self.register_buffer(key, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        for image in data["inputs"]:
            if isinstance(image, Tensor) and image.shape[-3] != self.channels:
                raise ValueError(
                    f"images of {image.shape[-3]} channels, the encoder needs {self.channels}: see color_type and "
                    "imdecode_backend of LoadImageFromFile"
                )
        return super().forward(data, training)  # type: ignore[no-any-return]


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class MaeliftLayerDecay(DefaultOptimWrapperConstructor):  # type: ignore[misc]
    """Layer-wise learning rates for ``MaeliftViT``: ``paramwise_cfg=dict(decay_rate=0.65)``.

    The rate of the last block and of the heads is the optimiser's, that of each earlier block ``decay_rate`` times that of
    the next. Vectors, biases, positions and the class token get no weight decay (MAE, Appendix A.1).
    """

    def add_params(self, params: list[dict[str, Any]], module: nn.Module, **_: Any) -> None:
        backbone: Any = module.get_submodule("backbone")
        if not isinstance(backbone, PlainViT):
            raise ValueError(f"MaeliftLayerDecay is for the backbone MaeliftViT, not for {type(backbone).__name__}")
        names = {name: name.removeprefix("backbone.") for name, _ in module.named_parameters()}
        groups = parameter_groups(
            ((names[name], parameter) for name, parameter in module.named_parameters()),
            weight_decay=self.base_wd or 0.0,
            depth=backbone.depth,
            layer_decay=self.paramwise_cfg.get("decay_rate", 1.0),
        )
        params.extend(
            {
                "params": group["params"],
                "lr": self.base_lr * group["lr_scale"],
                "weight_decay": group["weight_decay"],
                "lr_scale": group["lr_scale"],
            }
            for group in groups
        )
