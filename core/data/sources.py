"""The images of a source to pretrain on: folder, list of paths, tar shards, Parquet, idx or NumPy array."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..errors import DataError
from ..files import NotRegularError, check_regular
from .file_index import tree_file
from .image_formats import SUFFIXES
from .images import ImageSet
from .readers.concat import ConcatImages
from .readers.folder import FolderImages, find_images, is_sliced, with_slices
from .readers.mnist_idx import is_idx_images
from .readers.npy import read_npy
from .readers.parquet import read_parquet
from .readers.path_list import LISTS, path_list_cache, read_path_list
from .readers.tar_shards import find_shards, index_shards, tables_file
from .slices import EVERY_SLICE, Slices
from .unread import kind_of, reader_hint, report_beside


def find_sources(data: str | Sequence[str], reindex: bool = False, slices: Slices = EVERY_SLICE) -> ImageSet:
    """The images of one source, or of several one after the other.

    A source is a folder of images, or of tar shards, or of Parquet files; a list of paths (.txt, .csv); a tar shard or
    several (shards/{000..009}.tar); a Parquet file; an idx file; a NumPy array (N, H, W) or (N, H, W, C) in a .npy
    file; or a volume. ``reindex``: what is known of them from before doesn't count. ``slices``: which of volumes' slices are
    images. Raises DataError for one that isn't there or holds
    no images.
    """
    if reindex:
        for part in [data] if isinstance(data, str) else data:
            forget_source(part)
    if isinstance(data, str):
        return find_source(data, slices)
    parts = tuple(find_source(part, slices) for part in data)
    if not parts:
        raise DataError("data=[]: no source. Expected at least one.")
    return parts[0] if len(parts) == 1 else ConcatImages.of(parts)


def find_source(data: str, slices: Slices = EVERY_SLICE) -> ImageSet:
    """The images of one source; see ``find_sources``."""
    path = Path(data)
    suffix = path.suffix.lower()
    is_file = _is_file(path)
    if suffix in LISTS and is_file:
        return with_slices(read_path_list(path), slices)
    if suffix == ".npy" and is_file:
        return read_npy(path)
    if suffix == ".parquet" and is_file:
        return read_parquet([path])
    if path.is_dir() and (files := sorted(file for file in path.glob("*.parquet") if file.is_file())):
        report_beside(path, files, "Parquet files")
        return read_parquet(files)
    if shards := find_shards(data):
        return index_shards(shards)
    if is_file and not is_sliced(path, slices) and not is_idx_images(path):
        kind = kind_of(path.name)
        why = "a single image" if kind in SUFFIXES else f"no source of images{reader_hint(kind)}"
        raise DataError(
            f"data={path}: {why}. Expected a folder, a list of paths (.txt, .csv), a .tar, .parquet, .npy or idx file."
        )
    return find_images(path, slices=slices)


def find_images_to_use(images: str, slices: Slices = EVERY_SLICE) -> ImageSet:
    """The images that a trained model is used on, and whose names its results get: of a folder, an array, or a single one.

    Lists of paths and shards are left out, as their names may lead out of a folder. Raises DataError, which names the key
    "images".
    """
    path = Path(images)
    suffix = path.suffix.lower()
    if suffix in (".npy", ".parquet", *SUFFIXES) and path.is_file() and not is_sliced(path, slices):
        if suffix in SUFFIXES:
            return FolderImages(path.parent, (path.name,))
        with key_named_images():
            return read_npy(path) if suffix == ".npy" else read_parquet([path])
    return find_images(path, "images", slices)


@contextmanager
def key_named_images() -> Iterator[None]:
    """Rename the key ``data`` in errors about sources of images to ``images``, as commands call it that use a trained model."""
    try:
        yield
    except DataError as error:
        raise DataError(re.sub(r"(?<![\w./])data=", "images=", str(error))) from error


def _is_file(path: Path) -> bool:
    """Whether a path is a file; raises DataError for a named pipe, a device, or what can't be reached."""
    try:
        check_regular(path)
    except NotRegularError as error:
        if path.is_dir():
            return False
        raise DataError(f"data={path}: {error.strerror}. Expected images: a folder, list, shards or array.") from error
    except OSError:
        return False  # it may be a pattern of shards
    return True


def forget_source(data: str) -> None:
    """Have a source listed from the start the next time."""
    path = Path(data)
    if path.is_dir():
        tree_file(path).unlink(missing_ok=True)
    if path.suffix.lower() in LISTS:
        path_list_cache(path).unlink(missing_ok=True)
    if shards := find_shards(data):
        tables_file(shards).unlink(missing_ok=True)
