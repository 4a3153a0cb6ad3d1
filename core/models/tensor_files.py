"""Safe reading of tensor files: what a file claims is held against its size before anything of that size is made."""

from __future__ import annotations

import functools
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from ..errors import CheckpointError, ConfigError, MaeliftError
from ..files import open_regular
from .contract import parse_json, shown

P = ParamSpec("P")
R = TypeVar("R")

LARGEST_HEADER = 32 * 2**20
"""Bytes of the header of a safetensors file at most: names, shapes and metadata."""
EXPANSION, ALLOWANCE = 4, 64 * 2**20
"""What a file unpacks to: this many times its size at most, and so many bytes beyond it."""
LARGEST_RANK = 8
"""Dimensions of a tensor at most."""
_PLAIN = {"quantised": "tensor.dequantize() in its place", "sparse": "tensor.to_dense() in its place"}


def first_bytes(path: Path, expected: str, count: int = 16) -> bytes:
    """The first bytes of a regular file; raises CheckpointError, which says what was ``expected``, for anything else."""
    try:
        with open_regular(path) as file:
            return file.read(count)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"{path}: no such file. Expected {expected}.") from error
    except OSError as error:
        if path.is_dir():
            raise CheckpointError(f"{path}: no such file (it is a folder). Expected {expected}.") from error
        reason = (error.strerror or str(error)).lower()
        raise CheckpointError(f"{path}: can't be read ({reason}). Expected {expected}.") from error


def check_safetensors(path: Path) -> None:
    """Raise CheckpointError for a safetensors file whose header is longer than the file or the bound, or says a name twice.

    safetensors itself checks that the tensors' places are inside the file, in order, and as long as their shapes.
    """
    size = os.stat(path).st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise _damaged(path, f"a header of {length:,} bytes in a file of {size:,}")
        if length > LARGEST_HEADER:
            raise CheckpointError(
                f"{path}: a header of {length:,} bytes, more than the {LARGEST_HEADER:,} that are read. Write it again with "
                "less metadata: safetensors.torch.save_file(tensors, path)"
            )
        header = file.read(length)
    try:
        content = parse_json(header.rstrip(b" "))
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(content, dict):
        raise _damaged(path, "a header that is no mapping")
    for name, entry in content.items():
        shape = entry.get("shape") if isinstance(entry, dict) else None
        if name != "__metadata__" and not (isinstance(shape, list) and len(shape) <= LARGEST_RANK):
            raise _damaged(path, f"no shape of at most {LARGEST_RANK} dimensions for {shown(name)}")


def check_torch(path: Path) -> None:
    """Raise CheckpointError for a torch file whose zip archive unpacks to much more than its size."""
    size = os.stat(path).st_size
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, EOFError) as error:
        with path.open("rb") as file:
            if file.read(2) != b"PK":
                return  # as torch wrote them before they were archives: its tensors stand in them as they are
        raise CheckpointError(f"{path}: a damaged torch file ({shown(str(error))}). Get it again.") from error
    if unpacked > _most(size):
        raise CheckpointError(
            f"{path}: its {size:,} bytes unpack to {unpacked:,}, more than {EXPANSION} times as many; torch.save packs "
            "nothing. Where you trust it, unpack it and write it again without compression: zip -0 -r"
        )


def check_tensors(path: Path, state: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError unless all tensors are plain, and together not much larger than the file that they are from.

    Plain are those of torch's own class with their values in memory: not sparse, quantised, nested, complex, or on "meta".
    """
    total = 0
    for name, tensor in state.items():
        if (wrong := _not_plain(tensor)) is not None:
            raise CheckpointError(
                f"{path}: {shown(name)} is {wrong}, not a plain tensor of real numbers in memory. Write the file again with "
                f"{_PLAIN.get(wrong, 'plain ones')}."
            )
        total += tensor.numel() * tensor.element_size()
    size = os.stat(path).st_size
    if total > _most(size):
        raise CheckpointError(
            f"{path}: its tensors claim {total:,} bytes in a file of {size:,}: they are views that repeat a few values. Write "
            "them out where they are meant: torch.save({name: tensor.clone() for name, tensor in state.items()}, ...)"
        )


def names_the_file(read: Callable[P, R]) -> Callable[P, R]:
    """A function that reads the weights at ``path``, its first argument: every error is one line that begins with the path.

    Tensors of others may have any shape and name, so whatever reading them leads to is a CheckpointError. A ConfigError for a
    key that was given stays as it is.
    """

    @functools.wraps(read)
    def reading(*arguments: P.args, **keys: P.kwargs) -> R:
        path = str(arguments[0] if arguments else keys["path"])
        try:
            return read(*arguments, **keys)
        except MaeliftError as error:
            given = isinstance(error, ConfigError) and keys.get(error.key) is not None
            if given or path in str(error):
                raise
            raise CheckpointError(f"{path}: {error}") from error
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = shown(str(error).partition("\n")[0] or type(error).__name__)
            raise CheckpointError(
                f"{path}: its tensors are not those of an encoder ({reason}). Expected a plain ViT's."
            ) from error

    return reading


def check_finite(source: str, state: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError for tensors with values that are not finite."""
    wrong = [name for name, tensor in state.items() if tensor.is_floating_point() and not _finite(tensor)]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise CheckpointError(
            f"{source}: {shown(wrong[0])}{more} holds values that are not finite (NaN or infinite): the training diverged, or "
            "the file is damaged. Take an earlier file."
        )


def _finite(tensor: Tensor) -> bool:
    if tensor.element_size() == 1:  # float8 has no test of its own
        tensor = tensor.float()
    return bool(torch.isfinite(tensor).all())


def _not_plain(tensor: Tensor) -> str | None:
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        return f"a {type(tensor).__name__}"
    if tensor.is_nested:
        return "nested"
    if tensor.layout != torch.strided:
        return "sparse"
    if tensor.is_quantized:
        return "quantised"
    if tensor.device.type != "cpu":
        return f"on the device {tensor.device.type}"
    if tensor.is_complex():
        return "complex"
    return f"of {tensor.ndim} dimensions" if tensor.ndim > LARGEST_RANK else None


def _most(size: int) -> int:
    """Bytes that a file of ``size`` may unpack to."""
    return EXPANSION * size + ALLOWANCE


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path}: a damaged safetensors file ({reason}). Get it again.")
