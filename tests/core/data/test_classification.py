"""Labels out of folders, CSV and idx files; splits without overlap; draws that are stratified and nested."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from maelift.core.data.classification import LabeledImages, MultiLabeledImages
from maelift.core.data.classification_reader import read_class_splits, read_splits
from maelift.core.data.labeled_dataset import draw_labeled
from maelift.core.data.missing_splits import audit_splits, draw_missing_splits
from maelift.core.data.readers.folder import FolderImages
from maelift.core.errors import DataError
from maelift.tests.support import noise_image, write_images


def names(labeled) -> set[str]:  # type: ignore[no-untyped-def]
    return {labeled.images.name(number) for number in range(len(labeled))}


def test_class_folders_are_split_evenly_without_overlap(class_folders: Path) -> None:
    splits = read_splits(class_folders, val=6, test=0.2, seed=1)
    assert splits.train.classes == ("dark", "light", "middle")
    assert [len(part) for _, part in splits.items()] == [42, 6, 12]
    assert set(Counter(splits.val.labels).values()) == {2}
    assert set(Counter(splits.test.labels).values()) == {4}
    assert len(names(splits.train) | names(splits.val) | names(splits.test)) == 60
    assert names(read_splits(class_folders, 6, 0.2, 1).val) == names(splits.val)
    assert names(read_splits(class_folders, 6, 0.2, 2).val) != names(splits.val)


def test_split_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("validation", 2), ("test", 3)):
        for label in ("cat", "dog"):
            write_images(tmp_path / split / label, count)
    splits = read_splits(tmp_path)
    assert [len(part) for _, part in splits.items()] == [8, 4, 6]
    write_images(tmp_path / "test" / "dogs", 1)
    with pytest.raises(DataError, match=r"are not in training: dogs. Did you mean dog"):
        read_splits(tmp_path)


def test_a_csv_gives_labels_and_splits(tmp_path: Path) -> None:
    write_images(tmp_path / "pictures", 6)
    rows = [f"pictures/image{n:03d}.png,{label},{split}" for n, (label, split) in enumerate(
        [("10", "train"), ("9", "train"), ("9", "train"), ("10", "train"), ("9", "val"), ("10", "test")]
    )]  # fmt: skip
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,split", *rows]))
    for data in (tmp_path, tmp_path / "labels.csv"):
        splits = read_splits(data)
        assert splits.train.classes == ("9", "10")  # numbers by value
        assert splits.train.labels == (1, 0, 0, 1)
        assert splits.val.labels == (0,) and splits.test.labels == (1,)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("picture,label\na.png,x", "no column 'path'"),
        ("path,label\nmissing.png,x\n", "line 2: no such file"),
        ("path,label\na.png,\n", "line 2: a path or a label is missing"),
        ("path,label,split\na.png,x,holdout\n", "expected train, val or test"),
        ("path,label\na.png,x\n", "Expected at least two"),
        ("path,label,split\na.png,x,train\na.png,x,test\n", "line 3: a.png is already in train"),
        ("path,label\n", "no rows"),
    ],
)
def test_a_wrong_csv_is_refused_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    noise_image(0).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=expected):
        read_splits(tmp_path)


def test_images_outside_class_folders_are_refused(class_folders: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "one", 2)
    with pytest.raises(DataError, match="single class folder"):
        read_splits(tmp_path)
    write_images(tmp_path, 1)
    with pytest.raises(DataError, match="outside class folders"):
        read_splits(tmp_path)


def test_draws_are_stratified_and_nested(class_folders: Path) -> None:
    train = read_splits(class_folders, 6, 6).train
    for seed in (0, 1):
        draws = [draw_labeled(train, count, seed) for count in (3, 7, 20, 48)]
        for smaller, larger in pairwise(draws):
            assert names(smaller) < names(larger)
        counts = Counter(draws[2].labels).values()
        assert max(counts) - min(counts) <= 1
    assert names(draw_labeled(train, 7, 0)) != names(draw_labeled(train, 7, 1))
    assert len(draw_labeled(train, 0.25, 0)) == 12
    with pytest.raises(DataError, match="2 images: expected at least 3"):
        draw_labeled(train, 2, 0)
    with pytest.raises(DataError, match="only 48"):
        draw_labeled(train, 49, 0)


def test_fashion_mnist_has_its_sizes(fashion_mnist: Path) -> None:
    splits = read_splits(fashion_mnist, val=1000)
    assert [len(part) for _, part in splits.items()] == [59000, 1000, 10000]
    assert Counter(splits.val.labels) == {label: 100 for label in range(10)}


def test_broken_labelled_images_are_left_out_with_their_labels(tmp_path: Path) -> None:
    for label in ("a", "b"):
        write_images(tmp_path / label, 30)
    (tmp_path / "a" / "image003.png").write_bytes(b"broken")
    splits, manifest = audit_splits(read_splits(tmp_path, 10, 10), max_rejected=0.2)
    assert sum(len(part) for _, part in splits.items()) == 59
    assert len(manifest.rejected) == 1 and "a/image003.png" in manifest.rejected[0][0]
    for _, part in splits.items():
        for number, index in enumerate(part.labels):
            assert part.images.name(number).startswith(part.classes[index])


MULTI = "path,label,split\n" + "".join(
    f"image{n:03d}.png,{cell},{split}\n"
    for n, (cell, split) in enumerate(
        [("cat|dog", "train"), ("dog; cow", "train"), ("", "train"), ("cow", "train"), ("dog", "val"), ("", "test")]
    )
)
COLUMNS = "path,cow,cat,dog,split\n" + "".join(
    f"image{n:03d}.png,{row}\n"
    for n, row in enumerate(["0,1,1,train", "1,0,1,train", "0,0,0,train", "1,0,0,train", "0,0,1,val", "0,0,0,test"])
)


@pytest.mark.parametrize(("text", "classes"), [(MULTI, ("cat", "cow", "dog")), (COLUMNS, ("cow", "cat", "dog"))])
def test_a_csv_with_several_labels_an_image(tmp_path: Path, text: str, classes: tuple[str, ...]) -> None:
    write_images(tmp_path, 6)
    (tmp_path / "labels.csv").write_text(text)
    splits = read_class_splits(tmp_path)
    assert isinstance(splits.train, MultiLabeledImages) and splits.train.classes == classes
    found = [{classes[label] for label in labels} for _, part in splits.items() for labels in part.labels]
    assert found == [{"cat", "dog"}, {"dog", "cow"}, set(), {"cow"}, {"dog"}, set()]
    assert splits.train.targets().sum(axis=0).tolist() == [{"cat": 1, "cow": 2, "dog": 2}[name] for name in classes]
    with pytest.raises(DataError, match="several classes each"):
        read_splits(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("path,a,b\na.png,1,2\n", "line 2: b is '2': expected 0 or 1"),
        ("path,a,a\na.png,1,0\n", "two columns 'a'"),
        ("path,split\na.png,train\n", "no column 'label' and no column of a class"),
        ("path,label\na.png,x|\nb.png,y\n", "line 2: a path or a label is missing"),
        ("path,label,split\na.png,x|y,train\nb.png,z,val\n", "val rows have labels that are not in training: z"),
    ],
)
def test_a_wrong_csv_of_several_labels_is_refused_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    for name in ("a", "b"):
        noise_image(0).save(tmp_path / f"{name}.png")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=expected):
        read_class_splits(tmp_path)


def test_whether_labels_are_several_can_be_said(class_folders: Path, tmp_path: Path) -> None:
    assert isinstance(read_class_splits(class_folders).train, LabeledImages)
    many = read_class_splits(class_folders, multi_label=True).train
    assert isinstance(many, MultiLabeledImages) and {len(labels) for labels in many.labels} == {1}
    write_images(tmp_path, 4)
    rows = [f"image{n:03d}.png,{'salt|pepper' if n % 2 else 'oil'},{'train' if n < 2 else 'val'}" for n in range(4)]
    text = "\n".join(["path,label,split", *rows[:3], rows[3].replace("val", "test")])
    (tmp_path / "labels.csv").write_text(text)
    assert read_class_splits(tmp_path, multi_label=False).train.classes == ("oil", "salt|pepper")


def test_draws_of_several_labels_are_even_and_nested() -> None:
    generator = np.random.default_rng(0)
    sets = [tuple(np.flatnonzero(row)) for row in generator.random((400, 5)) < [0.5, 0.3, 0.1, 0.05, 0.02]]
    images = FolderImages(Path(), tuple(f"{n}.png" for n in range(400)))
    many = MultiLabeledImages(images, tuple(tuple(map(int, labels)) for labels in sets), tuple("abcde"))
    assert many.min_train == 5
    draws = [draw_labeled(many, count, 3) for count in (5, 20, 60)]
    for smaller, larger in pairwise(draws):
        assert names(smaller) < names(larger)
    assert draws[0].targets().sum(axis=0).min() >= 1
    common = draws[1].targets().sum(axis=0)
    assert common.max() - common.min() <= 6 and many.targets().sum(axis=0).max() > 150
    splits = draw_missing_splits({"train": many}, "x", 100, 100, 0)
    assert len(names(splits.train) | names(splits.val) | names(splits.test)) == 400
    assert splits.train.targets().sum(axis=0).min() >= 1  # one of each class is left
