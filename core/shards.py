"""Images in tar shards as webdataset lays them out: each shard is looked through once, then images are opened at random."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .cache import cache_file, keep, kept
from .config import DataError
from .decoding import ANY_FORMAT, ARRAY_SUFFIXES, SUFFIXES, Picture, PixelFormat, decode, kinds
from .frameworks import require
from .listing import FORMAT, KEPT_FROM, file_stamp, file_stamps, is_racy, packed, unpacked
from .names import Names, Numbers
from .tracking import counting

LABEL_SUFFIXES = ("cls", "json")


@dataclass(frozen=True, eq=False)
class TarImages:
    """Image files within uncompressed tar files.

    ``places`` (N, 3) int64: the number of its shard, where its bytes begin, how many they are; ``names``: SHARD/FILE.
    """

    shards: tuple[Path, ...]
    places: NDArray[np.int64]
    names: Names

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]

    def open(self, index: int, form: PixelFormat = ANY_FORMAT) -> Image.Image | Picture:
        return decode(Path(self.names[index]), self.content(index), form)

    def content(self, index: int) -> bytes:
        shard, offset, size = (int(value) for value in self.places[index])
        try:
            with self.shards[shard].open("rb") as file:
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

    def listed(self) -> Names:
        return self.names

    def stamps(self, numbers: Numbers) -> NDArray[np.int64]:
        shards = self.places[np.asarray(numbers, dtype=np.int64), 0]
        stamps: NDArray[np.int64] = file_stamps(map(str, self.shards))[shards]
        return stamps


def find_shards(data: str) -> list[Path]:
    """The tar files that ``data`` names, in order: a folder of them, one, or several as shards/{000..009}.tar.

    Empty when it names none; raises DataError for one that isn't there.
    """
    if Path(data).is_dir():
        return sorted(path for path in Path(data).glob("*.tar") if path.is_file())
    if not data.endswith(".tar"):
        return []
    if Path(data).is_file():
        return [Path(data)]
    require("webdataset")
    from webdataset.shardlists import expand_urls

    shards = [Path(url) for url in expand_urls(data)]
    missing = [shard for shard in shards if not shard.is_file()]
    if missing:
        raise DataError(f"data={data}: no such shard: {missing[0]} ({len(missing)} of {len(shards)} aren't there).")
    return shards


def index_shards(shards: Sequence[Path]) -> TarImages:
    """The images of the shards, labelled or not; raises DataError for a shard that can't be read or two images of one key.

    A shard that hasn't changed since the last time isn't looked through again.
    """
    file = tables_file(shards)
    before = _read_tables(file)
    tell = counting("looking through the shards", "shards")
    tables, anew = [], 0
    stamps = [file_stamp(shard) for shard in shards]
    for number, (shard, stamp) in enumerate(zip(shards, stamps, strict=True)):
        known, table = before.get(number, ("", None))
        if table is None or known != stamp:
            table, anew = _table(shard), anew + 1
        tables.append(table)
        tell(number + 1, len(shards))
    counts = [len(places) for places, _ in tables]
    if not sum(counts):
        raise DataError(f"{shards[0]}: no images in {len(shards)} shards. Expected KEY.jpg and the like ({kinds()}).")
    places = np.concatenate([places for places, _ in tables])
    names = Names.joined([names for _, names in tables])
    if anew and len(names) >= KEPT_FROM:
        settled = {str(number): stamp for number, stamp in enumerate(stamps) if not is_racy(shards[number])}
        keep(file, {"places": places, "counts": np.array(counts), **packed("names", names)}, settled)
    numbers = np.repeat(np.arange(len(shards)), counts)
    return TarImages(tuple(shards), np.column_stack([numbers, places]), names)


def tables_file(shards: Sequence[Path]) -> Path:
    """Where it is kept what the shards hold."""
    return cache_file("shards", FORMAT, *(os.path.realpath(shard) for shard in shards))


def _table(shard: Path) -> tuple[NDArray[np.int64], Names]:
    """Where the images of a shard begin and how many bytes they are, (N, 2), and their names as SHARD/FILE."""
    samples = list(_samples(shard).values())
    found = [sample for sample in samples if sample.image is not None]
    if not found:  # as in folders, arrays count where no image is
        found = [replace(sample, image=sample.array) for sample in samples if sample.array is not None]
    places = np.array([sample.place for sample in found], dtype=np.int64).reshape(-1, 2)
    return places, Names.of(f"{shard.name}/{sample.image}" for sample in found)


def _read_tables(file: Path) -> dict[int, tuple[str, tuple[NDArray[np.int64], Names]]]:
    """What was kept of shards: by their numbers the stamps, and the tables."""
    found = kept(file)
    if found is None:
        return {}
    arrays, stamps = found
    try:
        names, places, ends = unpacked("names", arrays), arrays["places"], np.cumsum(arrays["counts"])
    except KeyError:
        return {}
    begins = ends - arrays["counts"]
    return {
        number: (stamps.get(str(number), ""), (places[begin:end], names[begin:end]))
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
    for number, shard in enumerate(shards):
        for key, sample in _samples(shard).items():
            if sample.image is None:
                continue
            if sample.labels is None:
                raise DataError(f"{shard}: {key} has no label. Expected {key}.cls or {key}.json beside the image.")
            places.append((number, *sample.place))
            names.append(f"{shard.name}/{sample.image}")
            labels.append(sample.labels)
    if not names:
        raise DataError(f"{shards[0]}: no images in {len(shards)} shards. Expected KEY.jpg with KEY.cls ({kinds()}).")
    return TarImages(tuple(shards), np.array(places, dtype=np.int64).reshape(-1, 3), Names.of(names)), labels


@dataclass
class _Sample:
    image: str | None = None
    array: str | None = None
    place: tuple[int, int] = (0, 0)
    labels: tuple[str, ...] | None = None


def _samples(shard: Path) -> dict[str, _Sample]:
    """The samples of a shard by their keys: what stands before the first dot of a file's name."""
    from webdataset.tariterators import base_plus_ext

    samples: dict[str, _Sample] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                key, suffix = base_plus_ext(member.name)
                if not member.isfile() or key is None:
                    continue
                sample = samples.setdefault(key, _Sample())
                if f".{suffix.lower()}" in SUFFIXES:
                    if sample.image is not None:
                        raise DataError(
                            f"{shard}: {sample.image} and {member.name} are one sample. Expected one image."
                        )
                    sample.image, sample.place = member.name, (member.offset_data, member.size)
                elif f".{suffix.lower()}" in ARRAY_SUFFIXES and sample.image is None:
                    sample.array, sample.place = member.name, (member.offset_data, member.size)
                elif suffix.lower() in LABEL_SUFFIXES:
                    file = archive.extractfile(member)
                    assert file is not None  # a regular file
                    sample.labels = _labels(f"{shard}: {member.name}", suffix.lower(), file.read())
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{shard}: not an uncompressed tar file, or cut off ({error}). Get or pack it anew.") from error
    return samples


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
