"""Segmentors: every head and both engines at odd sizes, ignored pixels, sliding windows against mmseg, model files."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from maelift.core.errors import ConfigError, DataError
from maelift.core.models.encoder_file import Provenance
from maelift.core.models.encoder_spec import EncoderSpec
from maelift.tests.support import framework, random_encoder
from maelift.transfer.segmentation import logits as logits_module
from maelift.transfer.segmentation.architecture import Architecture
from maelift.transfer.segmentation.inference import Inference
from maelift.transfer.segmentation.logits import resized_argmax
from maelift.transfer.segmentation.model import ENCODER_PREFIX, Segmentor
from maelift.transfer.segmentation.sliding_window import sliding_window_logits
from maelift.transfer.trained_model import load_model
from PIL import Image
from torch import Tensor

CLASSES = ("background", "cat", "dog")
COLOUR = EncoderSpec((32, 48), patch_size=8, embed_dim=64, depth=4, num_heads=4)
GRAY = EncoderSpec((28, 28), patch_size=7, channels=1, embed_dim=64, depth=3, num_heads=4, class_token=False)
MANY = EncoderSpec((32, 32), patch_size=4, channels=5, embed_dim=64, depth=6, num_heads=4)
HEADS = ["linear", "conv", "upernet"]


def segmentor(spec: EncoderSpec = COLOUR, inference: Inference | None = None, **architecture: Any) -> Segmentor:
    if architecture.get("engine") == "mmseg":
        framework("mmseg")
    torch.manual_seed(0)
    return Segmentor(random_encoder(spec), CLASSES, Architecture(**architecture), inference).eval()


def each_kind(test: Callable[..., None]) -> Any:
    """Run a test with every head and engine."""
    kinds: list[dict[str, object]] = [{"head": head} for head in HEADS]
    kinds += [{"engine": "mmseg", "head": head} for head in ("conv", "upernet")]
    kinds.append({"head": "conv", "relative_positions": True, "window_size": 2})
    return pytest.mark.parametrize("kind", kinds, ids=lambda kind: "-".join(map(str, kind.values())))(test)


@each_kind
@pytest.mark.parametrize("spec", [COLOUR, GRAY, MANY], ids=["colour", "gray", "five channels"])
def test_logits_have_the_image_s_size_whatever_it_is(kind: dict[str, Any], spec: EncoderSpec) -> None:
    model = segmentor(spec, **kind)
    with torch.no_grad():
        for size in (spec.image_size, (37, 50), (3, 1)):
            assert model(torch.randn(2, spec.channels, *size)).shape == (2, 3, *size)


@each_kind
def test_every_parameter_learns_and_ignored_pixels_do_not_count(kind: dict[str, Any]) -> None:
    model = segmentor(**kind).train()
    images, masks = torch.randn(2, 3, *COLOUR.image_size), torch.randint(0, 3, (2, *COLOUR.image_size))
    model(images, masks).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    loss = model(images, torch.full_like(masks, 255))
    loss.backward()
    assert float(loss) == 0 and all(torch.isfinite(value.grad).all() for value in model.parameters())  # type: ignore[arg-type]


def test_the_loss_is_the_mean_over_the_pixels_that_count() -> None:
    model = segmentor(head="conv")
    images, masks = torch.randn(2, 3, *COLOUR.image_size), torch.randint(0, 3, (2, *COLOUR.image_size))
    masks[:, 5:] = 255
    expected = torch.nn.functional.cross_entropy(model(images)[:, :, :5], masks[:, :5])
    torch.testing.assert_close(model(images, masks), expected)


@each_kind
def test_the_encoder_s_weights_are_in_place_under_timm_s_names(kind: dict[str, Any]) -> None:
    model = segmentor(**kind)
    state = model.state_dict()
    for name, tensor in random_encoder(COLOUR).state_dict().items():
        if name not in ("cls_token", "norm.weight", "norm.bias"):
            torch.testing.assert_close(state[ENCODER_PREFIX + name], tensor)


def test_the_linear_head_reads_what_the_encoder_gives() -> None:
    encoder = random_encoder(COLOUR)
    model = Segmentor(encoder, CLASSES, Architecture(head="linear")).eval()
    images = torch.randn(1, 3, *COLOUR.image_size)
    tokens = encoder.eval().forward_features(images).tokens  # after the final norm, with the class token
    logits = (tokens @ model.network.head.classify.weight[:, :, 0, 0].T).transpose(1, 2).reshape(1, 3, *COLOUR.grid)
    expected = torch.nn.functional.interpolate(logits, COLOUR.image_size, mode="bilinear")
    torch.testing.assert_close(model(images), expected)


def window_mean(images: Tensor) -> Tensor:
    """Logits that depend on the whole window, so that windows of other places would be noticed."""
    return torch.cat([images * 2, images + images.mean(dim=(-2, -1), keepdim=True)], dim=1)


@pytest.mark.parametrize(
    "size, crop, stride",
    [
        ((50, 70), (32, 32), (21, 21)),
        ((64, 64), (32, 32), (32, 32)),
        ((33, 20), (32, 48), (10, 7)),
        ((9, 9), (32, 32), (21, 21)),
        ((41, 97), (16, 32), (16, 5)),
    ],
)
def test_sliding_windows_give_what_mmseg_s_give(
    size: tuple[int, int], crop: tuple[int, int], stride: tuple[int, int]
) -> None:
    framework("mmseg")
    from mmengine.config import ConfigDict
    from mmseg.models import EncoderDecoder

    class Theirs(EncoderDecoder):  # type: ignore[misc]
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.out_channels, self.test_cfg = 2, ConfigDict(crop_size=crop, stride=stride, mode="slide")

        def encode_decode(self, inputs: Tensor, batch_img_metas: object) -> Tensor:
            return window_mean(inputs)

    images = torch.randn(3, 1, *size)
    torch.testing.assert_close(
        sliding_window_logits(window_mean, images, crop, stride),
        Theirs().slide_inference(images, [{}] * 3),
        rtol=0,
        atol=1e-5,
    )


def test_an_image_of_the_crop_s_size_is_one_window() -> None:
    model = segmentor(head="conv")
    images = torch.randn(2, 3, *COLOUR.image_size)
    with torch.no_grad():
        torch.testing.assert_close(model.infer(images), model(images))


@each_kind
@pytest.mark.parametrize("mode", ["slide", "whole"])
@pytest.mark.parametrize("short_side", [0, 24])
def test_masks_have_the_original_size(kind: dict[str, Any], mode: Any, short_side: int, tmp_path: Path) -> None:
    model = segmentor(
        inference=Inference(mode=mode, crop=COLOUR.image_size, stride=(20, 30), short_side=short_side), **kind
    )
    picture = np.random.default_rng(0).integers(0, 256, (61, 45, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    from_path, from_image, from_array = model.predict([tmp_path / "a.png", Image.fromarray(picture), picture])
    assert from_path.mask.shape == (61, 45) and from_path.mask.dtype == np.uint8 and from_path.classes == CLASSES
    np.testing.assert_array_equal(from_path.mask, from_array.mask)
    np.testing.assert_array_equal(from_image.mask, from_array.mask)


def test_many_classes_at_a_large_size_are_compared_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(300, 5, 7)
    logits[7] = logits[3]  # the first of equals is taken
    resized = torch.nn.functional.interpolate(logits[None], (11, 9), mode="bilinear")[0]
    for step in (1, 7, 300):
        monkeypatch.setattr(logits_module, "MAX_LOGITS", step * 99)
        torch.testing.assert_close(resized_argmax(logits, (11, 9)), resized.argmax(dim=0))
    assert resized_argmax(logits[:256], (11, 9)).dtype == torch.uint8


def test_images_are_brought_to_the_scale_of_training_but_not_made_endless() -> None:
    usual = Inference.usual((64, 96))
    assert usual.working_size((32, 48)) == (64, 96) and usual.working_size((480, 240)) == (128, 64)
    assert usual.working_size((1, 1000)) == (1, 256)
    assert replace(usual, short_side=0).working_size((1, 1000)) == (1, 1000)


def test_images_of_several_sizes_come_back_in_their_order() -> None:
    model = segmentor(head="conv")
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (3, *size), dtype=np.uint8) for size in ((40, 30), (32, 48), (40, 30))]
    together = model.segment(images)
    for image, mask in zip(images, together, strict=True):
        np.testing.assert_array_equal(model.segment([image])[0], mask)


def test_predicting_leaves_a_training_model_in_training() -> None:
    model = segmentor(head="conv").train()
    first, second = (model.predict([np.zeros((32, 48, 3), np.uint8)])[0].mask for _ in range(2))
    assert model.training
    np.testing.assert_array_equal(first, second)


def test_a_loaded_model_predicts_the_same(tmp_path: Path) -> None:
    for kind in ({"head": "conv"}, {"head": "upernet", "relative_positions": True}, {"engine": "mmseg"}):
        model = segmentor(inference=Inference(mode="slide", crop=(32, 48), stride=(8, 9), short_side=40), **kind)
        model.save(tmp_path / "model.safetensors", Provenance(method="test"))
        loaded = load_model(tmp_path / "model.safetensors")
        assert isinstance(loaded, Segmentor) and not loaded.training
        assert (loaded.inference, loaded.architecture) == (model.inference, model.architecture)
        picture = np.random.default_rng(0).integers(0, 256, (61, 45, 3), dtype=np.uint8)
        np.testing.assert_array_equal(loaded.predict([picture])[0].mask, model.predict([picture])[0].mask)


def test_images_of_other_channels_are_refused() -> None:
    model = segmentor(MANY, head="conv")
    assert model.predict([np.zeros((9, 9, 5), np.uint16)])[0].mask.shape == (9, 9)
    with pytest.raises(DataError, match=r"shape \(9, 9, 3\) and type uint8: expected \(height, width, 5\)"):
        model.predict([np.zeros((9, 9, 3), np.uint8)])


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="head"):
        Architecture(engine="mmseg", head="linear")
    with pytest.raises(ConfigError, match="stride"):
        replace(Inference.usual((32, 32)), stride=(40, 10))
    with pytest.raises(ConfigError, match="window_size"):
        Architecture(window_size=-1)


@pytest.mark.parametrize("head", ["upernet", "conv"])
def test_logits_are_those_of_the_mmseg_model_that_the_exported_config_builds(head: str, tmp_path: Path) -> None:
    framework("mmseg")
    from maelift.adapters.mmseg import export
    from maelift.adapters.mmseg_config import MmsegExport
    from maelift.adapters.mmseg_model import read_config
    from maelift.core.models.encoder_file import read_encoder, save_encoder
    from mmengine.model import revert_sync_batchnorm
    from mmseg.registry import MODELS

    save_encoder(random_encoder(COLOUR), tmp_path / "encoder.safetensors", Provenance("test"))
    file = read_encoder(tmp_path / "encoder.safetensors")
    names = {"upernet": "upernet.py", "conv": "fcn.py"}
    settings = MmsegExport(encoder="", to="mmseg", out="", crop_size=(32, 48), classes=CLASSES)
    (tmp_path / "export").mkdir()
    export(file, tmp_path / "export", settings)
    theirs = revert_sync_batchnorm(MODELS.build(read_config(tmp_path / "export" / names[head]).model))
    theirs.init_weights()  # mmseg's own MAE backbone with our weights
    ours = segmentor(engine="mmseg", head=head)
    heads = {name: tensor for name, tensor in ours.network.state_dict().items() if not name.startswith("backbone.")}
    assert theirs.load_state_dict(heads, strict=False).unexpected_keys == []
    theirs.eval().backbone.eval()
    images = torch.randn(2, 3, *COLOUR.image_size)
    with torch.no_grad():
        metas = [{"img_shape": COLOUR.image_size, "pad_shape": COLOUR.image_size}] * 2
        torch.testing.assert_close(ours(images), theirs.encode_decode(images, metas), rtol=1e-4, atol=1e-4)
