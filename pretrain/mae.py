"""The masked autoencoder: encoder on the visible patches, light decoder, loss on the masked ones (MAE, Sec. 3)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import ConfigError, MaeliftError
from ..core.models.encoder import Encoder, gather_tokens, initialize_linear, patchify_channels_first, transformer_blocks
from ..core.models.encoder_shapes import infer_spec, key_mismatch
from ..core.models.encoder_spec import EncoderSpec
from ..core.models.position_embeddings import sincos_positions
from ..core.models.preprocessing import Preprocessing
from .decoder import CrossBlock, DecoderBlock
from .decoder_config import DecoderConfig
from .masking import Mask, check_mask_ratio, random_mask


@dataclass(frozen=True)
class LossOutput:
    """The result of a training pass.

    ``loss``: scalar, mean squared error over the predicted patches; ``pred`` (B, M, p * p * C): their predictions, in the
    target's scale; ``ids_pred`` (B, M) int64: their indices.
    """

    loss: Tensor
    pred: Tensor
    ids_pred: Tensor


@dataclass(frozen=True)
class MaeOutput:
    """The result of predicting all patches.

    ``loss``: scalar, mean squared error over the hidden patches; ``pred`` (B, N, p * p * C) in the target's scale; ``mask``
    (B, N) float32, 1 for hidden patches; ``ids_restore`` (B, N) int64.
    """

    loss: Tensor
    pred: Tensor
    mask: Tensor
    ids_restore: Tensor


class MaskedAutoencoder(Encoder):
    """An encoder with a decoder that reconstructs the patches hidden from the encoder, by self-attention among all patches.

    Parameters have the reference's names: those of ``Encoder``, and ``decoder_*`` and ``mask_token``. With
    ``norm_pix_loss`` each patch of the target is normalised by its own mean and deviation (Sec. 3, Table 1d). With
    ``masks_in_encoder`` the encoder gets all patches, hidden ones as a mask token of its own (Table 1c). Of a
    configuration, ``build_autoencoder`` makes this class or ``CrossAttentionAutoencoder``.
    """

    attention: ClassVar[Literal["self", "cross"]] = "self"
    """the decoder's attention, as in ``DecoderConfig``"""
    predicts_visible: ClassVar[bool] = True
    """whether ``predict`` gives predictions for visible patches too; else zeros"""

    def __init__(
        self,
        spec: EncoderSpec,
        decoder: DecoderConfig | None = None,
        *,
        norm_pix_loss: bool = True,
        masks_in_encoder: bool = False,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        super().__init__(spec, preprocessing=preprocessing)
        self.decoder_spec = decoder or DecoderConfig(attention=self.attention)
        if self.decoder_spec.attention != self.attention:
            raise ConfigError("decoder.attention", self.decoder_spec.attention, f"{self.attention} in this class")
        if masks_in_encoder and self.attention == "cross":
            raise ConfigError("decoder.attention", "cross", "self where the encoder gets mask tokens")
        self.norm_pix_loss = norm_pix_loss
        dim = self.decoder_spec.embed_dim
        self.pos_embed.requires_grad_(False)
        self.decoder_embed = nn.Linear(spec.embed_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.decoder_pos_embed = nn.Parameter(
            sincos_positions(dim, spec.grid, spec.num_prefix_tokens), requires_grad=False
        )
        self.decoder_blocks = self._make_decoder_blocks()
        self.decoder_norm = nn.LayerNorm(dim, eps=spec.norm_eps)
        self.decoder_pred = nn.Linear(dim, spec.patch_size**2 * spec.channels)
        for part in (self.decoder_embed, self.decoder_blocks, self.decoder_pred):
            part.apply(initialize_linear)
        nn.init.normal_(self.mask_token, std=0.02)
        self.mask_token_in_encoder = nn.Parameter(torch.zeros(1, 1, spec.embed_dim)) if masks_in_encoder else None
        if self.mask_token_in_encoder is not None:
            nn.init.normal_(self.mask_token_in_encoder, std=0.02)
            self.mask_token.requires_grad_(False)  # unused by the decoder

    def _make_decoder_blocks(self) -> nn.ModuleList:
        spec, decoder = self.spec, self.decoder_spec
        rates = [0.0] * decoder.depth
        return transformer_blocks(
            decoder.embed_dim, decoder.num_heads, spec.mlp_ratio, spec.norm_eps, rates, DecoderBlock
        )

    def forward(  # type: ignore[override]
        self, images: Tensor, mask_ratio: float = 0.75, noise: Tensor | None = None, known: Tensor | None = None
    ) -> LossOutput:
        """The training pass: hide patches of normalised images (B, C, H, W), and predict the hidden ones.

        Computes only what the loss needs: predictions of the hidden patches, or of the share ``decoder.predict`` of them.
        For ``noise`` see ``draw_mask``. ``known`` (B, C, H, W) bool: which pixels have a value; the others, 0 in ``images``, are
        not in the loss. None: all have one.
        """
        mask, noise = self.draw_mask(images, mask_ratio, noise)
        ids = mask.some_hidden(noise, self.decoder_spec.predict)  # (B, M)
        pred = self.decode_at(self.encode(images, mask), mask, ids)  # (B, M, p * p * C)
        target = gather_tokens(patchify_channels_last(images, self.spec.patch_size), ids)
        if known is None:
            return LossOutput(F.mse_loss(pred.float(), self.normalized(target).float()), pred, ids)
        weight = gather_tokens(self.pixel_weights(known), ids)
        squared = (pred.float() - self.normalized(target, weight).float()).square() * weight
        return LossOutput(squared.sum() / weight.sum().clamp_min(1), pred, ids)

    def predict(
        self, images: Tensor, mask_ratio: float = 0.75, noise: Tensor | None = None, known: Tensor | None = None
    ) -> MaeOutput:
        """The evaluation pass: as ``forward`` with the same loss at ``decoder.predict=1``, but predicts all patches."""
        mask, _ = self.draw_mask(images, mask_ratio, noise)
        pred = self.decode(self.encode(images, mask), mask)  # (B, N, p * p * C)
        return MaeOutput(self.error(pred, images, mask, known), pred, mask.hidden, mask.ids_restore)

    def draw_mask(self, images: Tensor, mask_ratio: float, noise: Tensor | None = None) -> tuple[Mask, Tensor]:
        """A mask for images (B, C, H, W), and the noise (B, N) whose largest values it hides (``Masking.arrange``).

        Without ``noise``, torch's global generator draws it. Raises MaeliftError for images or noise of another shape.
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
        return random_mask(noise, mask_ratio), noise

    def encode(self, images: Tensor, mask: Mask) -> Tensor:
        """The encoder's output (B, 1 + V, D); with mask tokens in the encoder (B, 1 + N, D), in the image's order."""
        if self.mask_token_in_encoder is None:
            return self.forward_tokens(self.embed(images, mask.ids_keep))
        positions = self.pos_embed[:, self.spec.num_prefix_tokens :]
        masked = self.mask_token_in_encoder + positions  # (1, N, D)
        return self.forward_tokens(torch.where(mask.hidden.unsqueeze(-1) > 0, masked, self.embed(images)))

    def decode(self, latent: Tensor, mask: Mask) -> Tensor:
        """Predict every patch, (B, N, p * p * C), from the encoder's output (B, 1 + V, D)."""
        tokens = self._with_mask_tokens(latent, mask)
        for block in self.decoder_blocks:
            tokens = block(tokens)
        return cast(Tensor, self.decoder_pred(self.decoder_norm(tokens)[:, self.spec.num_prefix_tokens :]))

    def decode_at(self, latent: Tensor, mask: Mask, ids: Tensor) -> Tensor:
        """Predict the patches ``ids`` (B, M) alone, (B, M, p * p * C), with the same values as ``decode``."""
        tokens = self._with_mask_tokens(latent, mask)
        *blocks, last = self.decoder_blocks
        for block in blocks:
            tokens = block(tokens)
        return cast(Tensor, self.decoder_pred(self.decoder_norm(last(tokens, ids + self.spec.num_prefix_tokens))))

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

    def error(self, pred: Tensor, images: Tensor, mask: Mask, known: Tensor | None = None) -> Tensor:
        """Mean squared error over the hidden patches only (Sec. 3, "Reconstruction target"), in float32.

        ``known``: as in ``forward``.
        """
        if known is not None:
            weight = self.pixel_weights(known) * mask.hidden.unsqueeze(-1)  # (B, N, p * p * C)
            target = self.normalized(patchify_channels_last(images, self.spec.patch_size), self.pixel_weights(known))
            every = (pred.float() - target.to(pred.device).float()).square() * weight
            return every.sum() / weight.sum().clamp_min(1)
        squared = (pred.float() - self.target(images).to(pred.device).float()).square().mean(dim=-1)  # (B, N)
        return (squared * mask.hidden).sum() / mask.hidden.sum()

    def target(self, images: Tensor) -> Tensor:
        """The patches to be predicted, (B, N, p * p * C), normalised a patch if ``norm_pix_loss``."""
        return self.normalized(patchify_channels_last(images, self.spec.patch_size))

    def normalized(self, patches: Tensor, weight: Tensor | None = None) -> Tensor:
        """Patches (B, M, p * p * C) as the target has them: with ``norm_pix_loss`` of mean 0 and deviation 1.

        ``weight``: 1 for the values that there are, 0 for those that are missing, of the same shape.
        """
        if not self.norm_pix_loss:
            return patches
        if weight is None:
            mean, variance = patches.mean(dim=-1, keepdim=True), patches.var(dim=-1, keepdim=True)
        else:
            mean, variance = weighted_moments(patches, weight)
        return (patches - mean) / (variance + 1e-6).sqrt()

    def pixel_weights(self, known: Tensor) -> Tensor:
        """Which values of the target are there: (B, C, H, W) bool to (B, N, p * p * C), float32 1 and 0."""
        return patchify_channels_last(known.float(), self.spec.patch_size)

    def reconstruct(self, images: Tensor, output: MaeOutput) -> Tensor:
        """Normalised images (B, C, H, W): visible patches as they are, hidden ones as predicted.

        With ``norm_pix_loss`` the prediction has no brightness or contrast of its own; for display it gets those of the
        true patch.
        """
        patches = patchify_channels_last(images, self.spec.patch_size)
        pred = output.pred.float()
        if self.norm_pix_loss:
            mean, variance = patches.mean(dim=-1, keepdim=True), patches.var(dim=-1, keepdim=True)
            pred = pred * (variance + 1e-6).sqrt() + mean
        return self.unpatchify(torch.where(output.mask.unsqueeze(-1) > 0, pred, patches))

    def unpatchify(self, patches: Tensor) -> Tensor:
        """The inverse of ``patchify_channels_last``: patches (B, N, p * p * C) to images (B, C, H, W)."""
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


class CrossAttentionAutoencoder(MaskedAutoencoder):
    """A masked autoencoder whose decoder attends from hidden patches to the encoder's output only (CrossMAE, 2024).

    Each patch is predicted by itself, so that any share of the hidden ones can be predicted.
    """

    attention = "cross"
    predicts_visible = False

    def _make_decoder_blocks(self) -> nn.ModuleList:
        spec, decoder = self.spec, self.decoder_spec
        shape = (decoder.embed_dim, decoder.num_heads, spec.mlp_ratio, spec.norm_eps)
        return nn.ModuleList(CrossBlock(*shape) for _ in range(decoder.depth))

    def decode(self, latent: Tensor, mask: Mask) -> Tensor:
        """Predict every hidden patch, (B, N, p * p * C) with zeros for visible ones, from (B, 1 + V, D)."""
        pred = self.decode_at(latent, mask, mask.ids_hidden)
        everywhere = pred.new_zeros(pred.shape[0], mask.hidden.shape[1], pred.shape[2])
        return everywhere.scatter(1, mask.ids_hidden.unsqueeze(-1).expand_as(pred), pred)

    def decode_at(self, latent: Tensor, mask: Mask, ids: Tensor) -> Tensor:
        """Predict the patches ``ids`` (B, M) alone, (B, M, p * p * C), with the same values as ``decode``."""
        memory = self.decoder_embed(latent)  # (B, 1 + V, E)
        positions = self.decoder_pos_embed[:, self.spec.num_prefix_tokens :].expand(len(ids), -1, -1)
        queries = self.mask_token + gather_tokens(positions, ids)  # (B, M, E)
        for block in self.decoder_blocks:
            queries = block(queries, memory)
        return cast(Tensor, self.decoder_pred(self.decoder_norm(queries)))


def build_autoencoder(
    spec: EncoderSpec,
    decoder: DecoderConfig,
    *,
    norm_pix_loss: bool = True,
    masks_in_encoder: bool = False,
    preprocessing: Preprocessing | None = None,
) -> MaskedAutoencoder:
    """The masked autoencoder of a configuration: its class follows from ``decoder.attention``."""
    kind = CrossAttentionAutoencoder if decoder.attention == "cross" else MaskedAutoencoder
    return kind(
        spec,
        decoder,
        norm_pix_loss=norm_pix_loss,
        masks_in_encoder=masks_in_encoder,
        preprocessing=preprocessing,
    )


def autoencoder_from_state_dict(
    state: Mapping[str, Tensor],
    num_heads: int | None = None,
    decoder_num_heads: int | None = None,
    norm_pix_loss: bool = False,
    image_size: int | tuple[int, int] | None = None,
) -> MaskedAutoencoder:
    """Rebuild a masked autoencoder from a state dict under the reference's names.

    The number of heads can't be read from the tensors: by default it is the usual one for the width. ``image_size`` in
    pixels is needed only for images that are not square. Raises CheckpointError that lists missing and unexpected keys.
    """
    spec = infer_spec(state, num_heads=num_heads, image_size=image_size)
    depths = {int(found[1]) for name in state if (found := re.match(r"decoder_blocks\.(\d+)\.", name))}
    if not depths or "decoder_embed.weight" not in state:
        raise key_mismatch("state dict", ["decoder_embed.weight", "decoder_blocks.0.*"], [], "a masked autoencoder")
    dim = state["decoder_embed.weight"].shape[0]
    decoder = DecoderConfig(
        dim,
        len(depths),
        decoder_num_heads or (16 if dim % 16 == 0 else 1),
        attention="cross" if "decoder_blocks.0.kv.weight" in state else "self",
    )
    in_encoder = "mask_token_in_encoder" in state
    model = build_autoencoder(spec, decoder, norm_pix_loss=norm_pix_loss, masks_in_encoder=in_encoder)
    missing, unexpected = model.load_state_dict(dict(state), strict=False)
    if missing or unexpected:
        raise key_mismatch("state dict", missing, unexpected, "a masked autoencoder")
    return model.to(state["decoder_embed.weight"].dtype)


def weighted_moments(patches: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (B, M, 1) of the values of patches (B, M, K) whose ``weight`` is 1, not 0; variance 0 of one value."""
    count = weight.sum(dim=-1, keepdim=True)
    mean = (patches * weight).sum(dim=-1, keepdim=True) / count.clamp_min(1)
    variance = ((patches - mean).square() * weight).sum(dim=-1, keepdim=True) / (count - 1).clamp_min(1)
    return mean, variance


def patchify_channels_last(images: Tensor, patch_size: int) -> Tensor:
    """Images (B, C, H, W) to patches (B, N, p * p * C), each in the order (row, column, channel): that of the target.

    The encoder's ``patchify_channels_first`` has the order (channel, row, column).
    """
    patches = patchify_channels_first(images, patch_size)
    split = patches.reshape(*patches.shape[:2], images.shape[1], patch_size**2)
    return split.transpose(-1, -2).flatten(-2)
