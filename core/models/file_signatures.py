"""File signatures: names the type of a file that was given as weights and is something else."""

from __future__ import annotations

import zipfile
from pathlib import Path

from ..errors import CheckpointError

SIGNATURE_BYTES = 512
"""Bytes at the beginning of a file that show its type."""
_SAVE = "Save the state dict: torch.save(model.state_dict(), ...), and give that file."
_MAGIC = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the weights themselves. Fetch them: git lfs pull"),
    (
        b"\x89HDF",
        f"an HDF5 file, as Keras and TensorFlow write. Load it with its own library, convert it to PyTorch. {_SAVE}",
    ),
    (b"\x93NUMPY", "a NumPy array. Expected .safetensors, or a .pth written by torch.save."),
    (b"GGUF", "a GGUF file, quantised weights of llama.cpp. Get the weights as .safetensors."),
    (b"\x89PNG", "a picture (PNG)"),
    (b"\xff\xd8\xff", "a picture (JPEG)"),
    (b"GIF8", "a picture (GIF)"),
    (b"%PDF", "a PDF"),
    (b"\x1f\x8b", "a gzip file: unpack it, and give the weights in it"),
    (b"BZh", "a bzip2 file: unpack it, and give the weights in it"),
    (b"\xfd7zXZ", "an xz file: unpack it, and give the weights in it"),
    (b"\x28\xb5\x2f\xfd", "a zstd file: unpack it, and give the weights in it"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it, and give the weights in it"),
)
"""Magic numbers, and the file types that begin with them."""


def check_file_type(path: Path, head: bytes) -> None:
    """Raise CheckpointError, naming the file's type, where its first ``SIGNATURE_BYTES`` bytes are not those of weights."""
    kind = next((text for magic, text in _MAGIC if head.startswith(magic)), None)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        kind = "a web page, as a download that failed or asked for a login leaves. Download the weights again"
    elif text.startswith(b"{") and head[8:9] != b"{":
        kind = "JSON, not weights"
    elif head[257:262] == b"ustar":
        kind = "a tar archive: unpack it, and give the weights in it"
    elif head[:2] == b"PK":
        kind = _zipped(path)
    elif not head:
        kind = "empty: a download that failed, or a disk that was full. Get the file again"
    elif not head.strip(b"\0"):
        kind = "zeros from its beginning: a download that was not finished. Get the file again"
    if kind:
        ending = "" if kind.endswith((".", "pull")) else "."
        expected = "" if "." in kind or ":" in kind else " Expected .safetensors, or a .pth written by torch.save."
        raise CheckpointError(f"{path}: {kind}{ending}{expected}")


def _zipped(path: Path) -> str | None:
    """The type of a zip archive that torch.save didn't write; None for one that it did, or that can't be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError):
        return None
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        return (
            "a TorchScript archive, which holds a program with its weights. Save its state dict alone: "
            "torch.save(torch.jit.load(path, map_location='cpu').state_dict(), ...), and give that file."
        )
    if "archive_format" in inner:
        return f"an exported program (torch.export). {_SAVE}"
    if "data.pkl" in inner:
        return None
    if names and all(name.endswith(".npy") for name in names):
        return (
            "a NumPy archive (.npz), as JAX's ViTs are. timm can read it: timm.create_model(NAME, checkpoint_path=...), then "
            "torch.save(model.state_dict(), ...), and give that file."
        )
    first = names[0] if names else "nothing"
    return f"a zip archive that torch.save didn't write (with {first} in it): unpack it, and give the weights in it"
