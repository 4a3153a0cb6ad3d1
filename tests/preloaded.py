"""``maelift`` commands without the seconds that their imports take: each is a fork of a process that has them done.

A command is a process of its own all the same, with its own words, folder, environment, output and exit code. Hundreds are run
by the tests; torch and what stands on it take some five seconds of a core each time.

Blocks of Python and the ranks of a distributed run are started the same way. Commands that name detectron2 or mmseg are forks of
a process that has imported that too. The workers that ``bench`` and ``certify`` start are forked from one process for all
commands of a test process; a command in a process group of its own starts everything itself, as it does for users.

    python tests/preloaded.py --serve SOCKET    waits for commands until its standard input ends
    python tests/preloaded.py SOCKET WORDS      runs a command there, as if it were here
    python tests/preloaded.py SOCKET --python WORDS    the same for ``python``, with a file, ``-m`` or ``-c``
"""

from __future__ import annotations

import atexit
import gc
import importlib.util
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, NoReturn

CODE = "-c"
"""The first word where the second one is Python to be run, as for ``python -c``; the others are its arguments."""
PROGRAM = """import os, runpy, sys
sys.argv = sys.argv[1:]
if sys.argv[0] == "-m":
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")"""
"""A block that runs the program in the file that its first argument names, or the module after ``-m``, as ``python`` does."""
SERVE = "--serve"
"""The first word where a process that waits for commands is asked for; then its socket, and its framework."""
PYTHON = "--python"
"""The first word where the others are those of ``python``."""
MODULES = (
    "maelift.pretrain.report",
    "maelift.transfer.report",
    "omegaconf",
    "torch.utils.tensorboard",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "jinja2",
)
"""What commands import only where they need it."""
PLACE = "MAELIFT_TESTS_COMMANDS"
"""The environment's name for the socket that the commands of a page go to, where one is meant for all of them."""
PLAIN = "MAELIFT_TESTS_PLAIN_CURVES"
"""The environment's name for that pages of runs get an empty drawing for each of their curves: matplotlib's take as long as a
short run itself. Tests with the mark ``curves`` draw them, and the blocks of docs pages."""
FRAMEWORKS = {
    "detectron2": ("detectron2.model_zoo", "detectron2.engine", "detectron2.modeling", "detectron2.evaluation"),
    "mmseg": ("mmseg.apis", "mmseg.models", "mmseg.datasets", "mmseg.evaluation", "mmengine.runner"),
}
"""What commands that name a framework import of it."""


class Preloaded:
    """A process that waits for commands, as long as this one lives."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="maelift-commands-")
        self.socket = Path(self._folder.name) / "socket"
        self._with_framework: dict[str, Started] = {}
        command = [sys.executable, __file__, SERVE, str(self.socket)]
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._server.stdout is not None
        if self._server.stdout.readline() != b"ready\n":
            raise RuntimeError("no process for commands could be started; its error is above")
        atexit.register(self.close)

    def close(self) -> None:
        """Have it end."""
        for server in self._with_framework.values():
            server.kill()
        if self._server.stdin is not None:
            self._server.stdin.close()
        self._server.wait()
        self._folder.cleanup()

    def run(
        self, words: Sequence[str], cwd: Path | None, env: Mapping[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """The exit code of a command, and what it said."""
        started = self.start(words, cwd, env)
        out, err = started.communicate(timeout)
        return subprocess.CompletedProcess(["maelift", *words], started.wait(), out, err)

    def start(
        self,
        words: Sequence[str],
        cwd: Path | None,
        env: Mapping[str, str],
        *,
        session: bool = False,
        framework: str | None = None,
    ) -> Started:
        """A command at work; ``session``: in a process group of its own, as a terminal's or a scheduler's.

        ``framework``: what it needs, where its words don't name it.
        """
        framework = framework or framework_of(words)
        place = self.socket
        if framework is not None and importlib.util.find_spec(framework) is not None:
            place = self.prepare(framework)
        workers = "" if session or "".join(words[:1]) not in ("bench", "certify") else process_for_workers()
        return Started(place, words, str(cwd or os.getcwd()), env, session, workers)

    def prepare(self, framework: str) -> Path:
        """Have commands that name a framework forked from a process that has it imported; its socket."""
        place = self.socket.with_name(framework)
        if framework not in self._with_framework:
            server = Started(self.socket, [SERVE, str(place), framework], os.getcwd(), os.environ)
            self._with_framework[framework] = server
            while not place.exists():
                if server.poll() is not None:
                    raise RuntimeError(f"no process for commands with {framework} could be started: {server.said()[1]}")
                time.sleep(0.02)
        return place

    def shim(self) -> Path:
        """A folder for a shell's path, in which ``maelift`` is such a command, and ``python`` too."""
        folder = Path(self._folder.name) / "bin"
        if not folder.exists():
            folder.mkdir()
            for name, more in (("maelift", ""), ("python", f" {PYTHON}")):
                script = folder / name
                script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{__file__}" "{self.socket}"{more} "$@"\n')
                script.chmod(0o755)
        return folder


def framework_of(words: Sequence[str]) -> str | None:
    """The framework that a command or a block of Python names."""
    for name in FRAMEWORKS:
        if any(word == name or word.endswith(f"={name}") or (words[0] == CODE and name in word) for word in words):
            return name
    return None


def place_for(base: Path, words: Sequence[str]) -> Path:
    """The socket of the process that a command is to be forked from; ``base`` is that of the one without a framework."""
    framework = framework_of(words)
    place = base.with_name(framework or base.name)
    return place if place.exists() else base


@cache
def process_for_workers() -> str:
    """The socket of the process that the workers of commands are forked from: this process's own one of multiprocessing."""
    import multiprocessing
    from multiprocessing import forkserver

    from maelift.adapters import config_process
    from maelift.benchmarks import local_executor

    modules = [*local_executor.PRELOADED, *config_process.PRELOADED, *MODULES]
    multiprocessing.get_context("forkserver").set_forkserver_preload(modules)
    server: Any = forkserver._forkserver
    server.ensure_running()
    return json.dumps([server._forkserver_address, getattr(server, "_forkserver_authkey", b"").hex()])


def _use_for_workers(process: str) -> None:
    """Fork the workers of this process from that one."""
    from multiprocessing import forkserver, resource_tracker

    server: Any = forkserver._forkserver
    server._forkserver_address, key = json.loads(process)
    server._forkserver_authkey = bytes.fromhex(key)
    server._forkserver_alive_fd = os.open(os.devnull, os.O_RDONLY)
    server.ensure_running = resource_tracker.ensure_running


class Started:
    """A command at work, with what is used here of ``subprocess.Popen``."""

    def __init__(
        self,
        place: Path,
        words: Sequence[str],
        cwd: str,
        env: Mapping[str, str],
        session: bool = False,
        workers: str = "",
    ) -> None:
        self.words = list(words)
        self._out, self._err = os.memfd_create("out"), os.memfd_create("err")
        self._code: int | None = None
        with open(os.devnull) as nothing:
            files = [nothing.fileno(), self._out, self._err]
            self._line = _ask(place, words, cwd, env, files, session, workers)
        self._answers = self._line.makefile("r")
        self.pid = int(self._answers.readline())

    @property
    def returncode(self) -> int | None:
        """The exit code, once the command is known to have ended: minus the signal where one killed it."""
        return self._code

    def poll(self) -> int | None:
        """The exit code, or None while the command is at work."""
        return self.wait() if self._code is not None or select.select([self._line], [], [], 0)[0] else None

    def wait(self, timeout: float | None = None) -> int:
        """The exit code when the command ends; it is killed where that takes longer than ``timeout`` seconds."""
        if self._code is None:
            if not select.select([self._line], [], [], timeout)[0]:
                self.kill()
                raise subprocess.TimeoutExpired(["maelift", *self.words], timeout or 0)
            self._code = _exit_code(self._answers.readline())
            self._answers.close()
            self._line.close()
        return self._code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What the command wrote to standard output and to standard error, when it ends."""
        self.wait(timeout)
        return self.said()

    def said(self) -> tuple[str, str]:
        """The same, so far."""
        out, err = (os.pread(file, os.fstat(file).st_size, 0).decode() for file in (self._out, self._err))
        return out, err

    def __del__(self) -> None:
        os.close(self._out)
        os.close(self._err)

    def send_signal(self, number: int) -> None:
        """Send a signal to the command's process."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End the command's process at once."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


def _ask(
    place: Path,
    words: Sequence[str],
    cwd: str,
    env: Mapping[str, str],
    files: Sequence[int],
    session: bool = False,
    workers: str = "",
) -> socket.socket:
    """Have a command run with these files as standard input, output and error; its number and exit code come as two lines."""
    line = socket.socket(socket.AF_UNIX)
    line.connect(str(place))
    content = {"words": list(words), "cwd": cwd, "env": dict(env), "session": session, "workers": workers}
    request = json.dumps(content).encode()
    socket.send_fds(line, [len(request).to_bytes(4, "big")], list(files))
    line.sendall(request)
    return line


def _exit_code(answer: str) -> int:
    """As subprocess has it; a process that was killed says nothing."""
    return int(answer) if answer else -signal.SIGKILL


def call(place: Path, words: Sequence[str], cwd: str, env: Mapping[str, str], files: Sequence[int]) -> int:
    """Run a command with these files as standard input, output and error; its exit code, as subprocess has it."""
    if words[:1] == [PYTHON]:
        words = [word for place, word in enumerate(words) if place > 1 or word not in (PYTHON, "-u")]
        words = words if words[0] == CODE else [CODE, PROGRAM, *words]
    place = Path(env[PLACE]) if PLACE in env else place_for(place, words)
    with _ask(place, words, cwd, env, files) as line, line.makefile("r") as answers:
        answers.readline()
        return _exit_code(answers.readline())


def leave_curves_out_where_asked() -> None:
    """Have this process, and its forks, draw curves only where the environment doesn't ask for plain ones."""
    from maelift.core.report import charts
    from markupsafe import Markup

    draw = charts.draw_curves

    def draw_curves(lines: Sequence[charts.Line], label: str, name: str, **more: Any) -> Markup:
        if PLAIN in os.environ:
            return Markup('<svg viewBox="0 0 1 1"></svg>')
        return draw(lines, label, name, **more)

    charts.draw_curves = draw_curves


def serve(place: str) -> None:
    """Import what commands need, then fork for each that comes, until standard input ends."""
    os.environ["OMP_NUM_THREADS"] = "1"
    leave_curves_out_where_asked()
    from maelift.benchmarks.local_executor import PRELOADED
    from maelift.commands import COMMANDS

    own = {module for command in COMMANDS.values() for module in (command.module, command.home or command.module)}
    for name in [*(f"maelift.{module}" for module in own), *PRELOADED, *MODULES]:
        importlib.import_module(name)
    listener = _listener(place)
    print("ready", flush=True)
    _fork_for_each(listener, sys.stdin)


def _listener(place: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{place}.new")
    listener.listen(64)
    os.rename(f"{place}.new", place)  # who finds it may call
    return listener


def _fork_for_each(listener: socket.socket, end: IO[str] | socket.socket) -> None:
    """Fork for each command that comes, until there is something to be read in ``end``."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them here
    gc.collect()
    gc.freeze()  # what forks share isn't touched, and so copied, by their collections
    while True:
        readable, _, _ = select.select([listener, end], [], [])
        if end in readable:
            return
        line, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _command(line)
        line.close()


def _command(line: socket.socket) -> NoReturn:
    """Be the command that was asked for."""
    from maelift.cli import main
    from maelift.core.signals import ignore_stop_signals

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
    if request["session"]:
        os.setsid()
    if request["workers"]:
        _use_for_workers(request["workers"])
    words: list[str] = request["words"]
    sys.argv = words if words[:1] == [CODE] else ["maelift", *words]
    code = 1
    try:
        if words[:1] == [SERVE]:
            code = _serve_framework(words[1], words[2], line)
        else:
            code = _python(words) if words[:1] == [CODE] else main(words)
        ignore_stop_signals()
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


def _serve_framework(place: str, framework: str, line: socket.socket) -> int:
    """Import a framework too, then fork for each command that comes, until nobody is left who could ask."""
    for name in FRAMEWORKS[framework]:
        importlib.import_module(name)
    _fork_for_each(_listener(place), line)
    return 0


def _python(words: Sequence[str]) -> int:
    """Run a block as the program that it would be alone."""
    program = types.ModuleType("__main__")
    sys.modules["__main__"] = program
    sys.argv = [CODE, *words[2:]]
    sys.path.insert(0, "")
    exec(compile(words[1], "<block>", "exec"), program.__dict__)
    return 0


if __name__ == "__main__":
    if sys.argv[1] == SERVE:
        serve(sys.argv[2])
    else:
        sys.exit(call(Path(sys.argv[1]), sys.argv[2:], os.getcwd(), os.environ, (0, 1, 2)))
