"""Our numerics against the reference's: loss, predictions, gradients, features, positions, schedule, groups, LARS."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from maelift.core.models.position_embeddings import resize_positions, sincos_positions
from maelift.core.training.optimizers import Lars, parameter_groups
from maelift.core.training.schedule import warmup_cosine
from maelift.pretrain.mae import MaskedAutoencoder, autoencoder_from_state_dict, patchify_channels_last
from maelift.pretrain.masking import random_mask
from maelift.tests.support import GOLDEN
from safetensors import safe_open
from torch import Tensor, nn

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with safe_open(GOLDEN / "mae_tiny.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def state(golden: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("state."): value for name, value in golden.items() if name.startswith("state.")}


def build(golden: dict[str, Tensor], norm_pix_loss: bool = True) -> MaskedAutoencoder:
    return autoencoder_from_state_dict(state(golden), num_heads=3, decoder_num_heads=4, norm_pix_loss=norm_pix_loss)


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def largest_deviation(model: MaskedAutoencoder, golden: dict[str, Tensor], kind: str) -> float:
    """The largest relative deviation of loss, predictions and every gradient."""
    output = model.predict(golden["imgs"], 0.75, golden["noise"])
    output.loss.backward()  # type: ignore[no-untyped-call]
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    pairs = [(output.loss, golden[f"{kind}.loss"]), (output.pred, golden["pred"])]
    for name, value in golden.items():
        if name.startswith(f"{kind}.grad."):
            gradient = gradients[name.removeprefix(f"{kind}.grad.")]
            assert gradient is not None
            pairs.append((gradient, value))
    return max(relative(ours, theirs) for ours, theirs in pairs)


@pytest.mark.parametrize("kind", ["normpix", "rawpix"])
def test_loss_predictions_and_gradients_are_the_reference_s(golden: dict[str, Tensor], kind: str) -> None:
    assert largest_deviation(build(golden, kind == "normpix"), golden, kind) < TOLERANCE


def test_the_mask_is_the_reference_s(golden: dict[str, Tensor]) -> None:
    mask = random_mask(golden["noise"], 0.75)
    assert torch.equal(mask.hidden, golden["mask"])
    assert torch.equal(mask.ids_restore, golden["ids_restore"])


def test_the_encoder_s_output_on_visible_patches_is_the_reference_s(golden: dict[str, Tensor]) -> None:
    model = build(golden)
    visible = model.embed(golden["imgs"], random_mask(golden["noise"], 0.75).ids_keep)
    assert relative(model.forward_tokens(visible), golden["latent"]) < TOLERANCE


def test_features_of_every_layer_are_the_reference_s(golden: dict[str, Tensor]) -> None:
    features = build(golden).encoder().forward_features(golden["imgs"], layers=(0, 1, 2))
    for number, layer in enumerate(features.layers):
        assert relative(layer, golden[f"features.block{number}"][:, 1:]) < TOLERANCE
    assert features.class_token is not None
    tokens = torch.cat([features.class_token[:, None], features.tokens], dim=1)
    assert relative(tokens, golden["features.norm"]) < TOLERANCE


def test_patches_are_cut_in_the_reference_s_order(golden: dict[str, Tensor]) -> None:
    assert torch.equal(patchify_channels_last(golden["imgs"], 8), golden["patches"])
    assert torch.equal(build(golden).unpatchify(golden["patches"]), golden["imgs"])


def test_positions_are_resized_by_the_reference_s_rule(golden: dict[str, Tensor]) -> None:
    resized = resize_positions(golden["state.pos_embed"], (4, 4), (7, 7), 1)
    assert relative(resized, golden["pos_embed.resized"]) < TOLERANCE


def test_fresh_positions_are_the_paper_s(golden: dict[str, Tensor]) -> None:
    assert relative(sincos_positions(48, (4, 4), 1), golden["state.pos_embed"]) < TOLERANCE
    assert relative(sincos_positions(32, (4, 4), 1), golden["state.decoder_pos_embed"]) < TOLERANCE


Mutation = Callable[[MaskedAutoencoder, dict[str, Tensor], pytest.MonkeyPatch], None]


def wrong_eps(model: MaskedAutoencoder, golden: dict[str, Tensor], patch: pytest.MonkeyPatch) -> None:
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5


def inverted_mask(model: MaskedAutoencoder, golden: dict[str, Tensor], patch: pytest.MonkeyPatch) -> None:
    def inverted(noise: Tensor, ratio: float) -> object:
        mask = random_mask(noise, ratio)
        return replace(mask, hidden=1 - mask.hidden)

    patch.setattr("maelift.pretrain.mae.random_mask", inverted)


def target_not_normalised(model: MaskedAutoencoder, golden: dict[str, Tensor], patch: pytest.MonkeyPatch) -> None:
    model.norm_pix_loss = False


def class_token_dropped(model: MaskedAutoencoder, golden: dict[str, Tensor], patch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        assert model.cls_token is not None
        model.cls_token.zero_()


def other_variance(model: MaskedAutoencoder, golden: dict[str, Tensor], patch: pytest.MonkeyPatch) -> None:
    def biased(images: Tensor) -> Tensor:
        patches = patchify_channels_last(images, 8)
        mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True, unbiased=False)
        return (patches - mean) / (variance + 1e-6).sqrt()

    patch.setattr(model, "target", biased)


@pytest.mark.parametrize(
    "mutate", [wrong_eps, inverted_mask, target_not_normalised, class_token_dropped, other_variance]
)
def test_a_mutation_is_noticed(golden: dict[str, Tensor], mutate: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(golden)
    mutate(model, golden, monkeypatch)
    assert largest_deviation(model, golden, "normpix") > TOLERANCE


def test_the_schedule_is_the_reference_s() -> None:
    recipe = json.loads((GOLDEN / "recipes.json").read_text())["cosine_schedule"]
    for epoch, rate in recipe["lr_at_epoch"].items():
        ours = warmup_cosine(
            float(epoch),
            lr=recipe["lr"],
            min_lr=recipe["min_lr"],
            warmup=recipe["warmup_epochs"],
            total=recipe["epochs"],
        )
        assert ours == pytest.approx(rate, rel=TOLERANCE, abs=1e-15)


def test_layer_decay_groups_are_the_reference_s() -> None:
    recipe = json.loads((GOLDEN / "recipes.json").read_text())["layer_decay"]
    recipe = json.loads(recipe.replace("'", '"')) if isinstance(recipe, str) else recipe
    named = [(name, parameter(name)) for group in recipe["groups"] for name in group["params"]]
    groups = parameter_groups(
        named, weight_decay=recipe["weight_decay"], depth=recipe["depth"], layer_decay=recipe["layer_decay"]
    )
    ours = {name: (group["lr_scale"], group["weight_decay"]) for group in groups for name in group["names"]}
    for group in recipe["groups"]:
        for name in group["params"]:
            assert ours[name] == (pytest.approx(group["lr_scale"], rel=TOLERANCE), group["weight_decay"]), name


def parameter(name: str) -> nn.Parameter:
    """A stand-in of the right number of axes for a parameter of a ViT."""
    if name in ("cls_token", "pos_embed"):
        return nn.Parameter(torch.zeros(1, 1, 4))
    vector = name.endswith("bias") or "norm" in name
    return nn.Parameter(torch.zeros(4) if vector else torch.zeros(4, 4))


def test_lars_makes_the_reference_s_steps() -> None:
    with safe_open(GOLDEN / "lars.safetensors", "pt") as file:
        golden = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        meta = {name: float(value) for name, value in file.metadata().items()}
    weight, bias = nn.Parameter(golden["w0"].clone()), nn.Parameter(golden["b0"].clone())
    optimizer = Lars([weight, bias], **meta)
    for step in range(3):
        weight.grad, bias.grad = golden[f"gw{step}"], golden[f"gb{step}"]
        optimizer.step()
        assert relative(weight, golden[f"w{step + 1}"]) < TOLERANCE
        assert relative(bias, golden[f"b{step + 1}"]) < TOLERANCE
