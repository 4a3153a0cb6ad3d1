"""The backbone: what tasks need of a pretrained network, be it our own plain ViT or any model of timm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ..errors import ConfigError
from ..notebook import facts_table
from .encoder_spec import EncoderSpec
from .pooling import Pooling
from .preprocessing import Preprocessing
from .timm_spec import TimmSpec

BackboneSpec = EncoderSpec | TimmSpec
"""The shape of a backbone: of a plain ViT of ours, or of a model of timm."""


@dataclass(frozen=True)
class Features:
    """The result of ``Backbone.forward_features``.

    ``tokens`` (B, N, D) and ``class_token`` (B, D), both after the final norm; ``layers``: the patch tokens
    (B, N, D) after each requested block, before the final norm; ``grid``: patches along (height, width); ``head`` (B, D'):
    what the model's own classifier gets, where that is known.
    """

    class_token: Tensor | None
    tokens: Tensor
    layers: tuple[Tensor, ...]
    grid: tuple[int, int]
    head: Tensor | None = None

    def pooled(self) -> Tensor:
        """The mean over the patch tokens, (B, D)."""
        return self.tokens.mean(dim=1)


@dataclass(frozen=True)
class Level:
    """A feature map that a backbone gives: its ``reduction``, in pixels of the image a cell, and its channels."""

    reduction: int
    channels: int


class Backbone(nn.Module, ABC):
    """A network from images (B, C, H, W), normalised as ``preprocessing`` says, to features."""

    usual_pooling: ClassVar[Pooling] = "mean"
    """what a classifier on it pools"""
    spec: BackboneSpec
    preprocessing: Preprocessing
    origin: str | None = None
    """how its weights were made, where they were loaded from a file that says it"""

    @property
    @abstractmethod
    def embed_dim(self) -> int:
        """Channels of the tokens, D."""

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """Patch tokens of an image, or cells of the last feature map, N."""

    @property
    @abstractmethod
    def num_heads(self) -> int:
        """Attention heads that suit its width."""

    @property
    @abstractmethod
    def has_class_token(self) -> bool:
        """Whether there is a class token."""

    @property
    @abstractmethod
    def levels(self) -> tuple[Level, ...]:
        """The feature maps that ``maps`` can give: of a plain ViT one a block, else one a stage, finest first."""

    @property
    @abstractmethod
    def flops(self) -> float:
        """Floating-point operations on one image, forward."""

    @property
    @abstractmethod
    def activations(self) -> float:
        """Tokens times channels of one image, summed over the blocks: what training memory grows with (``training_memory``)."""

    @property
    @abstractmethod
    def num_layers(self) -> int:
        """Layers for the layer-wise rate: a head above the backbone is layer number ``num_layers``."""

    @property
    def no_decay(self) -> tuple[str, ...]:
        """Names of parameters with more than one axis that get no weight decay, besides the usual ones."""
        return ()

    @abstractmethod
    def layer_of(self, name: str) -> int:
        """The layer of a parameter by its name: 0 for embeddings and stem, ``num_layers`` for what isn't the backbone's."""

    @abstractmethod
    def forward_features(self, images: Tensor) -> Features:
        """Features of images (B, C, H, W)."""

    @abstractmethod
    def maps(self, images: Tensor, indices: Sequence[int], *, norm: bool = False) -> list[Tensor]:
        """Feature maps (B, C', H / reduction, W / reduction), by their place in ``levels``; ``norm``: after the final norm."""

    @abstractmethod
    def resized(self, image_size: tuple[int, int], *, drop_path: float = 0.0) -> Self:
        """A copy for images of ``image_size`` (height, width) in pixels; ``drop_path``: rate of stochastic depth."""

    @abstractmethod
    def size_text(self) -> str:
        """The image size and the patch or the strides, in words."""

    def file_state(self) -> Mapping[str, Tensor]:
        """The tensors under the names that they have in files: timm's."""
        return self.state_dict()

    @property
    def plain(self) -> bool:
        """Whether all feature maps have the same reduction, as those of a plain ViT."""
        return len({level.reduction for level in self.levels}) == 1

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.parameters()).device

    def _repr_html_(self) -> str:
        """A table for notebooks: the shape, its size, the images that it expects, and where its weights are from."""
        prepared = self.preprocessing
        low, high = prepared.value_range
        facts = [
            ("images", self.size_text()),
            ("channels", f"{self.spec.channels}: {', '.join(prepared.channel_names)}"),
            ("value range", f"{low:g} to {high:g}, stored with {prepared.bit_depth} bits"),
            ("mean, on the scale from 0 to 1", _numbers(prepared.mean)),
            ("standard deviation", _numbers(prepared.std)),
            ("tokens", f"{self.num_tokens:,} of {self.embed_dim:,} channels"),
            ("parameters", f"{sum(parameter.numel() for parameter in self.parameters()):,}"),
        ]
        origin = [] if self.origin is None else [("weights", self.origin)]
        name = f": {self.spec.architecture}" if isinstance(self.spec, TimmSpec) else ""
        return facts_table(f"{type(self).__name__}{name}", [*facts, *origin])

    def pooled_dim(self, pooling: Pooling) -> int:
        """The length of a pooled vector; raises ConfigError for what the backbone doesn't have."""
        if pooling == "head":
            raise ConfigError(
                "features", pooling, "mean, class_token or both: only timm's models have a head of their own"
            )
        if pooling != "mean" and not self.has_class_token:
            raise ConfigError("features", pooling, "mean, as this encoder has no class token")
        return self.embed_dim * (2 if pooling == "both" else 1)


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def words_of_size(image_size: tuple[int, int]) -> str:
    """An image size in words."""
    return f"{image_size[0]}×{image_size[1]} px"
