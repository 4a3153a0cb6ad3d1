"""Hints on a model from config files and checkpoint records: heads, epsilon, activation and image size."""

from __future__ import annotations

import ast
import difflib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError
from .encoder import ACTIVATIONS
from .plain_vit_checks import PRE_NORM, why_not_plain
from .weight_files import read_json
from .without_values import without_values

logger = logging.getLogger("maelift")


@dataclass(frozen=True)
class ConfigHints:
    """Facts on a model that tensors don't show, from a file beside the weights or a record in the checkpoint.

    None: unknown. ``image_size``: (height, width) in pixels; ``final_norm``: False if there is none; ``sources``: where the
    facts are from; ``refusal``: why the named model is not supported; ``given``: the user named the model.
    """

    num_heads: int | None = None
    norm_eps: float | None = None
    image_size: tuple[int, int] | None = None
    act: str | None = None
    final_norm: bool | None = None
    embed_dim: int | None = None
    depth: int | None = None
    sources: tuple[str, ...] = ()
    refusal: str | None = None
    given: bool = False

    def __bool__(self) -> bool:
        return any(
            getattr(self, field.name) not in (None, ())
            for field in fields(self)
            if field.name not in ("sources", "given")
        )

    def completed_by(self, other: ConfigHints) -> ConfigHints:
        """These hints, completed by those of ``other`` where they are unknown."""
        added = {
            field.name: getattr(other, field.name)
            for field in fields(self)
            if field.name not in ("sources", "given") and getattr(self, field.name) is None
        }
        used = other.sources if any(value is not None for value in added.values()) else ()
        return replace(self, **added, sources=(*self.sources, *used))


def hints_of(path: Path, records: Mapping[str, object], method: str) -> ConfigHints:
    """Hints from the checkpoint's records, completed by files beside it; ``method``: whose names the tensors have."""
    hints = ConfigHints()
    for found in (hints_within(records, method), hints_beside(path, method)):
        hints = hints.completed_by(found)
    return hints


# ---- files beside the weights


def hints_beside(path: Path, method: str) -> ConfigHints:
    """Hints from the ``config.json`` or ``backbone.json`` beside weights.

    The epsilon of transformers' ViTMAE configurations is ignored: 1e-12 is a default that the weights were not trained with.
    """
    if path.name == "backbone.pth":
        return _of_torchvision_export(_mapping(read_json(path.with_name("backbone.json")).get("backbone")))
    config = read_json(path.with_name("config.json"))
    if isinstance(architecture := config.get("architecture"), str):
        if method.startswith(("transformers", "torchvision")):
            return ConfigHints()
        return hints_of_timm(architecture, _mapping(config.get("model_args")), "config.json beside the weights")
    if isinstance(config.get("model_type"), str) and method.startswith("transformers"):
        return hints_of_transformers(config)
    return ConfigHints()


def _of_torchvision_export(settings: Mapping[str, object]) -> ConfigHints:
    return ConfigHints(
        num_heads=_whole(settings.get("num_heads")),
        norm_eps=_real(settings.get("norm_eps")),
        image_size=_size(settings.get("image_size")),
        act=str(settings.get("act", "gelu")) if settings else None,
        sources=("backbone.json beside the weights",),
    )


_DEFAULT_EPS = {
    "vit": 1e-12,
    "vit_mae": None,
    "deit": 1e-12,
    "vit_msn": 1e-6,
    "ijepa": 1e-12,
    "beit": 1e-12,
    "data2vec-vision": 1e-12,
    "dinov2": 1e-6,
    "dinov2_with_registers": 1e-6,
    "siglip_vision_model": 1e-6,
    "clip_vision_model": 1e-5,
}
"""transformers' models that may be plain ViTs, and the epsilon of their configurations where none is written."""
_POOLED = ("beit", "data2vec-vision")
"""Those that norm the mean of their tokens, and not the tokens, with ``use_mean_pooling``, their default."""
_VISION_PARTS = {"siglip": "siglip_vision_model", "clip": "clip_vision_model"}
_TRANSFORMERS_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""transformers' names for ``ACTIVATIONS``."""


def hints_of_transformers(config: Mapping[str, object]) -> ConfigHints:
    """Hints from transformers' ``config.json``, with the defaults of its model types for missing keys."""
    kind, source = str(config["model_type"]), "config.json beside the weights"
    if kind in _VISION_PARTS and isinstance(config.get("vision_config", {}), Mapping):
        kind, config = _VISION_PARTS[kind], _mapping(config.get("vision_config"))
    if kind not in _DEFAULT_EPS:
        known = ", ".join(sorted(_DEFAULT_EPS))
        return ConfigHints(
            sources=(source,),
            refusal=f"{source} says model_type {kind}, none of transformers' plain ViTs ({known})",
        )
    named = config.get("hidden_act", "gelu_pytorch_tanh" if kind.startswith("siglip") else "gelu")
    act = _TRANSFORMERS_ACTIVATIONS.get(str(named))
    eps = None if kind == "vit_mae" else _real(config.get("layer_norm_eps", _DEFAULT_EPS[kind]))
    return ConfigHints(
        num_heads=_whole(config.get("num_attention_heads", 12)),
        norm_eps=eps,
        image_size=_size(config.get("image_size", 224)),
        act=act,
        final_norm=False if kind in _POOLED and config.get("use_mean_pooling", True) else None,
        embed_dim=_whole(config.get("hidden_size", 768)),
        depth=_whole(config.get("num_hidden_layers", 12)),
        sources=(source,),
        refusal=None if act else f"{source} says hidden_act {named}; an encoder has one of {', '.join(ACTIVATIONS)}",
    )


# ---- timm


_TIMM_SETTINGS = (
    "img_size",
    "patch_size",
    "in_chans",
    "embed_dim",
    "num_heads",
    "mlp_ratio",
    "qkv_bias",
    "qk_norm",
    "scale_attn_norm",
    "scale_mlp_norm",
    "proj_bias",
    "init_values",
    "class_token",
    "pos_embed",
    "no_embed_class",
    "reg_tokens",
    "pre_norm",
    "final_norm",
    "fc_norm",
    "global_pool",
    "dynamic_img_size",
    "act_layer",
    "norm_layer",
)
"""Keywords of timm's ViTs that define the architecture; others, as checkpoint paths, are not passed to timm."""


def hints_of_timm(architecture: str, settings: Mapping[str, object], said_by: str) -> ConfigHints:
    """Hints from timm's model of this name, which is built on the meta device with one block."""
    import timm

    name = architecture.split(".")[0]
    source = f"timm's {name}, which {said_by} names"
    if not timm.is_model(name):
        return ConfigHints()
    plain = {key: value for key, value in settings.items() if key in _TIMM_SETTINGS and _is_plain(value)}
    try:
        with without_values():
            model = timm.create_model(name, pretrained=False, num_classes=0, **{**plain, "depth": 1})
    except (
        Exception
    ) as error:  # keywords that this architecture hasn't, sizes that don't fit: timm has no error of its own
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        return ConfigHints(
            sources=(source,), refusal=f"{said_by} names timm's {name}, which is no plain ViT ({reason})"
        )
    return replace(hints_of_model(model, f"{said_by} names timm's {name}"), sources=(source,))


def hints_of_architecture(name: str) -> ConfigHints:
    """Hints from timm's model of a name that the user gives; raises ConfigError if timm has none."""
    import timm

    if not timm.is_model(name.split(".")[0]):
        close = difflib.get_close_matches(name.split(".")[0], timm.list_models("*vit*"), 1)
        advice = f"Did you mean {close[0]}?" if close else ""
        raise ConfigError("architecture", name, "the name of a model of timm's, as vit_base_patch16_224", advice)
    found = hints_of_timm(name, {}, f"architecture={name}")
    return replace(found, given=True, sources=(f"timm's {name}",), refusal=found.refusal)


def hints_of_model(model: nn.Module, said: str) -> ConfigHints:
    """Hints from the modules of a timm model; its tensors may be on the meta device.

    ``said``: the beginning of a refusal's sentence, as "config.json names timm's swin_tiny_patch4_window7_224".
    """
    reason = why_not_plain(model)
    if reason:
        return ConfigHints(refusal=f"{said}: {reason}")
    net: Any = model
    block = net.blocks[0]
    act = _activation_of(block.mlp.act)
    if act is None:
        return ConfigHints(
            refusal=f"{said}: its activation is {type(block.mlp.act).__name__}, none of {', '.join(ACTIVATIONS)}"
        )
    return ConfigHints(
        num_heads=block.attn.num_heads,
        norm_eps=block.norm1.eps,
        image_size=_size(list(net.patch_embed.img_size or ())),
        act=act,
        final_norm=not isinstance(net.norm, nn.Identity),
        embed_dim=net.embed_dim,
    )


def _activation_of(module: nn.Module) -> str | None:
    """The name of an activation, recognised by its values."""
    values = torch.linspace(-4, 4, 33)
    found = module(values.clone())
    return next((name for name, make in ACTIVATIONS.items() if torch.allclose(make()(values), found, atol=1e-7)), None)


# ---- records within a checkpoint

_REFERENCE = re.compile(r"(?:mae_)?vit_(tiny|small|base|large|huge)(?:_patch(\d+))?(?:_dec\d+d\d+b)?")
"""Model names of the reference implementations of MAE, DINO, iBOT and MoCo v3."""
_REFERENCE_HEADS = {"tiny": 3, "small": 6, "base": 12, "large": 16, "huge": 16}
_REFERENCE_WIDTHS = {"tiny": 192, "small": 384, "base": 768, "large": 1024, "huge": 1280}


def hints_within(records: Mapping[str, object], method: str) -> ConfigHints:
    """Hints from a checkpoint's records: parsed arguments, architecture's name, mmengine's config."""
    arguments = {**_mapping(records.get("hyper_parameters")), **_mapping(records.get("args"))}
    meta = records.get("meta")
    if isinstance(meta, Mapping) and isinstance(config := meta.get("cfg"), str):
        return _of_mmengine(config)
    name = next(
        (
            value
            for value in (records.get("arch"), *(arguments.get(key) for key in ("model", "arch", "model_name")))
            if isinstance(value, str)
        ),
        None,
    )
    if name is None:
        return ConfigHints()
    size = next(
        (found for key in ("input_size", "img_size", "image_size") if (found := _size(arguments.get(key)))), None
    )
    source = "the checkpoint's own arguments"
    if known := _REFERENCE.fullmatch(name):
        heads = 12 if "MoCo" in method and known[1] == "small" else _REFERENCE_HEADS[known[1]]
        width = _REFERENCE_WIDTHS[known[1]]
        return ConfigHints(heads, 1e-6, size, "gelu", embed_dim=width, sources=(f"{name}, which {source} name",))
    settings = {**_mapping(arguments.get("model_kwargs")), **({"img_size": list(size)} if size else {})}
    return hints_of_timm(name, settings, "a record in the checkpoint")


_MMPRETRAIN_HEADS = {
    **dict.fromkeys(("s", "small"), 8),
    **dict.fromkeys(("b", "base", "deit-b", "deit-base"), 12),
    **dict.fromkeys(("l", "large", "h", "huge", "eva-g", "eva-giant"), 16),
    **dict.fromkeys(("deit-t", "deit-tiny"), 3),
    **dict.fromkeys(("deit-s", "deit-small", "dinov2-s", "dinov2-small"), 6),
}
"""Attention heads of mmpretrain's ``arch``; its small is 768 wide and has 8."""


def _of_mmengine(text: str) -> ConfigHints:
    """The backbone in the text of an mmengine config; nothing of it is run."""
    model = _assigned(text, "model")
    backbone = model.get("backbone") if isinstance(model, Mapping) else None
    if not isinstance(backbone, Mapping):
        return ConfigHints()
    norm, act = _mapping(backbone.get("norm_cfg")), _mapping(backbone.get("act_cfg"))
    of_mmpretrain = "arch" in backbone or str(backbone.get("type", "")).startswith("mmpretrain.")
    named = str(act.get("type", "GELU"))
    known = {"GELU": "gelu", "ReLU": "relu", "SiLU": "silu", "Swish": "silu", "QuickGELU": "quick_gelu"}.get(named)
    if norm.get("type", "LN") != "LN":
        return ConfigHints(
            refusal=f"the config in the checkpoint says norm_cfg {norm['type']}, where an encoder has LayerNorms"
        )
    if known is None:
        return ConfigHints(
            refusal=f"the config in the checkpoint says act_cfg {named}; an encoder has one of {', '.join(ACTIVATIONS)}"
        )
    if backbone.get("pre_norm") is True:
        return ConfigHints(refusal=f"the config in the checkpoint says pre_norm: {PRE_NORM}")
    arch = backbone.get("arch")
    heads = _mapping(arch).get("num_heads") if isinstance(arch, Mapping) else _MMPRETRAIN_HEADS.get(str(arch))
    return ConfigHints(
        num_heads=_whole(backbone.get("num_heads", heads if of_mmpretrain else 12)),
        norm_eps=_real(norm.get("eps", 1e-6 if of_mmpretrain else 1e-5)),
        image_size=_size(backbone.get("img_size")),
        act=known,
        sources=("the config in the checkpoint",),
    )


def _assigned(text: str, name: str) -> object:
    """The value of ``name = ...`` in Python text, made of dict(), literals and lists; None where it is anything else."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    for statement in tree.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            assert isinstance(statement, ast.Assign)
            return _literal(statement.value)
    return None


def _literal(node: ast.expr) -> object:
    """A value written as a literal or as dict(key=...); None in place of what is neither."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {word.arg: _literal(word.value) for word in node.keywords if word.arg}
    if isinstance(node, ast.Dict):
        keys = [_literal(key) if key is not None else None for key in node.keys]
        return {key: _literal(value) for key, value in zip(keys, node.values, strict=True) if isinstance(key, str)}
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(item) for item in node.elts]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None


# ---- values as JSON and records have them


def _mapping(value: object) -> Mapping[str, object]:
    if isinstance(value, Mapping):
        return value
    inside = getattr(value, "__dict__", None)  # argparse.Namespace
    return inside if isinstance(inside, dict) else {}


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | str) or _size(value) is not None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _real(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None


def _size(value: object) -> tuple[int, int] | None:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return (value, value)
    if isinstance(value, list | tuple) and len(value) == 2 and all(_whole(side) for side in value):
        return (value[0], value[1])
    return None
