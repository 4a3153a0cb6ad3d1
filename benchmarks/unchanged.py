"""A finished suite that is asked for again in the same words is answered at once, where nothing that it rests on has changed.

Nothing here imports torch, which alone takes longer.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.config import MaeliftError, raw_value
from ..core.files import atomic_write_text
from ..core.frameworks import installed_version
from ..core.listing import RACY_SECONDS

if TYPE_CHECKING:
    from .runner import BenchResult
    from .suite import BenchConfig

FILE = "finished.json"
"""In the folder of a suite: what it was asked, what it rests on, and what it said."""
FORMAT = 1
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
PACKAGE = Path(__file__).parents[1]
CODE = ("__init__.py", "core", "pretrain", "transfer", "adapters", "benchmarks")


def again(words: Sequence[str]) -> str | None:
    """What the finished suite said; None where anything has changed, where it wasn't finished, or where options are given."""
    if any(word.startswith("-") for word in words):
        return None
    try:
        out = str(raw_value("out", [word for word in words if "=" in word]))
        found = json.loads((Path(out) / FILE).read_text(encoding="utf-8"))
        if found["asked"] != _asked(words) or found["format"] != FORMAT:
            return None
        if any(_stamp(Path(path))[0] != stamp for path, stamp in found["rests_on"].items()):
            return None
        return str(found["said"])
    except (MaeliftError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # not there, damaged, or of another version


def remember(words: Sequence[str], began: int, config: BenchConfig, result: BenchResult) -> None:
    """Note that a suite is finished, which began at ``began`` (ns).

    It isn't noted where files alone don't tell whether anything has changed, nor where something did in the meantime.
    """
    whole = result.result
    if whole.missing or whole.failed or whole.unspent or any(word.startswith("-") for word in words):
        return
    from .suite import suite_files

    out, images = Path(config.out), _image_folders(config)
    if not all(path.is_dir() for path in images):
        return  # a list may name images that lie anywhere
    weights = [Path(source) for name in config.arms if (source := config.arm(name).weights) is not None]
    paths = [*suite_files(config.suite), *images, *weights, *(PACKAGE / name for name in CODE)]
    stamps = {}
    for path in paths:
        stamps[str(path)], newest = _stamp(path)
        if newest > began - RACY_SECONDS * 1e9:
            return
    for path in sorted(out.iterdir()):
        if path.name != FILE and not path.name.startswith("."):
            stamps[str(path)], _ = _stamp(path)
    if None not in stamps.values():
        text = {"format": FORMAT, "asked": _asked(words), "rests_on": stamps, "said": result.summary()}
        with suppress(OSError):  # it is no more than time that is saved
            atomic_write_text(out / FILE, json.dumps(text, indent=1) + "\n")


def _asked(words: Sequence[str]) -> dict[str, Any]:
    """All that sets what a command does but the files that it reads."""
    gpus = sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*"))
    return {
        "words": list(words),
        "folder": os.getcwd(),
        "gpus": [gpus, os.environ.get("CUDA_VISIBLE_DEVICES")],
        "versions": {"python": sys.version, **{name: installed_version([name]) for name in LIBRARIES}},
    }


def _image_folders(config: BenchConfig) -> list[Path]:
    unlabelled = config.data.unlabelled
    pool = (unlabelled,) if isinstance(unlabelled, str) else unlabelled or ()
    given = [config.data.path, *pool, *(config.task(name).data for name in config.tasks)]
    return [Path(path) for path in given if path is not None]


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
