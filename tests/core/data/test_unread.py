"""What lies in a data set and isn't read is told, whatever the data set is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from maelift.core.data import unread
from maelift.core.data.classification_reader import read_parts
from maelift.core.data.detection_reader import detection_parts
from maelift.core.data.sources import find_source
from maelift.core.tools.check_data import DataCheckConfig, data_check
from maelift.tests.support import write_images


def told_by(read: Callable[[Path], object], data: Path) -> list[str]:
    """What is reported of a folder, without its name."""
    unread.forget()
    read(data)
    return [text.removeprefix(f"{data}: ") for text in unread.reported()]


def test_images_without_annotation_are_counted(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 5)
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    for name in ("a.cr2", "readme.txt"):
        (tmp_path / "images" / name).touch()
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 9, 9], "area": 81, "iscrowd": 0}
    images = [{"id": number, "file_name": names[number], "width": 24, "height": 20} for number in (1, 2, 3)]
    content = {"images": images, "annotations": [box], "categories": [{"id": 1, "name": "x"}]}
    (tmp_path / "train.json").write_text(json.dumps(content))
    said = told_by(detection_parts, tmp_path)
    assert said == [
        f"2 of 5 images are named by no annotation and aren't used, such as images/{names[0]}",
        "5 images; 1 other file is not read: 1 .cr2 (raw photos: develop to JPEG or TIFF)",
    ]
    (tmp_path / "masks").mkdir()
    for name in names[:3]:  # masks of the same images are no images that nothing names
        shutil.copy(tmp_path / "images" / names[0], tmp_path / "masks" / name)
    assert told_by(detection_parts, tmp_path)[0] == said[0]
    shutil.rmtree(tmp_path / "masks")
    (tmp_path / "train.json").unlink()
    rows = [f"images/{name},{'cat' if number % 2 else 'dog'}" for number, name in enumerate(names[:4])]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]))
    said = told_by(read_parts, tmp_path)
    assert said[0] == f"1 of 5 images are named by no row of labels.csv and aren't used, such as images/{names[4]}"


def test_what_lies_beside_shards_and_arrays_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_images(tmp_path / "photos", 3)
    shutil.make_archive(str(tmp_path / "photos" / "0"), "tar", tmp_path / "photos")
    (tmp_path / "photos" / "below").mkdir()
    (tmp_path / "photos" / ".DS_Store").touch()
    said = told_by(lambda data: find_source(str(data)), tmp_path / "photos")
    assert said == ["only 0.tar is read, not what lies beside: 3 .png, 1 folders"]
    idx = bytes([0, 0, 8, 3, *(0, 0, 0, 2) * 3]) + np.arange(8, dtype=np.uint8).tobytes()
    for name in ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte"):
        (tmp_path / name).write_bytes(idx)
    shutil.rmtree(tmp_path / "photos")
    said = told_by(lambda data: find_source(str(data)), tmp_path)
    assert said == ["only train-images-idx3-ubyte is read, not what lies beside: 1 no suffix"]


def test_a_check_says_it_in_its_result_and_a_run_in_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_images(tmp_path, 3)
    (tmp_path / "a.xyz").touch()
    caplog.set_level("INFO", "maelift")
    unread.forget()
    check = data_check(DataCheckConfig(str(tmp_path)))
    said = f"{tmp_path}: 3 images; 1 other file is not read: 1 .xyz"
    assert check.unread == (said,) and said in check.summary() and said not in caplog.messages
    unread.forget()
    for _ in range(2):
        find_source(str(tmp_path))
    assert caplog.messages.count(said) == 1
