"""Files of weights: the one in a folder, that of a name on the Hub, the shards of an index, and JSON beside them."""

from __future__ import annotations

import json
import logging
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from ..errors import CheckpointError
from ..files import read_regular_text
from .hub_names import HubName, is_hub_name

INDEX_SUFFIX = ".index.json"

WEIGHTS_IN_FOLDER = (
    "model.safetensors",
    "model.safetensors.index.json",
    "encoder.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "backbone.pth",
    "weights.pth",
)
"""Names of the weights in a folder of timm or transformers, or of an export, in order of preference."""

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pkl")


def import_command(source: str, key: str) -> str:
    """The import command with a further key, for the advice of an error."""
    return f"maelift import {shlex.quote(source)} out=encoder.safetensors {key}"


def weights_file(path: Path) -> Path:
    """The weights file in a folder of timm or transformers, or of an export; a file's path is returned as it is.

    ``hf:NAME/MODEL[@REVISION]`` is the encoder file of a repository of the Hugging Face Hub, which is fetched into its cache.
    Raises CheckpointError for a folder without weights, and for a file that can't be fetched.
    """
    if is_hub_name(str(path)):
        from .hub_files import fetch_encoder

        return fetch_encoder(HubName.parse(str(path), "weights"))
    if not path.is_dir():
        return path
    for name in WEIGHTS_IN_FOLDER:
        if (path / name).is_file():
            return path / name
    there = sorted(entry.name for entry in path.iterdir() if entry.suffix in _SUFFIXES)
    if there:
        more = f" and {len(there) - 3} more" if len(there) > 3 else ""
        advice = f" It has {', '.join(there[:3])}{more}: name the file itself, as {path / there[0]}."
    else:
        advice = ""
    raise CheckpointError(
        f"{path}: a folder without weights. Expected one of {', '.join(WEIGHTS_IN_FOLDER)} in it.{advice}"
    )


def shard_files(index: Path) -> list[Path]:
    """The files that an index of transformers or timm names; raises CheckpointError for missing ones."""
    table = read_json(index).get("weight_map")
    names = sorted({str(name) for name in table.values()}) if isinstance(table, Mapping) else []
    if not names:
        raise CheckpointError(
            f"{index}: not an index of weights. Expected JSON with a weight_map from tensors to files."
        )
    outside = [name for name in names if Path(name).name != name or name.endswith(INDEX_SUFFIX)]
    if outside:
        raise CheckpointError(f"{index}: names {outside[0]!r}. Expected files of weights in the same folder.")
    missing = [name for name in names if not index.with_name(name).is_file()]
    if missing:
        raise CheckpointError(
            f"{index}: {len(missing)} of the {len(names)} files that it names are not there ({missing[0]}). Fetch them "
            "into the same folder."
        )
    return [index.with_name(name) for name in names]


def shard_advice(path: Path) -> str:
    """Advice for a file that is one of several shards; empty for other files."""
    if not re.search(r"-\d+-of-\d+\.\w+$", path.name):
        return ""
    return f" This is one of several files: give their folder, with its index, as {path.parent}."


logger = logging.getLogger("maelift")


def read_json(path: Path) -> dict[str, object]:
    """The object in a JSON file; empty if there is no such file or it has other content, which is logged."""
    try:
        content = json.loads(read_regular_text(path)) if path.is_file() else {}
    except (ValueError, OSError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        logger.warning("%s: can't be read as JSON (%s); it is ignored", path, reason)
        return {}
    return content if isinstance(content, dict) else {}
