"""Which images there are: listed once, then only what has changed, as a tree of millions takes minutes to walk through.

What is known of a folder holds as long as its modification time does, which changes with every file that comes, goes or is
renamed in it; a tar shard's and a list's as long as their own time and size do.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cache import cache_file, keep, kept
from .config import DataError
from .decoding import ARRAY_SUFFIXES, SUFFIXES
from .names import Names

logger = logging.getLogger("maelift")

KEPT_FROM = 10_000
"""Images from which on a list is kept: fewer are listed in no time."""
RACY_SECONDS = 2.0
"""What was changed so shortly before it was looked at may have changed again within one tick of its clock."""
LISTED_EVERY = 5.0
"""Seconds between two words on how far listing is."""
FORMAT = "1"


@dataclass(frozen=True)
class _Tree:
    """Images below a folder by sorted relative path, and the stamps (F, 3) int64 of the folders that they lie in.

    A stamp is (modification time in ns, inode, when it was listed in ns).
    """

    names: Names
    arrays: bool
    folders: Names
    stamps: NDArray[np.int64]


def list_images(root: Path) -> Names:
    """The image files below a folder (or arrays, where there is no image), by sorted relative path; hidden ones left out.

    Raises DataError for a folder that can't be read.
    """
    file = tree_file(root)
    before = _read_tree(file)
    if before is None:
        tree = _listed(root)
    else:
        gone, stale = _changed(root, before)
        if not gone and not stale:
            return before.names
        tree = _renewed(root, before, gone, stale)
        logger.info("%s: %d of %d folders listed anew", root, len(stale), len(tree.folders))
    if len(tree.names) >= KEPT_FROM:
        arrays = {
            **packed("names", tree.names),
            **packed("folders", tree.folders),
            "stamps": tree.stamps,
        }
        keep(file, arrays, {"arrays": str(int(tree.arrays)), "root": str(root)})
    return tree.names


def tree_file(root: Path) -> Path:
    """Where the list of a folder's images is kept."""
    return cache_file("trees", FORMAT, os.path.realpath(root))


def list_files(root: Path) -> list[str]:
    """All files below a folder as sorted relative paths, hidden ones left out; raises DataError for unreadable ones."""
    return sorted(name for _, _, names in _walk(root, [""]) for name in names)


def _listed(root: Path) -> _Tree:
    """A tree that is listed from the start."""
    folders, stamps, images, arrays = [], [], [], []
    for folder, stamp, names in _walk(root, [""]):
        folders.append(folder)
        stamps.append(stamp)
        images += [name for name in names if _suffix(name) in SUFFIXES]
        if not images:
            arrays += [name for name in names if _suffix(name) in ARRAY_SUFFIXES]
    found = images or arrays
    return _Tree(Names.of(sorted(found)), not images, Names.of(folders), _stamps(stamps))


def _changed(root: Path, tree: _Tree) -> tuple[set[str], list[str]]:
    """The folders of a tree that are gone, and those that have changed since they were listed."""
    gone, stale = set(), []
    with ThreadPoolExecutor(max_workers=8) as pool:  # on network storage each answer takes its time
        stamps = pool.map(lambda folder: _stat(root / folder), tree.folders, chunksize=64)
        for folder, found, known in zip(tree.folders, stamps, tree.stamps.tolist(), strict=True):
            if found is None:
                gone.add(folder)
            elif list(found) != known[:2] or known[2] - known[0] < RACY_SECONDS * 1e9:
                stale.append(folder)
    if "" in gone:
        raise DataError(f"{root}: can't be read any more.")
    return gone, stale


def _renewed(root: Path, tree: _Tree, gone: set[str], stale: list[str]) -> _Tree:
    """The tree with its changed folders listed anew, and new ones below them."""
    known = set(tree.folders) - gone
    again = {folder: (stamp, names) for folder, stamp, names in _walk(root, stale, known - set(stale))}
    suffixes = ARRAY_SUFFIXES if tree.arrays else SUFFIXES
    new = [name for _, names in again.values() for name in names if _suffix(name) in suffixes]
    if tree.arrays and any(_suffix(name) in SUFFIXES for _, names in again.values() for name in names):
        return _listed(root)  # images are there now, so arrays no longer count
    dropped = gone | again.keys()
    left = [name for name in tree.names if name.rpartition("/")[0] not in dropped]
    if not left and not new:
        return _listed(root)
    stamps = dict(zip(tree.folders, map(tuple, tree.stamps.tolist()), strict=True))
    stamps = {folder: stamp for folder, stamp in stamps.items() if folder not in gone}
    stamps |= {folder: stamp for folder, (stamp, _) in again.items()}
    return _Tree(Names.of(sorted(left + new)), tree.arrays, Names.of(stamps), _stamps(list(stamps.values())))


def _walk(
    root: Path, folders: Iterable[str], known: Iterable[str] = ()
) -> Iterator[tuple[str, tuple[int, ...], list[str]]]:
    """Folders and all below them, but for those that are ``known``: each with its stamp and the paths of its files.

    Links to folders are followed, but not back to a folder that they lie in.
    """
    waiting, seen = list(folders), set(known)
    count, told = 0, time.monotonic()
    while waiting:
        folder = waiting.pop()
        if folder in seen:
            continue
        seen.add(folder)
        at = time.time_ns()
        path = root / folder
        try:
            status = path.stat()
            with os.scandir(path) as entries:
                inside = [entry for entry in entries if not entry.name.startswith(".")]
                below = [entry for entry in inside if entry.is_dir()]
        except OSError as error:
            raise DataError(f"{path}: can't be read ({(error.strerror or '').lower()}).") from error
        prefix = f"{folder}/" if folder else ""
        waiting += [prefix + entry.name for entry in below if not (entry.is_symlink() and _is_loop(path, entry.path))]
        there = {entry.name for entry in below}
        names = [prefix + entry.name for entry in inside if entry.name not in there]
        count += len(names)
        if time.monotonic() - told > LISTED_EVERY:
            told = time.monotonic()
            logger.info("listing %s: %d files so far", root, count)
        yield folder, (status.st_mtime_ns, status.st_ino, at), names


def _is_loop(folder: Path, link: str) -> bool:
    """Whether a link in ``folder`` leads to it, or to one that it was reached through."""
    target = os.path.realpath(link)
    return any(os.path.realpath(above) == target for above in (folder, *folder.parents))


def _stat(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _stamps(rows: Sequence[tuple[int, ...]]) -> NDArray[np.int64]:
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def _read_tree(file: Path) -> _Tree | None:
    found = kept(file)
    if found is None:
        return None
    arrays, about = found
    try:
        return _Tree(
            unpacked("names", arrays),
            about["arrays"] == "1",
            unpacked("folders", arrays),
            arrays["stamps"].reshape(-1, 3),
        )
    except KeyError:
        return None


def packed(key: str, names: Names) -> dict[str, NDArray[Any]]:
    """Names as arrays for ``cache.keep``."""
    compact = names.compact()
    return {f"{key}.text": compact.text, f"{key}.stops": compact.stops}


def unpacked(key: str, arrays: Mapping[str, NDArray[Any]]) -> Names:
    """The names that ``packed`` made arrays of."""
    return Names.packed(arrays[f"{key}.text"], arrays[f"{key}.stops"])


def file_stamp(path: Path) -> str:
    """The size and the modification time of a file, by which it is known again."""
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"


def is_racy(path: Path) -> bool:
    """Whether a file was changed so shortly ago that its time need not tell of the next change."""
    return time.time() - path.stat().st_mtime < RACY_SECONDS


def file_stamps(paths: Iterable[str]) -> NDArray[np.int64]:
    """(N, 3): size, and the times of the last change of content and of status in ns, of each file; -1 for one that is gone."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        listed = list(paths)
        parts = [listed[first : first + 1024] for first in range(0, len(listed), 1024)]
        rows = [row for part in pool.map(_file_stamps, parts) for row in part]
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def _file_stamps(paths: Iterable[str]) -> list[tuple[int, int, int]]:
    rows = []
    for path in paths:
        try:
            status = os.stat(path)
            rows.append((status.st_size, status.st_mtime_ns, status.st_ctime_ns))
        except OSError:
            rows.append((-1, -1, -1))
    return rows
