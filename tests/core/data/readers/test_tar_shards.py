"""Labelled images in tar shards: found, read at random, and refused where they are not as webdataset has them."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from maelift.core.data import unread
from maelift.core.data.classification import LabeledImages, MultiLabeledImages
from maelift.core.data.classification_reader import read_class_splits, read_splits
from maelift.core.data.missing_splits import audit_splits
from maelift.core.data.readers.tar_shards import read_shards
from maelift.core.data.sources import find_source
from maelift.core.errors import DataError
from maelift.tests.support import framework, noise_image

webdataset = framework("webdataset")


def write_shards(folder: Path, names: list[str], *, each: int = 6, several: bool = False) -> None:
    """Shards that webdataset itself writes, of noise images whose labels take turns."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for name in names:
        with webdataset.TarWriter(str(folder / name)) as writer:
            for _ in range(each):
                labels = ["cat", "dog"][: 1 + number % 2] if several else number % 3
                label = {"json": {"labels": labels}} if several else {"cls": labels}
                writer.write({"__key__": f"sub/{number:04d}", "png": noise_image(number), **label})
                number += 1


def test_a_folder_of_shards_is_read_at_random(tmp_path: Path) -> None:
    write_shards(tmp_path, ["000.tar", "001.tar", "002.tar"])
    splits, manifest = audit_splits(read_splits(tmp_path, 3, 3))
    assert isinstance(splits.train, LabeledImages) and splits.train.classes == ("0", "1", "2")
    assert [len(part) for _, part in splits.items()] == [12, 3, 3] and not manifest.rejected
    for _, part in splits.items():
        for index in reversed(range(len(part))):
            number = int(part.images.name(index).partition("sub/")[2].removesuffix(".png"))
            assert np.array_equal(np.asarray(part.images.open(index)), np.asarray(noise_image(number)))
            assert part.labels[index] == number % 3
    again = pickle.loads(pickle.dumps(splits.train.images))  # as worker processes get it
    assert again.open(0).tobytes() == splits.train.images.open(0).tobytes()


@pytest.mark.parametrize("layout", ["folders", "names"])
def test_shards_say_which_split_they_are_of(tmp_path: Path, layout: str) -> None:
    for split, shards in (("train", 2), ("val", 1), ("test", 1)):
        names = [f"data-{split}-{n}.tar" if layout == "names" else f"{n}.tar" for n in range(shards)]
        write_shards(tmp_path / split if layout == "folders" else tmp_path, names)
    splits = read_class_splits(tmp_path)
    assert [len(part) for _, part in splits.items()] == [12, 6, 6]


def test_shards_by_number_with_several_labels(tmp_path: Path) -> None:
    write_shards(tmp_path, ["00.tar", "01.tar", "02.tar"], several=True)
    splits = read_class_splits(f"{tmp_path}/{{00..01}}.tar", 2, 2)
    assert isinstance(splits.train, MultiLabeledImages) and splits.train.classes == ("cat", "dog")
    assert sum(len(part) for _, part in splits.items()) == 12
    assert {splits.train.label_text(index) for index in range(8)} == {"cat", "cat|dog"}
    with pytest.raises(DataError, match=r"no such shard: .*03.tar \(2 of 5 aren't there\)"):
        read_class_splits(f"{tmp_path}/{{00..04}}.tar")


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


PNG = io.BytesIO()
noise_image(0).save(PNG, "png")
IMAGE = PNG.getvalue()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a.png": IMAGE}, "a has no label. Expected a.cls or a.json"),
        ({"a.png": IMAGE, "a.jpg": IMAGE, "a.cls": b"1"}, "a.png and a.jpg are one sample"),
        ({"a.png": IMAGE, "a.json": b"{"}, "a.json: can't be read"),
        ({"a.png": IMAGE, "a.json": b'{"class": 1}'}, "a.json: no label in it"),
        ({"a.png": IMAGE, "a.cls": b" "}, "a.cls: no label in it"),
        ({"a.cls": b"1"}, "no images in 1 shards"),
        ({"a.png": IMAGE, "a.cls": b"1"}, "1 classes"),
    ],
)
def test_a_wrong_shard_is_refused_by_name(tmp_path: Path, files: dict[str, bytes], expected: str) -> None:
    write_tar(tmp_path / "0.tar", files)
    with pytest.raises(DataError, match=expected):
        read_class_splits(tmp_path)


def test_what_is_no_tar_file_or_cut_off_is_refused(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", {f"{n}.png": IMAGE for n in range(3)} | {"0.cls": b"1"}).read_bytes()
    for content in (b"no tar", gzip.compress(whole), whole[:1500]):
        (tmp_path / "0.tar").write_bytes(content)
        with pytest.raises(DataError, match=r"0.tar: not an uncompressed tar file, or cut off"):
            read_shards([tmp_path / "0.tar"])


def test_a_broken_image_in_a_shard_is_left_out_by_name(tmp_path: Path) -> None:
    files = {f"{n}.png": IMAGE for n in range(30)} | {"7.png": b"broken"}
    labels = {f"{n}.json": json.dumps("even" if n % 2 == 0 else "odd").encode() for n in range(30)}
    write_tar(tmp_path / "0.tar", {**files, **labels})
    _, manifest = audit_splits(read_splits(tmp_path, 6, 6), max_rejected=0.2)
    assert [name for name, _ in manifest.rejected] == ["0.tar/7.png"]


def tar(path: Path, entries: dict[str, bytes], changed: tuple[int, int, bytes] | None = None) -> None:
    """A tar file; ``changed``: the header of the entry of this number has these bytes at this place."""
    with tarfile.open(path, "w") as archive:
        offsets = []
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            offsets.append(archive.offset)
            archive.addfile(info, io.BytesIO(content))
    if changed is not None:
        raw = bytearray(path.read_bytes())
        number, place, content = changed
        begin = offsets[number]
        raw[begin + place : begin + place + len(content)] = content
        raw[begin + 148 : begin + 156] = b" " * 8
        raw[begin + 148 : begin + 156] = b"%06o\0 " % sum(raw[begin : begin + 512])
        path.write_bytes(raw)


def test_what_is_in_no_sample_with_an_image_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    entries = {"a.png": IMAGE, "a.cls": b"x", "b.xyz": b"", "c.txt": b"", "c.json": b"{}", "d.v2.png": IMAGE}
    tar(tmp_path / "0.tar", entries | {"._e.png": b"", "f.npy": b""})
    with tarfile.open(tmp_path / "0.tar", "a") as archive:
        link = tarfile.TarInfo("g.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    os.mkfifo(tmp_path / "1.tar")
    unread.forget()
    caplog.set_level("INFO", "maelift")
    images = find_source(str(tmp_path))
    assert [images.name(number) for number in range(len(images))] == ["0.tar/a.png"]
    assert [text.partition(": ")[2] for text in unread.reported()] == [
        "a named pipe, not a file; it is left out",
        "1 images; 6 files of samples without an image are not read: 1 .json, "
        "1 .npy (arrays are read where no image file lies beside them), "
        "1 .txt, 1 .v2.png, 1 .xyz, 1 links (links within an archive)",
    ]


def test_a_shard_whose_entries_claim_what_it_cannot_hold_is_refused_at_once(tmp_path: Path) -> None:
    size = 124
    negative = b"\xff" * 10 + (2**16 - 512).to_bytes(2, "big")
    huge = b"\x80" + (2**60).to_bytes(11, "big")
    for changed in ((1, size, negative), (1, size, huge), (0, size, b"77777777777\0"), (1, size, b"\xff" * 12)):
        tar(tmp_path / "0.tar", {"a.png": IMAGE, "b.png": IMAGE, "c.png": IMAGE}, changed)
        with pytest.raises(DataError, match=r"0\.tar: .*(outside of the file|cut off)"):
            find_source(str(tmp_path))
    tar(tmp_path / "0.tar", {"a.png": IMAGE, "a.cls": bytes(2**20 + 1)})
    with pytest.raises(DataError, match=r"a\.cls: 1,048,577 bytes\. Expected a label"):
        read_shards([tmp_path / "0.tar"])


def test_a_pattern_is_counted_before_it_is_expanded(tmp_path: Path) -> None:
    for pattern in ("{000..999999999}", "{0..99}{0..99}{0..99}", "{1..99999999999999999999999}", "{a,b}" * 20):
        with pytest.raises(DataError, match=r"a pattern of .* shards, more than 100,000\. Give the folder"):
            find_source(f"{tmp_path}/x{pattern}.tar")
    tar(tmp_path / "x1.tar", {"a.png": IMAGE})
    tar(tmp_path / "x3.tar", {"b.png": IMAGE})
    assert len(find_source(f"{tmp_path}/x{{1..3..2}}.tar")) == 2
    with pytest.raises(DataError, match=r"no such shard: .*x2\.tar \(1 of 3"):
        find_source(f"{tmp_path}/x{{1..3}}.tar")
