"""Activations other than the exact GELU: computed, kept in the encoder file, and exported or refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from maelift.adapters.torchvision import vit_settings
from maelift.adapters.windowed_vit import PlainViT
from maelift.cli import main
from maelift.core.errors import ConfigError
from maelift.core.models.encoder import ACTIVATIONS, Encoder
from maelift.core.models.encoder_file import read_encoder
from maelift.core.models.encoder_spec import preset_spec
from maelift.tests.support import GOLDEN, encoder_file, framework, random_encoder, rewrite_metadata

OTHERS = sorted(set(ACTIVATIONS) - {"gelu"})


def other(act: str) -> Encoder:
    encoder = random_encoder(replace(preset_spec("vit_nano"), act=act))
    for name, value in encoder.named_parameters():
        value.data.mul_(3 if name.endswith("fc1.weight") else 1)  # values large enough for activations to differ
    return encoder.eval()


def test_an_unknown_activation_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="act=mish: expected one of gelu, gelu_tanh, quick_gelu, relu, silu"):
        replace(preset_spec("vit_nano"), act="mish")


@pytest.mark.parametrize("act", OTHERS)
def test_an_encoder_file_keeps_its_activation(tmp_path: Path, act: str) -> None:
    encoder, images = other(act), torch.randn(2, 3, 32, 32)
    found = read_encoder(encoder_file(tmp_path / "encoder.safetensors", encoder)).encoder.eval()
    assert found.spec.act == act and torch.equal(found(images), encoder(images))
    exact = Encoder(replace(encoder.spec, act="gelu"))
    exact.load_state_dict(encoder.state_dict())
    assert (exact.eval()(images) - encoder(images)).abs().max() > 1e-4


def test_a_file_written_before_there_was_a_choice_has_the_exact_gelu(tmp_path: Path) -> None:
    path = encoder_file(tmp_path / "encoder.safetensors")
    rewrite_metadata(path, lambda contract: contract["spec"].pop("act"))
    assert read_encoder(path).encoder.spec.act == "gelu"
    assert read_encoder(GOLDEN / "version_1" / "encoder.safetensors").encoder.spec.act == "gelu"


@pytest.mark.parametrize("act", OTHERS)
def test_the_backbone_of_dense_tasks_has_the_encoder_s_activation(act: str) -> None:
    encoder, images = other(act), torch.randn(1, 3, 32, 32)
    settings = {**vit_settings(encoder, 0), "class_token": True}
    backbone = PlainViT(**settings)
    state = {name: value for name, value in encoder.state_dict().items() if not name.startswith("norm.")}
    backbone.load_state_dict(state)
    ours = encoder.forward_features(images, layers=[-1]).layers[0]
    theirs = backbone.eval()(images)[0].flatten(2).transpose(1, 2)
    assert (ours - theirs).abs().max() < 1e-5 * ours.abs().max()
    with pytest.raises(ValueError, match="act='mish': expected one of gelu"):
        PlainViT(act="mish")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "act"),
    [("timm", "quick_gelu"), ("transformers", "gelu_tanh"), ("torchvision", "silu"), ("onnx", "gelu_tanh")],
)
def test_an_export_carries_the_activation_and_is_certified(tmp_path: Path, name: str, act: str) -> None:
    framework(name)
    path = encoder_file(tmp_path / "encoder.safetensors", other(act))
    assert main(["export", str(path), "--to", name, f"out={tmp_path / name}", "--quiet"]) == 0


@pytest.mark.parametrize("act", OTHERS)
def test_an_onnx_graph_has_each_activation(act: str) -> None:
    onnxruntime, helper = framework("onnxruntime"), framework("onnx").helper
    numpy_helper = framework("onnx").numpy_helper
    from maelift.adapters.onnx_graph import Nodes, activation

    nodes = Nodes({})
    out = activation(nodes, "x", act)
    ends = [helper.make_tensor_value_info(end, 1, [9]) for end in ("x", out)]
    constants = [numpy_helper.from_array(array, constant) for constant, array in nodes.arrays.items()]
    graph = helper.make_graph(nodes.nodes, "act", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    values = torch.linspace(-4, 4, 9)
    found = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": values.numpy()})[0]
    assert torch.allclose(torch.tensor(found), ACTIVATIONS[act]()(values), atol=1e-6)


@pytest.mark.parametrize("name", ["mmseg", "detectron2"])
def test_an_adapter_that_cannot_say_the_activation_refuses_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    framework(name)
    path = encoder_file(tmp_path / "encoder.safetensors", other("quick_gelu"))
    assert main(["export", str(path), "--to", name, f"out={tmp_path / name}", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "activation is quick_gelu" in said and len(said.splitlines()) == 1 and not (tmp_path / name).exists()
