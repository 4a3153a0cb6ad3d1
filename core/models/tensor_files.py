"""Safe reading of safetensors and torch files: sizes are checked before anything is allocated, no code is run."""

from __future__ import annotations

import argparse
import functools
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import safetensors.torch
import torch
from torch import Tensor

from ..errors import CheckpointError, ConfigError, MaeliftError
from ..files import open_regular
from .contract import shown
from .file_signatures import SIGNATURE_BYTES, check_file_type
from .state_dicts import full_state, strip_wrappers
from .stored_contract import LARGEST_HEADER, parse_header
from .weight_files import INDEX_SUFFIX, shard_files

P = ParamSpec("P")
R = TypeVar("R")

EXPANSION, ALLOWANCE = 4, 64 * 2**20
"""Largest size of a file's unpacked content: this many times the file's size, plus so many bytes."""
LARGEST_RANK = 8
"""Largest number of dimensions of a tensor."""
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
    """Raise CheckpointError for a safetensors file whose header is too long, or has a name twice.

    safetensors itself checks that the tensors' offsets are inside the file, in order, and match their shapes.
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
        content = parse_header(header)
    except ValueError as error:
        raise _damaged(path, str(error)) from error
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
                return  # torch's format before zip archives: tensors are stored uncompressed
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


def name_file_in_errors(read: Callable[P, R]) -> Callable[P, R]:
    """Decorator of a function that reads the weights at ``path``, its first argument: every error begins with the path.

    Tensors of other libraries may have any shape and name, so that any error while they are read becomes a CheckpointError.
    A ConfigError for a key that the user gave is not changed.
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
    """Largest number of bytes that a file of ``size`` bytes may unpack to."""
    return EXPANSION * size + ALLOWANCE


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path}: a damaged safetensors file ({reason}). Get it again.")


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a ``.safetensors`` or torch file; raises CheckpointError, never runs code."""
    path = Path(path)
    content, metadata = read_checkpoint(path)
    state = _all_tensors(path, content)
    return (state if _is_safetensors(path) else strip_wrappers(state)), metadata


def read_checkpoint(path: str | Path) -> tuple[object, dict[str, str]]:
    """The content and metadata of a ``.safetensors`` or torch file, or of the shards of an index; never runs code.

    Raises CheckpointError for another type of file, which it names, and for tensors that are not plain.
    """
    path = Path(path)
    if path.name.endswith(INDEX_SUFFIX):
        parts = [_all_tensors(part, read_checkpoint(part)[0]) for part in shard_files(path)]
        return {name: tensor for part in parts for name, tensor in part.items()}, {}
    head = first_bytes(path, "encoder weights (.safetensors or .pth)")
    if len(head) >= 9 and head[8:9] == b"{":
        return _read_safetensors(path)
    return read_torch_file(path), {}


def read_torch_file(path: Path) -> object:
    """The content of a torch file, recognised by its first bytes; raises CheckpointError, never runs code.

    Tensors and plain values are loaded; the few other records that mmengine saves beside them are replaced by empty ones.
    """
    head = first_bytes(path, "weights that torch.save wrote", SIGNATURE_BYTES)
    check_file_type(path, head)
    if head[:2] == b"PK" or head.startswith(_TORCH_BEFORE_ZIP):
        return _read_torch(path)
    if head[:1] == b"\x80":
        raise CheckpointError(
            f"{path}: a bare pickle, as detectron2's .pkl are, which could run code when read; nothing was run. Where you "
            "trust it, write its arrays with torch.save as a dict of tensors, and give that file."
        )
    raise CheckpointError(f"{path}: not a weights file. Expected .safetensors, or a .pth written by torch.save.")


def _all_tensors(path: Path, content: object) -> dict[str, Tensor]:
    """The tensors of a file's state under their own names; raises CheckpointError for tensors that are not plain."""
    state = full_state(str(path), content)
    if not path.name.endswith(INDEX_SUFFIX):  # which is smaller than what it stands for
        check_tensors(path, state)
    return state


def _is_safetensors(path: Path) -> bool:
    if path.name.endswith(INDEX_SUFFIX):
        return True
    return first_bytes(path, "encoder weights")[8:9] == b"{"


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with _opened_safetensors(path) as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = dict(file.metadata() or {})
    check_tensors(path, state)
    return state, metadata


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, without its tensors; raises CheckpointError for a damaged one."""
    with _opened_safetensors(path) as file:
        return dict(file.metadata() or {})


@contextmanager
def _opened_safetensors(path: Path) -> Iterator[Any]:
    """A safetensors file; what the library raises for damaged ones is a CheckpointError."""
    check_safetensors(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError, OverflowError, AttributeError) as error:
        raise CheckpointError(f"{path}: a damaged safetensors file ({shown(str(error))}).") from error


class _Inert:
    """Placeholder for records that training scripts save beside the weights: accepts any content and ignores it."""

    def __new__(cls, *_: object) -> _Inert:
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        pass


_TORCH_BEFORE_ZIP = b"\x80\x02\x8a\nl\xfc\x9cF"
"""First bytes of torch.save's format before zip archives: a pickle of torch's magic number."""

_RECORDS = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "mmengine.config.config.ConfigDict",
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    "builtins.getattr",
)
"""Classes in mmengine's checkpoints beside tensors, as losses of the training: replaced by ``_Inert``, never built."""


def _read_torch(path: Path) -> object:
    check_torch(path)
    try:
        # Parsed arguments are plain records, safe to build.
        known = torch.serialization.safe_globals([argparse.Namespace, *((_Inert, name) for name in _RECORDS)])
        with known, path.open("rb") as file:  # given a path, newer versions of torch go by its suffix
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        raise CheckpointError(
            f"{path}: holds more than tensors{f' ({found[1]})' if found else ''}, which could run code when read; nothing "
            "was run. Save only the state dict: torch.save(model.state_dict(), ...)."
        ) from error
    except Exception as error:  # a changed byte can lead to any error
        reason = shown(str(error).splitlines()[0] if str(error) else type(error).__name__)
        raise CheckpointError(f"{path}: a damaged or foreign torch file ({reason}).") from error


def check_float_dtypes(source: str, state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Raise CheckpointError for quantised weights and other dtypes that are no floats; returns a note on conversions.

    float16, bfloat16 and float64 are converted to the encoder's float32.
    """
    kinds = {name: str(value.dtype).removeprefix("torch.") for name, value in state.items()}
    for name, kind in kinds.items():
        if kind not in ("float32", "float16", "bfloat16", "float64"):
            raise CheckpointError(
                f"{source}: {name} is {kind}: quantised weights, or none at all. Expected float32, float16 or bfloat16: get the "
                "weights before they were quantised."
            )
    other = sorted(set(kinds.values()) - {"float32"})
    return (f"{' and '.join(other)} weights are converted to float32",) if other else ()
