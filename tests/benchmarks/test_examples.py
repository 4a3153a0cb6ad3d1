"""Which test images are shown as won and lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from maelift.benchmarks.examples import SHOWN, won_and_lost
from maelift.benchmarks.results import pack_items, unpack_items
from maelift.core.data.classification import LabeledImages
from maelift.core.data.readers.folder import FolderImages
from maelift.core.data.readers.mnist_idx import ArrayImages
from maelift.core.data.segmentation import SegmentationImages
from maelift.tests.benchmarks.made_up import ARMS, part
from PIL import Image


def test_the_images_that_differ_most_are_shown() -> None:
    scores = {
        ("mae", 10): (0.5, 0.5),
        ("mae", 100): (0.5, 0.5),
        ("scratch", 10): (0.5, 0.5),
        ("scratch", 100): (0.5, 0.5),
    }
    ours = np.zeros((2, 20))
    ours[:, 3], ours[0, 5] = 1, 1  # image 3 won with both seeds, image 5 with one
    theirs = np.zeros((2, 20))
    theirs[:, 9] = 1
    rows = {"mae": ours, "scratch": theirs}
    made = part(scores)
    made = replace(made, cells=tuple(replace(cell, items=pack_items(rows[cell.arm][cell.seed])) for cell in made.cells))
    pixels = np.arange(20 * 16, dtype=np.uint8).reshape(20, 4, 4)
    images = LabeledImages(
        ArrayImages(pixels, Path("test"), np.arange(20)), tuple(range(20)), tuple(f"c{n}" for n in range(20))
    )
    shown = list(won_and_lost(made, images, (ARMS[0], ARMS[2]), "scratch"))
    assert [(one.won, one.name, one.outcome) for one in shown] == [
        (True, "test[3]", "right in 2 against 0 of 2 seeds"),
        (True, "test[5]", "right in 1 against 0 of 2 seeds"),
        (False, "test[9]", "right in 0 against 2 of 2 seeds"),
    ]
    assert {one.labels for one in shown} == {10} and shown[0].truth == "c3" and len(shown) <= 2 * SHOWN
    assert shown[0].picture.startswith("data:image/png;base64,")
    assert not list(
        won_and_lost(part(scores), images, (ARMS[0], ARMS[2]), "scratch")
    )  # nothing is known of single images


def test_of_a_segmentation_the_images_that_bring_most_of_the_difference_are_shown(tmp_path: Path) -> None:
    count = 8
    for number in range(count):
        Image.new("L", (6, 4), 30 * number).save(tmp_path / f"{number}.png")
    images = SegmentationImages(
        FolderImages(tmp_path, tuple(f"{number}.png" for number in range(count))),
        tuple(tmp_path / f"{number}.png" for number in range(count)),
        ("ground", "tree"),
        np.zeros(65536, dtype=np.int64),
        ((0, 1),) * count,
        ("",) * count,
    )
    rows = {"mae": np.full((2, count), 0.5), "scratch": np.full((2, count), 0.5)}
    rows["mae"][:, 2], rows["mae"][:, 6] = 0.9, (0.3, 0.4)
    made = part({("mae", 10): (0.5, 0.5), ("scratch", 10): (0.5, 0.5)}, "segment")
    made = replace(made, cells=tuple(replace(cell, items=pack_items(rows[cell.arm][cell.seed])) for cell in made.cells))
    shown = list(won_and_lost(made, images, (ARMS[0], ARMS[2]), "scratch"))
    assert [(one.task, one.won, one.name, one.truth, one.outcome) for one in shown] == [
        ("segment", True, "2.png", "ground, tree", "brings +5 of the +3.1 points of mIoU (mean of 2 seeds)"),
        ("segment", False, "6.png", "ground, tree", "brings −1.9 of the +3.1 points of mIoU (mean of 2 seeds)"),
    ]


def test_items_come_back_as_they_were_packed() -> None:
    values = np.random.default_rng(0).normal(size=50)
    assert np.allclose(unpack_items(pack_items(values)), values, rtol=1e-6)
    assert pack_items(None) == ""
