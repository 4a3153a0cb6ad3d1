"""What is shown of names: one line stays one line, nothing acts on the terminal, and a shell takes back what is suggested."""

from __future__ import annotations

import logging
import subprocess
from pathlib import Path

import pytest
from maelift.cli import main
from maelift.core.terminal import LineFormatter, printable, quoted
from maelift.tests.support import write_images

HOSTILE = (
    "a\nb",
    "\x1b[31mred\x1b[0m",
    "\x9b2J",
    "\u202egpj.exe",
    "b\udcff",
    "a\r\tb",
    "\u2028",
    "it's",
    "\\n",
    "$HOME `x`",
    "a b",
)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_shown_on_one_line_and_a_shell_takes_it_back(name: str) -> None:
    assert printable(name).isprintable() and printable(name).encode("utf-8")
    assert (printable(name) == name) == name.isprintable()
    said = subprocess.run(
        ["bash", "-c", f"printf %s {quoted(name)}"], capture_output=True, env={"LC_ALL": "C.UTF-8"}, check=True
    )
    assert said.stdout == name.encode("utf-8", "surrogateescape") and quoted(name).isprintable()


def test_what_is_logged_keeps_its_own_lines_but_not_those_of_names() -> None:
    def shown(message: str, *args: object) -> str:
        return LineFormatter().format(logging.LogRecord("maelift", logging.INFO, "", 0, message, args, None))

    assert shown("%s: %d files,\n%.1f s", Path("a\nb\x1b["), 3, 0.25) == "a\\nb\\x1b[: 3 files,\n0.2 s"
    assert shown("%s", "one\ntwo\x1b") == "one\ntwo\\x1b" and shown("100 % of\nit") == "100 % of\nit"


def test_errors_and_results_with_hostile_names_stay_in_their_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "data", 3)
    (tmp_path / "data" / "x\n\x1b[2J\udcff.png").write_bytes(b"none")
    assert main(["data", "check", "data", "task=pretrain"]) == 0
    assert "x\\n\\x1b[2J\\xff.png: not an image" in capsys.readouterr().out
    assert main(["data", "check", "no\n\x1bsuch"]) == 2
    assert capsys.readouterr().err == "maelift data check: data=no\\n\\x1bsuch: no such folder or file.\n"


def test_files_may_be_called_as_keys_or_options_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a=b", "-photos", "Batch #2", "2024"):
        write_images(tmp_path / name, 2)
        for word in (name, f"data={name}"):
            assert main(["data", "check", word]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert main(["data", "check", "-absent"]) == 2 and "no such option" in capsys.readouterr().err
    assert main(["data", "check", "zzz=b"]) == 2 and "zzz: no such key" in capsys.readouterr().err
