"""Copies that were planted among real images are found, and few others: saved anew, resized, mirrored, cropped."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from maelift.core.copies import SIDE, find_copies, thumbnails
from maelift.core.images import ArrayImages, find_images, idx_images
from maelift.core.scenes import FashionScenesConfig, fashion_scenes
from maelift.tests.support import noise_image, write_images
from numpy.typing import NDArray
from PIL import Image

Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def saved_anew(image: Image.Image, draw: np.random.Generator) -> Image.Image:
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


CHANGES: tuple[Change, ...] = (saved_anew, mirrored, half_the_size, larger, cropped, cropped_and_resized)


def planted(images: list[Image.Image], change: Change, folder: Path) -> NDArray[np.uint8]:
    """The thumbnails of changed images, which were written to a folder and read back."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(len(change.__name__))
    for number, image in enumerate(images):
        change(image, draw).save(folder / f"{number:04d}.png")
    return thumbnails(find_images(folder))


@pytest.fixture(scope="module")
def scenes(
    tmp_path_factory: pytest.TempPathFactory, fashion_mnist: Path
) -> tuple[list[Image.Image], NDArray[np.uint8]]:
    """Test scenes, and the thumbnails of a pool that has none of them."""
    folder = tmp_path_factory.mktemp("scenes") / "scenes"
    fashion_scenes(FashionScenesConfig(str(folder), str(fashion_mnist), train=1, val=1, test=150, pool=1500))
    test, pool = find_images(folder / "images" / "test"), find_images(folder / "pool")
    return [test.open(number) for number in range(len(test))], thumbnails(pool)  # type: ignore[misc]


def test_no_scene_is_taken_for_a_copy_of_another(
    scenes: tuple[list[Image.Image], NDArray[np.uint8]], tmp_path: Path
) -> None:
    images, pool = scenes
    own = planted(images, lambda image, draw: image, tmp_path / "own")
    assert len(find_copies(own, pool)) <= 0.01 * len(images)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_copies_of_scenes_are_found(
    scenes: tuple[list[Image.Image], NDArray[np.uint8]], change: Change, tmp_path: Path
) -> None:
    images, pool = scenes
    own = planted(images, lambda image, draw: image, tmp_path / "own")
    copies = planted(images, change, tmp_path / "copies")
    mixed = np.concatenate([pool, copies])
    found = {copy.number: copy.original - len(pool) for copy in find_copies(own, mixed)}
    right = sum(found.get(number) == number for number in range(len(images)))
    assert right >= 0.95 * len(images)
    assert sum(original != number for number, original in found.items()) <= 0.01 * len(images)


@pytest.mark.parametrize(
    ("change", "share"),
    [(saved_anew, 0.95), (mirrored, 0.95), (larger, 0.9), (cropped, 0.75), (cropped_and_resized, 0.75)],
)
def test_copies_of_centred_items_are_found_as_far_as_they_can_be_told_apart(
    fashion_mnist: Path, tmp_path: Path, change: Change, share: float
) -> None:
    """Fashion-MNIST's items are nearly alike: with thousands of T-shirts, one that is cropped may be like another."""
    test = idx_images(fashion_mnist / "t10k-images-idx3-ubyte.gz").subset(range(100))
    pool = idx_images(fashion_mnist / "train-images-idx3-ubyte.gz").subset(range(3000))
    known = thumbnails(pool)
    copies = planted([test.open(number) for number in range(100)], change, tmp_path / "copies")
    found = {
        copy.number: copy.original - len(known)
        for copy in find_copies(thumbnails(test), np.concatenate([known, copies]))
    }
    assert sum(found.get(number) == number for number in range(100)) >= share * 100
    assert len(find_copies(thumbnails(test), known)) <= 2


def test_flat_broken_and_tiny_sets_are_no_copies(tmp_path: Path) -> None:
    flat = np.full((3, SIDE, SIDE), 90, dtype=np.uint8)
    assert find_copies(flat, flat) == []
    assert find_copies(flat[:0], flat) == find_copies(flat, flat[:0]) == []
    one = np.asarray(noise_image(1, (SIDE, SIDE), "L"))[None]
    (only,) = find_copies(one, one)
    assert (only.number, only.original) == (0, 0) and only.likeness == pytest.approx(1, abs=1e-4)
    write_images(tmp_path / "some", 3)
    (tmp_path / "some" / "image001.png").write_bytes(b"no picture")
    stack = thumbnails(find_images(tmp_path / "some"))
    assert stack.shape == (3, SIDE, SIDE) and not stack[1].any() and stack[0].std() > 5


def test_thumbnails_are_those_of_arrays_and_deep_images_too() -> None:
    values = np.random.default_rng(0).integers(0, 256, (2, 64, 64), dtype=np.uint8)
    stack = thumbnails(ArrayImages(values, "noise", np.arange(2)))
    assert stack[0].tolist() == np.clip(values[0].reshape(32, 2, 32, 2).mean((1, 3)), 0, 255).astype(np.uint8).tolist()
