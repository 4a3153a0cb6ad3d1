"""The model file: what is written is read back, by version too; every other file is refused in a line, and never run."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import maelift
import pytest
import safetensors
import safetensors.torch
import torch
from maelift.core.errors import CheckpointError
from maelift.core.models.contract import content_hash
from maelift.core.models.encoder_file import Provenance
from maelift.tests.support import GOLDEN, encoder_file, noise_image, random_encoder, rewrite_metadata
from maelift.transfer.classification.model import Classifier, save_classifier
from maelift.transfer.model_file import MODEL_KEY, read_model, write_model
from maelift.transfer.segmentation.architecture import Architecture
from maelift.transfer.segmentation.model import Segmentor
from maelift.transfer.trained_model import load_model
from torch import nn

CLASSES = ("a", "größer", "<b>")


@pytest.fixture()
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_classifier(Classifier(random_encoder(image_size=32), CLASSES), path, Provenance(method="test"))
    return path


def description(path: Path) -> dict[str, object]:
    with safetensors.safe_open(str(path), framework="pt") as file:
        content: dict[str, object] = json.loads(file.metadata()[MODEL_KEY])
    return content


def test_a_model_is_read_back_and_predicts_the_same(model: Path) -> None:
    file = read_model(model)
    assert file.task == "classify" and file.classes == CLASSES and file.provenance.method == "test"
    loaded = maelift.load_model(model)
    assert isinstance(loaded, Classifier) and not loaded.training and loaded.classes == CLASSES
    image = noise_image(1)
    (found,) = loaded.predict([image])
    (again,) = load_model(model).predict([image])
    assert found == again and sum(found.probabilities.values()) == pytest.approx(1, abs=1e-5)


def test_a_segmentor_keeps_its_head(tmp_path: Path) -> None:
    segmentor = Segmentor(random_encoder(image_size=16), CLASSES, Architecture(head="conv")).eval()
    segmentor.save(tmp_path / "m.safetensors", Provenance(method="test"))
    images = torch.randn(1, 3, 16, 20)
    with torch.inference_mode():
        assert torch.equal(load_model(tmp_path / "m.safetensors")(images), segmentor(images))


def test_a_classifier_of_version_1_is_read(model: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        for key in ("head", "content_hash", "checksum"):
            del content[key]
        content["version"] = 1

    rewrite_metadata(model, change, seal=False)
    assert isinstance(load_model(model), Classifier) and load_model(model).classes == CLASSES


@pytest.mark.parametrize("task", ["classify", "detect", "segment"])
def test_models_of_version_2_are_read(task: str) -> None:
    path = GOLDEN / "version_1" / f"{task}.safetensors"
    model = load_model(path)
    assert len(model.predict([noise_image(1)])) == 1 and not model.training
    file = read_model(path)
    assert file.content_hash == content_hash(file.state)  # as everything that names the file has it


def test_tensors_that_share_memory_are_written(tmp_path: Path) -> None:
    tied: Any = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    encoder = random_encoder()
    tied.classes, tied.spec, tied.preprocessing = CLASSES, encoder.spec, encoder.preprocessing
    write_model(tmp_path / "m.safetensors", tied, task="classify", head={}, provenance=Provenance(method="test"))
    state = read_model(tmp_path / "m.safetensors").state
    assert torch.equal(state["0.weight"], state["1.weight"])


def test_other_versions_tasks_and_changed_metadata_are_refused(model: Path, tmp_path: Path) -> None:
    sealed, changed = "", "not those that the file was written with"
    changes: tuple[tuple[dict[str, Any], str, str], ...] = (
        ({"version": 4}, "Update maelift", "Update maelift"),
        ({"version": True}, "version=true: expected a whole number", "version=true"),
        ({"task": "caption"}, "classify, detect, segment", changed),
        ({"spec": {"nonsense": 1}}, "spec.image_size is missing", "spec.image_size is missing"),
        ({"head": {"kind": "oracle"}}, "kind=oracle: expected one of knn", changed),
        ({"head": {"kind": "knn", "k": 3}}, "count=null: expected a number above 0", changed),
        ({"head": [1]}, r"head=\[1\]: expected mapping", "expected mapping"),
        ({"classes": ["a"]}, "of shape", changed),
        ({"classes": ["größer", "a", "<b>"]}, sealed, changed),
        ({"classes": ["a", "b", "\ud800"]}, "expected text that UTF-8 can hold", "UTF-8"),
        ({"classes": []}, "at least one", "at least one"),
        ({"classes": [1, 2, 3]}, r"classes\[0\]=1: expected text", r"classes\[0\]=1"),
        ({"extra": 1}, "extra is no key of it", "extra is no key of it"),
    )
    for change, expected, unsealed in changes:
        for seal, said in ((True, expected), (False, unsealed)):
            path = tmp_path / "changed.safetensors"
            shutil.copy(model, path)
            rewrite_metadata(path, partial(dict.update, **change), seal=seal)
            if not said:
                assert load_model(path).classes == tuple(change["classes"])
                continue
            with pytest.raises(CheckpointError, match=said) as caught:
                load_model(path)
            assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_what_is_no_model_is_refused_and_pickles_are_not_opened(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    (tmp_path / "bare.pkl").write_bytes(pickle.dumps(Evil(), protocol=2))
    torch.save({"x": Evil()}, tmp_path / "model.pth")
    (tmp_path / "text.safetensors").write_text("nothing of the kind")
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    for path, expected in (
        (tmp_path / "bare.pkl", "a pickle"),
        (tmp_path / "model.pth", "a pickle"),
        (tmp_path / "text.safetensors", "not a weights file"),
        (tmp_path / "other.safetensors", "not a model of maelift"),
        (encoder_file(tmp_path / "encoder.safetensors"), "an encoder file"),
        (tmp_path / "nowhere", "no such file"),
        (tmp_path, "no such file"),
    ):
        with pytest.raises(CheckpointError, match=expected) as caught:
            load_model(path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_the_description_is_plain_json(model: Path) -> None:
    content = description(model)
    assert content["version"] == 3 and content["classes"] == list(CLASSES)
    assert content["spec"] == json.loads(json.dumps(asdict(read_model(model).spec)))


def test_a_header_of_any_length_is_no_pickle(tmp_path: Path, model: Path) -> None:
    """Safetensors begin with the header's length, whose lowest byte may be that which pickles begin with."""
    for extra in range(64):  # headers are padded to eight bytes
        padded = {"method": " " * 8 * extra}
        rewrite_metadata(model, partial(dict.update, provenance=padded))
        if model.read_bytes()[0] == 0x80:
            break
    assert model.read_bytes()[0] == 0x80 and load_model(model).classes == CLASSES
