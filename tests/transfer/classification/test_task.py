"""Classification as people run it: what is learned, what is left behind, what is gone on with, what is refused."""

from __future__ import annotations

import csv
import json
import logging
import pickle
import shutil
import signal
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import maelift
import pytest
import torch
import yaml
from maelift.core.data.classification_reader import read_splits
from maelift.core.distributed import Ranks
from maelift.core.errors import MaeliftError
from maelift.core.models.encoder_file import Provenance, read_encoder, save_encoder
from maelift.core.models.encoder_spec import EncoderSpec
from maelift.core.models.preprocessing import Preprocessing
from maelift.core.training.run_dir import RunFolder
from maelift.core.training.tracker import read_metrics
from maelift.tests.support import (
    has_checkpoint,
    noise_image,
    one_line_error,
    run_maelift,
    run_ranks,
    start_maelift,
    write_images,
)
from maelift.transfer.classification.config import ClassifyConfig
from maelift.transfer.classification.evaluation import evaluate_classifier
from maelift.transfer.classification.task import MultiLabelMixup
from maelift.transfer.finetune import run as run_transfer
from maelift.transfer.init_weights import fresh_encoder
from maelift.transfer.result import TransferResult
from maelift.transfer.trained_model import load_model
from PIL import Image
from safetensors.torch import load_file, save_file

SPEC = EncoderSpec(image_size=(16, 16), patch_size=4, embed_dim=32, depth=2, num_heads=2)
PLAIN = {"mixup": 0, "cutmix": 0, "random_erasing": 0, "drop_path": 0, "label_smoothing": 0}
KEYS: dict[str, Any] = {
    **PLAIN,
    "val": 12,
    "test": 12,
    "batch_size": 16,
    "steps": 30,
    "lr": 3e-3,
    "layer_decay": 0.9,
    "evaluations": 3,
    "workers": 0,
}
"""Keys that make a fine-tuning of a second."""
ENOUGH = 0.8
"""An accuracy well above that of chance, 1/3."""
ONE = Ranks(0, 1, torch.device("cpu"))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What maelift logs."""
    monkeypatch.setattr(logging.getLogger("maelift"), "propagate", True)
    caplog.set_level(logging.INFO, "maelift")
    return caplog


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder file for colour images of 16×16 pixels."""
    return write_encoder(tmp_path_factory.mktemp("encoder") / "encoder.safetensors")


def write_encoder(path: Path, spec: EncoderSpec = SPEC, seed: int = 0) -> Path:
    save_encoder(fresh_encoder(spec, Preprocessing.default(spec.channels), seed), path, Provenance("test"))
    return path


def run(data: Path, out: Path, **keys: Any) -> TransferResult:
    result: TransferResult = maelift.transfer("classify", data=data, out=out, **{**KEYS, **keys})
    return result


def figure(result: TransferResult, name: str = "top1") -> float:
    """A figure of the test split that was there to be measured."""
    value = result.test.metrics[name]
    assert value is not None
    return value


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def results_of(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "test.json").read_text())
    return content


def refused(data: Path, out: Path, *expected: str, **keys: Any) -> None:
    """Check that a run is refused in one line, and that the folder may still be used."""
    with pytest.raises(MaeliftError) as caught:
        run(data, out, **keys)
    assert "\n" not in str(caught.value)
    for text in expected:
        assert text in str(caught.value), caught.value
    assert not (out / "config.yaml").exists()


def write_csv(path: Path, rows: list[tuple[str, str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    return path


def split_csv(class_folders: Path, path: Path, **classes: dict[str, str]) -> Path:
    """The class folders as a CSV with splits; ``classes`` renames the labels of one."""
    rows = []
    for label in ("dark", "middle", "light"):
        for number in range(20):
            split = "test" if number < 4 else "val" if number < 8 else "train"
            name = classes.get(split, {}).get(label, label)
            rows.append((str(class_folders / label / f"{number}.png"), name, split))
    return write_csv(path, rows)


def test_labelled_images_in_classifier_out(
    class_folders: Path, encoder: Path, tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    result = run(class_folders, tmp_path, encoder=encoder)
    assert figure(result) > ENOUGH and result.val > ENOUGH
    assert result.test.count == result.val_count == 12 and "test: top1 " in result.summary()
    model = load_model(tmp_path / "model.safetensors")
    classes = model.classes
    assert classes == ("dark", "light", "middle") and model.head.out_features == 3
    file = read_encoder(tmp_path / "encoder.safetensors")
    assert same(file.encoder.state_dict(), model.encoder.state_dict())
    assert file.provenance.parent == read_encoder(encoder).content_hash and file.provenance.steps == 30
    assert results_of(tmp_path)["metrics"]["top1"] == figure(result) and results_of(tmp_path)["steps"] == 30
    table = list(csv.reader((tmp_path / "confusion_test.csv").open(encoding="utf-8")))
    assert table[0][1:] == list(classes) and [row[0] for row in table[1:]] == list(classes)
    right = sum(int(table[1 + number][1 + number]) for number in range(3))
    assert right == round(12 * figure(result))
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["steps"] == 30
    evaluated = {record["step"]: record for record in read_metrics(tmp_path / "metrics.jsonl") if "val/top1" in record}
    assert list(evaluated) == [10, 20, 30]
    assert not any(key.startswith("test") for record in evaluated.values() for key in record)
    assert not has_checkpoint(tmp_path)

    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert run(class_folders, tmp_path, encoder=encoder) == result
    assert "nothing was done again" in said.text
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    with pytest.raises(MaeliftError, match=r"another configuration \(steps: 30 -> 31\)"):
        run(class_folders, tmp_path, encoder=encoder, steps=31)
    with pytest.raises(MaeliftError, match="from another encoder"):
        run(class_folders, tmp_path, encoder=write_encoder(tmp_path / "other.safetensors", seed=1))
    moved = shutil.copy(encoder, tmp_path / "moved.safetensors")
    assert run(class_folders, tmp_path, encoder=moved) == result


def test_scratch_takes_its_own_recipe(class_folders: Path, tmp_path: Path) -> None:
    fine_tuning, scratch = (
        ClassifyConfig.resolve([*words, "data=x", "out=y"]) for words in (["encoder=z"], ["init=scratch"])
    )
    assert (fine_tuning.layer_decay, fine_tuning.ema_decay, fine_tuning.betas) == (0.65, None, (0.9, 0.999))
    assert (scratch.layer_decay, scratch.ema_decay, scratch.betas) == (1.0, 0.9999, (0.9, 0.95))
    assert ClassifyConfig.resolve(["init=scratch", "ema_decay=0.5", "data=x", "out=y"]).ema_decay == 0.5
    result = run(class_folders, tmp_path, init="scratch", model="vit_nano", image_size=16)
    assert figure(result) > ENOUGH
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["ema_decay"] == 0.9999 and config["weight_decay"] == 0.3 and config["lr"] == 3e-3


@pytest.mark.slow
def test_scratch_takes_an_encoder_s_shape_but_not_its_weights(class_folders: Path, tmp_path: Path) -> None:
    files = [write_encoder(tmp_path / f"{seed}.safetensors", seed=seed) for seed in (1, 2)]
    for start in ("scratch", "encoder"):
        for number, file in enumerate(files):
            run(class_folders, tmp_path / f"{start}{number}", encoder=file, init=start, steps=2)
    assert same(weights(tmp_path / "scratch0"), weights(tmp_path / "scratch1"))
    assert not same(weights(tmp_path / "encoder0"), weights(tmp_path / "encoder1"))
    trained = read_encoder(tmp_path / "scratch0" / "encoder.safetensors")
    assert trained.encoder.spec == SPEC and trained.provenance.parent is None


@pytest.mark.slow
def test_the_test_labels_change_nothing_but_the_test(class_folders: Path, encoder: Path, tmp_path: Path) -> None:
    swapped = {"dark": "light", "light": "dark"}
    right = run(split_csv(class_folders, tmp_path / "right.csv"), tmp_path / "right", encoder=encoder)
    wrong = run(split_csv(class_folders, tmp_path / "wrong.csv", test=swapped), tmp_path / "wrong", encoder=encoder)
    assert same(weights(tmp_path / "right"), weights(tmp_path / "wrong"))
    assert wrong.val == right.val > ENOUGH
    assert figure(right) > ENOUGH and figure(wrong) < 0.5
    shutil.copy(tmp_path / "wrong.csv", tmp_path / "right.csv")
    with pytest.raises(MaeliftError, match="other images or labels"):
        run(tmp_path / "right.csv", tmp_path / "right", encoder=encoder)


def test_the_weights_of_the_best_validation_are_kept(class_folders: Path, encoder: Path, tmp_path: Path) -> None:
    misleading = {"dark": "middle", "middle": "light", "light": "dark"}
    data = split_csv(class_folders, tmp_path / "labels.csv", val=misleading)
    result = run(data, tmp_path / "run", encoder=encoder, evaluations=30)
    curve = [record["val/top1"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl") if "val/top1" in record]
    best = max(curve)
    assert len(curve) == 30 and curve[-1] < best == result.val
    assert results_of(tmp_path / "run")["best_step"] == 1 + curve.index(best)
    model = load_model(result.model)
    kept = evaluate_classifier(model, read_splits(data).val, "val", ranks=ONE)
    assert kept.metrics["top1"] == best


@pytest.mark.slow
def test_a_stopped_run_ends_as_if_it_never_stopped(class_folders: Path, encoder: Path, tmp_path: Path) -> None:
    keys = {
        **{"mixup": 0.8, "cutmix": 1.0, "random_erasing": 0.25, "drop_path": 0.1, "ema_decay": 0.99},
        **{"steps": 150, "evaluations": 30},
    }
    run(class_folders, tmp_path / "whole", encoder=encoder, **keys)
    out = tmp_path / "stopped"
    words = ["transfer", "classify", f"data={class_folders}", f"out={out}", f"encoder={encoder}"]
    words += [f"{key}={value}" for key, value in {**KEYS, **keys}.items()]
    process = start_maelift(*words)
    end = time.monotonic() + 120
    while not (out / "tensorboard").exists():
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "The same command goes on from there" in error and "Traceback" not in error
    assert has_checkpoint(out) and not (out / "model.safetensors").exists()
    with pytest.raises(MaeliftError, match=r"mixup: 0.8 -> 0.7"):
        run(class_folders, out, encoder=encoder, **{**keys, "mixup": 0.7})
    on = run_maelift(*words)
    assert on.returncode == 0 and "going on from step" in on.stderr, on.stderr
    assert same(weights(out), weights(tmp_path / "whole"))
    assert results_of(out) == results_of(tmp_path / "whole")
    assert read_metrics(out / "metrics.jsonl") == read_metrics(tmp_path / "whole" / "metrics.jsonl")


@pytest.mark.slow
def test_two_processes_and_two_passes_make_the_losses_of_one(
    class_folders: Path, encoder: Path, tmp_path: Path
) -> None:
    keys = {**KEYS, "steps": 8, "encoder": encoder, "data": class_folders}
    losses: dict[int, list[float]] = {}
    for accumulate in (1, 2):
        out, heard = tmp_path / f"passes{accumulate}", losses.setdefault(accumulate, [])
        config = ClassifyConfig.resolve({**keys, "out": out, "accumulate": accumulate})
        run_transfer(config, listener=lambda progress, heard=heard: heard.append(progress.loss))  # type: ignore[misc]
    assert len(losses[1]) == 8 and losses[2] == pytest.approx(losses[1], rel=1e-4)
    words = [f"{key}={value}" for key, value in {**keys, "out": tmp_path / "ranks"}.items()]
    done = run_ranks(2, "transfer", "classify", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test: top1") == 1
    logged = [read_metrics(tmp_path / out / "metrics.jsonl") for out in ("passes1", "ranks")]
    assert any("train/loss" in record for record in logged[0])
    for one, two in zip(*logged, strict=True):
        assert two == pytest.approx(one, rel=1e-3)
    ranks, passes = results_of(tmp_path / "ranks"), results_of(tmp_path / "passes1")
    assert ranks["confusion"] == passes["confusion"] and ranks["steps"] == passes["steps"]
    assert ranks["metrics"]["nll"] == pytest.approx(passes["metrics"]["nll"], rel=1e-3)


def test_lower_layers_learn_more_slowly(class_folders: Path, encoder: Path, tmp_path: Path) -> None:
    run(class_folders, tmp_path, encoder=encoder, layer_decay=0.1, weight_decay=0, steps=5, evaluations=1)
    before, after = read_encoder(encoder).encoder.state_dict(), weights(tmp_path)
    moved = [
        float((after[f"encoder.{name}"] - before[name]).abs().max())
        for name in ("patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "blocks.1.mlp.fc1.weight", "norm.weight")
    ]
    assert moved[3] > 3e-3
    for lower, upper in pairwise(moved):
        assert lower == pytest.approx(upper / 10, rel=0.5)


def test_a_csv_with_unusual_names_and_splits(tmp_path: Path) -> None:
    names = ("über, größe.PNG", "日本.png", 'with "quotes".png', "plain.png")
    rows = []
    for split in ("train", "val", "test"):
        for number, name in enumerate(names):
            path = tmp_path / split / name
            path.parent.mkdir(exist_ok=True)
            noise_image(number).save(path)
            rows.append((f"{split}/{name}", ("²", "10")[number % 2], split))
    data = write_csv(tmp_path / "labels.csv", rows)
    result = run(data, tmp_path / "run", encoder=write_encoder(tmp_path / "e.safetensors"), steps=2, batch_size=2)
    assert result.test.count == 4 and result.val_count == 4
    assert load_model(result.model).classes == ("10", "²")


def test_a_share_of_the_labels_is_drawn_evenly(class_folders: Path, encoder: Path, tmp_path: Path) -> None:
    run(class_folders, tmp_path / "half", encoder=encoder, labels=0.5, steps=None, epochs=2)
    assert results_of(tmp_path / "half")["steps"] == 3  # 36 images in batches of 16, rounded up
    method = read_encoder(tmp_path / "half" / "encoder.safetensors").provenance.method
    assert "18 labelled images" in method
    refused(class_folders, tmp_path / "more", "only 36 labelled images", encoder=encoder, labels=37)
    refused(class_folders, tmp_path / "more", "at least one of each class", encoder=encoder, labels=2)
    run(class_folders, tmp_path / "more", encoder=encoder, labels=36, steps=1, epochs=7, evaluations=9)
    assert results_of(tmp_path / "more")["steps"] == 1 and results_of(tmp_path / "more")["best_step"] == 1


@pytest.mark.slow
def test_another_image_size_than_the_encoder_s(class_folders: Path, encoder: Path, tmp_path: Path) -> None:
    refused(class_folders, tmp_path / "run", "image_size=[30,30]", "[32,32]", encoder=encoder, image_size=30)
    refused(class_folders, tmp_path / "run", "patch_size=8", "the encoder's 4", encoder=encoder, patch_size=8)
    result = run(class_folders, tmp_path / "run", encoder=encoder, image_size=(24, 16))
    assert figure(result) > ENOUGH
    model = load_model(result.model)
    assert model.encoder.spec.image_size == (24, 16) and model.encoder.pos_embed.shape == (1, 25, 32)


@pytest.mark.slow
def test_gray_images_and_colour_encoders_go_together_either_way(class_folders: Path, tmp_path: Path) -> None:
    gray = tmp_path / "gray"
    for path in class_folders.rglob("*.png"):
        (gray / path.parent.name).mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            image.convert("L").save(gray / path.parent.name / path.name)
    encoders = {n: write_encoder(tmp_path / f"{n}.safetensors", replace(SPEC, channels=n)) for n in (1, 3, 4)}
    for name, data, channels in (("gray on colour", gray, 3), ("colour on gray", class_folders, 1)):
        result = run(data, tmp_path / name, encoder=encoders[channels])
        assert figure(result) > ENOUGH
        assert load_model(result.model).encoder.spec.channels == channels
    result = run(gray, tmp_path / "scratch", init="scratch", model="vit_nano", image_size=16, steps=2)
    trained = load_model(result.model).encoder
    assert trained.spec.channels == 1 and trained.preprocessing.mean != (0.5,)  # the data's own statistics
    refused(gray, tmp_path / "four", "1 channel, not 4 (channels=4)", encoder=encoders[4])


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def test_what_is_no_encoder_is_refused(class_folders: Path, encoder: Path, tmp_path: Path) -> None:
    target = tmp_path / "touched"
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps({"model": Harmful(target)}, protocol=2))
    torch.save({"model": Harmful(target)}, tmp_path / "zip.pth")
    (tmp_path / "text.pth").write_text("These are no weights.")
    save_file({"head.weight": torch.zeros(3, 3)}, tmp_path / "head.safetensors")
    run(class_folders, tmp_path / "classifier", encoder=encoder, steps=1)
    shutil.copy(tmp_path / "classifier" / "model.safetensors", tmp_path)
    for name, expected in (
        ("pickle.pth", "nothing was run"),
        ("zip.pth", "nothing was run"),
        ("text.pth", "not a weights file"),
        ("head.safetensors", "not the weights of an encoder"),
        ("model.safetensors", "not the weights of an encoder"),
        ("nowhere.pth", "no such file"),
        ("", "expected an encoder file, or init=scratch"),
    ):
        file = str(tmp_path / name) if name else ""
        refused(class_folders, tmp_path / "run", name, expected, encoder=file, model="vit_nano", image_size=16)
    assert not target.exists()


def test_an_encoder_in_half_precision_is_trained_in_full(class_folders: Path, encoder: Path, tmp_path: Path) -> None:
    half = read_encoder(encoder).encoder.half()
    save_encoder(half, tmp_path / "half.safetensors", Provenance("test"))
    assert figure(run(class_folders, tmp_path / "run", encoder=tmp_path / "half.safetensors")) > ENOUGH
    assert {value.dtype for value in weights(tmp_path / "run").values()} == {torch.float32}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"val": 0}, "val=0 makes 0 of 48 images"),
        ({"test": 58}, "one of each class for training"),
        ({"batch_size": 15, "accumulate": 2}, "batch_size=15: expected a multiple of 2"),
        ({"batch_size": 6, "accumulate": 2, "mixup": 0.8}, "a multiple of 4"),
        ({"workers": -1}, "workers=-1: expected 0 or more"),
        ({"betas": (0.9, 1.0)}, "betas=[0.9,1]: expected two shares"),
        ({"layer_decay": 1.5}, "a factor of at most 1"),
        ({"evaluations": 0}, "evaluations=0: expected a number above 0"),
    ],
)
def test_keys_that_do_not_fit_are_refused(
    class_folders: Path, encoder: Path, tmp_path: Path, keys: dict[str, Any], expected: str
) -> None:
    refused(class_folders, tmp_path / "run", expected, encoder=encoder, **keys)


def test_tiny_data_keep_an_image_of_each_class_to_train_on(encoder: Path, tmp_path: Path) -> None:
    for label, count in (("many", 5), ("few", 2), ("one", 1)):
        write_images(tmp_path / "data" / label, count)
    splits = read_splits(tmp_path / "data", val=2, test=2)
    assert [len(part) for _, part in splits.items()] == [4, 2, 2] and set(splits.train.labels) == {0, 1, 2}
    result = run(tmp_path / "data", tmp_path / "run", encoder=encoder, val=2, test=2, steps=2)
    rows = [row for row in result.test.confusion or () if sum(row)]
    assert len(rows) == 2  # the class of one image has none to be tested on, and does not count
    shares = [row[number] / sum(row) for number, row in enumerate(result.test.confusion or ()) if sum(row)]
    assert result.test.metrics["balanced"] == pytest.approx(sum(shares) / 2)


def test_folders_that_hold_something_else_or_half_a_run(class_folders: Path, encoder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    for content in ("- a list\n", "key: [", "\xff"):
        (out / "config.yaml").write_text(content, encoding="latin-1")
        with pytest.raises(MaeliftError, match=r"config.yaml: not a file of a maelift run"):
            run(class_folders, out, encoder=encoder)
    (out / "config.yaml").unlink()
    config = ClassifyConfig.resolve({**KEYS, "data": class_folders, "out": out, "encoder": encoder, "steps": 2})
    with RunFolder.open(out, config, ONE) as folder:
        folder.check_data("x", ONE)
    (out / "data.json").unlink()  # killed between the two
    (out / "checkpoints" / "step-00000001").mkdir(parents=True)
    with pytest.raises(MaeliftError, match=r"checkpoints: every checkpoint in it is damaged"):
        run(class_folders, out, encoder=encoder, steps=2)
    shutil.rmtree(out / "checkpoints")
    run(class_folders, out, encoder=encoder, steps=2)
    assert results_of(out)["steps"] == 2


def test_an_image_that_goes_missing_is_told_in_one_line(encoder: Path, tmp_path: Path) -> None:
    for label in ("a", "b"):
        write_images(tmp_path / "data" / label, 4)
    removed = False

    def remove(progress: object) -> None:
        nonlocal removed
        for path in (tmp_path / "data").rglob("*.png") if not removed else ():
            path.unlink()
        removed = True

    keys = {**KEYS, "val": 1, "test": 1, "workers": 2, "evaluations": 1}
    config = ClassifyConfig.resolve({**keys, "data": tmp_path / "data", "out": tmp_path / "run", "encoder": encoder})
    with pytest.raises(MaeliftError, match=r"image00\d.png: ") as caught:
        run_transfer(config, listener=remove)
    assert "\n" not in str(caught.value)


def test_a_loss_that_is_not_finite_ends_the_run_in_one_line(class_folders: Path, encoder: Path, tmp_path: Path) -> None:
    keys = {**KEYS, "data": class_folders, "out": tmp_path / "run", "encoder": encoder, "lr": 1e30, "warmup": 0}
    done = run_maelift("transfer", "classify", *(f"{key}={value}" for key, value in keys.items()))
    one_line_error(done, "the weights were left as they were", "Lower the learning rate")
    assert not (tmp_path / "run" / "model.safetensors").exists()


def two_labels_csv(class_folders: Path, path: Path) -> Path:
    """The class folders as images with several classes: their brightness, "grey" where it is dark or middle, or none."""
    labels = {"dark": "dark|grey", "middle": "grey", "light": ""}
    rows = [
        (
            str(class_folders / folder / f"{number}.png"),
            cell,
            "test" if number < 4 else "val" if number < 8 else "train",
        )
        for folder, cell in labels.items()
        for number in range(20)
    ]
    return write_csv(path, rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        {"lr": 1e-2},
        {"lr": 1e-2, "mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1, "steps": 60},
        {"method": "knn"},
        {"method": "linear", "recipe": "small", "steps": 1000, "lr": 3.0},
        {"method": "linear", "solver": "lbfgs"},
    ],
)
def test_images_with_several_classes_each(
    class_folders: Path, encoder: Path, tmp_path: Path, keys: dict[str, Any]
) -> None:
    data = two_labels_csv(class_folders, tmp_path / "labels.csv")
    probe = {name: 1.0 for name in ("layer_decay",)} if "method" in keys else {}
    result = run(data, tmp_path / "run", encoder=encoder, **{**probe, **keys})
    assert result.metric == "val/map" and result.val > 0.8
    assert figure(result, "map") > 0.8 and result.test.confusion is None
    assert set(result.test.per_class) == {"dark", "grey"} and result.test.per_class["dark"]["count"] == 4
    model = load_model(result.model)
    found = model.predict([class_folders / folder / "1.png" for folder in ("dark", "middle", "light")])
    for entry in found:
        likely = {name for name, probability in entry.probabilities.items() if probability >= 0.5}
        assert entry.labels is not None and set(entry.labels) == likely
    assert found[0].probabilities["dark"] > found[2].probabilities["dark"]


def test_mixed_images_of_several_classes_get_their_classes_mixed() -> None:
    mix = MultiLabelMixup(mixup_alpha=1.0, label_smoothing=0.1, num_classes=3)
    images = torch.stack([torch.full((1, 8, 8), float(value)) for value in range(4)])
    targets = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 1, 1], [0, 0, 0]])
    mixed, classes = mix(images.clone(), targets)
    share = 1 - float(mixed[0, 0, 0, 0]) / 3  # of the first image, which is 0; the last one is 3
    assert classes[0].tolist() == pytest.approx([share, 0, 0], abs=1e-5)
    assert classes[1].tolist() == pytest.approx([0, 1, 1 - share], abs=1e-5)
