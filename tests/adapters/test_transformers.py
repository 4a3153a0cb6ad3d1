"""The encoder in transformers: read by from_pretrained, in processes that know nothing of maelift."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from maelift.adapters.certificate import Certificate
from maelift.adapters.parity import measure_parity
from maelift.adapters.transformers import candidate, certify_folder, save_folder, save_mae_folder, to_transformers
from maelift.core.models.decoder_file import DecoderFile, save_decoder
from maelift.core.models.encoder import Encoder
from maelift.core.models.encoder_file import Provenance, load_encoder, read_encoder, save_encoder
from maelift.core.models.encoder_spec import preset_spec
from maelift.pretrain.decoder_config import DecoderConfig
from maelift.pretrain.mae import MaskedAutoencoder
from maelift.tests.support import (
    ROOT,
    encoder_file,
    framework,
    noise_image,
    one_line_error,
    random_encoder,
    run_consumer,
    run_maelift,
    run_page,
    wide_encoder,
)

transformers = framework("transformers")

CONSUMER = """
import sys, numpy as np, safetensors.torch, torch
from PIL import Image
from transformers import (AutoImageProcessor, AutoModel, ViTForImageClassification, ViTImageProcessor, ViTMAEForPreTraining,
                          ViTModel)

given = safetensors.torch.load_file("expected.safetensors")

def check(name, found):
    assert found.shape == given[name].shape, (name, found.shape, given[name].shape)
    assert torch.allclose(found, given[name], rtol=1e-5, atol=2e-5), (name, (found - given[name]).abs().max())

def load(kind, folder, absent=(), **keywords):
    model, reported = kind.from_pretrained(folder, output_loading_info=True, **keywords)
    assert set(reported["missing_keys"]) == set(absent), reported
    assert not reported["unexpected_keys"] and not reported["mismatched_keys"], reported
    return model.eval()

with torch.inference_mode():
    model = load(ViTModel, "vit", add_pooling_layer=False)
    out = model(given["images"], output_hidden_states=True)
    check("tokens", out.last_hidden_state)
    check("block1", out.hidden_states[2][:, 1:])
    check("wide tokens", model(given["wide images"], interpolate_pos_encoding=True).last_hidden_state)
    classifier = load(ViTForImageClassification, "vit", ["classifier.weight", "classifier.bias"], num_labels=7)
    check("tokens", classifier.vit(given["images"]).last_hidden_state)

    mae = load(ViTMAEForPreTraining, "vit/mae")
    out = mae(given["images"], noise=given["noise"])
    check("pred", out.logits)
    check("loss", out.loss)
    assert mae.config.mask_ratio == 0.5

    picture = np.load("picture.npy")
    arrays = dict(images=picture, input_data_format="channels_last", return_tensors="pt")
    for processor in (ViTImageProcessor, AutoImageProcessor):
        check("prepared", processor.from_pretrained("vit")(**arrays).pixel_values)
    if picture.shape[-1] == 3:
        check("prepared", processor.from_pretrained("vit")(Image.fromarray(picture), return_tensors="pt").pixel_values)
assert "maelift" not in sys.modules
"""


def random_mae(channels: int = 3, image_size: int | tuple[int, int] = 16) -> MaskedAutoencoder:
    """A small masked autoencoder, every parameter random."""
    generator = torch.Generator().manual_seed(0)
    spec = preset_spec("vit_nano", channels=channels, image_size=image_size)
    model = MaskedAutoencoder(spec, DecoderConfig(32, 2, 4))
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def save_mae(model: MaskedAutoencoder, folder: Path) -> Path:
    """The two files that a pretraining leaves; returns the encoder file."""
    provenance = Provenance(method="test", config={"masking": {"ratio": 0.5}})
    digest = save_encoder(model.encoder(), folder / "encoder.safetensors", provenance)
    save_decoder(decoder_of(model, digest), folder / "decoder.safetensors")
    return folder / "encoder.safetensors"


def decoder_of(model: MaskedAutoencoder, digest: str) -> DecoderFile:
    return DecoderFile(
        model.decoder_state(), model.decoder_spec.num_heads, model.spec.norm_eps, model.norm_pix_loss, digest
    )


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_from_pretrained_alone_finds_our_features_and_our_loss(tmp_path: Path, channels: int) -> None:
    model = random_mae(channels)
    path = save_mae(model, tmp_path)
    done = run_maelift("export", path, "--to", "transformers", "out=vit", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "vit" / "certificate.json").read_text())["passed"]
    encoder = load_encoder(path).eval()
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, channels, 16, 16, generator=generator)
    wide = torch.randn(2, channels, 12, 28, generator=generator)
    noise = torch.rand(2, 16, generator=generator)
    picture = np.array(noise_image(0, (16, 16), {1: "L", 3: "RGB", 4: "RGBA"}[channels])).reshape(16, 16, channels)
    np.save(tmp_path / "picture.npy", picture)
    with torch.inference_mode():
        out = model.predict(images, 0.5, noise)
        found = {
            "images": images,
            "wide images": wide,
            "noise": noise,
            "tokens": encoder(images),
            "wide tokens": encoder(wide),
            "block1": encoder.forward_features(images, layers=[1]).layers[0],
            "pred": out.pred,
            "loss": out.loss,
            "prepared": encoder.preprocessing.normalize(torch.from_numpy(picture).permute(2, 0, 1)[None]),
        }
    safetensors.torch.save_file(
        {name: tensor.contiguous() for name, tensor in found.items()}, tmp_path / "expected.safetensors"
    )
    run_consumer(CONSUMER, folder=tmp_path, alone=channels == 3)


def test_the_way_back_gives_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    encoder = random_encoder()
    save_folder(encoder, tmp_path)
    back = load_encoder(tmp_path / "model.safetensors")
    assert back.spec == encoder.spec
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name


def test_an_encoder_that_is_not_square_goes_over_for_its_own_size(tmp_path: Path) -> None:
    path = save_mae(random_mae(image_size=(16, 36)), tmp_path)  # 36 patches: transformers would take them for 6×6
    done = run_maelift("export", path, "--to", "transformers", f"out={tmp_path / 'vit'}")
    assert done.returncode == 0, done.stderr
    assert "16×36 pixels only" in done.stdout and "square images only" in done.stdout
    assert not (tmp_path / "vit" / "mae").exists()
    sizes = json.loads((tmp_path / "vit" / "certificate.json").read_text())["sizes"]
    assert [size["image_size"] for size in sizes] == [[16, 36]]


def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path) -> None:
    spec = replace(preset_spec("vit_nano"), class_token=False)
    path = encoder_file(tmp_path / "bare.safetensors", Encoder(spec))
    done = run_maelift("export", path, "--to", "transformers", f"out={tmp_path / 'vit'}")
    one_line_error(done, "no class token", "Nothing was written")
    (tmp_path / "run").mkdir()
    path = save_mae(random_mae(), tmp_path / "run")
    decoder = f"decoder={tmp_path / 'run' / 'decoder.safetensors'}"
    done = run_maelift("export", path, "--to", "transformers", f"out={tmp_path / 'vit'}", decoder, "image_size=32")
    one_line_error(done, "decoder=", "images of 16×16 pixels")
    other = encoder_file(tmp_path / "other.safetensors", random_encoder(image_size=16))
    done = run_maelift("export", other, "--to", "transformers", f"out={tmp_path / 'vit'}", decoder)
    one_line_error(done, "belongs to another encoder")
    done = run_maelift("export", path, "--to", "transformers", f"out={tmp_path / 'vit'}", f"decoder={path}")
    one_line_error(done, "not a decoder file")
    assert not (tmp_path / "vit").exists()


def test_pictures_of_any_range_and_channels_are_prepared(tmp_path: Path) -> None:
    encoder = random_encoder(channels=6, image_size=16)
    deep = replace(encoder.preprocessing, value_range=(-100.0, 5000.0), bit_depth=16)
    path = encoder_file(tmp_path / "encoder.safetensors", Encoder(encoder.spec, preprocessing=deep))
    save_folder(load_encoder(path), tmp_path)
    assert certify_folder(tmp_path, read_encoder(path)).passed


Mutation = Callable[[Any, Any], None]


def worse_epsilon(model: Any, processor: Any) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-12


def no_bias(model: Any, processor: Any) -> None:
    name = next(
        name for name, _ in model.named_parameters() if "1" in name and name.endswith(("q_proj.bias", "query.bias"))
    )
    model.get_parameter(name).data.zero_()


def no_class_token(model: Any, processor: Any) -> None:
    model.embeddings.cls_token.data.zero_()


def antialiased(model: Any, processor: Any) -> None:
    from timm.layers import resample_abs_pos_embed

    def interpolate(embeddings: torch.Tensor, height: int, width: int) -> torch.Tensor:
        resized: torch.Tensor = resample_abs_pos_embed(model.embeddings.position_embeddings, [height // 4, width // 4])
        return resized

    model.embeddings.interpolate_pos_encoding = interpolate


def blue_for_red(model: Any, processor: Any) -> None:
    processor.image_mean = processor.image_mean[::-1]


def no_rescaling(model: Any, processor: Any) -> None:
    processor.do_rescale = False


def changed(folder: Path, change: Mutation) -> Certificate:
    """The certificate of a random encoder's model and of the processor in its folder, after something was done to them."""
    encoder = random_encoder()
    model, processor = to_transformers(encoder), transformers.ViTImageProcessor.from_pretrained(folder)
    change(model, processor)
    build = partial(candidate, model, processor, encoder)
    return measure_parity(build, [(32, 32), (16, 16)], framework="transformers", encoder="")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """transformers' folder of a random encoder; unchanged, its certificate passes."""
    folder = tmp_path_factory.mktemp("saved")
    save_folder(random_encoder(), folder)
    assert changed(folder, lambda model, processor: None).passed
    return folder


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        (worse_epsilon, "last_hidden_state differs"),
        (no_bias, "hidden_states[2] differs"),
        (no_class_token, "hidden_states[1] differs"),
        (antialiased, "at 16×16 pixels hidden_states[1] differs"),
        (blue_for_red, "prepared images differ"),
        (no_rescaling, "prepared images differ"),
    ],
)
def test_the_certificate_fails_for_a_changed_model(saved: Path, change: Mutation, reported: str) -> None:
    failed = changed(saved, change)
    assert not failed.passed and any(reported in failure for failure in failed.failures), failed.failures


def test_tensors_that_transformers_makes_up_fail_the_certificate(tmp_path: Path) -> None:
    model = random_mae()
    file = read_encoder(save_mae(model, tmp_path))
    save_folder(file.encoder, tmp_path)
    decoder = decoder_of(model, file.content_hash)
    save_mae_folder(file.encoder, decoder, tmp_path / "mae", 0.75)
    assert certify_folder(tmp_path, file, decoder).passed
    for path, lost, reported in (
        (tmp_path / "mae", "decoder.decoder_layers.1.output.dense.bias", "mae decoder_blocks.1.mlp.fc2.bias"),
        (tmp_path, "encoder.layer.0.attention.output.dense.bias", "blocks.0.attn.proj.bias"),
    ):
        state = safetensors.torch.load_file(path / "model.safetensors")
        state[lost].fill_(1.0)  # transformers fills in zeros, or noise, where a tensor is absent
        state.pop(lost)
        safetensors.torch.save_file(state, path / "model.safetensors", metadata={"format": "pt"})
        assert reported in certify_folder(tmp_path, file, decoder).keys.wrong


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["vit_small", "as wide as vit_base"])
def test_the_usual_shapes_pass(tmp_path: Path, shape: str) -> None:
    encoder = random_encoder("vit_small", image_size=96) if shape == "vit_small" else wide_encoder()
    path = encoder_file(tmp_path / "encoder.safetensors", encoder)
    save_folder(encoder, tmp_path)
    assert certify_folder(tmp_path, read_encoder(path)).passed


@pytest.mark.slow
def test_the_page_works_as_it_stands(tmp_path: Path) -> None:
    save_mae(random_mae(), tmp_path)
    run_page(ROOT / "docs" / "transformers.md", tmp_path)
