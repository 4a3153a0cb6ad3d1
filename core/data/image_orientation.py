"""The size and pixels of an image as shown upright, by the orientation in its EXIF."""

from __future__ import annotations

from PIL import Image

from .pixel_format import Picture

EXIF_ORIENTATION = 0x0112


def upright_shape(file: Image.Image) -> tuple[int, int]:
    width, height = _stored_size(file)
    return (width, height) if exif_orientation(file) in (5, 6, 7, 8) else (height, width)


def _stored_size(file: Image.Image) -> tuple[int, int]:
    """(width, height) as stored: of a TIFF, Pillow's ``size`` is that of the upright image, from version 11.1 on."""
    tags = getattr(file, "tag_v2", {}) if file.format == "TIFF" else {}
    return int(tags.get(256, file.width)), int(tags.get(257, file.height))


def exif_orientation(file: Image.Image) -> int:
    if "exif" not in file.info and "Raw profile type exif" not in file.info and file.format in ("JPEG", "MPO"):
        return 1  # most JPEGs have none, and getexif would look for it elsewhere too
    value = file.getexif().get(EXIF_ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def upright_pixels(array: Picture, orientation: int) -> Picture:
    """Pixels (H, W, C) made upright by EXIF's rule."""
    if orientation in (5, 6, 7, 8):
        array = array.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array
