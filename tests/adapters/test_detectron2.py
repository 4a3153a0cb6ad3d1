"""detectron2: its unmodified tool trains the export, its zoo's config loads the weights, and what would go wrong is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import maelift
import numpy as np
import pytest
import torch
from maelift.adapters import detectron2 as adapter
from maelift.adapters import detectron2_certify
from maelift.adapters.detectron2_config import recipe
from maelift.api_keys import ExportKeys
from maelift.core.data.readers.mnist_idx import idx_file, read_idx
from maelift.core.errors import CheckpointError, ConfigError, DataError, MaeliftError
from maelift.core.models.encoder import Encoder
from maelift.core.models.encoder_file import load_encoder, read_encoder
from maelift.core.models.encoder_spec import EncoderSpec
from maelift.core.models.preprocessing import Preprocessing
from maelift.core.models.tensor_files import read_tensors
from maelift.tests.support import (
    ROOT,
    encoder_file,
    environment,
    framework,
    one_line_error,
    random_encoder,
    run_maelift,
    run_page,
    start_program,
)
from PIL import Image
from torch import Tensor, nn

detectron2 = framework("detectron2")
cv2 = framework("cv2")

SLIM = [
    "model.roi_heads.mask_head.conv_dims=[32]",
    "model.roi_heads.batch_size_per_image=16",
    "model.proposal_generator.post_nms_topk=[100,50]",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
]
"""What a user with a small CPU appends: heads that take a tenth of a second."""
SLIM_BOXES = {
    "mask_rcnn": ["model.roi_heads.box_head.conv_dims=[32]"],
    "cascade_mask_rcnn": [f"model.roi_heads.box_heads.{number}.conv_dims=[32]" for number in range(3)],
}

ZOO_LIKE = """
from functools import partial

import detectron2.data.transforms as T
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.data.datasets import register_coco_instances
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate

register_coco_instances("mine", {}, "DATA/labels.json", "DATA")
model = model_zoo.get_config("common/models/mask_rcnn_vitdet.py").model
train = model_zoo.get_config("common/train.py").train
train.init_checkpoint = "detectron2://ImageNetPretrained/MAE/mae_pretrain_vit_base.pth?matching_heuristics=True"
dataloader = model_zoo.get_config("common/data/coco.py").dataloader
dataloader.train.dataset.names = "mine"
dataloader.train.mapper.image_format = "RGB"
dataloader.train.mapper.augmentations = [L(T.FixedSizeCrop)(crop_size=(64, 64), pad=False)]
dataloader.test.mapper.augmentations = [L(T.ResizeShortestEdge)(short_edge_length=1024, max_size=1024)]
dataloader.pop("evaluator")
lr_multiplier = model_zoo.get_config("common/coco_schedule.py").lr_multiplier_1x
optimizer = model_zoo.get_config("common/optim.py").AdamW
optimizer.params.lr_factor_func = partial(get_vit_lr_decay_rate, num_layers=12, lr_decay_rate=0.7)
optimizer.params.overrides = {"pos_embed": {"weight_decay": 0.0}}
"""
"""A config such as detectron2's repository has for ViTDet, from the same parts of its package."""


def tools() -> Path:
    """The folder of detectron2's training tools: beside the package, as its repository and our installation have it."""
    package = Path(detectron2.__file__).parent
    found = [package.parent / name for name in ("tools", "detectron2-tools")]
    return next(folder for folder in found if (folder / "lazyconfig_train_net.py").is_file())


def write_scenes(
    folder: Path, source: Path, count: int, *, first: int = 0, mode: str = "L", masks: str = "polygon"
) -> Path:
    """``count`` scenes of 64 pixels with two Fashion-MNIST items each, and their COCO-style annotations, labels.json.

    ``masks``: "polygon", "rle" or "none".
    """
    from pycocotools import mask as coco_mask

    images, labels = (read_idx(idx_file(source, "train", content)) for content in ("images", "labels"))  # type: ignore[arg-type]
    folder.mkdir(parents=True)
    categories = [{"id": 3, "name": "top"}, {"id": 7, "name": "other"}]
    pictures: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(first, first + count):
        canvas = np.zeros((64, 64), np.uint8)
        for item, (row, column) in ((2 * number, (2, 2)), (2 * number + 1, (34, 32))):
            canvas[row : row + 28, column : column + 28] = images[item]
            mask = np.zeros_like(canvas)
            mask[row : row + 28, column : column + 28] = images[item] > 20
            shapes, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            shape = max(shapes, key=cv2.contourArea)
            annotation: dict[str, Any] = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": 3 if labels[item] in (0, 2, 4, 6) else 7,
                "bbox": list(cv2.boundingRect(shape)),
                "area": float(cv2.contourArea(shape)),
                "iscrowd": 0,
            }
            if masks == "polygon":
                annotation["segmentation"] = [shape.flatten().tolist()]
            if masks == "rle":
                run = coco_mask.encode(np.asfortranarray(mask))
                annotation["segmentation"] = {"size": run["size"], "counts": run["counts"].decode()}
            annotations.append(annotation)
        picture = Image.fromarray(canvas)
        if mode == "RGBA":
            picture = Image.merge("RGBA", [picture, picture, picture, Image.fromarray(255 - canvas // 2)])
        picture.convert(mode).save(folder / f"{number}.png")
        pictures.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 64})
    content = {"images": pictures, "annotations": annotations, "categories": categories}
    (folder / "labels.json").write_text(json.dumps(content))
    return folder


def tool(config: Path, *words: object, output: Path) -> list[str]:
    """The words that train a LazyConfig with detectron2's own tool, slim heads, on the CPU: its file, and the others."""
    return [
        str(tools() / "lazyconfig_train_net.py"),
        "--config-file",
        str(config),
        *map(str, words),
        *SLIM,
        *SLIM_BOXES.get(config.stem, SLIM_BOXES["mask_rcnn"]),
        "train.device=cpu",
        "train.amp.enabled=False",
        f"train.output_dir={output}",
    ]


def run_tool(config: Path, *words: object, output: Path) -> str:
    """Run the tool; what it printed."""
    file, *others = tool(config, *words, output=output)
    started = start_program(Path(file), *others, framework="detectron2")
    out, err = started.communicate(timeout=240)
    assert started.returncode == 0, out[-3000:] + err[-3000:]
    return out


def assert_kept(exported: Path, output: Path) -> None:
    """The weights that the tool ended with at a rate of 0 are those that were exported."""
    written = torch.load(exported / "weights.pth", weights_only=True)["model"]
    trained, _ = read_tensors(output / "model_final.pth")
    assert all(torch.equal(trained[name], tensor) for name, tensor in written.items())


def records(output: Path) -> list[dict[str, float]]:
    """What the tool wrote down."""
    return [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory, fashion_mnist: Path) -> Path:
    """Gray scenes to train and to evaluate on."""
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root / "train", fashion_mnist, 32)
    write_scenes(root / "val", fashion_mnist, 6, first=32)
    return root


@pytest.fixture(scope="module")
def pretrained(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of gray images, really pretrained on the scenes, if only for a few steps."""
    out = tmp_path_factory.mktemp("pretrained")
    decoder = ["decoder.embed_dim=16", "decoder.depth=1", "decoder.num_heads=2"]
    keys = [
        "model=vit_nano",
        "image_size=64",
        "patch_size=8",
        "epochs=4",
        "batch_size=8",
        "lr=1e-3",
        "workers=0",
        "holdout=4",
    ]
    done = run_maelift("pretrain", f"data={scenes / 'train'}", f"out={out}", "evaluations=1", *keys, *decoder)
    assert done.returncode == 0, done.stderr
    return out / "encoder.safetensors"


@pytest.fixture(scope="module")
def bundle(scenes: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``maelift export`` writes for the scenes."""
    out = tmp_path_factory.mktemp("export") / "detector"
    keys = ["image_size=64", "out_channels=32", "batch_size=2", "epochs=1"]
    data = [f"{split}_json={scenes / split / 'labels.json'}" for split in ("train", "val")]
    done = run_maelift("export", pretrained, "--to", "detectron2", f"out={out}", *keys, *data)
    assert done.returncode == 0, done.stderr
    assert done.stderr in ("", "export: loading torch\n")  # nothing of detectron2's warnings
    assert "certificate passed: 39 tensors" in done.stdout and f"--config-file {out}/mask_rcnn.py" in done.stdout
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", SLIM_BOXES)
def test_the_tool_trains_the_bundle_and_goes_on_after_being_killed(name: str, bundle: Path, tmp_path: Path) -> None:
    config = bundle / f"{name}.py"
    schedule = [
        "train.max_iter=60",
        "train.checkpointer.period=20",
        "train.log_period=1",
        "optimizer.lr=0.002",
        "train.seed=1",
    ]
    file, *words = tool(config, *schedule, "train.eval_period=0", output=tmp_path)
    killed = start_program(Path(file), *words, framework="detectron2")
    deadline, named = time.monotonic() + 240, tmp_path / "last_checkpoint"
    while killed.poll() is None and time.monotonic() < deadline and not (named.is_file() and named.read_text()):
        time.sleep(0.05)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL, killed.said()[1][-3000:]
    begun = [record["iteration"] for record in records(tmp_path) if "total_loss" in record]
    assert len(begun) < 60
    said = run_tool(config, "--resume", *schedule, output=tmp_path)
    assert "Starting training from iteration 20" in said or "Starting training from iteration 40" in said
    losses = {int(record["iteration"]): record["total_loss"] for record in records(tmp_path) if "total_loss" in record}
    first, last = (np.mean([losses[n] for n in range(start, start + 10)]) for start in (0, 50))
    assert sorted(losses)[-1] == 59 and last < 0.95 * first
    assert {"loss_mask", "loss_rpn_cls", "bbox/AP50", "segm/AP50"} <= {
        key for record in records(tmp_path) for key in record
    }


@pytest.mark.slow
def test_the_tool_begins_cascade_with_the_pretrained_weights(bundle: Path, tmp_path: Path) -> None:
    schedule = ["optimizer.lr=0", "train.max_iter=1", "train.log_period=1", "train.eval_period=0"]
    command = [sys.executable, *tool(bundle / "cascade_mask_rcnn.py", *schedule, output=tmp_path)]  # as users have it
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=240)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert {"loss_cls_stage2", "loss_mask"} <= {key for record in records(tmp_path) for key in record}
    assert_kept(bundle, tmp_path)


@pytest.mark.slow
def test_a_zoo_config_loads_the_weights_with_the_words_that_the_export_prints(
    tmp_path: Path, fashion_mnist: Path
) -> None:
    write_scenes(tmp_path / "data", fashion_mnist, 4, mode="RGB")
    spec = EncoderSpec(image_size=(64, 64), patch_size=16, embed_dim=64, depth=4, num_heads=4, class_token=False)
    preprocessing = Preprocessing(("red", "green", "blue"), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    torch.manual_seed(0)
    file = encoder_file(tmp_path / "encoder.safetensors", Encoder(spec, preprocessing=preprocessing))
    done = run_maelift(
        "export", file, "--to", "detectron2", f"out={tmp_path / 'detector'}", "image_size=64", "num_classes=2"
    )
    assert done.returncode == 0, done.stderr
    lines = [line.strip().strip("'") for line in done.stdout.splitlines()]
    words = [line for line in lines if line.startswith(("train.", "model.")) and " = " not in line]
    assert "model.pixel_mean=[25.5,51.0,76.5]" in words and "model.backbone.net.pretrain_use_cls_token=False" in words
    config = tmp_path / "mine.py"
    config.write_text(ZOO_LIKE.replace("DATA", str(tmp_path / "data")))
    small = ["optimizer.lr=0", "train.max_iter=1", "train.eval_period=0", "dataloader.train.total_batch_size=1"]
    small += ["model.backbone.square_pad=64", "model.roi_heads.mask_head.conv_norm=''"]
    run_tool(config, *words, *small, output=tmp_path / "run")
    assert_kept(tmp_path / "detector", tmp_path / "run")
    done = run_maelift(
        "certify", config, file, "--trust", f"overrides=[{','.join(json.dumps(word) for word in words)}]"
    )
    assert done.returncode == 0 and "certificate passed: 51 tensors" in done.stdout, done.stderr
    with pytest.raises(CheckpointError, match="after loading no checkpoint at all"):
        detectron2_certify.certify_config(config, read_encoder(file), [*words, "train.init_checkpoint=''"])


def test_the_tool_finds_the_zoo_heads_of_vitdet_where_nothing_is_overridden(bundle: Path) -> None:
    """The bundle's detector is the packaged ViTDet model but for the encoder, the levels and the sizes."""
    from detectron2 import model_zoo
    from detectron2.config import LazyConfig
    from omegaconf import OmegaConf

    zoo = model_zoo.get_config("common/models/mask_rcnn_vitdet.py").model
    ours = LazyConfig.load(str(bundle / "mask_rcnn.py")).model
    fitted = (
        "backbone. pixel_ input_format num_classes in_features in_channels scales sizes strides input_shape canonical"
    )

    def flat(value: Any, prefix: str = "") -> dict[str, str]:
        if isinstance(value, dict):
            return {key: text for name in value for key, text in flat(value[name], f"{prefix}.{name}").items()}
        return {prefix: str(list(value) if isinstance(value, tuple) else value)}

    one, other = (flat(OmegaConf.to_container(model, resolve=True)) for model in (zoo, ours))
    checked = [key for key in one if not any(part in key for part in fitted.split())]
    assert len(checked) > 40
    assert {key: one[key] for key in checked} == {key: other.get(key) for key in checked}


SHAPES: dict[str, Callable[[], Encoder]] = {
    "nano": lambda: random_encoder("vit_nano"),
    "gray": lambda: random_encoder("vit_nano", channels=1),
    "four channels": lambda: random_encoder("vit_nano", channels=4),
    "five channels": lambda: random_encoder("vit_nano", channels=5),
    "not square": lambda: random_encoder("vit_nano", image_size=(24, 40)),
    "windows": lambda: Encoder(EncoderSpec((64, 64), 4, embed_dim=32, depth=6, num_heads=4)),
    "without class token": lambda: Encoder(
        EncoderSpec((32, 32), 8, embed_dim=32, depth=5, num_heads=2, class_token=False)
    ),
    "huge's patch": lambda: Encoder(EncoderSpec((42, 42), 14, embed_dim=32, depth=2, num_heads=2)).with_patch_size(16),
    "small": lambda: random_encoder("vit_small", image_size=64),
    "base": lambda: random_encoder("vit_base", image_size=48),
}


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_the_backbone_that_detectron2_builds_is_the_encoder(shape: str, tmp_path: Path) -> None:
    encoder = SHAPES[shape]()
    file = encoder_file(tmp_path / "encoder.safetensors", encoder)
    keys: ExportKeys = {"out_channels": 16, **({"window_size": 0} if shape == "base" else {})}
    result = maelift.export(str(file), "detectron2", str(tmp_path / "out"), **keys)
    certificate = json.loads((tmp_path / "out" / "certificate.json").read_text())
    assert certificate["passed"] and len(certificate["keys"]["used"]) == 3 + 12 * encoder.spec.depth
    assert ("cls_token" in certificate["keys"]["unused"]) == encoder.spec.class_token
    windows = {size["window"] for size in certificate["sizes"]}
    assert windows == ({0, 16} if shape in ("windows", "without class token", "small") else {0})
    readable = image_format_of(tmp_path / "out" / "mask_rcnn.py")
    assert readable == {1: "L", 3: "RGB", 4: "RGBA"}.get(encoder.spec.channels)
    assert ("detectron2 reads no images of 5 channels" in result.summary()) == (readable is None)


def image_format_of(config: Path) -> Any:
    from detectron2.config import LazyConfig

    return LazyConfig.load(str(config)).dataloader.train.mapper.image_format


def without_a_bias(folder: Path) -> None:
    change_weights(folder, lambda state: state.pop("backbone.net.blocks.1.mlp.fc1.bias"))


def transposed_grid(folder: Path) -> None:
    def transpose(state: dict[str, Tensor]) -> None:
        positions = state["backbone.net.pos_embed"]
        swapped = positions[:, 1:].reshape(1, 8, 8, -1).transpose(1, 2).flatten(1, 2)
        state["backbone.net.pos_embed"] = torch.cat([positions[:, :1], swapped], dim=1)

    change_weights(folder, transpose)


def class_position_kept(folder: Path) -> None:
    """The rows of the positions moved by one, as where a class token's is taken for a patch's."""

    def move(state: dict[str, Tensor]) -> None:
        state["backbone.net.pos_embed"] = state["backbone.net.pos_embed"].roll(1, dims=1)

    change_weights(folder, move)


def relative_positions(folder: Path) -> None:
    def add(state: dict[str, Tensor]) -> None:
        state["backbone.net.blocks.2.attn.rel_pos_h"] = torch.linspace(-3, 3, 127)[:, None].expand(127, 16)

    change_weights(folder, add)


def names_of_timm(folder: Path) -> None:
    content = torch.load(folder / "weights.pth", weights_only=True)["model"]
    torch.save(
        {"model": {name.removeprefix("backbone.net."): value for name, value in content.items()}},
        folder / "weights.pth",
    )


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    content = torch.load(folder / "weights.pth", weights_only=True)
    change(content["model"])
    torch.save(content, folder / "weights.pth")


def change_text(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / "mask_rcnn.py").read_text()
        assert old in text
        (folder / "mask_rcnn.py").write_text(text.replace(old, new))

    return change


MUTATIONS: dict[str, tuple[Callable[[Path], None], str]] = {
    "eps": (
        change_text("norm_eps = 1e-06", "norm_eps = 1e-05"),
        "eps in the LayerNorms: 1e-05, but the encoder's is 1e-06",
    ),
    "bias": (without_a_bias, "blocks.1.mlp.fc1.bias"),
    "grid": (transposed_grid, "pos_embed"),
    "class token": (class_position_kept, "pos_embed"),
    "relative positions": (relative_positions, "relative positions that aren't zero"),
    "blue first": (change_text('image_format = "RGB"', 'image_format = "BGR"'), "images are read as BGR"),
    "mean": (change_text("pixel_mean = [123.675", "pixel_mean = [103.53"), "pixel_mean is [103.53, 116.28, 103.53]"),
    "heads": (
        change_text("num_heads, mlp_ratio = 64, 3, 4", "num_heads, mlp_ratio = 64, 3, 2"),
        "heads of attention: 2",
    ),
    "names": (names_of_timm, "holds none of the encoder's tensors"),
}


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An encoder of random weights, and its export."""
    root = tmp_path_factory.mktemp("nano")
    file = encoder_file(root / "encoder.safetensors", random_encoder("vit_nano", seed=3))
    maelift.export(str(file), "detectron2", str(root / "out"), out_channels=16)
    return file, root / "out"


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_whatever_loads_wrongly_is_told(mutation: str, nano: tuple[Path, Path], tmp_path: Path) -> None:
    file, folder = nano
    for name in ("weights.pth", "mask_rcnn.py"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    change, expected = MUTATIONS[mutation]
    change(tmp_path)
    if mutation == "names":
        with pytest.raises(CheckpointError, match=expected):
            detectron2_certify.certify_config(tmp_path / "mask_rcnn.py", read_encoder(file))
        return
    certificate = detectron2_certify.certify_config(tmp_path / "mask_rcnn.py", read_encoder(file))
    assert any(expected in failure for failure in certificate.failures), certificate.failures
    assert any("images differ by" in failure or "last_feat differs by" in failure for failure in certificate.failures)


def test_an_antialiased_resize_of_positions_fails(nano: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from detectron2.modeling.backbone import vit

    def antialiased(positions: Tensor, class_token: bool, size: tuple[int, int]) -> Tensor:
        plane = positions[:, 1:].reshape(1, 8, 8, -1).permute(0, 3, 1, 2)
        return nn.functional.interpolate(plane, size=size, mode="bicubic", antialias=True).permute(0, 2, 3, 1)

    monkeypatch.setattr(vit, "get_abs_pos", antialiased)
    certificate = detectron2_certify.certify_config(nano[1] / "mask_rcnn.py", read_encoder(nano[0]))
    assert any("last_feat differs" in failure for failure in certificate.failures)


def test_a_config_that_does_not_fit_is_refused_in_one_line(nano: tuple[Path, Path], tmp_path: Path) -> None:
    file, folder = nano
    refused = run_maelift(
        "certify", folder / "mask_rcnn.py", file, "--trust", "overrides=[dataloader.train.mapper.image_format=BGR]"
    )
    one_line_error(refused, "images are read as BGR, but the encoder takes RGB")
    saved = tmp_path / "config.yaml"
    saved.write_text("model: {_target_: os.getcwd}\n")
    with pytest.raises(MaeliftError, match="not a yacs config"):
        detectron2_certify.certify_config(saved, read_encoder(file))
    broken = tmp_path / "broken.py"
    broken.write_text("model = nothing\n")
    with pytest.raises(MaeliftError, match=r"broken\.py: .*NameError: name 'nothing'"):
        detectron2_certify.certify_config(broken, read_encoder(file))


def test_weights_are_read_back_as_the_encoder(nano: tuple[Path, Path]) -> None:
    ours, read = load_encoder(nano[0]), load_encoder(nano[1] / "weights.pth", num_heads=4)
    assert torch.equal(*(encoder.get_parameter("blocks.2.attn.qkv.weight") for encoder in (ours, read)))
    assert torch.equal(ours.pos_embed[:, 1:], read.pos_embed[:, read.spec.num_prefix_tokens :])


@pytest.mark.parametrize(
    ("spec", "keys", "expected"),
    [
        (EncoderSpec((56, 56), 14, embed_dim=32, depth=1, num_heads=2), {}, "patch_size=14: expected a power of two"),
        (EncoderSpec((36, 36), 6, embed_dim=32, depth=1, num_heads=2), {}, "resampled: patch_size=8"),
        (
            EncoderSpec((32, 32), 8, embed_dim=32, depth=5, num_heads=2),
            {"window_size": 7, "image_size": 512},
            "[504,504]",
        ),
        (EncoderSpec((32, 32), 8, embed_dim=32, depth=1, num_heads=2), {"image_size": 72}, "nearest are 64 and 80"),
        (
            EncoderSpec((32, 32), 8, embed_dim=32, depth=1, num_heads=2),
            {"image_size": 100},
            "multiples of the patch size 8",
        ),
        (EncoderSpec((32, 32), 8, embed_dim=32, depth=1, num_heads=2), {"batch_size": 0}, "batch_size=0"),
        (EncoderSpec((32, 32), 8, embed_dim=32, depth=1, num_heads=2), {"val_json": "x.json"}, "train_json with it"),
    ],
)
def test_sizes_that_cannot_work_are_refused(
    spec: EncoderSpec, keys: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    file = encoder_file(tmp_path / "encoder.safetensors", Encoder(spec))
    with pytest.raises(ConfigError) as raised:
        maelift.export(str(file), "detectron2", str(tmp_path / "out"), **keys)
    assert expected in str(raised.value) and not (tmp_path / "out").exists()


def test_patches_of_14_pixels_are_resampled_on_demand(tmp_path: Path) -> None:
    spec = EncoderSpec((56, 56), 14, embed_dim=32, depth=1, num_heads=2)
    file = encoder_file(tmp_path / "encoder.safetensors", Encoder(spec))
    maelift.export(str(file), "detectron2", str(tmp_path / "out"), patch_size=16, image_size=64, out_channels=16)
    certificate = detectron2_certify.certify_config(
        tmp_path / "out" / "mask_rcnn.py", read_encoder(file), step_seconds=0
    )
    assert certificate.passed and certificate.sizes[0].image_size == (64, 64)


def test_data_that_cannot_be_trained_on_are_refused(nano: tuple[Path, Path], scenes: Path, tmp_path: Path) -> None:
    file, _ = nano
    content = json.loads((scenes / "train" / "labels.json").read_text())
    broken = tmp_path / "labels.json"

    def refused(expected: str, kind: type[MaeliftError] = DataError, **keys: Any) -> None:
        with pytest.raises(kind) as raised:
            maelift.export(str(file), "detectron2", str(tmp_path / "out"), **keys)
        assert expected in str(raised.value)

    broken.write_text("{}")
    refused("not COCO-style annotations", train_json=str(broken))
    broken.write_text(json.dumps(content))
    refused("no such image. Give train_images", train_json=str(broken))
    broken.write_text(json.dumps({**content, "annotations": []}))
    refused("nothing to train on", train_json=str(broken), train_images=str(scenes / "train"))
    good = str(scenes / "train" / "labels.json")
    broken.write_text(json.dumps({**content, "categories": content["categories"][:1]}))
    refused("category ids 3 are not those", train_json=good, val_json=str(broken), val_images=str(scenes / "train"))
    refused("at least the 2 of", ConfigError, train_json=good, num_classes=1)
    missing = run_maelift("export", file, "--to", "detectron2", f"out={tmp_path / 'out'}", "train_json=nowhere.json")
    one_line_error(missing, "nowhere.json")


@pytest.mark.parametrize(("mode", "masks"), [("RGBA", "rle"), ("L", "none")])
def test_four_channels_run_length_masks_and_boxes_alone(
    mode: str, masks: str, tmp_path: Path, fashion_mnist: Path
) -> None:
    """A step of training on the config's own loader, and its own evaluation."""
    from detectron2.config import LazyConfig, instantiate
    from detectron2.evaluation import inference_on_dataset

    write_scenes(tmp_path / "data", fashion_mnist, 4, mode=mode, masks=masks)
    file = encoder_file(tmp_path / "encoder.safetensors", random_encoder("vit_nano", channels=len(mode), image_size=32))
    labels = str(tmp_path / "data" / "labels.json")
    keys: ExportKeys = {"image_size": 64, "out_channels": 32, "batch_size": 2, "train_json": labels, "val_json": labels}
    maelift.export(str(file), "detectron2", str(tmp_path / "out"), **keys)
    slim = [word for word in SLIM if masks != "none" or "mask_head" not in word]
    cfg = LazyConfig.apply_overrides(LazyConfig.load(str(tmp_path / "out" / "mask_rcnn.py")), slim)
    cfg = LazyConfig.apply_overrides(LazyConfig.load(str(tmp_path / "out" / "mask_rcnn.py")), slim)  # registers once
    model = instantiate(cfg.model).cpu()
    batch = next(iter(instantiate(cfg.dataloader.train)))
    assert batch[0]["image"].shape[0] == len(mode)
    with detectron2_storage():
        losses = model(batch)
    assert ("loss_mask" in losses) == (masks != "none")
    sum(losses.values()).backward()
    assert model.backbone.net.patch_embed.proj.weight.grad.abs().sum() > 0
    found = inference_on_dataset(model, instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator))
    assert "AP50" in found["bbox"]


def detectron2_storage() -> Any:
    from detectron2.utils.events import EventStorage

    return EventStorage()


def test_the_pyramid_of_the_bundle_loses_nothing_of_an_image(bundle: Path, tmp_path: Path) -> None:
    """detectron2's own drops the border of images that the patches don't divide, and cuts larger ones than its square."""
    from detectron2.config import LazyConfig, instantiate

    cfg = LazyConfig.load(str(bundle / "mask_rcnn.py"))
    model = instantiate(cfg.model).cpu().eval()
    mapper = instantiate(cfg.dataloader.test.mapper)
    for height, width in ((41, 100), (100, 41), (13, 60), (200, 199)):
        Image.fromarray(np.full((height, width), 200, np.uint8)).save(tmp_path / "image.png")
        image = mapper({"file_name": str(tmp_path / "image.png")})["image"]
        assert max(image.shape[1:]) <= 64
        batch = model.preprocess_image([{"image": image}])
        assert batch.tensor.shape[-2:] == (64, 64) and batch.image_sizes == [image.shape[1:]]
        last = batch.tensor[0, 0, image.shape[1] - 1, image.shape[2] - 1]
        assert torch.isclose(last, (200 - model.pixel_mean.flatten()[0]) / model.pixel_std.flatten()[0])


@pytest.mark.parametrize("size", [(70, 45), (67, 131), (13, 9)])
def test_the_backbone_in_python_pads_instead_of_cutting(size: tuple[int, int], pretrained: Path) -> None:
    from detectron2.config import LazyConfig  # noqa: F401
    from detectron2.modeling import SimpleFeaturePyramid
    from detectron2.structures import ImageList

    backbone = adapter.vit_backbone(pretrained, image_size=64, out_channels=16).eval()
    image = torch.randn(1, *size)
    changed = image.clone()
    changed[:, -1, -1] += 5

    def features(pyramid: Any, picture: Tensor) -> Tensor:
        constraints = pyramid.padding_constraints
        batch = ImageList.from_tensors([picture], pyramid.size_divisibility, padding_constraints=constraints)
        assert all(side % 8 == 0 for side in batch.tensor.shape[-2:]) or type(pyramid) is SimpleFeaturePyramid
        with torch.no_grad():
            return pyramid(batch.tensor)["p3"]  # type: ignore[no-any-return]

    assert not torch.equal(features(backbone, image), features(backbone, changed))
    for padded in (0, 64):  # the two ways in which detectron2's own loses the corner
        own = {"top_block": None, "norm": "LN", "square_pad": padded}
        stock = SimpleFeaturePyramid(backbone.net, "last_feat", 16, (1.0,), **own).eval()
        lost = torch.equal(features(stock, image), features(stock, changed))
        assert lost == (padded == 0 or max(size) > 64)


@pytest.mark.parametrize(("patch", "levels"), [(16, "p2 p3 p4 p5 p6"), (8, "p1 p2 p3 p4 p5"), (2, "p0 p1 p2 p3")])
def test_levels_anchors_and_poolers_follow_the_patch(patch: int, levels: str, tmp_path: Path) -> None:
    from detectron2.config import LazyConfig, instantiate

    spec = EncoderSpec((4 * patch, 4 * patch), patch, embed_dim=32, depth=1, num_heads=2)
    file = encoder_file(tmp_path / "encoder.safetensors", Encoder(spec))
    maelift.export(str(file), "detectron2", str(tmp_path / "out"), image_size=8 * patch, out_channels=16)
    for name in ("mask_rcnn.py", "cascade_mask_rcnn.py"):
        model = instantiate(LazyConfig.load(str(tmp_path / "out" / name)).model).cpu()
        shapes = model.backbone.output_shape()
        assert " ".join(shapes) == levels == " ".join(model.proposal_generator.in_features)
        strides = [shape.stride for shape in shapes.values()]
        assert model.proposal_generator.anchor_generator.strides == strides
        assert [pooler.spatial_scale for pooler in model.roi_heads.box_pooler.level_poolers] == [
            1 / s for s in strides[:-1]
        ]
        maps = model.backbone(torch.zeros(1, 3, 8 * patch, 8 * patch))
        assert [found.shape[-1] for found in maps.values()] == [8 * patch // stride for stride in strides]


def yacs(file: Path, *changes: object) -> Any:
    """detectron2's packaged Faster R-CNN with our backbone, as a yacs config."""
    from detectron2 import model_zoo
    from detectron2.config import get_cfg

    cfg = get_cfg()
    adapter.add_maelift_config(cfg)
    cfg.merge_from_file(model_zoo.get_config_file("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"))
    adapter.use_encoder(cfg, file)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.MAELIFT.OUT_CHANNELS = 32
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    cfg.merge_from_list(list(changes))
    return cfg


@pytest.fixture(scope="module")
def patch16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder whose pyramid has the usual levels."""
    torch.manual_seed(0)
    spec = EncoderSpec((64, 64), 16, embed_dim=32, depth=5, num_heads=2)
    return encoder_file(tmp_path_factory.mktemp("patch16") / "encoder.safetensors", Encoder(spec))


def batch_of_one(size: tuple[int, int], channels: int) -> list[dict[str, Any]]:
    from detectron2.structures import BitMasks, Boxes, Instances

    target = Instances(size)
    target.gt_boxes, target.gt_classes = Boxes(torch.tensor([[4.0, 4, 30, 40]])), torch.tensor([1])
    target.gt_masks = BitMasks(torch.ones(1, *size))
    return [
        {
            "image": torch.randint(0, 256, (channels, *size)).float(),
            "instances": target,
            "height": size[0],
            "width": size[1],
        }
    ]


def test_a_yacs_config_builds_the_backbone_and_trains(patch16: Path, tmp_path: Path) -> None:
    from detectron2.modeling import build_model
    from detectron2.solver import build_optimizer

    cfg = yacs(patch16)
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    before = model.backbone.net.blocks[0].mlp.fc1.weight.clone()
    assert torch.equal(before, load_encoder(patch16).get_parameter("blocks.0.mlp.fc1.weight"))
    with detectron2_storage():
        sum(model(batch_of_one((90, 70), 3)).values()).backward()
    optimizer.step()
    assert not torch.equal(before, model.backbone.net.blocks[0].mlp.fc1.weight)
    (tmp_path / "mine.yaml").write_text(cfg.dump())
    small = ["INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MAX_SIZE_TRAIN", "160", "INPUT.MIN_SIZE_TEST", "96"]
    found = detectron2_certify.certify_config(tmp_path / "mine.yaml", read_encoder(patch16), small)
    assert found.passed, found.failures
    assert [step.outcome for step in found.steps] == ["passed"] * 5
    with pytest.raises(CheckpointError, match=r"MODEL\.WEIGHTS=model\.pkl: no such file"):
        detectron2_certify.certify_config(tmp_path / "mine.yaml", read_encoder(patch16), ["MODEL.WEIGHTS", "model.pkl"])
    (tmp_path / "mine.yaml").write_text(cfg.dump().replace("FORMAT: RGB", "FORMAT: BGR"))
    with pytest.raises(ConfigError, match='INPUT\\.FORMAT=BGR: expected "RGB"'):
        detectron2_certify.certify_config(tmp_path / "mine.yaml", read_encoder(patch16))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["INPUT.FORMAT", "BGR"], 'INPUT.FORMAT=BGR: expected "RGB"'),
        (["MODEL.PIXEL_MEAN", [103.53, 116.28, 123.675]], "[123.675, 116.28, 103.53]"),
        (["MODEL.PIXEL_STD", [1.0, 1.0, 1.0]], "MODEL.PIXEL_STD"),
        (["MODEL.MAELIFT.ENCODER", ""], "the path of an encoder file"),
        (["MODEL.RPN.IN_FEATURES", ["p7"]], "levels of the encoder's pyramid, p2, p3, p4, p5, p6"),
    ],
)
def test_a_yacs_config_that_does_not_fit_the_encoder_is_refused(
    changes: list[Any], expected: str, patch16: Path
) -> None:
    from detectron2.modeling import build_model

    with pytest.raises(ConfigError) as raised:
        build_model(yacs(patch16, *changes))
    assert expected in str(raised.value)


def test_a_lazy_config_takes_the_backbone_as_an_object(bundle: Path, pretrained: Path, tmp_path: Path) -> None:
    from detectron2.config import LazyConfig, instantiate

    config = tmp_path / "mine.py"
    config.write_text(
        "from detectron2.config import LazyCall as L, LazyConfig\n"
        "from maelift.adapters.detectron2 import pixel_settings, vit_backbone\n"
        f"model = LazyConfig.load({str(bundle / 'mask_rcnn.py')!r}).model\n"
        f"model.backbone = L(vit_backbone)(encoder={str(pretrained)!r}, image_size=64, out_channels=32)\n"
        f"model.update(pixel_settings({str(pretrained)!r}))\n"
    )
    model = instantiate(LazyConfig.apply_overrides(LazyConfig.load(str(config)), SLIM[:4]).model).cpu()
    with detectron2_storage():
        sum(model(batch_of_one((90, 70), 1)).values()).backward()
    assert model.backbone.net.patch_embed.proj.weight.grad.abs().sum() > 0
    found = detectron2_certify.certify_config(config, read_encoder(pretrained), [*SLIM[:3], *SLIM_BOXES["mask_rcnn"]])
    assert found.passed
    assert [step.outcome for step in found.steps] == [
        "not run",
        "not run",
        "passed",
        "passed",
        "passed",
    ]  # it has no mappers


def test_recipes_are_vitdets_and_between_them_interpolated() -> None:
    def of(width: int) -> tuple[float, float, int, float]:
        found = recipe(EncoderSpec(embed_dim=width, num_heads=1))
        return found.drop_path, found.layer_decay, found.epochs, found.norm_weight_decay

    assert of(768) == (0.1, 0.7, 100, 0.0) and of(1024) == (0.4, 0.8, 100, 0.0) and of(1280) == (0.5, 0.9, 75, 0.1)
    assert of(384) == (0.05, 0.7, 100, 0.0)
    assert "interpolated" in recipe(EncoderSpec(embed_dim=384)).source


def test_the_schedule_is_vitdets_whatever_the_length(bundle: Path) -> None:
    from detectron2.config import LazyConfig, instantiate

    config = LazyConfig.load(str(bundle / "mask_rcnn.py"))
    schedule = instantiate(config.lr_multiplier)
    # milestones 163889 and 177546 of 184375 iterations in ViTDet's configs of 100 epochs
    for share, expected in ((163880, 1.0), (163900, 0.1), (177540, 0.1), (177560, 0.01)):
        assert schedule(share / 184375) == pytest.approx(expected)
    assert schedule(0) == pytest.approx(0.001)
    assert config.optimizer.lr == pytest.approx(1e-4 * 2 / 64) and config.train.max_iter == 16


@pytest.mark.slow
def test_nothing_of_detectron2_is_imported_before_it_is_needed() -> None:
    code = "import sys, maelift.adapters.detectron2; assert 'detectron2' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())


@pytest.mark.slow
def test_the_page_does_what_it_says(
    pretrained: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "encoder.safetensors").write_bytes(pretrained.read_bytes())
    for split in ("train", "val"):
        (tmp_path / split).symlink_to(scenes / split)
    monkeypatch.setenv("DETECTRON2_TOOLS", str(tools()))
    said = run_page(ROOT / "docs" / "detectron2.md", tmp_path)
    assert "certificate passed" in said and os.environ["DETECTRON2_TOOLS"]
