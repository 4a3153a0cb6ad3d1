"""What of a source isn't read, reported once a command: how many files of which kind, and what would read them."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger("maelift")

SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx"})
"""What systems leave in folders, beside hidden files."""
SHOWN_KINDS = 8
"""Kinds of files that are spelled out."""

_REASONS: Mapping[str, str] = {
    ".tar": "shards are read where they lie in the folder itself, or as data=FILE.tar",
    ".parquet": "read where it lies in the folder itself, or as data=FILE.parquet",
    "hidden": "their names begin with a dot",
    "links": "links within an archive",
}

_reported: dict[str, None] = {}
_collecting: list[list[str]] = []


def kind_of(name: str) -> str:
    """What a file is counted as: its suffix in lower case, with that before .gz of a packed volume, or "no suffix"."""
    if name.lower().endswith(".nii.gz"):
        return ".nii.gz"
    return os.path.splitext(name)[1].lower().replace("\0", "") or "no suffix"


def reader_hint(kind: str) -> str:
    """What reads files of a kind, or why they aren't read, after their count: " (unpack it)"; empty for others."""
    from .image_formats import what_reads  # it imports NumPy, which the command line's help can do without

    reason = _REASONS.get(kind) or what_reads(kind)
    return f" ({reason})" if reason else ""


def is_junk(name: str) -> bool:
    """Whether a file is what a system leaves in folders, such as Thumbs.db or macOS's ._NAME."""
    last = name.rpartition("/")[2].lower()
    return last.startswith("._") or last == ".ds_store" or last in SYSTEM_FILES


def unread_text(images: int, unread: Mapping[str, int], things: str = "other files") -> str:
    """How many images there are, and what isn't read: "10 images; 20 other files are not read: 20 .heic (pip install …)"."""
    count = sum(unread.values())
    kinds = sorted(unread.items(), key=lambda pair: (-pair[1], pair[0]))
    listed = [f"{number:,} {kind}{reader_hint(kind)}" for kind, number in kinds[:SHOWN_KINDS]]
    if len(kinds) > SHOWN_KINDS:
        listed.append(f"{sum(number for _, number in kinds[SHOWN_KINDS:]):,} of {len(kinds) - SHOWN_KINDS} other kinds")
    things, verb = (things.removesuffix("s"), "is") if count == 1 else (things, "are")
    return f"{images:,} images; {count:,} {things} {verb} not read: {', '.join(listed)}"


def report(text: str) -> None:
    """Report, once a command, what isn't read: in the log, or in the list that is being collected."""
    if text not in _reported:
        _reported[text] = None
        for texts in _collecting:
            texts.append(text)
        if not _collecting:
            logger.info("%s", text)


@contextmanager
def collected() -> Iterator[list[str]]:
    """A list of all that is reported within the block, in place of the log: for a result that shows it itself."""
    texts: list[str] = []
    _collecting.append(texts)
    try:
        yield texts
    finally:
        _collecting.pop()


def report_beside(folder: Path, files: Sequence[Path], what: str, named: Sequence[Path] = ()) -> None:
    """Report what else is in a folder of which only these ``files`` are read, ``what`` they are; ``named`` have been reported."""
    taken = {file.name for file in (*files, *named)}
    with os.scandir(folder) as entries:
        others = [entry for entry in entries if entry.name not in taken and not entry.name.startswith(".")]
        folders = sum(entry.is_dir(follow_symlinks=False) for entry in others)
    kinds = Counter(kind_of(entry.name) for entry in others if not entry.is_dir(follow_symlinks=False))
    kinds.update({"folders": folders} if folders else {})
    left = sum(count for kind, count in kinds.items()) - sum(is_junk(entry.name) for entry in others)
    if left > 0:
        listed = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(SHOWN_KINDS))
        read = files[0].name if len(files) == 1 else f"{len(files):,} {what}"
        report(f"{folder}: only {read} {'is' if len(files) == 1 else 'are'} read, not what lies beside: {listed}")


def reported() -> Sequence[str]:
    """What has been reported in this command."""
    return tuple(_reported)


def forget() -> None:
    """Begin with another command."""
    _reported.clear()
