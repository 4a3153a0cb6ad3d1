"""What the model sees: batch.png shows the first batch with its labels and changes no result; how often each class occurs."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import maelift
import numpy as np
import pytest
import torch
from maelift.core.data.classification import LabeledImages, MultiLabeledImages
from maelift.core.data.composite import Display
from maelift.core.data.detection import Objects
from maelift.core.data.labeled_dataset import Splits
from maelift.core.models.encoder_spec import EncoderSpec
from maelift.core.models.preprocessing import Preprocessing
from maelift.core.training import batch_sheet
from maelift.core.training.batch_sheet import BATCH_FILE, sample_levels, shown_ends, write_batch_sheet
from maelift.core.training.loader import Batch, Batches
from maelift.tests.support import TINY, encoder_file, noise_image, random_encoder, run_maelift, write_images
from maelift.transfer.classification.task import ClassificationTask
from maelift.transfer.detection.task import DetectionTask
from maelift.transfer.label_counts import label_counts
from maelift.transfer.metrics import Scores
from maelift.transfer.report import write_summary
from maelift.transfer.segmentation.task import SegmentationTask
from maelift.transfer.task import Task
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file

KEYS: dict[str, Any] = {
    "pretrain": {
        "model": "vit_nano",
        "image_size": 16,
        "patch_size": 4,
        "decoder": {"embed_dim": 16, "depth": 1, "num_heads": 2},
        "batch_size": 8,
        "epochs": 2,
        "holdout": 4,
        "evaluations": 1,
        "workers": 0,
        "lr": 1e-3,
    },
    "classify": {"val": 6, "test": 6, "batch_size": 6, "steps": 4, "evaluations": 1, "workers": 0},
}
SPEC = EncoderSpec(image_size=(16, 16), patch_size=4, embed_dim=32, depth=1, num_heads=2)


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two classes, one brighter than the other."""
    root = tmp_path_factory.mktemp("classes")
    for name, first in (("dark", 0), ("light", 100)):
        write_images(root / name, 12, first=first)
    return root


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder_file(tmp_path_factory.mktemp("encoder") / "encoder.safetensors", random_encoder(SPEC))


def tiles(path: Path, count: int) -> list[NDArray[np.uint8]]:
    """The pictures on a sheet in four columns, all of one size."""
    sheet = np.asarray(Image.open(path).convert("RGB"))
    across, down = min(4, count), -(-count // 4)
    height, width = (sheet.shape[0] + 4) // down, (sheet.shape[1] + 4) // across
    corners = [(height * (number // 4), width * (number % 4)) for number in range(count)]
    return [sheet[top : top + height - 4, left : left + width - 4] for top, left in corners]


def first_batches(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """The micro-batches that the loader gives for the first step, as a run gets them from now on."""
    found: list[Batch] = []
    steps = Batches.steps

    def recorded(self: Batches, first: int, last: int) -> Any:
        for together in steps(self, first, last):
            if together[0].step == 0:
                found.extend(together)
            yield together

    monkeypatch.setattr(Batches, "steps", recorded)
    return found


def test_the_sheet_of_a_pretraining_has_the_pixels_of_its_first_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "photos", 30)
    batches = first_batches(monkeypatch)
    out = tmp_path / "run"
    maelift.pretrain(data=str(tmp_path / "photos"), out=str(out), **KEYS["pretrain"])
    (batch,) = batches
    shown = tiles(out / BATCH_FILE, 8)
    for pixels, tile in zip(batch.pixels, shown, strict=True):
        scale = len(tile) // 16
        assert scale == 7 and (tile[::scale, ::scale].transpose(2, 0, 1) == pixels.numpy()).all()
    assert "What the model sees" in (out / "summary.html").read_text()
    assert "random crops of 20 % to 100 % of the area, resized to 16×16 pixels" in (out / "summary.html").read_text()


def test_the_sheet_changes_no_weight(
    classes: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def both(name: str) -> tuple[Path, Path]:
        pretraining, transfer = tmp_path / f"{name}-pretrain", tmp_path / f"{name}-transfer"
        maelift.pretrain(data=str(classes), out=str(pretraining), **KEYS["pretrain"])
        maelift.transfer("classify", encoder=str(encoder), data=str(classes), out=str(transfer), **KEYS["classify"])
        return pretraining / "encoder.safetensors", transfer / "model.safetensors"

    shown = both("shown")
    assert all((path.parent / BATCH_FILE).is_file() for path in shown)
    for module in ("maelift.pretrain.train", "maelift.transfer.finetune"):
        monkeypatch.setattr(f"{module}._sheet_writer", lambda *anything: None)
    for with_sheet, without in zip(shown, both("not shown"), strict=True):
        assert not (without.parent / BATCH_FILE).exists()
        left, right = load_file(with_sheet), load_file(without)
        assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.slow
def test_a_plan_names_the_rarest_class(classes: Path, encoder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(classes, data)
    write_images(data / "rare", 5, first=200)
    words = [f"data={data}", f"encoder={encoder}", f"out={tmp_path / 'run'}", "val=6", "test=6"]
    planned = run_maelift("transfer", "classify", *words, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert re.search(r"^rarest class +rare, [1-5] images to train on$", planned.stdout, re.M)


@pytest.mark.slow
def test_a_command_says_where_the_sheet_is(classes: Path, tmp_path: Path) -> None:
    words = ["pretrain", f"data={classes}", f"out={tmp_path / 'run'}", *TINY, "epochs=1"]
    planned = run_maelift(*words, "--dry-run")
    assert (
        planned.returncode == 0 and "random crops of 20 % to 100 %" in planned.stdout and BATCH_FILE in planned.stdout
    )
    assert not (tmp_path / "run").exists()
    done = run_maelift(*words)
    assert done.returncode == 0 and done.stderr.count(str(tmp_path / "run" / BATCH_FILE)) == 1


def batch_of(pixels: NDArray[Any], **target: NDArray[Any]) -> Batch:
    made = {name: torch.from_numpy(value) for name, value in target.items()}
    return Batch(torch.from_numpy(pixels)[None], torch.tensor([0]), 0, (0, 1), (made,))


class _Drawing:
    """What tasks read when they draw a sample."""

    def __init__(self, **train: Any) -> None:
        self.encoder = random_encoder(SPEC)
        self.splits = Splits(*[type("Images", (), train)()] * 3)
        self.display = Display()

    sample_picture = Task.sample_picture


def test_a_classifier_s_sample_has_its_class_below_it() -> None:
    def drawn(name: str) -> NDArray[np.uint8]:
        task: Any = _Drawing(label_text=lambda images, index: name)
        return np.asarray(ClassificationTask.draw_sample(task, batch_of(np.full((3, 16, 16), 100, np.uint8)), 0))

    cat, dog = drawn("cat"), drawn("dog")
    side = cat.shape[1]
    assert (cat[:side] == 100).all() and (cat[:side] == dog[:side]).all()
    assert cat.shape == dog.shape and (cat[side:] != dog[side:]).any() and cat[side:].min() < 100


def test_a_detector_s_sample_has_its_boxes_and_masks() -> None:
    box, mask = np.array([[2, 3, 9, 12]], np.float32), np.zeros((1, 16, 16), bool)
    mask[0, 3:12, 2:9] = True
    batch = batch_of(np.full((3, 16, 16), 100, np.uint8), boxes=box, labels=np.array([1]), masks=mask)
    drawn: Any = DetectionTask.draw_sample(_Drawing(classes=("cat", "dog")), batch, 0)  # type: ignore[arg-type]
    pixels = np.asarray(drawn.convert("RGB"), dtype=int)
    scale = drawn.width // 16
    colour = np.array([0x56, 0xB4, 0xE9])  # of the second class
    assert abs(pixels[int(8 * scale), 2 * scale] - colour).max() < 4
    inside, outside = pixels[10 * scale, 5 * scale], pixels[14 * scale, 14 * scale]
    assert (outside == 100).all() and (inside != 100).any()


def test_a_segmentor_s_sample_has_its_mask() -> None:
    mask = np.full((16, 16), 255, np.uint8)
    mask[:8] = 1
    batch = batch_of(np.full((3, 16, 16), 100, np.uint8), mask=mask)
    task = _Drawing(classes=("ground", "tree"), ignore_index=255)
    drawn: Any = SegmentationTask.draw_sample(task, batch, 0)  # type: ignore[arg-type]
    pixels = np.asarray(drawn.convert("RGB"))
    scale = drawn.width // 16
    assert (pixels[12 * scale, 8 * scale] == 100).all() and (pixels[4 * scale, 8 * scale] != 100).any()


def test_values_of_more_than_8_bits_are_stretched_and_gaps_gray() -> None:
    pixels = torch.linspace(500, 1500, 16 * 16).reshape(1, 16, 16).clone()
    pixels[0, 0, 0] = torch.nan
    found = sample_levels(pixels, shown_ends(Preprocessing(("a",), (0.5,), (0.5,), (0.0, 4095.0), 16)))
    assert found.shape == (16, 16, 1) and found[0, 0] == 128 and found.min() == 0 and found.max() == 255
    plain = sample_levels(torch.full((1, 2, 2), 7, dtype=torch.uint8), shown_ends(Preprocessing.default(1)))
    assert (plain == 7).all()


def test_a_sheet_shows_sixteen_samples_at_most_and_none_where_there_is_nothing_to_see(tmp_path: Path) -> None:
    batch = Batch(torch.zeros(10, 3, 4, 4), torch.arange(10), 0, (0, 10))
    seen: list[int] = []

    def draw(batch: Batch, place: int) -> Image.Image:
        seen.append(place)
        return noise_image(place, (600, 300))

    assert write_batch_sheet([batch, batch], draw, tmp_path) == tmp_path / BATCH_FILE
    assert seen == [*range(10), *range(6)]
    with Image.open(tmp_path / BATCH_FILE) as sheet:
        assert sheet.size == (4 * (192 + 4) - 4, 4 * (384 + 4) - 4)
    assert write_batch_sheet([batch], lambda batch, place: None, tmp_path / "nothing") is None


@pytest.mark.parametrize("size", [20, 400])
def test_a_large_sheet_is_a_jpeg_in_a_page(size: int, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / BATCH_FILE)
    found = batch_sheet.sheet_for_page(tmp_path)
    assert found is not None and found[1] == ("png" if size == 20 else "jpeg")
    assert batch_sheet.sheet_for_page(tmp_path / "nowhere") is None


def counts_of(*splits: Any) -> Any:
    """The table of splits that are counted as tasks do by default."""
    task: Any = SimpleNamespace(label_counts=lambda images: Task.label_counts(None, images))  # type: ignore[arg-type]
    return label_counts(task, Splits(*splits))


def images_of(labels: Sequence[Any], classes: Sequence[str], several: bool = False) -> Any:
    kind = MultiLabeledImages if several else LabeledImages
    return kind(None, tuple(labels), tuple(classes))  # type: ignore[arg-type]


@pytest.mark.parametrize("several", [False, True])
def test_labels_are_counted_in_each_split(several: bool) -> None:
    names, generator = ("a", "b <i>", "never"), np.random.default_rng(0)
    labels = [
        [tuple(sorted({int(label) for label in generator.integers(0, 2, 2)})) for _ in range(count)]
        for count in (30, 9, 4)
    ]
    if not several:
        labels = [[one[0] for one in split] for split in labels]  # type: ignore[misc]
    splits = [images_of(split, names, several) for split in labels]
    found = counts_of(*splits)
    assert found.header == ("class", "train images", "val images", "test images")
    flat = [Counter(label for one in split for label in (one if several else (one,))) for split in labels]
    expected = {name: tuple(str(count[number]) for count in flat) for number, name in enumerate(names)}
    assert {name: numbers for name, _, numbers in found.rows} == expected
    shares = [flat[0][number] / max(flat[0].values()) for number in range(len(names))]
    assert [share for _, share, _ in found.rows] == sorted(shares, reverse=True)


def test_of_many_classes_the_most_frequent_and_the_rarest_are_shown(tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(40)]
    split = images_of([number for number in range(40) for _ in range(number)], names)
    found = counts_of(split, split, split)
    assert [name for name, *_ in found.rows] == [f"class {n}" for n in (*range(39, 19, -1), *range(4, -1, -1))]
    assert "the 20 most frequent and the 5 rarest of 40 classes" in found.caption
    page = write_summary(tmp_path, title="x", config={}, scores=Scores("test", 1, {}), labels=found).read_text()
    assert page.count('class="bars" aria-hidden="true"><span') == 25 and "width: 100.0%" in page


def test_objects_are_counted_without_crowds() -> None:
    def objects(labels: list[int], crowd: list[bool]) -> Objects:
        count = len(labels)
        return Objects(
            np.zeros((count, 4), np.float32),
            np.array(labels, np.int64),
            np.array(crowd, bool),
            np.zeros(count),
            (),
            (8, 8),
        )

    images: Any = type("Images", (), {"classes": ("a", "b", "c")})()
    images.objects = (objects([0, 0, 2], [False, False, True]), objects([], []), objects([0, 1], [False, False]))
    found = DetectionTask.label_counts(None, images)  # type: ignore[arg-type]
    assert found == {"objects": [3, 1, 0], "images": [2, 1, 0]}
