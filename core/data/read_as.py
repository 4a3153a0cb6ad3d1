"""Images that are read with a window, and of which a frame is taken, whoever opens them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .images import FileBacked, ImageSet, opened
from .pixel_format import ANY_FORMAT, LazyImage, Picture, PixelFormat
from .reading_keys import PartKeys
from .string_table import Numbers, StringTable


@dataclass(frozen=True)
class ImagesReadAs:
    """Images of a set, opened with the window and the frame of ``keys`` where who opens them asks for none."""

    images: ImageSet
    keys: PartKeys

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return self.images.name(index)

    def open(self, index: int, form: PixelFormat = ANY_FORMAT) -> Image.Image | Picture:
        return self.images.open(index, self._form(form))

    def open_part(self, index: int, form: PixelFormat) -> LazyImage:
        """An image before it is decoded, read as ``keys`` say."""
        return opened(self.images, index, self._form(form))

    def content(self, index: int) -> None:
        return None

    def subset(self, indices: Numbers) -> ImagesReadAs:
        return ImagesReadAs(self.images.subset(indices), self.keys)

    def default_workers(self) -> int:
        return self.images.default_workers()

    def origin(self) -> str | None:
        own = self.images.origin() if isinstance(self.images, FileBacked) else None
        return None if own is None else f"{own}, window {self.keys.window}, frame {self.keys.frame}"

    def listed(self) -> StringTable:
        if isinstance(self.images, FileBacked):
            return self.images.listed()
        return StringTable.of(map(self.name, range(len(self))))

    def file_stats(self, numbers: Numbers) -> NDArray[np.int64]:
        if isinstance(self.images, FileBacked):
            return self.images.file_stats(numbers)
        return np.full((len(numbers), 3), -1, dtype=np.int64)

    def _form(self, form: PixelFormat) -> PixelFormat:
        asked = self.keys.with_parts(form)
        return replace(asked, window=form.window or asked.window, frame=form.frame or asked.frame)


def read_as(images: ImageSet, keys: PartKeys) -> ImageSet:
    """The images, read with the window and the frame of ``keys``; as they are where these say nothing."""
    return images if keys.window is None and not isinstance(keys.frame, int) else ImagesReadAs(images, keys)
