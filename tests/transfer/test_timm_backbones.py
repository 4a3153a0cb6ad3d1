"""Models of timm as starts: 24 architectures through classification, detection and segmentation; weights, names and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import maelift
import numpy as np
import pytest
import torch
from maelift.cli import main
from maelift.core.models.encoder_file import Provenance, read_backbone, save_encoder
from maelift.core.models.preprocessing import Preprocessing
from maelift.core.models.timm_backbone import TimmBackbone, TimmMaps
from maelift.core.models.timm_spec import TimmSpec
from maelift.core.training.tracker import Tracker
from maelift.tests.support import eventually, has_checkpoint, run_maelift, run_ranks, start_maelift
from maelift.transfer.families import family_of
from maelift.transfer.init_weights import fresh_encoder
from maelift.transfer.trained_model import load_model
from PIL import Image
from safetensors.torch import load_file

SIDE = 64
VIT: dict[str, Any] = {"embed_dim": 48, "depth": 4, "num_heads": 3}
SWIN: dict[str, Any] = {"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8]}
CONVNEXT: dict[str, Any] = {"dims": [8, 16, 32, 64], "depths": [1, 1, 1, 1]}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit_tiny_patch16_224": ("vit", VIT),
    "deit3_small_patch16_224": ("vit", VIT),  # layer scale
    "vit_small_patch14_reg4_dinov2": ("vit", {**VIT, "patch_size": 16}),  # registers
    "vit_small_patch16_dinov3": ("vit", VIT),  # rotary positions
    "vit_base_patch16_siglip_224": ("vit", VIT),  # attention pooling
    "vit_base_patch16_clip_224": ("vit", VIT),  # a norm before the blocks
    "eva02_tiny_patch14_224": ("vit", {**VIT, "patch_size": 16}),
    "beit_base_patch16_224": ("vit", VIT),
    "swin_tiny_patch4_window7_224": ("swin", SWIN),
    "swinv2_tiny_window8_256": ("swin", SWIN),
    "hiera_tiny_224": ("swin", {"embed_dim": 12, "stages": [1, 1, 1, 1]}),
    "convnext_atto": ("convnext", CONVNEXT),
    "convnextv2_atto": ("convnext", CONVNEXT),
    "resnet10t": ("resnet", {}),
    "resnetv2_50": ("resnet", {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128], "stem_chs": 8}),
    "regnety_002": ("resnet", {}),
    "tf_efficientnet_lite0": ("efficientnet", {}),
    "mobilenetv3_small_050": ("efficientnet", {}),
    "mobilenetv4_conv_small_035": ("efficientnet", {}),
    "coatnet_pico_rw_224": ("swin", {}),
    "mambaout_femto": ("convnext", {}),
    "poolformer_s12": ("convnext", {}),
    "pvt_v2_b0": ("swin", {}),
}
"""Architectures of timm with their family and the arguments that make them small."""
FEW = ("vit_small_patch16_dinov3", "swin_tiny_patch4_window7_224", "convnext_atto", "mobilenetv3_small_050")
"""One of each way through the code."""
NAMES = [pytest.param(name, marks=() if name in FEW else pytest.mark.slow) for name in ARCHITECTURES]
SMALL: dict[str, Any] = {"recipe": "small", "batch_size": 8, "evaluations": 2, "workers": 0, "image_size": SIDE}
HEADS: dict[str, Any] = {
    **{"pyramid_channels": 16, "head_channels": 16, "fc_dim": 32, "box_convs": 1, "mask_convs": 1},
    **{"proposals": 20, "box_samples": 16, "region_samples": 16},
}
pytestmark = pytest.mark.usefixtures("one_thread")


def spec_of(name: str, channels: int = 3) -> TimmSpec:
    return TimmSpec(name, (SIDE, SIDE), channels, ARCHITECTURES[name][1])


def backbone(name: str, channels: int = 3) -> TimmBackbone:
    made = fresh_encoder(spec_of(name, channels), Preprocessing.default(channels), 0)
    assert isinstance(made, TimmBackbone)
    return made.eval()


def write_backbone(name: str, path: Path) -> Path:
    save_encoder(backbone(name), path, Provenance("test"))
    return path


def pictures(folder: Path, count: int = 36) -> tuple[Path, Path, Path]:
    """Bright squares and dark discs on noise: class folders, COCO boxes with masks, and images with masks."""
    generator = np.random.default_rng(0)
    classes, coco, masks = (folder / name for name in ("classes", "coco", "masks"))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for part in ("images", "masks"):
        (masks / part).mkdir(parents=True)
    (coco / "images").mkdir(parents=True)
    for number in range(count):
        kind = number % 2
        pixels = generator.normal(110, 25, (SIDE, SIDE, 3)).clip(0, 255).astype(np.uint8)
        side = int(generator.integers(SIDE // 3, SIDE // 2))
        x, y = (int(place) for place in generator.integers(0, SIDE - side, 2))
        pixels[y : y + side, x : x + side] = (230, 60, 40) if kind else (20, 40, 200)
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[y : y + side, x : x + side] = kind + 1
        name = f"{number:03d}.png"
        (classes / ("bright", "dark")[kind]).mkdir(parents=True, exist_ok=True)
        for target in (classes / ("bright", "dark")[kind], coco / "images", masks / "images"):
            Image.fromarray(pixels).save(target / name)
        Image.fromarray(mask).save(masks / "masks" / name)
        images.append({"id": number, "file_name": name, "width": SIDE, "height": SIDE})
        corners = [x, y, x + side, y, x + side, y + side, x, y + side]
        annotations.append(
            {
                **{"id": number + 1, "image_id": number, "category_id": kind + 1, "iscrowd": 0},
                **{"bbox": [x, y, side, side], "area": side * side, "segmentation": [corners]},
            }
        )
    categories = [{"id": 1, "name": "bright"}, {"id": 2, "name": "dark"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (coco / "annotations.json").write_text(json.dumps(content))
    return classes, coco, masks


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The loss of every step."""
    found: list[float] = []
    progress = Tracker.progress

    def record(self: Tracker, step: int, loss: float) -> None:
        found.append(loss)
        progress(self, step, loss)

    monkeypatch.setattr(Tracker, "progress", record)
    return found


def fell(losses: list[float]) -> bool:
    """Whether the loss of the last steps is below that of the first ones; forgets them."""
    last, first = np.mean(losses[-4:]), np.mean(losses[:4])
    losses.clear()
    return bool(last < first)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_features_are_timm_s_own(name: str) -> None:
    made, images = backbone(name, channels=5), torch.randn(2, 5, SIDE, SIDE)
    with torch.inference_mode():
        own = made.net.forward_intermediates(images, output_fmt="NCHW", intermediates_only=True)
        found = made.maps(images, range(len(made.levels)))
        copied = TimmMaps(made, range(len(made.levels))).eval()(images)
        features = made.forward_features(images)
        assert all(torch.equal(one, other) for one, other in zip(own, found, strict=True))
        assert all(torch.equal(one, other) for one, other in zip(own, copied, strict=True))
        assert features.head is not None and torch.equal(features.head, made.net(images))
    for level, plane in zip(made.levels, own, strict=True):
        assert plane.shape[1:] == (level.channels, SIDE // level.reduction, SIDE // level.reduction)
    maps = TimmMaps(made, range(len(made.levels)))
    sum(plane.sum() for plane in maps(images)).backward()
    assert all(
        parameter.grad is not None for parameter in maps.parameters()
    )  # none is left over, as several processes need
    assert features.tokens.shape == (2, made.num_tokens, made.embed_dim)
    assert features.grid[0] * features.grid[1] == made.num_tokens
    assert made.pooled_dim("head") == features.head.shape[1]
    layers = [made.layer_of(parameter) for parameter, _ in made.named_parameters()]
    assert min(layers) == 0 and made.num_layers - 1 <= max(layers) <= made.num_layers and made.num_layers >= 4


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_family_follows_from_the_layers(name: str) -> None:
    assert family_of(spec_of(name)) == ARCHITECTURES[name][0]


@pytest.mark.parametrize("name", NAMES)
def test_classification_learns_and_is_read_back_to_the_bit(
    name: str, data: tuple[Path, Path, Path], tmp_path: Path, losses: list[float]
) -> None:
    start = write_backbone(name, tmp_path / "start.safetensors")
    keys = {**SMALL, "encoder": start, "steps": 12, "val": 8, "test": 8}
    maelift.transfer("classify", data=data[0], out=tmp_path / "out", **keys)
    assert fell(losses)
    model, images = load_model(tmp_path / "out" / "model.safetensors"), sorted(data[0].glob("*/*.png"))[:4]
    tuned = read_backbone(tmp_path / "out" / "encoder.safetensors").encoder
    stored = model.encoder.file_state()
    assert all(torch.equal(value, stored[key]) for key, value in tuned.file_state().items())
    assert model.predict(images) == load_model(tmp_path / "out" / "model.safetensors").predict(images)
    probe = {**keys, "encoder": tmp_path / "out" / "encoder.safetensors", "method": "linear", "solver": "lbfgs"}
    maelift.transfer("classify", data=data[0], out=tmp_path / "probe", **{**probe, "steps": None})
    assert load_model(tmp_path / "probe" / "model.safetensors").pooling == "head"


@pytest.mark.parametrize("name", NAMES)
def test_detection_learns_and_is_read_back_to_the_bit(
    name: str, data: tuple[Path, Path, Path], tmp_path: Path, losses: list[float]
) -> None:
    start = write_backbone(name, tmp_path / "start.safetensors")
    keys = {**SMALL, **HEADS, "encoder": start, "steps": 10, "val": 8, "test": 8}
    maelift.transfer("detect", data=data[1], out=tmp_path / "out", **keys)
    assert fell(losses)
    images = sorted((data[1] / "images").glob("*.png"))[:2]
    first, again = (load_model(tmp_path / "out" / "model.safetensors").predict(images) for _ in range(2))
    assert all(np.array_equal(one.boxes, other.boxes) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_segmentation_learns_and_is_read_back_to_the_bit(
    name: str, data: tuple[Path, Path, Path], tmp_path: Path, losses: list[float]
) -> None:
    segmented(name, "upernet", data[2], tmp_path)
    assert fell(losses)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["conv", "linear"])
@pytest.mark.parametrize("name", FEW)
def test_the_other_heads_learn_too(
    name: str, head: str, data: tuple[Path, Path, Path], tmp_path: Path, losses: list[float]
) -> None:
    segmented(name, head, data[2], tmp_path)
    assert fell(losses)


def segmented(name: str, head: str, data: Path, folder: Path) -> None:
    """A segmentor is trained, and read back to the bit."""
    start = write_backbone(name, folder / "start.safetensors")
    keys = {**SMALL, "encoder": start, "steps": 10, "val": 8, "test": 8, "head_channels": 16, "head": head}
    maelift.transfer("segment", data=data, out=folder / "out", **keys)
    images = sorted((data / "images").glob("*.png"))[:2]
    first, again = (load_model(folder / "out" / "model.safetensors").predict(images) for _ in range(2))
    assert all(np.array_equal(one.mask, other.mask) for one, other in zip(first, again, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("task", "place"), [("classify", 0), ("detect", 1), ("segment", 2)])
def test_two_processes_train_a_model_with_batch_norm(
    task: str, place: int, data: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    start = write_backbone("mobilenetv3_small_050", tmp_path / "start.safetensors")
    keys = {**SMALL, **(HEADS if task == "detect" else {}), "steps": 4, "evaluations": 1, "val": 8, "test": 8}
    words = [f"{key}={json.dumps(value)}" for key, value in keys.items() if key != "recipe"]
    done = run_ranks(
        2,
        "transfer",
        task,
        f"data={data[place]}",
        f"encoder={start}",
        f"out={tmp_path / 'out'}",
        "recipe=small",
        *words,
    )
    assert done.returncode == 0, done.stderr
    assert load_model(tmp_path / "out" / "model.safetensors").predict(sorted(data[2].glob("images/*.png"))[:1])


def test_a_finished_run_is_found_and_a_plan_names_the_family(
    data: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["init=scratch", "model=timm:convnext_atto", "image_size=32", f"data={data[0]}", f"out={tmp_path / 'out'}"]
    assert main(["transfer", "classify", *words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert (
        "recipes/classify_scratch.yaml, changed by families/convnext.yaml" in said and "strides 4, 8, 16, 32 px" in said
    )
    more = ["steps=2", "batch_size=8", "evaluations=1", "workers=0", "val=8", "test=8"]
    for _ in range(2):  # the second time it is there already
        assert main(["transfer", "classify", *words, *more]) == 0
    assert main(["transfer", "classify", *words, *more, "--evaluate", "val"]) == 0


@pytest.mark.slow
def test_a_killed_run_ends_with_the_weights_and_the_batch_statistics_of_another(
    data: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    start = write_backbone("mobilenetv3_small_050", tmp_path / "start.safetensors")
    keys = {"recipe": "small", "steps": 60, "batch_size": 8, "evaluations": 2, "workers": 0, "val": 8, "test": 8}
    words = ["transfer", "classify", f"data={data[0]}", f"encoder={start}", "image_size=32", "checkpoint_minutes=0.001"]
    words += [f"{key}={value}" for key, value in keys.items()]
    process = start_maelift(*words, f"out={tmp_path / 'killed'}")
    eventually(lambda: has_checkpoint(tmp_path / "killed"))
    process.kill()
    process.wait()
    assert not (tmp_path / "killed" / "test.json").exists()
    for name in ("killed", "whole"):
        done = run_maelift(*words, f"out={tmp_path / name}")
        assert done.returncode == 0, done.stderr
    killed, whole = (load_file(tmp_path / name / "model.safetensors") for name in ("killed", "whole"))
    assert all(torch.equal(value, whole[name]) for name, value in killed.items())
    assert any(name.endswith("running_mean") for name in killed)
