"""Any model of timm as a backbone: features, maps by reduction, layer groups, and weights fitted to other images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from timm.models._manipulate import group_with_matcher
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import ConfigError
from .adapt_encoder import adapt_kernel
from .backbone import Backbone, Features, Level, words_of_size
from .pooling import Pooling
from .preprocessing import Preprocessing
from .timm_models import (
    GENERAL_LAYERS,
    Shapes,
    as_tokens,
    create_network,
    feature_maps,
    fitting_state,
    resized_state,
    shapes_of,
    takes_image_size,
)
from .timm_spec import TimmSpec

PREFIX = "net."
"""Prefix of the names of timm's parameters in a ``TimmBackbone``."""
_ABOVE = "-"
"""A name that no pattern of layers matches: timm puts such parameters above the last layer."""


class TimmBackbone(Backbone):
    """A model of timm without its classifier, in ``net``, whose parameters have timm's names.

    ``net``: a model that ``spec`` describes; None: a new one with random weights, drawn from torch's stream.
    Raises ConfigError for a name that timm doesn't have, and for arguments or sizes that the model doesn't take.
    """

    usual_pooling: ClassVar[Pooling] = "head"
    spec: TimmSpec

    def __init__(
        self,
        spec: TimmSpec,
        *,
        preprocessing: Preprocessing | None = None,
        drop_path: float = 0.0,
        net: Any = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.preprocessing = preprocessing or Preprocessing.default(spec.channels)
        self.net: Any = create_network(spec, drop_path) if net is None else net

    # ---- features

    def forward_features(self, images: Tensor) -> Features:
        """Features of images (B, C, H, W) of the backbone's size; ``head`` is what timm's own classifier would get."""
        output = self.net.forward_features(images)
        tokens = as_tokens(self.net, output)  # (B, prefix + N, D)
        prefix = self.shapes.prefix
        reduction = self.shapes.levels[-1].reduction
        return Features(
            class_token=tokens[:, 0] if prefix else None,
            tokens=tokens[:, prefix:],
            layers=(),
            grid=(-(-images.shape[-2] // reduction), -(-images.shape[-1] // reduction)),
            head=self.net.forward_head(output, pre_logits=True),
        )

    def forward(self, images: Tensor) -> Tensor:
        """What timm's own classifier would get, (B, D')."""
        return self.net(images)  # type: ignore[no-any-return]

    def maps(self, images: Tensor, indices: Sequence[int], *, norm: bool = False) -> list[Tensor]:
        return feature_maps(self.net, images, indices, norm)

    def train(self, mode: bool = True) -> TimmBackbone:
        """Training mode; batch norms that are frozen keep their mean and variance."""
        super().train(mode)
        keep_frozen_norms(self)
        return self

    # ---- shape

    @cached_property
    def shapes(self) -> Shapes:
        """What the model gives; raises ConfigError for an image size that it doesn't take."""
        return shapes_of(self.spec)

    def check_size(self) -> None:
        """Raise ConfigError for an image size that the model doesn't take."""
        _ = self.shapes

    @property
    def embed_dim(self) -> int:
        return self.shapes.embed_dim

    @property
    def num_tokens(self) -> int:
        return self.shapes.num_tokens

    @property
    def num_heads(self) -> int:
        dim = self.embed_dim
        return next(count for count in (dim // 64, dim // 32, dim // 16, 4, 2, 1) if count and dim % count == 0)

    @property
    def has_class_token(self) -> bool:
        return self.shapes.prefix > 0 and getattr(self.net, "cls_token", None) is not None

    @property
    def levels(self) -> tuple[Level, ...]:
        return self.shapes.levels

    @property
    def flops(self) -> float:
        return self.shapes.flops

    @property
    def activations(self) -> float:
        return self.shapes.activations

    def pooled_dim(self, pooling: Pooling) -> int:
        return self.shapes.head_dim if pooling == "head" else super().pooled_dim(pooling)

    @property
    def fixed_size(self) -> bool:
        """Whether only images of exactly ``spec.image_size`` go through it."""
        return takes_image_size(self.spec.architecture)

    def size_text(self) -> str:
        strides = list(dict.fromkeys(level.reduction for level in self.levels))
        what = f"patch {strides[0]} px" if self.plain else f"strides {', '.join(map(str, strides))} px"
        return f"{words_of_size(self.spec.image_size)}, {what}"

    # ---- layers

    @cached_property
    def _layers(self) -> Mapping[str, int]:
        matcher = getattr(self.net, "group_matcher", None)
        patterns = GENERAL_LAYERS if matcher is None else matcher()
        names = [(name, None) for name in (*dict(self.net.named_parameters()), _ABOVE)]
        return {
            str(name): int(layer) for name, layer in group_with_matcher(iter(names), patterns, reverse=True).items()
        }

    @property
    def num_layers(self) -> int:
        return self._layers[_ABOVE]

    def layer_of(self, name: str) -> int:
        """The layer of a parameter by timm's ``group_matcher``; what was added to a layer, as by LoRA, belongs to it."""
        if not name.startswith(PREFIX):
            return self.num_layers
        bare = name.removeprefix(PREFIX)
        while bare and bare not in self._layers:
            bare = bare.rpartition(".")[0]
            inside = [layer for known, layer in self._layers.items() if bare and known.startswith(f"{bare}.")]
            if inside:
                return max(inside)
        return self._layers.get(bare, self.num_layers)

    @property
    def no_decay(self) -> tuple[str, ...]:
        if not hasattr(self.net, "no_weight_decay"):
            return ()
        return tuple(PREFIX + name for name in sorted(self.net.no_weight_decay()))

    # ---- copies

    def file_state(self) -> Mapping[str, Tensor]:
        return self.net.state_dict()  # type: ignore[no-any-return]

    def resized(self, image_size: tuple[int, int], *, drop_path: float = 0.0) -> TimmBackbone:
        return self.fitted(replace(self.spec, image_size=image_size), drop_path=drop_path)

    def fitted(self, spec: TimmSpec, names: Sequence[str] = (), *, drop_path: float = 0.0) -> TimmBackbone:
        """A copy for another image size and other channels, which ``names`` name.

        Positions are resized by timm's own rule for the architecture, the first convolution is fitted as that of a plain ViT.
        torch's random stream doesn't move. Raises ConfigError for sizes and channels that the architecture doesn't take.
        """
        state = {name: tensor.detach() for name, tensor in self.net.state_dict().items()}
        if spec.channels != self.spec.channels:
            for kernel in self._first_kernels(state, spec.channels):
                state[kernel] = adapt_kernel(state[kernel], self.preprocessing.channel_names, names, spec.channels)
        with torch.random.fork_rng(devices=[]):
            result = TimmBackbone(spec, preprocessing=self.preprocessing, drop_path=drop_path)
        if spec.image_size != self.spec.image_size:
            state = resized_state(spec, state, result.net, self.spec.image_size)
        source = f"timm's {spec.architecture} at {words_of_size(spec.image_size)}"
        result.net.load_state_dict(fitting_state(result.net, state, source))
        first = next(self.parameters())
        return result.to(first.device, first.dtype)

    def _first_kernels(self, state: Mapping[str, Tensor], channels: int) -> list[str]:
        """The names of the weights that read the image; raises ConfigError where timm doesn't say."""
        names = self.net.pretrained_cfg.get("first_conv") or ()
        kernels = [f"{name}.weight" for name in ((names,) if isinstance(names, str) else names)]
        if not kernels or any(
            name not in state or state[name].ndim < 2 or state[name].shape[1] != self.spec.channels for name in kernels
        ):
            raise ConfigError(
                "channels",
                channels,
                f"{self.spec.channels}, as timm doesn't say which layers of {self.spec.architecture} read the channels",
            )
        return kernels


def keep_frozen_norms(module: nn.Module) -> None:
    """Put the batch norms whose weights are frozen into eval mode: they keep their mean and variance."""
    for norm in module.modules():
        if isinstance(norm, _BatchNorm) and not any(parameter.requires_grad for parameter in norm.parameters()):
            norm.eval()


def freeze_batch_norms(module: nn.Module) -> None:
    """Freeze the weights of batch norms, and with them their mean and variance, as detectors on small batches do."""
    for norm in module.modules():
        if isinstance(norm, _BatchNorm):
            norm.requires_grad_(False)


class TimmMaps(nn.Module):
    """The part of a timm model that gives some of its feature maps, in ``net``: what dense tasks train.

    ``indices``: places in the backbone's ``levels``; ``norm``: after the final norm. Weights are copied from ``backbone``.
    """

    def __init__(
        self, backbone: TimmBackbone, indices: Sequence[int], *, norm: bool = False, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        levels = [backbone.levels[index] for index in indices]
        self.indices, self.norm = tuple(indices), norm
        self.reductions = tuple(level.reduction for level in levels)
        self.channels = tuple(level.channels for level in levels)
        self.fixed_size = backbone.spec.image_size if backbone.fixed_size else None
        self.net: Any = backbone.resized(backbone.spec.image_size, drop_path=drop_path).float().net
        if hasattr(self.net, "prune_intermediate_layers"):
            self.net.prune_intermediate_layers(list(indices), prune_norm=not norm, prune_head=True)

    @property
    def patch_size(self) -> int:
        """The reduction of the last map, in pixels."""
        return self.reductions[-1]

    @property
    def embed_dim(self) -> int:
        """Channels of the last map."""
        return self.channels[-1]

    @property
    def size_divisibility(self) -> int:
        """Pixels that both sides of an image should be multiples of."""
        return max(self.reductions)

    def train(self, mode: bool = True) -> TimmMaps:
        """Training mode; batch norms that are frozen keep their mean and variance."""
        super().train(mode)
        keep_frozen_norms(self)
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, C, H, W) to maps (B, channels, H / reduction, W / reduction)."""
        return feature_maps(self.net, images, self.indices, self.norm)
