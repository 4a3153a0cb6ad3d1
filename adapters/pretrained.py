"""Pretrained weights to start from: encoder files, checkpoints of other libraries, timm models by name."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path

from ..core.errors import CheckpointError, MaeliftError
from ..core.models.backbone import Backbone
from ..core.models.config_hints import hints_beside
from ..core.models.encoder import Encoder
from ..core.models.encoder_file import EncoderFile, read_backbone, read_contract
from ..core.models.preprocessing import Preprocessing
from ..core.models.stored_contract import CONTRACT_KEY
from ..core.models.tensor_files import first_bytes, read_metadata
from ..core.models.timm_spec import TIMM, TimmSpec
from ..core.models.weight_files import weights_file
from .import_weights import licence_beside, preprocessing_beside
from .packaged_weights import PACKAGED, from_package
from .published import HUB, from_timm, hub_spec, named_spec, timm_name
from .timm_weights import folder_settings, from_timm_file, from_timm_folder

logger = logging.getLogger("maelift")


def read_pretrained(source: str, key: str, *, weights: bool = True) -> EncoderFile[Backbone]:
    """The weights of a file, a folder, hf:, timm: or hf-hub:NAME, timm:NAME@FILE or a package, with their preprocessing.

    ``weights``: False where their shape is enough: those of timm:NAME are then random, and nothing is fetched. Raises
    CheckpointError, which names the user's ``key`` for what timm can't give, and ConfigError for a name that it doesn't have.
    """
    if source in PACKAGED and not Path(source).exists():
        return from_package(source, key)
    if (name := timm_name(source)) is not None:
        architecture, _, weights_path = name.partition("@")
        if weights_path and not name.startswith(HUB):
            return from_timm_file(architecture, weights_path, key)
        return from_timm(name, key, weights=weights)
    path = weights_file(Path(source))
    if _of_another_architecture(path):
        return from_timm_folder(path.parent)
    file = _read(path, key)
    if not file.foreign:
        return file
    encoder = file.plain(source).encoder
    preprocessing, where = preprocessing_beside(path, encoder.spec.channels)
    logger.info("%s: %s; mean and deviation: %s", path, file.provenance.method, where)
    provenance = replace(file.provenance, licence=licence_beside(path))
    return replace(file, encoder=_prepared(encoder, preprocessing), provenance=provenance)


def timm_spec(source: str) -> TimmSpec | None:
    """The spec of the model of timm that a source names or holds, read without its weights; None for a plain ViT of ours.

    What can't be read is no error here: it is one where the weights are read.
    """
    try:
        if source in PACKAGED and not Path(source).exists():
            return PACKAGED[source].spec
        if (name := timm_name(source)) is not None:
            bare = name.partition("@")[0]
            return hub_spec(name) if name.startswith(HUB) else named_spec(bare)
        path = weights_file(Path(source))
        return _spec_in(path) or _spec_beside(path)
    except (MaeliftError, OSError, ValueError):
        return None


def _spec_in(path: Path) -> TimmSpec | None:
    """The spec of a model of timm in an encoder file's contract."""
    if first_bytes(path, "weights")[8:9] != b"{":
        return None
    text = read_metadata(path).get(CONTRACT_KEY)
    spec = None if text is None else read_contract(path, text)[1]
    return spec if isinstance(spec, TimmSpec) else None


def _spec_beside(path: Path) -> TimmSpec | None:
    """The spec of a model of timm that is no plain ViT, in the config.json beside weights."""
    return folder_settings(path.parent)[0] if _of_another_architecture(path) else None


def _of_another_architecture(path: Path) -> bool:
    """Whether timm's config.json beside weights names an architecture that is no plain ViT."""
    beside = hints_beside(path, "timm")
    return beside.refusal is not None and (path.name != "encoder.safetensors")


def _read(path: Path, key: str) -> EncoderFile[Backbone]:
    try:
        return read_backbone(path)
    except CheckpointError as error:
        if _NOT_A_VIT.search(str(error)):
            advice = f"If they are of another architecture, name it as timm does: {key}={TIMM}NAME@{path}"
            raise CheckpointError(f"{error} {advice}") from error
        raise


_NOT_A_VIT = re.compile("not the weights of an encoder|not a plain ViT")


def _prepared(encoder: Encoder, preprocessing: Preprocessing) -> Encoder:
    result = Encoder(encoder.spec, preprocessing=preprocessing)
    result.load_state_dict(encoder.state_dict())
    return result
