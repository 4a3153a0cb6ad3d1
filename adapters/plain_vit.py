"""A plain ViT as a backbone for dense tasks, its simple feature pyramid, and torchvision's detectors on it (ViTDet, Sec. 3).

Needs torch and torchvision only, and nothing of maelift: exports carry this file with them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign, StochasticDepth


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
        self.patch_size, self.embed_dim, self.depth = patch_size, embed_dim, depth
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
        whole = relative_grid or self.grid
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                mlp_ratio,
                norm_eps,
                window=0 if number in everywhere else window_size,
                drop_path=drop_path * number / max(1, depth - 1),
                relative_grid=whole if use_rel_pos else None,
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


class SimpleFeaturePyramid(nn.Module):
    """The last map of a plain ViT at several strides: ``{"0": (B, C, H/4, W/4), …}`` for patch 16 (ViTDet, Sec. 3).

    ``scale_factors`` (4, 2, 1, 0.5) multiply the map's resolution; "pool" halves the coarsest once more, for the region
    proposals. Images are padded at the right and bottom to ``size_divisibility``; nothing is cut off. Parameters bear the
    names of detectron2's module of this name, the backbone's under ``net``.
    """

    def __init__(
        self,
        net: PlainViT,
        out_channels: int = 256,
        scale_factors: Sequence[float] | None = None,
        top_pool: bool = True,
    ) -> None:
        super().__init__()
        factors = tuple(usual_scales(net.patch_size) if scale_factors is None else scale_factors)
        strides = [net.patch_size / factor for factor in factors]
        if any(stride != int(stride) for stride in strides):
            raise ValueError(
                f"patches of {net.patch_size} pixels at scales {factors} give strides of {strides} pixels: expected whole "
                f"numbers; take scale_factors={usual_scales(net.patch_size)}"
            )
        self.net, self.out_channels, self.top_pool = net, out_channels, top_pool
        self.transform_settings: dict[str, Any] = {}  # how torchvision's detectors resize and normalise images for it
        self.strides = tuple(int(stride) for stride in strides)
        self.stages = [f"simfp_{stride_name(stride)}" for stride in self.strides]
        for name, factor in zip(self.stages, factors, strict=True):
            self.add_module(name, pyramid_stage(net.embed_dim, out_channels, factor))

    @property
    def size_divisibility(self) -> int:
        """Pixels that both sides of an image are padded to multiples of."""
        return math.lcm(self.net.size_divisibility, *self.strides)

    @property
    def level_names(self) -> list[str]:
        """The names of the levels that boxes are pooled from."""
        return [str(number) for number in range(len(self.strides))]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.net(pad(images, self.size_divisibility))[-1]
        levels = {
            name: self.get_submodule(stage)(features) for name, stage in zip(self.level_names, self.stages, strict=True)
        }
        if self.top_pool:
            levels["pool"] = F.max_pool2d(levels[self.level_names[-1]], kernel_size=1, stride=2)
        return levels


def usual_scales(patch_size: int) -> tuple[float, ...]:
    """ViTDet's four scales; without the finest where the patch has no whole quarter or half."""
    return tuple(factor for factor in (4.0, 2.0, 1.0, 0.5) if patch_size % factor == 0)


def stride_name(stride: int) -> str:
    """The exponent of a stride that is a power of two, as detectron2 numbers its levels; else the stride in pixels."""
    return str(int(math.log2(stride))) if stride & (stride - 1) == 0 else f"stride{stride}"


def pyramid_stage(dim: int, out_channels: int, factor: float) -> nn.Sequential:
    """Resample a map (B, dim, h, w) by ``factor``, then a 1×1 and a 3×3 convolution, each with a norm."""
    layers: list[nn.Module]
    if factor == 4.0:
        layers = [
            nn.ConvTranspose2d(dim, dim // 2, 2, 2),
            ChannelNorm(dim // 2),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 2, dim // 4, 2, 2),
        ]
        dim = dim // 4
    elif factor == 2.0:
        layers = [nn.ConvTranspose2d(dim, dim // 2, 2, 2)]
        dim = dim // 2
    elif factor == 1.0:
        layers = []
    elif factor == 0.5:
        layers = [nn.MaxPool2d(2, 2)]
    else:
        raise ValueError(f"scale factor {factor}: expected 4, 2, 1 or 0.5")
    return nn.Sequential(
        *layers, NormedConv(dim, out_channels, 1), NormedConv(out_channels, out_channels, 3, padding=1)
    )


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of (B, C, H, W)."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, features: Tensor) -> Tensor:
        moved = features.movedim(1, -1)
        return F.layer_norm(moved, self.weight.shape, self.weight, self.bias, self.eps).movedim(-1, 1)


class NormedConv(nn.Conv2d):
    """A convolution without bias, and a norm over its channels."""

    def __init__(self, channels: int, out_channels: int, kernel_size: int, padding: int = 0) -> None:
        super().__init__(channels, out_channels, kernel_size, padding=padding, bias=False)
        self.norm = ChannelNorm(out_channels)

    def forward(self, features: Tensor) -> Tensor:
        return self.norm(super().forward(features))  # type: ignore[no-any-return]


class PyramidRoIAlign(MultiScaleRoIAlign):  # type: ignore[misc]
    """RoIAlign with the true strides: torchvision's rounds them to powers of two, and pools patches of 14 wrongly."""

    def __init__(self, strides: Sequence[int], output_size: int, sampling_ratio: int = 2) -> None:
        super().__init__([str(number) for number in range(len(strides))], output_size, sampling_ratio)
        self.scales: list[float] = [1 / stride for stride in strides]
        self.map_levels: BoxLevels = BoxLevels(strides)


class BoxLevels:
    """The pyramid level for each box: 224 pixels a side go to stride 16, by powers of two (FPN, Eq. 1)."""

    def __init__(self, strides: Sequence[int]) -> None:
        self.finest, self.count = strides[0], len(strides)

    def __call__(self, boxlists: list[Tensor]) -> Tensor:
        boxes = torch.cat(boxlists)
        side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
        level = torch.floor(torch.log2(side * 16 / 224 / self.finest) + 1e-6)
        return level.clamp(0, self.count - 1).to(torch.int64)


@dataclass(frozen=True)
class Heads:
    """The widths of a detector's heads; the defaults are ViTDet's (Appendix A.2), smaller ones suit small images.

    ``channels``: of every convolution of the box and mask heads; ``box_convs``, ``mask_convs``, ``rpn_convs``: how many;
    ``fc_dim``: the box head's linear layer. ``anchor_sizes``: the side of each level's anchors in pixels, finest first;
    None: eight strides.
    """

    channels: int = 256
    box_convs: int = 4
    fc_dim: int = 1024
    mask_convs: int = 4
    rpn_convs: int = 2
    anchor_sizes: tuple[float, ...] | None = None


def faster_rcnn(
    backbone: SimpleFeaturePyramid, num_classes: int, *, heads: Heads = Heads(), **settings: Any
) -> FasterRCNN:
    """torchvision's Faster R-CNN on the pyramid, with ViTDet's heads; ``num_classes`` counts the background, as there.

    ``settings`` are those of ``torchvision.models.detection.FasterRCNN`` and win over ours. Images are (C, H, W) in 0..1;
    they are resized and normalised as ``backbone.transform_settings`` says, which comes from the encoder's contract.
    """
    return FasterRCNN(backbone, **{**detector_settings(backbone, num_classes, heads), **settings})


def mask_rcnn(backbone: SimpleFeaturePyramid, num_classes: int, *, heads: Heads = Heads(), **settings: Any) -> MaskRCNN:
    """torchvision's Mask R-CNN on the pyramid; as ``faster_rcnn``."""
    defaults = detector_settings(backbone, num_classes, heads) | {
        "mask_roi_pool": PyramidRoIAlign(backbone.strides, 14),
        "mask_head": MaskRCNNHeads(
            backbone.out_channels, [heads.channels] * heads.mask_convs, 1, norm_layer=ChannelNorm
        ),
        "mask_predictor": MaskRCNNPredictor(
            heads.channels if heads.mask_convs else backbone.out_channels, heads.channels, num_classes
        ),
    }
    return MaskRCNN(backbone, **{**defaults, **settings})


def detector_settings(backbone: SimpleFeaturePyramid, num_classes: int, heads: Heads) -> dict[str, Any]:
    """What torchvision's detectors need to fit the pyramid: anchors, heads, true strides, sizes; raises ValueError."""
    levels = pyramid_levels(backbone)
    sizes = tuple(8.0 * stride for stride in levels) if heads.anchor_sizes is None else heads.anchor_sizes
    if len(sizes) != len(levels):
        raise ValueError(f"{len(sizes)} anchor sizes for levels of strides {levels}: expected one a level")
    anchors = AnchorGenerator(tuple((size,) for size in sizes), ((0.5, 1.0, 2.0),) * len(levels))
    channels = backbone.out_channels
    box_head = FastRCNNConvFCHead(
        (channels, 7, 7), [heads.channels] * heads.box_convs, [heads.fc_dim], norm_layer=ChannelNorm
    )
    return {
        "rpn_anchor_generator": anchors,
        "rpn_head": RPNHead(channels, anchors.num_anchors_per_location()[0], conv_depth=heads.rpn_convs),
        "box_roi_pool": PyramidRoIAlign(backbone.strides, 7),
        "box_head": box_head,
        "box_predictor": FastRCNNPredictor(heads.fc_dim, num_classes),
        "size_divisible": backbone.size_divisibility,
        **backbone.transform_settings,
    }


def pyramid_levels(backbone: SimpleFeaturePyramid) -> list[int]:
    """The strides in pixels of all levels that regions are proposed on, the extra one included."""
    return [*backbone.strides, *([2 * backbone.strides[-1]] if backbone.top_pool else [])]


def load_backbone(folder: str | Path, *, pretrained: bool = True, **changes: Any) -> SimpleFeaturePyramid:
    """The backbone of an export folder (``backbone.json``, ``backbone.pth``), with a new pyramid.

    ``changes`` are keywords of PlainViT, or ``out_channels`` and ``scale_factors`` of the pyramid. ``pretrained=False``
    gives the same network with new weights, the baseline to compare with.
    """
    settings = json.loads((Path(folder) / "backbone.json").read_text())
    arguments = {**settings["backbone"], **changes}
    pyramid = {key: arguments.pop(key) for key in ("out_channels", "scale_factors") if key in arguments}
    net = PlainViT(**{**arguments, "image_size": tuple(arguments["image_size"])})
    if pretrained:
        load_weights(net, torch.load(Path(folder) / "backbone.pth", map_location="cpu", weights_only=True))
    backbone = SimpleFeaturePyramid(net, **pyramid)
    backbone.transform_settings = settings["transform"]
    return backbone


def load_weights(net: PlainViT, state: Mapping[str, Tensor]) -> None:
    """Load a state dict under timm's names; raises ValueError for a tensor that is missing or of another shape.

    The class token and the final norm stay behind where ``net`` has none; relative positions that ``state`` has not
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
