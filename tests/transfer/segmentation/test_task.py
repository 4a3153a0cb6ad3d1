"""Segmentation as people run it: what is learned by both engines, gone on with after a kill, cropped, ignored, refused."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from maelift.core.data.segmentation_reader import read_segmentation
from maelift.core.distributed import Ranks
from maelift.core.errors import MaeliftError
from maelift.core.models.encoder import Encoder
from maelift.core.models.encoder_file import Provenance, read_encoder, save_encoder
from maelift.core.models.encoder_spec import EncoderSpec
from maelift.core.models.preprocessing import Preprocessing
from maelift.core.seeding import stream
from maelift.tests.support import framework, has_checkpoint, run_maelift, start_maelift
from maelift.transfer.finetune import run as run_transfer
from maelift.transfer.init_weights import fresh_encoder
from maelift.transfer.result import TransferResult
from maelift.transfer.segmentation.augmentation import distort_colors, pad_to, random_crop
from maelift.transfer.segmentation.config import SegmentConfig
from maelift.transfer.segmentation.model import ENCODER_PREFIX, Segmentor
from maelift.transfer.segmentation.task import SegmentationTask
from maelift.transfer.trained_model import load_model
from PIL import Image
from safetensors.torch import load_file

SPEC = EncoderSpec(image_size=(24, 32), patch_size=8, embed_dim=32, depth=4, num_heads=2)
CLASSES = ("ground", "brick", "leaf")
COLOURS = {1: (200, 60, 40), 2: (50, 170, 60)}
KEYS: dict[str, Any] = {
    "recipe": "small",
    "batch_size": 8,
    "steps": 60,
    "lr": 5e-3,
    "evaluations": 2,
    "workers": 0,
    "scale": [0.8, 1.3],
    "head": "conv",
}
"""Keys that make a fine-tuning of seconds."""
ONE = Ranks(0, 1, torch.device("cpu"))


pytestmark = pytest.mark.usefixtures("one_thread")


def scene(seed: int, size: tuple[int, int]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A brick and a leaf on noisy ground, by their colours, and the mask with an ignored rim."""
    generator = np.random.default_rng(seed)
    pixels = generator.normal(110, 25, (*size, 3))
    mask = np.zeros(size, np.uint8)
    for number, colour in COLOURS.items():
        height, width = generator.integers(size[0] // 4, size[0] // 2), generator.integers(size[1] // 4, size[1] // 2)
        top, left = generator.integers(0, size[0] - height), generator.integers(0, size[1] - width)
        pixels[top : top + height, left : left + width] = colour + generator.normal(0, 25, (height, width, 3))
        mask[top : top + height, left : left + width] = number
    mask[0] = 255
    return pixels.clip(0, 255).astype(np.uint8), mask


def write_scenes(root: Path, **counts: int) -> Path:
    """Scenes of several sizes in the layout images/SPLIT, masks/SPLIT."""
    sizes = [(24, 32), (37, 29), (20, 51), (24, 32)]
    for split, count in counts.items():
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for number in range(count):
            pixels, mask = scene([*counts].index(split) * 1000 + number, sizes[number % len(sizes)])
            Image.fromarray(pixels).save(root / "images" / split / f"{number}.png")
            Image.fromarray(mask).save(root / "masks" / split / f"{number}.png")
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return root


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"), train=24, val=8, test=8)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    save_encoder(fresh_encoder(SPEC, Preprocessing.default(3), 0), path, Provenance("test"))
    return path


def run(data: Path, out: Path, **keys: Any) -> TransferResult:
    return run_transfer(SegmentConfig.resolve({"data": data, "out": out, **KEYS, **keys}))


def task_of(data: Path, encoder: Path, **keys: Any) -> SegmentationTask:
    config = SegmentConfig.resolve({"data": data, "out": "none", "encoder": encoder, **KEYS, **keys})
    return SegmentationTask(config, read_encoder(encoder).encoder, read_segmentation(data), ONE)


def results_of(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "test.json").read_text())
    return {name: value for name, value in content.items() if name != "seconds"}


@pytest.mark.parametrize("head", ["linear", "conv", "upernet"])
def test_images_and_masks_in_segmentor_out(head: str, scenes: Path, encoder: Path, tmp_path: Path) -> None:
    result = run(scenes, tmp_path / "out", encoder=encoder, head=head)
    assert result.test.count == 8 and result.metric == "val/mIoU"
    assert list(result.test.metrics) == ["mIoU", "aAcc", "mAcc", "mDice"]
    found = result.test.metrics["mIoU"]
    assert found is not None and found > 0.5, "an untrained one, and one that says ground everywhere, has 0.25 or less"
    assert set(result.test.per_class) == set(CLASSES)
    model = load_model(result.model)
    images = sorted((scenes / "images" / "test").iterdir())
    masks = [np.asarray(Image.open(scenes / "masks" / "test" / path.name)) for path in images]
    for prediction, mask in zip(model.predict(images), masks, strict=True):
        assert prediction.mask.shape == mask.shape
    again = task_of(scenes, encoder).score(model, read_segmentation(scenes).test, "test")
    assert again == result.test
    assert "summary.html" in {path.name for path in (tmp_path / "out").iterdir()}


@pytest.mark.slow
def test_mmseg_s_model_learns_too(scenes: Path, encoder: Path, tmp_path: Path) -> None:
    framework("mmseg")
    result = run(scenes, tmp_path, encoder=encoder, engine="mmseg", head="upernet", lr=2e-3)
    found = result.test.metrics["mIoU"]
    assert found is not None and found > 0.5
    assert any(name.startswith("network.auxiliary_head.") for name in load_file(result.model))
    again = task_of(scenes, encoder, engine="mmseg").score(
        load_model(result.model), read_segmentation(scenes).test, "test"
    )
    assert again == result.test


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", pytest.param("mmseg", marks=pytest.mark.slow)])
def test_a_killed_run_ends_with_the_figures_of_one_that_was_not(
    engine: str, scenes: Path, encoder: Path, tmp_path: Path
) -> None:
    if engine == "mmseg":
        framework("mmseg")
    keys = {
        **{"encoder": encoder, "engine": engine, "head": "upernet", "drop_path": 0.1, "ema_decay": 0.9},
        **{"distort": True, "steps": 40, "evaluations": 4, "checkpoint_minutes": 1e-6},
    }
    run(scenes, tmp_path / "whole", **keys)
    out = tmp_path / "killed"
    resolved = [f"{key}={value}" for key, value in {"data": scenes, "out": out, **KEYS, **keys}.items()]
    process = start_maelift("transfer", "segment", *resolved)
    end = time.monotonic() + 120
    while not has_checkpoint(out):
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL and not (out / "test.json").exists()
    on = run_maelift("transfer", "segment", *resolved)
    assert on.returncode == 0, on.stderr
    assert results_of(out) == results_of(tmp_path / "whole")
    ours, theirs = load_file(out / "model.safetensors"), load_file(tmp_path / "whole" / "model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("engine", ["torch", "mmseg"])
def test_lower_layers_of_either_engine_learn_more_slowly(engine: str, scenes: Path, encoder: Path) -> None:
    if engine == "mmseg":
        framework("mmseg")
    task = task_of(scenes, encoder, engine=engine, head="upernet", layer_decay=0.5, lr=1e-3)
    model = task.build_model()
    scales = {name: group["lr_scale"] for group in task.optimizer(model).param_groups for name in group["names"]}
    assert scales[f"{ENCODER_PREFIX}pos_embed"] == scales[f"{ENCODER_PREFIX}patch_embed.proj.weight"] == 0.5**5
    assert [scales[f"{ENCODER_PREFIX}blocks.{block}.attn.qkv.weight"] for block in range(4)] == [
        0.5**4, 0.5**3, 0.5**2, 0.5
    ]  # fmt: skip
    assert {scale for name, scale in scales.items() if not name.startswith(ENCODER_PREFIX)} == {1.0}
    assert len(scales) == len(list(model.named_parameters()))


def test_two_encoders_of_a_seed_share_their_head(scenes: Path, encoder: Path) -> None:
    task = task_of(scenes, encoder)
    other = SegmentationTask(task.config, fresh_encoder(SPEC, Preprocessing.default(3), 1), task.splits, ONE)
    states = []
    for one in (task, other):
        torch.manual_seed(5)
        states.append(one.build_model().state_dict())
    heads = [name for name in states[0] if not name.startswith(ENCODER_PREFIX)]
    assert heads and all(torch.equal(states[0][name], states[1][name]) for name in heads)
    first = f"{ENCODER_PREFIX}patch_embed.proj.weight"
    assert not torch.equal(states[0][first], states[1][first])


def test_samples_have_the_crop_s_size_and_depend_on_their_draws_only(scenes: Path, encoder: Path) -> None:
    task = task_of(scenes, encoder, scale=[0.4, 2.5], distort=True, cat_max_ratio=0.75)
    for index in range(8):
        draws = stream(0, "test", index).random(task.draws)
        sample, again = task.sample(index, draws), task.sample(index, draws)
        assert sample.pixels.shape == (3, 24, 32) and sample.target["mask"].shape == (24, 32)
        assert sample.pixels.dtype == np.uint8 and set(np.unique(sample.target["mask"])) <= {0, 1, 2, 255}
        np.testing.assert_array_equal(sample.pixels, again.pixels)
        np.testing.assert_array_equal(sample.target["mask"], again.target["mask"])


@pytest.mark.parametrize("turn", [False, True])
@pytest.mark.parametrize("flip", [0.2, 0.8])
@pytest.mark.parametrize("factor", [0.0, 0.31, 1.0])
def test_image_and_mask_stay_in_register(factor: float, flip: float, turn: bool, tmp_path: Path, encoder: Path) -> None:
    root = tmp_path / "data"
    for kind in ("images", "masks"):
        (root / kind / "train").mkdir(parents=True)
    mask = np.kron(np.random.default_rng(0).integers(0, 3, (4, 6)), np.ones((16, 16))).astype(np.uint8)
    for number in range(4):
        Image.fromarray(mask).save(root / "masks" / "train" / f"{number}.png")
        Image.fromarray(np.repeat(mask[:, :, None] * 100, 3, axis=2)).save(root / "images" / "train" / f"{number}.png")
    turned = {"turn": True, "image_size": [24, 24]} if turn else {}
    config = {
        "data": root,
        "out": "none",
        "encoder": encoder,
        **KEYS,
        **turned,
        "scale": [0.5, 2.0],
        "val": 1,
        "test": 1,
    }
    splits = read_segmentation(root, val=1, test=1)
    task = SegmentationTask(SegmentConfig.resolve(config), read_encoder(encoder).encoder, splits, ONE)
    draws = stream(0, "test").random(task.draws)
    draws[:2] = factor, flip
    sample = task.sample(0, draws)
    target = sample.target["mask"].astype(int)
    counted = target != 255
    agree = np.rint(sample.pixels[0] / 100).astype(int)[counted] == target[counted]
    assert counted.any() and agree.mean() > 0.9, "only the borders of squares are blurred"


def test_a_crop_is_drawn_again_while_one_class_takes_too_much_of_it() -> None:
    mask = np.zeros((10, 30), np.uint8)
    mask[:, 25:], mask[:, 20:25] = 1, 255
    draws = np.array([0.0, 0.0, 0.0, 0.5, 0.0, 0.999, 0.0, 0.0])  # only ground, ground, the end, only ground
    (left, _, right, _), part = random_crop(mask, (10, 30), (10, 12), draws, 0.75, 255)
    assert (left, right) == (18, 30) and set(np.unique(part)) == {0, 1, 255}
    assert random_crop(mask, (10, 30), (10, 12), draws, 1.0, 255)[0][0] == 0
    assert random_crop(mask, (10, 30), (10, 12), draws, 0.1, 255)[0][0] == 0, "the last try is taken as it is"


def test_small_images_are_padded_with_the_mean_and_ignored_pixels() -> None:
    pixels = pad_to(np.full((3, 2, 5), 7, np.uint8), (4, 6), (123.7, 116.3, 103.5))
    assert pixels[:, :2, :5].min() == pixels[:, :2, :5].max() == 7
    assert pixels[:, 3, 5].tolist() == [124, 116, 104]


def test_distortion_changes_colours_within_its_ranges() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 9, 9), dtype=np.uint8)
    none = np.full(9, 0.9)
    np.testing.assert_array_equal(distort_colors(pixels, none), pixels)
    bright = none.copy()
    bright[:2] = 0.1, 1.0
    np.testing.assert_array_equal(distort_colors(pixels, bright), np.clip(pixels.astype(int) + 32, 0, 255))
    contrast = none.copy()
    contrast[2:5] = 0.1, 0.0, 0.1
    np.testing.assert_array_equal(distort_colors(pixels, contrast), pixels // 2)
    gray = np.repeat(pixels[:1], 3, axis=0)
    hue = none.copy()
    hue[5:9] = 0.1, 1.0, 0.1, 0.0
    np.testing.assert_array_equal(distort_colors(gray, hue), gray)  # gray has neither saturation nor hue
    assert not np.array_equal(distort_colors(pixels, hue), pixels)


def test_a_crop_of_ignored_pixels_gives_a_loss_of_zero(tmp_path: Path, encoder: Path) -> None:
    data = write_scenes(tmp_path / "data", train=8, val=4, test=4)
    for path in (data / "masks" / "train").iterdir():
        Image.fromarray(np.full(Image.open(path).size[::-1], 255, np.uint8)).save(path)
    result = run(data, tmp_path / "out", encoder=encoder, steps=3)
    assert result.test.metrics["mIoU"] is not None


def test_validation_masks_without_a_pixel_that_counts_are_refused(tmp_path: Path, encoder: Path) -> None:
    data = write_scenes(tmp_path / "data", train=8, val=4, test=4)
    for path in (data / "masks" / "val").iterdir():
        Image.fromarray(np.full(Image.open(path).size[::-1], 255, np.uint8)).save(path)
    with pytest.raises(MaeliftError, match="no pixel of the validation masks counts"):
        run(data, tmp_path / "out", encoder=encoder, steps=1)


def test_big_images_are_judged_in_windows(scenes: Path, encoder: Path) -> None:
    judged = {}
    for keys in ({"short_side": 0}, {"short_side": 48}, {"short_side": 48, "inference": "whole"}):
        task = task_of(scenes, encoder, stride=[7, 11], **keys)
        torch.manual_seed(0)
        model = task.build_model().eval()
        judged[str(keys)] = task.score(model, task.splits.val, "val").metrics["mIoU"]
    assert len(set(judged.values())) == 3 and None not in judged.values()


@pytest.mark.slow
def test_gray_images_go_with_colour_encoders_and_the_other_way_round(tmp_path: Path) -> None:
    data = write_scenes(tmp_path / "data", train=8, val=4, test=4)
    for path in data.glob("images/*/*.png"):
        Image.open(path).convert("L").save(path)
    for channels in (1, 3):
        file = tmp_path / f"{channels}.safetensors"
        spec = EncoderSpec((24, 32), 8, channels, embed_dim=32, depth=2, num_heads=2)
        save_encoder(Encoder(spec), file, Provenance("test"))
        result = run(data, tmp_path / str(channels), encoder=file, steps=2)
        model = load_model(result.model)
        assert isinstance(model, Segmentor)
        assert model.predict([np.zeros((9, 13), np.uint8) if channels == 1 else np.zeros((9, 13, 3), np.uint8)])


@pytest.mark.parametrize(
    "keys, expected",
    [
        ({"scale": [2.0, 1.0]}, "scale"),
        ({"cat_max_ratio": 0.0}, "cat_max_ratio"),
        ({"stride": 40}, "stride"),
        ({"head": "linear", "engine": "mmseg"}, "head"),
        ({"batch_size": 1, "engine": "mmseg"}, "batch_size"),
        ({"short_side": -1}, "short_side"),
        ({"head": "unet"}, "head"),
        ({"layout": "cityscapes"}, "gtFine"),
    ],
)
def test_keys_that_do_not_fit_are_refused(
    keys: dict[str, Any], expected: str, scenes: Path, encoder: Path, tmp_path: Path
) -> None:
    with pytest.raises(MaeliftError, match=expected) as caught:
        run(scenes, tmp_path / "out", encoder=encoder, **keys)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("init", ["encoder", "supervised", "scratch"])
def test_every_start_has_its_published_recipe(init: str, encoder: Path) -> None:
    config = SegmentConfig.resolve({"data": "d", "out": "o", "encoder": encoder, "init": init})
    assert config.head == "upernet" and config.scale == (0.5, 2.0) and config.schedule == "linear"
    due = {"encoder": (1e-4, 0.65, 100), "supervised": (6e-5, 1.0, 127), "scratch": (1.6e-4, 1.0, 300)}[init]
    assert (config.peak_lr, config.layer_decay, config.epochs) == pytest.approx(due)


@pytest.mark.parametrize("init", ["encoder", "supervised", "scratch"])
def test_the_small_recipes_fit_both_engines(init: str, encoder: Path) -> None:
    for engine in ("torch", "mmseg"):
        keys = {"data": "d", "out": "o", "encoder": encoder, "init": init, "recipe": "small", "engine": engine}
        config = SegmentConfig.resolve(keys)
        assert config.architecture().engine == engine and config.layer_decay == (1.0 if init == "scratch" else 0.75)
