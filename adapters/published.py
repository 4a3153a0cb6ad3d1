"""Published weights that timm downloads by name, with the metadata that timm has for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.errors import CheckpointError
from ..core.models.config_hints import hints_of_model
from ..core.models.convert_weights import convert_encoder
from ..core.models.encoder_file import EncoderFile, Provenance
from ..core.models.preprocessing import Preprocessing, channel_names
from ..core.models.state_dicts import SelectedState

TIMM = "timm:"


def timm_name(source: str) -> str | None:
    """The name of timm's weights that a source is: with timm: before it, or alone where no such file is there."""
    if source.startswith(TIMM):
        return source.removeprefix(TIMM)
    if (
        "/" in source
        or Path(source).exists()
        or Path(source).suffix in (".pth", ".pt", ".bin", ".safetensors", ".ckpt")
    ):
        return None
    import timm

    return source if timm.is_model(source.split(".")[0]) else None


def from_timm(name: str, key: str) -> EncoderFile:
    """Weights that timm fetches from where it publishes them; raises CheckpointError when it can't, or for other models."""
    import timm

    try:
        model: Any = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # the network, the hub and timm each have errors of their own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{key}={TIMM}{name}: timm could not give these weights ({reason}). Expected a plain ViT of timm with weights, "
            "and the network; or fetch them elsewhere and give the file."
        ) from error
    settings = model.pretrained_cfg
    hints = replace(hints_of_model(model, "timm"), sources=("timm",))
    if hints.refusal:
        raise CheckpointError(
            f"{key}={TIMM}{name}: not a plain ViT ({hints.refusal.removeprefix('timm: ')}). Expected one, as "
            "vit_base_patch16_224.mae."
        )
    usual = Preprocessing(channel_names(3), tuple(settings["mean"]), tuple(settings["std"]))
    if settings.get("interpolation") in ("bilinear", "nearest"):
        usual = replace(usual, interpolation=settings["interpolation"])
    source = f"{TIMM}{name}"
    selected = SelectedState(dict(model.state_dict()))
    file = EncoderFile.of_converted(convert_encoder(selected, source, hints=hints, preprocessing=usual), source)
    provenance = Provenance(method=f"timm {name}", parent=f"{TIMM}{name}", licence=settings.get("license"))
    return replace(file, provenance=provenance)
