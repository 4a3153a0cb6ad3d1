"""Completion in the shells themselves: zsh and fish complete what a user types, from a sourced script and from its file."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from maelift.tests.support import ROOT, environment

TYPED = {
    "maelift pretr": "maelift pretrain",
    "maelift pretrain model=vit_b": "maelift pretrain model=vit_base",
    "maelift transfer classify recipe=sm": "maelift transfer classify recipe=small",
    "maelift pretrain masking.strategy=bl": "maelift pretrain masking.strategy=block",
}
WAIT = 30.0
"""Seconds within which a shell must answer."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty home, with both shells installed: in CI by Debian's packages, elsewhere as they are there."""
    folder = tmp_path_factory.mktemp("home")
    if os.environ.get("CI"):
        subprocess.run([str(ROOT / "tests" / "debian.sh"), str(folder / "apt.log"), "zsh=zsh", "fish=fish"], check=True)
    (folder / "bin").mkdir()
    (folder / "bin" / "maelift").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m maelift "$@"\n')
    (folder / "bin" / "maelift").chmod(0o755)
    for shell in ("zsh", "fish"):
        if shutil.which(shell) is None:
            pytest.skip(f"{shell} is not installed")
    return folder


def shell_environment(home: Path) -> dict[str, str]:
    return {**environment(), "HOME": str(home), "TERM": "dumb", "PATH": f"{home / 'bin'}:{os.environ['PATH']}"}


class Terminal:
    """A shell at a terminal of its own, as a user has it."""

    def __init__(self, words: Sequence[str], home: Path) -> None:
        self.process, self.file = pty.fork()
        if self.process == 0:
            os.chdir(home)
            os.execvpe(words[0], list(words), shell_environment(home))

    def read_until(self, expected: str) -> str:
        """What is shown, until it holds the text."""
        shown, end = "", time.monotonic() + WAIT
        while expected not in shown:
            assert time.monotonic() < end, (expected, shown)
            if select.select([self.file], [], [], 0.1)[0]:
                shown += os.read(self.file, 65536).decode(errors="replace")
        return shown

    def write(self, text: str) -> None:
        """Type it."""
        os.write(self.file, text.encode())

    def close(self) -> None:
        """End the shell."""
        os.close(self.file)
        os.waitpid(self.process, 0)


@pytest.mark.parametrize("kept", [False, True], ids=["sourced", "file"])
def test_zsh_completes_what_is_typed(home: Path, kept: bool, tmp_path: Path) -> None:
    script = subprocess.run(
        ["maelift", "completion", "zsh"], capture_output=True, text=True, env=shell_environment(home)
    )
    assert script.stdout.startswith("#compdef maelift\n")  # compinit reads no other line
    (tmp_path / "_maelift").write_text(script.stdout)
    start = (
        f"fpath=({tmp_path} $fpath); autoload -Uz compinit; compinit -u -D" if kept else f"source {tmp_path}/_maelift"
    )
    for typed, expected in TYPED.items():
        terminal = Terminal(["zsh", "-f", "-i"], home)
        try:
            terminal.write(f"PS1='> '; {start}; echo ready''now\n")
            terminal.read_until("readynow")
            terminal.write(f"{typed}\t")
            terminal.read_until(expected)
        finally:
            terminal.close()


def test_fish_completes_what_is_typed(home: Path) -> None:
    for typed, expected in TYPED.items():
        done = subprocess.run(
            ["fish", "-c", f"maelift completion fish | source; complete -C '{typed}'"],
            capture_output=True,
            text=True,
            env=shell_environment(home),
        )
        assert expected.split()[-1] in done.stdout.split(), done.stderr
