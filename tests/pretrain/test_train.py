"""Pretraining as people run it: processes that are stopped, killed, repeated, and split over ranks."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import maelift
import pytest
import torch
from maelift.core.errors import MaeliftError
from maelift.core.models.decoder_file import read_decoder
from maelift.core.models.encoder_file import read_encoder
from maelift.core.training.tracker import read_metrics
from maelift.tests.preloaded import CODE
from maelift.tests.support import (
    TINY,
    environment,
    eventually,
    has_checkpoint,
    one_line_error,
    preloaded,
    run_maelift,
    start_maelift,
    write_images,
)
from PIL import Image

LONG = ("epochs=20", "log_every=1")
ON_A_SMALL_DISK = """import resource, signal, sys
from maelift.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))  # the checkpoint and the encoder are larger
sys.exit(main(sys.argv[1:]))"""


def words(data: Path, out: Path, *more: str) -> list[str]:
    return ["pretrain", f"data={data}", f"out={out}", *TINY, *more]


def pretrained(data: Path, out: Path, *more: str) -> str:
    """Pretrain to the end; what was said."""
    done = run_maelift(*words(data, out, *more))
    assert done.returncode == 0, done.stderr
    return done.stderr


def saved_states(out: Path) -> set[str]:
    return {path.name for path in out.glob("checkpoints/step-*")}


def wait_for_state(out: Path, but: set[str]) -> None:
    """Wait until a run has saved a state besides these."""
    eventually(lambda: not saved_states(out) <= but, seconds=120)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return read_encoder(out / "encoder.safetensors").encoder.state_dict()


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def whole(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run without a stop that stopped and killed ones are held against."""
    out = tmp_path_factory.mktemp("whole") / "run"
    pretrained(image_folder, out, *LONG)
    return out


def test_images_in_encoder_out(image_folder: Path, tmp_path: Path) -> None:
    out, keys = tmp_path / "run", ("epochs=8", "seed=5")
    pretrained(image_folder, out, *keys)
    file = read_encoder(out / "encoder.safetensors")
    assert file.encoder.spec.image_size == (16, 16) and file.encoder.spec.channels == 3
    assert file.provenance.steps == 36 and file.provenance.images_seen == 288
    assert file.provenance.config["masking"]["ratio"] == 0.75 and file.provenance.seed == 5
    assert file.provenance.cpu_hours > 0 and file.provenance.tool_version == maelift.__version__
    assert file.provenance.data_manifest == json.loads((out / "data.json").read_text())["manifest"]
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
    assert "the run is complete" in pretrained(image_folder, out, *keys)
    other = run_maelift(*words(image_folder, out, "epochs=9", "seed=5"))
    one_line_error(other, "another configuration", "epochs: 8 -> 9")
    write_images(tmp_path / "others", 40, first=100)
    one_line_error(run_maelift(*words(tmp_path / "others", out, *keys)), "other images")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_says_how_to_go_on_and_ends_as_if_it_never_stopped(
    image_folder: Path, whole: Path, tmp_path: Path, number: signal.Signals
) -> None:
    stopped = tmp_path / "stopped"
    process = start_maelift(*words(image_folder, stopped, *LONG))
    metrics = stopped / "metrics.jsonl"
    eventually(lambda: metrics.exists() and len(read_metrics(metrics)) > 5, seconds=120)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number, said
    assert "The same command goes on from there" in said and "Traceback" not in said
    assert has_checkpoint(stopped) and not (stopped / "encoder.safetensors").exists()
    assert "resuming from step" in pretrained(image_folder, stopped, *LONG)
    assert same(weights(whole), weights(stopped))
    steps = [record["step"] for record in read_metrics(stopped / "metrics.jsonl") if "held_out/loss" in record]
    assert len(steps) == len(set(steps)) == 2


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_checkpoint_to_the_same_weights(
    image_folder: Path, whole: Path, tmp_path: Path
) -> None:
    killed, keys = tmp_path / "killed", (*LONG, "checkpoint_minutes=0.001")
    saved: set[str] = set()
    for _ in range(2):
        process = start_maelift(*words(image_folder, killed, *keys))
        wait_for_state(killed, saved)
        process.kill()
        process.wait()
        saved = saved_states(killed)
    assert not (killed / "encoder.safetensors").exists()
    assert "resuming from step" in pretrained(image_folder, killed, *keys)
    assert same(weights(whole), weights(killed))


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
    done = preloaded().run([CODE, ON_A_SMALL_DISK, *words(image_folder, out, "epochs=2")], None, environment(), 240)
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
