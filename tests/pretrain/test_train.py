"""Pretraining as people run it: processes that are stopped, killed, repeated, and split over ranks."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import maelift
import pytest
import torch
from maelift.core.errors import MaeliftError
from maelift.core.models.decoder_file import read_decoder
from maelift.core.models.encoder_file import read_encoder
from maelift.core.training.tracker import read_metrics
from maelift.tests.support import (
    TINY,
    environment,
    has_checkpoint,
    one_line_error,
    run_maelift,
    run_ranks,
    start_maelift,
    write_images,
)
from PIL import Image


def words(data: Path, out: Path, *more: str) -> list[str]:
    return ["pretrain", f"data={data}", f"out={out}", *TINY, *more]


def command(data: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "maelift", *words(data, out, *more)]


def pretrained(data: Path, out: Path, *more: str) -> str:
    """Pretrain to the end; what was said."""
    done = run_maelift(*words(data, out, *more))
    assert done.returncode == 0, done.stderr
    return done.stderr


def wait_for(path: Path) -> None:
    wait_until(path.exists)


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "never came"
        time.sleep(0.02)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return read_encoder(out / "encoder.safetensors").encoder.state_dict()


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


def test_images_in_encoder_out(image_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run_maelift("pretrain", f"data={image_folder}", f"out={out}", *TINY, "epochs=8")
    assert done.returncode == 0, done.stderr
    file = read_encoder(out / "encoder.safetensors")
    assert file.encoder.spec.image_size == (16, 16) and file.encoder.spec.channels == 3
    assert file.provenance.steps == 36 and file.provenance.images_seen == 288
    assert file.provenance.config["masking"]["ratio"] == 0.75
    records = read_metrics(out / "metrics.jsonl")
    losses = [record["held_out/loss"] for record in records if "held_out/loss" in record]
    assert len(losses) == 2 and losses[1] < losses[0]
    with Image.open(out / "reconstruction.png") as picture:
        assert picture.width > 3 * 112 and picture.height > 4 * 112
    assert any((out / "tensorboard").iterdir())
    assert (out / "config.yaml").exists() and not has_checkpoint(out)
    decoder = read_decoder(out / "decoder.safetensors")
    assert decoder.encoder == file.content_hash and decoder.norm_pix_loss and decoder.num_heads == 2
    assert decoder.state["mask_token"].shape == (1, 1, 16) and not set(decoder.state) & set(weights(out))
    again = run_maelift("pretrain", f"data={image_folder}", f"out={out}", *TINY, "epochs=8")
    assert again.returncode == 0 and "the run is complete" in again.stderr
    other = run_maelift("pretrain", f"data={image_folder}", f"out={out}", *TINY, "epochs=9")
    one_line_error(other, "another configuration", "epochs: 8 -> 9")
    write_images(tmp_path / "others", 40, first=100)
    other = run_maelift("pretrain", f"data={tmp_path / 'others'}", f"out={out}", *TINY, "epochs=8")
    one_line_error(other, "other images")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_says_how_to_go_on_and_ends_as_if_it_never_stopped(
    image_folder: Path, tmp_path: Path, number: signal.Signals
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    keys = ("epochs=20", "log_every=1")
    pretrained(image_folder, whole, *keys)
    process = start_maelift(*words(image_folder, stopped, *keys))
    wait_for(stopped / "metrics.jsonl")
    wait_until(lambda: len(read_metrics(stopped / "metrics.jsonl")) > 5)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number, said
    assert "The same command goes on from there" in said and "Traceback" not in said
    assert has_checkpoint(stopped) and not (stopped / "encoder.safetensors").exists()
    assert "resuming from step" in pretrained(image_folder, stopped, *keys)
    assert same(weights(whole), weights(stopped))
    steps = [record["step"] for record in read_metrics(stopped / "metrics.jsonl") if "held_out/loss" in record]
    assert len(steps) == len(set(steps)) == 2


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_checkpoint_to_the_same_weights(image_folder: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    keys = ("epochs=30", "checkpoint_minutes=0.001")
    pretrained(image_folder, whole, *keys)
    for _ in range(2):
        process = start_maelift(*words(image_folder, killed, *keys))
        wait_for(killed / "checkpoints")
        time.sleep(0.3)
        process.kill()
        process.wait()
    assert not (killed / "encoder.safetensors").exists()
    pretrained(image_folder, killed, *keys)
    assert same(weights(whole), weights(killed))


@pytest.mark.slow
def test_two_processes_make_the_losses_of_one(image_folder: Path, tmp_path: Path) -> None:
    keys = ["epochs=5", "batch_size=8", "holdout=8", "log_every=1"]
    losses = {}
    for name, ranks, more in (("one", 1, []), ("two", 2, []), ("split", 1, ["accumulate=2"])):
        done = run_ranks(ranks, *words(image_folder, tmp_path / name, *keys, *more))
        assert done.returncode == 0, done.stderr
        records = read_metrics(tmp_path / name / "metrics.jsonl")
        losses[name] = [record["train/loss"] for record in records if "train/loss" in record]
    assert len(losses["one"]) == 20
    assert losses["two"] == pytest.approx(losses["one"], rel=1e-5)
    assert losses["split"] == pytest.approx(losses["one"], rel=1e-5)


@pytest.mark.slow
def test_a_few_broken_files_are_named_and_many_end_the_run(image_folder: Path, tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", 30)
    (data / "broken.png").write_bytes(b"\x89PNG nonsense")
    done = run_maelift("pretrain", f"data={data}", f"out={tmp_path / 'run'}", *TINY, "epochs=1")
    assert done.returncode == 0 and "1 of 31 images are broken" in done.stderr
    assert "broken.png" in (tmp_path / "run" / "rejected.csv").read_text()
    for number in range(5):
        (data / f"broken{number}.png").write_bytes(b"")
    done = run_maelift("pretrain", f"data={data}", f"out={tmp_path / 'other'}", *TINY, "epochs=1")
    one_line_error(done, "6 of 36 images are broken", "max_rejected=0.05")


@pytest.mark.slow
def test_a_full_disk_ends_in_one_line_and_leaves_no_half_file(image_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"

    def limit_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))  # the checkpoint and the encoder are larger

    done = subprocess.run(
        command(image_folder, out, "epochs=2"),
        capture_output=True,
        text=True,
        env=environment(),
        preexec_fn=limit_files,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "maelift pretrain: " in done.stderr
    assert not [path.name for path in out.iterdir() if path.suffix in (".part", ".safetensors", ".pt")]
    pretrained(image_folder, out, "epochs=2")


def test_gray_and_non_square_images(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", 24, mode="L")
    result = maelift.pretrain(
        data=data,
        out=tmp_path / "run",
        model="vit_nano",
        image_size=(8, 16),
        patch_size=4,
        decoder={"embed_dim": 16, "depth": 1, "num_heads": 2},
        batch_size=8,
        epochs=2,
        workers=2,
    )
    encoder = maelift.load_encoder(result.encoder)
    assert encoder.spec.channels == 1 and encoder.spec.image_size == (8, 16)
    assert encoder.preprocessing.mean != (0.5,)  # gray: the data's own statistics
    assert result.held_out_images == 0 and result.held_out_loss is None
    with Image.open(tmp_path / "run" / "reconstruction.png") as picture:  # then, of images that it trains on
        assert picture.height > 7 * 56
    assert encoder.forward_features(torch.zeros(1, 1, 24, 8)).grid == (6, 2)


def test_python_refuses_with_the_command_s_words(tmp_path: Path) -> None:
    with pytest.raises(MaeliftError, match="Did you mean epochs"):
        maelift.pretrain(data="x", out="y", epoch=3)  # type: ignore[call-arg]


def test_a_folder_where_nothing_may_be_written(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    locked = Path("/proc") if os.geteuid() == 0 else tmp_path / "locked"  # root may write to any other
    done = run_maelift("pretrain", f"data={image_folder}", f"out={locked / 'run'}", *TINY)
    one_line_error(done, "nothing can be written there")


@pytest.mark.slow
def test_the_contract_says_how_the_encoder_was_made(image_folder: Path, tmp_path: Path) -> None:
    run_maelift("pretrain", f"data={image_folder}", f"out={tmp_path}", *TINY, "epochs=1", "seed=5")
    provenance = read_encoder(tmp_path / "encoder.safetensors").provenance
    assert provenance.seed == 5 and provenance.cpu_hours > 0 and provenance.tool_version == maelift.__version__
    assert provenance.data_manifest == json.loads((tmp_path / "data.json").read_text())["manifest"]
