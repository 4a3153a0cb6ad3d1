"""ONNX: a graph that needs neither torch nor maelift, and a certificate that sees what is wrong with one."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from maelift.adapters import onnx as adapter
from maelift.adapters import onnx_graph
from maelift.cli import main
from maelift.core.errors import CheckpointError
from maelift.core.models.encoder import Encoder
from maelift.core.models.encoder_file import Provenance, contract_text, read_encoder
from maelift.core.models.encoder_spec import EncoderSpec
from maelift.core.models.preprocessing import Preprocessing
from maelift.core.models.stored_contract import CONTRACT_KEY
from maelift.tests.support import (
    ROOT,
    encoder_file,
    environment,
    framework,
    one_line_error,
    random_encoder,
    run_maelift,
    run_page,
    wide_encoder,
)

onnx = framework("onnx")
framework("onnxruntime")

ALONE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "maelift", "timm", "onnx"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
names = [output.name for output in session.get_outputs()]
arrays = np.load(sys.argv[2])
found = {}
for key in arrays.files:
    for name, value in zip(names, session.run(names, {"images": arrays[key]})):
        found[f"{key}/{name}"] = value
np.savez(sys.argv[3], **found)
"""


def run_alone(graph: Path, folder: Path, *images: np.ndarray[Any, Any]) -> list[dict[str, np.ndarray[Any, Any]]]:
    """The graph's outputs for each array of images, from a process that has numpy and onnxruntime only."""
    numbered: dict[str, Any] = {str(number): array for number, array in enumerate(images)}
    np.savez(folder / "in.npz", **numbered)
    command = [sys.executable, "-c", ALONE, str(graph), str(folder / "in.npz"), str(folder / "out.npz")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment(), cwd=folder)
    assert done.returncode == 0, done.stderr
    found = np.load(folder / "out.npz")
    return [
        {name.split("/")[1]: found[name] for name in found.files if name.startswith(f"{number}/")}
        for number in range(len(images))
    ]


def expect(encoder: Encoder, images: torch.Tensor, found: dict[str, np.ndarray[Any, Any]]) -> None:
    """Check the graph's outputs for normalised images against the encoder's own features."""
    with torch.inference_mode():
        features = encoder.eval().forward_features(images)
    expected = {"tokens": features.tokens, "pooled": features.pooled()}
    if features.class_token is not None:
        expected["class_token"] = features.class_token
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].shape == tuple(tensor.shape)
        np.testing.assert_allclose(found[name], tensor.numpy(), atol=2e-4, rtol=0)


def test_the_graph_takes_stored_pictures_of_any_size_without_torch_and_maelift(tmp_path: Path) -> None:
    encoder = random_encoder()
    path = encoder_file(tmp_path / "encoder.safetensors", encoder)
    done = run_maelift("export", path, "--to", "onnx", f"out={tmp_path / 'graph'}")
    assert done.returncode == 0, done.stderr
    assert "certificate passed: 42 tensors, 3 image sizes" in done.stdout
    assert sorted(file.name for file in (tmp_path / "graph").iterdir()) == ["certificate.json", "encoder.onnx"]

    generator = np.random.default_rng(0)
    sizes = [(2, 32, 32), (3, 16, 16), (1, 20, 64), (2, 4, 12), (1, 60, 8)]
    pictures = [generator.integers(0, 256, (batch, 3, *size)).astype(np.float32) for batch, *size in sizes]
    found = run_alone(tmp_path / "graph" / "encoder.onnx", tmp_path, *pictures)
    for array, outputs in zip(pictures, found, strict=True):
        expect(encoder, encoder.preprocessing.normalize(torch.from_numpy(array)), outputs)


def test_a_graph_can_be_certified_again_and_against_another_encoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = encoder_file(tmp_path / "encoder.safetensors")
    file = read_encoder(path)
    graph = tmp_path / "graph.onnx"
    adapter.to_onnx(file.encoder.resized((24, 40)), graph, provenance=file.provenance)
    done = run_maelift("certify", graph, path)
    assert done.returncode == 0 and "certificate passed" in done.stdout, done.stderr
    other_path = encoder_file(tmp_path / "other.safetensors", random_encoder(seed=1))
    assert main(["certify", str(graph), str(other_path)]) == 2
    assert "the certificate for onnx failed" in capsys.readouterr().err
    graph.write_bytes(graph.read_bytes()[:1000])
    assert main(["certify", str(graph), str(path)]) == 2
    assert "no graph that onnxruntime can read" in capsys.readouterr().err


def test_the_graph_carries_the_contract(tmp_path: Path) -> None:
    path = encoder_file(tmp_path / "encoder.safetensors")
    assert main(["export", str(path), "--to", "onnx", f"out={tmp_path / 'graph'}"]) == 0
    model = onnx.load(tmp_path / "graph" / "encoder.onnx")
    contract = json.loads({entry.key: entry.value for entry in model.metadata_props}[CONTRACT_KEY])
    assert contract["preprocessing"]["channel_names"] == ["red", "green", "blue"]
    assert contract["content_hash"] == read_encoder(path).content_hash
    assert contract["provenance"]["method"] == "test" and contract["spec"]["patch_size"] == 4


def test_a_graph_of_one_size_for_normalised_images_refuses_other_sizes(tmp_path: Path) -> None:
    encoder = random_encoder()
    path = encoder_file(tmp_path / "encoder.safetensors", encoder)
    keys = ["normalize=false", "dynamic_size=false", "image_size=[24,40]"]
    assert main(["export", str(path), "--to", "onnx", f"out={tmp_path / 'graph'}", *keys]) == 0
    graph = tmp_path / "graph" / "encoder.onnx"
    assert "Resize" not in {node.op_type for node in onnx.load(graph).graph.node}
    images = torch.randn(3, 3, 24, 40)
    expect(encoder, images, run_alone(graph, tmp_path, images.numpy())[0])
    with pytest.raises(AssertionError, match="Got invalid dimensions"):
        run_alone(graph, tmp_path, np.zeros((1, 3, 32, 32), np.float32))


@pytest.mark.parametrize("size", [(34, 32), (32, 33), (5, 4)])
def test_an_image_that_the_patch_does_not_divide_is_refused_and_not_cut(tmp_path: Path, size: tuple[int, int]) -> None:
    adapter.to_onnx(random_encoder(), tmp_path / "encoder.onnx")
    with pytest.raises(AssertionError, match="cannot be reshaped"):
        run_alone(tmp_path / "encoder.onnx", tmp_path, np.zeros((1, 3, *size), np.float32))


def test_sixteen_bits_many_channels_and_no_class_token(tmp_path: Path) -> None:
    names = ("near", "far", "depth", "heat", "mask")
    preprocessing = Preprocessing(names, (0.1, 0.2, 0.3, 0.4, 0.5), (0.3, 0.2, 0.1, 0.2, 0.3), (0.0, 65535.0), 16)
    spec = EncoderSpec((20, 30), 5, 5, 48, 2, 4, class_token=False)
    torch.manual_seed(0)
    encoder = Encoder(spec, preprocessing=preprocessing)
    certificate = adapter.to_onnx(encoder, tmp_path / "encoder.onnx")
    assert certificate.passed and certificate.keys.used == tuple(encoder.state_dict())
    pictures = np.random.default_rng(0).integers(0, 65536, (2, 5, 10, 45)).astype(np.float32)
    found = run_alone(tmp_path / "encoder.onnx", tmp_path, pictures)[0]
    expect(encoder, preprocessing.normalize(torch.from_numpy(pictures)), found)


def test_large_weights_go_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_graph, "INLINE_BYTES", 100_000)
    encoder = random_encoder()
    (tmp_path / "made").mkdir()
    assert adapter.to_onnx(encoder, tmp_path / "made" / "model.onnx").passed
    (tmp_path / "made").rename(tmp_path / "moved")
    sizes = {file.name: file.stat().st_size for file in (tmp_path / "moved").iterdir()}
    assert sizes["model.onnx.data"] > 500_000 > 100_000 > sizes["model.onnx"] and len(sizes) == 2
    images = np.full((1, 3, 32, 32), 200, np.float32)
    found = run_alone(tmp_path / "moved" / "model.onnx", tmp_path, images)[0]
    expect(encoder, encoder.preprocessing.normalize(torch.from_numpy(images)), found)


def written(tmp_path: Path, encoder: Encoder, **settings: bool) -> Path:
    path = tmp_path / "encoder.onnx"
    contract = contract_text(encoder, Provenance(method="test"), "")
    onnx_graph.write_graph(encoder, path, contract, **{"normalize": True, "dynamic_size": True, **settings})
    return path


def other(encoder: Encoder, **changes: object) -> Encoder:
    """The same weights, as far as they fit, with another spec."""
    made = Encoder(replace(encoder.spec, **changes), preprocessing=encoder.preprocessing)  # type: ignore[arg-type]
    state = {name: tensor for name, tensor in encoder.state_dict().items() if name in made.state_dict()}
    made.load_state_dict({**state, "pos_embed": state["pos_embed"][:, -made.pos_embed.shape[1] :]})
    return made


@pytest.mark.parametrize(
    ("model", "channels", "image_size"),
    [
        ("vit_nano", 1, 32),
        ("vit_nano", 3, 32),
        ("vit_nano", 4, 32),
        pytest.param("vit_small", 3, 96, marks=pytest.mark.slow),
        pytest.param("as wide as vit_base", 3, 96, marks=pytest.mark.slow),
    ],
)
def test_the_right_graph_passes(tmp_path: Path, model: str, channels: int, image_size: int) -> None:
    if model == "as wide as vit_base":
        encoder = wide_encoder(image_size)
    else:
        encoder = random_encoder(model, channels=channels, image_size=image_size)
    assert adapter.certify_file(written(tmp_path, encoder), encoder, "").passed


def test_another_epsilon_fails(tmp_path: Path) -> None:
    encoder = random_encoder()
    certificate = adapter.certify_file(written(tmp_path, other(encoder, norm_eps=1e-5)), encoder, "")
    assert "LayerNormalization: an epsilon of 1e-05, where the encoder has 1e-06" in certificate.failures


def test_a_bias_of_zeros_fails(tmp_path: Path) -> None:
    encoder, changed = random_encoder(), random_encoder()
    changed.blocks[1].attn.qkv.bias.data.zero_()  # type: ignore[union-attr, operator]
    certificate = adapter.certify_file(written(tmp_path, changed), encoder, "")
    assert "blocks.1.attn.qkv.bias" in certificate.keys.wrong
    assert any("all tokens differs" in failure for failure in certificate.failures)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("change", ["channels", "range"])
def test_other_preprocessing_fails(tmp_path: Path, normalize: bool, change: str) -> None:
    encoder, changed = random_encoder(), random_encoder()
    kept = encoder.preprocessing
    changed.preprocessing = {
        "channels": replace(kept, mean=kept.mean[::-1], std=kept.std[::-1]),
        "range": replace(kept, value_range=(0.0, 1.0)),
    }[change]
    certificate = adapter.certify_file(written(tmp_path, changed, normalize=normalize), encoder, "")
    assert "the prepared images differ" in certificate.failures[0]


def test_antialiased_positions_fail(tmp_path: Path) -> None:
    encoder = random_encoder()
    expected, changed = encoder.resized((20, 20)), encoder.resized((20, 20))
    plane = encoder.pos_embed[:, 1:].reshape(1, 8, 8, -1).permute(0, 3, 1, 2)
    plane = F.interpolate(plane, size=(5, 5), mode="bicubic", antialias=True)
    changed.pos_embed.data[:, 1:] = plane.flatten(2).transpose(1, 2)
    certificate = adapter.certify_file(written(tmp_path, changed, dynamic_size=False), expected, "")
    assert any("all tokens differs" in failure for failure in certificate.failures)


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("mode", b"linear"), ("coordinate_transformation_mode", b"align_corners"), ("cubic_coeff_a", -0.5)],
)
def test_another_way_to_resize_positions_fails(tmp_path: Path, attribute: str, value: bytes | float) -> None:
    encoder = random_encoder()
    path = written(tmp_path, encoder)
    model = onnx.load(path)
    resize = next(node for node in model.graph.node if node.op_type == "Resize")
    found = next(item for item in resize.attribute if item.name == attribute)
    setattr(found, "f" if isinstance(value, float) else "s", value)
    onnx.save(model, path)
    failures = adapter.certify_file(path, encoder, "").failures
    assert failures and all("at 32×32" not in failure for failure in failures)


def test_a_mean_over_the_class_token_too_fails(tmp_path: Path) -> None:
    encoder = random_encoder()
    path = written(tmp_path, encoder)
    model = onnx.load(path)
    tokens = next(node for node in model.graph.node if "tokens" in node.output)
    next(node for node in model.graph.node if "pooled" in node.output).input[0] = tokens.input[0]
    onnx.save(model, path)
    failures = adapter.certify_file(path, encoder, "").failures
    assert failures and all(" pooled differs" in failure for failure in failures)


def test_a_class_token_left_out_fails(tmp_path: Path) -> None:
    encoder = random_encoder()
    path = written(tmp_path, other(encoder, class_token=False))
    with pytest.raises(CheckpointError, match="features of shape"):
        adapter.certify_file(path, encoder, "")


def test_nothing_is_left_behind_by_a_certificate_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_graph, "gelu", lambda nodes, value: nodes.add("Relu", [value]))
    with pytest.raises(CheckpointError, match="the certificate for onnx failed"):
        adapter.to_onnx(random_encoder(), tmp_path / "encoder.onnx")
    assert not list(tmp_path.iterdir())


def test_without_onnxruntime_one_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "absent").mkdir()
    line = "raise ModuleNotFoundError(\"No module named 'onnxruntime'\", name='onnxruntime')"
    (tmp_path / "absent" / "onnxruntime.py").write_text(line)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "absent"))
    path = encoder_file(tmp_path / "encoder.safetensors")
    done = run_maelift("export", path, "--to", "onnx", f"out={tmp_path / 'graph'}")
    one_line_error(done, "onnxruntime is not installed", "pip install -U onnx onnxruntime")
    assert not (tmp_path / "graph").exists()


@pytest.mark.slow
def test_the_page_works_as_it_stands(tmp_path: Path) -> None:
    encoder_file(tmp_path / "encoder.safetensors")
    assert "certificate passed" in run_page(ROOT / "docs" / "onnx.md", tmp_path)
