"""The commands export and certify: a complete folder or nothing, and mistakes reported in one line."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from maelift.adapters import torchvision as adapter
from maelift.adapters.bundle import ExportConfig
from maelift.adapters.certificate import Certificate, Keys
from maelift.adapters.export import ADAPTERS, ExportCommand, certifier, config_class, export, exporter
from maelift.cli import main
from maelift.commands import COMMANDS
from maelift.core.config_keys import describe
from maelift.core.errors import CheckpointError, MaeliftError
from maelift.core.models.encoder import Encoder
from maelift.core.models.encoder_file import load_encoder
from maelift.core.models.preprocessing import Preprocessing
from maelift.core.models.tensor_files import read_tensors
from maelift.core.optional_imports import FRAMEWORKS, Framework, require
from maelift.tests.support import (
    GOLDEN,
    ROOT,
    encoder_file,
    framework,
    one_line_error,
    random_encoder,
    rewrite_metadata,
    run_maelift,
    run_page,
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder_file(tmp_path_factory.mktemp("encoder") / "encoder.safetensors")


def test_an_export_says_what_it_wrote_and_what_to_do_next(file: Path, tmp_path: Path) -> None:
    done = run_maelift("export", file, "--to", "torchvision", "out=new/detector", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "new/detector:" in done.stdout and "certificate passed" in done.stdout
    assert 'load_backbone("new/detector")' in done.stdout
    written = tmp_path / "new" / "detector"
    assert {path.name for path in written.iterdir()} == {
        "backbone.pth",
        "backbone.json",
        "plain_vit",
        "certificate.json",
    }
    for path in written.iterdir():
        assert path.name in done.stdout
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644)
    assert [path.name for path in written.parent.iterdir()] == ["detector"]


def test_python_gives_what_the_command_gives(file: Path, tmp_path: Path) -> None:
    import maelift

    result = maelift.export(str(file), to="torchvision", out=str(tmp_path / "o"), out_channels=64)
    assert result.bundle.certificate.passed and "certificate passed" in result.summary()
    assert json.loads((tmp_path / "o" / "backbone.json").read_text())["backbone"]["out_channels"] == 64


def test_a_folder_in_use_is_left_alone(file: Path, tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "mine.txt").write_text("mine")
    one_line_error(run_maelift("export", file, "--to", "torchvision", "out=o", cwd=tmp_path), "out=o: is there already")
    assert [path.name for path in tmp_path.rglob("*")] == ["o", "mine.txt"]


def test_an_empty_folder_is_filled(file: Path, tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    done = run_maelift("export", file, "--to", "torchvision", "out=o", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "o" / "backbone.pth").is_file()


def test_a_failing_certificate_refuses_the_export(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = adapter.vit_settings
    monkeypatch.setattr(adapter, "vit_settings", lambda *words: {**build(*words), "norm_eps": 1e-5})
    config = ExportCommand.resolve({"encoder": str(file), "to": "torchvision", "out": str(tmp_path / "o")})
    with pytest.raises(CheckpointError, match=r"failed: at 32×32 pixels last map differs by .* Nothing was written\."):
        export(config)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_export_leaves_nothing(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*words: object) -> Certificate:
        raise KeyboardInterrupt

    monkeypatch.setattr(adapter, "certify_folder", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(ExportCommand.resolve({"encoder": str(file), "to": "torchvision", "out": str(tmp_path / "o")}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "to: needed. Expected --to with one of timm"),
        (["--to"], "--to: expected a value after it"),
        (["--to", "tim"], "Did you mean timm?"),
        (["--too", "timm"], "--too: no such option. Did you mean --to?"),
        (["--to", "torchvision", "windowsize=4"], "windowsize: no such key. Did you mean window_size"),
        (["--to", "torchvision", "patch_size=0"], "patch_size=0: expected a whole number"),
        (["--to", "torchvision", "image_size=30"], "image_size=[30,30]: expected multiples of the patch size 4"),
        (["--to", "torchvision", "window_size=-1"], "window_size=-1: expected a number of patches"),
    ],
)
def test_mistakes_are_told(
    words: list[str], expected: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(file), f"out={tmp_path}/o", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("maelift export: ") and expected in said and len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_an_encoder_without_preprocessing_is_refused(file: Path, tmp_path: Path) -> None:
    state, _ = read_tensors(file)
    torch.save(state, tmp_path / "bare.pth")
    message = (
        "don't say how images must be prepared for them. Make an encoder file of them first: maelift import bare.pth"
    )
    one_line_error(run_maelift("export", "bare.pth", "--to", "torchvision", "out=o", cwd=tmp_path), message)
    for source in (file, GOLDEN / "version_1" / "encoder.safetensors"):
        shutil.copy(source, tmp_path / "e.safetensors")
        rewrite_metadata(tmp_path / "e.safetensors", lambda contract: contract.pop("preprocessing"), seal=False)
        done = run_maelift("export", "e.safetensors", "--to", "torchvision", "out=o", cwd=tmp_path)
        one_line_error(done, "an encoder file without preprocessing")
    one_line_error(run_maelift("export", "none.safetensors", "--to", "timm", "out=o", cwd=tmp_path), "no such file")
    assert not (tmp_path / "o").exists()


def test_a_framework_that_is_missing_too_old_or_broken_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def thing(module: str, minimum: str = "0.0.1") -> None:
        monkeypatch.setitem(FRAMEWORKS, "thing", Framework("thing", module, ("maelift",), minimum, "pip install thing"))

    thing("absent_here")
    with pytest.raises(MaeliftError, match=r"absent_here is not installed here\. Install it: pip install thing"):
        require("thing")
    thing("json", minimum="99.1")
    with pytest.raises(MaeliftError, match=r"is installed; expected 99\.1 or newer\. Update it: pip install thing"):
        require("thing")
    monkeypatch.syspath_prepend(tmp_path)
    for number, source in enumerate(["import absent_too", "raise RuntimeError('no kernel\\nimage')", "1 + None"]):
        (tmp_path / f"broken{number}.py").write_text(source)
        thing(f"broken{number}")
        with pytest.raises(
            MaeliftError, match=rf"^broken{number} is installed, but does not import \(.*\)\. Fix it: pip"
        ):
            require("thing")


def test_channels_go_over_in_their_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    framework("detectron2")
    preprocessing = Preprocessing(("blue", "green", "red"), (0.1, 0.5, 0.7), (0.1, 0.2, 0.3))
    encoder = Encoder(random_encoder().spec, preprocessing=preprocessing)
    encoder.load_state_dict(random_encoder().state_dict())
    file = str(encoder_file(tmp_path / "bgr.safetensors", encoder))
    assert main(["export", file, "--to", "detectron2", f"out={tmp_path}/detectron2", "image_size=64"]) == 0
    assert 'image_format = "BGR"' in (tmp_path / "detectron2" / "mask_rcnn.py").read_text()
    for name in ("timm", "transformers"):
        framework(name)
        assert main(["export", file, "--to", name, f"out={tmp_path}/{name}"]) == 2
        assert f"blue, green, red, and {name} reads images as red, green, blue" in capsys.readouterr().err
        assert not (tmp_path / name).exists()


def test_the_dry_run_writes_nothing(file: Path, tmp_path: Path) -> None:
    done = run_maelift("export", file, "--to", "torchvision", "out=o", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0 and "a folder for torchvision" in done.stdout and "157,440" in done.stdout
    assert not list(tmp_path.iterdir())


def test_help_lists_the_keys_of_every_framework() -> None:
    assert "usage: maelift export ENCODER --to TO" in run_maelift("export", "-h").stdout
    text = run_maelift("export", "-h", "all").stdout
    for name in ADAPTERS:
        assert f"with --to {name}:" in text
    assert text.count("file of maelift") == 1 and "window_size  (int | null" in text


@pytest.mark.slow
def test_no_adapter_imports_its_framework_before_it_is_used() -> None:
    import subprocess

    modules = (
        {row.exporter for row in ADAPTERS.values()} | {row.certifier for row in ADAPTERS.values()} | {"detectron2"}
    )
    code = (
        "import sys, importlib\n"
        f"for name in {sorted(modules)}: importlib.import_module('maelift.adapters.' + name)\n"
        "print(sorted({'transformers', 'detectron2', 'mmseg', 'mmcv', 'mmengine', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_certify_reads_checkpoints_in_other_names(file: Path, tmp_path: Path) -> None:
    encoder = load_encoder(file)
    torch.save({"model": encoder.state_dict()}, tmp_path / "same.pth")
    done = run_maelift("certify", "same.pth", file, "out=found", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "certificate passed" in done.stdout and "after the norm" in done.stdout
    assert json.loads((tmp_path / "found" / "certificate.json").read_text())["passed"]

    state = encoder.state_dict()
    state["blocks.1.attn.proj.bias"] = torch.zeros(64)
    torch.save(state, tmp_path / "other.pth")
    done = run_maelift("certify", "other.pth", file, cwd=tmp_path)
    one_line_error(done, "the certificate for checkpoint (timm ViT) failed: ")
    assert "FAILED    blocks.1.attn.proj.bias: the framework's model holds other values than the file" in done.stderr


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("gone.py", None, "/gone.py: no such file. Expected a config of detectron2 or mmseg"),
        ("notes.txt", "x", "notes.txt: unknown kind of file"),
        ("folder/readme", "x", "/folder: a folder without config.json"),
        ("folder/config.json", "{", "config.json: not JSON"),
        ("folder/config.json", "{}", "no key architecture or model_type"),
    ],
)
def test_what_certify_can_not_read_is_told(
    name: str, content: str | None, expected: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if content is not None:
        path.write_text(content)
    assert main(["certify", str(tmp_path / name.partition("/")[0]), str(file)]) == 2
    assert expected in capsys.readouterr().err


def test_the_page_of_the_adapters_works(tmp_path: Path) -> None:
    encoder_file(tmp_path / "encoder.safetensors")
    assert run_page(ROOT / "docs" / "adapters.md", tmp_path).count("certificate passed") == 2


def test_every_failure_is_counted() -> None:
    certificate = Certificate("x", "hash", Keys(()), (), ("first", "second", "third"), {})
    with pytest.raises(CheckpointError, match=r"the certificate for x failed: first \(and 2 more\)\."):
        certificate.check()


def test_random_encoders_are_reproducible() -> None:
    first, second = (random_encoder("vit_nano", seed=3).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_every_list_of_frameworks_follows_the_table_of_adapters() -> None:
    (to,) = (entry for entry in describe(ExportConfig) if entry.key == "to")
    for name in ADAPTERS:
        assert name in FRAMEWORKS and (ROOT / "docs" / f"{name}.md").is_file()
        assert name in to.help and name in COMMANDS["export"].summary
        assert issubclass(config_class(name), ExportConfig) and callable(exporter(name))
        assert hasattr(certifier(name), "certify_folder") or hasattr(certifier(name), "certify_config")
