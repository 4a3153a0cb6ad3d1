"""Pretrained weights to start from: encoder files, checkpoints of other libraries, timm models by name."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from ..core.models.encoder import Encoder
from ..core.models.encoder_file import EncoderFile, read_encoder
from ..core.models.preprocessing import Preprocessing
from ..core.models.weight_files import weights_file
from .import_weights import licence_beside, preprocessing_beside
from .published import from_timm, timm_name

logger = logging.getLogger("maelift")


def read_pretrained(source: str, key: str) -> EncoderFile:
    """The weights of a file, a folder, or timm:NAME, with the preprocessing that goes with them.

    Raises CheckpointError, which names the user's ``key`` for what timm can't give.
    """
    if (name := timm_name(source)) is not None:
        return from_timm(name, key)
    path = weights_file(Path(source))
    file = read_encoder(path)
    if not file.foreign:
        return file
    preprocessing, where = preprocessing_beside(path, file.encoder.spec.channels)
    logger.info("%s: %s; mean and deviation: %s", path, file.provenance.method, where)
    provenance = replace(file.provenance, licence=licence_beside(path))
    return replace(file, encoder=_prepared(file.encoder, preprocessing), provenance=provenance)


def _prepared(encoder: Encoder, preprocessing: Preprocessing) -> Encoder:
    result = Encoder(encoder.spec, preprocessing=preprocessing)
    result.load_state_dict(encoder.state_dict())
    return result
