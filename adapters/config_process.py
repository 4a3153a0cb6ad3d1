"""Certifies a config in a separate process: a time limit, no network, no pickles, and a checked certificate.

A config in Python is a program. Whatever it does, to exit with code 0, to print a certificate or to run without end, there is
a certificate only where the process sent one, complete, for this encoder, and within the limits.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import multiprocessing
import os
import resource
import secrets
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from ..core.errors import CheckpointError, MaeliftError
from .certificate import Certificate
from .trial import available_memory

PRELOADED = ["maelift.adapters.certify"]
MIN_MEMORY = 4 * 2**30
"""Bytes that a config's process may take at least; torch and a framework reserve more than they use."""
MAX_ANSWER_BYTES = 64 * 2**20
"""Bytes of a certificate; one of a ViT-H has some 100 kB."""


@dataclass(frozen=True)
class Request:
    """What the process is asked for; ``time_limit`` and ``step_seconds`` as in ``CertifyConfig``."""

    framework: str
    config: str
    encoder: str
    overrides: tuple[str, ...]
    step_seconds: float
    time_limit: float


def certify_in_process(request: Request) -> Certificate:
    """Certify a config in a separate process; returns the certificate that it sent.

    Raises MaeliftError for what the process refused, and CheckpointError where it took longer than its time limit
    or ended without a certificate.
    """
    start: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    start.set_forkserver_preload(PRELOADED)
    token = secrets.token_bytes(32)
    ours, theirs = start.Pipe(duplex=False)
    with tempfile.NamedTemporaryFile(prefix="maelift-certify-") as log:
        arguments = (theirs, token, request, log.name, dict(os.environ))
        process = start.Process(target=_answer, args=arguments)
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")  # the process needs nothing of the caller's script
        try:
            process.start()
        finally:
            sys.modules["__main__"] = main
        theirs.close()
        try:
            answer = _received(ours, process, request.time_limit)
            if answer is None:
                raise CheckpointError(
                    f"{request.config}: not done after {request.time_limit:g} seconds; its process was stopped. Give a longer "
                    "time_limit if that is what it takes."
                )
            if not answer:
                process.join(5)
                raise CheckpointError(f"{request.config}: {_how_it_ended(process.exitcode)}{_last_line(log.name)}.")
        finally:
            ours.close()
            _end(process)
    return _checked(answer, token, request)


def _received(pipe: Connection, process: Any, time_limit: float) -> bytes | None:
    """What the process sent; nothing in it where it ended first, None after ``time_limit`` seconds."""
    if not wait([pipe, process.sentinel], time_limit):
        return None
    try:
        return pipe.recv_bytes(MAX_ANSWER_BYTES) if pipe.poll() else b""
    except (EOFError, OSError):
        return b""


def _end(process: Any) -> None:
    """End a process with all that it started."""
    for _ in range(2):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join(10)
        if process.exitcode is not None:
            break


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        return f"no certificate: its process was killed by signal {-code} (out of memory?)"
    return f"no certificate: its process ended by itself, with exit code {code}. A config must not exit"


def _last_line(log: str) -> str:
    """The last line that the process printed, in brackets; empty if there is none."""
    with open(log, "rb") as file:
        file.seek(max(0, os.path.getsize(log) - 2000))
        lines = file.read().decode("utf-8", "replace").split("\n")
    printed = next((line for line in reversed(lines) if line.strip()), "")
    return (
        f" (its last line: {''.join(letter for letter in printed if letter.isprintable())[-200:]})" if printed else ""
    )


def _checked(answer: bytes, token: bytes, request: Request) -> Certificate:
    """The certificate in an answer; raises the error that the process raised, and CheckpointError for a forged answer."""
    seal, _, body = answer.partition(b"\n")
    if not hmac.compare_digest(seal, _seal(token, body)):
        raise CheckpointError(f"{request.config}: no certificate: its process sent something else.")
    content = json.loads(body)
    if "refused" in content:
        error = MaeliftError if content["kind"] == "MaeliftError" else CheckpointError
        raise error(content["refused"])
    return Certificate.from_json(content)


def _seal(token: bytes, body: bytes) -> bytes:
    return hmac.new(token, body, hashlib.sha256).hexdigest().encode()


def _answer(pipe: Connection, token: bytes, request: Request, log: str, environment: Mapping[str, str]) -> NoReturn:
    """The body of the process: run the config, then send the certificate or the error."""
    os.setsid()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(int(min(request.time_limit, 1e9)) + 60)  # if nobody is left to end it
    _limit_memory()
    os.environ.clear()
    os.environ.update(environment)
    out = os.open(log, os.O_WRONLY | os.O_APPEND)
    for number in (1, 2):
        os.dup2(out, number)
    sys.addaudithook(_guard)
    content = _outcome(lambda: _certify(request))
    body = json.dumps(content).encode()
    pipe.send_bytes(_seal(token, body) + b"\n" + body)
    pipe.close()
    os._exit(0)


def _limit_memory() -> None:
    """Limit this process' memory, so that a config that takes more than is free fails alone."""
    free = available_memory()
    if free is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limit = int(max(0.95 * free, MIN_MEMORY))
        with suppress(ValueError, OSError):
            resource.setrlimit(
                resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard)
            )


def _outcome(certify: Callable[[], Certificate]) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(certify().to_json())
        return content
    except MaeliftError as error:
        return {"refused": str(error), "kind": type(error).__name__}


def _certify(request: Request) -> Certificate:
    from .export import certifier, read_for_export

    file = read_for_export(request.encoder)
    certificate: Certificate = certifier(request.framework).certify_config(
        Path(request.config), file, request.overrides, step_seconds=request.step_seconds
    )
    return certificate


def _guard(event: str, arguments: tuple[Any, ...]) -> None:
    """Refuse pickles and network access, whichever code asks for them."""
    if event == "pickle.find_class" and arguments != ("collections", "OrderedDict"):
        raise CheckpointError(
            f"a pickle was to be read ({arguments[0]}.{arguments[1]}), which could run code; nothing of it was run. Certify "
            "reads weights as torch.save writes them, without code"
        )
    if event in ("socket.getaddrinfo", "urllib.Request") or (
        event == "socket.connect" and isinstance(arguments[1], tuple)
    ):
        raise CheckpointError(
            f"{arguments[0] if event == 'urllib.Request' else arguments[0 if event == 'socket.getaddrinfo' else 1]}: certify "
            "downloads nothing. Get the file yourself, and have the config name it"
        )
