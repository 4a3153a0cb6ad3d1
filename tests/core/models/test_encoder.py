"""The encoder and its file: shapes, any size, other people's weights, and files that are not encoders."""

from __future__ import annotations

import argparse
import json
import pickle
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from maelift.core.errors import CheckpointError, ConfigError, MaeliftError
from maelift.core.models.encoder import Encoder
from maelift.core.models.encoder_file import Provenance, load_encoder, read_encoder, save_encoder
from maelift.core.models.encoder_spec import PRESETS, EncoderSpec, preset_spec
from maelift.core.models.preprocessing import Preprocessing
from maelift.core.models.stored_contract import CONTRACT_KEY
from maelift.pretrain.decoder_config import DecoderConfig
from maelift.pretrain.mae import MaskedAutoencoder
from maelift.tests.support import framework, random_encoder
from safetensors import safe_open
from safetensors.torch import save_file

SMALL = EncoderSpec((32, 48), patch_size=8, channels=2, embed_dim=24, depth=3, num_heads=2)


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(SMALL).eval()


def test_features_have_the_shapes_that_are_promised(encoder: Encoder) -> None:
    features = encoder.forward_features(torch.randn(2, 2, 32, 48), layers=(0, -1))
    assert features.class_token is not None and features.class_token.shape == (2, 24)
    assert features.tokens.shape == (2, 24, 24) and features.grid == (4, 6)
    assert [layer.shape for layer in features.layers] == [(2, 24, 24)] * 2
    assert torch.allclose(encoder.norm(features.layers[1]), features.tokens)
    assert features.pooled().shape == (2, 24)


def test_any_size_that_the_patch_divides_is_taken(encoder: Encoder) -> None:
    assert encoder.forward_features(torch.randn(1, 2, 64, 16)).grid == (8, 2)
    with pytest.raises(ConfigError, match=r"image_size=\[30,48\].*multiples of the patch size 8.*\[32,48\]"):
        encoder(torch.randn(1, 2, 30, 48))
    with pytest.raises(MaeliftError, match="expected \\(batch, 2, height, width\\)"):
        encoder(torch.randn(1, 3, 32, 48))


def test_a_resized_encoder_gives_what_resizing_on_the_fly_gives(encoder: Encoder) -> None:
    images = torch.randn(2, 2, 16, 64)
    resized = encoder.resized((16, 64)).eval()
    assert resized.spec.image_size == (16, 64)
    assert torch.allclose(resized(images), encoder(images), atol=1e-6)


def test_visible_patches_alone_are_embedded_as_among_all(encoder: Encoder) -> None:
    images, keep = torch.randn(2, 2, 32, 48), torch.tensor([[3, 0, 7], [23, 5, 1]])
    everything = encoder.embed(images)
    expected = torch.stack([everything[row][keep[row]] for row in range(2)])
    assert torch.allclose(encoder.embed(images, keep), expected, atol=1e-6)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_have_their_usual_shapes(name: str) -> None:
    spec = preset_spec(name)
    with torch.device("meta"):
        millions = sum(parameter.numel() for parameter in Encoder(spec).parameters()) / 1e6
    expected = {
        "vit_nano": 0.157,
        "vit_micro": 0.826,
        "vit_tiny": 5.5,
        "vit_small": 21.7,
        "vit_base": 85.8,
        "vit_large": 303.3,
        "vit_huge": 630.8,
    }
    assert millions == pytest.approx(expected[name], rel=0.01)


def test_an_encoder_without_class_token_works(tmp_path: Path) -> None:
    encoder = Encoder(EncoderSpec((16, 16), 8, 1, 16, 1, 2, class_token=False))
    features = encoder.forward_features(torch.randn(1, 1, 16, 16))
    assert features.class_token is None and features.tokens.shape == (1, 4, 16)
    save_encoder(encoder, tmp_path / "e.safetensors", Provenance("test"))
    assert load_encoder(tmp_path / "e.safetensors").spec.class_token is False


@pytest.mark.parametrize(
    ("change", "key"), [({"embed_dim": 25}, "num_heads"), ({"depth": 0}, "depth"), ({"patch_size": 7}, "image_size")]
)
def test_a_spec_that_cannot_be_is_refused(change: dict[str, int], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EncoderSpec(**{**{"image_size": (32, 48), "patch_size": 8, "embed_dim": 24, "num_heads": 2}, **change})  # type: ignore[arg-type]
    assert caught.value.key == key


def test_the_encoder_file_keeps_weights_contract_and_hash(encoder: Encoder, tmp_path: Path) -> None:
    encoder.preprocessing = Preprocessing(("near", "far"), (0.1, 0.2), (0.3, 0.4), (0.0, 4095.0), 12)
    digest = save_encoder(encoder, tmp_path / "e.safetensors", Provenance("test", {"a": 1}, seed=3, steps=7))
    found = read_encoder(tmp_path / "e.safetensors")
    assert found.encoder.spec == SMALL and found.encoder.preprocessing == encoder.preprocessing
    assert found.provenance.steps == 7 and found.content_hash == digest
    for name, value in encoder.state_dict().items():
        assert torch.equal(found.encoder.state_dict()[name], value)
    with safe_open(tmp_path / "e.safetensors", "pt") as file:
        assert set(json.loads(file.metadata()[CONTRACT_KEY])) >= {"version", "spec", "preprocessing", "provenance"}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        tensors["norm.bias"][0] += 1
        save_file(tensors, tmp_path / "changed.safetensors", file.metadata())
    with pytest.raises(CheckpointError, match="content hash"):
        load_encoder(tmp_path / "changed.safetensors")


def test_normalising_and_its_inverse() -> None:
    preprocessing = Preprocessing(("gray",), (0.5,), (0.25,))
    pixels = torch.tensor([[[[0, 255]]]], dtype=torch.uint8)
    assert preprocessing.normalize(pixels).flatten().tolist() == [-2.0, 2.0]
    assert preprocessing.denormalize(preprocessing.normalize(pixels)).flatten().tolist() == [0.0, 255.0]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_timm_weights_give_timm_s_features(tmp_path: Path, suffix: str) -> None:
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=64, depth=2).eval()
    path = tmp_path / f"vit{suffix}"
    torch.save(theirs.state_dict(), path) if suffix == ".pth" else save_file(theirs.state_dict(), path)
    ours = load_encoder(path).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(ours(images), theirs.forward_features(images), atol=1e-5)


@pytest.mark.parametrize("image_size", [(32, 32), (32, 64)])
def test_a_reference_checkpoint_with_decoder_and_arguments_is_read(tmp_path: Path, image_size: tuple[int, int]) -> None:
    model = MaskedAutoencoder(EncoderSpec(image_size, 16, 3, 192, 2, 3), DecoderConfig(32, 1, 2))
    content = {"model": model.state_dict(), "args": argparse.Namespace(lr=1.0), "epoch": 3}
    torch.save(content, tmp_path / "mae.pth")
    ours = load_encoder(tmp_path / "mae.pth", image_size=None if image_size[0] == image_size[1] else image_size)
    assert ours.spec == model.spec
    images = torch.randn(1, 3, *image_size)
    assert torch.allclose(ours(images), model.encoder()(images), atol=1e-6)


@pytest.mark.parametrize("kind", ["vit", "vitmae"])
@pytest.mark.parametrize("how", ["folder", "state"])
def test_transformers_weights_give_transformers_features(tmp_path: Path, kind: str, how: str) -> None:
    transformers = framework("transformers")
    settings = {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "image_size": 32,
        "patch_size": 8,
        "layer_norm_eps": 1e-6,
    }
    if kind == "vit":
        theirs = transformers.ViTModel(transformers.ViTConfig(**settings)).eval()
    else:
        config = transformers.ViTMAEConfig(
            **settings, decoder_num_hidden_layers=1, decoder_hidden_size=32, mask_ratio=0.0
        )
        theirs = transformers.ViTMAEForPreTraining(config).eval()
    if how == "folder":
        theirs.save_pretrained(tmp_path)
        ours = load_encoder(tmp_path / "model.safetensors").eval()
    else:
        torch.save(theirs.state_dict(), tmp_path / "model.pth")
        ours = load_encoder(tmp_path / "model.pth", num_heads=4).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        if kind == "vit":
            expected = theirs(images).last_hidden_state
            assert torch.allclose(ours(images), expected, atol=1e-5)
        else:
            noise = torch.arange(16.0).repeat(2, 1)  # nothing is shuffled, nothing masked
            expected = theirs.vit(images, noise=noise).last_hidden_state
            assert torch.allclose(ours(images), expected, atol=1e-5)


class Exploit:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("open('ran.txt', 'w').write('code ran')",))


def test_a_pickle_with_code_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Exploit()}, tmp_path / "evil.pth")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Exploit()))
    for name in ("evil.pth", "plain.pkl"):
        with pytest.raises(CheckpointError):
            load_encoder(tmp_path / name)
    assert not (tmp_path / "ran.txt").exists()


def test_files_that_are_no_encoders_are_refused_with_their_keys(encoder: Encoder, tmp_path: Path) -> None:
    state = encoder.state_dict()
    del state["blocks.1.attn.qkv.bias"]
    state["blocks.0.ls1.gamma"] = torch.ones(24)
    save_file(state, tmp_path / "wrong.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_encoder(tmp_path / "wrong.safetensors", num_heads=2, image_size=(32, 48))
    assert "Missing (1): blocks.1.attn.qkv.bias" in str(caught.value)
    assert "Unexpected (1): blocks.0.ls1.gamma" in str(caught.value)
    save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.safetensors")
    with pytest.raises(CheckpointError, match=r"Missing .*patch_embed.*Unexpected .*conv1"):
        load_encoder(tmp_path / "resnet.safetensors")
    (tmp_path / "text.pth").write_text("these are not weights")
    with pytest.raises(CheckpointError, match="not a weights file"):
        load_encoder(tmp_path / "text.pth")
    whole = (tmp_path / "wrong.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:200])
    with pytest.raises(CheckpointError, match="damaged"):
        load_encoder(tmp_path / "cut.safetensors")
    with pytest.raises(CheckpointError, match="no such file"):
        load_encoder(tmp_path / "nowhere.safetensors")


def test_patches_of_another_size_see_an_enlarged_image_as_the_old_ones_saw_it() -> None:
    encoder = random_encoder("vit_nano", image_size=(28, 56)).with_patch_size(14)
    larger = encoder.with_patch_size(16)
    assert larger.spec.patch_size == 16 and larger.spec.grid == encoder.spec.grid
    assert larger.spec.image_size == (112, 224)
    # Bicubic enlarging is linear within each patch, and the resampled kernel is its pseudo-inverse's transpose.
    patches = torch.randn(8, 3, 14, 14)
    enlarged = F.interpolate(patches, size=(16, 16), mode="bicubic", antialias=True)
    torch.testing.assert_close(larger.patch_embed(enlarged), encoder.patch_embed(patches), atol=1e-4, rtol=1e-4)
    plain = F.interpolate(encoder.patch_embed.proj.weight, size=(16, 16), mode="bicubic")
    assert (larger.patch_embed.proj.weight - plain).abs().max() > 1e-2
    assert encoder.with_patch_size(14) is encoder


def test_positions_are_resized_in_the_precision_of_the_encoder() -> None:
    encoder = random_encoder("vit_nano").double()
    exact = encoder.positions((5, 9))
    assert exact.dtype == torch.float64
    coarse = encoder.float().positions((5, 9)).double()
    assert 0 < (exact - coarse).abs().max() < 1e-5
    assert encoder.to(torch.bfloat16).positions((5, 9)).dtype == torch.bfloat16


def test_statistics_are_told_in_stored_values() -> None:
    preprocessing = Preprocessing(("a", "b"), (0.5, 0.25), (0.1, 0.2), value_range=(-100.0, 100.0))
    assert preprocessing.pixel_mean == (0.0, -50.0) and preprocessing.pixel_std == (20.0, 40.0)
    pixels = torch.tensor([10.0, 30.0]).view(1, 2, 1, 1)
    expected = [(10 - 0) / 20, (30 + 50) / 40]
    torch.testing.assert_close(preprocessing.normalize(pixels).flatten(), torch.tensor(expected))
