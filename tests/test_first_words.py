"""The first words of commands: schemas, mistakes and finished runs need no torch, whose import alone takes seconds."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from maelift.core.errors import CheckpointError
from maelift.core.models.encoder_file import read_encoder
from maelift.core.models.stored_contract import ENCODER_FILE, read_stored_contract
from maelift.tests.support import TINY, environment, one_line_error, run_maelift, write_images

HEAVY = {"torch", "torchvision", "timm", "scipy"}

MAIN = f"""\
import sys
from maelift.cli import main
code = main(sys.argv[1:])
print(sorted({HEAVY} & set(sys.modules)))
sys.exit(code)
"""


def run_and_list(*words: object) -> tuple[int, str, str, str]:
    """Exit code, output, errors, and the heavy packages that a command has imported."""
    done = subprocess.run(
        [sys.executable, "-c", MAIN, *map(str, words)], capture_output=True, text=True, env=environment()
    )
    *output, imported = done.stdout.splitlines() or ["nothing was printed"]
    return done.returncode, "\n".join(output), done.stderr, imported


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A finished pretraining, and the words that made it."""
    folder = tmp_path_factory.mktemp("finished")
    write_images(folder / "photos", 40)
    words = ["pretrain", f"data={folder / 'photos'}", f"out={folder / 'run'}", *TINY]
    done = run_maelift(*words)
    assert done.returncode == 0, done.stderr
    return folder, words


@pytest.mark.parametrize(
    "module",
    [
        "pretrain.command",
        "transfer.command",
        "transfer.classification.config",
        "transfer.detection.config",
        "transfer.segmentation.config",
        "transfer.predict_config",
        "adapters.hub_config",
        "benchmarks.init_suite",
        "core.tools.check_data",
        "core.tools.pack_shards",
        "core.tools.stack_bands",
    ],
)
def test_schemas_are_imported_without_torch(module: str) -> None:
    code = f"import sys, maelift.{module}; print(sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pretrain", "data=nowhere", "out=x"], "nowhere"),
        (["pretrain", "data=nowhere", "out=x", "epoch=3"], "epochs"),
        (["pretrain", "data=nowhere", "out=x", "epochs=many"], "epochs=many"),
        (["pretrain", "data=nowhere", "out=x", "masking.ratio=2"], "ratio"),
        (["transfer", "classify", "encoder=e", "data=d", "out=x", "label=3"], "labels"),
        (["transfer", "detect", "encoder=e", "data=d", "out=x", "engine=mmseg"], "engine"),
        (["transfer", "segment", "encoder=e", "data=d", "out=x", "head_channels=0"], "head_channels"),
        (["predict", "model=m", "images=i", "batch_size=0"], "batch_size"),
        (["init", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_said_without_torch(words: list[str], expected: str, tmp_path: Path) -> None:
    code, output, errors, imported = run_and_list(*words)
    assert code == 2 and output == "" and expected in errors and errors.count("\n") == 1
    assert imported == "[]"


def test_a_finished_pretraining_is_told_again_without_torch(finished: tuple[Path, list[str]]) -> None:
    folder, words = finished
    code, output, errors, imported = run_and_list(*words)
    encoder = read_encoder(folder / "run" / ENCODER_FILE)
    assert code == 0 and imported == "[]"
    assert f"encoder: {folder / 'run' / ENCODER_FILE}\n{encoder.provenance.steps} steps on" in output
    assert "the run is complete" in errors


def test_a_finished_pretraining_is_still_compared(finished: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, words = finished
    other = one_line_error(run_maelift(*words, "seed=7"))
    assert "seed" in other and "another configuration" in other
    shutil.copytree(folder / "photos", tmp_path / "photos")
    next((tmp_path / "photos").rglob("*.png")).unlink()
    less = one_line_error(run_maelift(*words, f"data={tmp_path / 'photos'}"))
    assert "other images" in less


def test_a_run_without_its_report_gets_it(finished: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, words = finished
    shutil.copytree(folder / "run", tmp_path / "run")
    (tmp_path / "run" / "summary.html").unlink()
    done = run_maelift(*words, f"out={tmp_path / 'run'}")
    assert done.returncode == 0 and (tmp_path / "run" / "summary.html").is_file()


def test_a_file_is_checked_by_its_bytes_as_by_its_tensors(finished: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, _ = finished
    sound = folder / "run" / ENCODER_FILE
    stored = read_stored_contract(sound)
    assert stored.content["content_hash"] == read_encoder(sound).content_hash
    content = sound.read_bytes()
    begin = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:begin])
    contract = json.loads(header["__metadata__"]["maelift.encoder"])
    contract["provenance"]["steps"] += 1
    header["__metadata__"]["maelift.encoder"] = json.dumps(contract)
    text = json.dumps(header).encode()
    damaged = {
        "one bit of a tensor": content[:-3] + bytes([content[-3] ^ 1]) + content[-2:],
        "cut": content[:-100],
        "cut in the header": content[: begin // 2],
        "empty": b"",
        "other steps": struct.pack("<Q", len(text)) + text + content[begin:],
    }
    for what, changed in damaged.items():
        file = tmp_path / f"{what}.safetensors"
        file.write_bytes(changed)
        with pytest.raises(CheckpointError, match=file.name):
            read_stored_contract(file)
        with pytest.raises(CheckpointError):
            read_encoder(file)


def test_a_damaged_encoder_of_a_finished_run_is_no_success(finished: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, words = finished
    shutil.copytree(folder / "run", tmp_path / "run")
    file = tmp_path / "run" / ENCODER_FILE
    content = bytearray(file.read_bytes())
    content[-1] ^= 255
    file.write_bytes(content)
    assert "damaged" in one_line_error(run_maelift(*words, f"out={tmp_path / 'run'}"))


def test_init_writes_a_suite_without_torch(tmp_path: Path) -> None:
    for label in ("cats", "dogs"):
        write_images(tmp_path / "pets" / label, 30)
    code, output, errors, imported = run_and_list("init", tmp_path / "pets", f"out={tmp_path / 'suite.yaml'}")
    assert code == 0 and imported == "[]", errors
    assert "next: maelift bench" in output


def test_what_loads_torch_says_so_first() -> None:
    for words in (["bench", "nosuchsuite", "out=x"], ["certify", "a", "b"], ["predict", "model=nowhere", "images=x"]):
        code, _, errors, _ = run_and_list(*words)
        assert code == 2 and errors.startswith(f"{words[0]}: loading torch\n"), errors
        assert "loading" not in run_and_list(*words, "--quiet")[2]
