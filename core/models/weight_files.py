"""Where weights lie: the file in a folder of another library, the shards of an index, and JSON beside them."""

from __future__ import annotations

import json
import logging
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..files import read_regular_text

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
"""What stands for a folder of timm, transformers, or of an export."""

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pkl")


def import_command(source: str, key: str) -> str:
    """The command that reads weights with one key more, as an error advises it."""
    return f"maelift import {shlex.quote(source)} out=encoder.safetensors {key}"


def weights_file(path: Path) -> Path:
    """The weights in a folder of timm or transformers, or of an export; a file is that itself."""
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
    """The files that an index names, as transformers and timm write it; raises CheckpointError for one that is not there."""
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
    """What to do where a file is one of several that hold weights together; empty where it isn't."""
    if not re.search(r"-\d+-of-\d+\.\w+$", path.name):
        return ""
    return f" This is one of several files: give their folder, with its index, as {path.parent}."


logger = logging.getLogger("maelift")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no such file, or it holds something else."""
    try:
        content = json.loads(read_regular_text(path)) if path.is_file() else {}
    except (ValueError, OSError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        logger.warning("%s: can't be read as JSON (%s); it is ignored", path, reason)
        return {}
    return content if isinstance(content, dict) else {}
