"""A file of ours checked by its bytes, without torch: that tensors and contract are as they were written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..files import open_regular
from .contract import Metadata, parse_json

CONTRACT_KEY = "maelift.encoder"
"""The metadata key of an encoder file's contract."""
ENCODER_FILE = "encoder.safetensors"
"""What an encoder file is called in the folder of a run."""
DTYPES = {"F64": "torch.float64", "F32": "torch.float32", "F16": "torch.float16", "BF16": "torch.bfloat16"}
"""Dtypes by their names in safetensors, as ``contract.content_hash`` writes them."""

LARGEST_HEADER = 32 * 2**20
"""Largest header of a safetensors file that is read, in bytes."""


def parse_header(text: bytes) -> dict[str, Any]:
    """The mapping in a safetensors file's header; raises ValueError, in one line, for anything else."""
    content = parse_json(text.rstrip(b" "))
    if not isinstance(content, dict):
        raise ValueError("a header that is no mapping")
    return content


def has_contract(path: Path, key: str = CONTRACT_KEY) -> bool:
    """Whether a safetensors file has metadata under ``key``, which aren't checked; False for any other regular file."""
    with open_regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= LARGEST_HEADER:
            return False
        try:
            metadata = parse_header(file.read(length)).get("__metadata__")
        except ValueError:
            return False
    return isinstance(metadata, dict) and key in metadata


def read_stored_contract(path: Path, key: str = CONTRACT_KEY) -> Metadata:
    """The metadata under ``key`` of a safetensors file; raises CheckpointError if the file is damaged or was changed."""
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    try:
        header = parse_header(content[8:begin])
        metadata = Metadata.parse(path, key, header.pop("__metadata__")[key])
        tensors = _tensor_hash(header, memoryview(content)[begin:])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: a damaged safetensors file, or one without {key}. Get it again.") from error
    metadata.check_hash(tensors, tensors_only=metadata.content.get("version") == 1)
    return metadata


def _tensor_hash(header: Mapping[str, Mapping[str, Any]], data: memoryview) -> str:
    """``contract.content_hash`` of tensors that lie in ``data`` as the header says."""
    digest = hashlib.sha256()
    for name in sorted(header):
        entry = header[name]
        begin, end = entry["data_offsets"]
        if end > len(data):
            raise ValueError("tensors beyond the end of the file")
        digest.update(f"{name}:{DTYPES[entry['dtype']]}:{tuple(entry['shape'])};".encode())
        digest.update(data[begin:end])
    return digest.hexdigest()
