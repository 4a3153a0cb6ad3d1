"""Weights that training begins with, whosever they are: encoder files, checkpoints of others, timm's by their names."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from ..core.config import CheckpointError
from ..core.encoder import Encoder, Preprocessing, channel_names
from ..core.weights import EncoderFile, Provenance, read_encoder
from .importing import licence_beside, preprocessing_beside, weights_file

logger = logging.getLogger("maelift")

TIMM = "timm:"


def read_parent(source: str, key: str) -> EncoderFile:
    """The weights of a file, a folder, or timm:NAME, with the preprocessing that goes with them.

    Raises CheckpointError, which names the user's ``key`` for what timm can't give.
    """
    if source.startswith(TIMM):
        return _from_timm(source.removeprefix(TIMM), key)
    path = weights_file(Path(source))
    file = read_encoder(path)
    if not file.foreign:
        return file
    preprocessing, where = preprocessing_beside(path, file.encoder.spec.channels)
    logger.info("%s: %s; mean and deviation: %s", path, file.provenance.method, where)
    provenance = replace(file.provenance, licence=licence_beside(path))
    return replace(file, encoder=_prepared(file.encoder, preprocessing), provenance=provenance)


def red_first(encoder: Encoder) -> Encoder:
    """The same function of images whose channels come as red, green, blue."""
    old = encoder.preprocessing
    turned = replace(old, channel_names=("red", "green", "blue"), mean=old.mean[::-1], std=old.std[::-1])
    state = encoder.state_dict()
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].flip(1)
    result = Encoder(encoder.spec, preprocessing=turned)
    result.load_state_dict(state)
    return result


def _prepared(encoder: Encoder, preprocessing: Preprocessing) -> Encoder:
    result = Encoder(encoder.spec, preprocessing=preprocessing)
    result.load_state_dict(encoder.state_dict())
    return result


def _from_timm(name: str, key: str) -> EncoderFile:
    """Weights that timm fetches from where it publishes them; raises CheckpointError when it can't."""
    import timm

    try:
        model = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # the network, the hub and timm each have errors of their own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{key}={TIMM}{name}: timm could not give these weights ({reason}). Expected a plain ViT of timm with weights, "
            "and the network; or fetch them elsewhere and give the file."
        ) from error
    facts = model.pretrained_cfg
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.save(model.state_dict(), path)
        try:
            file = read_encoder(
                path,
                num_heads=model.blocks[0].attn.num_heads,
                norm_eps=model.norm.eps,
                image_size=tuple(model.patch_embed.img_size),
                preprocessing=Preprocessing(channel_names(3), tuple(facts["mean"]), tuple(facts["std"])),
            )
        except AttributeError as error:
            raise CheckpointError(
                f"{key}={TIMM}{name}: not a plain ViT. Expected one, as vit_base_patch16_224.mae."
            ) from error
    provenance = Provenance(method=f"timm {name}", parent=f"{TIMM}{name}", licence=facts.get("license"))
    return replace(file, provenance=provenance)
