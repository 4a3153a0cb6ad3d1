"""``maelift data pack``: every sound image lies in a shard under its name, broken ones are named, a killed run goes on."""

from __future__ import annotations

import io
import shutil
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from maelift.core.data.decode import open_picture
from maelift.core.data.images import opened
from maelift.core.data.pixel_format import PixelFormat
from maelift.core.data.sources import find_source
from maelift.core.errors import MaeliftError
from maelift.core.tools.pack_shards import PackConfig, member_name, pack, plan
from maelift.core.training.tracker import read_metrics
from maelift.tests.support import (
    TINY,
    deep_png,
    framework,
    noise_image,
    one_line_error,
    run_maelift,
    start_maelift,
    write_images,
)
from PIL import Image


def members(folder: Path) -> dict[str, bytes]:
    """The files of all shards, by their names."""
    found: dict[str, bytes] = {}
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as archive:
            for member in archive:
                file = archive.extractfile(member)
                assert file is not None and member.name not in found
                found[member.name] = file.read()
    return found


def packed(data: Path, out: Path, **keys: Any) -> dict[str, bytes]:
    pack(PackConfig(str(data), str(out), **keys))
    return members(out)


def test_shards_hold_the_very_files_in_order_under_their_paths(tmp_path: Path) -> None:
    write_images(tmp_path / "data" / "a.b", 3, suffix=".jpg")
    write_images(tmp_path / "data" / "c", 4)
    shutil.copy(tmp_path / "data" / "c" / "image001.png", tmp_path / "data" / "c" / "image001.old.png")
    done = run_maelift("data", "pack", f"data={tmp_path / 'data'}", f"out={tmp_path / 'shards'}", "shard_images=3")
    assert done.returncode == 0, done.stderr
    assert "8 images in 3 shards" in done.stdout
    found = members(tmp_path / "shards")
    assert list(found)[:2] == ["a.b/00000000-image000.jpg", "a.b/00000001-image001.jpg"]
    assert "c/00000004-image001_old.png" in found
    files = sorted((tmp_path / "data").rglob("*.*g"))
    assert [path.read_bytes() for path in files] == list(found.values())


def test_webdataset_reads_each_image_as_a_sample_of_its_own(tmp_path: Path) -> None:
    from maelift.tests.support import framework

    write_images(tmp_path / "data", 5)
    shutil.copy(tmp_path / "data" / "image001.png", tmp_path / "data" / "image001.jpg")
    pack(PackConfig(str(tmp_path / "data"), str(tmp_path / "shards")))
    dataset = framework("webdataset").WebDataset(str(tmp_path / "shards" / "000000.tar"), shardshuffle=False)
    samples = [{key for key in sample if not key.startswith("__")} for sample in dataset]
    assert samples == [{"png"}] * 6  # the .jpg is a PNG by its content, and named so


def test_broken_images_are_left_out_by_name_and_too_many_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "data", 9)
    (tmp_path / "data" / "broken.png").write_bytes(b"<html>")
    result = pack(PackConfig(str(tmp_path / "data"), str(tmp_path / "shards"), max_rejected=0.1))
    assert (result.images, result.rejected) == (9, 1)
    lines = (tmp_path / "shards" / "quarantine.csv").read_text().splitlines()
    assert len(lines) == 2 and lines[1].startswith("broken.png,") and "HTML" in lines[1]
    words = (f"data={tmp_path / 'data'}", f"out={tmp_path / 'other'}", "max_rejected=0.05")
    one_line_error(run_maelift("data", "pack", *words), "1 of 10 images are broken", "broken.png")


def test_larger_images_are_reduced_and_encoded_anew_only_where_that_is_asked_for(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    noise_image(0, (60, 90)).save(data / "large.jpg", quality=95)
    noise_image(1, (30, 20)).save(data / "small.png")
    (data / "deep.png").write_bytes(deep_png(np.full((60, 60, 3), 40000, np.uint16)))
    reduced = packed(data, tmp_path / "reduced", size=40)
    assert {name: open_picture(Path(name), content).size[::-1] for name, content in reduced.items()} == {
        "00000000-deep.png": (60, 60),
        "00000001-large.jpg": (60, 40),
        "00000002-small.png": (20, 30),
    }
    assert reduced["00000002-small.png"] == (data / "small.png").read_bytes()
    arrays = packed(data, tmp_path / "arrays", encoding="npy")
    assert list(arrays) == ["00000000-deep.npy", "00000001-large.npy", "00000002-small.npy"]
    for (name, content), file in zip(arrays.items(), sorted(data.iterdir()), strict=True):
        expected = open_picture(file).pixels()
        assert np.array_equal(open_picture(Path(name), content).pixels(), expected)
    assert np.load(io.BytesIO(arrays["00000000-deep.npy"])).dtype == np.uint16
    jpegs = packed(data, tmp_path / "jpegs", encoding="jpeg")
    assert [Image.open(io.BytesIO(content)).format for content in jpegs.values()] == ["PNG", "JPEG", "JPEG"]


def test_arrays_and_idx_files_are_packed_too(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number in range(3):
        np.save(tmp_path / "data" / f"{number}.npy", np.full((8, 9, 5), number / 2, np.float32))
    found = packed(tmp_path / "data", tmp_path / "shards", channels=5, value_range=(0.0, 1.0))
    form = PixelFormat(5, (0.0, 1.0))
    assert [open_picture(Path(name), content, form).pixels().max() for name, content in found.items()] == [0, 0.5, 1]


def test_a_killed_pack_goes_on_and_ends_with_the_same_shards(tmp_path: Path) -> None:
    write_images(tmp_path / "data", 60)
    (tmp_path / "data" / "broken.png").write_bytes(b"")
    keys = {"shard_images": 4, "max_rejected": 0.1, "shuffle": 3}
    expected = packed(tmp_path / "data", tmp_path / "whole", **keys)
    assert list(expected) != sorted(expected, key=lambda name: name.split("-", 1)[1])
    out = tmp_path / "killed"
    words = [f"data={tmp_path / 'data'}", f"out={out}", *(f"{key}={value}" for key, value in keys.items())]
    for shards in (2, 6):
        process = start_maelift("data", "pack", *words)
        while len(list(out.glob("*.tar"))) < shards and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        process.wait()
    (out / ".000009.tar.left.part").write_bytes(b"half a shard")
    with (out / "packed.jsonl").open("a") as lines:
        lines.write('{"shard": "0000')
    first = out / "000000.tar"
    written = first.stat().st_mtime_ns
    pack(PackConfig(str(tmp_path / "data"), str(out), **keys))  # type: ignore[arg-type]
    assert members(out) == expected
    assert first.stat().st_mtime_ns == written  # done shards aren't done again
    assert not list(out.glob(".*.part"))
    assert (out / "quarantine.csv").read_text() == (tmp_path / "whole" / "quarantine.csv").read_text()


def test_shards_of_other_images_or_settings_are_not_mixed(tmp_path: Path) -> None:
    write_images(tmp_path / "data", 3)
    config = PackConfig(str(tmp_path / "data"), str(tmp_path / "shards"))
    pack(config)
    assert "1 there already" in plan(config).text()
    with pytest.raises(MaeliftError, match="other images or settings"):
        pack(PackConfig(str(tmp_path / "data"), str(tmp_path / "shards"), size=8))
    write_images(tmp_path / "data", 1, first=7)
    with pytest.raises(MaeliftError, match="other images or settings"):
        pack(config)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "a.tar").write_bytes(b"")
    with pytest.raises(MaeliftError, match="aren't of 'maelift data pack'"):
        pack(PackConfig(str(tmp_path / "data"), str(tmp_path / "foreign")))


@pytest.mark.parametrize(
    ("name", "suffix", "expected"),
    [
        ("a/b.c.jpg", ".jpg", "a/00000007-b_c.jpg"),
        ("a/b.JPG", ".jpg", "a/00000007-b.jpg"),
        ("train-images.gz[12]", ".png", "00000007-train-images_gz_12_.png"),
        ("/data/x.jpg", ".png", "data/00000007-x.png"),
    ],
)
def test_names_in_shards_have_one_dot(name: str, suffix: str, expected: str) -> None:
    assert member_name(name, suffix, 7) == expected


@pytest.mark.slow
def test_shards_of_arrays_are_trained_on(tmp_path: Path) -> None:
    framework("webdataset")
    write_images(tmp_path / "data", 24)
    for encoding in ("keep", "npy"):
        packed(tmp_path / "data", tmp_path / encoding, encoding=encoding, shard_images=10)
    images, arrays = (find_source(str(tmp_path / encoding)) for encoding in ("keep", "npy"))
    assert len(arrays) == len(images) == 24 and arrays.name(0).endswith(".npy")
    for number in range(24):
        assert np.array_equal(opened(arrays, number).pixels(), opened(images, number).pixels())
    losses = []
    for encoding in ("keep", "npy"):
        out = tmp_path / f"run_{encoding}"
        done = run_maelift("pretrain", f"data={tmp_path / encoding}", f"out={out}", *TINY, "epochs=2", "log_every=1")
        assert done.returncode == 0, done.stderr
        losses.append([r["train/loss"] for r in read_metrics(out / "metrics.jsonl") if "train/loss" in r])
    assert losses[0] == losses[1] and len(losses[0]) == 5
