"""The encoder in timm: read by timm's own create_model, in processes that know nothing of maelift."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from maelift.adapters.certificate import Certificate
from maelift.adapters.parity import Candidate, measure_parity
from maelift.adapters.timm import candidate, certify_folder, load_folder, save_folder, to_timm
from maelift.core.models.encoder import Encoder
from maelift.core.models.encoder_file import read_encoder
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

framework("timm")

CONSUMER = """
import sys, numpy as np, safetensors.torch, timm, torch
from PIL import Image

given = safetensors.torch.load_file("expected.safetensors")
images = given["images"]

def check(name, found):
    assert found.shape == given[name].shape, (name, found.shape, given[name].shape)
    assert torch.allclose(found, given[name], atol=2e-5), (name, (found - given[name]).abs().max())

def load(**keywords):
    return timm.create_model("local-dir:vit", pretrained=True, **keywords).eval()

with torch.inference_mode():
    exec(open("usage.py").read())  # the lines that the export printed: a model, and the transform for its images
    model.eval()
    check("tokens", model.forward_features(images))
    check("prepared", transform(Image.open("picture.png"))[None])
    check("tokens", load().forward_features(images))
    check("pooled", load()(images))
    check("tokens", load(num_classes=10).forward_features(images))
    assert load(num_classes=10)(images).shape == (2, 10)
    check("class_token", load(global_pool="token")(images))
    maps = load(features_only=True, out_indices=(0, 2))(images)
    check("map0", maps[0])
    check("map2", maps[1])
assert "maelift" not in sys.modules
"""


def expected(encoder: Encoder, folder: Path, image_size: tuple[int, int]) -> None:
    """What a consumer must find for random images, and for a picture that lies in the folder."""
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[encoder.spec.channels]
    picture = noise_image(0, image_size, mode)
    picture.save(folder / "picture.png")
    stored = torch.from_numpy(np.array(picture).reshape(1, *image_size, -1)).permute(0, 3, 1, 2)
    images = torch.randn(2, encoder.spec.channels, *image_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = encoder.eval().forward_features(images, layers=[0, 2])
        found = {
            "images": images,
            "tokens": encoder(images),
            "pooled": features.pooled(),
            "prepared": encoder.preprocessing.normalize(stored),
            "map0": features.layers[0].transpose(1, 2).reshape(2, -1, *features.grid),
            "map2": features.layers[1].transpose(1, 2).reshape(2, -1, *features.grid),
        }
        if features.class_token is not None:
            found["class_token"] = features.class_token
    safetensors.torch.save_file(
        {name: tensor.contiguous() for name, tensor in found.items()}, folder / "expected.safetensors"
    )


def certified(found: Candidate, size: tuple[int, int] = (32, 32)) -> Certificate:
    """The certificate of one candidate, at its own size."""
    return measure_parity(lambda _: found, [size], framework="timm", encoder="")


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "image_size"), [(1, (32, 32)), (3, (32, 32)), (4, (20, 44))])
def test_timm_alone_loads_the_folder_and_finds_our_features(
    tmp_path: Path, channels: int, image_size: tuple[int, int]
) -> None:
    encoder = random_encoder(channels=channels)
    path = encoder_file(tmp_path / "encoder.safetensors", encoder)
    size = [] if image_size == (32, 32) else [f"image_size=[{image_size[0]},{image_size[1]}]"]
    done = run_maelift("export", path, "--to", "timm", "out=vit", *size, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "usage.py").write_text(done.stdout[done.stdout.index("import timm") :])
    assert json.loads((tmp_path / "vit" / "certificate.json").read_text())["passed"]
    expected(encoder, tmp_path, image_size)
    run_consumer(CONSUMER, folder=tmp_path, alone=channels == 3)


def test_an_encoder_without_class_token_goes_over(tmp_path: Path) -> None:
    encoder = random_encoder()
    bare = Encoder(replace(encoder.spec, class_token=False))
    state = {name: tensor for name, tensor in encoder.state_dict().items() if name != "cls_token"}
    bare.load_state_dict({**state, "pos_embed": state["pos_embed"][:, 1:]})
    path = encoder_file(tmp_path / "encoder.safetensors", bare)
    done = run_maelift("export", path, "--to", "timm", f"out={tmp_path / 'token'}", "global_pool=token")
    one_line_error(done, "global_pool=token", "no class token")
    done = run_maelift("export", path, "--to", "timm", f"out={tmp_path / 'vit'}")
    assert done.returncode == 0, done.stderr
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(load_folder(tmp_path / "vit")(images), bare(images).mean(1), atol=2e-5)


def test_an_epsilon_of_1e_5_goes_over_and_others_only_in_memory(tmp_path: Path) -> None:
    encoder = random_encoder()
    for eps in (1e-5, 1e-12):
        other = Encoder(replace(encoder.spec, norm_eps=eps))
        other.load_state_dict(encoder.state_dict())
        path = encoder_file(tmp_path / f"encoder{eps}.safetensors", other)
        done = run_maelift("export", path, "--to", "timm", f"out={tmp_path / str(eps)}")
        if eps == 1e-5:
            assert done.returncode == 0, done.stderr
        else:
            one_line_error(done, "norm_eps=1e-12", "to_timm")
        in_memory = candidate(to_timm(other), other)
        assert certified(in_memory).passed


def test_a_folder_of_another_encoder_or_shape_is_told(tmp_path: Path) -> None:
    path = encoder_file(tmp_path / "encoder.safetensors")
    save_folder(random_encoder(seed=1), tmp_path)
    done = run_maelift("certify", tmp_path, path)
    one_line_error(done, "certificate for timm failed")
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    del state["blocks.1.attn.qkv.bias"]
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    one_line_error(run_maelift("certify", tmp_path, path), "timm can't load it", "blocks.1.attn.qkv.bias")


def test_images_of_16_bits_are_refused(tmp_path: Path) -> None:
    encoder = random_encoder(channels=1)
    deep = replace(encoder.preprocessing, value_range=(0.0, 65535.0), bit_depth=16)
    path = encoder_file(tmp_path / "encoder.safetensors", Encoder(encoder.spec, preprocessing=deep))
    done = run_maelift("export", path, "--to", "timm", f"out={tmp_path / 'vit'}")
    one_line_error(done, "values from 0 to 65535", "Nothing was written")


Mutation = Callable[[Any], None]


def worse_epsilon(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-5


def no_bias(model: Any) -> None:
    model.blocks[1].attn.qkv.bias.data.zero_()


def no_class_token(model: Any) -> None:
    model.cls_token.data.zero_()


def blue_for_red(model: Any) -> None:
    model.pretrained_cfg["mean"] = model.pretrained_cfg["mean"][::-1]


def mean_for_deviation(model: Any) -> None:
    config = model.pretrained_cfg
    config["mean"], config["std"] = config["std"], config["mean"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """timm's folder of a random encoder, as timm loads it certified."""
    folder = tmp_path_factory.mktemp("saved")
    save_folder(random_encoder(), folder)
    assert certified(candidate(load_folder(folder), random_encoder())).passed
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (worse_epsilon, "forward_features differs"),
        (no_bias, "blocks[1] differs"),
        (no_class_token, "blocks[0] differs"),
        (blue_for_red, "prepared images differ"),
        (mean_for_deviation, "prepared images differ"),
    ],
)
def test_the_certificate_fails_for_a_changed_model(saved: Path, change: Mutation, message: str) -> None:
    model = load_folder(saved)
    change(model)
    failed = certified(candidate(model, random_encoder()))
    assert not failed.passed and any(message in failure for failure in failed.failures), failed.failures


def test_timms_own_resizing_of_positions_fails_where_ours_passes(saved: Path) -> None:
    import timm

    encoder = random_encoder()
    smaller = timm.create_model(
        f"local-dir:{saved}", pretrained=True, img_size=(16, 16), pretrained_cfg_overlay={"input_size": (3, 16, 16)}
    )
    found = certified(candidate(smaller.eval(), encoder.resized((16, 16))), (16, 16))
    assert list(found.keys.wrong) == ["pos_embed"]
    assert any("blocks[0] differs" in failure for failure in found.failures)
    smaller.pos_embed.data.copy_(encoder.resized((16, 16)).pos_embed)
    assert certified(candidate(smaller, encoder.resized((16, 16))), (16, 16)).passed


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["vit_small", "as wide as vit_base"])
def test_the_usual_shapes_pass(tmp_path: Path, shape: str) -> None:
    encoder = random_encoder("vit_small", image_size=96) if shape == "vit_small" else wide_encoder()
    path = encoder_file(tmp_path / "encoder.safetensors", encoder)
    save_folder(encoder, tmp_path)
    assert certify_folder(tmp_path, read_encoder(path)).passed


@pytest.mark.slow
def test_the_page_works_as_it_stands(tmp_path: Path) -> None:
    encoder_file(tmp_path / "encoder.safetensors")
    run_page(ROOT / "docs" / "timm.md", tmp_path)
