"""The functions show their keys: to type checkers, to ``help`` and to the completion of notebooks."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import maelift
import pytest
from maelift.commands import COMMANDS
from maelift.tests.support import ROOT
from maelift.tests.write_api_keys import key_table, source

FUNCTIONS = {
    "pretrain": "pretrain",
    "reconstruct": "reconstruct",
    "transfer": "transfer detect",
    "embed": "embed",
    "bench": "bench",
    "export": "export",
}


def test_the_types_of_the_keys_are_those_of_the_schemas() -> None:
    ruff = [sys.executable, "-m", "ruff"]
    made = source()
    for words in (["check", "--fix", "-q", "--select", "I"], ["format", "-q"]):
        command = [*ruff, *words, "--stdin-filename", str(ROOT / "api_keys.py"), "-"]
        made = subprocess.run(command, input=made, capture_output=True, text=True, check=True).stdout
    assert made == (ROOT / "api_keys.py").read_text(), "after a key has changed: python tests/write_api_keys.py"


def test_the_keys_of_the_help_are_those_of_the_schemas() -> None:
    made = (ROOT / "key_table.json").read_text(encoding="utf-8")
    assert made == key_table(), "after a key has changed: python tests/write_api_keys.py"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_signature_has_every_key_by_its_name(name: str) -> None:
    found: Callable[..., Any] = getattr(maelift, name)
    parameters = inspect.signature(found).parameters
    assert not [value for value in parameters.values() if value.kind is value.VAR_KEYWORD]
    if name == "export":
        keys = {"encoder", "to", "out", "window_size", "crop_size", "dynamic_size"}
    else:
        keys = {field.name for field in fields(COMMANDS[FUNCTIONS[name]].config_type())}
    assert keys <= parameters.keys()
    assert "key" not in parameters and "Keys of maelift" in (inspect.getdoc(found) or "")


@pytest.mark.slow
def test_help_describes_the_function_not_the_folder() -> None:
    code = "import maelift; help(maelift.pretrain)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pretrain(config:" in shown and "masking.ratio" in shown and "share of patches hidden" in shown
    assert "make_callable" not in shown


CALLS = {
    'maelift.pretrain(data="a", out="b", masking={"ratio": 0.6})': True,
    'maelift.transfer("classify", data="a", out="b", method="knn")': True,
    'maelift.transfer("segment", data="a", out="b", engine="mmseg")': True,
    'maelift.export("encoder.safetensors", to="onnx", out="b", dynamic_size=True)': True,
    'maelift.pretrain(data="a", out="b", epoch=3)': False,
    'maelift.pretrain(data="a", out="b", masking={"ration": 0.6})': False,
    'maelift.transfer("classify", data="a", out="b", engine="mmseg")': False,
    'maelift.transfer("detect", data="a", out="b", flip="yes")': False,
    'maelift.bench("quickstart", tuning={"seeds": 3})': False,
}
"""Calls, and whether they are right."""


@pytest.mark.slow
def test_a_type_checker_knows_the_keys_of_each_task(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("\n".join(["import maelift", *CALLS]) + "\n")
    source = ROOT / ".venv" / "src"  # where `make lint` checks the package: its results are cached there
    if not (source / "maelift").exists():
        (source := tmp_path / "src").mkdir()
        (source / "maelift").symlink_to(ROOT, target_is_directory=True)
    environ = {**os.environ, "MYPYPATH": str(source)}
    command = [sys.executable, "-m", "mypy", "--config-file", "maelift/pyproject.toml", str(script)]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=source, env=environ).stdout
    wrong = {int(number) for number in re.findall(r"script\.py:(\d+): error:", shown, re.MULTILINE)}
    assert wrong == {line for line, right in enumerate(CALLS.values(), 2) if not right}, shown
