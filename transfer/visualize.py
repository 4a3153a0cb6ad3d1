"""Predictions drawn on images: boxes, masks and class names, in colours that are distinct for the colour-blind."""

from __future__ import annotations

import colorsys
import functools
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..core.data.composite import Display
from .predictions import Classification, Detections, Segmentation

SHORTEST, LONGEST = 320, 1280
"""Pixels of a picture's longer side: smaller images are enlarged by whole numbers, larger ones made smaller."""
OKABE_ITO = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
"""Seven colours that differ to any colour vision (Okabe and Ito, 2008); further classes get others."""
NARROWEST = 160
"""Pixels of width that a picture with words below it has at least."""
BACKGROUND = "#8a8f98"
"""The colour of a class called background."""
INK, PAPER = "#111418", "#ffffff"
MASK_OPACITY = 0.45
MIN_SCORE = 0.5
"""Objects of a lower score are not drawn, where no other limit is given."""

Colour = tuple[int, int, int]
ImageLike = Image.Image | NDArray[np.generic]
"""An image, or its pixels (H, W) or (H, W, C) from 0 to 255."""
TextLine = tuple[str, str]
"""A name, and what follows it and is never left out."""
Font = ImageFont.FreeTypeFont
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class ExampleImage:
    """An encoded picture for a page: ``data`` is a file of ``kind``, ``caption`` what a person reads in its place too.

    ``right``: whether it shows a prediction that agrees with the truth.
    """

    data: bytes
    kind: Literal["png", "jpeg"]
    caption: str
    right: bool

    @classmethod
    def of(cls, image: Image.Image, caption: str, right: bool) -> ExampleImage:
        """Encode an image: few pixels without loss, many as JPEG."""
        kind: Literal["png", "jpeg"] = "png" if max(image.size) <= 2 * LONGEST // 3 else "jpeg"
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, kind.upper(), **({"optimize": True} if kind == "png" else {"quality": 85}))
        return cls(buffer.getvalue(), kind, caption, right)


def class_colours(classes: Sequence[str]) -> list[Colour]:
    """A colour for each class, by its number: the same for the same list, whatever an image shows."""
    return [_rgb(BACKGROUND) if _is_background(name) else _colour(number) for number, name in enumerate(classes)]


def draw_classification(
    image: ImageLike, prediction: Classification, *, truth: str | None = None, most: int = 3
) -> Image.Image:
    """The image with its ``most`` most probable classes in words below it; and the true one, where it is known."""
    numbers = {name: number for number, name in enumerate(prediction.probabilities)}
    best = sorted(prediction.probabilities.items(), key=lambda item: -item[1])[:most]
    lines = [(readable(name, numbers[name]), f"  {percent(value)}") for name, value in best]
    if truth is not None:
        lines.append((f"true: {readable(truth, numbers.get(truth))}", ""))
    return draw_text(image, lines)


def draw_text(image: ImageLike, lines: Sequence[TextLine]) -> Image.Image:
    """The image with lines of text below it: of each a name, and what follows it and is never cut off."""
    return _with_lines_below(enlarged(image)[0], lines)


def draw_detections(
    image: ImageLike,
    found: Detections,
    *,
    min_score: float = MIN_SCORE,
    show_scores: bool = True,
) -> Image.Image:
    """The image with boxes, names, scores and, where there are any, translucent masks; boxes are in the image's pixels.

    ``show_scores``: false for objects that were drawn by people.
    """
    found = found.above(min_score)
    canvas, scale = enlarged(image)
    colours = class_colours(found.classes)
    order = sorted(range(len(found)), key=lambda number: -_area(found.boxes[number]))  # small ones stay visible
    if found.masks is not None:
        for number in order:
            canvas = _tinted(canvas, found.masks[number], colours[found.labels[number]])
    draw = ImageDraw.Draw(canvas)
    line = max(2, round(max(canvas.size) / 320))
    for number in order:
        colour = colours[found.labels[number]]
        x1, y1, x2, y2 = _inside([float(side) * scale for side in found.boxes[number]], canvas.size)
        draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=_contrast(colour), width=line + 2)
        draw.rectangle((x1, y1, x2, y2), outline=colour, width=line)
    taken: list[Box] = []
    for number in reversed(order):
        label = int(found.labels[number])
        score = f" {percent(float(found.scores[number]))}" if show_scores else ""
        box = _inside([float(side) * scale for side in found.boxes[number]], canvas.size)
        words = (readable(found.classes[label], label), score)
        taken.append(_write_label(draw, canvas.size, box, words, colours[label], taken))
    return canvas


def draw_segmentation(image: ImageLike, found: Segmentation, *, ignored: int | None = None) -> Image.Image:
    """The image under its classes' colours, and a legend of those that it has; pixels of ``ignored`` stay as they are.

    Raises ValueError for a mask of another size than the image.
    """
    canvas, _ = enlarged(image)
    colours = class_colours(found.classes)
    mask = np.asarray(found.mask)
    size = pixels_of(image)
    if mask.shape != size:
        raise ValueError(f"a mask of {mask.shape} over an image of {size}")
    present = [int(number) for number in np.unique(mask) if number != ignored and 0 <= number < len(colours)]
    for number in present:
        faint = _is_background(found.classes[number])
        canvas = _tinted(canvas, mask == number, colours[number], *((0.2, 0.2) if faint else (MASK_OPACITY, 0.9)))
    shares = {number: float((mask == number).mean()) for number in present}
    entries = [
        ((readable(found.classes[number], number), f" {percent(shares[number])}"), colours[number])
        for number in sorted(present, key=lambda number: -shares[number])
    ]
    return _with_legend_below(canvas, entries)


def side_by_side(pictures: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures in a row, each under its title."""
    font = _font(max(13, max(picture.width for _, picture in pictures) // 28))
    bar, gap = _line_height(font) + 6, 8
    width = sum(picture.width for _, picture in pictures) + gap * (len(pictures) - 1)
    canvas = Image.new("RGB", (width, bar + max(picture.height for _, picture in pictures)), PAPER)
    draw, left = ImageDraw.Draw(canvas), 0
    for title, picture in pictures:
        draw.text((left + 2, 3), _shortened((readable(title), ""), font, picture.width - 4), fill=INK, font=font)
        canvas.paste(picture, (left, bar))
        left += picture.width + gap
    return canvas


def enlarged(image: ImageLike) -> tuple[Image.Image, float]:
    """The image in RGB at a size that a person can look at, and its pixels for each pixel of the original.

    Arrays are (H, W) or (H, W, C); see ``Display`` for what is shown of other than three channels of 8 bits.
    """
    picture = _as_rgb(image)
    longer = max(picture.size)
    if longer < SHORTEST:
        scale: float = max(1, round(SHORTEST / longer))
        how = Image.Resampling.NEAREST  # blurred pixels would look like detail
    elif longer > LONGEST:
        scale, how = LONGEST / longer, Image.Resampling.LANCZOS
    else:
        return picture, 1.0
    return picture.resize([max(1, round(side * scale)) for side in picture.size], how), scale


def readable(name: str, number: int | None = None) -> str:
    """A name on one line, if the fonts here can draw it; else "class" and its number, or question marks in it."""
    plain = " ".join("".join(letter if letter.isprintable() else " " for letter in name).split())
    if plain and _font_file(plain) is not None:
        return plain
    if number is not None:
        return f"class {number}"
    known = _glyphs(_own_font())
    return "".join(letter if ord(letter) in known else "?" for letter in plain) or "?"


def percent(share: float) -> str:
    """A share as whole percent; a small one that isn't 0 as "<1 %"."""
    if 0 < share < 0.005:
        return "<1 %"
    return f"{100 * share:.0f} %"


def _as_rgb(image: ImageLike) -> Image.Image:
    if isinstance(image, Image.Image) and image.mode != "F":
        return image.convert("RGB")
    array = np.asarray(image)
    return Display().image(array if array.dtype == np.uint8 else array.astype(np.float32)).convert("RGB")


def pixels_of(image: ImageLike) -> tuple[int, int]:
    """Height and width."""
    if isinstance(image, Image.Image):
        return image.height, image.width
    return int(image.shape[0]), int(image.shape[1])


def _tinted(
    canvas: Image.Image, mask: NDArray[np.bool_], colour: Colour, opacity: float = MASK_OPACITY, border: float = 0.9
) -> Image.Image:
    """The canvas with a colour laid over a mask (H, W) and, by its own opacity, over the mask's border."""
    area = Image.fromarray(np.asarray(mask, np.uint8) * 255).resize(canvas.size, Image.Resampling.NEAREST)
    inside = np.asarray(area) > 127
    share = np.where(inside, np.float32(opacity), np.float32(0))
    share[_border(inside)] = border
    pixels = np.asarray(canvas, np.float32)
    mixed = pixels + share[..., None] * (np.asarray(colour, np.float32) - pixels)
    return Image.fromarray(mixed.round().astype(np.uint8))


def _border(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of a mask that have a neighbour outside of it; the image's edge is no border."""
    padded = np.pad(inside, 1, mode="edge")
    core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    border: NDArray[np.bool_] = inside & ~core
    return border


def _write_label(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], box: Box, words: TextLine, colour: Colour, taken: Sequence[Box]
) -> Box:
    """Write a label at the box, where it covers no other if there is such a place; gives the rectangle that it takes."""
    width, height = size
    font = _font(max(12, max(size) // 48), words[0])
    text = _shortened(words, font, width - 6)
    wide, high = math.ceil(draw.textlength(text, font=font)) + 6, _line_height(font) + 2
    left = min(max(0.0, box[0]), float(max(0, width - wide)))
    places = [box[1] - high, box[3], box[1], box[3] - high]
    fitting = [top for top in places if 0 <= top <= height - high] or [min(max(0.0, box[1]), float(height - high))]
    rectangles = [(left, top, left + wide, top + high) for top in fitting]
    chosen = next((place for place in rectangles if not any(_overlap(place, other) for other in taken)), rectangles[0])
    draw.rectangle(chosen, fill=colour)
    draw.text((chosen[0] + 3, chosen[1]), text, fill=_contrast(colour), font=font)
    return chosen


def _with_lines_below(canvas: Image.Image, lines: Sequence[TextLine]) -> Image.Image:
    size = max(13, max(canvas.size) // 32)
    fonts = [_font(size, name) for name, _ in lines]
    heights = [_line_height(font) + 3 for font in fonts]
    grown = _grown(canvas, sum(heights) + 6)
    draw, top = ImageDraw.Draw(grown), canvas.height + 3
    for line, font, height in zip(lines, fonts, heights, strict=True):
        draw.text((4, top), _shortened(line, font, grown.width - 8), fill=INK, font=font)
        top += height
    return grown


def _with_legend_below(canvas: Image.Image, entries: Sequence[tuple[TextLine, Colour]]) -> Image.Image:
    """The canvas above a legend, in as many lines as it takes."""
    size = max(13, max(canvas.size) // 40)
    row = max((_line_height(_font(size, name)) for (name, _), _ in entries), default=0) + 6
    square, width = row - 8, max(canvas.width, NARROWEST)
    places, left, top = [], 4, canvas.height + 4
    for words, colour in entries:
        font = _font(size, words[0])
        text = _shortened(words, font, width - square - 16)
        wide = square + 18 + math.ceil(font.getlength(text))
        if left > 4 and left + wide - 8 > width:
            left, top = 4, top + row
        places.append((text, font, colour, left, top))
        left += wide
    grown = _grown(canvas, top + row - canvas.height)
    draw = ImageDraw.Draw(grown)
    for text, font, colour, left, top in places:
        draw.rectangle((left, top + 2, left + square, top + 2 + square), fill=colour, outline=INK)
        draw.text((left + square + 6, top), text, fill=INK, font=font)
    return grown


def _grown(canvas: Image.Image, height: int) -> Image.Image:
    """The canvas with room of a height in pixels below it."""
    grown = Image.new("RGB", (max(canvas.width, NARROWEST), canvas.height + height), PAPER)
    grown.paste(canvas, (0, 0))
    return grown


def _shortened(words: TextLine, font: Font, width: float) -> str:
    """The words, the end of the name left out where they are wider than ``width`` pixels together."""
    name, rest = words
    if font.getlength(name + rest) <= width:
        return name + rest
    while len(name) > 1 and font.getlength(f"{name}…{rest}") > width:
        name = name[:-1]
    return f"{name.rstrip()}…{rest}"


def _is_background(name: str) -> bool:
    return name.casefold() == "background"


def _colour(number: int) -> Colour:
    """The colour of a class number: Okabe's and Ito's seven, then hues in steps of the golden ratio at three lightnesses."""
    if number < len(OKABE_ITO):
        return _rgb(OKABE_ITO[number])
    further = number - len(OKABE_ITO)
    red, green, blue = colorsys.hls_to_rgb((0.07 + further * 0.61803398875) % 1, (0.62, 0.42, 0.78)[further % 3], 0.75)
    return round(255 * red), round(255 * green), round(255 * blue)


def _rgb(text: str) -> Colour:
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def _contrast(colour: Colour) -> Colour:
    """Black or white, whichever is read better on a colour (WCAG's relative luminance)."""
    linear = [((value / 255 + 0.055) / 1.055) ** 2.4 for value in colour]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


def _inside(box: Sequence[float], size: tuple[int, int]) -> Box:
    """A box (x1, y1, x2, y2) cut to a canvas (width, height), with its corners in order."""
    x1, x2 = (min(max(side, 0.0), size[0] - 1.0) for side in (box[0], box[2]))
    y1, y2 = (min(max(side, 0.0), size[1] - 1.0) for side in (box[1], box[3]))
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def _area(box: NDArray[np.float32]) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _line_height(font: Font) -> int:
    return math.ceil(font.getbbox("Ágjpq|")[3])


def _font(size: int, text: str = "") -> Font:
    """A font that can draw the text, of a height in pixels."""
    return _loaded(_font_file(text) or _own_font(), size)


@functools.lru_cache(maxsize=64)
def _loaded(path: Path, size: int) -> Font:
    return ImageFont.truetype(str(path), size)


@functools.lru_cache(maxsize=4096)
def _font_file(text: str) -> Path | None:
    """The first font that has every letter of a text."""
    letters = {ord(letter) for letter in text if not letter.isspace()}
    if letters <= _glyphs(_own_font()):
        return _own_font()
    return next((path for path in _system_fonts() if letters <= _glyphs(path)), None)


def _own_font() -> Path:
    """matplotlib's DejaVu Sans, which is there wherever maelift is."""
    from matplotlib import get_data_path

    return Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


@functools.lru_cache(maxsize=1)
def _system_fonts() -> tuple[Path, ...]:
    """The system's fonts, upright ones first."""
    from matplotlib import font_manager

    found = [Path(path) for path in font_manager.findSystemFonts()]
    plain = [path for path in found if "emoji" not in path.name.casefold()]  # pictures of fixed sizes
    return tuple(sorted(plain, key=lambda path: ("regular" not in path.name.casefold(), str(path))))


@functools.lru_cache(maxsize=256)
def _glyphs(path: Path) -> frozenset[int]:
    """The letters that a font has; none of a file that can't be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(str(path)).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return frozenset()
