"""Reads the weights that a framework's config names: local files only, without running code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlparse

from torch import Tensor

from ..core.errors import CheckpointError
from ..core.files import NotRegularError, check_regular, open_regular
from ..core.models.tensor_files import read_tensors, read_torch_file


def local_file(name: str, *, key: str) -> Path:
    """The file that weights are read from; ``key`` is where the config names them.

    Raises CheckpointError for a URL or a name in a model zoo, of which nothing is downloaded, and for what is no file.
    """
    if re.match(r"\S+?://", name) or name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        raise CheckpointError(
            f"{key}={name}: not a file on this disk, and certify downloads nothing. Get the file yourself, and give it: "
            f"overrides=[{key}=FILE]."
        )
    path = Path(name).expanduser()
    if not path.exists():
        raise CheckpointError(f"{key}={name}: no such file. Expected weights that torch.save wrote.")
    return path


def read_checkpoint(path: Path, *, key: str, unreadable: tuple[str, ...] = ()) -> Mapping[str, object]:
    """The content of a torch or safetensors file, by what it holds; never runs code.

    Raises CheckpointError for pickles, for files that hold more than tensors and plain values, and for a file under a name
    by which the framework would take it for something else: safetensors are read under their own suffix only, torch
    files under all but that and those in ``unreadable``.
    """
    try:
        with open_regular(path) as file:
            head = file.read(16)
    except NotRegularError as error:
        raise CheckpointError(f"{key}={path}: {error.strerror}. Expected weights that torch.save wrote.") from error
    is_safetensors = head[8:9] == b"{" and head[:2] != b"PK"
    if is_safetensors and path.suffix != ".safetensors":
        raise CheckpointError(f"{key}={path}: a safetensors file by content. Rename it to {path.stem}.safetensors.")
    try:
        content = read_tensors(path)[0] if is_safetensors else read_torch_file(path)
    except CheckpointError as error:
        raise CheckpointError(f"{key}={error}") from error
    if not is_safetensors and path.suffix in (".safetensors", *unreadable):
        raise CheckpointError(
            f"{key}={path}: a torch file by content, which is read otherwise under this name. Rename it to {path.stem}.pth."
        )
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{key}={path}: holds a {type(content).__name__}. Expected a state dict of tensors.")
    return {str(name): value for name, value in content.items()}


def detectron2_checkpoint(name: str, *, key: str) -> dict[str, object]:
    """What detectron2's checkpointer makes of the weights that a config names, by the same rules, but read safely.

    Those are: the query after "?" is not part of the name, "model" or the full file is the state dict, ``.pyth`` files
    keep it under "model_state". Raises CheckpointError.
    """
    url = urlparse(name)
    path = local_file(url._replace(query="").geturl(), key=key)
    content = read_checkpoint(path, key=key, unreadable=(".pkl",))
    if path.name.endswith(".pyth"):
        state = content.get("model_state")
        if not isinstance(state, Mapping):
            raise CheckpointError(f"{key}={name}: no model_state in it, which detectron2 expects in a .pyth file.")
        tensors = {entry: value for entry, value in state.items() if not entry.endswith("num_batches_tracked")}
        return {"model": tensors, "matching_heuristics": True}
    if not isinstance(content.get("model"), Mapping):
        content = {"model": content}
    state = content["model"]
    assert isinstance(state, Mapping)
    tensors = {str(entry): value for entry, value in state.items()}
    odd = [entry for entry, value in tensors.items() if not isinstance(value, Tensor)]
    if odd:
        raise CheckpointError(
            f"{key}={name}: {odd[0]} is no tensor, and detectron2 loads tensors only. Save the state dict alone: "
            "torch.save(model.state_dict(), ...)."
        )
    words = [word for word in url.query.split("&") if word]
    if unknown := [word for word in words if not re.fullmatch(r"matching_heuristics=(True|False)", word)]:
        raise CheckpointError(f"{key}={name}: detectron2 knows no {unknown[0]!r} after a '?'. Leave it out.")
    return {"model": tensors, "matching_heuristics": "matching_heuristics=True" in words}


def check_described(
    config: Path, weights: Path, *, depth: object, width: object, mlp_ratio: object, patches: object, channels: object
) -> None:
    """Raise CheckpointError for a ViT described as larger than its weights are, before it is built.

    ``patches``: positions, or None; numbers that a config doesn't give are None and pass. A file has at least a byte for
    each parameter.
    """
    given = {"depth": depth, "width": width, "mlp_ratio": mlp_ratio, "patches": patches, "channels": channels}
    numbers: dict[str, float] = {}
    for name, value in given.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise CheckpointError(f"{config}: {name}={value!r}: expected a number above 0.")
        numbers[name] = float(value)
    dim, ratio = numbers.get("width", 1.0), numbers.get("mlp_ratio", 1.0)
    parameters = numbers.get("depth", 1.0) * dim * dim * (4 + 2 * ratio)
    parameters += dim * (numbers.get("patches", 0.0) + numbers.get("channels", 0.0))
    try:
        size = check_regular(weights).st_size
    except OSError as error:
        raise CheckpointError(f"{weights}: {(error.strerror or str(error)).lower()}. Expected weights.") from error
    if parameters > size:
        raise CheckpointError(
            f"{config}: describes a model of {parameters:.3g} parameters or more, and {weights.name} has {size:,} bytes. "
            "Expected the config that was written with these weights."
        )


def square_of(size: object, patch: object) -> object:
    """The patches of an image of a size in pixels, one side or two, as far as a config gives numbers; None otherwise."""
    sides = list(size) if isinstance(size, list | tuple) else [size, size]
    steps = list(patch) if isinstance(patch, list | tuple) else [patch]
    numbers = [float(number) for number in (*sides, *steps) if isinstance(number, int | float) and number > 0]
    if len(sides) != 2 or len(numbers) != len(sides) + len(steps):
        return None
    return numbers[0] * numbers[1] / max(numbers[2:]) ** 2
