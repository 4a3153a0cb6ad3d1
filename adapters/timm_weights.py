"""Files of weights for models of timm: timm's own, those of the papers' authors, DINO's teachers, and torchvision's."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.errors import CheckpointError, ConfigError
from ..core.models.backbone import Backbone
from ..core.models.encoder_file import EncoderFile
from ..core.models.state_dicts import SelectedState, select_state
from ..core.models.stored_contract import CONTRACT_KEY
from ..core.models.tensor_files import check_finite, check_tensors, read_checkpoint
from ..core.models.timm_models import BUILD_ERRORS, convert_names, create_network, fitting_state, settings_of
from ..core.models.timm_spec import TIMM, TimmSpec
from ..core.models.weight_files import INDEX_SUFFIX, read_json, weights_file
from ..core.public_names import public_name
from .published import backbone_file, check_name, spec_of

logger = logging.getLogger("maelift")


def from_timm_file(name: str, path: str, key: str) -> EncoderFile[Backbone]:
    """Weights in a file for the model of timm that ``name`` names; without the classifier.

    Raises ConfigError for a name that timm doesn't have, CheckpointError for tensors that aren't the model's.
    """
    check_name(name, key)
    file, settings = weights_file(Path(path)), settings_of(name)
    return _read(file, spec_of(name.partition(".")[0], settings), settings, name, f"{key}={TIMM}{name}@{path}")


def from_timm_folder(folder: Path) -> EncoderFile[Backbone]:
    """The model of a folder in timm's layout (config.json beside the weights).

    Raises CheckpointError for an architecture that timm doesn't have, and for tensors that aren't the model's.
    """
    spec, settings = folder_settings(folder)
    return _read(weights_file(folder), spec, settings, spec.architecture, str(folder))


def folder_settings(folder: Path) -> tuple[TimmSpec, Mapping[str, Any]]:
    """The spec and the ``pretrained_cfg`` in a folder's config.json; raises CheckpointError."""
    content = read_json(folder / "config.json")
    name, arguments, settings = (content.get(key) for key in ("architecture", "model_args", "pretrained_cfg"))
    stated = settings if isinstance(settings, Mapping) else settings_of(str(name))
    try:
        return spec_of(str(name).partition(".")[0], stated, arguments if isinstance(arguments, Mapping) else {}), stated
    except (ConfigError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: does not describe a model of timm ({error})") from error


def _read(file: Path, spec: TimmSpec, settings: Mapping[str, Any], name: str, source: str) -> EncoderFile[Backbone]:
    selected = _selected(file, settings)
    for note in selected.notes:
        logger.info("%s: %s", file, note)
    spec = replace(spec, channels=_channels(selected.state, settings) or spec.channels)
    net = create_network(spec)
    try:
        state = convert_names(spec.architecture, of_torchvision(selected.state), net)
    except BUILD_ERRORS as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"{source}: not the weights of timm's {spec.architecture} ({reason}).") from error
    net.load_state_dict(fitting_state(net, {name: _floats(tensor) for name, tensor in state.items()}, source))
    return backbone_file(net, spec, name, settings, parent=public_name(str(file)))


def _floats(tensor: Tensor) -> Tensor:
    """float32 in place of other floating-point numbers."""
    return tensor.float() if tensor.is_floating_point() else tensor


def _selected(file: Path, settings: Mapping[str, Any]) -> SelectedState:
    """The tensors of a file: of several states or branches the preferred one, without the prefix of their module."""
    content, metadata = read_checkpoint(file)
    if CONTRACT_KEY in metadata:
        raise CheckpointError(f"{file}: an encoder file of maelift, which says its architecture itself: give it alone.")
    selected = select_state(str(file), content)
    if not file.name.endswith(INDEX_SUFFIX):
        check_tensors(file, selected.state)
    check_finite(str(file), selected.state)
    first = _first_kernel(settings)
    if first is None or first in selected.state:
        return selected
    prefix = next((name.removesuffix(first) for name in selected.state if name.endswith(f".{first}")), "")
    inside = {name.removeprefix(prefix): value for name, value in selected.state.items() if name.startswith(prefix)}
    notes = (f"{prefix.removesuffix('.')} is taken, {len(selected.state) - len(inside)} tensors outside it left out",)
    return replace(selected, state=inside, notes=(*selected.notes, *notes)) if prefix else selected


def _first_kernel(settings: Mapping[str, Any]) -> str | None:
    """The name of the weight that reads the image."""
    first = settings.get("first_conv")
    name = first if isinstance(first, str) or not first else first[0]
    return f"{name}.weight" if name else None


def _channels(state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> int | None:
    """The channels of the images that weights read; None where that can't be seen."""
    kernel = state.get(_first_kernel(settings) or "")
    return kernel.shape[1] if kernel is not None and kernel.ndim == 4 else None


# ---- torchvision's names


def of_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of torchvision's ConvNeXt and Swin under timm's names; others, ResNets and RegNets too, stay as they are."""
    if "features.1.0.layer_scale" in state:
        return {_rename(name, _CONVNEXT): _flat(name, value) for name, value in state.items()}
    if "features.1.0.attn.relative_position_bias_table" in state:
        kept = {name: value for name, value in state.items() if not name.endswith("relative_position_index")}
        return {_rename(name, _SWIN): value for name, value in kept.items()}
    return dict(state)


def _flat(name: str, value: Tensor) -> Tensor:
    """Layer scale of torchvision is (C, 1, 1), that of timm (C,)."""
    return value.flatten() if name.endswith("layer_scale") else value


def _stage(match: re.Match[str]) -> str:
    return str((int(match[1]) - 1) // 2)


_CONVNEXT = (
    (r"^features\.0\.([01])\.", lambda match: f"stem.{match[1]}."),
    (r"^features\.([2468])\.([01])\.", lambda match: f"stages.{int(match[1]) // 2}.downsample.{match[2]}."),
    (r"^features\.(\d)\.(\d+)\.layer_scale$", lambda match: f"stages.{_stage(match)}.blocks.{match[2]}.gamma"),
    (r"^features\.(\d)\.(\d+)\.block\.0\.", lambda match: f"stages.{_stage(match)}.blocks.{match[2]}.conv_dw."),
    (r"^features\.(\d)\.(\d+)\.block\.2\.", lambda match: f"stages.{_stage(match)}.blocks.{match[2]}.norm."),
    (r"^features\.(\d)\.(\d+)\.block\.3\.", lambda match: f"stages.{_stage(match)}.blocks.{match[2]}.mlp.fc1."),
    (r"^features\.(\d)\.(\d+)\.block\.5\.", lambda match: f"stages.{_stage(match)}.blocks.{match[2]}.mlp.fc2."),
    (r"^classifier\.0\.", lambda match: "head.norm."),
    (r"^classifier\.2\.", lambda match: "head.fc."),
)
_SWIN = (
    (r"^features\.0\.0\.", lambda match: "patch_embed.proj."),
    (r"^features\.0\.2\.", lambda match: "patch_embed.norm."),
    (r"^features\.([246])\.(reduction|norm)\.", lambda match: f"layers.{int(match[1]) // 2}.downsample.{match[2]}."),
    (r"^features\.(\d)\.(\d+)\.mlp\.0\.", lambda match: f"layers.{_stage(match)}.blocks.{match[2]}.mlp.fc1."),
    (r"^features\.(\d)\.(\d+)\.mlp\.3\.", lambda match: f"layers.{_stage(match)}.blocks.{match[2]}.mlp.fc2."),
    (r"^features\.(\d)\.(\d+)\.", lambda match: f"layers.{_stage(match)}.blocks.{match[2]}."),
    (r"^head\.", lambda match: "head.fc."),
)
"""Patterns of torchvision's names, and timm's in their place; the first that matches is taken."""


def _rename(name: str, rules: tuple[tuple[str, Any], ...]) -> str:
    for pattern, replacement in rules:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name)
    return name
