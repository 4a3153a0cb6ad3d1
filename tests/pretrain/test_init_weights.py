"""Pretraining that begins with weights, and the recipes that it may follow."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import maelift
import pytest
import torch
import yaml
from maelift.core.data.pixel_format import PixelFormat
from maelift.core.data.slices import Slices
from maelift.core.errors import ConfigError, MaeliftError
from maelift.core.models.adapt_encoder import adapt_input_channels, adapt_output_channels
from maelift.core.models.decoder_file import read_decoder
from maelift.core.models.encoder_file import Provenance, read_encoder, save_encoder
from maelift.core.models.preprocessing import Preprocessing
from maelift.pretrain.config import RECIPES, PretrainConfig
from maelift.pretrain.init_weights import InitWeights
from maelift.tests.support import (
    TINY,
    encoder_file,
    framework,
    one_line_error,
    random_encoder,
    run_maelift,
    write_images,
)
from safetensors.torch import load_file


def pretrain(data: Path, out: Path, **keys: Any) -> Path:
    """Pretrain as the keys say; the encoder file."""
    words = [f"data={data}", f"out={out}", *TINY, *(f"{key}={value}" for key, value in keys.items())]
    return maelift.pretrain(PretrainConfig.resolve(words)).encoder


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Colour images, and an encoder that was pretrained on them."""
    folder = tmp_path_factory.mktemp("first")
    data = write_images(folder / "data", 24)
    return data, pretrain(data, folder / "run", epochs=4)


@pytest.mark.slow
def test_going_on_from_an_encoder_takes_it_and_its_decoder(first: tuple[Path, Path], tmp_path: Path) -> None:
    data, encoder = first
    on = pretrain(data, tmp_path / "on", epochs=1, lr=1e-12, init=str(encoder))
    expected, found = load_file(encoder), load_file(on)
    assert all(torch.allclose(found[name], tensor, atol=1e-6) for name, tensor in expected.items())
    decoders = [read_decoder(file.with_name("decoder.safetensors")).state for file in (encoder, on)]
    assert all(torch.allclose(decoders[1][name], tensor, atol=1e-6) for name, tensor in decoders[0].items())
    provenance = read_encoder(on).provenance
    assert provenance.parent is not None and read_encoder(encoder).content_hash[:12] in provenance.parent
    assert read_encoder(on).encoder.preprocessing == read_encoder(encoder).encoder.preprocessing
    new = pretrain(data, tmp_path / "new", epochs=1, lr=1e-12, init=str(encoder), init_decoder="new")
    other = read_decoder(new.with_name("decoder.safetensors")).state
    assert not torch.allclose(other["decoder_embed.weight"], decoders[0]["decoder_embed.weight"])


def test_other_sizes_and_channels_are_fitted(
    first: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, encoder = first
    gray = write_images(tmp_path / "gray", 24, mode="L")
    caplog.set_level("INFO", logger="maelift")
    on = read_encoder(pretrain(gray, tmp_path / "on", epochs=1, lr=1e-12, init=str(encoder), image_size=24))
    old = read_encoder(encoder).encoder
    kernel = old.patch_embed.proj.weight.sum(1, keepdim=True)
    assert torch.allclose(on.encoder.patch_embed.proj.weight, kernel, atol=1e-6)
    assert torch.allclose(on.encoder.pos_embed, old.resized((24, 24)).pos_embed, atol=1e-6)
    assert (
        "from 3 to 1 channels" in caplog.text
        and "16×16 to 24×24" in caplog.text
        and "decoder was loaded" in caplog.text
    )


def test_channels_of_a_weight() -> None:
    weight = torch.randn(5, 3, 2, 2)
    gray = torch.randn(1, 1, 2, 2)
    one = adapt_input_channels(weight, 1, dim=1)
    assert torch.allclose((one * gray).sum(), (weight * gray.expand(1, 3, 2, 2)).sum(), atol=1e-5)
    three = adapt_input_channels(one, 3, dim=1)
    assert torch.allclose(three.sum(1, keepdim=True), one, atol=1e-6)
    assert adapt_output_channels(weight, 4, dim=1).shape == (5, 4, 2, 2)
    assert torch.equal(adapt_output_channels(weight, 4, dim=1)[:, 3], weight[:, 0])


def test_public_weights_in_the_reference_s_layout(tmp_path: Path) -> None:
    data, encoder = write_images(tmp_path / "data", 20), random_encoder("vit_nano", image_size=16)
    torch.save({"model": encoder.state_dict()}, tmp_path / "mae.pth")
    on = read_encoder(pretrain(data, tmp_path / "on", epochs=1, lr=1e-12, init=str(tmp_path / "mae.pth")))
    expected = encoder.state_dict()
    assert all(torch.allclose(value, expected[name], atol=1e-6) for name, value in on.encoder.state_dict().items())


@pytest.mark.slow
def test_weights_that_do_not_fit_are_told_in_a_line(first: tuple[Path, Path], tmp_path: Path) -> None:
    data, encoder = first
    words = ["pretrain", f"data={data}", f"out={tmp_path / 'run'}", *TINY]
    other = encoder_file(tmp_path / "micro.safetensors", random_encoder("vit_micro"))
    one_line_error(
        run_maelift(*words, f"init={other}"), "init=", "embed_dim 128, not 64", "Give model=vit_micro patch_size=8"
    )
    one_line_error(run_maelift(*words, f"init={tmp_path / 'absent.pth'}"), "absent.pth: no such file")
    moved = encoder_file(tmp_path / "moved.safetensors", random_encoder("vit_nano", image_size=16))
    (tmp_path / "decoder.safetensors").write_bytes(encoder.with_name("decoder.safetensors").read_bytes())
    one_line_error(run_maelift(*words, f"init={moved}"), "the decoder of another encoder", "init_decoder=new")
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("decoder.num_heads", 4, "decoder.num_heads=2, not 4"),
        ("norm_pix_loss", "false", "norm_pix_loss=true, not false"),
    ],
)
def test_a_decoder_that_computes_something_else_is_not_taken_over(
    first: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, key: str, value: object, said: str
) -> None:
    data, encoder = first
    caplog.set_level("INFO", logger="maelift")
    on = pretrain(data, tmp_path / "on", epochs=1, lr=1e-12, init=str(encoder), **{key: value})
    states = [load_file(file.with_name("decoder.safetensors")) for file in (encoder, on)]
    assert said in caplog.text
    assert not torch.allclose(states[0]["decoder_embed.weight"], states[1]["decoder_embed.weight"])


@pytest.mark.slow
def test_the_decoder_in_a_folder_of_transformers_is_taken_over(tmp_path: Path) -> None:
    transformers = framework("transformers")
    encoder = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 256}
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    sizes = {"decoder_intermediate_size": 64, "image_size": 16, "patch_size": 4}
    model = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**encoder, **decoder, **sizes))
    model.save_pretrained(tmp_path / "vit-mae")
    data = write_images(tmp_path / "data", 20)
    on = pretrain(data, tmp_path / "on", epochs=1, lr=1e-12, init=str(tmp_path / "vit-mae"))
    found = read_decoder(on.with_name("decoder.safetensors")).state
    assert torch.allclose(found["decoder_pred.weight"], model.decoder.decoder_pred.weight.detach(), atol=1e-6)


def test_an_encoder_of_blue_green_red_is_turned_round(first: tuple[Path, Path], tmp_path: Path) -> None:
    encoder = random_encoder("vit_nano", image_size=16)
    encoder.preprocessing = Preprocessing(("blue", "green", "red"), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    save_encoder(encoder, tmp_path / "bgr.safetensors", Provenance("test"))
    on = read_encoder(pretrain(first[0], tmp_path / "on", epochs=1, lr=1e-12, init=str(tmp_path / "bgr.safetensors")))
    assert on.encoder.preprocessing == Preprocessing(("red", "green", "blue"), (0.3, 0.2, 0.1), (0.6, 0.5, 0.4))
    kernels = [each.patch_embed.proj.weight for each in (encoder, on.encoder)]
    assert torch.allclose(kernels[1], kernels[0].flip(1), atol=1e-6)


def test_values_of_another_range_are_asked_about(first: tuple[Path, Path], tmp_path: Path) -> None:
    data, file = first
    encoder = random_encoder("vit_nano", image_size=16)
    encoder.preprocessing = dataclasses.replace(Preprocessing.default(3), value_range=(0.0, 4095.0))
    deep = encoder_file(tmp_path / "deep.safetensors", encoder)
    with pytest.raises(ConfigError, match=r"expected \[0,4095\], the values that init="):
        pretrain(data, tmp_path / "on", epochs=1, init=str(deep))
    given = read_encoder(pretrain(data, tmp_path / "given", epochs=1, init=str(file), value_range="[0,512]"))
    assert given.encoder.preprocessing.value_range == (0.0, 512.0)


def test_the_licence_beside_weights_is_recorded(first: tuple[Path, Path], tmp_path: Path) -> None:
    data, encoder = first
    (tmp_path / "timm").mkdir()
    torch.save(load_file(encoder), tmp_path / "timm" / "pytorch_model.bin")
    facts = {"architecture": "vit", "pretrained_cfg": {"license": "cc-by-nc-4.0", "mean": [0.5] * 3, "std": [0.5] * 3}}
    (tmp_path / "timm" / "config.json").write_text(json.dumps(facts))
    on = pretrain(data, tmp_path / "on", epochs=1, init=str(tmp_path / "timm"))
    assert read_encoder(on).provenance.licence == "cc-by-nc-4.0"


def test_a_run_goes_on_only_from_the_weights_that_it_began_with(first: tuple[Path, Path], tmp_path: Path) -> None:
    file = encoder_file(tmp_path / "e.safetensors", random_encoder("vit_nano", image_size=16))
    pretrain(first[0], tmp_path / "on", epochs=1, init=str(file))
    encoder_file(file, random_encoder("vit_nano", image_size=16, seed=1))
    with pytest.raises(MaeliftError, match="from another encoder"):
        pretrain(first[0], tmp_path / "on", epochs=1, init=str(file))


@pytest.mark.slow
def test_the_average_of_the_weights_is_what_is_judged_and_written(first: tuple[Path, Path], tmp_path: Path) -> None:
    data, _ = first
    plain = load_file(pretrain(data, tmp_path / "plain", epochs=4))
    start = load_file(pretrain(data, tmp_path / "start", epochs=1, lr=1e-12))
    average = load_file(pretrain(data, tmp_path / "average", epochs=4, ema_decay=0.999))
    name = "blocks.0.mlp.fc1.weight"
    near, far = ((average[name] - other[name]).norm() for other in (start, plain))
    assert 0 < near < (plain[name] - start[name]).norm() and far > 0


def test_layer_decay_keeps_lower_blocks_nearer_to_their_start(first: tuple[Path, Path], tmp_path: Path) -> None:
    data, encoder = first
    moved = load_file(pretrain(data, tmp_path / "run", epochs=2, init=str(encoder), layer_decay=0.1))
    before = load_file(encoder)
    steps = [(moved[name] - before[name]).norm() for name in (f"blocks.{n}.mlp.fc1.weight" for n in range(3))]
    assert steps[0] < 0.2 * steps[1] < 0.04 * steps[2] * 2


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_number_of_a_recipe_is_used(path: Path) -> None:
    config = dataclasses.asdict(PretrainConfig.resolve([f"recipe={path.stem}", "data=x", "out=y", "seed=7"]))
    assert config["model"] == path.stem and config["seed"] == 7

    def check(expected: dict[str, Any], found: dict[str, Any]) -> None:
        for key, value in expected.items():
            if isinstance(value, dict):
                check(value, found[key])
            else:
                assert (list(found[key]) if isinstance(value, list) else found[key]) == value, key

    check(yaml.safe_load(path.read_text()), config)


def test_the_paper_s_recipe() -> None:
    config = PretrainConfig.resolve(["recipe=vit_large", "data=x", "out=y"])
    assert config.peak_lr == pytest.approx(2.4e-3) and config.betas == (0.9, 0.95) and config.warmup_epochs == 40
    assert PretrainConfig.resolve(["recipe=vit_large", "data=x", "out=y", "batch_size=256"]).peak_lr == 1.5e-4
    with pytest.raises(ConfigError, match="recipe=vit_giant: expected one of vit_base"):
        PretrainConfig.resolve(["recipe=vit_giant", "data=x", "out=y"])
    with pytest.raises(MaeliftError):
        PretrainConfig.resolve(["recipe=vit_base", "out=y"])
    with pytest.raises(ConfigError, match="With null it is 5 %"):
        PretrainConfig.resolve(["recipe=vit_base", "data=x", "out=y", "epochs=20"])
    assert PretrainConfig.resolve(["recipe=null", "data=x", "out=y"]).recipe is None


def test_the_window_of_initial_weights_holds_for_the_same_one_alone(tmp_path: Path) -> None:
    encoder = random_encoder(channels=1)
    encoder.preprocessing = Preprocessing(("gray",), (0.3,), (0.2,), window=(40, 400))
    path = encoder_file(tmp_path / "encoder.safetensors", encoder)
    init = InitWeights(str(path), read_encoder(path), None)
    same = init.preprocessing(1, PixelFormat(window=(40, 400), slices=Slices(step=2)))
    assert same is not None and (same.mean, same.window, same.slice_step) == ((0.3,), (40, 400), 2)
    assert init.preprocessing(1, PixelFormat(window=(50, 400))) is None
    assert init.preprocessing(1, PixelFormat()) is None
