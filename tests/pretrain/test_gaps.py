"""Pixels without a value in the masked loss: they don't count, and patches of such pixels alone are never predicted."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from maelift.core.models.encoder_spec import EncoderSpec
from maelift.pretrain.decoder_config import DecoderConfig
from maelift.pretrain.mae import build_autoencoder, weighted_moments

SPEC = EncoderSpec(image_size=(16, 24), patch_size=4, channels=3, embed_dim=16, depth=1, num_heads=2)


def images_with_gaps(seed: int, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised images with 0 in place of pixels without a value, and which have one."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(2, 3, 16, 24, generator=generator)
    known = torch.rand(2, 3, 16, 24, generator=generator) >= share
    known[0, :, :4, :4] = False  # a full patch
    return torch.where(known, images, torch.zeros(())), known


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("attention", ["self", "cross"])
def test_the_loss_is_the_mean_over_hidden_pixels_with_a_value(norm: bool, attention: str) -> None:
    model = build_autoencoder(
        SPEC,
        DecoderConfig(16, 1, 2, attention=attention),  # type: ignore[arg-type]
        norm_pix_loss=norm,
    ).eval()
    images, known = images_with_gaps(0, 0.3)
    noise = torch.rand(2, 24, generator=torch.Generator().manual_seed(1))
    noise[0, 0] = 2.0  # the patch without a value is hidden
    with torch.no_grad():
        output = model.predict(images, 0.75, noise, known)
        trained = model(images, 0.75, noise, known)
    total, count = 0.0, 0
    for image, row, column in ((i, r, c) for i in range(2) for r in range(4) for c in range(6)):
        patch = row * 6 + column
        if output.mask[image, patch] == 0:
            continue
        place = slice(None), slice(row * 4, row * 4 + 4), slice(column * 4, column * 4 + 4)
        values = images[image][place].permute(1, 2, 0).flatten()
        there = known[image][place].permute(1, 2, 0).flatten()
        if not there.any():
            continue
        target = values[there]
        if norm:
            spread = target.var() if len(target) > 1 else torch.zeros(())
            target = (target - target.mean()) / (spread + 1e-6).sqrt()
        total += float((output.pred[image, patch][there] - target).square().sum())
        count += int(there.sum())
    assert float(output.loss) == pytest.approx(total / count, rel=1e-5)
    assert float(trained.loss) == pytest.approx(total / count, rel=1e-5)


def test_what_stands_in_a_gap_changes_nothing_but_what_the_encoder_sees() -> None:
    model = build_autoencoder(SPEC, DecoderConfig(16, 1, 2)).eval()
    images, known = images_with_gaps(2, 0.2)
    noise = torch.rand(2, 24, generator=torch.Generator().manual_seed(3))
    hidden = model.unpatchify(
        model.draw_mask(images, 0.75, noise)[0].hidden.unsqueeze(-1).expand(-1, -1, 48)  # p * p * C
    )
    other = torch.where((hidden > 0) & ~known, torch.full_like(images, 1e3), images)
    with torch.no_grad():
        assert torch.equal(model(images, 0.75, noise, known).loss, model(other, 0.75, noise, known).loss)


def test_without_gaps_the_weighted_loss_is_the_usual_one() -> None:
    model = build_autoencoder(SPEC, DecoderConfig(16, 1, 2)).eval()
    images, _ = images_with_gaps(4, 0.0)
    noise = torch.rand(2, 24, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        every = torch.ones_like(images, dtype=torch.bool)
        assert model(images, 0.75, noise, every).loss.item() == pytest.approx(model(images, 0.75, noise).loss.item())


def test_images_without_any_value_give_no_loss_and_no_gradient_that_is_no_number() -> None:
    model = build_autoencoder(SPEC, DecoderConfig(16, 1, 2))
    images = torch.zeros(1, 3, 16, 24)
    loss = model(images, 0.75, None, torch.zeros_like(images, dtype=torch.bool)).loss
    loss.backward()
    assert float(loss) == 0
    assert all(torch.isfinite(value.grad).all() for value in model.parameters() if value.grad is not None)


@given(st.integers(0, 10**6), st.integers(1, 30), st.floats(0, 1))
def test_moments_are_those_of_the_values_that_there_are(seed: int, length: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(1, 1, length, generator=generator, dtype=torch.float64)
    weight = (torch.rand(1, 1, length, generator=generator) >= share).double()
    mean, variance = weighted_moments(values, weight)
    there = values[weight > 0]
    assert float(mean) == pytest.approx(float(there.mean()) if len(there) else 0.0, abs=1e-12)
    assert float(variance) == pytest.approx(float(there.var()) if len(there) > 1 else 0.0, abs=1e-12)
