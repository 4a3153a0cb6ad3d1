"""The method's options: how patches are hidden, what the encoder and the decoder see, and that all of them learn."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from maelift.core.config_keys import describe
from maelift.core.errors import ConfigError, MaeliftError
from maelift.core.models.decoder_file import read_decoder
from maelift.core.models.encoder_file import read_encoder
from maelift.core.models.encoder_spec import EncoderSpec
from maelift.core.training.tracker import read_metrics
from maelift.pretrain.decoder_config import DecoderConfig
from maelift.pretrain.mae import CrossAttentionAutoencoder, MaskedAutoencoder, autoencoder_from_state_dict
from maelift.pretrain.masking import STRATEGIES, Masking, StrategyName, random_mask
from maelift.tests.support import ROOT, TINY, one_line_error, run_maelift
from numpy.typing import NDArray
from safetensors.torch import load_file

SPEC = EncoderSpec(image_size=(16, 24), patch_size=4, channels=3, embed_dim=16, depth=2, num_heads=2)


def hidden(masking: Masking, grid: tuple[int, int], seed: int = 0, count: int = 64) -> NDArray[np.bool_]:
    """Which patches are hidden: (count, rows, columns) bool."""
    noise = torch.rand(count, grid[0] * grid[1], generator=torch.Generator().manual_seed(seed))
    mask = random_mask(masking.arrange(noise, grid), masking.ratio)
    assert torch.equal(mask.ids_hidden.sort().values, mask.hidden.nonzero()[:, 1].reshape(count, -1))
    return mask.hidden.reshape(count, *grid).bool().numpy()


@pytest.mark.parametrize("grid", [(14, 14), (8, 12), (4, 6)])
@pytest.mark.parametrize(("strategy", "ratio"), [("random", 0.6), ("block", 0.5), ("block", 0.75), ("grid", 0.75)])
def test_every_image_hides_the_same_number_and_its_own_patches(
    strategy: str, ratio: float, grid: tuple[int, int]
) -> None:
    masks = hidden(Masking(strategy, ratio), grid, count=200)  # type: ignore[arg-type]
    patches = grid[0] * grid[1]
    assert set(masks.sum(axis=(1, 2))) == {patches - int(patches * (1 - ratio))}
    kinds = {mask.tobytes() for mask in masks}
    assert len(kinds) == 4 if strategy == "grid" else len(kinds) > 60
    assert masks.mean(axis=0).min() > 0 and masks.mean(axis=0).max() < 1  # no patch is always seen or never


def test_a_grid_keeps_one_of_every_four() -> None:
    masks = hidden(Masking("grid"), (6, 8))
    fours = (~masks).reshape(-1, 3, 2, 4, 2).sum(axis=(2, 4))
    assert (fours == 1).all()
    with pytest.raises(ConfigError, match=r"0.75 with strategy=grid"):
        Masking("grid", 0.5)
    with pytest.raises(ConfigError, match="7×7 patches don't divide into 2×2"):
        Masking("grid").check_grid((7, 7))


def test_every_strategy_is_a_choice_of_the_key_and_in_its_help_and_the_docs() -> None:
    assert get_args(StrategyName) == tuple(STRATEGIES)
    texts = {entry.key: entry.help for entry in describe(Masking)}
    page = (ROOT / "docs" / "pretraining.md").read_text()
    for name in STRATEGIES:
        assert f"{name}: " in texts["strategy"] and f"`{name}`" in page


def test_blocks_hang_together() -> None:
    def neighbours(masks: NDArray[np.bool_]) -> float:
        """The share of hidden patches whose right neighbour is hidden too."""
        return float((masks[:, :, :-1] & masks[:, :, 1:]).sum() / masks[:, :, :-1].sum())

    grid = (14, 14)
    assert neighbours(hidden(Masking("random", 0.5), grid)) == pytest.approx(0.5, abs=0.05)
    assert neighbours(hidden(Masking("block", 0.5), grid)) > 0.75


@pytest.mark.parametrize("norm_pix_loss", [True, False])
@pytest.mark.parametrize("masks_in_encoder", [True, False])
def test_what_the_loss_does_not_need_can_be_left_out(norm_pix_loss: bool, masks_in_encoder: bool) -> None:
    torch.manual_seed(0)
    model = MaskedAutoencoder(
        SPEC, DecoderConfig(16, 3, 2), norm_pix_loss=norm_pix_loss, masks_in_encoder=masks_in_encoder
    ).double()
    images, noise = torch.randn(3, 3, 16, 24).double(), torch.rand(3, 24)
    whole = model.predict(images, 0.75, noise)
    whole.loss.backward()  # type: ignore[no-untyped-call]
    expected = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    short = model(images, 0.75, noise)
    short.loss.backward()
    assert short.pred.shape == (3, 18, 48) and float(short.loss) == pytest.approx(float(whole.loss), rel=1e-6)
    assert torch.allclose(short.pred, whole.pred.gather(1, short.ids_pred.unsqueeze(-1).expand(-1, -1, 48)))
    for name, gradient in expected.items():
        assert torch.allclose(model.get_parameter(name).grad, gradient, rtol=1e-5, atol=1e-8), name  # type: ignore[arg-type]


def test_a_cross_attending_decoder_predicts_each_patch_by_itself() -> None:
    torch.manual_seed(0)
    model = CrossAttentionAutoencoder(SPEC, DecoderConfig(16, 2, 2, attention="cross", predict=0.25)).double()
    images, noise = torch.randn(3, 3, 16, 24).double(), torch.rand(3, 24)
    some = model(images, 0.75, noise)
    assert some.pred.shape == (3, 4, 48)  # a quarter of 18
    whole = model.predict(images, 0.75, noise)
    assert torch.allclose(whole.pred.gather(1, some.ids_pred.unsqueeze(-1).expand(-1, -1, 48)), some.pred)
    assert not whole.pred[whole.mask == 0].any() and whole.pred[whole.mask == 1].any(dim=-1).all()
    assert (whole.mask.gather(1, some.ids_pred) == 1).all()
    with pytest.raises(ConfigError, match="attention=self"):
        DecoderConfig(predict=0.5)


def test_with_mask_tokens_in_the_encoder_it_sees_where_but_not_what() -> None:
    torch.manual_seed(0)
    model = MaskedAutoencoder(SPEC, DecoderConfig(16, 1, 2), masks_in_encoder=True)
    images, noise = torch.randn(2, 3, 16, 24), torch.rand(2, 24)
    mask = random_mask(noise, 0.75)
    assert model.encode(images, mask).shape == (2, 25, 16)
    covered = images.clone()
    pixels = model.unpatchify(mask.hidden.unsqueeze(-1).expand(-1, -1, 48)) > 0
    covered[pixels] = 7.0
    assert torch.equal(model.encode(images, mask), model.encode(covered, mask))
    assert "mask_token_in_encoder" not in model.encoder().state_dict()
    assert "mask_token_in_encoder" in model.decoder_state()


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        ["masking.strategy=block", "masking.ratio=0.5"],
        ["masking.strategy=grid"],
        ["masking.in_encoder=true"],
        ["decoder.attention=cross", "decoder.predict=0.25"],
        ["norm_pix_loss=false"],
    ],
    ids=lambda keys: keys[0],
)
def test_every_option_learns_and_leaves_files_that_fit(image_folder: Path, tmp_path: Path, keys: list[str]) -> None:
    out = tmp_path / "run"
    done = run_maelift("pretrain", f"data={image_folder}", f"out={out}", *TINY, "epochs=12", "log_every=1", *keys)
    assert done.returncode == 0, done.stderr
    losses = [record["held_out/loss"] for record in read_metrics(out / "metrics.jsonl") if "held_out/loss" in record]
    assert losses[-1] < losses[0]
    encoder, decoder = read_encoder(out / "encoder.safetensors"), read_decoder(out / "decoder.safetensors")
    assert decoder.encoder == encoder.content_hash and "mask_token_in_encoder" not in encoder.encoder.state_dict()
    state = {**load_file(out / "encoder.safetensors"), **load_file(out / "decoder.safetensors")}
    model = autoencoder_from_state_dict(state, num_heads=2, decoder_num_heads=2)
    assert model.decoder_spec.attention == ("cross" if "decoder.attention=cross" in keys else "self")


@pytest.mark.slow
def test_options_that_do_not_go_together_are_told(image_folder: Path, tmp_path: Path) -> None:
    words = ["pretrain", f"data={image_folder}", f"out={tmp_path / 'run'}", *TINY]
    one_line_error(run_maelift(*words, "masking.strategy=grid", "masking.ratio=0.5"), "masking.ratio", "0.75")
    one_line_error(run_maelift(*words, "decoder.predict=0.5"), "decoder.predict")
    one_line_error(run_maelift(*words, "masking.in_encoder=true", "decoder.attention=cross"), "decoder.attention")
    assert not (tmp_path / "run").exists()


def test_the_share_of_a_mask_that_would_hide_all_is_refused() -> None:
    with pytest.raises(MaeliftError, match="leaves 0 of 24 patches visible"):
        Masking("block", 0.99).check_grid((4, 6))
