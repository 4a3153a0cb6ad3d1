"""How a suite reads images: gray and colour of 8 and 16 bits, or any channels, range and no-data by keys."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..core.config_keys import schema_defaults
from ..core.data.composite import PictureKeys
from ..core.data.pixel_format import Bands, PixelFormat
from ..core.data.reading_keys import ReadingKeys
from ..core.yaml_files import to_dict


@dataclass(frozen=True, kw_only=True)
class SuiteReading(PictureKeys, ReadingKeys):
    """The keys of a suite that say how the values of its images are read and shown."""

    channels: int | Bands | None = 3
    """how many: 1 (gray), 3 (colour), 5 (bands); or which of the files' and in what order, by number from 1 or by name"""

    @property
    def plain_images(self) -> bool:
        """Whether images are read as gray or colour of 8 or 16 bits, by no keys of their own."""
        return self.channels in (1, 3, None) and len(self.reading) == 1

    @property
    def reading(self) -> dict[str, Any]:
        """The keys that say how image files are read, where they aren't the usual ones; the channels always."""
        usual, own = schema_defaults(ReadingKeys), to_dict(self)
        return {key: own[key] for key in usual if key == "channels" or own[key] != usual[key]}

    @property
    def form(self) -> PixelFormat:
        """How image files are read: gray and colour as they are, others as the keys say."""
        form = self.changed(PixelFormat(plain=True))
        return replace(form, channels=None) if form.channels in (1, 3) and form.bands is None else form
