"""What a suite can say at once when it is asked for in the same words, without a look through its images.

A finished one says it all again, where nothing that it rests on has changed; one that is running says how far it is. Nothing
here imports torch, which alone takes longer.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.config import raw_value
from ..core.data.file_index import RACY_SECONDS
from ..core.errors import MaeliftError
from ..core.files import atomic_write_text
from ..core.optional_imports import installed_version

if TYPE_CHECKING:
    from .runner import BenchResult
    from .suite import BenchConfig

FINISHED, RUNNING = "finished.json", "running.json"
"""In the folder of a suite: what it was asked, what it rests on, and what it said."""
FORMAT = 2
STATUS = "--status"
NOTED_EVERY, BELIEVED_FOR = 10.0, 60.0
"""Seconds after which a running suite notes anew how far it is; after which the note of one that was killed is no longer told."""
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
_at_work: ContextVar[dict[str, Any] | None] = ContextVar("asked", default=None)


class RunningNote:
    """How far a suite is, written into its folder while it runs; for commands only, as another is known by its words."""

    def __init__(self, config: BenchConfig) -> None:
        from .suite_file import suite_files

        self._file, self._asked, self._written = Path(config.out) / RUNNING, _at_work.get(), -NOTED_EVERY
        self._rests_on = {} if self._asked is None else _stamps([*suite_files(config.suite), *CODE])[0]

    @property
    def is_due(self) -> bool:
        """Whether the last one is old."""
        return self._asked is not None and time.monotonic() - self._written >= NOTED_EVERY

    def write(self, text: str) -> None:
        """Write the note anew."""
        self._written = time.monotonic()
        _write(self._file, {"asked": self._asked, "rests_on": self._rests_on, "status": text})

    def remove(self) -> None:
        """Remove it."""
        with suppress(OSError):
            self._file.unlink(missing_ok=True)


@contextmanager
def asking(words: Sequence[str]) -> Iterator[None]:
    """What runs within was asked for in these words."""
    token = _at_work.set(_asked(words))
    try:
        yield
    finally:
        _at_work.reset(token)


def again(words: Sequence[str]) -> str | None:
    """What the finished suite said, or with ``--status`` how far it is; None where that isn't known without another look."""
    about_status = STATUS in words
    try:
        if (asked := _asked([word for word in words if word != STATUS])) is None:
            return None
        out = Path(str(raw_value("out", asked["words"])))
        if about_status and (said := _running(out, asked)) is not None:
            return said
        found = _read(out / FINISHED, asked)
        return None if found is None else str(found["status" if about_status else "said"])
    except (MaeliftError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # not there, damaged, or of another version


def remember(words: Sequence[str], began: int, config: BenchConfig, result: BenchResult) -> None:
    """Note that a suite is finished, which began at ``began`` (ns).

    It isn't noted where files alone don't tell whether anything has changed, nor where something did in the meantime.
    """
    whole = result.result
    if (asked := _asked(words)) is None or whole.missing or whole.failed or whole.unspent:
        return
    from .suite_file import suite_files

    out, images = Path(config.out), _image_folders(config)
    if not all(path.is_dir() for path in images):
        return  # a list may name images that lie anywhere
    weights = [Path(arm.weights) for arm in config.arms.values() if arm.weights is not None]
    stamps, newest = _stamps([*suite_files(config.suite), *images, *weights, *CODE])
    if newest > began - RACY_SECONDS * 1e9:
        return
    written = [path for path in sorted(out.iterdir()) if path.name != FINISHED and not path.name.startswith(".")]
    stamps |= _stamps(written)[0]
    if None not in stamps.values():
        said = {"said": result.summary(), "status": result.status.text()}
        _write(out / FINISHED, {"asked": asked, "rests_on": stamps, **said})


def _running(out: Path, asked: Mapping[str, Any]) -> str | None:
    """What a suite at work noted of itself; None for a note of one that no longer is."""
    try:
        age = time.time() - (out / RUNNING).stat().st_mtime
    except OSError:
        return None
    if abs(age) > BELIEVED_FOR or (found := _read(out / RUNNING, asked)) is None:
        return None
    return f"{found['status']}\nas of {max(age, 0):.0f} s ago; the suite is running"


def _read(file: Path, asked: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a file holds, if it was asked for in these words and what it rests on is as it was; raises OSError, ValueError, ..."""
    found = json.loads(file.read_text(encoding="utf-8"))
    if found["format"] != FORMAT or found["asked"] != asked:
        return None
    same = all(_stamp(Path(path))[0] == stamp for path, stamp in found["rests_on"].items())
    return found if same else None


def _write(file: Path, content: Mapping[str, Any]) -> None:
    with suppress(OSError):  # it is no more than time that is saved
        atomic_write_text(file, json.dumps({"format": FORMAT, **content}, indent=1) + "\n")


def _asked(words: Sequence[str]) -> dict[str, Any] | None:
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


def _image_folders(config: BenchConfig) -> list[Path]:
    unlabelled = config.data.unlabelled
    pool = (unlabelled,) if isinstance(unlabelled, str) else unlabelled or ()
    given = [config.data.path, *pool, *(task.data for task in config.tasks.values())]
    return [Path(path) for path in given if path is not None]


def _stamps(paths: Iterable[Path]) -> tuple[dict[str, str | None], int]:
    """The stamp of each path, and the newest time (ns) of all."""
    found = {str(path): _stamp(path) for path in paths}
    return {path: stamp for path, (stamp, _) in found.items()}, max((newest for _, newest in found.values()), default=0)


def _stamp(path: Path) -> tuple[str | None, int]:
    """A hash of the names, sizes and times of a file, or of all files in a folder, and the newest time (ns).

    None where they can't be told.
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
