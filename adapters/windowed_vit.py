"""A plain ViT for dense tasks, with attention windows and relative positions (ViTDet, Sec. 3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth


def _gelu_tanh(values: Tensor) -> Tensor:
    return F.gelu(values, approximate="tanh")


def _quick_gelu(values: Tensor) -> Tensor:
    return values * torch.sigmoid(1.702 * values)


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "quick_gelu": _quick_gelu,
    "relu": F.relu,
    "silu": F.silu,
}
"""What may stand between the two layers of a block's MLP, under the names that encoder files have for it."""


class PlainViT(nn.Module):
    """Images (B, C, H, W), normalised, to maps (B, D, H/p, W/p), one a block in ``out_indices``.

    Parameters bear timm's names. Positions are resized bicubically, without antialiasing, to any grid. Images that the
    patches do not divide are padded with zeros at the right and bottom; their maps have ceil(H/p) rows. ``window_size``
    (patches a side, 0: none) is that of all blocks but ``global_blocks``; windows exclude a class token.

    With ``use_rel_pos`` each block adds decomposed relative positions to its attention, which begin at zero and so
    change nothing (MViTv2, Sec. 4.1; ViTDet, Sec. 3): tables for its window, or for ``relative_grid`` (rows and columns
    of patches; None: ``image_size``'s) in the global blocks, interpolated linearly to any other grid. They exclude a
    class token. Raises ValueError for settings that don't fit each other.
    """

    def __init__(
        self,
        *,
        image_size: tuple[int, int] = (224, 224),
        patch_size: int = 16,
        channels: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-6,
        act: str = "gelu",
        class_token: bool = False,
        class_position: bool = True,
        out_indices: Sequence[int] = (-1,),
        final_norm: bool = False,
        window_size: int = 0,
        global_blocks: Sequence[int] = (),
        use_rel_pos: bool = False,
        relative_grid: tuple[int, int] | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if window_size and class_token:
            raise ValueError("attention windows leave no place for a class token: class_token=False, or window_size=0")
        if use_rel_pos and class_token:
            raise ValueError("relative positions are those of patches only: class_token=False, or use_rel_pos=False")
        if act not in ACTIVATIONS:
            raise ValueError(f"act={act!r}: expected one of {', '.join(ACTIVATIONS)}")
        if any(not -depth <= index < depth for index in (*out_indices, *global_blocks)):
            raise ValueError(f"out_indices and global_blocks must be block numbers from 0 to {depth - 1}")
        if class_token and not class_position:
            raise ValueError("a class token needs its position: class_position=True")
        self.patch_size, self.channels, self.embed_dim, self.depth = patch_size, channels, embed_dim, depth
        self.grid = (image_size[0] // patch_size, image_size[1] // patch_size)
        self.window_size = window_size
        if any(not -depth <= index < depth for index in out_indices):
            raise ValueError(f"out_indices={list(out_indices)}: there are blocks 0 to {depth - 1}, or -{depth} to -1")
        self.out_indices = tuple(index % depth for index in out_indices)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(channels, embed_dim, patch_size, patch_size)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if class_token else None
        self.prefix = int(class_position)  # positions before those of the patches
        self.pos_embed = nn.Parameter(torch.zeros(1, self.prefix + math.prod(self.grid), embed_dim))
        everywhere = {index % depth for index in global_blocks}
        full_grid = relative_grid or self.grid
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                mlp_ratio,
                norm_eps,
                window=0 if number in everywhere else window_size,
                drop_path=drop_path * number / max(1, depth - 1),
                relative_grid=full_grid if use_rel_pos else None,
                act=act,
            )
            for number in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps) if final_norm else None
        self.initialize()

    @property
    def size_divisibility(self) -> int:
        """Pixels that both sides of an image should be multiples of, so that nothing is padded."""
        return self.patch_size * max(1, self.window_size)

    @property
    def windows(self) -> dict[int, int]:
        """The window of each block that has one, in patches a side."""
        blocks = (module for module in self.blocks if isinstance(module, Block))
        return {number: block.window for number, block in enumerate(blocks) if block.window}

    def attend_everywhere(self) -> None:
        """Switch all windows off."""
        self.window_size = 0
        for module in self.blocks:
            if isinstance(module, Block):
                module.window = 0

    def initialize(self) -> None:
        """Truncated normal weights of deviation 0.02, zero biases: for training from scratch."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward(self, images: Tensor) -> list[Tensor]:
        rows, columns = (-(-side // self.patch_size) for side in images.shape[-2:])
        tokens = self.patch_embed["proj"](pad(images, self.size_divisibility))  # (B, D, h, w), padded
        height, width = tokens.shape[-2:]
        tokens = tokens.flatten(2).transpose(1, 2) + self.positions((height, width))
        if self.cls_token is not None:
            first = self.cls_token + self.pos_embed[:, :1]
            tokens = torch.cat([first.expand(len(tokens), -1, -1).to(tokens.dtype), tokens], dim=1)
        maps: dict[int, Tensor] = {}
        for number, block in enumerate(self.blocks):
            tokens = block(tokens, (height, width))
            if number in self.out_indices:
                last = number == self.depth - 1
                found = self.norm(tokens) if self.norm is not None and last else tokens
                patches = found[:, found.shape[1] - height * width :]
                plane = patches.transpose(1, 2).reshape(len(patches), -1, height, width)
                maps[number] = plane[:, :, :rows, :columns]
        return [maps[number] for number in self.out_indices]

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """The position embeddings of the patches of a grid, (1, h * w, D)."""
        patches = self.pos_embed[:, self.prefix :]
        if grid == self.grid:
            return patches
        plane = patches.reshape(1, *self.grid, -1).permute(0, 3, 1, 2)
        precision = torch.promote_types(plane.dtype, torch.float32)
        plane = F.interpolate(plane.to(precision), size=grid, mode="bicubic", align_corners=False)
        return plane.flatten(2).transpose(1, 2).to(patches.dtype)


class Block(nn.Module):
    """A pre-norm block; with a ``window`` (patches a side) its attention stays within such squares.

    ``relative_grid``: the grid of patches that relative positions are for where there is no window; None: none at all.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        norm_eps: float,
        *,
        window: int,
        drop_path: float,
        relative_grid: tuple[int, int] | None = None,
        act: str = "gelu",
    ) -> None:
        super().__init__()
        self.window = window
        self.act = ACTIVATIONS[act]
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        square = (window, window) if window and relative_grid else None
        self.attn = Attention(dim, num_heads, square or relative_grid)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        hidden = int(dim * mlp_ratio)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, hidden), "fc2": nn.Linear(hidden, dim)})
        self.drop_path = StochasticDepth(drop_path, "row") if drop_path else nn.Identity()

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        normed = self.norm1(tokens)
        if self.window:
            square = (self.window, self.window)
            normed = merge_windows(self.attn(cut_windows(normed, grid, self.window), square), grid, self.window)
        else:
            normed = self.attn(normed, grid)
        tokens = tokens + self.drop_path(normed)
        hidden = self.act(self.mlp["fc1"](self.norm2(tokens)))
        return tokens + self.drop_path(self.mlp["fc2"](hidden))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Multi-head self-attention on (B, N, D), all tokens with all.

    With a ``relative_grid`` (rows and columns) queries meet learned tables of relative rows and columns,
    ``rel_pos_h`` (2 * rows - 1, D / heads) and ``rel_pos_w``, under detectron2's names.
    """

    rel_pos_h: nn.Parameter | None
    rel_pos_w: nn.Parameter | None

    def __init__(self, dim: int, num_heads: int, relative_grid: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        tables: list[nn.Parameter | None] = [None, None]
        if relative_grid is not None:
            tables = [nn.Parameter(torch.zeros(2 * side - 1, dim // num_heads)) for side in relative_grid]
        self.register_parameter("rel_pos_h", tables[0])
        self.register_parameter("rel_pos_w", tables[1])

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        batch, count, dim = tokens.shape
        qkv = self.qkv(tokens).reshape(batch, count, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)  # (B, heads, N, D / heads)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=self.relative_bias(query, grid))
        return self.proj(mixed.transpose(1, 2).reshape(batch, count, dim))  # type: ignore[no-any-return]

    def relative_bias(self, query: Tensor, grid: tuple[int, int]) -> Tensor | None:
        """What is added to the logits of attention, (B, heads, N, N): query times relative row, plus relative column."""
        if self.rel_pos_h is None or self.rel_pos_w is None:
            return None
        rows, columns = grid
        plane = query.reshape(*query.shape[:2], rows, columns, -1)  # (B, heads, rows, columns, D / heads)
        by_row = torch.einsum("bnhwc,hkc->bnhwk", plane, relative_table(self.rel_pos_h, rows).to(query.dtype))
        by_column = torch.einsum("bnhwc,wkc->bnhwk", plane, relative_table(self.rel_pos_w, columns).to(query.dtype))
        bias = by_row.unsqueeze(-1) + by_column.unsqueeze(-2)  # (B, heads, rows, columns, rows, columns)
        return bias.reshape(*query.shape[:2], rows * columns, rows * columns)


def relative_table(table: Tensor, side: int) -> Tensor:
    """Relative positions (L, C) as (queries, keys, C) along a side of so many patches, resized linearly where L differs."""
    length = 2 * side - 1
    if len(table) != length:
        table = F.interpolate(table.t().unsqueeze(0), size=length, mode="linear").squeeze(0).t()
    steps = torch.arange(side, device=table.device)
    return table[steps[:, None] - steps[None, :] + side - 1]


def load_weights(net: PlainViT, state: Mapping[str, Tensor]) -> None:
    """Load a state dict under timm's names; raises ValueError for a tensor that is missing or of another shape.

    The class token and the final norm are left out where ``net`` has none; relative positions that ``state`` has not
    stay as they are.
    """
    own = {name: tensor for name, tensor in net.state_dict().items() if name in state or ".attn.rel_pos_" not in name}
    wrong = [name for name, tensor in own.items() if name not in state or state[name].shape != tensor.shape]
    extra = [name for name in state if name not in own and name not in ("cls_token", "norm.weight", "norm.bias")]
    if wrong or extra:
        raise ValueError(
            f"not the weights of this backbone: missing or of another shape {wrong[:5]}, unknown {extra[:5]}"
        )
    net.load_state_dict({name: state[name] for name in own}, strict=False)


def cut_windows(tokens: Tensor, grid: tuple[int, int], window: int) -> Tensor:
    """Tokens (B, h * w, D) to windows (B * h/window * w/window, window * window, D)."""
    batch, _, dim = tokens.shape
    rows, columns = grid[0] // window, grid[1] // window
    cut = tokens.reshape(batch, rows, window, columns, window, dim).transpose(2, 3)
    return cut.reshape(batch * rows * columns, window * window, dim)


def merge_windows(windows: Tensor, grid: tuple[int, int], window: int) -> Tensor:
    """The inverse of ``cut_windows``."""
    rows, columns = grid[0] // window, grid[1] // window
    cut = windows.reshape(-1, rows, columns, window, window, windows.shape[-1]).transpose(2, 3)
    return cut.reshape(-1, grid[0] * grid[1], windows.shape[-1])


def pad(images: Tensor, multiple: int) -> Tensor:
    """Zeros at the right and bottom of images (B, C, H, W), up to multiples of so many pixels."""
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % multiple, 0, -height % multiple))
