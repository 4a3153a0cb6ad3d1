"""Pretraining on pixels of every kind, and on folders where much is broken: it ends, and names what it left out."""

from __future__ import annotations

import csv
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from maelift.core.config import resolve
from maelift.core.errors import ConfigError, DataError
from maelift.core.models.encoder_file import read_encoder
from maelift.core.progress import TrainingProgress
from maelift.core.training.tracker import read_events
from maelift.pretrain.config import PretrainConfig
from maelift.pretrain.train import pretrain
from maelift.tests.support import (
    ROOT,
    TINY,
    deep_png,
    framework,
    noise_image,
    one_line_error,
    run_maelift,
    run_page,
    write_images,
)
from PIL import Image


def pretrained(data: Path, out: Path, *keys: str) -> Path:
    """A pretraining of a few steps."""
    pretrain(resolve(PretrainConfig, [f"data={data}", f"out={out}", *TINY, "epochs=1", *keys]))
    return out


def rows(path: Path) -> dict[str, str]:
    with path.open(newline="") as file:
        table = list(csv.reader(file))
    found = dict(table[1:])
    assert len(found) == len(table) - 1
    return found


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def truncated(number: int, kind: str) -> bytes:
    content = saved(noise_image(number, (40, 48)), kind)
    return content[: len(content) // 2]


def bomb(number: int, kind: str) -> bytes:
    """A PNG of 70 bytes that says it is of billions of pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000 + number, 60_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


def animated(number: int, kind: str) -> bytes:
    frames = [noise_image(number + frame) for frame in range(3)]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:])


def deep(number: int, kind: str) -> bytes:
    values = np.random.default_rng(number).integers(0, 65536, (20, 24, 3), dtype=np.uint16)
    return deep_png(values) if kind == "colour" else saved(Image.fromarray(values[:, :, 0]), kind)


BROKEN: list[tuple[str, str, Callable[[int, str], bytes], str, int]] = [
    ("truncated", ".jpg", truncated, "JPEG", 15),
    ("truncated", ".png", truncated, "PNG", 15),
    ("empty", ".jpg", lambda number, kind: b"", "", 20),
    ("page", ".jpg", lambda number, kind: b"<!DOCTYPE html><title>404</title>", "", 20),
    ("text", ".png", lambda number, kind: b"name,label\na,1\n", "", 15),
    ("bomb", ".png", bomb, "", 15),
    ("pixel", ".png", lambda number, kind: saved(Image.new("RGB", (1, 1)), "PNG"), "", 20),
]
"""What can't be trained on, with the start of its name: 120 files."""
UNUSUAL: list[tuple[str, str, Callable[[int, str], bytes], str, int]] = [
    ("called", ".jpg", lambda number, kind: saved(noise_image(number), kind), "PNG", 20),
    ("animated", ".gif", animated, "GIF", 10),
    ("animated", ".webp", animated, "WEBP", 10),
    ("animated", ".png", animated, "PNG", 5),
    ("print", ".jpg", lambda number, kind: saved(noise_image(number).convert("CMYK"), kind), "JPEG", 15),
    ("deep", ".png", deep, "colour", 10),
    ("deep", ".tif", deep, "TIFF", 10),
]
"""What may not be what was meant, but is read: 80 files."""
REASONS = {
    "truncated": ("truncated", "broken"),
    "empty": ("empty file",),
    "page": ("html",),
    "text": ("not an image",),
    "bomb": ("decompression bomb",),
    "pixel": ("1×1 px",),
    "called": ("png, though named .jpg",),
    "animated": ("several frames: the first is taken",),
    "print": ("cmyk: converted",),
    "deep": ("16 bits",),
}


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """800 sound images and 200 others, in folders."""
    folder = tmp_path_factory.mktemp("thousand") / "data"
    write_images(folder, 800)
    for what, suffix, content, kind, count in BROKEN + UNUSUAL:
        (folder / what).mkdir(exist_ok=True)
        for number in range(count):
            (folder / what / f"{what}-{number:03d}{suffix}").write_bytes(content(number, kind))
    return folder


@pytest.mark.slow
def test_two_hundred_bad_images_of_a_thousand_are_all_named_and_do_not_end_a_run(
    thousand: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = (f"data={thousand}", f"out={out}", *TINY, "epochs=1", "max_rejected=0.15", "batch_size=220")
    done = run_maelift("pretrain", *words)
    assert done.returncode == 0, done.stderr
    rejected, unusual = rows(out / "rejected.csv"), rows(out / "unusual.csv")
    files = {path.relative_to(thousand).as_posix() for path in thousand.rglob("*/*") if path.is_file()}
    assert len(files) == 200
    assert set(rejected) | set(unusual) == files
    assert {name.split("/")[0] for name in rejected} == {what for what, *_ in BROKEN}
    assert {name.split("/")[0] for name in unusual} == {what for what, *_ in UNUSUAL}
    for name, reason in {**rejected, **unusual}.items():
        assert any(text in reason.lower() for text in REASONS[name.split("/")[0]]), (name, reason)
    preprocessing = read_encoder(out / "encoder.safetensors").encoder.preprocessing
    assert preprocessing.bit_depth == 16 and preprocessing.value_range == (0, 255)


def test_more_broken_images_than_are_put_up_with_end_a_run_in_a_line(thousand: Path, tmp_path: Path) -> None:
    done = run_maelift("pretrain", f"data={thousand}", f"out={tmp_path / 'out'}", *TINY, "epochs=1", "max_rejected=0.1")
    one_line_error(done, "120 of 1000 images are broken", "max_rejected=0.1")
    assert not (tmp_path / "out" / "encoder.safetensors").exists()


def as_tiff(path: Path, array: np.ndarray) -> None:
    framework("tifffile").imwrite(path.with_suffix(".tif"), array, photometric="minisblack", planarconfig="contig")


def as_png(path: Path, array: np.ndarray) -> None:
    path.with_suffix(".png").write_bytes(deep_png(array))


Make = Callable[[np.random.Generator], np.ndarray]
Write = Callable[[Path, np.ndarray], object]

KINDS: list[tuple[str, Make, Write, list[str], dict[str, Any]]] = [
    (
        "RGBA",
        lambda draw: draw.integers(0, 256, (20, 24, 4), dtype=np.uint8),
        lambda path, array: Image.fromarray(array).save(path.with_suffix(".png")),
        ["channels=4"],
        {"channels": 4, "value_range": (0, 255), "bit_depth": 8},
    ),
    (
        "16-bit TIFF of 6 bands",
        lambda draw: draw.integers(0, 65536, (30, 20, 6), dtype=np.uint16),
        as_tiff,
        [],
        {"channels": 6, "value_range": (0, 255), "bit_depth": 16},
    ),
    (
        "12 bits in 16-bit PNG",
        lambda draw: draw.integers(0, 4096, (20, 24, 3), dtype=np.uint16),
        as_png,
        ["value_range=[0,4095]"],
        {"channels": 3, "value_range": (0, 4095), "bit_depth": 16},
    ),
    (
        "float arrays",
        lambda draw: draw.uniform(-1000, 2000, (24, 20, 2)).astype(np.float32),
        lambda path, array: np.save(path.with_suffix(".npy"), array),
        ["value_range=[-1000,2000]"],
        {"channels": 2, "value_range": (-1000, 2000), "bit_depth": 32},
    ),
    (
        "gray float arrays",
        lambda draw: draw.random((40, 12)),
        lambda path, array: np.save(path.with_suffix(".npy"), array),
        ["value_range=[0,1]", "statistics=data"],
        {"channels": 1, "value_range": (0, 1), "bit_depth": 32},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("make", "write", "keys", "expected"), [kind[1:] for kind in KINDS], ids=[k[0] for k in KINDS])
def test_every_kind_of_pixels_is_pretrained_on_and_stands_in_the_encoder_file(
    tmp_path: Path,
    make: Make,
    write: Write,
    keys: list[str],
    expected: dict[str, Any],
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    arrays = [make(np.random.default_rng(number)) for number in range(24)]
    for number, array in enumerate(arrays):
        write(data / f"{number:02d}", array)
    out = pretrained(data, tmp_path / "out", *keys)
    encoder = read_encoder(out / "encoder.safetensors").encoder
    found = encoder.preprocessing
    assert encoder.spec.channels == len(found.channel_names) == expected["channels"]
    assert found.value_range == expected["value_range"] and found.bit_depth == expected["bit_depth"]
    scale = 65535 / 255 if arrays[0].dtype == np.uint16 and found.value_range == (0, 255) else 1
    values = np.concatenate([array.reshape(-1, expected["channels"]) for array in arrays]) / scale
    assert np.allclose(found.pixel_mean, values.mean(axis=0), atol=0.03 * (found.value_range[1] - found.value_range[0]))
    assert np.allclose(found.pixel_std, values.std(axis=0), rtol=0.1)


def test_floats_without_a_range_are_refused_with_what_to_give(tmp_path: Path) -> None:
    for number in range(12):
        np.save(tmp_path / f"{number}.npy", np.zeros((20, 20)))
    with pytest.raises(DataError, match=r"12 of 12 images are broken, .*give value_range=\[lowest,highest\]"):
        pretrained(tmp_path, tmp_path / "out")


def test_several_crops_of_each_image_train_as_many_steps(tmp_path: Path) -> None:
    write_images(tmp_path / "data", 36, suffix=".jpg")
    out = pretrained(tmp_path / "data", tmp_path / "out", "crops_per_image=4", "epochs=2")
    provenance = read_encoder(out / "encoder.safetensors").provenance
    assert (provenance.steps, provenance.images_seen) == (8, 64)
    with pytest.raises(ConfigError, match=r"crops_per_image=3.*a divisor of batch_size=8"):
        pretrained(tmp_path / "data", tmp_path / "other", "crops_per_image=3")


class LaterBroken:
    """Images of a folder that an unkind hand ruins after they have been scanned."""

    def __init__(self, folder: Path, ruin: list[str]) -> None:
        self.folder, self.ruin = folder, ruin

    def progress(self, progress: TrainingProgress) -> None:
        if progress.step == 1:
            for name in self.ruin:
                (self.folder / name).write_bytes(b"")


def test_images_that_break_while_training_are_named_and_the_run_ends(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", 28)
    ruin = [f"image{number:03d}.png" for number in range(0, 28, 5)]
    keys = [f"data={data}", f"out={tmp_path / 'out'}", *TINY, "holdout=0", "epochs=6", "max_rejected=0.4"]
    pretrain(resolve(PretrainConfig, keys), listener=LaterBroken(data, ruin).progress)
    quarantined = rows(tmp_path / "out" / "quarantine.csv")
    assert sorted(quarantined) == ruin and set(quarantined.values()) == {"an empty file"}
    events = read_events(tmp_path / "out" / "events.jsonl")
    assert len([event for event in events if event.kind == "quarantine"]) == len(ruin)
    for number in range(28):
        noise_image(number).save(data / f"image{number:03d}.png")
    with pytest.raises(DataError, match=r"max_rejected=0.1 allows; see .*quarantine.csv"):
        keys = [key.replace("0.4", "0.1").replace("/out", "/other") for key in keys]
        pretrain(resolve(PretrainConfig, keys), listener=LaterBroken(data, ruin).progress)


@pytest.mark.slow
def test_the_page_of_images_to_pretrain_on_does_what_it_says(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", 80, suffix=".jpg")
    printed = run_page(ROOT / "docs" / "pretraining_data.md", tmp_path)
    assert "80 images in 1 shards" in printed and "sound" in printed
    assert (tmp_path / "runs/photos/mae/encoder.safetensors").is_file()
