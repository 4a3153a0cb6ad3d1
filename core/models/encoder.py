"""The encoder: a plain ViT of timm blocks, run on all patches or on the visible ones only (ViT; MAE, Sec. 3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.layers.activations import QuickGELU
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ..errors import ConfigError, MaeliftError
from .preprocessing import Preprocessing

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"]
ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "quick_gelu": QuickGELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}
"""What may stand between the two layers of a block's MLP: the exact GELU (the paper's), or that of other people's weights."""


LARGEST = {"patch_size": 4096, "channels": 65536, "embed_dim": 65536, "depth": 1024, "num_heads": 4096}
"""Numbers that a spec may have at most: many times those of the largest ViTs, to refuse what no encoder can be."""
LARGEST_SIDE = 2**20
"""Pixels of a side of the images at most."""
LARGEST_MLP = 2**20
"""Width of the blocks' MLPs at most."""
LARGEST_EPS = 0.1
"""Epsilon of LayerNorm at most; usual are 1e-12 to 1e-5."""


@dataclass(frozen=True)
class EncoderSpec:
    """The shape of an encoder; all that is needed to build one.

    ``image_size`` is (height, width) in pixels, ``norm_eps`` the epsilon of every LayerNorm, ``act`` the activation of
    every MLP, one of ``ACTIVATIONS``; specs written before there was a choice lack it, and mean the exact GELU.
    """

    image_size: tuple[int, int] = (224, 224)
    patch_size: int = 16
    channels: int = 3
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6
    class_token: bool = True
    act: str = "gelu"

    def __post_init__(self) -> None:
        if self.act not in ACTIVATIONS:
            raise ConfigError("act", self.act, f"one of {', '.join(ACTIVATIONS)}")
        for key, most in LARGEST.items():
            if not 1 <= getattr(self, key) <= most:
                raise ConfigError(key, getattr(self, key), f"a whole number of at least 1, at most {most}")
        if not all(1 <= side <= LARGEST_SIDE for side in self.image_size):
            raise ConfigError("image_size", list(self.image_size), f"sides from 1 to {LARGEST_SIDE} pixels")
        if not (math.isfinite(self.mlp_ratio) and 1 <= int(self.embed_dim * self.mlp_ratio) <= LARGEST_MLP):
            expected = f"a number with which the MLPs are 1 to {LARGEST_MLP} wide"
            raise ConfigError("mlp_ratio", self.mlp_ratio, expected)
        if not 0 < self.norm_eps <= LARGEST_EPS:
            raise ConfigError("norm_eps", self.norm_eps, f"a number above 0, at most {LARGEST_EPS:g}")
        check_divisible(self.image_size, self.patch_size)
        if self.embed_dim % self.num_heads:
            raise ConfigError("num_heads", self.num_heads, f"a divisor of embed_dim={self.embed_dim}")
        if self.embed_dim % 4:
            raise ConfigError("embed_dim", self.embed_dim, "a multiple of 4 (sine-cosine positions on two axes)")

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> EncoderSpec:
        """The spec that ``dataclasses.asdict`` turned into JSON; raises TypeError for other content."""
        return cls(**{**content, "image_size": tuple(content["image_size"])})

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along (height, width)."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches in an image, N."""
        return math.prod(self.grid)

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before those of the patches: 1 with a class token, else 0."""
        return int(self.class_token)


@dataclass(frozen=True)
class Preset:
    """A named encoder: its shape and the image size in pixels that it is usually trained at."""

    embed_dim: int
    depth: int
    num_heads: int
    patch_size: int = 16
    image_size: int = 224


PRESETS = {
    "vit_nano": Preset(64, 3, 4, patch_size=4, image_size=32),
    "vit_micro": Preset(128, 4, 4, patch_size=8, image_size=64),
    "vit_tiny": Preset(192, 12, 3),
    "vit_small": Preset(384, 12, 6),
    "vit_base": Preset(768, 12, 12),
    "vit_large": Preset(1024, 24, 16),
    "vit_huge": Preset(1280, 32, 16, patch_size=14),
}
"""Encoders by name: the ViT family of the paper, and ``vit_nano`` and ``vit_micro`` for a CPU."""
ModelName = Literal["vit_nano", "vit_micro", "vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge"]


def preset_spec(
    name: str,
    *,
    image_size: int | tuple[int, int] | None = None,
    patch_size: int | None = None,
    channels: int = 3,
) -> EncoderSpec:
    """The spec of a preset at an image size (pixels, one side or (height, width)), patch size and channel count."""
    if name not in PRESETS:
        raise ConfigError("model", name, f"one of {', '.join(PRESETS)}")
    preset = PRESETS[name]
    size = image_size or preset.image_size
    return EncoderSpec(
        image_size=(size, size) if isinstance(size, int) else size,
        patch_size=patch_size or preset.patch_size,
        channels=channels,
        embed_dim=preset.embed_dim,
        depth=preset.depth,
        num_heads=preset.num_heads,
    )


def check_divisible(image_size: tuple[int, int], patch_size: int) -> None:
    """Raise ConfigError unless both sides of ``image_size`` (pixels) are positive multiples of ``patch_size``."""
    if all(side >= patch_size and side % patch_size == 0 for side in image_size):
        return
    fitting = tuple(max(1, round(side / patch_size)) * patch_size for side in image_size)
    raise ConfigError(
        "image_size",
        list(image_size),
        f"multiples of the patch size {patch_size}",
        f"The nearest is image_size=[{fitting[0]},{fitting[1]}]; or choose another patch_size.",
    )


@dataclass(frozen=True)
class Features:
    """What ``Encoder.forward_features`` gives.

    ``tokens`` (B, N, D) and ``class_token`` (B, D), both after the final norm; ``layers``: the patch tokens
    (B, N, D) after each block that was asked for, before the final norm; ``grid``: patches along (height, width).
    """

    class_token: Tensor | None
    tokens: Tensor
    layers: tuple[Tensor, ...]
    grid: tuple[int, int]

    def pooled(self) -> Tensor:
        """The mean over the patch tokens, (B, D)."""
        return self.tokens.mean(dim=1)


class PatchEmbed(nn.Module):
    """Cut images into patches and project them linearly; ``proj`` keeps timm's convolution weights (D, C, p, p)."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.patch_size = spec.patch_size
        self.proj = nn.Conv2d(spec.channels, spec.embed_dim, kernel_size=spec.patch_size, stride=spec.patch_size)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) to tokens (B, N, D); with indices ``keep`` (B, V) only those patches, (B, V, D)."""
        patches = unfold_patches(images, self.patch_size)  # (B, N, C * p * p)
        if keep is not None:
            patches = gather_tokens(patches, keep)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class Encoder(nn.Module):
    """A plain Vision Transformer with the parameter names of timm and the reference MAE.

    Pre-norm blocks, one class token (optional), sine-cosine positions, a final norm. ``preprocessing`` says what the
    input must look like; ``drop_path`` is the stochastic-depth rate of the last block, rising linearly from 0.
    """

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
        """Draw the weights as the paper does (Appendix A.1): Xavier for every linear layer, 0.02 for the tokens."""
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
        """Run embedded patch tokens (B, V, D) through the blocks and the norm, the class token first: (B, 1 + V, D)."""
        tokens = self.prepend_class_token(tokens)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)  # type: ignore[no-any-return]

    def forward_features(self, images: Tensor, layers: Sequence[int] = ()) -> Features:
        """Features of images (B, C, H, W) of any size that the patch size divides.

        ``layers`` are block numbers, negative ones counted from the last; their patch tokens come before the norm.
        """
        wanted = [self._block_number(layer) for layer in layers]
        tokens = self.prepend_class_token(self.embed(images))
        prefix = self.spec.num_prefix_tokens
        kept: dict[int, Tensor] = {}
        for number, block in enumerate(self.blocks):
            tokens = block(tokens)
            if number in wanted:
                kept[number] = tokens[:, prefix:]
        tokens = self.norm(tokens)
        return Features(
            class_token=tokens[:, 0] if prefix else None,
            tokens=tokens[:, prefix:],
            layers=tuple(kept[number] for number in wanted),
            grid=(images.shape[-2] // self.spec.patch_size, images.shape[-1] // self.spec.patch_size),
        )

    def forward(self, images: Tensor) -> Tensor:
        """All tokens after the norm, (B, 1 + N, D), or (B, N, D) without a class token."""
        return self.forward_tokens(self.embed(images))

    def prepend_class_token(self, tokens: Tensor) -> Tensor:
        """Put the class token, with its position, before the patch tokens (B, V, D)."""
        if self.cls_token is None:
            return tokens
        first = self.cls_token + self.pos_embed[:, :1]
        return torch.cat([first.expand(tokens.shape[0], -1, -1).to(tokens.dtype), tokens], dim=1)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """The position embeddings for a grid of patches, (1, 1 + N, D), resized when it isn't the trained one."""
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
        """A copy for patches of another size, on the same grid: ViT-H's 14 pixels become the 16 that detectors like.

        The kernel is resampled by the pseudo-inverse of bicubic resizing (FlexiViT, Sec. 3.4), so that an image which is
        enlarged with its patches gives the same tokens; plain interpolation would scale them by the patch's area.
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
        """The grid of patches of images (B, C, H, W); raises MaeliftError for a shape that does not fit."""
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
    """timm's pre-norm blocks with biases in q, k and v, as the paper's ViT has them; one a rate in ``drop_path``.

    ``kind`` is timm's Block, or a class derived from it; ``act`` one of ``ACTIVATIONS``.
    """
    norm = partial(nn.LayerNorm, eps=norm_eps)
    return nn.ModuleList(
        kind(dim, num_heads, mlp_ratio, qkv_bias=True, norm_layer=norm, act_layer=ACTIVATIONS[act], drop_path=rate)
        for rate in drop_path
    )


def initialize_linear(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for a linear layer; other modules are left as they are."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def unfold_patches(images: Tensor, patch_size: int) -> Tensor:
    """Images (B, C, H, W) to patches (B, N, C * p * p), row by row, each in the order (channel, row, column)."""
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    cut = images.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * patch_size**2)


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """The tokens (B, V, D) of ``tokens`` (B, N, D) at ``indices`` (B, V)."""
    return tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def sincos_positions(dim: int, grid: tuple[int, int], num_prefix_tokens: int = 0) -> Tensor:
    """Fixed 2-D sine-cosine position embeddings, (1, P + N, D), float32; zeros for the P prefix tokens.

    Half of the channels encode the column, half the row, each as sines then cosines of geometric frequencies from 1
    down to 1/10000 (MAE, Appendix A.1; MoCo v3).
    """
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = (torch.arange(side, dtype=torch.float64) for side in grid)
    angles = [
        columns.repeat(grid[0]).outer(frequencies),
        rows.repeat_interleave(grid[1]).outer(frequencies),
    ]
    patches = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float()
    return torch.cat([torch.zeros(num_prefix_tokens, dim), patches]).unsqueeze(0)


def resize_positions(
    positions: Tensor, grid: tuple[int, int], new_grid: tuple[int, int], num_prefix_tokens: int
) -> Tensor:
    """Position embeddings (1, P + N, D) of one grid for another: bicubic, not antialiased, prefix tokens kept."""
    if grid == new_grid:
        return positions
    prefix, patches = positions[:, :num_prefix_tokens], positions[:, num_prefix_tokens:]
    plane = patches.reshape(1, *grid, -1).permute(0, 3, 1, 2)  # (1, D, rows, columns)
    precision = torch.promote_types(plane.dtype, torch.float32)  # half precision is too coarse to interpolate in
    plane = F.interpolate(plane.to(precision), size=new_grid, mode="bicubic", align_corners=False)
    resized = plane.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)
    return torch.cat([prefix, resized], dim=1)
