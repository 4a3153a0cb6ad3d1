"""Models of timm by name: building one, what it gives for an image, and weights under its own names and sizes."""

from __future__ import annotations

import inspect
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..config_keys import nearest_names
from ..errors import CheckpointError, ConfigError
from .backbone import Level
from .encoder_shapes import key_mismatch
from .preprocessing import INTERPOLATIONS, Preprocessing, channel_names
from .timm_spec import TimmSpec
from .without_values import without_values

logger = logging.getLogger("maelift")

BUILD_ERRORS = (ValueError, TypeError, LookupError, RuntimeError, AssertionError, ArithmeticError, AttributeError)
"""What timm raises for arguments and sizes that a model doesn't take."""
GENERAL_LAYERS: dict[str, Any] = {
    "stem": r"^(?:stem|patch_embed|conv_stem|conv1|bn1|pos_embed|cls_token)",
    "blocks": [
        (r"^(?:stages|layers|blocks)\.(\d+)\.(?:blocks|layers)\.(\d+)", None),
        (r"^(?:stages|layers|blocks)\.(\d+)", (0,)),
    ],
}
"""Layers in the form of timm's ``group_matcher``, for models that have none of their own."""
SAVED_A_TOKEN = 17
"""Values saved for the backward pass by a block of a ViT, per token and channel (``training_memory``)."""


@dataclass(frozen=True)
class Shapes:
    """What a model gives for an image of its size, measured once.

    ``head_dim``: length of what its own classifier gets; ``prefix``: tokens before those of the patches.
    """

    embed_dim: int
    num_tokens: int
    head_dim: int
    prefix: int
    levels: tuple[Level, ...]
    flops: float
    activations: float


# ---- building


def timm_version() -> str:
    """The version of timm that is installed."""
    return str(timm.__version__)


def create_network(spec: TimmSpec, drop_path: float = 0.0) -> Any:
    """timm's model without a classifier, weights drawn at random from torch's stream."""
    check_name(spec.architecture)
    arguments = {**spec.arguments, "num_classes": 0, "in_chans": spec.channels}
    if takes_image_size(spec.architecture):
        arguments["img_size"] = spec.image_size
    try:
        if not drop_path:
            return timm.create_model(spec.architecture, pretrained=False, **arguments)
        try:
            return timm.create_model(spec.architecture, pretrained=False, **arguments, drop_path_rate=drop_path)
        except TypeError as error:
            if "drop_path_rate" not in str(error):
                raise
            logger.info("timm's %s has no stochastic depth: drop_path=%g is not used", spec.architecture, drop_path)
            return timm.create_model(spec.architecture, pretrained=False, **arguments)
    except BUILD_ERRORS as error:
        raise not_built(spec, error) from error


def not_built(spec: TimmSpec, error: Exception) -> ConfigError:
    """The error for a size or arguments that timm's model doesn't take."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    if "unexpected keyword argument" in reason or (spec.arguments and isinstance(error, TypeError)):
        return ConfigError("arguments", dict(spec.arguments), f"arguments of timm's {spec.architecture} ({reason})")
    usual = settings_of(spec.architecture).get("input_size", (3, 224, 224))[-2:]
    return ConfigError(
        "image_size",
        list(spec.image_size),
        f"a size that timm's {spec.architecture} takes ({reason})",
        f"Its own is [{usual[0]},{usual[1]}].",
    )


def check_name(architecture: str) -> None:
    """Raise ConfigError, with the nearest names, for an architecture that timm doesn't have."""
    if not timm.is_model(architecture):
        close = nearest_names(architecture, timm.list_models())
        raise ConfigError(
            "architecture",
            architecture,
            f"the name of a model of timm {timm_version()}",
            f"Did you mean {' or '.join(close)}?" if close else "See timm.list_models() in Python.",
        )


def settings_of(name: str) -> dict[str, Any]:
    """timm's ``pretrained_cfg`` of an architecture, or of weights by name and tag; {} where it has none."""
    try:
        found = timm.get_pretrained_cfg(name)
    except RuntimeError:  # a tag that this version doesn't have
        found = timm.get_pretrained_cfg(name.partition(".")[0])
    return {} if found is None else dict(found.to_dict())


@cache
def takes_image_size(architecture: str) -> bool:
    """Whether a model is built for one image size."""
    return bool(settings_of(architecture).get("fixed_input_size"))


def preprocessing_of(settings: Mapping[str, Any], channels: int) -> Preprocessing:
    """Mean, deviation and interpolation as timm's ``pretrained_cfg`` states them, else the usual ones."""
    mean, std = settings.get("mean"), settings.get("std")
    if not mean or not std or not len(mean) == len(std) == channels:
        return Preprocessing.default(channels)
    interpolation = settings.get("interpolation")
    known = interpolation if interpolation in INTERPOLATIONS else "bicubic"
    return Preprocessing(channel_names(channels), tuple(mean), tuple(std), interpolation=known)


# ---- what a model gives


def as_tokens(net: Any, output: Tensor) -> Tensor:
    """What ``forward_features`` gives, (B, N, D), (B, D, h, w) or (B, h, w, D), as tokens (B, N, D)."""
    if output.ndim == 4:
        last = getattr(net, "output_fmt", "NCHW") == "NHWC"
        return output.flatten(1, 2) if last else output.flatten(2).transpose(1, 2)
    return output if output.ndim == 3 else output.unsqueeze(1)


def feature_maps(net: Any, images: Tensor, indices: Sequence[int] | None, norm: bool) -> list[Tensor]:
    """Maps (B, C, h, w) of a model, by their place among all that it gives; None: all."""
    wanted = None if indices is None else list(indices)
    return list(
        net.forward_intermediates(images, indices=wanted, norm=norm, output_fmt="NCHW", intermediates_only=True)
    )


def shapes_of(spec: TimmSpec) -> Shapes:
    """What a model gives for an image of its size; measured on tensors without values, where timm allows it."""
    return _shapes(spec.architecture, spec.image_size, spec.channels, json.dumps(dict(spec.arguments), sort_keys=True))


@cache
def _shapes(architecture: str, image_size: tuple[int, int], channels: int, arguments: str) -> Shapes:
    spec = TimmSpec(architecture, image_size, channels, json.loads(arguments))
    check_name(architecture)
    with torch.random.fork_rng(devices=[]):
        try:
            with without_values():
                return _measured(create_network(spec), spec)
        except (ConfigError, *BUILD_ERRORS):  # some models need values to be built
            net = create_network(spec)
        try:
            return _measured(net, spec)
        except BUILD_ERRORS as error:
            raise not_built(spec, error) from error


@torch.no_grad()
def _measured(net: Any, spec: TimmSpec) -> Shapes:
    net.eval().requires_grad_(False)  # the counter follows gradients
    images = torch.zeros(1, spec.channels, *spec.image_size, device=next(net.parameters()).device)
    values = 0

    def count(module: nn.Module, inputs: object, output: object) -> None:
        nonlocal values
        values += output.numel() if isinstance(output, Tensor) else 0

    leaves = [module for module in net.modules() if not any(True for _ in module.children())]
    hooks = [module.register_forward_hook(count) for module in leaves]
    with FlopCounterMode(display=False) as counter:
        output = net.forward_features(images)
        head = net.forward_head(output, pre_logits=True)
        flops = float(counter.get_total_flops())
    for hook in hooks:
        hook.remove()
    if not isinstance(output, Tensor) or not isinstance(head, Tensor) or head.ndim != 2:
        raise CheckpointError(f"timm's {spec.architecture} gives its features in parts, which maelift can't use.")
    tokens = as_tokens(net, output)
    levels = _levels(net, images)
    prefix = _prefix_tokens(net) if output.ndim == 3 else 0
    return Shapes(
        embed_dim=tokens.shape[2],
        num_tokens=tokens.shape[1] - prefix,
        head_dim=head.shape[1],
        prefix=prefix,
        levels=levels,
        flops=flops,
        activations=values / SAVED_A_TOKEN,
    )


def _prefix_tokens(net: Any) -> int:
    """Tokens before those of the patches: class token, distillation token and registers."""
    found = getattr(net, "num_prefix_tokens", None)
    return int(found) if found is not None else int(getattr(net, "cls_token", None) is not None)


def _levels(net: Any, images: Tensor) -> tuple[Level, ...]:
    """The maps of a model; raises CheckpointError for one that gives none."""
    if not hasattr(net, "forward_intermediates"):
        raise CheckpointError(f"timm's {type(net).__name__} gives no feature maps, which maelift needs.")
    maps, stated = feature_maps(net, images, None, False), getattr(net, "feature_info", None) or []
    by_size = [round(images.shape[-2] / level.shape[-2]) for level in maps]
    reductions = [int(info["reduction"]) for info in stated] if len(stated) == len(maps) else by_size
    return tuple(Level(reduction, level.shape[1]) for reduction, level in zip(reductions, maps, strict=True))


# ---- weights


def resized_state(spec: TimmSpec, state: Mapping[str, Tensor], net: Any, before: tuple[int, int]) -> dict[str, Tensor]:
    """The tensors of a model for images of the size ``before`` fitted to ``net``, the same for ``spec.image_size``.

    By timm's own conversion for the architecture, which resizes positions; where it leaves absolute ones, by timm's function.
    """
    stated = getattr(net, "pretrained_model_args", {})
    net.pretrained_model_args = {**stated, "img_size": before}  # the grid that positions were trained for
    converted = convert_names(spec.architecture, state, net)
    net.pretrained_model_args = stated
    own, found = getattr(net, "pos_embed", None), converted.get("pos_embed")
    if isinstance(own, Tensor) and found is not None and found.ndim == 3 and found.shape != own.shape:
        grids = [_grid(count, size) for count, size in ((found.shape[1], before), (own.shape[1], spec.image_size))]
        converted["pos_embed"] = resample_abs_pos_embed(found, list(grids[1]), list(grids[0]), num_prefix_tokens=0)
    return converted


def _grid(count: int, image_size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of so many patches of an image."""
    rows = round((count * image_size[0] / image_size[1]) ** 0.5)
    return rows, count // max(1, rows)


def convert_names(architecture: str, state: Mapping[str, Tensor], net: Any) -> dict[str, Tensor]:
    """Tensors under the names and sizes of timm's model, by timm's own conversion for the architecture, where it has one."""
    module = sys.modules[timm.models.model_entrypoint(architecture).__module__]
    convert: Callable[..., Mapping[str, Tensor]] | None = getattr(module, "checkpoint_filter_fn", None) or getattr(
        module, "_filter_fn", None
    )
    if convert is None:
        return dict(state)
    parameters = inspect.signature(convert).parameters
    keys = {}
    if "adapt_layer_scale" in parameters and any(name.endswith(".gamma_1") for name in state):
        keys = {"adapt_layer_scale": True}
    converted = convert(dict(state), net, **keys) if len(parameters) > 1 else convert(dict(state))
    return dict(converted)


def fitting_state(net: Any, state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The tensors of a model without its classifier; raises CheckpointError where some are missing, or others left over.

    Counters of batches, which older files don't have, start at 0.
    """
    own = net.state_dict()
    names = net.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))
    found = {name: tensor for name, tensor in state.items() if name in own or not name.startswith(heads)}
    for name, tensor in own.items():
        if name.endswith(".num_batches_tracked"):
            found.setdefault(name, torch.zeros_like(tensor))
    missing = [name for name in own if name not in found]
    unexpected = [name for name in found if name not in own]
    unexpected += [
        f"{name} of shape {tuple(tensor.shape)} where {tuple(own[name].shape)} is due"
        for name, tensor in found.items()
        if name in own and tensor.shape != own[name].shape
    ]
    if missing or unexpected:
        raise key_mismatch(source, missing, unexpected, f"timm's {type(net).__name__}")
    return found
