"""Tables of labels as other tools write them, against the csv module's reading; each image once; advice that works."""

from __future__ import annotations

import csv
import io
import logging
import os
import re
from pathlib import Path

import numpy as np
import pytest
from maelift.core.data.classification import LabelKeys, MultiLabeledImages
from maelift.core.data.classification_reader import class_parts
from maelift.core.data.label_table import LabelTable, read_label_table
from maelift.core.errors import DataError
from maelift.tests.support import noise_image

NAMES = [f"{folder}/{name}.png" for folder in ("im", "mehr Bilder") for name in ("a", "b c", "ünï", "d,e", "x1", "x2")]
LABELS = ["cat", "dog", "Käse", "rot, grün", "dog", "cat"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small images for tables to name."""
    root = tmp_path_factory.mktemp("tables")
    for number, name in enumerate(NAMES):
        (root / name).parent.mkdir(exist_ok=True)
        noise_image(number).save(root / name)
    return root


def read(root: Path, text: str | bytes, **keys: object) -> LabelTable:
    content = text.encode() if isinstance(text, str) else text
    (root / "labels.csv").write_bytes(content)
    return read_label_table(root / "labels.csv", **keys)  # type: ignore[arg-type]


def pairs(table: LabelTable) -> list[tuple[str, tuple[str, ...], str]]:
    return [(file.path, file.labels, file.split) for file in table.files]


HEADERS = [
    ("path", "label", "split"),
    ("Filename", "Class", "SET"),
    ("image", "target", "subset"),
    ("file_name", "category", "Split"),
    ("image_id", "label", "partition"),
    ("IMG_PATH", "class_name", "phase"),
]


@pytest.mark.parametrize("seed", range(70))
def test_a_table_says_the_same_as_to_the_csv_module(root: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)

    def one(*choices: object) -> object:
        return choices[generator.integers(len(choices))]

    delimiter, newline = str(one(",", ";", "\t", "|")), str(one("\n", "\r\n", "\r"))
    encoding = str(one("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252"))
    quoting = one(csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC)
    header = list(HEADERS[generator.integers(len(HEADERS))])
    spell, extra, blank, index = (str(one("as it is", "backslash", "dot")), one(0, 1, 2), one(0, 3), one(False, True))
    rows = [
        [name, LABELS[number % 6], str(one("train", "Training", "val", "TEST"))] for number, name in enumerate(NAMES)
    ]
    for number in range(int(str(extra))):
        header.append(f"extra{number}")
        rows = [[*row, str(generator.integers(100))] for row in rows]
    if index:  # a pandas index
        header, rows = ["", *header], [[str(number), *row] for number, row in enumerate(rows)]
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator=newline, quoting=quoting)  # type: ignore[arg-type]
    writer.writerows([header, *rows])
    plain = text.getvalue()
    name_column, label_column, split_column = header[int(bool(index)) : int(bool(index)) + 3]
    expected = [
        (
            row[name_column],
            (row[label_column],),
            {"training": "train"}.get(row[split_column].lower(), row[split_column].lower()),
        )
        for row in csv.DictReader(io.StringIO(plain, newline=""), delimiter=delimiter)
    ]
    written = plain
    for name in NAMES:
        spelled = {"as it is": name, "backslash": name.replace("/", "\\"), "dot": f"./{name}"}[spell]
        written = written.replace(name, spelled)
    if blank:
        written += (delimiter * (len(header) - 1) + newline) * 3
    table = read(root, written.encode(encoding))
    assert [(os.path.normpath(path), labels, split) for path, labels, split in pairs(table)] == expected
    assert not table.several


def test_columns_that_other_tools_write(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert pairs(read(root, "image_id,label\nx1,0\nx2,1\n".replace("x", "im/x"))) == [
        ("im/x1.png", ("0",), "train"),
        ("im/x2.png", ("1",), "train"),
    ]
    assert "2 paths don't exist as written; found by name, im/x1 as im/x1.png" in caplog.text
    absolute = f"path,label\n{root / 'im' / 'x1.png'},a\nC:\\data\\im\\x2.PNG,b\n"
    assert [path for path, _, _ in pairs(read(root, absolute))] == [str(root / "im" / "x1.png"), "im/x2.png"]
    assert pairs(read(root, "im/x1.png,a\nim/x2.png,b\n"))[1] == ("im/x2.png", ("b",), "train")
    assert "no header" in caplog.text
    assert pairs(read(root, "sep=;\r\npath;diagnosis\r\nim/x1.png;ill\r\n"))[0][1] == ("ill",)
    both = "filename,class_id,class_name\nim/x1.png,3,cat\nim/x2.png,7,dog\n"
    assert [labels for _, labels, _ in pairs(read(root, both))] == [("cat",), ("dog",)]
    flags = "path,label,is_valid\nim/x1.png,a,False\nim/x2.png,b,True\n"
    assert [split for _, _, split in pairs(read(root, flags))] == ["train", "val"]
    whole = read(root, "path,label\nim/x1.png,1.0\nim/x2.png,12.0\n")
    assert [labels for _, labels, _ in pairs(whole)] == [("1",), ("12",)]
    lists = read(root, "path,labels\nim/x1.png,\"['a', 'b']\"\nim/x2.png,[]\n")
    assert lists.several and [labels for _, labels, _ in pairs(lists)] == [("a", "b"), ()]
    grouped = read(root, "path,patient,label\nim/x1.png,p1,a\nim/x2.png,p2,b\n", group="Patient")
    assert grouped.grouped and [file.group for file in grouped.files] == ["p1", "p2"]
    caplog.clear()
    single = read(root, "path,tumor\nim/x1.png,0\nim/x2.png,1\n")
    assert single.several and single.classes == ("tumor",)
    assert "label_column=tumor makes two classes, 0 and 1" in caplog.text
    assert [
        file.labels for file in read(root, "path,tumor\nim/x1.png,0\nim/x2.png,1\n", label_column="tumor").files
    ] == [
        ("0",),
        ("1",),
    ]
    one_hot = "path,a,b\nim/x1.png,1,0\nim/x2.png,0,1\n"
    assert [file.labels for file in read(root, one_hot, multi_label=False).files] == [("a",), ("b",)]


def test_rows_of_one_file_are_joined_or_refused(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = "".join(f"im/x{1 + n % 2}.png,{'ab'[n % 2]}\n" for n in range(6))
    table = read(root, "path,label\n" + rows)
    assert pairs(table) == [("im/x1.png", ("a",), "train"), ("im/x2.png", ("b",), "train")]
    assert table.files[0].lines == (2, 4, 6)
    assert "6 rows are of 2 images; rows of one image with equal labels are merged" in caplog.text
    (root / "link.png").unlink(missing_ok=True)
    (root / "hard.png").unlink(missing_ok=True)
    os.symlink(root / "im" / "x1.png", root / "link.png")
    os.link(root / "im" / "x1.png", root / "hard.png")
    for other in ("./im/x1.png", "im/../im/x1.png", "im//x1.png", "link.png", "hard.png", str(root / "im/x1.png")):
        table = read(root, f"path,label\nim/x1.png,a\nim/x2.png,b\n{other},a\n")
        assert [file.path for file in table.files] == ["im/x1.png", "im/x2.png"], other
        with pytest.raises(DataError, match=r"lines 2 and 4: im/x1.png has the labels a and b\..* multi_label=true"):
            read(root, f"path,label\nim/x1.png,a\nim/x2.png,b\n{other},b\n")
    with pytest.raises(DataError, match=r"line 4: .*im/x1.png is already in train \(line 2\)"):
        read(root, "path,label,split\nim/x1.png,a,train\nim/x2.png,b,\n./im/x1.png,a,test\n")
    with pytest.raises(DataError, match="is in the groups p1 and p2"):
        read(root, "path,label,p\nim/x1.png,a,p1\nim/x1.png,a,p2\n", group="p")


def test_the_advice_about_several_labels_works(root: Path) -> None:
    long = "path,label\nim/x1.png,a\nim/x1.png,b\nim/x2.png,b\n"
    with pytest.raises(DataError, match="multi_label=true"):
        read(root, long)
    table = read(root, long, multi_label=True)
    assert [(file.labels, file.lines) for file in table.files] == [(("a", "b"), (2, 3)), (("b",), (4,))]
    parts = class_parts(root, LabelKeys(True))
    assert isinstance(parts["train"], MultiLabeledImages) and parts["train"].labels == ((0, 1), (1,))


REFUSED = [
    ("path,label\nim/x1.png,a,b\n", "line 2: 3 cells, but 2 columns", ('path,label\nim/x1.png,"a,b"\n', {})),
    ("path,label\nim/x1.png,\n", "line 2: a path or a label is missing", None),
    ("path,label\n,a\n", "line 2: a path or a label is missing", None),
    ('path,label\nim/x1.png,"a\nb"\n', "has a line break", None),
    ("path,label\nim/x9.png,a\nim/x1.png,b\n", r"line 2: no such file: im/x9.png \(1 of 2 are missing\)", None),
    ("path,label\nx1.png,a\n", "line 2: x1.png may be ", ("path,label\nim/x1.png,a\n", {})),
    ("path,label\nother/x1.png,a\n", "line 2: no such file: other/x1.png", None),
    (
        "path,quality,origin\nim/x1.png,good,here\n",
        "label_column=quality reads that column",
        ("path,quality,origin\nim/x1.png,good,here\n", {"label_column": "quality"}),
    ),
    (
        "path,age,a,b\nim/x1.png,33,0,1\n",
        r"label_column=age reads that column as labels, label_column=\[a,b\] the columns of 0 and 1",
        ("path,age,a,b\nim/x1.png,33,0,1\n", {"label_column": ("a", "b")}),
    ),
    (
        "path,class,species\nim/x1.png,a,b\nim/x2.png,a,c\n",
        "Choose one: label_column=class",
        ("path,class,species\nim/x1.png,a,b\nim/x2.png,a,c\n", {"label_column": "class"}),
    ),
    (
        "filename,class,xmin,ymin,xmax,ymax\nim/x1.png,car,1,2,3,4\n",
        "a table of boxes",
        ("filename,class,xmin,ymin,xmax,ymax\nim/x1.png,car,1,2,3,4\n", {"label_column": "class"}),
    ),
    ("ImageId,EncodedPixels\nim/x1.png,1 2\n", "a table of masks|no column 'path'", None),
    ("path,a,b\nim/x1.png,1,1\n", None, None),
    ("", "no rows", None),
    ("path,label\n\n,\n", "no rows", None),
]


@pytest.mark.parametrize(("text", "expected", "followed"), REFUSED)
def test_refusals_name_the_line_and_their_advice_works(
    root: Path, text: str, expected: str | None, followed: tuple[str, dict[str, object]] | None
) -> None:
    if expected is None:
        assert read(root, text).files[0].labels == ("a", "b")
        with pytest.raises(DataError, match="2 classes are 1, and multi_label=false"):
            read(root, text, multi_label=False)
        return
    with pytest.raises(DataError, match=expected) as error:
        read(root, text)
    assert "\n" not in str(error.value)
    if followed is not None:
        assert read(root, followed[0], **followed[1]).files
    with pytest.raises(
        DataError, match=re.escape("no column 'lable' (label_column; found: path, label). Did you mean label?")
    ):
        read(root, "path,label\nim/x1.png,a\n", label_column="lable")


def test_names_of_classes_that_are_nearly_the_same_are_named(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "path,label\nim/x1.png,Cat\nim/x2.png,cat\nim/a.png,golden retriever\nim/b c.png,golden  retriever\n"
    (root / "labels.csv").write_text(text)
    splits = class_parts(root / "labels.csv")
    assert len(splits["train"].classes) == 4
    assert "differ only in case or spaces are different classes: 'Cat', 'cat'" in caplog.text
    assert "'golden  retriever', 'golden retriever'" in caplog.text


@pytest.mark.parametrize("seed", range(4))
def test_mangled_tables_are_read_or_refused_in_a_line(root: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    base = "path,label,split,patient\n" + "".join(
        f"{name},{LABELS[n % 2]},{('train', 'val', 'test')[n % 3]},p{n % 4}\n"
        for n, name in enumerate(NAMES[:2] + NAMES[4:8])
    )
    pieces = [
        b"\x00",
        b'"',
        b",",
        b";",
        b"\n",
        b"\r",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"|",
        b"../",
        b"\x1b[2J",
        b"=1+1",
        b"[",
        b"'",
    ]
    for _ in range(60):
        content = base.encode()
        for _ in range(int(generator.integers(1, 4))):
            place, piece = int(generator.integers(len(content))), pieces[generator.integers(len(pieces))]
            keep = place + int(generator.integers(0, 9))
            content = content[:place] + piece + content[keep:]
        (root / "labels.csv").write_bytes(content)
        group = "patient" if generator.random() < 0.5 else None
        multi_label = (None, True, False)[generator.integers(3)]
        try:
            parts = class_parts(root / "labels.csv", LabelKeys(multi_label, group=group))
        except DataError as error:
            assert str(error).strip() and len(str(error)) < 1500
            continue
        found = [part.images.name(number) for part in parts.values() for number in range(len(part))]
        files = [os.stat(root / name).st_ino for name in found]
        assert len(set(files)) == len(files)
