"""The index of a folder's images: listed once, then only where it has changed, as millions take minutes.

What is known of a folder holds as long as its modification time does, which changes with every file that comes, goes or is
renamed in it; a tar shard's and a list's as long as their own time and size do.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cache import cache_file, cache_folder, load, save
from ..errors import DataError
from ..files import OUTPUT_MARKER
from ..threads import CancellingThreadPool
from .image_formats import ARRAY_SUFFIXES, SUFFIXES
from .string_table import StringTable
from .unread import is_junk, kind_of, report

logger = logging.getLogger("maelift")

CACHED_FROM = 10_000
"""Images from which on a list is cached: fewer are listed in no time."""
RACY_SECONDS = 2.0
"""What was changed so shortly before it was read may have changed again within one tick of its clock."""
LISTED_EVERY = 5.0
"""Seconds between two messages on how far listing is."""
MOST_LINKS = 3
"""Links to folders that a path may lead through: folders that link to each other would have paths without number."""
FORMAT = "2"
RUN_FILES = ({"config.yaml", "data.json"}, {"config.yaml", "runs"})
"""What lies in the folder of a run, and in that of a suite."""


@dataclass(frozen=True)
class Listing:
    """What lies below a folder: ``names`` of its images; how many files of which kind aren't read (``unread``); folders that
    maelift wrote, which are left out (``outputs``)."""

    names: StringTable
    unread: Mapping[str, int]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class _Tree:
    """Images below a folder by sorted relative path, and the stamps (F, 3) int64 of the folders that they lie in.

    A stamp is (modification time in ns, inode, when it was listed in ns). ``unread``: of each folder with such files a text
    "FOLDER, null, KIND, null, COUNT" for each kind; ``outputs`` as in ``Listing``, which are ``folders`` too.
    """

    names: StringTable
    arrays: bool
    folders: StringTable
    stamps: NDArray[np.int64]
    unread: StringTable
    outputs: StringTable

    def listing(self) -> Listing:
        """The names and counts of it."""
        counts: Counter[str] = Counter()
        for text in self.unread:
            _, kind, count = text.split("\0")
            counts[kind] += int(count)
        return Listing(self.names, dict(counts), tuple(self.outputs))


@dataclass(frozen=True)
class _Folder:
    """A folder that was listed, by its path below the root, with its stamp, the paths of its files, and those of hidden
    images. ``output``: maelift wrote it, and it was not listed."""

    path: str
    stamp: tuple[int, ...]
    names: list[str]
    hidden: list[str] = field(default_factory=list)
    output: bool = False

    def unread(self, arrays: bool) -> list[str]:
        """Its lines of ``_Tree.unread``, where ``arrays`` count as images or images do."""
        suffixes = ARRAY_SUFFIXES if arrays else SUFFIXES
        kinds = Counter(kind_of(name) for name in self.names if _suffix(name) not in suffixes and not is_junk(name))
        kinds["hidden"] = len(self.hidden)
        return [f"{self.path}\0{kind}\0{count}" for kind, count in sorted(kinds.items()) if count]


def list_images(root: Path) -> StringTable:
    """The images of ``list_folder``."""
    return list_folder(root).names


def list_folder(root: Path) -> Listing:
    """The image files below a folder (or arrays, where there is no image), by sorted relative path, and what else lies there.

    Hidden files are left out, and folders below it that maelift wrote. Raises DataError for a folder that can't be read.
    """
    file = tree_file(root)
    before = _read_tree(file)
    if before is None:
        tree = _listed(root)
    else:
        gone, stale = _changed(root, before)
        if not gone and not stale:
            return before.listing()
        tree = _renewed(root, before, gone, stale)
        logger.info("%s: %d of %d folders listed again", root, len(stale), len(tree.folders))
    if len(tree.names) >= CACHED_FROM:
        arrays = {
            **packed_strings("names", tree.names),
            **packed_strings("folders", tree.folders),
            **packed_strings("unread", tree.unread),
            **packed_strings("outputs", tree.outputs),
            "stamps": tree.stamps,
        }
        save(file, arrays, {"arrays": str(int(tree.arrays)), "root": str(root)})
    return tree.listing()


def tree_file(root: Path) -> Path:
    """Where the list of a folder's images is cached; another one where other suffixes are images."""
    return cache_file("trees", FORMAT, ",".join(sorted(SUFFIXES | ARRAY_SUFFIXES)), os.path.realpath(root))


def folders_named(folder: Path, names: Container[str]) -> list[Path]:
    """The folders in a folder that have one of the names, in any capitals."""
    try:
        return [
            folder / entry
            for entry in sorted(os.listdir(folder))
            if entry.lower() in names and (folder / entry).is_dir()
        ]
    except OSError:
        return []


def list_files(root: Path) -> list[str]:
    """All files below a folder as sorted relative paths, but for hidden ones and those in folders that maelift wrote.

    Raises DataError for folders that can't be read.
    """
    return sorted(name for folder in _walk(root, [""]) for name in folder.names)


def _listed(root: Path) -> _Tree:
    """A tree that is listed from the start."""
    found = list(_walk(root, [""]))
    arrays = not any(_suffix(name) in SUFFIXES for folder in found for name in folder.names)
    suffixes = ARRAY_SUFFIXES if arrays else SUFFIXES
    return _Tree(
        StringTable.of(sorted(name for folder in found for name in folder.names if _suffix(name) in suffixes)),
        arrays,
        StringTable.of(folder.path for folder in found),
        _stamps([folder.stamp for folder in found]),
        StringTable.of(line for folder in found for line in folder.unread(arrays)),
        StringTable.of(folder.path for folder in found if folder.output),
    )


def _changed(root: Path, tree: _Tree) -> tuple[set[str], list[str]]:
    """The folders of a tree that are gone, and those that have changed since they were listed."""
    gone, stale = set(), []
    with CancellingThreadPool(max_workers=8) as pool:  # on network storage each answer takes its time
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
    """The tree with its changed folders listed again, and new ones below them."""
    known = set(tree.folders) - gone
    again = {folder.path: folder for folder in _walk(root, stale, known - set(stale))}
    suffixes = ARRAY_SUFFIXES if tree.arrays else SUFFIXES
    if tree.arrays and any(_suffix(name) in SUFFIXES for folder in again.values() for name in folder.names):
        return _listed(root)  # images are there now, so arrays no longer count
    outputs = {folder.path for folder in again.values() if folder.output} | (set(tree.outputs) - gone - again.keys())

    def counts(folder: str) -> bool:
        """Whether a folder is neither gone nor within one that maelift wrote."""
        return folder not in gone and not any(above in outputs for above in _above(folder))

    dropped = gone | again.keys()
    left = [name for name in tree.names if (owner := _owner(name, known | gone)) not in dropped and counts(owner)]
    new = [
        name
        for path, folder in again.items()
        if counts(path)
        for name in folder.names
        if _suffix(name) in suffixes and name not in (known - again.keys())
    ]
    if not left and not new:
        return _listed(root)
    stamps = dict(zip(tree.folders, map(tuple, tree.stamps.tolist()), strict=True))
    stamps |= {path: folder.stamp for path, folder in again.items()}
    stamps = {folder: stamp for folder, stamp in stamps.items() if counts(folder)}
    unread = [line for line in tree.unread if (path := line.split("\0")[0]) not in dropped and counts(path)]
    unread += [line for path, folder in again.items() if counts(path) for line in folder.unread(tree.arrays)]
    return _Tree(
        StringTable.of(sorted(left + new)),
        tree.arrays,
        StringTable.of(stamps),
        _stamps(list(stamps.values())),
        StringTable.of(unread),
        StringTable.of(sorted(outputs)),
    )


def _owner(name: str, folders: set[str]) -> str:
    """The folder that a name was listed with: the one that it lies in, or that it is, of an empty folder."""
    return name if name in folders else name.rpartition("/")[0]


def _above(folder: str) -> Iterator[str]:
    """The folders that a folder lies in, but for the root."""
    parts = folder.split("/")
    return ("/".join(parts[:count]) for count in range(1, len(parts)))


def _walk(root: Path, folders: Iterable[str], known: Iterable[str] = ()) -> Iterator[_Folder]:
    """Folders and all below them, but for those that are ``known``.

    Links to folders are followed, but not back to a folder that they lie in, and no more than ``MOST_LINKS`` in one path. A
    folder without anything in it that is called as an image counts as one: whoever opens it says what it is.
    """
    waiting, seen, links = list(folders), set(known), dict.fromkeys(folders, 0)
    count, logged = 0, time.monotonic()
    own, far = _identity(cache_folder()), ""
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
                found = list(entries)
        except OSError as error:
            raise DataError(f"{path}: can't be read ({(error.strerror or '').lower()}).") from error
        stamp = (status.st_mtime_ns, status.st_ino, at)
        if folder and (_is_output({entry.name for entry in found}) or (status.st_dev, status.st_ino) == own):
            yield _Folder(folder, stamp, [], output=True)
            continue
        inside = [entry for entry in found if not entry.name.startswith(".")]
        below = [entry for entry in inside if _is_folder(entry)]
        prefix = f"{folder}/" if folder else ""
        for entry in below:
            passed = links.get(folder, 0) + entry.is_symlink()
            if entry.is_symlink() and _is_loop(path, entry.path):
                continue
            if passed > MOST_LINKS:
                far = far or prefix + entry.name
                continue
            links[prefix + entry.name] = passed
            waiting.append(prefix + entry.name)
        there = {entry.name for entry in below}
        names = [prefix + entry.name for entry in inside if entry.name not in there]
        if folder and not found and _suffix(folder) in SUFFIXES:
            names.append(folder)
        hidden = [entry.name for entry in found if entry.name.startswith(".") and _suffix(entry.name) in SUFFIXES]
        count += len(names)
        if time.monotonic() - logged > LISTED_EVERY:
            logged = time.monotonic()
            logger.info("listing %s: %d files so far", root, count)
        yield _Folder(folder, stamp, names, [name for name in hidden if not is_junk(name)])
    if far:
        report(f"{root}: folders behind more than {MOST_LINKS} links are left out, such as {far}")


def _is_output(names: set[str]) -> bool:
    """Whether maelift wrote a folder with these files: that of a run, a suite, or of pictures."""
    return OUTPUT_MARKER in names or any(files <= names for files in RUN_FILES)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder; a link that leads to itself is none, and is named where it is opened."""
    try:
        return entry.is_dir()
    except OSError:
        return False


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
    return kind_of(name)


def _stamps(rows: Sequence[tuple[int, ...]]) -> NDArray[np.int64]:
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def _read_tree(file: Path) -> _Tree | None:
    found = load(file)
    if found is None:
        return None
    arrays, about = found
    try:
        return _Tree(
            unpacked_strings("names", arrays),
            about["arrays"] == "1",
            unpacked_strings("folders", arrays),
            arrays["stamps"].reshape(-1, 3),
            unpacked_strings("unread", arrays),
            unpacked_strings("outputs", arrays),
        )
    except KeyError:
        return None


def packed_strings(key: str, names: StringTable) -> dict[str, NDArray[Any]]:
    """Names as arrays for ``cache.save``."""
    compact = names.compact()
    return {f"{key}.text": compact.text, f"{key}.stops": compact.stops}


def unpacked_strings(key: str, arrays: Mapping[str, NDArray[Any]]) -> StringTable:
    """The names that ``packed`` made arrays of."""
    return StringTable.packed(arrays[f"{key}.text"], arrays[f"{key}.stops"])


def file_stamp(path: Path) -> str:
    """The size and the modification time of a file, by which it is known again."""
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"


def is_racy(path: Path) -> bool:
    """Whether a file was changed so shortly ago that its time need not show the next change."""
    return time.time() - path.stat().st_mtime < RACY_SECONDS


def read_file_stats(paths: Iterable[str]) -> NDArray[np.int64]:
    """(N, 3): size, and the times of the last change of content and of status in ns, of each file; -1 for one that is gone."""
    with CancellingThreadPool(max_workers=8) as pool:
        listed = list(paths)
        parts = [listed[first : first + 1024] for first in range(0, len(listed), 1024)]
        rows = [row for part in pool.map(_read_file_stats, parts) for row in part]
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def _read_file_stats(paths: Iterable[str]) -> list[tuple[int, int, int]]:
    rows = []
    for path in paths:
        try:
            status = os.stat(path)
            rows.append((status.st_size, status.st_mtime_ns, status.st_ctime_ns))
        except OSError:
            rows.append((-1, -1, -1))
    return rows
