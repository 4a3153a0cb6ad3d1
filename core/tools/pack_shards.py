"""``maelift data pack``: images of any source into tar shards in webdataset's layout; a killed run is resumed."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..data.audit import check_rejected, write_rejected
from ..data.decode import image_file
from ..data.image_formats import ARRAY_SUFFIXES, SUFFIXES
from ..data.images import ImageSet, opened_content
from ..data.pixel_format import DEEP, LazyImage, Picture, PixelFormat, background_colour
from ..data.reading_keys import ReadingKeys
from ..data.slices import is_part
from ..data.sources import find_source
from ..data.transforms import check_channels
from ..dry_run import Plan
from ..errors import ConfigError, DataError, MaeliftError
from ..files import atomic_path, atomic_write_text, output_folder, read_regular_text
from ..progress import progress_logger
from ..seeding import stream
from ..terminal import quoted
from ..threads import CancellingThreadPool

logger = logging.getLogger("maelift")

SETTINGS_FILE = "pack.json"
PROGRESS_FILE = "packed.jsonl"
QUARANTINE_FILE = "quarantine.csv"
LATER_KEYS: dict[str, object] = {"background": "white", "nodata": None, "max_nodata": 0.9, "unscale": False}
"""Keys that came later, with what was done before: folders that were begun without them go on."""
AHEAD = 64
"""Images that are read and encoded ahead of the one that is written."""

Encoding = Literal["keep", "jpeg", "png", "npy"]


@dataclass(frozen=True)
class PackConfig(ReadingKeys):
    """Pack images into tar shards: few large files, which any storage reads fast, instead of many small ones."""

    data: str
    """images, as maelift pretrain's data= takes them"""
    out: str
    """folder for the shards; the same command goes on with an unfinished one"""
    shard_images: int = 5000
    """images in a shard"""
    size: int | None = None
    """pixels of the shorter side that larger images are reduced to, for good; null: none is (8 bits, gray or colour)"""
    encoding: Encoding = "keep"
    """keep: files as they are, byte by byte, unless reduced or of chosen channels; jpeg, png, npy (no decoding, 3 bytes a pixel):
    all re-encoded"""
    quality: int = 92
    """of JPEGs that are re-encoded, 1 to 95"""
    shuffle: int | None = None
    """seed of a random order, for readers that take shards in sequence; null: in the order of their names"""
    background: str = "white"
    """colour that transparent pixels are composited on in images that are encoded again; drop: what is stored under them"""
    max_rejected: float = 0.05
    """largest share of broken images that is tolerated"""

    def __post_init__(self) -> None:
        for key in ("shard_images", "size"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(key, value, "1 or more")
        if not 1 <= self.quality <= 95:
            raise ConfigError("quality", self.quality, "1 to 95")
        if not 0 <= self.max_rejected <= 1:
            raise ConfigError("max_rejected", self.max_rejected, "a share from 0 to 1")
        self.check_reading()
        background_colour(self.background)


@dataclass(frozen=True)
class PackResult:
    """What was packed. ``reencoded``: images that were re-encoded; ``rejected``: how many were broken."""

    folder: Path
    shards: int
    images: int
    reencoded: int
    rejected: int
    size: int

    def summary(self) -> str:
        """The result in lines."""
        lines = [f"{self.images:,} images in {self.shards:,} shards in {self.folder} ({self.size / 2**20:,.1f} MiB)"]
        if self.reencoded:
            lines.append(f"{self.reencoded:,} of them re-encoded; the others as they were, byte by byte")
        if self.rejected:
            lines.append(f"{self.rejected:,} broken ones are left out, see {self.folder / QUARANTINE_FILE}")
        lines.append(f"next: maelift pretrain data={quoted(self.folder)} out=FOLDER")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Shard:
    """A finished shard: the fields are the keys of its line in the progress file."""

    shard: str
    images: int
    anew: int
    """images that were re-encoded"""
    size: int
    rejected: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Packed:
    """An image for a shard: the bytes of its file there; or the reason why it is broken."""

    name: str
    suffix: str = ""
    content: bytes = b""
    reencoded: bool = False
    reason: str = ""


def pack(config: PackConfig) -> PackResult:
    """Write the shards that are missing in ``config.out``; each is written in full or not at all.

    Every image is decoded once; broken ones are left out, with names and reasons in quarantine.csv. Raises DataError when
    their share is above ``config.max_rejected``, MaeliftError when the folder holds shards of other images or settings.
    """
    images = find_source(config.data, config.slices)
    folder = output_folder(config.out)
    order = _order(config, len(images))
    _check_settings(folder, config, images)
    done = _finished(folder)
    starts = range(0, len(order), config.shard_images)
    progress = progress_logger("packing")
    rejected: list[tuple[str, str]] = []
    for number, start in enumerate(starts):
        name = f"{number:06d}.tar"
        if name not in done or not (folder / name).is_file():
            part = order[start : start + config.shard_images]
            done[name] = _write_shard(folder / name, config, images, part, start)
            _append(folder / PROGRESS_FILE, done[name])
        rejected += done[name].rejected
        # The full check comes at the end; this one saves the time of packing what is broken throughout.
        if len(rejected) > config.max_rejected * len(order):
            write_rejected(folder / QUARANTINE_FILE, rejected)
            check_rejected(rejected, len(order), config.max_rejected)
        progress(min(start + config.shard_images, len(order)), len(order))
    if rejected:
        write_rejected(folder / QUARANTINE_FILE, rejected)
        check_rejected(rejected, len(order), config.max_rejected)
    shards = [done[f"{number:06d}.tar"] for number in range(len(starts))]
    return PackResult(
        folder,
        sum(shard.images > 0 for shard in shards),
        sum(shard.images for shard in shards),
        sum(shard.anew for shard in shards),
        len(rejected),
        sum(shard.size for shard in shards),
    )


def plan(config: PackConfig) -> Plan:
    """What ``pack`` would write; opens no image."""
    images = find_source(config.data, config.slices)
    shards = -(-len(images) // config.shard_images)
    there = len(_finished(Path(config.out)))
    changed = f", shorter side at most {config.size} px" if config.size else ""
    return Plan(
        (
            ("images", f"{len(images):,} found in {config.data} (unchecked yet)"),
            ("shards", f"{shards:,} of up to {config.shard_images:,} images in {config.out}, {there:,} there already"),
            ("encoding", ("as they are" if config.encoding == "keep" else config.encoding) + changed),
        )
    )


def _order(config: PackConfig, count: int) -> Sequence[int]:
    return range(count) if config.shuffle is None else stream(config.shuffle, "packing").permutation(count).tolist()


def _check_settings(folder: Path, config: PackConfig, images: ImageSet) -> None:
    """Write down what is packed, and how; raise MaeliftError where the folder holds something else."""
    names = hashlib.sha256()
    for index in range(len(images)):
        names.update(f"{images.name(index)}\n".encode("utf-8", "surrogateescape"))
    free = ("data", "out", "max_rejected")
    settings = {key: value for key, value in asdict(config).items() if key not in free}
    settings = {key: value for key, value in settings.items() if key not in LATER_KEYS or value != LATER_KEYS[key]}
    text = json.dumps({**settings, "images": len(images), "names": names.hexdigest()}, indent=1) + "\n"
    file = folder / SETTINGS_FILE
    if not file.exists():
        if any(folder.glob("*.tar")):
            raise MaeliftError(f"out={folder} holds tar files that aren't of 'maelift data pack'. Choose another out.")
        atomic_write_text(file, text)
    elif _settings_in(file) != json.loads(text):
        raise MaeliftError(
            f"out={folder} holds shards of other images or settings, see {SETTINGS_FILE}. "
            "Choose another out, or give those to go on with them."
        )
    for left in folder.glob(".*.part"):
        left.unlink(missing_ok=True)  # of a run that was killed


def _settings_in(file: Path) -> object:
    """What a file of settings says; None for one that isn't JSON."""
    try:
        return json.loads(read_regular_text(file))
    except ValueError:
        return None


def _finished(folder: Path) -> dict[str, _Shard]:
    """The shards that are done, by name; a last line that was cut off is left out."""
    file = folder / PROGRESS_FILE
    shards: dict[str, _Shard] = {}
    for line in file.read_text(encoding="utf-8", errors="surrogateescape").splitlines() if file.exists() else ():
        try:
            record: dict[str, Any] = json.loads(line)
            rejected = tuple((name, reason) for name, reason in record.pop("rejected"))
            shards[record["shard"]] = _Shard(**record, rejected=rejected)
        except (ValueError, KeyError, TypeError):
            continue
    return shards


def _append(file: Path, shard: _Shard) -> None:
    """Add a line to the progress file; it begins with a new line where a killed run left half a one."""
    torn = file.exists() and file.stat().st_size > 0 and not file.read_bytes().endswith(b"\n")
    with file.open("a", encoding="utf-8") as lines:
        lines.write(("\n" if torn else "") + json.dumps(asdict(shard)) + "\n")
        lines.flush()
        os.fsync(lines.fileno())


def _write_shard(path: Path, config: PackConfig, images: ImageSet, part: Sequence[int], first: int) -> _Shard:
    """Write the shard of these images, of which the first has the number ``first`` in all shards' order."""
    rejected: list[tuple[str, str]] = []
    count = reencoded = 0
    with atomic_path(path) as temporary, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as archive:
        for number, packed in enumerate(_all_packed(config, images, part), start=first):
            if packed.reason:
                rejected.append((packed.name, packed.reason))
                continue
            entry = tarfile.TarInfo(member_name(packed.name, packed.suffix, number))
            entry.size = len(packed.content)
            archive.addfile(entry, io.BytesIO(packed.content))
            count, reencoded = count + 1, reencoded + packed.reencoded
    return _Shard(path.name, count, reencoded, path.stat().st_size, tuple(rejected))


def member_name(name: str, suffix: str, number: int) -> str:
    """What an image is called in its shard: its path, with its number before the file's name, and no other dot in it.

    webdataset takes what stands before the first dot as the key, and images of one key as one sample.
    """
    path = PurePosixPath(name.lstrip("/"))
    stem = path.stem if path.suffix.lower() in SUFFIXES | ARRAY_SUFFIXES else path.name
    for letter in ".[]":
        stem = stem.replace(letter, "_")
    return str(path.with_name(f"{number:08d}-{stem}{suffix}"))


def _all_packed(config: PackConfig, images: ImageSet, part: Sequence[int]) -> Iterator[_Packed]:
    """The images of a shard in order, some of them worked on ahead."""
    with CancellingThreadPool(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(part), AHEAD):
            yield from pool.map(lambda index: _packed(config, images, index), part[start : start + AHEAD])


def _packed(config: PackConfig, images: ImageSet, index: int) -> _Packed:
    name = images.name(index)
    form = config.changed(PixelFormat(background=background_colour(config.background)))
    try:
        content = images.content(index)
        image = opened_content(images, index, content, form)
        picture = image.pixels()
        check_channels(picture.shape[2], config.channel_count or picture.shape[2])
        return _encoded(config, name, content, image, picture)
    except DataError as error:
        root = getattr(images, "root", "")
        return _Packed(name, reason=str(error).removeprefix(f"{root}/{name}: ").removeprefix(f"{name}: "))


def _encoded(config: PackConfig, name: str, content: bytes | None, image: LazyImage, picture: Picture) -> _Packed:
    """An image as it is to lie in a shard; only gray or colour of 8 bits is reduced, or encoded as JPEG or PNG."""
    plain = picture.dtype == np.uint8 and picture.shape[2] in (1, 3)
    reduced = plain and config.size is not None and min(image.size) > config.size
    kind = _kind(name, content)
    as_it_is = config.encoding == "keep" or (not plain and config.encoding != "npy")
    if content is not None and not reduced and as_it_is and config.bands is None:
        return _Packed(name, kind, content)
    if reduced:
        picture = _reduced(picture, config.size or 0)
    encoding = config.encoding
    if encoding == "keep":
        encoding = ("jpeg" if kind in (".jpg", ".jpeg") else "png") if plain else "npy"
    file = io.BytesIO()
    if encoding == "npy":
        # 0 to 255 as 16 bits: they would be read as floats of no known range.
        deep = config.value_range is None and picture.dtype == np.float32 and not np.isnan(picture).any()
        stored = np.rint(picture / DEEP).astype(np.uint16) if deep else np.ascontiguousarray(picture)
        if config.encoding == "keep" and is_part(name) and deep and picture.shape[2] == 1:
            # arrays don't count where other files of a shard are images
            Image.fromarray(stored[:, :, 0]).save(file, "PNG")
            return _Packed(name, ".png", file.getvalue(), reencoded=True)
        np.save(file, stored)
        return _Packed(name, ".npy", file.getvalue(), reencoded=True)
    whole = Image.fromarray(np.ascontiguousarray(picture[:, :, 0] if picture.shape[2] == 1 else picture))
    if encoding == "jpeg":
        whole.save(file, "JPEG", quality=config.quality)
        return _Packed(name, ".jpg", file.getvalue(), reencoded=True)
    whole.save(file, "PNG")
    return _Packed(name, ".png", file.getvalue(), reencoded=True)


def _kind(name: str, content: bytes | None) -> str:
    """The suffix for an image's bytes as they are: by what they are, where the name says something else."""
    suffix = Path(name).suffix.lower()
    if content is None or content.startswith(b"\x93NUMPY"):
        return ".npy"
    if not _is_picture(content):
        return suffix
    with image_file(content) as file:
        kind = "JPEG" if file.format == "MPO" else str(file.format)
    named = Image.registered_extensions().get(suffix)
    usual = {"JPEG": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2", "HEIF": ".heic", "PPM": ".ppm", "SGI": ".rgb"}
    return suffix if named == kind else usual.get(kind, f".{kind.lower()}")


def _is_picture(content: bytes) -> bool:
    """Whether Pillow knows a file; it doesn't know DICOM and archives of arrays, which are known by their suffix."""
    try:
        with image_file(content):
            return True
    except UnidentifiedImageError:
        return False


def _reduced(picture: Picture, size: int) -> Picture:
    """A picture (H, W, 1 or 3) of bytes, its shorter side reduced to ``size`` pixels (bicubic, antialiased)."""
    height, width = picture.shape[:2]
    scale = size / min(height, width)
    whole = Image.fromarray(np.ascontiguousarray(picture[:, :, 0] if picture.shape[2] == 1 else picture))
    small = whole.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BICUBIC)
    array = np.asarray(small)
    return array if array.ndim == 3 else array[:, :, None]
