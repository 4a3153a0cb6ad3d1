"""Attention weights computed by hand agree with what timm's blocks make of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from maelift.core.models.attention_maps import attention_weights, class_attention, last_attention
from maelift.core.models.backbone import Backbone
from maelift.core.models.encoder import Encoder
from maelift.core.models.encoder_spec import preset_spec
from maelift.core.models.timm_backbone import TimmBackbone
from maelift.core.models.timm_spec import TimmSpec
from maelift.tests.support import random_encoder
from timm.models.vision_transformer import Attention
from torch import Tensor, nn


def of_timm(name: str, **arguments: object) -> TimmBackbone:
    torch.manual_seed(0)
    return TimmBackbone(TimmSpec(name, (56, 56), 3, {"embed_dim": 48, "depth": 2, "num_heads": 3, **arguments})).eval()


def values(attention: nn.Module, tokens: Tensor) -> Tensor:
    """The values (B, heads, T, d), from the last third of the weights of qkv."""
    assert isinstance(attention, Attention)
    weight, bias = attention.qkv.weight.chunk(3)[2], attention.qkv.bias.chunk(3)[2]
    found: Tensor = tokens @ weight.T + bias
    return found.reshape(*tokens.shape[:2], attention.num_heads, -1).transpose(1, 2)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("normed", [False, True])
def test_weights_times_values_are_the_output_of_the_attention(fused: bool, normed: bool) -> None:
    torch.manual_seed(0)
    attention = Attention(48, num_heads=3, qkv_bias=True, qk_norm=normed, norm_layer=nn.LayerNorm).double().eval()
    attention.fused_attn = fused
    tokens = 3 * torch.randn(2, 17, 48, dtype=torch.float64)
    weights = attention_weights(attention, tokens)
    assert weights.shape == (2, 3, 17, 17) and torch.allclose(weights.sum(-1), torch.ones(2, 3, 17).double())
    output = attention.proj((weights @ values(attention, tokens)).transpose(1, 2).flatten(2))
    assert torch.allclose(output, attention(tokens), atol=1e-12) and weights.std() > 0.01


def test_the_class_tokens_attention_is_that_of_the_last_block_of_an_encoder() -> None:
    encoder = random_encoder(image_size=32).eval()
    images = torch.randn(2, 3, 32, 32)
    tokens = encoder.prepend_class_token(encoder.embed(images))
    for block in list(encoder.blocks)[:-1]:
        tokens = block(tokens)
    last = encoder.blocks[-1]
    expected = attention_weights(last.attn, last.norm1(tokens))[:, :, 0, 1:]  # type: ignore[operator, arg-type]
    found = class_attention(encoder, images)
    assert found is not None and found.shape == (2, encoder.spec.num_heads, 64)
    assert torch.allclose(found, expected, atol=1e-6) and (found.sum(-1) < 1).all()
    assert not last.attn._forward_pre_hooks  # type: ignore[union-attr]


def test_registers_have_no_place_in_the_map() -> None:
    backbone = of_timm("vit_small_patch14_reg4_dinov2")
    images = torch.randn(2, 3, 56, 56)
    found = class_attention(backbone, images)
    features = backbone.forward_features(images)
    assert found is not None and found.shape == (2, 3, features.tokens.shape[1]) and features.grid == (4, 4)
    assert backbone.net.num_prefix_tokens == 5 and (found.sum(-1) < 0.95).all()


NONE: dict[str, Backbone] = {
    "no class token": Encoder(replace(preset_spec("vit_nano"), class_token=False)),
    "rotary positions": of_timm("eva02_tiny_patch14_224"),
    "a convolutional network": TimmBackbone(TimmSpec("resnet18", (56, 56), 3, {})),
}


@pytest.mark.parametrize("what", NONE)
def test_other_backbones_have_no_such_map(what: str) -> None:
    assert last_attention(NONE[what]) is None
    assert class_attention(NONE[what], torch.randn(1, 3, 56, 56)) is None
