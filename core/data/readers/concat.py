"""Several sets of images as one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..images import FileBacked, ImageSet, OpensParts
from ..pixel_format import ANY_FORMAT, LazyImage, Picture, PixelFormat
from ..string_table import Numbers, StringTable


@dataclass(frozen=True, eq=False)
class ConcatImages:
    """Images of several sets: ``places`` (N, 2) int64, the number of the set and the image's number in it."""

    parts: tuple[ImageSet, ...]
    places: NDArray[np.int64]

    @classmethod
    def of(cls, parts: tuple[ImageSet, ...]) -> ConcatImages:
        """All images of the sets, one set after the other."""
        places = [
            np.stack([np.full(len(part), number), np.arange(len(part))], axis=1) for number, part in enumerate(parts)
        ]
        return cls(parts, np.concatenate(places).astype(np.int64))

    def __len__(self) -> int:
        return len(self.places)

    def name(self, index: int) -> str:
        part, number = (int(value) for value in self.places[index])
        return f"{part}:{self.parts[part].name(number)}"

    def open(self, index: int, form: PixelFormat = ANY_FORMAT) -> Image.Image | Picture:
        part, number = (int(value) for value in self.places[index])
        return self.parts[part].open(number, form)

    def content(self, index: int) -> bytes | None:
        part, number = (int(value) for value in self.places[index])
        return self.parts[part].content(number)

    def open_part(self, index: int, form: PixelFormat) -> LazyImage | None:
        """A slice or frame, before it is decoded; None for an image that is a file of its own."""
        part, number = (int(value) for value in self.places[index])
        images = self.parts[part]
        return images.open_part(number, form) if isinstance(images, OpensParts) else None

    def subset(self, indices: Numbers) -> ConcatImages:
        return ConcatImages(self.parts, self.places[np.asarray(indices, dtype=np.int64)])

    def default_workers(self) -> int:
        return max(part.default_workers() for part in self.parts)

    def origin(self) -> str | None:
        origins = [part.origin() if isinstance(part, FileBacked) else None for part in self.parts]
        return None if None in origins else "\0".join(str(origin) for origin in origins)

    def listed(self) -> StringTable:
        return StringTable.of(map(self.name, range(len(self))))

    def file_stats(self, numbers: Numbers) -> NDArray[np.int64]:
        places = self.places[np.asarray(numbers, dtype=np.int64)]
        stamps = np.full((len(places), 3), -1, dtype=np.int64)
        for number, part in enumerate(self.parts):
            here = places[:, 0] == number
            if isinstance(part, FileBacked):
                stamps[here] = part.file_stats(places[here, 1])
        return stamps

    def groups(self) -> list[NDArray[np.int64]]:
        """The numbers of each set's images."""
        return [np.flatnonzero(self.places[:, 0] == part) for part in range(len(self.parts))]
