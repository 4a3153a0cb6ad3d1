"""The answer of a finished or running suite to the same command again, without its images being read.

A finished suite gives its answer again while no file that the answer depends on has changed; a running one reports its status.
Nothing here imports torch, which takes longer than the answer.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..core.config import raw_value
from ..core.data.file_index import RACY_SECONDS
from ..core.errors import MaeliftError
from ..core.files import atomic_write_text
from ..core.optional_imports import installed_version

FINISHED, RUNNING = "finished.json", "running.json"
"""In the folder of a suite: the request, the files that the answer depends on, and the answer."""
FORMAT = 3
STATUS = "--status"
WRITE_INTERVAL, VALID_SECONDS = 10.0, 60.0
"""Seconds between two status files of a running suite; age up to which such a file is taken for one of a running suite."""
LIBRARIES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "pillow",
    "torchmetrics",
    "scipy",
    "matplotlib",
    "jinja2",
    "pyarrow",
)
CODE = [
    Path(__file__).parents[1] / name
    for name in ("version.py", "core", "pretrain", "transfer", "adapters", "benchmarks")
]


class RunningStatus:
    """The status of a running suite, in a file of its folder that ``--status`` answers with."""

    def __init__(self, out: Path, request: Mapping[str, Any], inputs: Iterable[Path]) -> None:
        self._file, self._request, self._written = out / RUNNING, request, -WRITE_INTERVAL
        self._inputs = _file_stats([*inputs, *CODE])[0]

    @property
    def is_due(self) -> bool:
        """Whether the file is old."""
        return time.monotonic() - self._written >= WRITE_INTERVAL

    def write(self, text: str) -> None:
        """Write the file again."""
        self._written = time.monotonic()
        _write(self._file, {"request": self._request, "inputs": self._inputs, "status": text})

    def remove(self) -> None:
        """Remove the file."""
        with suppress(OSError):
            self._file.unlink(missing_ok=True)


class AnswerCache:
    """The cached answers to one command line; without options of its own but ``--status`` and ``--quiet``, else it has none."""

    def __init__(self, words: Sequence[str]) -> None:
        self._about_status, self._began = STATUS in words, time.time_ns()
        self._request = _request([word for word in words if word != STATUS])

    def answer(self) -> str | None:
        """What the finished suite printed, or with ``--status`` the status; None where the command must run."""
        if self._request is None:
            return None
        try:
            out = Path(str(raw_value("out", self._request["words"])))
            if self._about_status and (status := _running_status(out, self._request)) is not None:
                return status
            found = _read(out / FINISHED, self._request)
            return None if found is None else str(found["status" if self._about_status else "answer"])
        except (MaeliftError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None  # not there, damaged, or of another version

    def running_status(self, out: Path, inputs: Iterable[Path]) -> RunningStatus | None:
        """The file for the status of the command while it runs; None for a request that isn't cached."""
        return None if self._request is None else RunningStatus(out, self._request, inputs)

    def save(self, out: Path, answer: str, status: str, inputs: Iterable[Path]) -> None:
        """Save the answer of a finished suite, which depends on ``inputs``, the code and the files in ``out``.

        Not where one of them changed while the command ran, or can't be read.
        """
        stats, newest = _file_stats([*inputs, *CODE])
        if self._request is None or newest > self._began - RACY_SECONDS * 1e9:
            return
        written = [path for path in sorted(out.iterdir()) if path.name != FINISHED and not path.name.startswith(".")]
        stats |= _file_stats(written)[0]
        if None not in stats.values():
            _write(out / FINISHED, {"request": self._request, "inputs": stats, "answer": answer, "status": status})


def _running_status(out: Path, request: Mapping[str, Any]) -> str | None:
    """The status that a running suite wrote; None where the file is of one that no longer runs."""
    try:
        age = time.time() - (out / RUNNING).stat().st_mtime
    except OSError:
        return None
    if abs(age) > VALID_SECONDS or (found := _read(out / RUNNING, request)) is None:
        return None
    return f"{found['status']}\nas of {max(age, 0):.0f} s ago; the suite is running"


def _read(file: Path, request: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The content of a file, if it is of this request and its inputs are as they were; raises OSError, ValueError, ..."""
    found = json.loads(file.read_text(encoding="utf-8"))
    if found["format"] != FORMAT or found["request"] != request:
        return None
    unchanged = all(_stats_hash(Path(path))[0] == stats for path, stats in found["inputs"].items())
    return found if unchanged else None


def _write(file: Path, content: Mapping[str, Any]) -> None:
    with suppress(OSError):  # it only saves time
        atomic_write_text(file, json.dumps({"format": FORMAT, **content}, indent=1) + "\n")


def _request(words: Sequence[str]) -> dict[str, Any] | None:
    """All that sets what a command does but the files that it reads; None where it has options of its own."""
    words = [word for word in words if word not in ("-q", "--quiet")]
    if any(word.startswith("-") for word in words):
        return None
    gpus = sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*"))
    return {
        "words": words,
        "folder": os.getcwd(),
        "gpus": [gpus, os.environ.get("CUDA_VISIBLE_DEVICES")],
        "versions": {"python": sys.version, **{name: installed_version([name]) for name in LIBRARIES}},
    }


def _file_stats(paths: Iterable[Path]) -> tuple[dict[str, str | None], int]:
    """The hash of each path's file stats, and the newest time (ns) of all."""
    found = {str(path): _stats_hash(path) for path in paths}
    return {path: stats for path, (stats, _) in found.items()}, max((newest for _, newest in found.values()), default=0)


def _stats_hash(path: Path) -> tuple[str | None, int]:
    """A hash of the names, sizes and times of a file, or of all files in a folder, and the newest time (ns).

    None where they can't be read.
    """
    digest, newest = hashlib.sha256(), 0
    try:
        for name, file in [("", path)] if path.is_file() else _files(path):
            status = os.stat(file)
            newest = max(newest, status.st_mtime_ns, status.st_ctime_ns)
            row = (name, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            digest.update(repr(row).encode("utf-8", "surrogateescape"))
    except (OSError, RecursionError):
        return None, 0
    return digest.hexdigest(), newest


def _files(folder: Path, below: str = "") -> Iterator[tuple[str, Path]]:
    """All files in a folder, in order. Raises OSError for a link to another folder: it may lead back."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            name = f"{below}/{entry.name}"
            if entry.name == "__pycache__":
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _files(Path(entry.path), name)
            elif entry.is_dir():
                raise OSError(f"{entry.path}: a link to a folder")
            else:
                yield name, Path(entry.path)
