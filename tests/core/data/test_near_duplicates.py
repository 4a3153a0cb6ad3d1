"""Copies that were planted among real images are found, and few others: re-encoded, resized, mirrored, cropped."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from maelift.core.data.near_duplicates import Similarities, compare, compare_uncropped, compare_within
from maelift.core.data.readers.folder import find_images
from maelift.core.data.readers.mnist_idx import ArrayImages, idx_images
from maelift.core.data.thumbnails import SIDE, Thumbnails, thumbnail
from maelift.core.tools.fashion_scenes import FashionScenesConfig, fashion_scenes
from maelift.tests.support import noise_image, write_images
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

Change = Callable[[Image.Image, np.random.Generator], Image.Image]
Search = Callable[[Thumbnails, Thumbnails], Similarities]


def reencoded(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=75)
    return Image.open(buffer)


def mirrored(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def half_the_size(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)


def larger(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    return image.resize((image.width * 3 // 2, image.height * 3 // 2), Image.Resampling.BICUBIC)


def cropped(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """A tenth of each side is gone, somewhere."""
    width, height = round(0.9 * image.width), round(0.9 * image.height)
    left, top = (
        int(draw.integers(0, whole - part + 1)) for whole, part in ((image.width, width), (image.height, height))
    )
    return image.crop((left, top, left + width, top + height))


def cropped_and_resized(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    return cropped(image, draw).resize(image.size, Image.Resampling.BICUBIC)


UNCROPPED: tuple[Change, ...] = (reencoded, mirrored, half_the_size, larger)
CHANGES: tuple[Change, ...] = (*UNCROPPED, cropped, cropped_and_resized)


def planted(images: list[Image.Image], change: Change, folder: Path) -> Thumbnails:
    """Thumbnails of changed images, which were written to a folder and read back."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(len(change.__name__))
    for number, image in enumerate(images):
        change(image, draw).save(folder / f"{number:04d}.png")
    return Thumbnails.of(find_images(folder))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory, fashion_mnist: Path) -> tuple[list[Image.Image], Thumbnails]:
    """Test scenes, and the thumbnails of a pool that has none of them."""
    folder = tmp_path_factory.mktemp("scenes") / "scenes"
    fashion_scenes(FashionScenesConfig(str(folder), str(fashion_mnist), train=1, val=1, test=100, pool=1000))
    test, pool = find_images(folder / "images" / "test"), find_images(folder / "pool")
    return [test.open(number) for number in range(len(test))], Thumbnails.of(pool)  # type: ignore[misc]


def test_no_scene_is_taken_for_a_copy_of_another(scenes: tuple[list[Image.Image], Thumbnails], tmp_path: Path) -> None:
    images, pool = scenes
    own = planted(images, lambda image, draw: image, tmp_path / "own")
    assert len(compare(own, pool).near_duplicates()) <= 0.01 * len(images)


def all_but_few_are_found(
    images_and_pool: tuple[list[Image.Image], Thumbnails], change: Change, folder: Path, search: Search = compare
) -> None:
    """95 % of the images are found among the pool and their changed copies, and next to none is taken for another's."""
    images, pool = images_and_pool
    own = planted(images, lambda image, draw: image, folder / "own")
    mixed = Thumbnails.concat([pool, planted(images, change, folder / "copies")])
    found = {pair.index: pair.original - len(pool) for pair in search(own, mixed).near_duplicates()}
    assert sum(found.get(number) == number for number in range(len(images))) >= 0.95 * len(images)
    assert sum(original != number for number, original in found.items()) <= 0.01 * len(images)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_copies_of_scenes_are_found(
    scenes: tuple[list[Image.Image], Thumbnails], change: Change, tmp_path: Path
) -> None:
    all_but_few_are_found(scenes, change, tmp_path)


@pytest.fixture(scope="module")
def items(fashion_mnist: Path) -> tuple[list[Image.Image], Thumbnails]:
    """Items of Fashion-MNIST, and the thumbnails of a pool that has none of them."""
    test = idx_images(fashion_mnist / "t10k-images-idx3-ubyte.gz").subset(range(100, 200))
    pool = idx_images(fashion_mnist / "train-images-idx3-ubyte.gz").subset(range(2000))
    return [test.open(number) for number in range(len(test))], Thumbnails.of(pool)


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_copies_of_centred_items_are_found(
    items: tuple[list[Image.Image], Thumbnails], change: Change, tmp_path: Path
) -> None:
    """Fashion-MNIST's items are nearly alike: of thousands of T-shirts, some differ by little more than a crop."""
    all_but_few_are_found(items, change, tmp_path)


def cut(share: float) -> Change:
    """So much of each side is gone."""

    def change(image: Image.Image, draw: np.random.Generator) -> Image.Image:
        x, y = round(share * image.width), round(share * image.height)
        return image.crop((x, y, image.width - x, image.height - y))

    return change


def watermark(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    layer = Image.new("RGBA", image.size, (255, 255, 255, 0))
    ImageDraw.Draw(layer).text((2, image.height // 2 - 3), "MARK", fill=(255, 255, 255, 128), font_size=8)
    return Image.alpha_composite(image.convert("RGBA"), layer).convert(image.mode)


KINDS: dict[str, Change] = {
    "JPEG 30": lambda image, draw: jpeg_30(image),
    "turned left": lambda image, draw: image.transpose(Image.Transpose.ROTATE_90),
    "turned right": lambda image, draw: image.transpose(Image.Transpose.ROTATE_270),
    "upside down": lambda image, draw: image.transpose(Image.Transpose.ROTATE_180),
    "brighter": lambda image, draw: ImageEnhance.Brightness(image).enhance(1.3),
    "more contrast": lambda image, draw: ImageEnhance.Contrast(image).enhance(1.3),
    "less contrast": lambda image, draw: ImageEnhance.Contrast(image).enhance(0.7),
    "letterbox black": lambda image, draw: ImageOps.expand(image, (0, image.height // 6), 0),
    "letterbox white": lambda image, draw: ImageOps.expand(image, (0, image.height // 6), 255),
    "crop of 10 % a side": cut(0.1),
    "crop of 15 % a side": cut(0.15),
    "watermark": watermark,
}


def jpeg_30(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=30)
    return Image.open(buffer)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_copies_of_every_kind_are_found_among_items_that_are_nearly_alike(
    items: tuple[list[Image.Image], Thumbnails], kind: str, tmp_path: Path
) -> None:
    images = items[0][:60]
    copies = planted(images, KINDS[kind], tmp_path / "copies")
    originals = planted(images, lambda image, draw: image, tmp_path / "own")
    others = Thumbnails(items[1].pixels[:300], items[1].grain[:300], items[1].inside_borders.pixels[:300])
    mixed = Thumbnails.concat([originals, replace(others, inner_grain=items[1].inside_borders.grain[:300])])
    search = compare if kind.startswith("crop") else compare_uncropped
    found = {pair.index: pair.original for pair in search(copies, mixed).near_duplicates()}
    assert sum(found.get(number) == number for number in range(len(images))) >= 0.95 * len(images)
    assert sum(original != number for number, original in found.items()) <= 1


@pytest.mark.parametrize(("search", "count"), [(compare, 60), (compare_uncropped, 500)])
def test_unrelated_images_change_nothing_of_what_is_found(fashion_mnist: Path, search: Search, count: int) -> None:
    """Neither among the images nor among the others; and distinct items are next to never taken for copies."""
    source = idx_images(fashion_mnist / "train-images-idx3-ubyte.gz")
    images, others = Thumbnails.of(source.subset(range(count))), Thumbnails.of(source.subset(range(1000, 1100)))
    copies = thumbnails([darker(source.open(number)) for number in range(1000, 1005)])
    unrelated = thumbnails([scene(np.random.default_rng(number), (64, 48)) for number in range(300)])

    def found(images: Thumbnails, others: Thumbnails) -> list[tuple[int, int]]:
        return [(pair.index, pair.original) for pair in search(images, others).near_duplicates()]

    alone = found(Thumbnails.concat([copies, images]), others)
    assert alone[:5] == [(number, number) for number in range(5)]
    assert len(alone) - 5 <= max(1, 0.01 * count)
    assert found(Thumbnails.concat([copies, images, unrelated]), others) == alone
    assert found(Thumbnails.concat([copies, images]), Thumbnails.concat([others, unrelated])) == alone


def thumbnails(images: list[Image.Image]) -> Thumbnails:
    return Thumbnails.stack([thumbnail(np.atleast_3d(np.asarray(image))) for image in images])


def darker(image: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(0.7)


def scene(draw: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Soft patches of light, and a dozen shapes on them."""
    image = Image.fromarray(draw.integers(0, 200, (6, 8), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    return with_shapes(image, draw, 12, min(size) // 3)


def with_shapes(image: Image.Image, draw: np.random.Generator, count: int, largest: int) -> Image.Image:
    image = image.copy()
    pen = ImageDraw.Draw(image)
    for _ in range(count):
        width, height = draw.integers(largest // 2, largest + 1, 2).tolist()
        left, top = draw.integers(0, image.width - width), draw.integers(0, image.height - height)
        shape = pen.ellipse if draw.integers(2) else pen.rectangle
        shape((left, top, left + width, top + height), fill=int(draw.integers(0, 256)))
    return image


def frames(background: Image.Image, count: int, draw: np.random.Generator) -> list[Image.Image]:
    """What a fixed camera sees: three objects at other places each time, and noise."""
    moved = [np.asarray(with_shapes(background, draw, 3, background.height // 9), dtype=float) for _ in range(count)]
    noisy = [np.clip(frame + draw.normal(0, 3, frame.shape), 0, 255).astype(np.uint8) for frame in moved]
    return [Image.fromarray(frame) for frame in noisy]


def frames_are_told_apart_and_their_copies_found(background: Image.Image, count: int) -> None:
    images = frames(background, count, np.random.default_rng(3))
    own = thumbnails(images)
    assert len(compare_within(own).pairs_within()) <= 0.01 * count
    assert (
        len(compare(thumbnails(images[: count // 2]), thumbnails(images[count // 2 :])).near_duplicates())
        <= 0.01 * count
    )
    copies = [jpeg_30(darker(image)) for image in images[:20]]
    found = compare_uncropped(thumbnails(copies), own).near_duplicates()
    assert sum(pair.index == pair.original for pair in found) >= 19
    assert len(found) <= 20


@pytest.mark.parametrize("seed", range(3))
def test_frames_of_one_fixed_camera_are_no_near_duplicates_but_their_copies_are(seed: int) -> None:
    frames_are_told_apart_and_their_copies_found(scene(np.random.default_rng(seed), (192, 144)), 60)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea"])
def test_frames_of_a_photographed_scene_are_no_near_duplicates_but_their_copies_are(name: str) -> None:
    data = pytest.importorskip("skimage.data", reason="scikit-image has the photographs")
    photograph = Image.fromarray(getattr(data, name)()).convert("L").resize((256, 192), Image.Resampling.BOX)
    frames_are_told_apart_and_their_copies_found(photograph, 200)


@pytest.mark.parametrize("copies", [1, 4])
def test_an_image_is_found_beside_several_copies_of_it(copies: int) -> None:
    """They are no rivals of each other."""
    draw = np.random.default_rng(8)
    images = [scene(draw, (96, 72)) for _ in range(20)]
    ways: list[Callable[[Image.Image], Image.Image]] = [
        jpeg_30,
        darker,
        lambda image: image.resize((48, 36)),
        ImageOps.autocontrast,
    ]
    changes = ways[:copies]
    others = thumbnails([change(image) for change in changes for image in images])
    found = compare_uncropped(thumbnails(images), others).near_duplicates()
    assert [pair.original % 20 for pair in found if pair.index == pair.original % 20] == list(range(20))


@pytest.mark.parametrize("change", UNCROPPED, ids=lambda change: change.__name__)
def test_copies_that_are_not_cropped_are_found_by_the_uncropped_search_too(
    scenes: tuple[list[Image.Image], Thumbnails],
    items: tuple[list[Image.Image], Thumbnails],
    change: Change,
    tmp_path: Path,
) -> None:
    all_but_few_are_found(scenes, change, tmp_path / "scenes", compare_uncropped)
    all_but_few_are_found(items, change, tmp_path / "items", compare_uncropped)


def test_the_uncropped_search_finds_none_among_none() -> None:
    some = Thumbnails(np.zeros((2, SIDE, SIDE), dtype=np.uint8), np.full(2, SIDE, dtype=np.uint8))
    none = Thumbnails(some.pixels[:0], some.grain[:0])
    for images, others in ((some, none), (none, some), (some, some)):  # black images are similar to nothing
        assert compare_uncropped(images, others).near_duplicates() == []
    assert compare_within(some).near_duplicates() == compare_within(none).near_duplicates() == []


def test_flat_broken_and_tiny_sets_are_no_copies(tmp_path: Path) -> None:
    flat = Thumbnails(np.full((3, SIDE, SIDE), 90, dtype=np.uint8), np.full(3, SIDE, dtype=np.uint8))
    none = Thumbnails(flat.pixels[:0], flat.grain[:0])
    for images, others in ((flat, flat), (none, flat), (flat, none)):
        assert compare(images, others).near_duplicates() == []
    one = Thumbnails(np.asarray(noise_image(1, (SIDE, SIDE), "L"))[None], flat.grain[:1])
    (only,) = compare(one, one).near_duplicates()
    assert (only.index, only.original) == (0, 0) and only.similarity == pytest.approx(1, abs=1e-4)
    write_images(tmp_path / "some", 3)
    (tmp_path / "some" / "image001.png").write_bytes(b"no picture")
    stack = Thumbnails.of(find_images(tmp_path / "some"))
    assert stack.pixels.shape == (3, SIDE, SIDE) and not stack.pixels[1].any() and stack.pixels[0].std() > 5
    assert stack.grain.tolist() == [20, SIDE, 20]


def test_thumbnails_are_those_of_arrays_and_deep_images_too() -> None:
    values = np.random.default_rng(0).integers(0, 256, (2, 64, 64), dtype=np.uint8)
    stack = Thumbnails.of(ArrayImages(values, Path("noise"), np.arange(2))).pixels
    assert stack[0].tolist() == np.clip(values[0].reshape(32, 2, 32, 2).mean((1, 3)), 0, 255).astype(np.uint8).tolist()


def test_near_duplicates_within_a_set_are_found_once(tmp_path: Path) -> None:
    folder = write_images(tmp_path, 12)
    with Image.open(folder / "image003.png") as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "image099.png")
    images = Thumbnails.of(find_images(folder))
    (only,) = compare_within(images).pairs_within()
    assert (only.index, only.original) == (12, 3)
    (again,) = compare_within(images, crops=True).pairs_within()
    assert (again.index, again.original) == (12, 3)
