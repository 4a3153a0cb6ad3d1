"""Every kind of source gives the same images, by itself and mixed with others; wrong ones are told in a line."""

from __future__ import annotations

import os
import tarfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from maelift.core.data import image_scan, unread
from maelift.core.data.audit import audit
from maelift.core.data.images import as_image, opened
from maelift.core.data.pixel_format import PixelFormat
from maelift.core.data.readers import parquet as parquet_reader
from maelift.core.data.readers.concat import ConcatImages
from maelift.core.data.sampling import MixedSampler
from maelift.core.data.sources import find_source, find_sources
from maelift.core.errors import DataError
from maelift.core.training.tracker import read_metrics
from maelift.tests.support import TINY, framework, noise_image, one_line_error, run_maelift, write_images

COUNT = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("folder") / "images", COUNT)


def contents(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.iterdir())]


def parquet(folder: Path, out: Path, *, hugging_face: bool = False, column: str = "image") -> Path:
    framework("pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    values: list[object] = list(contents(folder))
    if hugging_face:
        values = [{"bytes": value, "path": None} for value in values]
    out.mkdir()
    for number in range(2):
        part = slice(number * COUNT // 2, (number + 1) * COUNT // 2)
        table = pa.table({column: values[part], "label": list(range(COUNT // 2))})
        pq.write_table(table, out / f"{number}.parquet", row_group_size=5)
    return out


def source(kind: str, folder: Path, out: Path) -> str:
    """The images of the folder as a source of another kind."""
    names = [path.name for path in sorted(folder.iterdir())]
    if kind == "folder":
        return str(folder)
    if kind == "txt":
        out.with_suffix(".txt").write_text("\n".join(str(folder / name) for name in names) + "\n")
        return str(out.with_suffix(".txt"))
    if kind == "csv":
        file = folder.parent / "list.csv"
        file.write_text("id,path\n" + "".join(f"{n},{folder.name}/{name}\n" for n, name in enumerate(names)))
        return str(file)
    if kind == "tar":
        framework("webdataset")
        out.mkdir()
        for number in range(2):
            with tarfile.open(out / f"{number}.tar", "w") as archive:
                for name in names[number * COUNT // 2 : (number + 1) * COUNT // 2]:
                    archive.add(folder / name, arcname=name)
        return f"{out}/{{0..1}}.tar"
    if kind == "npy":
        np.save(out.with_suffix(".npy"), np.stack([np.asarray(noise_image(number)) for number in range(COUNT)]))
        return str(out.with_suffix(".npy"))
    return str(parquet(folder, out, hugging_face=kind == "hugging face"))


KINDS = ["folder", "txt", "csv", "tar", "parquet", "hugging face", "npy"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_source_has_the_same_pixels(kind: str, folder: Path, tmp_path: Path) -> None:
    images = find_source(source(kind, folder, tmp_path / "source"))
    assert len(images) == COUNT and len({images.name(number) for number in range(COUNT)}) == COUNT
    part = images.subset([20, 3, 11])
    for place, number in enumerate((20, 3, 11)):
        expected = np.asarray(noise_image(number))
        assert np.array_equal(opened(part, place).pixels(), expected)
        assert np.array_equal(np.asarray(as_image(images.open(number))), expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "folder"])
def test_every_kind_of_source_pretrains_to_the_same_losses(kind: str, folder: Path, tmp_path: Path) -> None:
    losses = []
    for name, data in (("folder", str(folder)), ("other", source(kind, folder, tmp_path / "source"))):
        words = ["pretrain", f"data={data}", f"out={tmp_path / name}", *TINY, "epochs=1", "log_every=1", "workers=1"]
        done = run_maelift(*words)
        assert done.returncode == 0, done.stderr
        losses.append([r["train/loss"] for r in read_metrics(tmp_path / name / "metrics.jsonl") if "train/loss" in r])
    assert losses[0] == losses[1] and len(losses[0]) == 3


@pytest.mark.parametrize("kind", [*KINDS, "several"])
def test_every_kind_of_source_is_looked_at_once(
    kind: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAELIFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(image_scan, "CACHED_SECONDS", 0.0)
    monkeypatch.setattr(image_scan, "RACY_SECONDS", 0.0)
    data = str(folder) if kind == "several" else source(kind, folder, tmp_path / "source")
    sources = [data, source("npy", folder, tmp_path / "other")] if kind == "several" else data
    time.sleep(0.02)
    form = PixelFormat()
    before = audit(find_sources(sources), form=form)[1]
    monkeypatch.setattr(image_scan, "read_image_info", lambda *unexpected: pytest.fail(f"looked at {unexpected} again"))
    assert audit(find_sources(sources), form=form)[1] == before and len(before.names) in (COUNT, 2 * COUNT)
    part = find_sources(sources).subset([5, 2])
    assert audit(part, form=form)[1].hashes == (before.hashes[5], before.hashes[2])


def test_a_mix_deals_by_shares_and_runs_through_each_source(tmp_path: Path) -> None:
    groups = [np.arange(10), np.arange(10, 40), np.arange(40, 45)]
    order = MixedSampler(groups, [1, 1, 2], batch_size=5, seed=3)
    assert list(order.counts) == [11, 11, 23]
    steps = 4 * 45 // 5
    seen = np.concatenate([order.batch(step) for step in range(steps)])
    for group, count in zip(groups, order.counts, strict=True):
        mine = seen[np.isin(seen, group)]
        assert len(mine) == 4 * count
        for first in range(0, len(mine) - len(group) + 1, len(group)):  # all of them before any comes again
            assert sorted(mine[first : first + len(group)]) == sorted(group)
    other = MixedSampler(groups, [1, 1, 2], batch_size=5, seed=3)
    assert all(np.array_equal(other.batch(step), seen[5 * step : 5 * step + 5]) for step in (30, 2, 17))
    assert not np.array_equal(MixedSampler(groups, [1, 1, 2], batch_size=5, seed=4).batch(0), order.batch(0))


@pytest.mark.slow
def test_several_sources_are_mixed_over_processes_and_workers(folder: Path, tmp_path: Path) -> None:
    more = write_images(tmp_path / "more", 12, first=100)
    together = find_sources((str(folder), str(more)))
    assert isinstance(together, ConcatImages) and len(together) == COUNT + 12
    assert Counter(together.places[:, 0]) == {0: COUNT, 1: 12} and together.name(COUNT).startswith("1:")
    words = ["pretrain", f"data=[{folder},{more}]", *TINY, "epochs=2", "log_every=1"]
    for name, keys in (("one", ["mix=[1,3]"]), ("two", ["mix=[1,3]", "workers=2"]), ("other", ["mix=[3,1]"])):
        done = run_maelift(*words, f"out={tmp_path / name}", *keys)
        assert done.returncode == 0, done.stderr
    losses = [
        [r["train/loss"] for r in read_metrics(tmp_path / name / "metrics.jsonl") if "train/loss" in r]
        for name in ("one", "two", "other")
    ]
    assert losses[0] == losses[1] != losses[2]


def test_wrong_sources_are_told(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("absent.png\n")
    (tmp_path / "empty.csv").write_text("path\n")
    np.save(tmp_path / "flat.npy", np.zeros(5))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nonsense")
    for name, what in (
        ("list.txt", "absent.png isn't there"),
        ("empty.csv", "an empty list"),
        ("flat.npy", "an array of shape"),
        ("broken.parquet", "can't be read as Parquet"),
        ("nowhere", "no such folder"),
    ):
        with pytest.raises(DataError, match=what):
            find_source(str(tmp_path / name))
    words = ["pretrain", f"data=[{folder},{folder}]", f"out={tmp_path / 'run'}", *TINY]
    one_line_error(run_maelift(*words, "mix=[1]"), "mix=[1]", "data has 2")


def test_parquet_without_images_is_told(tmp_path: Path) -> None:
    framework("pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"no column of bytes \(text \(string\)\)"):
        find_source(str(tmp_path / "a.parquet"))
    pq.write_table(pa.table({"x": [b"a"], "y": [b"b"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="several columns of bytes"):
        find_source(str(tmp_path / "a.parquet"))


@pytest.mark.slow
def test_a_broken_row_is_left_out(folder: Path, tmp_path: Path) -> None:
    framework("pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [*contents(folder), b"", None, b"no image"]
    pq.write_table(pa.table({"image": pa.array(rows, pa.binary())}), tmp_path / "a.parquet")
    words = ["pretrain", f"data={tmp_path / 'a.parquet'}", f"out={tmp_path / 'run'}", *TINY, "epochs=1"]
    done = run_maelift(*words, "max_rejected=0.2")
    assert done.returncode == 0 and "3 of 27 images are broken" in done.stderr
    assert "a.parquet[0:24]" in (tmp_path / "run" / "rejected.csv").read_text()


def test_a_list_is_read_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a b.png", " lead.png", "x\u2028y.png", "b\udcff.png", "c.png"]
    for number, name in enumerate(names):
        noise_image(number).save(tmp_path / "x.png")
        (tmp_path / "x.png").rename(tmp_path / name)
    content = "\n".join(names).encode("utf-8", "surrogateescape")
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n") + b"\r\n\r\n")
    found = find_source(str(tmp_path / "list.txt"))
    assert [found.name(number) for number in range(len(found))] == names
    assert audit(found)[1].rejected == ()
    (tmp_path / "wide.txt").write_bytes("c.png\n".encode("utf-16"))
    assert len(find_source(str(tmp_path / "wide.txt"))) == 1
    unread.forget()
    (tmp_path / "table.csv").write_text('id,Path\n1,c.png\n2\n3,\n4,"a b.png"\n\n')
    assert len(find_source(str(tmp_path / "table.csv"))) == 2
    assert [text.partition(": ")[2] for text in unread.reported()] == ["2 images; 2 other rows name none"]
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "list.txt").write_text("c.png\npipe.png\n")
    assert dict(audit(find_source(str(tmp_path / "list.txt")), 0.9)[1].rejected) == {
        "pipe.png": "a named pipe, not a file"
    }
    for content, reason in (
        (b"\xff\xfea", "not a list in UTF-16"),
        (b"a\0b", "null bytes"),
        (b"\n \n", "an empty list"),
    ):
        (tmp_path / "bad.txt").write_bytes(content)
        with pytest.raises(DataError, match=reason):
            find_source(str(tmp_path / "bad.txt"))


def test_a_file_that_is_no_source_is_said_to_be_what_it_is(tmp_path: Path) -> None:
    noise_image(0).save(tmp_path / "one.png")
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "null").symlink_to("/dev/null")
    for name in ("a.zip", "a.npz", "a.bin"):
        (tmp_path / name).write_bytes(b"PK\3\4")
    reasons = {
        "one.png": "a single image. Expected a folder",
        "pipe.npy": "a named pipe, not a file. Expected images",
        "null": "a device, not a file",
        "a.zip": r"no source of images \(unpack it\)",
        "a.npz": "no source of images .arrays are read where no image file lies beside them",
        "a.bin": "no source of images. Expected a folder",
    }
    for name, reason in reasons.items():
        with pytest.raises(DataError, match=reason):
            find_source(str(tmp_path / name))


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 1000, 1000)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (10000000000000000000000000, 9, 9)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 9, 9)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (1.5, 9, 9)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (2, 2, 2)}",
        "{'descr': '<U4', 'fortran_order': False, 'shape': (2, 2, 2)}",
        "{'descr': '<c8', 'fortran_order': False, 'shape': (1, 2, 2)}",
        "{'descr': 'zzz', 'fortran_order': False, 'shape': (2, 2, 2)}",
        "{'descr': [('a', '|u1')], 'fortran_order': False, 'shape': (2, 2, 2)}",
        "(" * 500,
        "__import__('os').system('true')",
    ],
)
def test_a_hostile_header_of_an_array_is_refused_in_a_line(tmp_path: Path, header: str) -> None:
    text = header.encode().ljust(1000) + b"\n"
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + bytes(64))
    with pytest.raises(DataError, match=r"x\.npy: (can't be read as a NumPy array|an array of shape)") as caught:
        find_source(str(tmp_path / "x.npy"))
    assert "\n" not in str(caught.value)


def test_parquet_rows_that_cannot_be_images_are_refused_and_damage_is_named(tmp_path: Path) -> None:
    pa, pq = framework("pyarrow"), framework("pyarrow.parquet")
    pq.write_table(pa.table({"image": pa.nulls(3_000_000, pa.binary())}), tmp_path / "nulls.parquet")
    with pytest.raises(DataError, match=r"3,000,000 rows in [\d,]+ bytes, which leaves no room for images"):
        find_source(str(tmp_path / "nulls.parquet"))
    noise_image(0).save(tmp_path / "x.png")
    content = (tmp_path / "x.png").read_bytes()
    pq.write_table(pa.table({"image": [content, None, content]}), tmp_path / "some.parquet", compression="none")
    found = find_source(str(tmp_path / "some.parquet"))
    assert dict(audit(found, 0.9)[1].rejected) == {"some.parquet[0:1]": "no bytes in image"}
    raw = bytearray((tmp_path / "some.parquet").read_bytes())
    raw[4:60] = b"\xff" * 56  # the head of a page
    (tmp_path / "some.parquet").write_bytes(raw)
    parquet_reader._row_group.cache_clear()
    with pytest.raises(DataError, match="can't be read"):
        find_source(str(tmp_path / "some.parquet")).content(0)
