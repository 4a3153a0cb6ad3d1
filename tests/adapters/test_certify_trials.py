"""Trial runs of certify: sound configs pass every step; for those that can't run or crop images it reports what to change."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import maelift
import pytest
import torch
from maelift.adapters.certificate import Certificate
from maelift.adapters.export import certifier
from maelift.adapters.mmseg_model import read_config
from maelift.adapters.trial import Cost, cost_of, skip_reason, speed
from maelift.core.models.encoder_file import EncoderFile, read_encoder
from maelift.core.models.encoder_spec import preset_spec
from maelift.tests.support import encoder_file, framework, random_encoder
from torch import nn

Certify = Callable[..., Certificate]

SMALL_HEADS = [
    "model.roi_heads.box_head.conv_dims=[16]",
    "model.roi_heads.box_head.fc_dims=[16]",
    "model.roi_heads.box_predictor.input_shape.channels=16",
    "model.roi_heads.mask_head.conv_dims=[16,16]",
    "model.roi_heads.batch_size_per_image=16",
    "model.proposal_generator.post_nms_topk=[50,20]",
]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = replace(preset_spec("vit_nano", image_size=32, patch_size=8), embed_dim=32, num_heads=2)
    return encoder_file(tmp_path_factory.mktemp("encoder") / "encoder.safetensors", random_encoder(spec))


@pytest.fixture(scope="module")
def detectron2(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Certify:
    """Certifies a small bundle's config, changed by words."""
    framework("detectron2")
    folder = tmp_path_factory.mktemp("detectron2") / "bundle"
    maelift.export(str(file), "detectron2", str(folder), image_size=64, out_channels=16)
    from detectron2.config import LazyConfig
    from omegaconf import OmegaConf

    config = folder / "mask_rcnn.py"

    def content(words: list[str]) -> object:
        return OmegaConf.to_container(LazyConfig.apply_overrides(LazyConfig.load(str(config)), words), resolve=True)

    return certify_with("detectron2", config, read_encoder(file), SMALL_HEADS, content)


@pytest.fixture(scope="module")
def mmseg(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Certify:
    """Certifies a small bundle's UPerNet, changed by words."""
    framework("mmseg")
    folder = tmp_path_factory.mktemp("mmseg") / "bundle"
    maelift.export(str(file), "mmseg", str(folder), crop_size=32, head_channels=16, num_classes=3)
    config = folder / "upernet.py"
    return certify_with("mmseg", config, read_encoder(file), [], lambda words: read_config(config, words).to_dict())


def certify_with(
    name: str, config: Path, file: EncoderFile, always: list[str], content: Callable[[list[str]], object]
) -> Certify:
    """Certifies a config; words that make it what it was before, as those that undo others, give the same certificate.

    ``content``: the config's keys and values with these words.
    """
    made: dict[str, Certificate] = {}

    def certify(*words: str, **keys: Any) -> Certificate:
        same = f"{content([*always, *words])} {keys}"
        if same not in made:
            made[same] = certifier(name).certify_config(config, file, [*always, *words], **keys)
        return made[same]

    return certify


def outcomes(certificate: Certificate) -> dict[str, str]:
    return {step.name: step.outcome for step in certificate.steps}


def test_a_sound_detector_runs_every_step(detectron2: Certify) -> None:
    found = detectron2()
    assert found.passed, found.failures
    steps = ["training images", "test images", "windows", "training step", "inference step"]
    assert outcomes(found) == dict.fromkeys(steps, "passed")
    details = {step.name: step.detail for step in found.steps}
    assert details["training images"] == "up to 64×64 pixels, padded to 64×64"
    assert "loss_mask" in details["training step"] and "training step" in found.text()


def test_a_sound_segmentor_runs_every_step(mmseg: Certify) -> None:
    found = mmseg()
    assert found.passed, found.failures
    steps = ["neck and heads", "training pipeline", "test pipeline", "training step", "inference step"]
    assert outcomes(found) == dict.fromkeys(steps, "passed")


DETECTORS: dict[str, tuple[list[str], str, list[str]]] = {
    "a square below the images": (
        ["model.backbone.square_pad=32"],
        r"gives images of up to 64×64 pixels, of which model\.backbone\.square_pad=32 cuts off the rest.*square_pad=64",
        ["model.backbone.square_pad=64"],
    ),
    "no square": (
        ["model.backbone.square_pad=0"],
        r"what is beyond a multiple of 16 is lost\. Set model\.backbone\.square_pad=64",
        ["model.backbone.square_pad=64"],
    ),
    "larger crops": (
        ["dataloader.train.mapper.augmentations.2.crop_size=[96,96]", "dataloader.train.mapper.augmentations.1.target_width=96",
         "dataloader.train.mapper.augmentations.1.target_height=96"],
        r"dataloader\.train\.mapper gives images of up to .*cuts off the rest.*Set model\.backbone\.square_pad=96",
        ["model.backbone.square_pad=96"],
    ),
    "windows that don't tile": (
        ["model.backbone.net.window_size=3", "model.backbone.net.window_block_indexes=[0]"],
        r"window_size=3 doesn't tile the 8×8 patches.*Set model\.backbone\.net\.window_size=[24]",
        ["model.backbone.net.window_size=4"],
    ),
    "another order in the model": (
        ["model.input_format=BGR"],
        r"model\.input_format is BGR, but images are read as RGB: set model\.input_format=RGB",
        ["model.input_format=RGB"],
    ),
    "a drop path beyond 1": (
        ["model.backbone.net.drop_path_rate=1.5"],
        r"drop path: model\.backbone\.net\.drop_path_rate: rates up to 1\.5",
        ["model.backbone.net.drop_path_rate=0.1"],
    ),
    "a level that isn't there": (
        ["model.roi_heads.box_in_features=[p9]"],
        r"training step: (KeyError|AssertionError)",
        ["model.roi_heads.box_in_features=[p1,p2,p3,p4]"],
    ),
    "a mapper that fails": (
        ["dataloader.train.mapper.augmentations.2.crop_size=[0]"],
        r"training images: dataloader\.train\.mapper fails on an image of",
        ["dataloader.train.mapper.augmentations.2.crop_size=[64,64]"],
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", DETECTORS)
def test_a_detector_that_cuts_images_or_fails_is_told_what_to_change(case: str, detectron2: Certify) -> None:
    words, expected, advised = DETECTORS[case]
    failed = detectron2(*words)
    assert_fails(failed, expected)
    assert detectron2(*words, *advised).passed


def assert_fails(certificate: Certificate, expected: str) -> None:
    assert certificate.failures and re.search(expected, certificate.failures[0]), certificate.failures
    assert "\n" not in certificate.failures[0]


SEGMENTORS: dict[str, tuple[list[str], str, list[str]]] = {
    "crops of another size": (
        ["train_dataloader.dataset.pipeline.3.crop_size=(48,48)"],
        r"backbone takes img_size=\(32, 32\) only\. Set train_dataloader\.dataset\.pipeline\.3\.crop_size=\(32, 32\)",
        ["train_dataloader.dataset.pipeline.3.crop_size=(32,32)"],
    ),
    "a backbone of another size": (
        ["model.backbone.img_size=(48,48)"],
        r"sliding window: model\.test_cfg\.crop_size=\(32, 32\): the backbone takes img_size=\(48, 48\) only",
        ["model.backbone.img_size=(32,32)"],
    ),
    "a drop path beyond 1": (
        ["model.backbone.drop_path_rate=1.5"],
        r"drop path: model\.backbone\.drop_path_rate: rates up to 1\.5",
        ["model.backbone.drop_path_rate=0.1"],
    ),
    "smaller crops": (
        ["model.data_preprocessor.size=(24,24)", "train_dataloader.dataset.pipeline.3.crop_size=(24,24)"],
        r"model\.data_preprocessor\.size: prepared images have 24×24 pixels.*Set model\.data_preprocessor\.size=\(32, 32\)",
        ["model.data_preprocessor.size=(32,32)"],
    ),
    "windows of another size": (
        ["model.test_cfg.crop_size=(48,48)"],
        r"sliding window: model\.test_cfg\.crop_size=\(48, 48\): .*Set model\.test_cfg\.crop_size=\(32, 32\) and stride=\(21, ",
        ["model.test_cfg.crop_size=(32,32)", "model.test_cfg.stride=(21,21)"],
    ),
    "whole images": (
        ["model.test_cfg.mode=whole"],
        r"model\.test_cfg\.mode=whole gives the backbone .*mode='slide', crop_size=\(32, 32\), stride=\(21, 21\)",
        ["model.test_cfg.mode=slide"],
    ),
    "blocks that aren't there": (
        ["model.backbone.out_indices=(2,7)"],
        r"model\.backbone\.out_indices=\[2, 7\]: the encoder has blocks 0 to 2\. Set out_indices=\(2,\)",
        ["model.backbone.out_indices=(2,)"],
    ),
    "a neck for fewer maps": (
        ["model.backbone.out_indices=(1,2)"],
        r"model\.neck\.in_channels=\[32\]: for 1 maps, and the backbone gives 2",
        ["model.backbone.out_indices=(2,)"],
    ),
    "a neck of other channels": (
        ["model.neck.in_channels=[64]"],
        r"model\.neck\.in_channels=\[64\]: the encoder's maps have 32",
        ["model.neck.in_channels=[32]"],
    ),
    "a head of other channels": (
        ["model.decode_head.in_channels=[32,32,64,32]"],
        r"model\.decode_head\.in_channels=\[32, 32, 64, 32\]: the maps that it takes have \[32, 32, 32, 32\]",
        ["model.decode_head.in_channels=[32,32,32,32]"],
    ),
    "a head on maps that aren't there": (
        ["model.decode_head.in_index=[0,1,2,4]"],
        r"in_index=\[0, 1, 2, 4\]: there are 4 maps, 0 to 3",
        ["model.decode_head.in_index=[0,1,2,3]"],
    ),
    "an auxiliary head of other channels": (
        ["model.auxiliary_head.in_channels=8"],
        r"model\.auxiliary_head\.in_channels=8: .* have 32",
        ["model.auxiliary_head.in_channels=32"],
    ),
    "a pipeline that fails": (
        ["train_dataloader.dataset.pipeline.2.type=RandomRotFlip", "train_dataloader.dataset.pipeline.2.scale=None"],
        r"training pipeline: train_dataloader\.dataset\.pipeline\.2 \(RandomRotFlip\): TypeError",
        ["train_dataloader.dataset.pipeline.2.type=RandomResize", "train_dataloader.dataset.pipeline.2.scale=(128,32)"],
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", SEGMENTORS)
def test_a_segmentor_that_can_not_run_is_told_what_to_change(case: str, mmseg: Certify) -> None:
    words, expected, advised = SEGMENTORS[case]
    assert_fails(mmseg(*words), expected)
    assert mmseg(*words, *advised).passed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["detectron2", "mmseg"])
def test_steps_that_are_too_much_for_the_machine_are_left_out_and_said(
    name: str, request: pytest.FixtureRequest
) -> None:
    certify: Certify = request.getfixturevalue(name)
    found = certify(step_seconds=1e-9)
    assert found.passed
    left_out = [step for step in found.steps if step.outcome == "not run"]
    assert [step.name for step in left_out] == ["training step", "inference step"]
    assert all("more than step_seconds=1e-09; the sizes fit, as computed" in step.detail for step in left_out)


def test_costs_are_those_of_the_operations() -> None:
    model = nn.Sequential(nn.Linear(64, 128, bias=False), nn.ReLU())
    found = cost_of(model, lambda empty: empty(torch.empty(10, 64, device="meta")))
    assert found == Cost(2 * 10 * 64 * 128, 10 * 64 * 4 + 2 * 10 * 128 * 4)
    assert cost_of(model, lambda empty: empty(torch.empty(10, 64, device="meta")).sum().item()) is None
    assert skip_reason(Cost(1, 1e18), 10) and "GB of memory" in str(skip_reason(Cost(1, 1e18), 10))
    assert (
        skip_reason(Cost(100 * speed(), 1), 1) and skip_reason(Cost(1, 1), 1) is None and skip_reason(None, 1) is None
    )
