"""What a pretraining shows of itself: probes that never touch the weights, events, waiting, a page at the end."""

from __future__ import annotations

import html
import importlib
import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from maelift.commands import COMMANDS
from maelift.core.config_keys import describe
from maelift.core.training.tracker import Tracker, read_events, read_metrics
from maelift.pretrain.evaluation import picture_columns
from maelift.tests.support import TINY, environment, noise_image, one_line_error, preloaded, run_maelift, write_images
from PIL import Image
from safetensors.torch import load_file

WANDB = """
__version__ = "99.0"
class Run:
    def define_metric(self, *a, **k): pass
    def log(self, metrics): print("LOGGED", sorted(metrics))
    def finish(self, exit_code=0): print("FINISHED", exit_code)
def init(**keys): print("INIT", keys["project"]); return Run()
"""


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, bright and dark, in class folders."""
    folder = tmp_path_factory.mktemp("labelled")
    for name, shift in (("bright", 120), ("dark", 0)):
        (folder / name).mkdir()
        for number in range(20):
            image = noise_image(number + shift).point(lambda value, shift=shift: value // 2 + shift)
            image.save(folder / name / f"{number}.png")
    return folder


@dataclass(frozen=True)
class Run:
    """A run without probes, which gives its figures to Weights & Biases too: its folder, and what it printed."""

    out: Path
    printed: str


@pytest.fixture(scope="module")
def plain(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("plain")
    (folder / "site").mkdir()
    (folder / "site" / "wandb.py").write_text(WANDB)
    path = f"{folder / 'site'}:{environment().get('PYTHONPATH', '')}"
    words = [
        "pretrain",
        f"data={image_folder}",
        f"out={folder / 'run'}",
        *TINY,
        "epochs=4",
        "log_every=5",
        "wandb=mine",
    ]
    done = preloaded().run(words, folder, {**environment(), "PYTHONPATH": path}, 240)
    assert done.returncode == 0, done.stderr
    return Run(folder / "run", done.stdout)


@pytest.mark.slow
def test_a_probe_is_logged_and_never_touches_the_weights(
    image_folder: Path, labelled: Path, plain: Run, tmp_path: Path
) -> None:
    probe = [f"probe.data={labelled}", "probe.labels=10", "probe.kinds=[knn,linear,attentive]", "probe.times=2"]
    done = run_maelift("pretrain", f"data={image_folder}", f"out={tmp_path / 'with'}", *TINY, "epochs=4", *probe)
    assert done.returncode == 0, done.stderr
    found, expected = (load_file(out / "encoder.safetensors") for out in (tmp_path / "with", plain.out))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    records = [r for r in read_metrics(tmp_path / "with" / "metrics.jsonl") if "probe/knn_top1_val" in r]
    assert len(records) == 2
    for kind in ("knn", "linear", "attentive"):
        assert 0 <= records[-1][f"probe/{kind}_top1_val"] <= 1
    assert records[-1]["probe/linear_top1_val"] > 0.7  # bright from dark
    page = (tmp_path / "with" / "summary.html").read_text()
    assert "understate" in page and "1 seed" in page
    missing = run_maelift("pretrain", f"data={image_folder}", f"out={tmp_path / 'x'}", *TINY, "probe.data=/nowhere")
    one_line_error(missing, "/nowhere")


@pytest.mark.curves
@pytest.mark.slow
def test_the_page_is_whole_and_shows_hostile_names_as_text(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", 24)
    hostile = data / "<script>alert(1)<.png"
    hostile.write_bytes(b"nothing")
    out = tmp_path / "run"
    done = run_maelift("pretrain", f"data={data}", f"out={out}", *TINY, "epochs=2", "holdout=0")
    assert done.returncode == 0, done.stderr
    page = (out / "summary.html").read_text()
    assert "<script>alert" not in page
    outside = re.findall(
        r"""(?:src|href)\s*=\s*["']?(?:https?:)?//[^"'\s>]*|url\(["']?(?:https?:)?//[^)]*|@import[^;]*""", page
    )
    assert not outside
    assert page.count("data:image/") >= 2 and len(re.findall(r"<img(?![^>]*\balt=)", page)) == 0
    assert "1 image is broken and was left out" in page and "&lt;script&gt;alert(1)&lt;.png" in page
    assert "No images were held out" in page and "as none were held out" in page
    assert not re.findall(r"<text(?! fill)", page)  # every label of a chart has the page's colour, also on a dark one
    for command in re.findall(r"<code>maelift (.*?)</code>", page):
        words = html.unescape(command).split()
        name = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
        if name in ("bench", "export"):
            continue  # their keys depend on the suite and the framework
        schema = getattr(importlib.import_module(f"maelift.{COMMANDS[name].module}"), COMMANDS[name].schema)
        keys = {word.split("=")[0] for word in words if "=" in word}
        assert keys <= {entry.key for entry in describe(schema)}, command


@pytest.mark.slow
def test_rates_waiting_and_memory_are_logged(plain: Run) -> None:
    record = [r for r in read_metrics(plain.out / "metrics.jsonl") if "train/loss" in r][-1]
    assert record["images_per_second"] > 0 and 0 <= record["data_wait_share"] <= 1
    assert record["memory/cpu_peak_mib"] > 50 and record["lr"] >= 0 and record["gradient_norm"] > 0


def test_a_run_that_waits_for_its_images_is_told_what_to_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maelift.core.training.tracker.WAIT_WINDOW", 0.1)
    with Tracker(tmp_path, "test", total=4, images_per_step=8, loading_advice="Give it more workers.") as tracker:
        tracker.resume_from(0)
        time.sleep(0.15)
        tracker.add_data_wait(0.12)
        tracker.progress(1, 0.0)
        time.sleep(0.25)
        tracker.progress(2, 0.0)
    events = read_events(tmp_path / "events.jsonl")
    assert [event.kind for event in events] == ["loader"] and "more workers" in events[0].text


def test_events_after_the_checkpoint_are_forgotten_by_the_run_that_goes_on(tmp_path: Path) -> None:
    with Tracker(tmp_path, "test", total=4, images_per_step=8) as tracker:
        tracker.resume_from(0)
        tracker.event(1, "skip", "one")
        tracker.event(3, "skip", "three")
    with Tracker(tmp_path, "test", total=4, images_per_step=8) as tracker:
        tracker.resume_from(2)
    assert [event.step for event in read_events(tmp_path / "events.jsonl")] == [1]


def test_what_led_to_going_back_is_not_forgotten_by_the_run_that_goes_on(tmp_path: Path) -> None:
    with Tracker(tmp_path, "test", total=9, images_per_step=8) as tracker:
        tracker.resume_from(0)
        tracker.event(5, "skip", "five")
        tracker.rewind_to(3)
        tracker.event(3, "rewind", "back to three")
        tracker.event(7, "skip", "seven")
    with Tracker(tmp_path, "test", total=9, images_per_step=8) as tracker:
        tracker.resume_from(3)
    assert [event.text for event in read_events(tmp_path / "events.jsonl")] == ["five", "back to three"]


@pytest.mark.slow
def test_weights_and_biases_gets_the_figures_where_it_is_installed(plain: Run) -> None:
    assert "INIT mine" in plain.printed and "train/loss" in plain.printed and "FINISHED 0" in plain.printed


@pytest.mark.slow
def test_pictures_of_reconstructions_are_kept_by_step(plain: Run) -> None:
    pictures = sorted((plain.out / "reconstructions").glob("step-*.png"))
    assert len(pictures) == 2
    with Image.open(pictures[-1]) as picture:
        assert picture.width > 300


@pytest.mark.slow
def test_pictures_of_deep_values_in_five_channels_use_the_whole_scale(tmp_path: Path) -> None:
    """Values that fill a tenth of their range are stretched; a decoder that predicts a share in training fills in all."""
    (tmp_path / "data").mkdir()
    for number in range(24):
        values = np.random.default_rng(number).normal(0.05, 0.02, (20, 20, 5)).astype(np.float32)
        np.save(tmp_path / "data" / f"{number}.npy", values.clip(0, 1))
    out, cross = tmp_path / "run", ["decoder.attention=cross", "decoder.predict=0.25"]
    words = [f"data={tmp_path / 'data'}", f"out={out}", *TINY, "value_range=[0,1]", "epochs=1", *cross]
    done = run_maelift("pretrain", *words)
    assert done.returncode == 0, done.stderr
    with Image.open(out / "reconstruction.png") as picture:
        originals, _, rebuilt = (np.array(column[0]) for column in picture_columns(picture.convert("RGB"), 4))
    assert originals.min() == 0 and originals.max() == 255 and 40 < originals.std() < 90
    assert rebuilt.std() > 20 and (rebuilt != originals).any()
    assert (
        "Of 5 channels these are shown as red, green and blue: channel0, channel1, channel2."
        in (out / "summary.html").read_text()
    )
