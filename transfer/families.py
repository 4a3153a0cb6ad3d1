"""The families of architectures whose recipes differ from a plain ViT's, and what differs in them."""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import timm
import yaml
from torch import nn

from ..core.models.timm_models import create_network, shapes_of
from ..core.models.timm_spec import TimmSpec
from ..core.models.without_values import without_values
from .recipe import RECIPES

PLAIN = "vit"
"""The family of plain ViTs, whose recipes are those in transfer/recipes/ themselves."""
_BY_MODULE = {"metaformer": "convnext", "mambaout": "convnext", "resnetv2": "resnet", "byobnet": "resnet"}
"""Families of timm's modules where the layers alone don't show it."""
_PROBES = ("classify_linear", "classify_knn")


def family_of(spec: TimmSpec) -> str:
    """The family of a model of timm: vit, swin, convnext, efficientnet or resnet, by its feature maps and its layers."""
    if len({level.reduction for level in shapes_of(spec).levels}) == 1:
        return PLAIN
    module = timm.models.model_entrypoint(spec.architecture).__module__.rpartition(".")[2]
    with without_values():
        layers = list(create_network(spec).modules())
    kinds = {type(layer).__name__ for layer in layers}
    if any("Attention" in kind and "Pool" not in kind for kind in kinds):
        return "swin"
    if module in _BY_MODULE:
        return _BY_MODULE[module]
    depthwise = any(isinstance(layer, nn.Conv2d) and 1 < layer.in_channels == layer.groups for layer in layers)
    if not depthwise:
        return "resnet"
    return "efficientnet" if any(isinstance(layer, nn.BatchNorm2d) for layer in layers) else "convnext"


def family_defaults(spec: TimmSpec, recipe: str) -> dict[str, Any]:
    """What an architecture changes in the recipe of this name, "classify_encoder_small", say."""
    found = {"features": "head"} if recipe.startswith(_PROBES) else {}
    family = family_of(spec)
    return found if family == PLAIN else {**found, **_recipes(family).get(recipe, {})}


@cache
def _recipes(family: str) -> dict[str, dict[str, Any]]:
    path = RECIPES / "families" / f"{family}.yaml"
    return cast("dict[str, dict[str, Any]]", yaml.safe_load(path.read_text(encoding="utf-8")))
