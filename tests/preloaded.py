"""``maelift`` commands without the seconds that their imports take: each is a fork of a process that has them done.

A command is a process of its own all the same, with its own words, folder, environment, output and exit code. Hundreds are run
by the tests; torch and what stands on it take some five seconds of a core each time.

    python tests/preloaded.py --serve SOCKET    waits for commands until its standard input ends
    python tests/preloaded.py SOCKET WORDS      runs a command there, as if it were here
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn


class Preloaded:
    """A process that waits for commands, as long as this one lives."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="maelift-commands-")
        self.socket = Path(self._folder.name) / "socket"
        command = [sys.executable, __file__, "--serve", str(self.socket)]
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._server.stdout is not None
        if self._server.stdout.readline() != b"ready\n":
            raise RuntimeError("no process for commands could be started; its error is above")
        atexit.register(self.close)

    def close(self) -> None:
        """Have it end."""
        if self._server.stdin is not None:
            self._server.stdin.close()
        self._server.wait()
        self._folder.cleanup()

    def run(
        self, words: Sequence[str], cwd: Path | None, env: Mapping[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """The exit code of a command, and what it said."""
        with (
            tempfile.TemporaryFile("w+") as out,
            tempfile.TemporaryFile("w+") as err,
            open(os.devnull) as nothing,
        ):
            files = [file.fileno() for file in (nothing, out, err)]
            code = call(self.socket, words, str(cwd or os.getcwd()), env, files, timeout)
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(["maelift", *words], code, out.read(), err.read())

    def shim(self) -> Path:
        """A folder for a shell's path, in which ``maelift`` is such a command."""
        folder = Path(self._folder.name) / "bin"
        if not folder.exists():
            folder.mkdir()
            script = folder / "maelift"
            script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{__file__}" "{self.socket}" "$@"\n')
            script.chmod(0o755)
        return folder


def call(
    place: Path, words: Sequence[str], cwd: str, env: Mapping[str, str], files: Sequence[int], timeout: float | None
) -> int:
    """Run a command with these files as standard input, output and error; its exit code, as subprocess has it."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(timeout)
        line.connect(str(place))
        request = json.dumps({"words": list(words), "cwd": cwd, "env": dict(env)}).encode()
        socket.send_fds(line, [len(request).to_bytes(4, "big")], list(files))
        line.sendall(request)
        answers = line.makefile("r")
        process = int(answers.readline())
        try:
            ended = answers.readline()
        except TimeoutError:
            os.kill(process, signal.SIGKILL)
            raise subprocess.TimeoutExpired(["maelift", *words], timeout or 0) from None
        return int(ended) if ended else -signal.SIGKILL


def serve(place: str) -> None:
    """Import what commands need, then fork for each that comes."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(place)
    listener.listen(64)
    os.environ["OMP_NUM_THREADS"] = "1"
    from maelift.benchmarks.local import PRELOADED
    from maelift.cli import COMMANDS

    own = {module for command in COMMANDS.values() for module in (command.module, command.home or command.module)}
    for name in [*(f"maelift.{module}" for module in own), *PRELOADED]:
        importlib.import_module(name)
    print("ready", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them here
    while True:
        readable, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in readable:
            return
        line, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _command(line)
        line.close()


def _command(line: socket.socket) -> NoReturn:
    """Be the command that was asked for."""
    from maelift.cli import main

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, files, _, _ = socket.recv_fds(line, 4, 3)
    reader = line.makefile("rb")
    request = json.loads(reader.read(int.from_bytes(head, "big")))
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    line.sendall(f"{os.getpid()}\n".encode())
    os.environ.clear()
    os.environ.update(request["env"])
    sys.path[:0] = filter(None, request["env"].get("PYTHONPATH", "").split(os.pathsep))
    os.chdir(request["cwd"])
    sys.argv = ["maelift", *request["words"]]
    code = 1
    try:
        code = main(request["words"])
        atexit._run_exitfuncs()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        line.sendall(f"{code}\n".encode())
        os._exit(code & 255)


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(sys.argv[2])
    else:
        sys.exit(call(Path(sys.argv[1]), sys.argv[2:], os.getcwd(), os.environ, (0, 1, 2), None))
