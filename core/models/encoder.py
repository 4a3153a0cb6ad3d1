"""The encoder: a plain ViT of timm blocks, run on all patches or on the visible ones only (ViT; MAE, Sec. 3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers.activations import QuickGELU
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ..errors import MaeliftError
from .backbone import Backbone, Features, Level, words_of_size
from .cost import encoder_flops
from .encoder_spec import EncoderSpec, check_divisible, layer_index
from .position_embeddings import resize_positions, sincos_positions
from .preprocessing import Preprocessing

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "quick_gelu": QuickGELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}
"""Modules of the activations between the two layers of a block's MLP."""


class PatchEmbed(nn.Module):
    """Split images into patches and project them linearly; ``proj`` has timm's convolution weights (D, C, p, p)."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.patch_size = spec.patch_size
        self.proj = nn.Conv2d(spec.channels, spec.embed_dim, kernel_size=spec.patch_size, stride=spec.patch_size)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) to tokens (B, N, D); with indices ``keep`` (B, V) only those patches, (B, V, D)."""
        patches = patchify_channels_first(images, self.patch_size)  # (B, N, C * p * p)
        if keep is not None:
            patches = gather_tokens(patches, keep)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class Encoder(Backbone):
    """A plain Vision Transformer with the parameter names of timm and the reference MAE.

    Pre-norm blocks, one class token (optional), sine-cosine positions, a final norm. ``preprocessing`` defines the
    input; ``drop_path`` is the stochastic-depth rate of the last block, rising linearly from 0.
    """

    spec: EncoderSpec

    def __init__(
        self, spec: EncoderSpec, *, preprocessing: Preprocessing | None = None, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.spec = spec
        self.preprocessing = preprocessing or Preprocessing.default(spec.channels)
        if len(self.preprocessing.mean) != spec.channels:
            raise MaeliftError(
                f"preprocessing is for {len(self.preprocessing.mean)} channels, the encoder has {spec.channels}."
            )
        self.patch_embed = PatchEmbed(spec)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, spec.embed_dim)) if spec.class_token else None
        self.pos_embed = nn.Parameter(sincos_positions(spec.embed_dim, spec.grid, spec.num_prefix_tokens))
        rates = [drop_path * index / max(1, spec.depth - 1) for index in range(spec.depth)]
        self.blocks = transformer_blocks(
            spec.embed_dim, spec.num_heads, spec.mlp_ratio, spec.norm_eps, rates, act=spec.act
        )
        self.norm = nn.LayerNorm(spec.embed_dim, eps=spec.norm_eps)
        self.initialize()

    def initialize(self) -> None:
        """Initialize the weights as in the paper (Appendix A.1): Xavier for every linear layer, 0.02 for the tokens."""
        self.apply(initialize_linear)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.view(self.spec.embed_dim, -1))
        nn.init.zeros_(self.patch_embed.proj.bias)  # type: ignore[arg-type]
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=0.02)

    def embed(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Patch tokens with positions: images (B, C, H, W) to (B, N, D), or (B, V, D) for indices ``keep`` (B, V)."""
        positions = self.positions(self.check_input(images))[:, self.spec.num_prefix_tokens :]  # (1, N, D)
        tokens: Tensor = self.patch_embed(images, keep)
        if keep is None:
            return tokens + positions
        return tokens + gather_tokens(positions.expand(images.shape[0], -1, -1), keep)

    def forward_tokens(self, tokens: Tensor) -> Tensor:
        """Apply blocks and norm to embedded patch tokens (B, V, D), with the class token first: (B, 1 + V, D)."""
        tokens = self.prepend_class_token(tokens)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)  # type: ignore[no-any-return]

    def forward_features(self, images: Tensor, layers: Sequence[int] = ()) -> Features:
        """Features of images (B, C, H, W) of any size that the patch size divides.

        ``layers`` are block indices, negative ones counted from the last; their patch tokens are those before the norm.
        """
        wanted = [self._block_number(layer) for layer in layers]
        tokens = self.prepend_class_token(self.embed(images))
        prefix = self.spec.num_prefix_tokens
        outputs: dict[int, Tensor] = {}
        for number, block in enumerate(self.blocks):
            tokens = block(tokens)
            if number in wanted:
                outputs[number] = tokens[:, prefix:]
        tokens = self.norm(tokens)
        return Features(
            class_token=tokens[:, 0] if prefix else None,
            tokens=tokens[:, prefix:],
            layers=tuple(outputs[number] for number in wanted),
            grid=(images.shape[-2] // self.spec.patch_size, images.shape[-1] // self.spec.patch_size),
        )

    def maps(self, images: Tensor, indices: Sequence[int], *, norm: bool = False) -> list[Tensor]:
        """The patch tokens after blocks as maps (B, D, rows, columns); ``norm``: after the final norm."""
        features = self.forward_features(images, indices)
        rows, columns = features.grid
        found = (self.norm(tokens) if norm else tokens for tokens in features.layers)
        return [tokens.transpose(1, 2).unflatten(2, (rows, columns)) for tokens in found]

    @property
    def embed_dim(self) -> int:
        return self.spec.embed_dim

    @property
    def num_tokens(self) -> int:
        return self.spec.num_patches

    @property
    def num_heads(self) -> int:
        return self.spec.num_heads

    @property
    def has_class_token(self) -> bool:
        return self.spec.class_token

    @property
    def levels(self) -> tuple[Level, ...]:
        return (Level(self.spec.patch_size, self.spec.embed_dim),) * self.spec.depth

    @property
    def flops(self) -> float:
        return encoder_flops(self.spec)

    @property
    def activations(self) -> float:
        return (self.spec.num_patches + self.spec.num_prefix_tokens) * self.spec.embed_dim * self.spec.depth

    @property
    def num_layers(self) -> int:
        return self.spec.depth + 1

    def layer_of(self, name: str) -> int:
        return layer_index(name, self.spec.depth)

    def size_text(self) -> str:
        return f"{words_of_size(self.spec.image_size)}, patch {self.spec.patch_size} px"

    def forward(self, images: Tensor) -> Tensor:
        """All tokens after the norm, (B, 1 + N, D), or (B, N, D) without a class token."""
        return self.forward_tokens(self.embed(images))

    def prepend_class_token(self, tokens: Tensor) -> Tensor:
        """Prepend the class token, with its position, to the patch tokens (B, V, D)."""
        if self.cls_token is None:
            return tokens
        first = self.cls_token + self.pos_embed[:, :1]
        return torch.cat([first.expand(tokens.shape[0], -1, -1).to(tokens.dtype), tokens], dim=1)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """The position embeddings for a grid of patches, (1, 1 + N, D), resized if it isn't the trained one."""
        return resize_positions(self.pos_embed, self.spec.grid, grid, self.spec.num_prefix_tokens)

    def resized(self, image_size: tuple[int, int], *, drop_path: float = 0.0) -> Encoder:
        """A copy for images of ``image_size`` (height, width) in pixels, its position embeddings resized."""
        encoder = Encoder(
            replace(self.spec, image_size=image_size), preprocessing=self.preprocessing, drop_path=drop_path
        )
        state = self.state_dict()
        state["pos_embed"] = self.positions(encoder.spec.grid).detach()
        encoder.load_state_dict(state)
        return encoder.to(self.pos_embed.device, self.pos_embed.dtype)

    def with_patch_size(self, patch_size: int) -> Encoder:
        """A copy for patches of another size, on the same grid: ViT-H's 14 pixels become the 16 that detectors need.

        The kernel is resampled by the pseudo-inverse of bicubic resizing (FlexiViT, Sec. 3.4), so that an image which is
        enlarged with its patches gives the same tokens; plain interpolation scales them by the patch's area.
        """
        from timm.layers import resample_patch_embed

        if patch_size == self.spec.patch_size:
            return self
        size = (self.spec.grid[0] * patch_size, self.spec.grid[1] * patch_size)
        encoder = Encoder(replace(self.spec, patch_size=patch_size, image_size=size), preprocessing=self.preprocessing)
        state = self.state_dict()
        kernel = state["patch_embed.proj.weight"]
        resampled = resample_patch_embed(kernel.float(), [patch_size, patch_size])
        state["patch_embed.proj.weight"] = resampled.to(kernel.dtype)
        encoder.load_state_dict(state)
        return encoder.to(self.pos_embed.device, self.pos_embed.dtype)

    def check_input(self, images: Tensor) -> tuple[int, int]:
        """The grid of patches of images (B, C, H, W); raises MaeliftError for another shape."""
        if images.ndim != 4 or images.shape[1] != self.spec.channels:
            raise MaeliftError(
                f"images of shape {tuple(images.shape)}: expected (batch, {self.spec.channels}, height, width)."
            )
        height, width = images.shape[-2:]
        check_divisible((height, width), self.spec.patch_size)
        return height // self.spec.patch_size, width // self.spec.patch_size

    def _block_number(self, layer: int) -> int:
        if not -self.spec.depth <= layer < self.spec.depth:
            raise MaeliftError(f"layers={layer}: expected a block number from 0 to {self.spec.depth - 1}.")
        return layer % self.spec.depth


def transformer_blocks(
    dim: int,
    num_heads: int,
    mlp_ratio: float,
    norm_eps: float,
    drop_path: Sequence[float],
    kind: type[nn.Module] = Block,
    act: str = "gelu",
) -> nn.ModuleList:
    """timm's pre-norm blocks with biases in q, k and v, as in the paper's ViT; one for each rate in ``drop_path``.

    ``kind`` is timm's Block, or a class derived from it; ``act`` one of ``ACTIVATIONS``.
    """
    norm = partial(nn.LayerNorm, eps=norm_eps)
    return nn.ModuleList(
        kind(dim, num_heads, mlp_ratio, qkv_bias=True, norm_layer=norm, act_layer=ACTIVATIONS[act], drop_path=rate)
        for rate in drop_path
    )


def initialize_linear(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for a linear layer; other modules don't change."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def patchify_channels_first(images: Tensor, patch_size: int) -> Tensor:
    """Images (B, C, H, W) to patches (B, N, C * p * p), each in the order (channel, row, column): that of a conv's weight.

    Patches come row by row. The target of a masked autoencoder has the order (row, column, channel) instead.
    """
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    cut = images.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * patch_size**2)


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """The tokens (B, V, D) of ``tokens`` (B, N, D) at ``indices`` (B, V)."""
    return tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
