"""Image files in a folder, nested or flat."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import DataError
from ...files import check_regular, read_regular
from ..decode import decode, open_picture
from ..file_index import list_files, list_folder, read_file_stats
from ..image_formats import SUFFIXES, kinds, what_reads
from ..images import ImageSet
from ..pixel_format import ANY_FORMAT, LazyImage, Picture, PixelFormat
from ..slices import EVERY_SLICE, Slices, file_of, is_dicom_name, is_part, is_volume
from ..string_table import Numbers, StringTable
from ..unread import kind_of, reader_hint, report, report_beside, unread_text
from .mnist_idx import idx_file, idx_images, is_idx_images
from .volumes import sliced_names


@dataclass(frozen=True)
class FolderImages:
    """Image files below ``root``, by their paths relative to it, and slices of volumes, FILE[N], as ``slices`` counts them."""

    root: Path
    paths: Sequence[str]
    slices: Slices = field(default=EVERY_SLICE, kw_only=True)

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return self.paths[index]

    def open(self, index: int, form: PixelFormat = ANY_FORMAT) -> Image.Image | Picture:
        return decode(self.root / self.paths[index], None, replace(form, slices=self.slices))

    def open_part(self, index: int, form: PixelFormat) -> LazyImage | None:
        """A slice or frame, before it is decoded; None for an image that is a file of its own."""
        if not is_part(self.paths[index]):
            return None
        return open_picture(self.root / self.paths[index], None, replace(form, slices=self.slices))

    def content(self, index: int) -> bytes | None:
        if is_part(self.paths[index]):
            return None
        path = self.root / self.paths[index]
        try:
            return read_regular(path)
        except OSError as error:
            raise DataError(f"{path}: {error.strerror or error}") from error

    def subset(self, indices: Numbers) -> FolderImages:
        if isinstance(self.paths, StringTable):
            return FolderImages(self.root, self.paths.subset(indices), slices=self.slices)
        return FolderImages(self.root, tuple(self.paths[index] for index in indices), slices=self.slices)

    def default_workers(self) -> int:
        return min(16, os.cpu_count() or 1)

    def origin(self) -> str | None:
        counted = "" if self.slices == EVERY_SLICE else f", {self.slices}"
        return f"folder {self.root.absolute()}{counted}"

    def listed(self) -> StringTable:
        return self.paths if isinstance(self.paths, StringTable) else StringTable.of(self.paths)

    def file_stats(self, numbers: Numbers) -> NDArray[np.int64]:
        return read_file_stats(os.path.join(self.root, file_of(path)) for path in self.listed().subset(numbers))


def find_images(data: str | Path, key: str = "data", slices: Slices = EVERY_SLICE) -> ImageSet:
    """The images in a folder (nested or flat, by sorted path; hidden files left out), in a volume or in an idx file.

    A folder with idx files gives the training images. Volumes give the ``slices`` that are asked for. Raises DataError, which
    names the user's ``key``, when there is nothing to be found.
    """
    path = Path(data)
    if not path.is_dir():
        try:
            check_regular(path)
        except FileNotFoundError as error:
            tilde = " A shell leaves ~ as it is in KEY=~/...: give $HOME/... instead." if str(path)[:1] == "~" else ""
            raise DataError(
                f"{key}={path}: no such folder. Expected a folder of images or an idx file.{tilde}"
            ) from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise DataError(f"{key}={path}: {reason}. Expected a folder of images or an idx file.") from error
        if is_sliced(path, slices):
            return with_slices(FolderImages(path.parent, (path.name,)), slices)
        if not is_idx_images(path):
            raise DataError(f"{key}={path}: a file that is not an idx file of images. Expected that, or a folder.")
        return idx_images(path)
    listing = list_folder(path)
    if listing.outputs:
        report(f"{path}: left out, as maelift wrote it: {_few(listing.outputs)}")
    if listing.names:
        if listing.unread:
            report(f"{path}: {unread_text(len(listing.names), listing.unread)}")
        return with_slices(FolderImages(path, listing.names), slices)
    idx = idx_file(path, "train", "images") or idx_file(path, "", "images")
    if idx is not None:
        report_beside(path, [idx], "idx file")
        return idx_images(idx)
    files = list_files(path)
    if not files:
        raise DataError(f"{key}={path}: the folder is empty. Expected images ({kinds()}) or idx files.")
    counts = Counter(map(kind_of, files))
    listed = ", ".join(f"{count} {kind}{reader_hint(kind)}" for kind, count in counts.most_common(5))
    raise DataError(
        f"{key}={path}: no images among its {len(files)} files ({listed}). Expected {kinds()} or idx files."
    )


def is_sliced(path: Path, slices: Slices) -> bool:
    """Whether a file is a volume or, where ``slices`` says so, one of frames."""
    return kind_of(path.name) in SUFFIXES and (is_volume(path.name) or (slices.frames and is_dicom_name(path.name)))


def with_slices(images: FolderImages, slices: Slices) -> FolderImages:
    """Images with the slices of volumes in place of the volumes; raises DataError where all are empty."""
    parts = sliced_names(images.root, images.paths, slices)
    return replace(images, paths=images.paths if parts is None else parts, slices=slices)


def _few(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def report_unused(data: Path, used: Iterable[ImageSet], annotated_by: str, masks: Iterable[Path] = ()) -> None:
    """Say how many images of a folder ``data`` aren't used, as no annotation names them, and which files would be images.

    What lies in the folders ``masks`` is none.
    """
    if not data.is_dir():
        return
    listing = list_folder(data)
    taken = {
        os.path.relpath(os.path.join(part.root, name), data)
        for part in used
        if isinstance(part, FolderImages)
        for name in part.paths
    }
    without = tuple(f"{os.path.relpath(folder, data)}/" for folder in masks)
    images_there = [name for name in listing.names if not name.startswith(without)]
    unused = [name for name in images_there if name not in taken]
    if unused:
        report(
            f"{data}: {len(unused):,} of {len(images_there):,} images are named by no {annotated_by} and aren't used, such as "
            f"{unused[0]}"
        )
    images = {kind: count for kind, count in listing.unread.items() if what_reads(kind)}
    if images:
        report(f"{data}: {unread_text(len(listing.names), images)}")
