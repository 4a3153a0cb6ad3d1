"""Tensor files that claim more than they hold, or hold what isn't a plain tensor: refused in a line, nothing large is made."""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from maelift.core.errors import CheckpointError
from maelift.core.models.encoder_file import load_encoder
from maelift.core.models.tensor_files import read_tensors
from maelift.tests.support import bounded_memory, encoder_file, random_encoder
from safetensors.torch import load_file, save_file


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    with bounded_memory():
        yield


def refused(path: Path, *expected: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_encoder(path)
    said = str(caught.value)
    assert "\n" not in said and str(path) in said, said
    for text in expected:
        assert text in said, (text, said)
    return said


def with_header(path: Path, header: bytes, data: bytes = b"", length: int | None = None) -> Path:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


def entry(shape: object = (1,), offsets: object = (0, 4), dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "length", "expected"),
    [
        (b"{}", 2**62, "a header of 4,611,686,018,427,387,904 bytes in a file of"),
        (b"{}", 2**63 + 5, "in a file of"),
        (b"{", None, "not JSON"),
        (b'{"a": 1, "a": 2}', None, "the key a is given twice"),
        (b'{"a":' * 10**5, None, "nested too deeply"),
        (json.dumps({"a": entry([1] * 1000)}).encode(), None, "at most 8 dimensions"),
        (json.dumps({"a": entry([2**60, 2**60])}).encode(), None, "damaged"),
        (json.dumps({"a": entry([-1])}).encode(), None, "damaged"),
        (json.dumps({"a": entry(), "b": entry()}).encode(), None, "damaged"),  # overlapping
        (json.dumps({"a": entry(offsets=[0, 10**15])}).encode(), None, "damaged"),
        (json.dumps({"a": entry(dtype="F7")}).encode(), None, "damaged"),
        (json.dumps({"a": [1]}).encode(), None, "no shape"),
        (json.dumps({"a": entry(), "__metadata__": {"x": {"y": 1}}}).encode(), None, "damaged"),
    ],
)
def test_a_header_that_cannot_be_is_refused(tmp_path: Path, header: bytes, length: int | None, expected: str) -> None:
    refused(with_header(tmp_path / "w.safetensors", header, bytes(4), length), expected)


def test_a_huge_header_is_refused_and_the_advice_works(tmp_path: Path) -> None:
    path = encoder_file(tmp_path / "e.safetensors")
    tensors = load_file(path)
    save_file(tensors, path, {"comment": "x" * (33 * 2**20)})
    refused(path, "more than the 33,554,432 that are read", "safetensors.torch.save_file(tensors, path)")
    save_file(tensors, path)
    assert load_encoder(path).spec.depth == 3


@pytest.mark.slow
def test_a_zip_bomb_is_refused_and_the_advice_works(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({**random_encoder().state_dict(), "head.weight": torch.zeros(30_000_000)}, path)
    with zipfile.ZipFile(path) as stored, zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for one in stored.infolist():
            packed.writestr(one.filename, stored.read(one.filename))
    assert (tmp_path / "bomb.pth").stat().st_size < 10 * 2**20
    refused(tmp_path / "bomb.pth", "more than 4 times as many")
    with (
        zipfile.ZipFile(tmp_path / "bomb.pth") as packed,
        zipfile.ZipFile(tmp_path / "unpacked.pth", "w", zipfile.ZIP_STORED) as stored,
    ):
        for one in packed.infolist():
            stored.writestr(one.filename, packed.read(one.filename))
    assert load_encoder(tmp_path / "unpacked.pth").spec.depth == 3


def test_a_zip_whose_entries_share_their_bytes_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(10**6)}, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as archive:
        (large,) = (one for one in archive.infolist() if one.file_size == 4 * 10**6)
    with zipfile.ZipFile(tmp_path / "w.pth", "a") as archive:
        for number in range(100):  # as many names for the same place
            twin = zipfile.ZipInfo(f"w/data/{number + 1}")
            twin.header_offset, twin.file_size, twin.compress_size = large.header_offset, 4 * 10**6, 4 * 10**6
            twin.CRC = large.CRC
            archive.filelist.append(twin)
        archive._didModify = True  # type: ignore[attr-defined]
    refused(tmp_path / "w.pth", "more than 4 times as many")


class _Calls:
    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def _odd_tensors() -> dict[str, tuple[object, str]]:
    value = torch.arange(64.0 * 3 * 16).reshape(64, 3, 4, 4)
    return {
        "expanded": (torch.zeros(1).expand(10**12), "claim 4,000"),
        "strided": (torch.zeros(4).as_strided((10**6, 10**6), (0, 0)), "views that repeat a few values"),
        "meta": (torch.empty(10**9, device="meta"), "on the device meta"),
        "sparse": (value.to_sparse(), "is sparse, not a plain tensor"),
        "quantised": (torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), "is quantised"),
        "complex": (value.to(torch.complex64), "is complex"),
        "nested": (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "is nested"),
        "deep": (torch.zeros((1,) * 20), "of 20 dimensions"),
        "bytes": (_Calls(bytearray, 10**13), "torch file"),
        "scalar": (torch.tensor(1.0), "patch_embed.proj.weight has"),
        "empty": (torch.zeros(64, 0, 4, 4), "none of them 0"),
    }


@pytest.mark.parametrize("kind", list(_odd_tensors()))
def test_what_is_no_plain_tensor_is_refused(tmp_path: Path, kind: str) -> None:
    odd, expected = _odd_tensors()[kind]
    torch.save({**random_encoder().state_dict(), "patch_embed.proj.weight": odd}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", expected)


@pytest.mark.parametrize("kind", ["sparse", "quantised"])
def test_the_advice_for_other_layouts_works(tmp_path: Path, kind: str) -> None:
    state = random_encoder().state_dict()
    kernel = state["patch_embed.proj.weight"]
    odd = kernel.to_sparse() if kind == "sparse" else torch.quantize_per_tensor(kernel, 0.01, 0, torch.qint8)
    torch.save({**state, "patch_embed.proj.weight": odd}, tmp_path / "w.pth")
    found = re.search(r"tensor\.\w+\(\)", refused(tmp_path / "w.pth"))
    assert found is not None
    plain = odd.to_dense() if found[0] == "tensor.to_dense()" else odd.dequantize()
    torch.save({**state, "patch_embed.proj.weight": plain}, tmp_path / "w.pth")
    assert torch.allclose(load_encoder(tmp_path / "w.pth").patch_embed.proj.weight, kernel, atol=0.01)


def test_views_are_taken_where_they_are_small(tmp_path: Path) -> None:
    state = random_encoder().state_dict()
    state["norm.bias"] = torch.full((1,), 0.5).expand(64)
    torch.save(state, tmp_path / "w.pth")
    assert load_encoder(tmp_path / "w.pth").norm.bias.tolist() == [0.5] * 64


def test_blocks_that_are_left_out_are_named_before_anything_is_built(tmp_path: Path) -> None:
    state = random_encoder().state_dict()
    torch.save({name.replace("blocks.2.", "blocks.999999999."): one for name, one in state.items()}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "has 3 blocks, but no block 2. Expected blocks 0 to 2")
    torch.save(
        {name.replace("blocks.2.", f"blocks.{'9' * 9999}."): one for name, one in state.items()}, tmp_path / "w.pth"
    )
    refused(tmp_path / "w.pth", "no block 2")


def test_what_is_no_regular_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "loop.pth").symlink_to(tmp_path / "loop.pth")
    for name in ("pipe.pth", "loop.pth"):
        with pytest.raises(CheckpointError, match=f"{name}: can't be read .*Expected encoder weights"):
            read_tensors(tmp_path / name)


def test_torch_files_from_before_archives_are_bounded_too(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(random_encoder().state_dict(), path, _use_new_zipfile_serialization=False)
    assert load_encoder(path).spec.depth == 3
    content = path.read_bytes()
    path.write_bytes(content.replace(pickle.dumps(192 * 64, 2)[2:-1], pickle.dumps(10**9, 2)[2:-1]))
    refused(path, "torch file")
    path.write_bytes(content[: len(content) // 2])
    refused(path, "torch file")
