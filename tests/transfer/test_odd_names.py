"""Class names of any letters: what is written beside graphs, tables and masks can be read back as it was meant."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from maelift.cli import main
from maelift.core.data.class_lists import read_class_list
from maelift.core.models.encoder_file import Provenance, read_encoder
from maelift.tests.support import GOLDEN, framework, noise_image, write_images
from maelift.transfer.classification.model import Classifier, save_classifier
from maelift.transfer.model_file import MODEL_KEY, read_model
from maelift.transfer.segmentation.architecture import Architecture
from maelift.transfer.segmentation.model import Segmentor
from maelift.transfer.trained_model import load_model
from PIL import Image

ODD = (
    "a\nb",
    "c\td",
    "e, 7",
    'f"g',
    "h\u2028i",
    " j ",
    "\x1b[31mk",
    "l\x85m",
    "größer",
    "caf\udce9",
    "=1+1",
    "#00ff00",
)


@pytest.fixture()
def classifier(tmp_path: Path) -> Path:
    encoder = read_encoder(GOLDEN / "version_1" / "encoder.safetensors").encoder
    save_classifier(Classifier(encoder, ODD), tmp_path / "model.safetensors", Provenance("test"))
    return tmp_path / "model.safetensors"


def test_the_names_beside_a_graph_stay_one_a_line(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnxruntime = framework("onnxruntime")
    assert main(["export", str(classifier), "--to", "onnx", f"out={tmp_path / 'graph'}"]) == 0
    assert "in classes.txt, as it is in classes.json" in capsys.readouterr().out
    names = (tmp_path / "graph" / "classes.txt").read_text(encoding="utf-8").splitlines()
    assert len(names) == len(ODD) and names[0] == r"a\nb" and names[2:4] == ["e, 7", 'f"g'] and names[8] == "größer"
    assert tuple(json.loads((tmp_path / "graph" / "classes.json").read_text())) == ODD
    session = onnxruntime.InferenceSession(str(tmp_path / "graph" / "model.onnx"))
    assert tuple(json.loads(session.get_modelmeta().custom_metadata_map[MODEL_KEY])["classes"]) == ODD


def test_the_table_of_predictions_has_a_row_an_image_and_the_names_as_they_are(
    classifier: Path, tmp_path: Path
) -> None:
    write_images(tmp_path / "images", 4)
    assert main(["predict", f"model={classifier}", f"images={tmp_path / 'images'}", f"out={tmp_path / 'p.csv'}"]) == 0
    with (tmp_path / "p.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.DictReader(file))
    model = load_model(classifier)
    found = [one.label for one in model.predict([tmp_path / "images" / row["path"] for row in rows])]
    assert len(rows) == 4 and all(row["predicted"].lstrip("'") == name for row, name in zip(rows, found, strict=True))


@pytest.mark.parametrize("names", [ODD, ("a", "b, c"), ("a", "b\nc"), ("1 a", "2 b"), ("# a", "b")])
def test_the_names_of_masks_are_read_back(names: tuple[str, ...], tmp_path: Path) -> None:
    encoder = read_encoder(GOLDEN / "version_1" / "encoder.safetensors").encoder
    values = [3 * number for number in range(len(names))]
    model = Segmentor(encoder, names, Architecture(head="linear"))
    model.save(tmp_path / "m.safetensors", Provenance("test"), values)
    (tmp_path / "images").mkdir()
    noise_image(0).save(tmp_path / "images" / "a.png")
    words = [f"model={tmp_path / 'm.safetensors'}", f"images={tmp_path / 'images'}", f"out={tmp_path / 'masks'}"]
    assert main(["predict", *words]) == 0
    found = read_class_list(tmp_path / "masks")
    assert found is not None and found.names == dict(
        zip(values, read_model(tmp_path / "m.safetensors").classes, strict=True)
    )
    assert set(np.unique(np.asarray(Image.open(tmp_path / "masks" / "a.png")))) <= set(values)
