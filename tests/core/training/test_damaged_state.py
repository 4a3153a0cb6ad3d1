"""What runs keep of themselves, damaged or written by others: refused in one line, or not taken; nothing of it is run."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
import torch
from maelift.benchmarks.runs import Run, read_result
from maelift.core.cache import load
from maelift.core.distributed import Ranks
from maelift.core.errors import CheckpointError, MaeliftError
from maelift.core.training.checkpoints import STATE_FILE, Checkpoints
from maelift.core.training.run_dir import read_run_config
from maelift.core.training.tracker import read_metrics
from maelift.tests.support import GOLDEN, bounded_memory
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

HERE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    shutil.copytree(GOLDEN / "version_1" / "checkpoints", tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def resealed(state: Path) -> None:
    """The hashes of a state's files as whoever changes them can write them."""
    content = json.loads((state / STATE_FILE).read_text())
    digests = {name: blake2b((state / name).read_bytes(), digest_size=16).hexdigest() for name in content["files"]}
    (state / STATE_FILE).write_text(json.dumps({**content, "files": digests}))


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    checkpoints = Checkpoints(folder, HERE)
    step = checkpoints.newest()
    assert step == 7
    assert checkpoints.extra_state(step) == {"step": 7, "note": "x"}
    into = {name: torch.zeros(size, dtype=kind) for name, (size, kind) in checkpoints.shapes(step).items()}
    checkpoints.load(step, into)
    return into


def refused(folder: Path, expected: str) -> None:
    with pytest.raises(CheckpointError, match=expected) as caught:
        loaded(folder)
    said = str(caught.value)
    assert len(said.splitlines()) == 1 and str(folder) in said and "Remove it to start" in said


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(facts=[1]),
        lambda content: content.pop("facts"),
        lambda content: content.update(files={}),
        lambda content: content.update(files=None),
        lambda content: content["files"].update({"../../outside": "0" * 32}),
        lambda content: content["files"].update({".metadata": None}),
        lambda content: content.update(format=2),
    ],
)
def test_a_state_file_of_wrong_types_is_refused(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = folder / "step-00000007" / STATE_FILE
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    refused(folder, "every checkpoint in it is damaged")


@pytest.mark.parametrize("text", ["", "[" * 100_000, "[]", "{}", "\x00", "null"])
def test_a_state_file_that_is_no_mapping_is_refused(folder: Path, text: str) -> None:
    (folder / "step-00000007" / STATE_FILE).write_text(text)
    refused(folder, "every checkpoint in it is damaged")


class _Touches:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "description",
    [
        {"a": 1},
        Metadata(state_dict_metadata=None),  # type: ignore[arg-type]
        Metadata(state_dict_metadata={}, storage_meta=7),  # type: ignore[arg-type]
        Metadata(state_dict_metadata={"a": 1}, storage_meta=StorageMeta()),  # type: ignore[dict-item]
        None,
    ],
)
def test_a_description_of_other_things_is_refused(folder: Path, description: object) -> None:
    (folder / "step-00000007" / ".metadata").write_bytes(pickle.dumps(description))
    resealed(folder / "step-00000007")
    refused(folder, "not a checkpoint|is no tensor")


def test_code_in_a_description_is_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / "step-00000007" / ".metadata").write_bytes(pickle.dumps(_Touches(tmp_path / "ran")))
    resealed(folder / "step-00000007")
    refused(folder, "it refers to")
    assert not (tmp_path / "ran").exists()


def test_tensors_larger_than_their_files_are_refused_before_room_is_made(folder: Path) -> None:
    path = folder / "step-00000007" / ".metadata"
    description = pickle.loads(path.read_bytes())  # ours
    entry = description.state_dict_metadata["model.a"]
    entry.size = torch.Size([10**6, 10**6])
    path.write_bytes(pickle.dumps(description))
    resealed(path.parent)
    with bounded_memory():
        refused(folder, "claim 4,000,000,000,0.. bytes")


def test_a_pipe_among_the_files_is_no_hang(folder: Path) -> None:
    state = folder / "step-00000007"
    (state / "__0_0.distcp").unlink()
    os.mkfifo(state / "__0_0.distcp")
    refused(folder, "every checkpoint in it is damaged")


def test_mutated_checkpoints_are_refused_in_a_line_or_read(folder: Path, tmp_path: Path) -> None:
    draw, sound = random.Random(1), loaded(folder)
    for number in range(60):
        copy = tmp_path / str(number)
        shutil.copytree(folder, copy)
        path = copy / "step-00000007" / draw.choice([".metadata", ".metadata", "__0_0.distcp"])
        content = bytearray(path.read_bytes())
        for _ in range(draw.randint(1, 4)):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content[: draw.randrange(len(content))] if draw.random() < 0.2 else content)
        with bounded_memory():
            with pytest.raises(CheckpointError, match="every checkpoint in it is damaged"):
                loaded(copy)  # by its hash
            resealed(path.parent)
            try:
                found = loaded(copy)
            except CheckpointError as error:
                assert len(str(error).splitlines()) == 1
            else:
                assert all(isinstance(tensor, torch.Tensor) for tensor in found.values()) and len(found) <= len(sound)


def test_lines_that_are_no_records_end_the_metrics(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for line in (b"[1]", b'{"loss": 1}', b'{"step": "x"}', b"\xff\xfe", b"[" * 100_000, b"{"):
        path.write_bytes(b'{"step": 1, "loss": 2.0}\n' + line + b"\n")
        assert read_metrics(path) == [{"step": 1, "loss": 2.0}]


@pytest.mark.parametrize(
    "content", [b"", b"[1]", b"a: [", b"\xff\xfe\x00", b"a: !!python/object:os.system {}", b"\x00"]
)
def test_a_configuration_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(MaeliftError, match=r"not a file of a maelift run\. Choose another out, or remove it"):
        read_run_config(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    "content", ["", "[]", "{", "[" * 100_000, '{"seconds": "x", "steps": 1}', '{"seconds": 1, "steps": null}']
)
def test_a_damaged_result_is_told(tmp_path: Path, content: str) -> None:
    run = Run("mae", "mae", 0, 0, 0, 1e-3, "", "{}", code=1)
    (tmp_path / run.key).mkdir()
    (tmp_path / run.key / "result.json").write_text(content)
    with pytest.raises(MaeliftError, match="a damaged result"):
        read_result(run, tmp_path)


def test_a_cache_file_of_another_kind_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    header = json.dumps(
        {"a": {"dtype": "U8", "shape": [-1, 10**400], "data_offsets": [0, 4]}, "__metadata__": {}}
    ).encode()
    for content in (
        b"",
        b"\xff" * 100,
        len(header).to_bytes(8, "little") + header,
        (5).to_bytes(8, "little") + b"[[[[[",
    ):
        path.write_bytes(content)
        assert load(path) is None
    path.unlink()
    os.mkfifo(path)
    assert load(path) is None
