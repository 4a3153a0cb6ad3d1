"""mmsegmentation: its own tools train what is exported, and the certificate tells right weights and settings from wrong."""

from __future__ import annotations

import json
import logging
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from maelift.adapters import mmseg_certify, mmseg_weights
from maelift.adapters.export import ExportCommand, export
from maelift.core.data.readers.mnist_idx import idx_file, read_idx
from maelift.core.errors import CheckpointError, MaeliftError
from maelift.core.models.encoder import Encoder
from maelift.core.models.encoder_file import Provenance, read_encoder, save_encoder
from maelift.core.models.encoder_spec import EncoderSpec, preset_spec
from maelift.core.models.preprocessing import Preprocessing
from maelift.core.training.optimizers import parameter_groups
from maelift.tests.support import (
    ROOT,
    TINY,
    environment,
    framework,
    one_line_error,
    random_encoder,
    run_maelift,
    run_page,
    start_program,
)
from PIL import Image
from torch.nn import functional as F

SHORT = ["batch_size=8", "iterations=60", "workers=0", "head_channels=32", "classes=[ground,clothes,shoes]"]
FASTER = ["optim_wrapper.optimizer.lr=2e-3", "randomness.seed=0"]
PACKAGED = "configs/mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py"


@pytest.fixture(scope="module", autouse=True)
def mmseg() -> Any:
    return framework("mmseg")


@pytest.fixture(autouse=True)
def _default_scope(mmseg: Any) -> None:
    from mmengine.registry import init_default_scope

    init_default_scope("mmseg")


@pytest.fixture(scope="module", autouse=True)
def _no_log_files_left(mmseg: Any) -> Iterator[None]:
    """The framework's loggers outlive its runs; one whose file another library has closed fails the next model."""
    yield
    from mmengine.logging import MMLogger

    for logger in MMLogger._instance_dict.values():
        for handler in [handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)]:
            logger.removeHandler(handler)
            handler.close()


@pytest.fixture(scope="module")
def scenes(fashion_mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"), fashion_mnist)


@pytest.fixture(scope="module")
def encoder_file(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder pretrained for some steps on the scenes, through the front door."""
    out = tmp_path_factory.mktemp("runs") / "pretrained"
    keys = [*TINY, "image_size=64", "patch_size=8", "batch_size=16", "epochs=6"]
    done = run_maelift("pretrain", f"data={scenes}/images/train", f"out={out}", *keys)
    assert done.returncode == 0, done.stderr
    return out / "encoder.safetensors"


@pytest.fixture(scope="module")
def exported(scenes: Path, encoder_file: Path) -> tuple[Path, str]:
    """The bundle's folder, and what ``maelift export`` said."""
    out = encoder_file.parent / "mmseg"
    keys = ["crop_size=64", f"data={scenes}", "image_suffix=.png", *SHORT]
    done = run_maelift("export", encoder_file, "--to", "mmseg", f"out={out}", *keys)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


@pytest.fixture(scope="module")
def bundle(exported: tuple[Path, str]) -> Path:
    return exported[0]


@pytest.fixture
def mutable(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle elsewhere, which tests may spoil; that it works there shows that it may be moved."""
    for file in bundle.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def write_scenes(root: Path, fashion_mnist: Path, channels: int = 3, shape: tuple[int, int] = (64, 64)) -> Path:
    """Items of Fashion-MNIST, two on a canvas, as images and mask PNGs: 0 ground, 1 clothes, 2 shoes and bags."""
    items, labels = (read_idx(idx_file(fashion_mnist, "train", content)) for content in ("images", "labels"))  # type: ignore[arg-type]
    generator = np.random.default_rng(0)
    for split, count in (("train", 48), ("val", 6)):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for number in range(count):
            canvas, mask = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
            for item in generator.integers(0, len(items), 2):
                top, left = (int(generator.integers(0, side - 28)) for side in shape)
                place, seen = np.s_[top : top + 28, left : left + 28], items[item] > 40
                canvas[place][seen] = items[item][seen]
                mask[place][seen] = 2 if labels[item] in (5, 7, 8, 9) else 1
            image = np.stack([canvas, canvas // 2, 255 - canvas, canvas.T.reshape(shape), canvas][:channels], axis=-1)
            name = root / "images" / split / f"scene{number:03d}"
            if channels in (1, 3):
                Image.fromarray(image.squeeze()).save(name.with_suffix(".png"))
            else:
                framework("tifffile").imwrite(
                    name.with_suffix(".tif"), image, photometric="minisblack", planarconfig="contig"
                )
            Image.fromarray(mask).save(root / "annotations" / split / f"scene{number:03d}.png")
    return root


def tool(name: str) -> Path:
    """mmsegmentation's own tool, unmodified."""
    import mmseg

    return Path(mmseg.__file__).parent / ".mim" / "tools" / name


def run_tool(name: str, *words: object, cwd: Path) -> str:
    started = start_program(tool(name), *words, cwd=cwd, framework="mmseg")
    said = "".join(started.communicate(timeout=240))
    assert started.returncode == 0, said[-4000:]
    return said


def records(work_dir: Path) -> list[dict[str, float]]:
    """What mmengine logged, over all starts, in order of time."""
    files = sorted(work_dir.glob("*/vis_data/scalars.json"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def losses(work_dir: Path) -> list[float]:
    return [record["loss"] for record in records(work_dir) if "loss" in record]


def reached_by(work_dir: Path) -> int:
    """The iteration of the checkpoint that the tool would go on from; mmengine names it after it is written."""
    named = work_dir / "last_checkpoint"
    found = re.findall(r"iter_(\d+)", named.read_text()) if named.exists() else []
    return int(found[0]) if found else 0


def certify(config: Path, encoder: Path, *opts: str, step_seconds: float = 0) -> Any:
    """Without the training and inference steps, which test_certify_trials.py has."""
    return mmseg_certify.certify_config(config, read_encoder(encoder), opts, step_seconds=step_seconds)


def save_random(path: Path, spec: EncoderSpec) -> Path:
    save_encoder(random_encoder(spec), path, Provenance(method="random"))
    return path


def export_random(tmp_path: Path, spec: EncoderSpec, *keys: str) -> tuple[Path, Path]:
    """A random encoder's file and its bundle; exporting raises where the certificate fails."""
    file = save_random(tmp_path / "random.safetensors", spec)
    words = [f"encoder={file}", "to=mmseg", f"out={tmp_path / 'bundle'}", "num_classes=3", "workers=0", *keys]
    result = export(ExportCommand.resolve(words))
    assert result.bundle.certificate.passed
    return file, result.folder


@pytest.mark.slow
def test_mmsegs_own_tool_trains_upernet_and_goes_on_after_a_stop(bundle: Path, tmp_path: Path) -> None:
    words = [bundle / "upernet.py", "--work-dir", tmp_path]
    stopped = start_program(tool("train.py"), *words, "--cfg-options", *FASTER, cwd=tmp_path, framework="mmseg")
    try:
        deadline = time.monotonic() + 120
        while reached_by(tmp_path) < 18 and stopped.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        stopped.send_signal(signal.SIGKILL)
        said = "".join(stopped.communicate())
    reached = reached_by(tmp_path)
    assert 18 <= reached < 60, said[-4000:]
    said = run_tool("train.py", *words, "--resume", "--cfg-options", *FASTER, cwd=tmp_path)
    assert f"resumed epoch: 0, iter: {reached}" in said
    assert (tmp_path / "iter_60.pth").exists()
    first, last = losses(tmp_path)[0], losses(tmp_path)[-1]
    assert last < 0.8 * first, (first, last)
    scores = [record["mIoU"] for record in records(tmp_path) if "mIoU" in record]
    assert scores[-1] > 32, scores  # nothing but ground would be 29


@pytest.mark.slow
def test_mmsegs_own_tools_train_and_test_the_light_head(bundle: Path, tmp_path: Path) -> None:
    words = ["--work-dir", str(tmp_path), "--cfg-options", *FASTER]
    command = [sys.executable, str(tool("train.py")), str(bundle / "fcn.py"), *words]  # alone, as users have it
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment(), timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    trained = losses(tmp_path)
    assert trained[-1] < 0.8 * trained[0], trained
    (score,) = [record["mIoU"] for record in records(tmp_path) if "mIoU" in record][-1:]
    said = run_tool(
        "test.py", bundle / "fcn.py", tmp_path / "iter_60.pth", "--work-dir", tmp_path / "tested", cwd=tmp_path
    )
    assert f"mIoU: {score:.4f}" in said


def small_runner(config: Any, folder: Path, iterations: int = 2) -> Any:
    from mmengine.runner import Runner

    config.work_dir = str(folder / "work")
    config.train_cfg.max_iters = iterations
    config.train_cfg.val_interval = iterations
    config.experiment_name = config.visualizer.name = str(
        time.time_ns()
    )  # else the first one's visualizer is used again
    return Runner.from_cfg(config)


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "suffix"), [(1, ".png"), (5, ".tif")])
def test_other_channels_four_blocks_and_crops_that_are_not_square_train(
    fashion_mnist: Path, tmp_path: Path, channels: int, suffix: str
) -> None:
    from mmengine.config import Config

    scenes = write_scenes(tmp_path / "scenes", fashion_mnist, channels, (64, 96))
    spec = replace(preset_spec("vit_nano", image_size=32, patch_size=8, channels=channels), depth=4)
    keys = [
        "crop_size=[64,96]",
        f"data={scenes}",
        f"image_suffix={suffix}",
        "batch_size=2",
        "head_channels=16",
        "iterations=40",
    ]
    file, folder = export_random(tmp_path, spec, *keys)
    runner = small_runner(Config.fromfile(folder / "upernet.py"), tmp_path)
    assert type(runner.model.neck).__name__ == "Feature2Pyramid"
    runner.train()
    assert runner.iter == 2 and np.isfinite(losses(tmp_path / "work")).all()
    assert "mIoU" in records(tmp_path / "work")[-1]
    assert certify(folder / "fcn.py", file).passed


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("crop", ["crop_size=48", "crop_size=[24,40]"])
def test_a_small_encoder_is_equal_in_mmseg(tmp_path: Path, channels: int, crop: str) -> None:
    spec = preset_spec("vit_nano", image_size=32, channels=channels)
    file, folder = export_random(tmp_path, spec, crop)
    written = json.loads((folder / "certificate.json").read_text())
    assert written["passed"] and len(written["sizes"]) == 4
    assert certify(folder / "upernet.py", file).passed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "depth", "blocks"), [("vit_small", 12, [3, 5, 7, 11]), ("vit_base", 4, [0, 1, 2, 3])]
)
def test_the_papers_shapes_are_equal_in_mmseg(tmp_path: Path, model: str, depth: int, blocks: list[int]) -> None:
    spec = replace(preset_spec(model, image_size=32), depth=depth)
    _, folder = export_random(tmp_path, spec, "crop_size=48")
    written = json.loads((folder / "certificate.json").read_text())
    assert [level["block"] for level in written["sizes"][0]["levels"]] == blocks


def test_images_of_16_bits_are_read_as_they_are(tmp_path: Path) -> None:
    spec = preset_spec("vit_nano", image_size=32)
    preprocessing = Preprocessing(("red", "green", "blue"), (0.5, 0.4, 0.3), (0.2, 0.3, 0.25), (0.0, 65535.0), 16)
    save_encoder(Encoder(spec, preprocessing=preprocessing), tmp_path / "e.safetensors", Provenance(method="random"))
    words = [f"encoder={tmp_path}/e.safetensors", "to=mmseg", f"out={tmp_path}/out", "crop_size=32"]
    result = export(ExportCommand.resolve(words))
    assert result.bundle.certificate.passed
    assert "PhotoMetricDistortion" not in (result.folder / "fcn.py").read_text()  # which cuts values off at 255


def test_patches_of_another_size_are_certified_too(tmp_path: Path) -> None:
    file, folder = export_random(
        tmp_path, preset_spec("vit_nano", image_size=28, patch_size=7), "patch_size=8", "crop_size=32"
    )
    assert certify(folder / "upernet.py", file).passed


def edit_config(before: str, after: str) -> Callable[[Path, Encoder], None]:
    def mutate(folder: Path, _: Encoder) -> None:
        text = (folder / "upernet.py").read_text()
        assert before in text
        (folder / "upernet.py").write_text(text.replace(before, after))

    return mutate


def edit_weights(change: Callable[[dict[str, torch.Tensor], Encoder], None]) -> Callable[[Path, Encoder], None]:
    def mutate(folder: Path, encoder: Encoder) -> None:
        state = torch.load(folder / "weights.pth", weights_only=True)
        change(state, encoder)
        torch.save(state, folder / "weights.pth")

    return mutate


def transpose_positions(state: dict[str, torch.Tensor], encoder: Encoder) -> None:
    first, patches = state["pos_embed"][:, :1], state["pos_embed"][:, 1:]
    turned = patches.reshape(1, 8, 8, -1).transpose(1, 2).reshape(patches.shape)
    state["pos_embed"] = torch.cat([first, turned], dim=1)


def antialias_positions(state: dict[str, torch.Tensor], encoder: Encoder) -> None:
    rows, columns = encoder.spec.grid
    plane = encoder.pos_embed.detach()[:, 1:].reshape(1, rows, columns, -1).permute(0, 3, 1, 2)
    plane = F.interpolate(plane, size=(8, 8), mode="bicubic", align_corners=False, antialias=True)
    state["pos_embed"] = torch.cat([encoder.pos_embed.detach()[:, :1], plane.flatten(2).transpose(1, 2)], dim=1)


MUTATIONS: dict[str, tuple[Callable[[Path, Encoder], None], str]] = {
    "mmcv's epsilon": (
        edit_config('norm_cfg=dict(type="LN", eps=1e-06)', 'norm_cfg=dict(type="LN")'),
        "eps 1e-05, expected 1e-06",
    ),
    "mmseg's init_values": (edit_config("init_values=1.0", "init_values=0.1"), "0.1, expected 1: set init_values=1.0"),
    "blue for red": (edit_config("bgr_to_rgb=True", "bgr_to_rgb=False"), "bgr_to_rgb: False, expected True"),
    "another mean": (
        edit_config("mean=[123.675", "mean=[103.675"),
        "data_preprocessor.mean: [103.675, 116.28, 103.53], expected",
    ),
    "no deviation": (edit_config("std=[58.395, 57.12, 57.375]", "std=[1, 1, 1]"), "data_preprocessor.std"),
    "a bias left out": (
        edit_weights(lambda state, _: state.__delitem__("layers.1.attn.qkv.bias")),
        "layers.1.attn.qkv.bias: the framework's model holds other values",
    ),
    "the class token left out": (
        edit_weights(lambda state, _: state.__delitem__("cls_token")),
        "cls_token: the framework's model holds other values",
    ),
    "positions transposed": (edit_weights(transpose_positions), "pos_embed: the framework's model holds other values"),
    "positions antialiased": (edit_weights(antialias_positions), "pos_embed: the framework's model holds other values"),
    "a prefix before all names": (
        edit_weights(lambda state, _: state.update({f"backbone.{name}": state.pop(name) for name in list(state)})),
        "the framework's model holds other values",
    ),
}


@pytest.fixture(scope="module")
def random_bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bundle with a crop smaller than the images of pretraining, where antialiasing shows."""
    spec = preset_spec("vit_nano", image_size=48, patch_size=4)
    file, folder = export_random(tmp_path_factory.mktemp("random"), spec, "crop_size=32")
    assert certify(folder / "upernet.py", file).passed
    return file, folder


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_certificate_tells_what_is_wrong_with_a_config(
    name: str, random_bundle: tuple[Path, Path], tmp_path: Path
) -> None:
    file, folder = random_bundle
    for written in folder.iterdir():
        (tmp_path / written.name).write_bytes(written.read_bytes())
    mutate, reason = MUTATIONS[name]
    mutate(tmp_path, read_encoder(file).encoder)
    failed = certify(tmp_path / "upernet.py", file)
    assert not failed.passed
    assert reason in failed.failures[0], failed.failures  # the cause first
    assert any("differ" in failure and "pixels" in failure for failure in failed.failures)  # and what comes of it
    with pytest.raises(CheckpointError, match="the certificate for mmseg failed"):
        failed.check()


def test_every_wrong_number_of_the_relative_positions_is_found(
    random_bundle: tuple[Path, Path], tmp_path: Path
) -> None:
    file, folder = random_bundle
    state = torch.load(folder / "weights.pth", weights_only=True)
    state["layers.2.attn.relative_position_bias_table"] = torch.full(((2 * 8 - 1) ** 2 + 3, 4), 0.1)
    torch.save(state, tmp_path / "tuned.pth")
    failed = certify(folder / "upernet.py", file, f"model.backbone.init_cfg.checkpoint={tmp_path}/tuned.pth")
    assert "relative_position_bias_table: not zero" in failed.failures[0]


def test_a_config_is_certified_with_its_own_checkpoint(random_bundle: tuple[Path, Path], tmp_path: Path) -> None:
    """load_from wins over what the backbone begins with, as in mmengine's Runner."""
    file, folder = random_bundle
    state = torch.load(folder / "weights.pth", weights_only=True)
    torch.save({"state_dict": {f"backbone.{name}": tensor for name, tensor in state.items()}}, tmp_path / "model.pth")
    options = ["model.backbone.init_cfg=None", f"load_from={tmp_path}/model.pth"]
    assert certify(folder / "upernet.py", file, *options).passed
    assert not certify(folder / "upernet.py", file, options[0]).passed
    state |= {f"ln1.{name}": tensor for name, tensor in read_encoder(file).encoder.norm.state_dict().items()}
    torch.save(state, tmp_path / "normed.pth")
    normed = ["model.backbone.final_norm=True", f"model.backbone.init_cfg.checkpoint={tmp_path}/normed.pth"]
    assert certify(folder / "upernet.py", file, *normed).passed
    assert not certify(folder / "upernet.py", file, normed[0]).passed
    state["layers.0.ln1.weight"] += 1e-3
    torch.save({"state_dict": {f"backbone.{name}": tensor for name, tensor in state.items()}}, tmp_path / "model.pth")
    failed = certify(folder / "upernet.py", file, f"load_from={tmp_path}/model.pth")
    assert "layers.0.ln1.weight" in failed.failures[0]


def test_configs_that_can_not_be_certified_are_refused_in_one_line(
    random_bundle: tuple[Path, Path], tmp_path: Path
) -> None:
    file, folder = random_bundle
    cases = {
        "model.backbone.num_layers=4": "num_layers=4, expected 3",
        "model.backbone.type=BEiT": "its backbone is BEiT",
        "model.backbone.type=Mae": "does not build",
        "model.backbone.init_cfg.checkpoint=absent.pth": "model.backbone.init_cfg.checkpoint=absent.pth: no such file",
    }
    for option, expected in cases.items():
        with pytest.raises(CheckpointError, match=expected) as caught:
            certify(folder / "upernet.py", file, option)
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="no such file"):
        certify(tmp_path / "absent.py", file)
    gray = save_random(tmp_path / "gray.safetensors", preset_spec("vit_nano", image_size=48, channels=1))
    with pytest.raises(CheckpointError, match="in_channels=3, expected 1"):
        certify(folder / "upernet.py", gray)


@pytest.mark.slow
def test_the_printed_overrides_make_mmsegs_packaged_config_equal(
    exported: tuple[Path, str], scenes: Path, tmp_path: Path
) -> None:
    """Door C: weights for a stock config, whose heads are made small for the test; the tool trains it."""
    import mmseg

    folder, said = exported
    (line,) = [line for line in said.splitlines() if "--cfg-options" in line]
    printed = shlex.split(line.split("--cfg-options")[1])
    packaged = Path(mmseg.__file__).parent / ".mim" / PACKAGED
    taps = "model.backbone.out_indices=(0,1,2)"
    encoder = folder.parent / "encoder.safetensors"
    slim = ["model.neck=None", "model.auxiliary_head=None", "model.decode_head.in_channels=[64,64,64]"]
    slim += ["model.decode_head.in_index=[0,1,2]", "model.decode_head.channels=16", "model.decode_head.num_classes=3"]
    found = certify(packaged, encoder, *printed, taps, *slim, step_seconds=60)
    assert found.passed and [step.outcome for step in found.steps] == ["passed"] * 5
    failed = certify(packaged, encoder, *printed, taps, "model.backbone.norm_cfg.eps=1e-5")
    assert "eps 1e-05" in failed.failures[0]
    slim += ["train_cfg.max_iters=3", "train_cfg.val_interval=9", "default_hooks.logger.interval=1"]
    slim += ["optim_wrapper.paramwise_cfg.num_layers=3", "train_dataloader.num_workers=0"]
    data = "train_dataloader.dataset"
    slim += [
        f"{data}.type=BaseSegDataset",
        f"{data}.data_root={scenes}",
        f"{data}.img_suffix=.png",
    ]
    slim += [f"{data}.data_prefix.img_path=images/train", f"{data}.data_prefix.seg_map_path=annotations/train"]
    slim += ["train_dataloader.persistent_workers=False", "val_cfg=None", "val_dataloader=None", "val_evaluator=None"]
    slim += [f"{data}.pipeline.1.reduce_zero_label=False"]
    run_tool("train.py", packaged, "--work-dir", tmp_path, "--cfg-options", *printed, taps, *slim, cwd=tmp_path)
    assert len(losses(tmp_path)) == 3


OWN_CONFIG = """
custom_imports = dict(imports=["maelift.adapters.mmseg_backbone"])
_base_ = "{bundle}/fcn.py"
encoder = "{encoder}"
model = dict(
    data_preprocessor=dict(_delete_=True, type="MaeliftDataPreProcessor", encoder=encoder),
    backbone=dict(_delete_=True, type="MaeliftViT", encoder=encoder, drop_path_rate=0.1, {settings}),
    test_cfg=dict(_delete_=True, mode="whole"),
)
optim_wrapper = dict(constructor="MaeliftLayerDecay", paramwise_cfg=dict(_delete_=True, decay_rate=0.65))
train_dataloader = dict(batch_size=2)
"""


def own_config(folder: Path, bundle: Path, encoder: Path, settings: str = "") -> Path:
    """A user's config with the registered backbone."""
    (folder / "own.py").write_text(OWN_CONFIG.format(bundle=bundle, encoder=encoder, settings=settings))
    return folder / "own.py"


SETTINGS = [
    "",
    "window_size=4, global_blocks=(0,), out_indices=(0, 2)",
    "final_norm=True",
    "class_token=False",
    "window_size=2, global_blocks=()",
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_registered_backbone_is_equal_at_any_size(
    bundle: Path, encoder_file: Path, tmp_path: Path, settings: str
) -> None:
    found = certify(own_config(tmp_path, bundle, encoder_file, settings), encoder_file, step_seconds=60)
    assert found.passed, found.failures
    assert [step.outcome for step in found.steps] == ["passed"] * 5
    assert len({size.image_size for size in found.sizes}) >= 3
    assert any(size.window for size in found.sizes) == ("window_size" in settings)


def test_the_registered_backbone_takes_what_mmsegs_own_can_not(bundle: Path, tmp_path: Path) -> None:
    spec = replace(preset_spec("vit_nano"), class_token=False, mlp_ratio=2.5)
    file = save_random(tmp_path / "bare.safetensors", spec)
    with pytest.raises(MaeliftError, match="The registered backbone MaeliftViT takes it"):
        export(ExportCommand.resolve([f"encoder={file}", "to=mmseg", f"out={tmp_path}/out"]))
    assert certify(own_config(tmp_path, bundle, file), file).passed


def test_the_registered_backbone_is_refused_with_other_weights_or_pixels(
    bundle: Path, encoder_file: Path, tmp_path: Path
) -> None:
    config = own_config(tmp_path, bundle, encoder_file)
    failed = certify(config, encoder_file, "model.backbone.pretrained=False")
    assert not failed.passed and "holds other values" in failed.failures[0]
    text = config.read_text().replace('type="MaeliftDataPreProcessor", encoder=encoder', 'type="SegDataPreProcessor"')
    (tmp_path / "plain.py").write_text(text)
    failed = certify(tmp_path / "plain.py", encoder_file)
    assert "data_preprocessor.mean: not given" in failed.failures[0]
    (tmp_path / "gray.py").write_text(config.read_text())
    with pytest.raises(CheckpointError, match="none of 3 blocks would have windows"):
        certify(config, encoder_file, "model.backbone.window_size=2")
    options = ["test_dataloader.dataset.pipeline.0.color_type=grayscale"]
    with pytest.raises(CheckpointError, match="images of 1 channels"):
        certify(tmp_path / "gray.py", encoder_file, *options)
    other = save_random(tmp_path / "other.safetensors", preset_spec("vit_tiny", image_size=32))
    with pytest.raises(CheckpointError, match="embed_dim=64, expected 192; depth=3, expected 12"):
        certify(config, other)


@pytest.mark.slow
def test_the_registered_backbone_trains_on_images_of_odd_sizes_and_a_checkpoint_is_not_overwritten(
    bundle: Path, encoder_file: Path, tmp_path: Path
) -> None:
    from mmengine.config import Config

    config = Config.fromfile(own_config(tmp_path, bundle, encoder_file, "window_size=2, global_blocks=(0,)"))
    config.train_dataloader.dataset.pipeline[3].crop_size = (
        44,
        52,
    )  # a multiple neither of the patch nor of the window
    first = small_runner(config, tmp_path)
    first.train()
    key = "blocks.0.attn.qkv.weight"
    trained = first.model.backbone.state_dict()[key].clone()
    start = read_encoder(encoder_file).encoder.state_dict()[key]
    assert not torch.equal(trained, start)
    assert "mIoU" in records(tmp_path / "work")[-1]  # whole images of 64×64 pixels

    config.resume = True
    again = small_runner(config, tmp_path)
    again.train()  # nothing left to do: its two iterations are behind it
    assert torch.equal(again.model.backbone.state_dict()[key], trained)


def rates(runner_or_model: Any, settings: Any) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of every parameter, by name, as the config's constructor sets them."""
    from mmengine.optim import build_optim_wrapper

    optimizer = build_optim_wrapper(runner_or_model, settings).optimizer
    names = {id(parameter): name for name, parameter in runner_or_model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def expected_rates(encoder: Encoder) -> dict[str, tuple[float, float]]:
    groups = parameter_groups(encoder.named_parameters(), weight_decay=0.05, depth=encoder.spec.depth, layer_decay=0.65)
    return {name: (1e-4 * group["lr_scale"], group["weight_decay"]) for group in groups for name in group["names"]}


def test_every_layer_learns_at_the_rate_that_layer_decay_gives_it(
    bundle: Path, encoder_file: Path, tmp_path: Path
) -> None:
    from mmengine.config import Config
    from mmseg.registry import MODELS

    encoder = read_encoder(encoder_file).encoder
    expected = expected_rates(encoder)
    config = Config.fromfile(bundle / "upernet.py")
    found = rates(MODELS.build(config.model), config.optim_wrapper)
    carried = [name for name in expected if not name.startswith("norm.")]
    for name in carried:
        rate, decay = found[f"backbone.{mmseg_weights.mae_name(name)}"]
        assert rate == pytest.approx(expected[name][0]), name
        if name not in ("pos_embed", "cls_token"):  # where mmseg's constructor forgets the prefix "backbone."
            assert decay == expected[name][1], name
    assert found["decode_head.conv_seg.weight"] == (1e-4, 0.05)

    own = Config.fromfile(own_config(tmp_path, bundle, encoder_file))
    found = rates(MODELS.build(own.model), own.optim_wrapper)
    assert {name.removeprefix("backbone.") for name in found if name.startswith("backbone.")} == set(carried)
    for name in carried:
        assert found[f"backbone.{name}"] == expected[name], name
    assert found["decode_head.conv_seg.weight"] == (1e-4, 0.05)
    assert found["decode_head.conv_seg.bias"] == (1e-4, 0.0)


@pytest.mark.slow
def test_the_page_works_as_it_stands(scenes: Path, encoder_file: Path, tmp_path: Path) -> None:
    """What the page says, in a folder with an encoder file and photos."""
    (tmp_path / "encoder.safetensors").write_bytes(encoder_file.read_bytes())
    shutil.copytree(scenes, tmp_path / "photos")
    said = run_page(ROOT / "docs" / "mmseg.md", tmp_path)
    assert said.count("certificate passed") == 3
    assert "mIoU" in said


def test_keys_that_do_not_fit_are_refused_before_anything_is_written(encoder_file: Path, tmp_path: Path) -> None:
    done = run_maelift("export", encoder_file, "--to", "mmseg", f"out={tmp_path}/out", "crop_size=60")
    one_line_error(done, "crop_size=[60,60]", "multiples of the patch size 8", "crop_size=[64,64]")
    assert not any(tmp_path.iterdir())
    four = save_random(tmp_path / "four.safetensors", preset_spec("vit_nano", channels=4))
    bare = save_random(tmp_path / "bare.safetensors", replace(preset_spec("vit_nano"), class_token=False))
    cases: list[tuple[Path, str, str]] = [
        (encoder_file, "batch_size=1", "batch_size=1: expected at least 2"),
        (encoder_file, "crop_size=8", "at least two patches of 8 pixels"),
        (encoder_file, "classes=[a,b] num_classes=3", "num_classes=3: expected 2"),
        (encoder_file, "ignore_index=0 reduce_zero_label=true", "ignore_index=0: expected 255"),
        (four, "image_suffix=.png", "expected .tif or .tiff for images of 4 channels"),
        (bare, "crop_size=32", "no class token"),
    ]
    for file, keys, expected in cases:
        words = [f"encoder={file}", "to=mmseg", f"out={tmp_path}/out", *keys.split()]
        with pytest.raises(MaeliftError, match=re.escape(expected)):
            export(ExportCommand.resolve(words))
        assert not (tmp_path / "out").exists()
