"""The masked autoencoder: encoder on the visible patches, light decoder, loss on the masked ones (MAE, Sec. 3)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ..core.errors import ConfigError, MaeliftError
from ..core.models.encoder import Encoder, gather_tokens, initialize_linear, transformer_blocks, unfold_patches
from ..core.models.encoder_shapes import infer_spec, key_mismatch
from ..core.models.encoder_spec import EncoderSpec
from ..core.models.position_embeddings import sincos_positions
from ..core.models.preprocessing import Preprocessing
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
    attention: Literal["self", "cross"] = "self"
    """self: among all patches, as the paper; cross: from hidden patches to the encoder's output only (CrossMAE, 2024)"""
    predict: float = 1.0
    """share of the hidden patches that is predicted in training; below 1 with attention=cross, at 0.25 far cheaper"""

    def __post_init__(self) -> None:
        for key in ("embed_dim", "depth", "num_heads"):
            if getattr(self, key) < 1:
                raise ConfigError(key, getattr(self, key), "a whole number of at least 1")
        if self.embed_dim % self.num_heads:
            raise ConfigError("num_heads", self.num_heads, f"a divisor of the decoder's embed_dim={self.embed_dim}")
        if not 0 < self.predict <= 1:
            raise ConfigError("predict", self.predict, "a share above 0, up to 1")
        if self.predict < 1 and self.attention == "self":
            raise ConfigError("predict", self.predict, "1 with attention=self, where every hidden patch takes part")
        if self.embed_dim % 4:
            raise ConfigError("embed_dim", self.embed_dim, "a multiple of 4 (sine-cosine positions on two axes)")


@dataclass(frozen=True)
class MaeOutput:
    """What one pass gives.

    ``loss``: scalar, mean squared error over the hidden patches; ``pred`` (B, N, p * p * C) in the target's scale, or
    (B, M, p * p * C) of the patches ``ids_pred`` (B, M) int64 alone; ``mask`` (B, N) float32, 1 for hidden patches;
    ``ids_restore`` (B, N) int64.
    """

    loss: Tensor
    pred: Tensor
    mask: Tensor
    ids_restore: Tensor
    ids_pred: Tensor | None = None


class DecoderBlock(Block):  # type: ignore[misc]
    """timm's block, which can also be asked for its output at some tokens only."""

    def forward(self, tokens: Tensor, ids: Tensor | None = None) -> Tensor:
        """Tokens (B, 1 + N, E) to the same, or to those at ``ids`` (B, M) alone, (B, M, E): they attend to all tokens.

        For the last block before a head that looks at some tokens only. Dropout and scaling rest in a decoder.
        """
        if ids is None:
            return cast(Tensor, super().forward(tokens))
        dim = tokens.shape[-1]
        normed = self.norm1(tokens)
        weight, bias = self.attn.qkv.weight, self.attn.qkv.bias
        q = F.linear(gather_tokens(normed, ids), weight[:dim], bias[:dim])
        k, v = F.linear(normed, weight[dim:], bias[dim:]).chunk(2, dim=-1)
        q, k, v = (_split_heads(part, self.attn.num_heads) for part in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        chosen = gather_tokens(tokens, ids) + self.attn.proj(attended)
        return cast(Tensor, chosen + self.mlp(self.norm2(chosen)))


class CrossBlock(nn.Module):
    """A decoder block whose queries attend to the encoder's output, not to one another (CrossMAE, arXiv 2401.14391)."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, norm_eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(mlp_ratio * dim))

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        """Queries (B, M, E) and the encoder's tokens (B, 1 + V, E) to (B, M, E)."""
        q = _split_heads(self.q(self.norm1(queries)), self.num_heads)
        k, v = (_split_heads(part, self.num_heads) for part in self.kv(memory).chunk(2, dim=-1))
        queries = queries + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return cast(Tensor, queries + self.mlp(self.norm2(queries)))


class MaskedAutoencoder(Encoder):
    """An encoder with a decoder that fills in the patches which the encoder did not see.

    Parameters bear the reference's names: those of ``Encoder``, and ``decoder_*`` and ``mask_token``. With
    ``norm_pix_loss`` each patch of the target is normalised by its own mean and deviation (Sec. 3, Table 1d). With
    ``masks_in_encoder`` the encoder gets all patches, hidden ones as a mask token of its own (Table 1c).
    """

    def __init__(
        self,
        spec: EncoderSpec,
        decoder: Decoder | None = None,
        *,
        norm_pix_loss: bool = True,
        masks_in_encoder: bool = False,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        super().__init__(spec, preprocessing=preprocessing)
        if masks_in_encoder and decoder is not None and decoder.attention == "cross":
            raise ConfigError("decoder.attention", "cross", "self where the encoder gets mask tokens")
        self.decoder_spec = decoder or Decoder()
        self.norm_pix_loss = norm_pix_loss
        dim = self.decoder_spec.embed_dim
        self.pos_embed.requires_grad_(False)
        self.decoder_embed = nn.Linear(spec.embed_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.decoder_pos_embed = nn.Parameter(
            sincos_positions(dim, spec.grid, spec.num_prefix_tokens), requires_grad=False
        )
        shape = (dim, self.decoder_spec.num_heads, spec.mlp_ratio, spec.norm_eps)
        if self.decoder_spec.attention == "cross":
            self.decoder_blocks = nn.ModuleList(CrossBlock(*shape) for _ in range(self.decoder_spec.depth))
        else:
            self.decoder_blocks = transformer_blocks(*shape, [0.0] * self.decoder_spec.depth, DecoderBlock)
        self.decoder_norm = nn.LayerNorm(dim, eps=spec.norm_eps)
        self.decoder_pred = nn.Linear(dim, spec.patch_size**2 * spec.channels)
        for part in (self.decoder_embed, self.decoder_blocks, self.decoder_pred):
            part.apply(initialize_linear)
        nn.init.normal_(self.mask_token, std=0.02)
        self.mask_token_in_encoder = nn.Parameter(torch.zeros(1, 1, spec.embed_dim)) if masks_in_encoder else None
        if self.mask_token_in_encoder is not None:
            nn.init.normal_(self.mask_token_in_encoder, std=0.02)
            self.mask_token.requires_grad_(False)  # the decoder needs none

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
        decoder = Decoder(
            dim,
            len(depths),
            decoder_num_heads or (16 if dim % 16 == 0 else 1),
            attention="cross" if "decoder_blocks.0.kv.weight" in state else "self",
        )
        in_encoder = "mask_token_in_encoder" in state
        model = cls(spec, decoder, norm_pix_loss=norm_pix_loss, masks_in_encoder=in_encoder)
        missing, unexpected = model.load_state_dict(dict(state), strict=False)
        if missing or unexpected:
            raise key_mismatch("state dict", missing, unexpected, "a masked autoencoder")
        return model.to(state["decoder_embed.weight"].dtype)

    def forward(  # type: ignore[override]
        self, images: Tensor, mask_ratio: float = 0.75, noise: Tensor | None = None, *, loss_only: bool = False
    ) -> MaeOutput:
        """Hide patches of normalised images (B, C, H, W), reconstruct them, and compare.

        ``noise`` (B, N) decides what is hidden, its largest values (``Masking.arrange``); without it, torch's global
        generator draws it. With ``loss_only`` nothing is computed that the loss doesn't need: the loss is the same,
        predictions are those of hidden patches, or of the decoder's share of them.
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
        latent = self.encode(images, mask)
        if loss_only:
            ids = mask.some_hidden(noise, self.decoder_spec.predict)  # (B, M)
            pred = self.decode_at(latent, mask, ids)  # (B, M, p * p * C)
            target = gather_tokens(patchify(images, self.spec.patch_size), ids)
            loss = F.mse_loss(pred.float(), self.normalized(target).float())
            return MaeOutput(loss, pred, mask.hidden, mask.ids_restore, ids)
        pred = self.decode(latent, mask)  # (B, N, p * p * C)
        return MaeOutput(self.error(pred, images, mask), pred, mask.hidden, mask.ids_restore)

    def encode(self, images: Tensor, mask: Mask) -> Tensor:
        """The encoder's output (B, 1 + V, D); with mask tokens in the encoder (B, 1 + N, D), in the image's order."""
        if self.mask_token_in_encoder is None:
            return self.forward_tokens(self.embed(images, mask.ids_keep))
        positions = self.pos_embed[:, self.spec.num_prefix_tokens :]
        masked = self.mask_token_in_encoder + positions  # (1, N, D)
        return self.forward_tokens(torch.where(mask.hidden.unsqueeze(-1) > 0, masked, self.embed(images)))

    def decode(self, latent: Tensor, mask: Mask) -> Tensor:
        """Predict every patch, (B, N, p * p * C), from the encoder's output (B, 1 + V, D).

        With attention=cross visible patches have no prediction, but zeros.
        """
        if self.decoder_spec.attention == "cross":
            pred = self.decode_at(latent, mask, mask.ids_hidden)
            everywhere = pred.new_zeros(pred.shape[0], mask.hidden.shape[1], pred.shape[2])
            return everywhere.scatter(1, mask.ids_hidden.unsqueeze(-1).expand_as(pred), pred)
        tokens = self._with_mask_tokens(latent, mask)
        for block in self.decoder_blocks:
            tokens = block(tokens)
        return cast(Tensor, self.decoder_pred(self.decoder_norm(tokens)[:, self.spec.num_prefix_tokens :]))

    def decode_at(self, latent: Tensor, mask: Mask, ids: Tensor) -> Tensor:
        """Predict the patches ``ids`` (B, M) alone, (B, M, p * p * C); what they attend to is the same."""
        prefix = self.spec.num_prefix_tokens
        if self.decoder_spec.attention == "cross":
            memory = self.decoder_embed(latent)  # (B, 1 + V, E)
            positions = self.decoder_pos_embed[:, prefix:].expand(len(ids), -1, -1)
            queries = self.mask_token + gather_tokens(positions, ids)  # (B, M, E)
            for block in self.decoder_blocks:
                queries = block(queries, memory)
            return cast(Tensor, self.decoder_pred(self.decoder_norm(queries)))
        tokens = self._with_mask_tokens(latent, mask)
        *blocks, last = self.decoder_blocks
        for block in blocks:
            tokens = block(tokens)
        return cast(Tensor, self.decoder_pred(self.decoder_norm(last(tokens, ids + prefix))))

    def _with_mask_tokens(self, latent: Tensor, mask: Mask) -> Tensor:
        """The decoder's input (B, 1 + N, E): the encoder's output with mask tokens where patches are hidden."""
        tokens = self.decoder_embed(latent)  # (B, 1 + V, E)
        if self.mask_token_in_encoder is not None:
            return cast(Tensor, tokens + self.decoder_pos_embed)
        prefix = self.spec.num_prefix_tokens
        visible = tokens[:, prefix:]
        hidden = self.mask_token.to(tokens.dtype).expand(
            tokens.shape[0], mask.ids_restore.shape[1] - visible.shape[1], -1
        )
        order = mask.ids_restore.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
        patches = torch.cat([visible, hidden], dim=1).gather(1, order)  # (B, N, E), in the image's order
        return torch.cat([tokens[:, :prefix], patches], dim=1) + self.decoder_pos_embed

    def error(self, pred: Tensor, images: Tensor, mask: Mask) -> Tensor:
        """Mean squared error over the hidden patches only (Sec. 3, "Reconstruction target"), in float32."""
        squared = (pred.float() - self.target(images).to(pred.device).float()).square().mean(dim=-1)  # (B, N)
        return (squared * mask.hidden).sum() / mask.hidden.sum()

    def target(self, images: Tensor) -> Tensor:
        """The patches to be predicted, (B, N, p * p * C), normalised a patch if ``norm_pix_loss``."""
        return self.normalized(patchify(images, self.spec.patch_size))

    def normalized(self, patches: Tensor) -> Tensor:
        """Patches (B, M, p * p * C) as they are to be predicted."""
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


def _split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    """(B, M, E) to (B, heads, M, E / heads)."""
    return tokens.view(*tokens.shape[:-1], num_heads, -1).transpose(1, 2)


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Images (B, C, H, W) to patches (B, N, p * p * C), each in the order (row, column, channel), as the target is."""
    patches = unfold_patches(images, patch_size)
    split = patches.reshape(*patches.shape[:2], images.shape[1], patch_size**2)
    return split.transpose(-1, -2).flatten(-2)
