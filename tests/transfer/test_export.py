"""Full models as ONNX: onnxruntime gives the model's logits for every head, size and batch; others are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from maelift.cli import main
from maelift.core.models.encoder_file import Provenance
from maelift.core.models.encoder_spec import EncoderSpec
from maelift.core.models.probes import AttentiveProbe
from maelift.tests.support import framework, random_encoder
from maelift.transfer.classification.model import Classifier, save_classifier
from maelift.transfer.detection.architecture import Architecture as DetectorArchitecture
from maelift.transfer.detection.model import Detector
from maelift.transfer.segmentation.architecture import Architecture
from maelift.transfer.segmentation.model import Segmentor
from maelift.transfer.trained_model import load_model
from torch import nn

framework("onnx")
onnxruntime = framework("onnxruntime")

CLASSES = ("a", "b", "c")


def shaken(model: nn.Module) -> nn.Module:
    """The model with every parameter random, norms too, so that none can be missed unseen."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean") or name.endswith("running_var"):
            buffer += 0.5 * torch.rand(buffer.shape, generator=generator)
    return model.eval()


def segmentor_file(path: Path, channels: int = 3, patch: int = 4, depth: int = 4, **architecture: Any) -> Path:
    spec = EncoderSpec(
        image_size=(8 * patch, 8 * patch), patch_size=patch, channels=channels, embed_dim=32, depth=depth, num_heads=2
    )
    encoder = random_encoder(spec)
    model = shaken(Segmentor(encoder, CLASSES, Architecture(**architecture)))
    assert isinstance(model, Segmentor)
    model.save(path, Provenance(method="test"))
    return path


def export(path: Path, out: Path, *words: str) -> Any:
    assert main(["export", str(path), "--to", "onnx", f"out={out}", *words]) == 0
    assert json.loads((out / "certificate.json").read_text())["passed"]
    return onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])


def expect(path: Path, session: Any, *shapes: tuple[int, ...]) -> None:
    """Compare the logits for stored values of these shapes (B, C, H, W)."""
    model = load_model(path)
    for shape in shapes:
        images = np.random.default_rng(0).integers(0, 256, shape).astype(np.float32)
        with torch.inference_mode():
            expected = model(model.preprocessing.normalize(torch.from_numpy(images))).numpy()
        (found,) = session.run(["logits"], {"images": images})
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-4 * max(1.0, float(np.abs(expected).max())))


@pytest.mark.parametrize("head", ["linear", "both", "class_token", "attentive", "multi_label"])
def test_a_classifier_is_one_graph(tmp_path: Path, head: str) -> None:
    encoder = random_encoder(channels=1 if head == "both" else 3, image_size=32)
    layer = AttentiveProbe(encoder.spec.embed_dim, len(CLASSES), 2) if head == "attentive" else None
    pooling: Any = head if head in ("both", "class_token") else "mean"
    model = shaken(Classifier(encoder, CLASSES, layer, pooling=pooling, multi_label=head == "multi_label"))
    assert isinstance(model, Classifier)
    save_classifier(model, tmp_path / "model.safetensors", Provenance(method="test"))
    session = export(tmp_path / "model.safetensors", tmp_path / "graph")
    channels = encoder.spec.channels
    expect(tmp_path / "model.safetensors", session, (1, channels, 32, 32), (3, channels, 32, 32), (2, channels, 16, 40))
    images = np.full((2, channels, 32, 32), 99, np.float32)
    logits, shares = session.run(["logits", "probabilities"], {"images": images})
    assert np.allclose(shares, model.probabilities(torch.from_numpy(logits)).numpy(), atol=1e-5)
    assert (tmp_path / "graph" / "classes.txt").read_text().split() == list(CLASSES)


@pytest.mark.parametrize(
    ("head", "channels", "patch", "depth"),
    [
        ("linear", 1, 4, 4),
        ("conv", 3, 4, 4),
        ("upernet", 3, 4, 4),
        ("upernet", 1, 8, 2),
        ("conv", 3, 14, 3),
        ("upernet", 3, 16, 5),
    ],
)
def test_a_segmentor_is_one_graph(tmp_path: Path, head: str, channels: int, patch: int, depth: int) -> None:
    path = segmentor_file(tmp_path / "model.safetensors", channels, patch, depth, head=head)
    session = export(path, tmp_path / "graph")
    side = 8 * patch
    expect(path, session, (1, channels, side, side), (3, channels, side, side), (2, channels, side + 1, 2 * side + 3))
    images = np.zeros((1, channels, side - 3, side + 2), np.float32)
    logits, classes = session.run(["logits", "classes"], {"images": images})
    assert classes.dtype == np.int64 and np.array_equal(classes, logits.argmax(axis=1))


def test_sizes_can_be_fixed_and_images_come_normalised(tmp_path: Path) -> None:
    path = segmentor_file(tmp_path / "model.safetensors", head="conv")
    session = export(path, tmp_path / "graph", "dynamic_size=false", "normalize=false")
    assert session.get_inputs()[0].shape[1:] == [3, 32, 32]
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected = load_model(path)(images).numpy()
    np.testing.assert_allclose(session.run(["logits"], {"images": images.numpy()})[0], expected, atol=1e-4)


def test_what_has_no_graph_is_refused_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Detector(random_encoder(image_size=32), CLASSES, DetectorArchitecture(head="faster")).save(
        tmp_path / "detector.safetensors", Provenance(method="test")
    )
    windows = segmentor_file(tmp_path / "windows.safetensors", depth=8, head="linear", window_size=2)
    plain = segmentor_file(tmp_path / "plain.safetensors", head="linear")
    for path, words, expected in (
        (tmp_path / "detector.safetensors", ("--to", "onnx"), "a detector"),
        (windows, ("--to", "onnx"), "window_size=2"),
        (plain, ("--to", "timm"), "a full model, which can be exported to onnx only"),
        (plain, ("--to", "onnx", "image_size=64"), "image_size=64"),
    ):
        assert main(["export", str(path), *words, f"out={tmp_path / 'out'}"]) == 2
        error = capsys.readouterr().err
        assert expected in error and len(error.strip().splitlines()) == 1
        assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))
