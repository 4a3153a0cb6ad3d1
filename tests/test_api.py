"""The functions show their keys: to type checkers, to ``help`` and to the completion of notebooks."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import maelift
import pytest
from maelift.cli import COMMANDS
from maelift.tests.support import ROOT
from maelift.tests.write_api_keys import source

FUNCTIONS = {
    "pretrain": "pretrain",
    "reconstruct": "reconstruct",
    "transfer": "transfer detect",
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


def test_help_describes_the_function_not_the_folder() -> None:
    code = "import maelift; help(maelift.pretrain)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pretrain(config:" in shown and "masking.ratio" in shown and "share of patches hidden" in shown
    assert "make_callable" not in shown


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "error"),
    [
        ('maelift.pretrain(data="a", out="b", masking={"ratio": 0.6})', ""),
        ('maelift.transfer("classify", data="a", out="b", method="knn")', ""),
        ('maelift.pretrain(data="a", out="b", epoch=3)', "epoch"),
        ('maelift.pretrain(data="a", out="b", masking={"ration": 0.6})', "ration"),
        ('maelift.transfer("classify", data="a", out="b", engine="mmseg")', "engine"),
        ('maelift.transfer("detect", data="a", out="b", flip="yes")', "flip"),
    ],
)
def test_a_type_checker_knows_the_keys_of_each_task(call: str, error: str, tmp_path: Any) -> None:
    (tmp_path / "script.py").write_text(f"import maelift\n\n{call}\n")
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(ROOT / ".mypy_cache"), str(tmp_path / "script.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode == 0) == (not error), done.stdout
    assert not error or f'"{error}"' in done.stdout
