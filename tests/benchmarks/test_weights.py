"""Arms that begin with weights: one's own, public ones, gone on from on the pool; and pools without labels."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import maelift
import pytest
import torch
import yaml
from maelift.benchmarks.data import read_suite_images
from maelift.benchmarks.experiment import Context
from maelift.benchmarks.suite import BenchConfig
from maelift.core.data import near_duplicate_depth
from maelift.core.data.near_duplicate_depth import Cost
from maelift.core.errors import MaeliftError
from maelift.core.models.adapt_encoder import adapt_encoder
from maelift.core.models.encoder_file import Provenance, read_encoder, save_encoder
from maelift.core.models.encoder_spec import preset_spec
from maelift.tests.benchmarks.canned import train_middle_rate, use_this_process
from maelift.tests.support import random_encoder, write_images
from PIL import Image

RECIPE = {"batch_size": 4, "mixup": 0.0, "cutmix": 0.0, "random_erasing": 0.0}


def suite(folder: Path, data: dict[str, Any], arms: dict[str, Any], **keys: Any) -> Path:
    """A small suite file."""
    file = folder / "suite.yaml"
    pretrain = {"epochs": 2, "batch_size": 8, "lr": 1e-3, "holdout": 4, "evaluations": 1}
    decoder = {"embed_dim": 16, "depth": 1, "num_heads": 2}
    for arm in arms.values():
        arm.update(recipe=RECIPE, steps={"6": 2})
        if arm["start"] == "mae":
            arm["pretrain"] = {**pretrain, "decoder": decoder}
    content = {
        "title": "Whose weights are best?",
        "data": data,
        "labels": [6],
        "seeds": [0],
        "model": "vit_nano",
        "image_size": 16,
        "workers": 2,
        "evaluations": 1,
        "baseline": "scratch",
        "tuning": {"rates": [3e-4, 1e-3, 3e-3, 1e-2], "max_doublings": 0, "max_extensions": 0},
        "arms": {**arms, "scratch": {"start": "scratch", "label": "scratch", "recipe": RECIPE, "steps": {"6": 2}}},
        **keys,
    }
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder at another image size than the suite's."""
    path = tmp_path_factory.mktemp("weights") / "encoder.safetensors"
    encoder = random_encoder("vit_nano", image_size=32)
    save_encoder(encoder, path, Provenance("pretrained elsewhere"))
    return path


@pytest.mark.slow
def test_weights_are_taken_as_they_are_or_gone_on_from(
    class_folders: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_this_process(monkeypatch, train_middle_rate)
    pool = write_images(tmp_path / "pool", 30)
    arms = {
        "public": {"start": "encoder", "weights": str(weights), "label": "public"},
        "continued": {"start": "mae", "weights": str(weights), "label": "continued"},
        "labels": {"start": "supervised", "weights": str(weights), "label": "with labels"},
    }
    file = suite(tmp_path, {"path": str(class_folders), "unlabelled": str(pool), "val": 9, "test": 9}, arms)
    result = maelift.bench(str(file), out=str(tmp_path / "out"))
    assert not result.result.missing and result.result.pool == 30
    runs = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("runs/*/result.json")]
    taken = [run for run in runs if run["run"]["kind"] == "weights"]
    assert len(taken) == 1 and "position embeddings were resized from 32×32 to 16×16 pixels" in taken[0]["notes"]
    encoders = list((tmp_path / "out").glob("runs/*/encoder.safetensors"))
    expected = read_encoder(weights).encoder.resized((16, 16)).state_dict()
    same = [
        all(torch.equal(value, expected[name]) for name, value in read_encoder(path).encoder.state_dict().items())
        for path in encoders
    ]
    assert sorted(same) == [False, True]  # continued pretraining moved them
    report = (tmp_path / "out" / "report.md").read_text()
    assert "pretrained elsewhere without labels" in report and f"begun with {weights.name}" in report
    assert str(weights.parent) not in report
    with (tmp_path / "out" / "results.csv").open() as rows:
        assert {row["arm"] for row in csv.DictReader(rows)} == {"public", "continued", "labels", "scratch"}


@pytest.mark.slow
def test_arms_may_have_models_and_parts_of_the_pool_of_their_own(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_this_process(monkeypatch, train_middle_rate)
    arms = {
        "few": {"start": "mae", "label": "few", "pool": 12},
        "more": {"start": "mae", "label": "more", "pool": 0.5},
        "all": {"start": "mae", "label": "all"},
        "micro": {"start": "mae", "label": "micro", "model": "vit_micro"},
        "labels": {"start": "supervised", "label": "labels of few", "pool": 12, "model": "vit_micro"},
    }
    file = suite(tmp_path, {"path": str(class_folders), "val": 9, "test": 9}, arms, patch_size=8)
    config = BenchConfig.resolve({"suite": str(file), "out": "x"})
    context = Context.of(config, read_suite_images(config))
    names = {arm: {context.pool_of(arm).name(i) for i in range(len(context.pool_of(arm)))} for arm in arms}
    assert len(names["few"]) == 12 and len(names["more"]) == len(names["all"]) // 2
    assert names["few"] < names["more"] < names["all"] == names["micro"] and names["labels"] == names["few"]
    assert len({run.key for arm in arms if (run := context.pretraining(arm, 0)) is not None}) == 5
    result = maelift.bench(str(file), out=str(tmp_path / "out"))
    assert not result.result.missing
    widths = sorted(
        read_encoder(path).encoder.spec.embed_dim for path in (tmp_path / "out").glob("runs/*/encoder.safetensors")
    )
    assert widths == [64, 64, 64, 128, 128]
    report = (tmp_path / "out" / "report.md").read_text()
    assert "pretrained on 12 images of the pool" in report and "vit_micro: pretrained on the pool" in report
    for key, value in (("pool", 1000), ("pool", 0), ("model", "vit_giant")):
        with pytest.raises(MaeliftError, match=rf"arms\.few\.{key}={value}: expected"):
            config = BenchConfig.resolve({"suite": str(file), "out": "x", "arms": {"few": {key: value}}})
            Context.of(config, read_suite_images(config)).check()
    with pytest.raises(MaeliftError, match=r"arms\.scratch\.pool=3: expected null, but for an arm that is pretrained"):
        BenchConfig.resolve({"suite": str(file), "out": "x", "arms": {"scratch": {"pool": 3}}})


def test_other_weights_are_other_runs(class_folders: Path, weights: Path, tmp_path: Path) -> None:
    arms = {
        name: {"start": start, "weights": str(weights), "label": name}
        for name, start in (("a", "encoder"), ("b", "mae"))
    }
    file = suite(tmp_path, {"path": str(class_folders)}, arms)

    def keys(path: Path) -> tuple[str, ...]:
        changed = {name: {"weights": str(path)} for name in arms}
        config = BenchConfig.resolve({"suite": str(file), "out": "x", "arms": changed})
        context = Context.of(config, read_suite_images(config))
        return tuple(run.key for name in arms if (run := context.pretraining(name, 0)) is not None)

    before = keys(weights)
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(weights.read_bytes())
    assert keys(moved) == before
    save_encoder(random_encoder("vit_nano", image_size=32, seed=9), moved, Provenance("other"))
    assert not set(keys(moved)) & set(before)


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ({"start": "encoder", "label": "a"}, "arms.a.weights=null: expected weights to begin with"),
        ({"start": "scratch", "label": "a", "weights": "W"}, "arms.a.weights=W: expected none, at start=scratch"),
        ({"start": "encoder", "label": "a", "weights": "gone"}, "gone"),
        ({"start": "encoder", "label": "a", "weights": "W", "pretrain": {"epochs": 3}}, "arms.a.pretrain.epochs=3"),
        ({"start": "mae", "label": "a", "compute_of": "scratch"}, "arms.a.compute_of=scratch: expected null"),
        ({"start": "supervised", "label": "a"}, "arms.a: start=supervised needs labels of the pool"),
    ],
)
def test_mistaken_weights_are_told(
    class_folders: Path, image_folder: Path, weights: Path, tmp_path: Path, arm: dict[str, Any], said: str
) -> None:
    arm = {key: str(weights) if value == "W" else value for key, value in arm.items()}
    said = said.replace("=W", f"={weights}")
    file = suite(tmp_path, {"path": str(class_folders), "unlabelled": str(image_folder)}, {})
    content = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**content, "arms": {**content["arms"], "a": arm}}))
    with pytest.raises(MaeliftError) as caught:
        maelift.bench(str(file), out=str(tmp_path / "out"))
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_weights_of_another_architecture_are_refused(class_folders: Path, tmp_path: Path) -> None:
    path = tmp_path / "micro.safetensors"
    save_encoder(random_encoder("vit_micro"), path, Provenance("other"))
    file = suite(
        tmp_path, {"path": str(class_folders)}, {"a": {"start": "encoder", "weights": str(path), "label": "a"}}
    )
    with pytest.raises(MaeliftError, match=r"arms\.a\.weights=.*Give model=vit_micro patch_size=8"):
        maelift.bench(str(file), out=str(tmp_path / "out"))


def test_an_encoder_of_other_channels_sees_gray_as_it_saw_gray_three_times(tmp_path: Path) -> None:
    parent = random_encoder("vit_nano", image_size=16)
    path = tmp_path / "encoder.safetensors"
    equal = parent.preprocessing
    save_encoder(parent, path, Provenance("colour"))
    spec = preset_spec("vit_nano", image_size=16, channels=1)
    encoder, notes = adapt_encoder(read_encoder(path).encoder, spec, str(path), "weights")
    assert notes == ["the patch kernel was adapted from 3 to 1 channels"]
    gray = torch.rand(2, 1, 16, 16)
    colour = gray.expand(-1, 3, -1, -1)
    assert torch.allclose(encoder.forward_features(gray).tokens, parent.forward_features(colour).tokens, atol=1e-5)
    assert encoder.preprocessing.mean == pytest.approx((sum(equal.mean) / 3,))


def test_what_is_nearly_tested_with_is_left_out_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split, first, count in (("train", 0, 30), ("val", 100, 8), ("test", 200, 12)):
        for label in ("a", "b"):
            write_images(tmp_path / "data" / split / label, count, first=first + 500 * (label == "b"))
    pool = write_images(tmp_path / "pool", 40, first=2000)
    tests = sorted((tmp_path / "data" / "test").rglob("*.png"))
    for number, path in enumerate(tests[:6]):
        with Image.open(path) as image:
            width, height = image.size
            image.crop((1, 1, width - 1, height - 1)).resize((48, 40)).save(pool / f"near{number}.jpg", quality=80)
    with Image.open(tests[8]) as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "data" / "train" / "a" / "mirrored.png")
    file = suite(tmp_path, {"path": str(tmp_path / "data"), "unlabelled": str(pool)}, {})

    def read(**data: Any) -> Any:
        return read_suite_images(BenchConfig.resolve({"suite": str(file), "out": "x", "data": data}))

    pools = read()
    assert len(pools.pool) == 40 and len(pools.classify.train) == 60
    assert sorted(Path(pair.name).stem for pair in pools.pairs) == ["mirrored", *(f"near{n}" for n in range(6))]
    assert {Path(pair.other).stem for pair in pools.pairs} <= {path.stem for path in tests}
    said = " ".join(pools.findings)
    assert "Images of the pool that are near-duplicates of validation or test" in said and "were left out: 6." in said
    again, off = read(), read(near="off")
    assert again.pool_digest == pools.pool_digest and len(again.pairs) == 7  # as kept from before
    assert len(off.pool) == 46 and not off.pairs and "were not searched for." in " ".join(off.findings)
    monkeypatch.setattr(near_duplicate_depth, "CROPS_COST", Cost(0, 0, 1))
    many = read()
    assert "mirrored" in {Path(pair.name).stem for pair in many.pairs}
    assert "Crops were not searched for: 46 × 40 pairs; data.near=full compares all." in " ".join(many.findings)
    assert read(near="full").pool_digest == pools.pool_digest
    monkeypatch.setattr(near_duplicate_depth, "UNCROPPED_COST", Cost(0, 0, 1))
    assert "not searched for: 46 × 40 pairs; data.near=full compares all." in " ".join(read().findings)
    monkeypatch.undo()
    use_this_process(monkeypatch)
    result = maelift.bench(str(file), out=str(tmp_path / "out"))
    html = result.report.read_text()
    assert html.count("nearly ") > 7 and "near3.jpg, nearly" in html


def test_a_pool_of_its_own_leaves_out_what_is_validated_or_tested_with(class_folders: Path, tmp_path: Path) -> None:
    pool = write_images(tmp_path / "pool", 10)
    for number, path in enumerate(sorted(class_folders.glob("dark/*.png"))):
        with Image.open(path) as image:
            image.save(pool / f"known{number}.png")
    file = suite(tmp_path, {"path": str(class_folders), "unlabelled": str(pool), "val": 15, "test": 15}, {})
    config = BenchConfig.resolve({"suite": str(file), "out": "x"})
    pools = read_suite_images(config)
    held = {part.images.name(i) for part in (pools.classify.val, pools.classify.test) for i in range(len(part))}
    left_out = sum("dark" in name for name in held)
    assert left_out and len(pools.pool) == 30 - left_out and pools.labelled_pool is None
    assert f"left out of the pool: {left_out}." in " ".join(pools.findings)
    fewer = read_suite_images(BenchConfig.resolve({"suite": str(file), "out": "x", "data": {"pool": 7}}))
    assert len(fewer.pool) == 7 and fewer.pool_digest != pools.pool_digest
    with pytest.raises(MaeliftError, match=r"data\.pool=99: data\.unlabelled has"):
        read_suite_images(BenchConfig.resolve({"suite": str(file), "out": "x", "data": {"pool": 99}}))
