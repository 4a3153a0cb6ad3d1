"""The report names arms whose weights have seen the public data set that the suite's images are of, and what isn't known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from maelift.benchmarks.aggregate import collect
from maelift.benchmarks.data import read_suite_images
from maelift.benchmarks.experiment import Context
from maelift.benchmarks.public_data import (
    SuiteSource,
    pretraining_overlaps,
    seen_by,
    source_of,
    tag_of,
    unknown_sources,
)
from maelift.benchmarks.report import write_report
from maelift.benchmarks.suite import BenchConfig
from maelift.core.errors import ConfigError
from maelift.core.models.encoder_file import Provenance, save_encoder
from maelift.tests.support import random_encoder

IMAGENET = SuiteSource("imagenet", "data.public=imagenet")


@pytest.mark.parametrize(
    ("weights", "seen", "web"),
    [
        ("timm:resnet50.a1_in1k", {"imagenet"}, set()),
        ("timm:resnet50", {"imagenet"}, set()),  # timm's usual tag
        ("timm:vit_base_patch16_224.mae", {"imagenet"}, set()),
        ("timm:vit_small_patch14_dinov2.lvd142m", {"imagenet"}, set()),
        ("timm:vit_base_patch16_clip_224.laion2b_ft_in12k_in1k@weights.safetensors", {"imagenet"}, {"laion2b"}),
        ("timm:vit_base_patch16_siglip_224.webli", set(), {"webli"}),
        ("timm:resnext101_32x8d.fb_wsl_ig1b_ft_in1k", {"imagenet"}, {"ig1b"}),
        ("timm:samvit_base_patch16.sa1b", set(), {"sa1b"}),
    ],
)
def test_tags_say_what_weights_have_seen(weights: str, seen: set[str], web: set[str]) -> None:
    assert seen_by(weights) == (seen, web)


def test_of_a_file_nothing_is_known_by_its_name() -> None:
    assert tag_of("encoder.safetensors") is None and seen_by("in1k.pth") is None


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("data/imagenet", "imagenet"),
        ("/mnt/ILSVRC2012/train", "imagenet"),
        ("data/coco2017", "coco"),
        ("ADEChallengeData2016/images", "ade20k"),
        ("VOCdevkit/VOC2012", "voc"),
        ("/coco/x/photos", ""),  # further up says nothing
        ("cocoa-plants", ""),
        ("photos", ""),
        (None, ""),
    ],
)
def test_folders_are_taken_for_public_sets_by_their_last_names(path: str | None, found: str) -> None:
    source = source_of(path, None, "data.public")
    assert source.name == found and "data.public says otherwise" in source.reason


def test_a_key_says_which_set_it_is() -> None:
    assert source_of("data/imagenet", "none", "data.public").name == ""
    assert source_of("photos", "coco", "tasks.detect.public") == SuiteSource("coco", "tasks.detect.public=coco")


def test_what_is_known_and_what_is_not_is_said() -> None:
    (known,) = pretraining_overlaps("ResNet", "timm:resnet50.a1_in1k", [IMAGENET])
    assert "whose pretraining has seen ImageNet" in known and "data.public=imagenet" in known
    (web,) = pretraining_overlaps("SigLIP", "timm:vit_base_patch16_siglip_224.webli", [IMAGENET])
    assert "pretrained on webli: whether images of ImageNet" in web and "isn't known" in web
    (file,) = pretraining_overlaps("mine", "mine.pth", [IMAGENET])
    assert "whether these weights have seen ImageNet" in file and "isn't known" in file
    assert not list(pretraining_overlaps("ResNet", "timm:resnet50.a1_in1k", [SuiteSource("coco", "")]))
    nothing = source_of("photos", None, "data.public")
    (said,) = unknown_sources([nothing], ["timm:resnet50.a1_in1k", "mine.pth"])
    assert "have seen ImageNet" in said and "data.public says otherwise" in said
    assert not list(unknown_sources([nothing], ["mine.pth"])) and not list(
        unknown_sources([IMAGENET], ["timm:resnet50"])
    )


def test_a_suite_names_its_arms(class_folders: Path, tmp_path: Path) -> None:
    weights = tmp_path / "encoder.safetensors"
    save_encoder(
        random_encoder("vit_nano", image_size=16),
        weights,
        Provenance("timm vit", parent="timm:vit_base_patch16_224.augreg_in21k_ft_in1k"),
    )
    arms = {"public": {"start": "supervised", "weights": str(weights), "label": "labels of others"}}
    content: dict[str, Any] = {
        **{"title": "T", "data": {"path": str(class_folders), "val": 9, "test": 9, "public": "imagenet"}},
        **{"labels": [6], "seeds": [0], "model": "vit_nano", "image_size": 16, "baseline": "public", "arms": arms},
    }
    file = tmp_path / "suite.yaml"
    file.write_text(yaml.safe_dump(content))
    config = BenchConfig.resolve({"suite": str(file), "out": str(tmp_path / "out")})
    context = Context.of(config, read_suite_images(config))
    result = collect(context, tmp_path / "runs", lambda run: None)
    (said,) = result.seen
    assert (
        "labels of others begins with timm:vit_base_patch16_224.augreg_in21k_ft_in1k, whose pretraining has seen"
        in said
    )
    report = write_report(replace(result, missing=()), tmp_path)
    assert report.html.read_text().count("has seen ImageNet") == 2  # on the first screen, and under leakage
    with pytest.raises(ConfigError, match=r"data\.public"):
        BenchConfig.resolve({"suite": str(file), "out": "x", "data": {"public": "imagnet"}})
