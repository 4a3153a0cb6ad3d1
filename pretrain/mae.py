"""The masked autoencoder: encoder on the visible patches, light decoder, loss on the masked ones (MAE, Sec. 3)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ..core.config import ConfigError, MaeliftError
from ..core.encoder import (
    Encoder,
    EncoderSpec,
    Preprocessing,
    cut_patches,
    initialize_linear,
    sincos_positions,
    transformer_blocks,
)
from ..core.weights import infer_spec, key_mismatch
from .masking import Mask, check_mask_ratio, random_mask


@dataclass(frozen=True)
class Decoder:
    """The light decoder, thrown away after pretraining."""

    embed_dim: int = 512
    """width of the decoder's tokens, in channels (paper Table 1b)"""
    depth: int = 8
    """number of transformer blocks (paper Table 1a)"""
    num_heads: int = 16
    """attention heads; must divide embed_dim"""

    def __post_init__(self) -> None:
        for key in ("embed_dim", "depth", "num_heads"):
            if getattr(self, key) < 1:
                raise ConfigError(key, getattr(self, key), "a whole number of at least 1")
        if self.embed_dim % self.num_heads:
            raise ConfigError("num_heads", self.num_heads, f"a divisor of the decoder's embed_dim={self.embed_dim}")
        if self.embed_dim % 4:
            raise ConfigError("embed_dim", self.embed_dim, "a multiple of 4 (sine-cosine positions on two axes)")


@dataclass(frozen=True)
class MaeOutput:
    """What one pass gives.

    ``loss``: scalar, mean squared error over the hidden patches; ``pred`` (B, N, p * p * C) in the target's scale;
    ``mask`` (B, N) float32, 1 for hidden patches; ``ids_restore`` (B, N) int64.
    """

    loss: Tensor
    pred: Tensor
    mask: Tensor
    ids_restore: Tensor


class MaskedAutoencoder(Encoder):
    """An encoder with a decoder that fills in the patches which the encoder did not see.

    Parameters bear the reference's names: those of ``Encoder``, and ``decoder_*`` and ``mask_token``. With
    ``norm_pix_loss`` each patch of the target is normalised by its own mean and deviation (Sec. 3, Table 1d).
    """

    def __init__(
        self,
        spec: EncoderSpec,
        decoder: Decoder | None = None,
        *,
        norm_pix_loss: bool = True,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        super().__init__(spec, preprocessing=preprocessing)
        self.decoder_spec = decoder or Decoder()
        self.norm_pix_loss = norm_pix_loss
        dim = self.decoder_spec.embed_dim
        self.pos_embed.requires_grad_(False)
        self.decoder_embed = nn.Linear(spec.embed_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.decoder_pos_embed = nn.Parameter(
            sincos_positions(dim, spec.grid, spec.num_prefix_tokens), requires_grad=False
        )
        self.decoder_blocks = transformer_blocks(
            dim, self.decoder_spec.num_heads, spec.mlp_ratio, spec.norm_eps, [0.0] * self.decoder_spec.depth
        )
        self.decoder_norm = nn.LayerNorm(dim, eps=spec.norm_eps)
        self.decoder_pred = nn.Linear(dim, spec.patch_size**2 * spec.channels)
        for part in (self.decoder_embed, self.decoder_blocks, self.decoder_pred):
            part.apply(initialize_linear)
        nn.init.normal_(self.mask_token, std=0.02)

    @classmethod
    def from_state_dict(
        cls,
        state: Mapping[str, Tensor],
        num_heads: int | None = None,
        decoder_num_heads: int | None = None,
        norm_pix_loss: bool = False,
        image_size: int | tuple[int, int] | None = None,
    ) -> MaskedAutoencoder:
        """Rebuild a masked autoencoder from a state dict under the reference's names.

        The number of heads can't be read off the tensors: without it, the usual one for the width is taken.
        ``image_size`` in pixels is needed only for images that are not square. Raises CheckpointError that lists
        missing and unexpected keys.
        """
        spec = infer_spec(state, num_heads=num_heads, image_size=image_size)
        depths = {int(found[1]) for name in state if (found := re.match(r"decoder_blocks\.(\d+)\.", name))}
        if not depths or "decoder_embed.weight" not in state:
            raise key_mismatch("state dict", ["decoder_embed.weight", "decoder_blocks.0.*"], [], "a masked autoencoder")
        dim = state["decoder_embed.weight"].shape[0]
        decoder = Decoder(dim, len(depths), decoder_num_heads or (16 if dim % 16 == 0 else 1))
        model = cls(spec, decoder, norm_pix_loss=norm_pix_loss)
        missing, unexpected = model.load_state_dict(dict(state), strict=False)
        if missing or unexpected:
            raise key_mismatch("state dict", missing, unexpected, "a masked autoencoder")
        return model.to(state["decoder_embed.weight"].dtype)

    def forward(  # type: ignore[override]
        self, images: Tensor, mask_ratio: float = 0.75, noise: Tensor | None = None
    ) -> MaeOutput:
        """Hide patches of normalised images (B, C, H, W), reconstruct them, and compare.

        ``noise`` (B, N), uniform in [0, 1), decides what is hidden; without it, torch's global generator draws it.
        """
        check_mask_ratio("mask_ratio", mask_ratio)
        if self.check_input(images) != self.spec.grid:
            raise MaeliftError(
                f"images of {tuple(images.shape[-2:])} pixels: this masked autoencoder is for {self.spec.image_size}."
            )
        if noise is None:
            noise = torch.rand(images.shape[0], self.spec.num_patches, device=images.device)
        elif noise.shape != (images.shape[0], self.spec.num_patches):
            raise MaeliftError(
                f"noise of shape {tuple(noise.shape)}: expected {(images.shape[0], self.spec.num_patches)}."
            )
        mask = random_mask(noise, mask_ratio)
        latent = self.forward_tokens(self.embed(images, mask.ids_keep))  # (B, 1 + V, D)
        pred = self.decode(latent, mask)  # (B, N, p * p * C)
        return MaeOutput(self.error(pred, images, mask), pred, mask.hidden, mask.ids_restore)

    def decode(self, latent: Tensor, mask: Mask) -> Tensor:
        """Predict every patch, (B, N, p * p * C), from the encoder's output (B, 1 + V, D)."""
        tokens = self.decoder_embed(latent)  # (B, 1 + V, E)
        prefix = self.spec.num_prefix_tokens
        visible = tokens[:, prefix:]
        hidden = self.mask_token.to(tokens.dtype).expand(
            tokens.shape[0], mask.ids_restore.shape[1] - visible.shape[1], -1
        )
        order = mask.ids_restore.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
        patches = torch.cat([visible, hidden], dim=1).gather(1, order)  # (B, N, E), in the image's order
        tokens = torch.cat([tokens[:, :prefix], patches], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            tokens = block(tokens)
        return cast(Tensor, self.decoder_pred(self.decoder_norm(tokens)[:, prefix:]))

    def error(self, pred: Tensor, images: Tensor, mask: Mask) -> Tensor:
        """Mean squared error over the hidden patches only (Sec. 3, "Reconstruction target"), in float32."""
        squared = (pred.float() - self.target(images).to(pred.device).float()).square().mean(dim=-1)  # (B, N)
        return (squared * mask.hidden).sum() / mask.hidden.sum()

    def target(self, images: Tensor) -> Tensor:
        """The patches to be predicted, (B, N, p * p * C), normalised a patch if ``norm_pix_loss``."""
        patches = patchify(images, self.spec.patch_size)
        if not self.norm_pix_loss:
            return patches
        mean, variance = patches.mean(dim=-1, keepdim=True), patches.var(dim=-1, keepdim=True)
        return (patches - mean) / (variance + 1e-6).sqrt()

    def reconstruct(self, images: Tensor, output: MaeOutput) -> Tensor:
        """Normalised images (B, C, H, W): visible patches as they are, hidden ones as predicted.

        With ``norm_pix_loss`` the prediction has no brightness or contrast of its own: those of the true patch are
        given back to it, for looking at only.
        """
        patches = patchify(images, self.spec.patch_size)
        pred = output.pred.float()
        if self.norm_pix_loss:
            mean, variance = patches.mean(dim=-1, keepdim=True), patches.var(dim=-1, keepdim=True)
            pred = pred * (variance + 1e-6).sqrt() + mean
        return self.unpatchify(torch.where(output.mask.unsqueeze(-1) > 0, pred, patches))

    def unpatchify(self, patches: Tensor) -> Tensor:
        """Patches (B, N, p * p * C) in the target's order to images (B, C, H, W)."""
        size, (rows, columns) = self.spec.patch_size, self.spec.grid
        cut = patches.reshape(patches.shape[0], rows, columns, size, size, self.spec.channels)
        return cut.permute(0, 5, 1, 3, 2, 4).reshape(patches.shape[0], self.spec.channels, rows * size, columns * size)

    def all_blocks(self) -> list[nn.Module]:
        """The transformer blocks of encoder and decoder."""
        return [*self.blocks, *self.decoder_blocks]

    def encoder(self) -> Encoder:
        """A copy of the encoder alone."""
        encoder = Encoder(self.spec, preprocessing=self.preprocessing).to(self.pos_embed.device, self.pos_embed.dtype)
        own = self.state_dict()
        encoder.load_state_dict({name: own[name] for name in encoder.state_dict()})
        return encoder

    def decoder_state(self) -> dict[str, Tensor]:
        """The tensors that are not the encoder's: ``mask_token`` and ``decoder_*``."""
        return {
            name: tensor for name, tensor in self.state_dict().items() if name.startswith(("mask_token", "decoder_"))
        }


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Images (B, C, H, W) to patches (B, N, p * p * C), each in the order (row, column, channel), as the target is."""
    patches = cut_patches(images, patch_size)
    split = patches.reshape(*patches.shape[:2], images.shape[1], patch_size**2)
    return split.transpose(-1, -2).flatten(-2)
