"""Images are looked at before training: all of them, or few where they are many; on several processes each looks at its share."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from maelift.core.config import resolve
from maelift.core.data import image_scan
from maelift.core.data.images import ImageSet
from maelift.core.data.pixel_format import PixelFormat
from maelift.core.data.sources import find_source
from maelift.core.distributed import Ranks
from maelift.core.models.encoder_file import read_encoder
from maelift.core.training.tracker import read_metrics
from maelift.pretrain.config import PretrainConfig
from maelift.pretrain.data import read_source
from maelift.pretrain.train import pretrain
from maelift.tests.support import TINY, noise_image, one_line_error, run_maelift, run_ranks, write_images
from safetensors.torch import load_file

BROKEN = range(0, 60, 10)
ONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """60 images of which 6 are broken."""
    write_images(tmp_path / "data", 60)
    for number in BROKEN:
        (tmp_path / "data" / f"image{number:03d}.png").write_bytes(b"<html>")
    return tmp_path / "data"


def names(path: Path) -> set[str]:
    with path.open(newline="") as file:
        return {row["path"] for row in csv.DictReader(file)}


def config(data: Path, out: Path, *keys: str) -> PretrainConfig:
    return resolve(PretrainConfig, [f"data={data}", f"out={out}", *TINY, "max_rejected=0.4", *keys])


@pytest.mark.parametrize("seed", range(4))
def test_few_are_opened_and_those_held_out_are_sound(
    data: Path, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maelift.pretrain.data.SAMPLE", 8)
    chosen = config(data, tmp_path, "audit=light", f"seed={seed}", "holdout=12")
    source = read_source(chosen, find_source(str(data)), tmp_path, ONE)
    looked = len(source.manifest.kept) + len(source.manifest.rejected)
    assert looked == 20 and len(source.held_out) == 12
    broken = {f"image{number:03d}.png" for number in BROKEN}
    held_out, pool = ({images.name(n) for n in range(len(images))} for images in (source.held_out, source.pool))
    rejected = {name for name, _ in source.manifest.rejected}
    assert rejected <= broken and not held_out & broken and not held_out & pool
    assert held_out | pool | rejected == {f"image{number:03d}.png" for number in range(60)}
    assert source.manifest.digest.startswith("names-")


@pytest.mark.slow
def test_a_light_run_names_the_broken_ones_when_it_meets_them(data: Path, tmp_path: Path) -> None:
    words = [f"data={data}", f"out={tmp_path / 'run'}", *TINY, "max_rejected=0.4", "epochs=3"]
    words += ["audit=light", "seed=1"]
    done = run_maelift("pretrain", *words)
    assert done.returncode == 0, done.stderr
    named = names(tmp_path / "run" / "rejected.csv")
    quarantine = tmp_path / "run" / "quarantine.csv"
    named |= names(quarantine) if quarantine.exists() else set()
    assert named == {f"image{number:03d}.png" for number in BROKEN}
    assert run_maelift("pretrain", *words).returncode == 0  # there already
    noise_image(77).save(data / "another.png")
    one_line_error(run_maelift("pretrain", *words), "on other images", "manifest names-")


@pytest.mark.slow
def test_a_light_run_meets_broken_images_only_in_training(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maelift.pretrain.data.SAMPLE", 4)
    pretrain(config(data, tmp_path / "run", "audit=light", "epochs=3"))
    named, met = names(tmp_path / "run" / "rejected.csv"), names(tmp_path / "run" / "quarantine.csv")
    assert met and not named & met and named | met == {f"image{number:03d}.png" for number in BROKEN}


@pytest.mark.slow
def test_a_full_run_of_a_sound_folder_equals_a_light_one(tmp_path: Path) -> None:
    write_images(tmp_path / "data", 40)
    weights = []
    for audit in ("full", "light"):
        pretrain(config(tmp_path / "data", tmp_path / audit, f"audit={audit}", "epochs=2"))
        weights.append(load_file(tmp_path / audit / "encoder.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_too_many_broken_among_few_end_the_run(data: Path, tmp_path: Path) -> None:
    for number in range(0, 60, 3):
        (data / f"image{number:03d}.png").write_bytes(b"")
    words = [f"data={data}", f"out={tmp_path / 'run'}", *TINY, "audit=light", "max_rejected=0.2"]
    one_line_error(run_maelift("pretrain", *words), "images are broken, more than max_rejected=0.2")


@pytest.mark.slow
@pytest.mark.parametrize("audit", ["full", "light"])
def test_two_processes_look_at_a_share_each_and_train_on_the_same(data: Path, tmp_path: Path, audit: str) -> None:
    keys = [f"data={data}", *TINY, "max_rejected=0.4", "epochs=2", "log_every=1", f"audit={audit}"]
    one = run_maelift("pretrain", *keys, f"out={tmp_path / 'one'}")
    assert one.returncode == 0, one.stderr
    done = run_ranks(2, "pretrain", *keys, f"out={tmp_path / 'two'}")
    assert done.returncode == 0, done.stderr
    for name in ("rejected.csv", "data.json"):
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "two" / name).read_text()
    losses = [
        [record["train/loss"] for record in read_metrics(tmp_path / run / "metrics.jsonl") if "train/loss" in record]
        for run in ("one", "two")
    ]
    assert len(losses[0]) >= 10 and losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_the_encoder_file_says_that_only_names_were_compared(tmp_path: Path) -> None:
    write_images(tmp_path / "data", 24)
    pretrain(config(tmp_path / "data", tmp_path / "run", "audit=light", "epochs=1"))
    told = read_encoder(tmp_path / "run" / "encoder.safetensors").provenance.data_manifest
    assert told == json.loads((tmp_path / "run" / "data.json").read_text())["manifest"]
    assert str(told).startswith("names-")


def test_reindex_looks_again_and_goes_on_with_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "data", 24)
    monkeypatch.setattr("maelift.core.data.image_scan.CACHED_SECONDS", 0.0)
    monkeypatch.setattr("maelift.core.data.image_scan.RACY_SECONDS", 0.0)
    looked: list[int] = []
    look = image_scan.read_image_info

    def noting(images: ImageSet, number: int, form: PixelFormat | None = None) -> image_scan.ImageInfo:
        looked.append(number)
        return look(images, number, form)

    monkeypatch.setattr("maelift.core.data.image_scan.read_image_info", noting)
    counts = []
    for keys in ([], [], ["reindex=true"]):
        looked.clear()
        pretrain(config(tmp_path / "data", tmp_path / "run", "epochs=1", *keys))
        counts.append(len(looked))
    assert counts == [24, 0, 24]
