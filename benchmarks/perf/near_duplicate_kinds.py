"""How many planted copies of each kind the near-duplicate detector finds, and how many distinct images it takes for copies.

    python benchmarks/perf/near_duplicate_kinds.py [images=100] [others=300] [sets=fashion,tiles,faces] [kinds=jpeg30,half,...]

Of three sets of real pictures: Fashion-MNIST's items; tiles of photographs (scikit-image, scikit-learn), without those that
are nearly one tone; faces of 25 pixels (Labeled Faces in the Wild, in scikit-image). ``pip install scikit-image`` brings the last
two. Copies are made by PIL. Each is searched for among the originals and other distinct images of its set (``found``), and
among those of all sets (``mixed``). False alarms are distinct images that are found among the others of their set, or of all.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from maelift.core.data.near_duplicates import compare
from maelift.core.data.readers.mnist_idx import idx_images
from maelift.core.data.thumbnails import Thumbnails, thumbnail
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

Change = Callable[[Image.Image], Image.Image]
TILE = 96
"""Pixels a side of a tile of a photograph."""
LEAST_DEVIATION = 12.0
"""Gray levels by which each quarter of a tile must deviate from its mean: plain sky, and the black around a retina, are alike."""
PHOTOGRAPHS = (
    "astronaut.png coffee.png chelsea.png camera.png rocket.jpg retina.jpg ihc.png coins.png hubble_deep_field.jpg"
)


def jpeg(image: Image.Image) -> Image.Image:
    """Quality 30."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=30)
    return Image.open(buffer)


def resized(factor: float) -> Change:
    """By this factor."""
    return lambda image: image.resize((round(image.width * factor), round(image.height * factor)))


def turned(how: Image.Transpose) -> Change:
    """Mirrored or turned."""
    return lambda image: image.transpose(how)


def cropped(share: float) -> Change:
    """Without this share of each side."""

    def crop(image: Image.Image) -> Image.Image:
        x, y = round(share * image.width), round(share * image.height)
        return image.crop((x, y, image.width - x, image.height - y))

    return crop


def letterbox(level: int) -> Change:
    """With bars above and below."""
    return lambda image: ImageOps.expand(image, (0, image.height // 6), level if image.mode == "L" else (level,) * 3)


def watermark(image: Image.Image) -> Image.Image:
    """A word across it, half transparent."""
    layer = Image.new("RGBA", image.size, (255, 255, 255, 0))
    left, _, right, _ = ImageFont.load_default(100).getbbox("SAMPLE")
    font = ImageFont.load_default(max(4.0, 80 * image.width / (right - left)))
    centre = image.width / 2, image.height / 2
    ImageDraw.Draw(layer).text(centre, "SAMPLE", fill=(255, 255, 255, 128), font=font, anchor="mm")
    return Image.alpha_composite(image.convert("RGBA"), layer).convert(image.mode)


KINDS: dict[str, Change] = {
    "exact": lambda image: image.copy(),
    "jpeg30": jpeg,
    "half": resized(0.5),
    "double": resized(2),
    "mirrored": turned(Image.Transpose.FLIP_LEFT_RIGHT),
    "turned_left": turned(Image.Transpose.ROTATE_90),
    "turned_right": turned(Image.Transpose.ROTATE_270),
    "upside_down": turned(Image.Transpose.ROTATE_180),
    "crop10": cropped(0.1),
    "crop15": cropped(0.15),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "more_contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.3),
    "less_contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
    "letterbox_black": letterbox(0),
    "letterbox_white": letterbox(255),
    "gray": lambda image: image.convert("L"),
    "watermark": watermark,
}


def items(count: int) -> list[Image.Image]:
    """Items of Fashion-MNIST's test set."""
    images = idx_images(Path("data/fashion-mnist/t10k-images-idx3-ubyte.gz"))
    return [images.open(number) for number in range(count)]


def package_folder(package: str, *names: str) -> Path:
    """A folder of an installed package."""
    found = find_spec(package)
    if found is None or found.origin is None:
        raise SystemExit(f"{package} is not installed: pip install scikit-image scikit-learn")
    return Path(found.origin).parent.joinpath(*names)


def tiles(count: int) -> list[Image.Image]:
    """Tiles of photographs that don't overlap, taken in turns over all of them."""
    files = [package_folder("skimage", "data", name) for name in PHOTOGRAPHS.split()]
    files += sorted(package_folder("sklearn", "datasets", "images").glob("*.jpg"))
    found = []
    for file in files:
        opened = Image.open(file)
        image = opened if opened.mode == "L" else opened.convert("RGB")
        for top in range(0, image.height - TILE + 1, TILE):
            for left in range(0, image.width - TILE + 1, TILE):
                tile = image.crop((left, top, left + TILE, top + TILE))
                quarters = np.asarray(tile.convert("L")).reshape(2, TILE // 2, 2, TILE // 2)
                if quarters.std(axis=(1, 3)).min() >= LEAST_DEVIATION:
                    found.append(tile)
    order = np.random.default_rng(0).permutation(len(found))
    return [found[number] for number in order[:count]]


def faces(count: int) -> list[Image.Image]:
    """Faces."""
    pixels = np.load(package_folder("skimage", "data", "lfw_subset.npy"))[:100]
    return [Image.fromarray((image * 255).round().astype(np.uint8)) for image in pixels[:count]]


SETS: dict[str, Callable[[int], list[Image.Image]]] = {"fashion": items, "tiles": tiles, "faces": faces}


def thumbnails(images: Sequence[Image.Image]) -> Thumbnails:
    """Thumbnails of decoded images."""
    return Thumbnails.stack([thumbnail(np.atleast_3d(np.asarray(image))) for image in images])


def main(words: Sequence[str]) -> None:
    """Measure, and print a table."""
    keys = {"images": "100", "others": "300", "sets": ",".join(SETS), "kinds": ",".join(KINDS)}
    keys.update({key: value for key, _, value in (word.partition("=") for word in words)})
    torch.set_num_threads(1)
    count, more = int(keys["images"]), int(keys["others"])
    pictures = {name: SETS[name](count + more) for name in keys["sets"].split(",")}
    own = {name: images[: min(count, len(images) // 2)] for name, images in pictures.items()}
    rest = {name: thumbnails(images[len(own[name]) :]) for name, images in pictures.items()}
    everything = Thumbnails.concat(list(rest.values()))
    print("set        kind              found  mixed   of")
    for name, images in own.items():
        originals = thumbnails(images)
        alarms = [len(compare(originals, others).near_duplicates()) for others in (rest[name], everything)]
        print(f"{name:<10} {'false alarms':<16} {alarms[0]:>6} {alarms[1]:>6} {len(images):>4}", flush=True)
        for kind in keys["kinds"].split(","):
            copies = thumbnails([KINDS[kind](image) for image in images])
            found = []
            for others in (rest[name], everything):
                pairs = compare(copies, Thumbnails.concat([originals, others])).near_duplicates()
                found.append(sum(pair.index == pair.original for pair in pairs))
            print(f"{name:<10} {kind:<16} {found[0]:>6} {found[1]:>6} {len(images):>4}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
