"""Images in tar shards in webdataset's layout: a shard is scanned once, then images are opened at random."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import re
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...cache import cache_file, load, save
from ...errors import DataError
from ...files import MAX_READ_BYTES, check_regular, open_regular
from ...optional_imports import require
from ...progress import progress_logger
from ..decode import decode
from ..file_index import CACHED_FROM, FORMAT, file_stamp, is_racy, packed_strings, read_file_stats, unpacked_strings
from ..image_formats import ARRAY_SUFFIXES, SUFFIXES, kinds
from ..pixel_format import ANY_FORMAT, Picture, PixelFormat
from ..slices import VOLUME_SUFFIXES
from ..string_table import Numbers, StringTable
from ..unread import is_junk, kind_of, report, report_beside, unread_text

logger = logging.getLogger("maelift")

LABEL_SUFFIXES = ("cls", "json")
MOST_SHARDS = 100_000
"""Shards that a pattern such as shards/{000..009}.tar may name."""
LARGEST_LABEL = 2**20
"""Bytes up to which a label is read."""
LINKS = "links"
"""The kind that links within a shard are counted as."""


@dataclass(frozen=True, eq=False)
class TarImages:
    """Image files within uncompressed tar files.

    ``places`` (N, 3) int64: the number of its shard, where its bytes begin, how many they are; ``names``: SHARD/FILE.
    """

    shards: tuple[Path, ...]
    places: NDArray[np.int64]
    names: StringTable

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]

    def open(self, index: int, form: PixelFormat = ANY_FORMAT) -> Image.Image | Picture:
        return decode(Path(self.names[index]), self.content(index), form)

    def content(self, index: int) -> bytes:
        shard, offset, size = (int(value) for value in self.places[index])
        try:
            if size > MAX_READ_BYTES:
                raise DataError(
                    f"{self.names[index]}: {size:,} bytes, more than the {MAX_READ_BYTES:,} that are read of a file"
                )
            with open_regular(self.shards[shard]) as file:
                file.seek(offset)
                return file.read(size)
        except OSError as error:
            raise DataError(f"{self.shards[shard]}: can't be read ({error.strerror}).") from error

    def subset(self, indices: Numbers) -> TarImages:
        numbers = np.asarray(indices, dtype=np.int64)
        return TarImages(self.shards, self.places[numbers], self.names.subset(numbers))

    def default_workers(self) -> int:
        return min(16, os.cpu_count() or 1)

    def origin(self) -> str | None:
        return "\0".join(["shards", *(str(shard.absolute()) for shard in self.shards)])

    def listed(self) -> StringTable:
        return self.names

    def file_stats(self, numbers: Numbers) -> NDArray[np.int64]:
        shards = self.places[np.asarray(numbers, dtype=np.int64), 0]
        stamps: NDArray[np.int64] = read_file_stats(map(str, self.shards))[shards]
        return stamps


def find_shards(data: str) -> list[Path]:
    """The tar files that ``data`` names, in order: a folder of them, one, or several as shards/{000..009}.tar.

    Empty when it names none; raises DataError for one that isn't there, and for a pattern of more than ``MOST_SHARDS``.
    """
    if Path(data).is_dir():
        return _shards_in(Path(data))
    if not data.endswith(".tar"):
        return []
    if Path(data).is_file():
        return [Path(data)]
    if (count := _pattern_count(data)) > MOST_SHARDS:
        raise DataError(
            f"data={data}: a pattern of {count:,} shards, more than {MOST_SHARDS:,}. Give the folder that they lie in, or "
            "several patterns as [A,B]."
        )
    require("webdataset")
    from webdataset.shardlists import expand_urls

    shards = [Path(url) for url in itertools.islice(expand_urls(data), MOST_SHARDS)]
    missing = [(shard, reason) for shard in shards if (reason := _not_there(shard))]
    if missing:
        shard, reason = missing[0]
        raise DataError(f"data={data}: {reason}: {shard} ({len(missing)} of {len(shards)} aren't there).")
    return shards


def _shards_in(folder: Path) -> list[Path]:
    """The tar files in a folder; those that are no files are named and left out."""
    found = sorted(folder.glob("*.tar"))
    reasons = {path: reason for path in found if not path.is_dir() and (reason := _not_there(path))}
    for path, reason in reasons.items():
        report(f"{path}: {reason}; it is left out")
    shards = [path for path in found if path not in reasons and path.is_file()]
    if shards:
        report_beside(folder, shards, "shards", list(reasons))
    return shards


def _not_there(shard: Path) -> str:
    """Why a shard can't be read; empty for one that can."""
    try:
        check_regular(shard)
    except FileNotFoundError:
        return "no such shard"
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _pattern_count(pattern: str) -> int:
    """At least how many names a pattern with {000..999} or {a,b} stands for, without making one of them."""

    def choices(inner: str) -> int:
        if ends := re.fullmatch(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?", inner):
            if max(map(len, filter(None, ends.groups()))) > 18:
                return 10**18
            first, last = int(ends[1]), int(ends[2])
            return abs(last - first) // max(1, abs(int(ends[3] or 1))) + 1
        return 26 if ".." in inner else inner.count(",") + 1

    return math.prod(choices(inner) for inner in re.findall(r"\{([^{}]*)\}", pattern))


def index_shards(shards: Sequence[Path]) -> TarImages:
    """The images of the shards, labelled or not; raises DataError for a shard that can't be read or two images of one key.

    A shard that hasn't changed since the last time isn't scanned again.
    """
    file = tables_file(shards)
    before = _read_tables(file)
    show = progress_logger("scanning the shards", "shards")
    tables, scanned = [], 0
    stamps = [file_stamp(shard) for shard in shards]
    for number, (shard, stamp) in enumerate(zip(shards, stamps, strict=True)):
        known, table = before.get(number, ("", None))
        if table is None or known != stamp:
            table, scanned = _table(shard), scanned + 1
        tables.append(table)
        show(number + 1, len(shards))
    counts = [len(table.places) for table in tables]
    unread = StringTable.of(json.dumps(table.unread) for table in tables)
    _report_unread(shards, sum(counts), [table.unread for table in tables])
    if not sum(counts):
        raise DataError(f"{shards[0]}: no images in {len(shards)} shards. Expected KEY.jpg and the like ({kinds()}).")
    places = np.concatenate([table.places for table in tables])
    names = StringTable.joined([table.names for table in tables])
    if scanned and len(names) >= CACHED_FROM:
        settled = {str(number): stamp for number, stamp in enumerate(stamps) if not is_racy(shards[number])}
        arrays = {
            "places": places,
            "counts": np.array(counts),
            **packed_strings("names", names),
            **packed_strings("unread", unread),
        }
        save(file, arrays, settled)
    numbers = np.repeat(np.arange(len(shards)), counts)
    return TarImages(tuple(shards), np.column_stack([numbers, places]), names)


def tables_file(shards: Sequence[Path]) -> Path:
    """Where it is cached what the shards contain."""
    suffixes = ",".join(sorted(SUFFIXES | ARRAY_SUFFIXES))
    return cache_file("shards", FORMAT, suffixes, *(os.path.realpath(shard) for shard in shards))


@dataclass(frozen=True)
class _Table:
    """The images of a shard: ``places`` (N, 2), where they begin and how many bytes they are, and ``names`` as SHARD/FILE;
    and how many files of which kind aren't read."""

    places: NDArray[np.int64]
    names: StringTable
    unread: Mapping[str, int]


def _table(shard: Path) -> _Table:
    contents = _contents(shard)
    samples = contents.samples.values()
    found = [sample.image for sample in samples if sample.image is not None]
    arrays = not found  # as in folders, arrays count where no image is
    if arrays:
        found = [sample.array for sample in samples if sample.array is not None]
    places = np.array([entry.place for entry in found], dtype=np.int64).reshape(-1, 2)
    return _Table(places, StringTable.of(f"{shard.name}/{entry.name}" for entry in found), contents.unread(arrays))


def _report_unread(shards: Sequence[Path], images: int, counts: Sequence[Mapping[str, int]]) -> None:
    """Report what isn't read of shards."""
    unread: Counter[str] = Counter()
    for count in counts:
        unread.update(count)
    if unread:
        where = str(shards[0]) if len(shards) == 1 else f"{shards[0]} to {shards[-1].name}"
        report(f"{where}: {unread_text(images, unread, 'files of samples without an image')}")


def _read_tables(file: Path) -> dict[int, tuple[str, _Table]]:
    """What is cached of shards: by their numbers the stamps, and the tables."""
    found = load(file)
    if found is None:
        return {}
    arrays, stamps = found
    try:
        names, places, ends = unpacked_strings("names", arrays), arrays["places"], np.cumsum(arrays["counts"])
        unread = unpacked_strings("unread", arrays)
    except KeyError:
        return {}
    begins = ends - arrays["counts"]
    return {
        number: (stamps.get(str(number), ""), _Table(places[begin:end], names[begin:end], json.loads(unread[number])))
        for number, (begin, end) in enumerate(zip(begins.tolist(), ends.tolist(), strict=True))
    }


def read_shards(shards: Sequence[Path]) -> tuple[TarImages, list[tuple[str, ...]]]:
    """The images of the shards, and the labels of each, out of KEY.cls (a text) or KEY.json beside KEY.jpg.

    The JSON is a label, a list of them, or an object with ``label`` or ``labels``. Raises DataError for a shard that
    can't be read, a sample with two images, and an image without labels.
    """
    require("webdataset")
    places: list[tuple[int, int, int]] = []
    names: list[str] = []
    labels: list[tuple[str, ...]] = []
    unread: list[Mapping[str, int]] = []
    for number, shard in enumerate(shards):
        contents = _contents(shard, labelled=True)
        unread.append(contents.unread(arrays=False))
        for key, sample in contents.samples.items():
            if sample.image is None:
                continue
            if sample.labels is None:
                raise DataError(f"{shard}: {key} has no label. Expected {key}.cls or {key}.json beside the image.")
            places.append((number, *sample.image.place))
            names.append(f"{shard.name}/{sample.image.name}")
            labels.append(sample.labels)
    _report_unread(shards, len(names), unread)
    if not names:
        raise DataError(f"{shards[0]}: no images in {len(shards)} shards. Expected KEY.jpg with KEY.cls ({kinds()}).")
    return TarImages(tuple(shards), np.array(places, dtype=np.int64).reshape(-1, 3), StringTable.of(names)), labels


@dataclass(frozen=True)
class _Entry:
    """A file of a shard: its name, where its bytes begin and how many they are."""

    name: str
    place: tuple[int, int]


@dataclass
class _Sample:
    image: _Entry | None = None
    array: _Entry | None = None
    labels: tuple[str, ...] | None = None
    others: list[str] = field(default_factory=list)
    """the kinds of its other files"""


@dataclass(frozen=True)
class _Contents:
    """The samples of a shard by their keys, and how many files of which kind are part of none."""

    samples: Mapping[str, _Sample]
    strays: Mapping[str, int]

    def unread(self, arrays: bool) -> dict[str, int]:
        """How many files of which kind aren't read: those of samples without an image (or array, where these count)."""
        counts = Counter(self.strays)
        for sample in self.samples.values():
            if (sample.array if arrays else sample.image) is None:
                counts.update(sample.others)
                counts[".npy"] += sample.array is not None
        return {kind: count for kind, count in counts.items() if count}


def _contents(shard: Path, labelled: bool = False) -> _Contents:
    """What a shard holds, by keys: what stands before the first dot of a file's name. ``labelled``: labels are read.

    Raises DataError for a shard that can't be read, or whose entries claim what the file can't hold.
    """
    from webdataset.tariterators import base_plus_ext

    samples: dict[str, _Sample] = {}
    strays: Counter[str] = Counter()
    try:
        with open_regular(shard) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            size, last = os.fstat(file.fileno()).st_size, -1
            for member in archive:
                if not last < member.offset <= member.offset_data <= size or not member.size >= 0:
                    raise DataError(f"{shard}: an entry that lies outside of the file. Get or pack it again.")
                last = member.offset
                if not member.isreg() or member.issparse():
                    strays[LINKS] += member.issym() or member.islnk()
                    strays["sparse files"] += member.issparse()
                    continue
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"{member.name} ends after it")
                key, suffix = base_plus_ext(member.name)
                if key is None or is_junk(member.name):
                    strays[kind_of(member.name)] += not is_junk(member.name)
                    continue
                sample = samples.setdefault(key, _Sample())
                entry = _Entry(member.name, (member.offset_data, member.size))
                if f".{suffix.lower()}" in SUFFIXES - VOLUME_SUFFIXES:
                    if sample.image is not None:
                        raise DataError(
                            f"{shard}: {sample.image.name} and {member.name} are one sample. Expected one image."
                        )
                    sample.image = entry
                elif f".{suffix.lower()}" in ARRAY_SUFFIXES:
                    sample.array = entry
                else:
                    sample.others.append(f".{suffix.lower()}")
                    if labelled and suffix.lower() in LABEL_SUFFIXES:
                        content = _label_bytes(shard, archive, member)
                        sample.labels = _labels(f"{shard}: {member.name}", suffix.lower(), content)
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{shard}: not an uncompressed tar file, or cut off ({reason}). Get or pack it again."
        ) from error
    return _Contents(samples, +strays)


def _label_bytes(shard: Path, archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.size > LARGEST_LABEL:
        raise DataError(
            f"{shard}: {member.name}: {member.size:,} bytes. Expected a label of at most {LARGEST_LABEL:,}."
        )
    file = archive.extractfile(member)
    assert file is not None  # a regular file
    return file.read()


def _labels(where: str, suffix: str, content: bytes) -> tuple[str, ...]:
    expected = "Expected a label, a list of labels, or an object with 'label' or 'labels'."
    try:
        text = content.decode("utf-8").strip()
        found = json.loads(text) if suffix == "json" else text
    except ValueError as error:
        raise DataError(f"{where}: can't be read ({error}). {expected}") from error
    if isinstance(found, dict):
        found = found.get("label", found.get("labels"))
    listed = found if isinstance(found, list) else [found]
    if not all(isinstance(label, str | int) and not isinstance(label, bool) and str(label).strip() for label in listed):
        raise DataError(f"{where}: no label in it. {expected}")
    return tuple(dict.fromkeys(str(label).strip() for label in listed))
