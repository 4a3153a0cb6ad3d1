"""What a backbone of a shape costs, without its weights: operations, parameters, activations."""

from __future__ import annotations

from functools import lru_cache

from .backbone import Backbone, BackboneSpec
from .build_backbone import build_backbone
from .cost import encoder_flops
from .encoder_spec import EncoderSpec
from .timm_models import shapes_of
from .without_values import without_values


def backbone_flops(spec: BackboneSpec) -> float:
    """Floating-point operations on one image, forward."""
    return encoder_flops(spec) if isinstance(spec, EncoderSpec) else shapes_of(spec).flops


def backbone_parameters(spec: BackboneSpec) -> int:
    """How many parameters it has."""
    if isinstance(spec, EncoderSpec):
        return _parameters_of(spec)
    return _count(_shape_only(spec))


def backbone_activations(spec: BackboneSpec) -> float:
    """Tokens times channels of one image, summed over the blocks (``cost.training_memory``)."""
    if isinstance(spec, EncoderSpec):
        return (spec.num_patches + 1) * spec.embed_dim * spec.depth
    return shapes_of(spec).activations


@lru_cache
def _parameters_of(spec: EncoderSpec) -> int:
    return _count(_shape_only(spec))


def _shape_only(spec: BackboneSpec) -> Backbone:
    """A backbone without values, as far as it can be built without."""
    try:
        with without_values():
            return build_backbone(spec)
    except NotImplementedError:  # some of timm's read values while they are built
        return build_backbone(spec)


def _count(backbone: Backbone) -> int:
    return sum(parameter.numel() for parameter in backbone.parameters())
