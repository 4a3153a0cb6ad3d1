"""Certify runs no code of what it reads: weights, YAML tags, folders; a config in Python runs only with trust."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from maelift.adapters.checkpoints import detectron2_checkpoint, local_file
from maelift.adapters.config_process import Request, certify_in_process
from maelift.adapters.timm import save_folder as write_timm
from maelift.adapters.transformers import save_folder as write_transformers
from maelift.adapters.yacs_files import read_yacs
from maelift.cli import main
from maelift.core.errors import CheckpointError, MaeliftError
from maelift.core.models.encoder_file import load_encoder
from maelift.tests.support import encoder_file, framework, one_line_error, random_encoder, run_maelift
from safetensors.torch import load_file, save_file

MARK = "code-ran"


class Attack:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.marker,)


def bare_pickle(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps({"model": Attack(marker)}))


def old_pickle(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps({"model": Attack(marker)}, protocol=0))


def torch_zip(path: Path, marker: Path) -> None:
    torch.save({"model": {"weight": torch.zeros(1)}, "more": Attack(marker)}, path)


def torch_before_zip(path: Path, marker: Path) -> None:
    torch.save({"model": Attack(marker)}, path, _use_new_zipfile_serialization=False)


def zip_of_a_pickle(path: Path, marker: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Attack(marker), protocol=2))
        archive.writestr("archive/version", "3\n")


def npz_of_objects(path: Path, marker: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, model=np.array([Attack(marker)], dtype=object))


def named_pipe(path: Path, marker: Path) -> None:
    os.mkfifo(path)


ATTACKS: list[Callable[[Path, Path], None]] = [
    bare_pickle,
    old_pickle,
    torch_zip,
    torch_before_zip,
    zip_of_a_pickle,
    npz_of_objects,
    named_pipe,
]
NAMES = ["w.pkl", "w.PKL", "w.pth", "w", "w.pyth", "w.pt.txt", "w#.pkl", "w.npz", "w.safetensors"]
SUFFIXES = ["", "#", "?", "?matching_heuristics=True", "#x", ";x"]


@pytest.mark.parametrize("attack", ATTACKS)
def test_weights_with_code_are_refused_whatever_they_are_called(
    attack: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    for name in NAMES:
        attack(tmp_path / name, tmp_path / MARK)
        for suffix in SUFFIXES:
            with pytest.raises(CheckpointError) as raised:
                detectron2_checkpoint(f"{tmp_path}/{name}{suffix}", key="MODEL.WEIGHTS")
            assert "\n" not in str(raised.value)
        with pytest.raises(CheckpointError):
            load_encoder(tmp_path / name)
    assert not (tmp_path / MARK).exists()


ELSEWHERE = """
https://x.org/w.pth HTTP://x.org/w detectron2://a/b.pkl catalog://x file:///w.pkl s3://a/b cluster:s3://a/b
open-mmlab://resnet50 torchvision://resnet50 mmcls://x hf-hub:timm/vit local-dir:.
"""


@pytest.mark.parametrize("name", ELSEWHERE.split())
def test_nothing_is_downloaded(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"certify downloads nothing.*overrides=\[load_from=FILE\]"):
        local_file(name, key="load_from")


def test_the_weights_that_a_config_may_name_are_read_as_detectron2_reads_them(tmp_path: Path) -> None:
    state = {"a": torch.ones(2)}
    torch.save({"model": state, "iteration": 3}, tmp_path / "w")
    torch.save(state, tmp_path / "bare.pth")
    torch.save({"model_state": {**state, "x.num_batches_tracked": torch.zeros(1)}}, tmp_path / "w.pyth")
    for name, heuristics in (("w", False), ("bare.pth?matching_heuristics=True", True), ("w.pyth", True)):
        found = detectron2_checkpoint(f"{tmp_path}/{name}", key="k")
        assert list(found["model"]) == ["a"] and found["matching_heuristics"] == heuristics  # type: ignore[call-overload]
    (tmp_path / "w").rename(tmp_path / "w.pkl")
    with pytest.raises(CheckpointError, match=r"Rename it to w\.pth"):
        detectron2_checkpoint(f"{tmp_path}/w.pkl", key="k")
    (tmp_path / "w.pkl").rename(tmp_path / "w.pth")  # as advised
    detectron2_checkpoint(f"{tmp_path}/w.pth", key="k")
    save_file(state, tmp_path / "s.pth")
    with pytest.raises(CheckpointError, match=r"Rename it to s\.safetensors"):
        detectron2_checkpoint(f"{tmp_path}/s.pth", key="k")
    (tmp_path / "s.pth").rename(tmp_path / "s.safetensors")
    assert list(detectron2_checkpoint(f"{tmp_path}/s.safetensors", key="k")["model"]) == ["a"]  # type: ignore[call-overload]


YAML_TAGS = [
    "!!python/object/apply:os.mkdir ['MARK']",
    "!!python/object/new:os.mkdir ['MARK']",
    "!!python/name:os.system ''",
    "!!python/module:antigravity ''",
    "!!python/tuple [1, 2]",
    "!call [os.mkdir, MARK]",
]


@pytest.mark.parametrize("tag", YAML_TAGS)
@pytest.mark.parametrize("where", ["itself", "base", "base of a base"])
def test_a_yaml_tag_never_runs(tag: str, where: str, tmp_path: Path) -> None:
    text = f"MODEL:\n  DEVICE: cpu\n  WEIGHTS: {tag.replace('MARK', str(tmp_path / MARK))}\n"
    chain = ["itself", "base", "base of a base"][: ["itself", "base", "base of a base"].index(where) + 1]
    for number in range(len(chain)):
        last = number == len(chain) - 1
        content = text if last else f"_BASE_: [{number + 1}.yaml]\nMODEL: {{}}\n"
        (tmp_path / f"{number}.yaml").write_text(content)
    with pytest.raises(MaeliftError, match=rf"{len(chain) - 1}\.yaml: line 3: the tag .*Write plain values"):
        read_yacs(tmp_path / "0.yaml")
    assert not (tmp_path / MARK).exists()


def test_yacs_files_are_merged_over_their_bases_as_fvcore_merges_them(tmp_path: Path) -> None:
    framework("detectron2")
    CfgNode = importlib.import_module("fvcore.common.config").CfgNode
    (tmp_path / "a.yaml").write_text("MODEL: {A: 1, B: {C: [1, 2]}}\nX: 1e-3\n")
    (tmp_path / "b.yaml").write_text("MODEL: {B: {D: 'x'}}\nY: yes\n")
    (tmp_path / "c.yaml").write_text("_BASE_: [a.yaml, ./b.yaml]\nMODEL: {A: 3, B: {C: [5]}}\n")
    assert read_yacs(tmp_path / "c.yaml") == CfgNode.load_yaml_with_base(str(tmp_path / "c.yaml"))


BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{one}: &{one} [{', '.join(['*' + before] * 10)}]\n" for one, before in zip("bcdefgh", "abcdefg", strict=True)
)
"""A few bytes that YAML makes a hundred million values of."""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("_BASE_: https://x.org/a.yaml\n", "certify downloads nothing"),
        ("_BASE_: detectron2://a.yaml\n", "certify downloads nothing"),
        ("_BASE_: c.yaml\n", "lead back to themselves"),
        ("_BASE_: gone.yaml\n", "no such file"),
        ("_BASE_: /dev/zero\n", "a device, not a file"),
        ("MODEL: &a [*a]\n", "an alias of what it stands in"),
        (BOMB, "with its aliases"),
        ("[1, 2]\n", "holds a list"),
        ("a: [1\n", "not YAML"),
        ("a: " + "[" * 1500 + "\n", "not YAML"),
    ],
)  # fmt: skip
def test_yacs_files_that_are_none_or_too_much_are_refused(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(MaeliftError, match=expected) as raised:
        read_yacs(tmp_path / "c.yaml")
    assert "\n" not in str(raised.value)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def code_in_a_bin(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch_zip(folder / "pytorch_model.bin", folder / MARK)


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "timm: a hub name": (lambda f: edit(f / "config.json", lambda c: c.update(architecture="hf-hub:x/y")), "a model of timm"),
    "timm: a folder": (lambda f: edit(f / "config.json", lambda c: c.update(architecture="local-dir:/x")), "a model of timm"),
    "timm: other weights": (
        lambda f: edit(f / "config.json", lambda c: c["model_args"].update(pretrained=True)), "model_args.pretrained"),
    "timm: another kind of model": (
        lambda f: edit(f / "config.json", lambda c: c.update(architecture="resnet10t", model_args={})), "timm can't load it"),
    "timm: larger than its weights": (
        lambda f: edit(f / "config.json", lambda c: c["model_args"].update(depth=10**12)), "parameters or more"),
    "timm: no number": (lambda f: edit(f / "config.json", lambda c: c["model_args"].update(embed_dim="x")), "a number above 0"),
    "transformers: larger than its weights": (
        lambda f: edit(f / "config.json", lambda c: c.update(num_hidden_layers=10**12)), "parameters or more"),
    "transformers: wider than its weights": (
        lambda f: edit(f / "config.json", lambda c: c.update(hidden_size=10**9)), "parameters or more"),
    "timm: a pickle": (lambda f: bare_pickle(f / "model.safetensors", f / MARK), "pickle"),
    "timm: a pickle in a .bin": (
        code_in_a_bin, "which could run code"),
    "transformers: code": (
        lambda f: edit(f / "config.json", lambda c: c.update(auto_map={"AutoModel": "x.Y"})), "remove auto_map"),
    "transformers: kernels": (
        lambda f: edit(f / "config.json", lambda c: c.update(_attn_implementation="kernels-community/x")), "sdpa or eager"),
    "transformers: an adapter": (
        lambda f: (f / "adapter_config.json").write_text('{"base_model_name_or_path": "x/y"}'), "Merge it"),
    "transformers: a pickle": (
        code_in_a_bin, "which could run code"),
}  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder_file(tmp_path_factory.mktemp("encoder") / "encoder.safetensors")


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_with_code_or_other_weights_are_refused(
    case: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    framework(case.partition(":")[0])
    (write_timm if case.startswith("timm") else write_transformers)(random_encoder(), tmp_path)
    change, expected = FOLDERS[case]
    change(tmp_path)
    assert main(["certify", str(tmp_path), str(file)]) == 2
    said = capsys.readouterr()
    assert expected in said.err and "certificate passed" not in said.out
    assert not (tmp_path / MARK).exists()


def test_a_timm_folder_reads_its_own_weights_only_and_torch_files_too(file: Path, tmp_path: Path) -> None:
    write_timm(load_encoder(file), tmp_path)
    edit(tmp_path / "config.json", lambda c: c["pretrained_cfg"].update(url="https://x.org/w.pth", hf_hub_id="x/y"))
    assert main(["certify", str(tmp_path), str(file)]) == 0
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert main(["certify", str(tmp_path), str(file)]) == 0


PROGRAMS = {
    "exit 0": ("raise SystemExit(0)", "ended by itself, with exit code 0"),
    "os._exit": ("import os; os._exit(0)", "ended by itself, with exit code 0"),
    "mmengine, exit 0": ("_base_ = []\nraise SystemExit(0)", "ended by itself, with exit code 0"),
    "killed": ("import os; os.kill(os.getpid(), 9)", "killed by signal 9"),
    "forged text": ("print('certificate passed: 39 tensors', flush=True); raise SystemExit(0)", "exit code 0"),
    "forged answer": (
        "import gc, os; from multiprocessing.connection import Connection\n"
        "for c in [c for c in gc.get_objects() if isinstance(c, Connection) and c.writable]:\n"
        "    c.send_bytes(b'x' * 64 + b'\\n{}')\n"
        "os._exit(0)",
        "sent something else",
    ),
    "more memory than there is": ("import numpy; x = [numpy.empty(2**27) for _ in range(10**5)]", "MemoryError"),
    "an exception": ("raise ValueError('of mine')", "ValueError: of mine"),
    "a pickle": ("import pickle; pickle.load(open('w.pkl', 'rb'))", "a pickle was to be read"),
    "numpy's pickle": ("import numpy; numpy.load('w.npz', allow_pickle=True)['model']", "a pickle was to be read"),
    "torch's pickle": ("import torch; torch.load('w.pth', weights_only=False)", "a pickle was to be read"),
    "the network": ("import urllib.request; urllib.request.urlopen('http://127.0.0.1:9/x')", "downloads nothing"),
    "runs for ever": ("while True: pass", "not done after 8 seconds"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", PROGRAMS)
def test_a_program_that_ends_without_a_certificate_has_none(
    case: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    framework("mmseg" if "mmengine" in case else "detectron2")
    monkeypatch.chdir(tmp_path)
    program, expected = PROGRAMS[case]
    for attack, name in ((bare_pickle, "w.pkl"), (npz_of_objects, "w.npz"), (torch_zip, "w.pth")):
        attack(tmp_path / name, tmp_path / MARK)
    (tmp_path / "mine.py").write_text(f"open('began', 'w').close()\n{program}\n")
    limit = ["time_limit=8"] if case == "runs for ever" else []
    assert main(["certify", "mine.py", str(file), "--trust", *limit]) == 2
    said = capsys.readouterr()
    assert expected in said.err and "certificate passed" not in said.out
    assert (tmp_path / "began").exists() or limit
    assert not (tmp_path / MARK).exists()


@pytest.mark.parametrize("text", ["open('began', 'w')", "_base_ = []\nmodel = dict(type='X')\nopen('began', 'w')"])
def test_a_program_runs_only_where_it_is_trusted(
    text: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine.py", "mine.PY"):
        (tmp_path / name).write_text(text)
        for words in ([], ["--dry-run"]):
            assert main(["certify", name, str(file), *words]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert "nothing was run" in line and "add --trust" in line
        assert not (tmp_path / "began").exists()
        assert main(["certify", name, str(file), "--dry-run", "--trust"]) == 0
        assert "a program in Python" in capsys.readouterr().out


def test_the_help_says_that_a_program_is_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["certify", "-h"]) == 0
    said = capsys.readouterr().out
    assert "[--trust]" in said and "run a config in Python" in said


def test_certificates_are_checked_where_they_arrive() -> None:
    from maelift.adapters.certificate import Certificate

    difference = {"largest": 0.0, "relative": 0.0}
    level = {"name": "x", "block": 0, "differences": {"float64": difference, "float32": difference}}
    keys = {"used": ["a"], "missing": {}, "unused": {}, "wrong": {}}
    size = {"image_size": [8, 8], "window": 0, "input": difference, "levels": [level]}
    good = {
        "framework": "x",
        "encoder": "y",
        "keys": keys,
        "sizes": [size],
        "failures": [],
        "versions": {},
        "steps": [],
    }
    assert json.loads(Certificate.from_json(good).to_json())["sizes"][0] == size
    bad: list[dict[str, Any]] = [
        {**good, "sizes": []},
        {**good, "keys": {**keys, "used": []}},
        {**good, "keys": {**keys, "wrong": {"a": "b"}}},
        {**good, "sizes": [{**size, "levels": []}]},
        {**good, "sizes": [{**size, "input": {"largest": 1.0, "relative": float("nan")}}]},
        {**good, "sizes": [{**size, "levels": [{**level, "differences": {"float64": {"largest": 1, "relative": 1}}}]}]},
        {**good, "steps": [{"name": "training step", "outcome": "failed", "detail": "x"}]},
        {"passed": True},
    ]
    for content in bad:
        with pytest.raises(CheckpointError, match="no certificate"):
            Certificate.from_json(content)


def test_mmengine_reads_no_pickle_either(file: Path, tmp_path: Path) -> None:
    framework("mmseg")
    from maelift.adapters.mmseg_model import safe_weights
    from mmengine.runner.checkpoint import CheckpointLoader, _load_checkpoint_with_prefix

    config = {"load_from": f"{tmp_path}/w", "model": {"pretrained": "open-mmlab://resnet50"}}
    for attack in ATTACKS:
        (tmp_path / "w").unlink(missing_ok=True)
        attack(tmp_path / "w", tmp_path / MARK)
        with safe_weights(config), pytest.raises(CheckpointError, match="load_from="):
            CheckpointLoader.load_checkpoint(f"{tmp_path}/w", "cpu", None)
    with safe_weights(config), pytest.raises(CheckpointError, match=r"overrides=\[model\.pretrained=FILE\]"):
        _load_checkpoint_with_prefix("backbone.", "open-mmlab://resnet50")
    assert not (tmp_path / MARK).exists()


def test_processes_are_ended_with_all_that_they_started(file: Path, tmp_path: Path) -> None:
    framework("detectron2")
    shutil.copy(file, tmp_path / "e.safetensors")
    text = (
        f"import os, time\nif os.fork() == 0:\n    open('{tmp_path}/pid', 'w').write(str(os.getpid()))\n    time.sleep(300)\n"
        f"while not os.path.exists('{tmp_path}/pid'): time.sleep(0.01)\nraise SystemExit(3)\n"
    )
    (tmp_path / "mine.py").write_text(text)
    request = Request("detectron2", str(tmp_path / "mine.py"), str(tmp_path / "e.safetensors"), (), 0, 60)
    with pytest.raises(CheckpointError, match="no certificate"):
        certify_in_process(request)
    status = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    deadline = time.monotonic() + 30
    while status.exists() and status.read_text().split()[2] not in "ZX" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not status.exists() or status.read_text().split()[2] in "ZX"


@pytest.mark.parametrize("text", ["[]", "3", '"timm"', "[" * 100_000])
def test_a_config_json_of_any_content_is_refused_in_a_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    words = ["certify", str(tmp_path), str(encoder_file(tmp_path / "encoder.safetensors"))]
    one_line_error(run_maelift(*words), "config.json")
