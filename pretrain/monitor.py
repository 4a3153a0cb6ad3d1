"""Looking at a masked autoencoder: the held-out masked loss on fixed masks, and pictures of reconstructions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..core.batches import MakeSample
from ..core.randomness import torch_stream
from .mae import MaskedAutoencoder
from .masking import Masking

PICTURE_SIDE = 112
"""Images smaller than this many pixels are enlarged in pictures."""
GAP = 4


def fixed_noise(seed: int, count: int, masking: Masking, grid: tuple[int, int]) -> Tensor:
    """The noise behind the held-out masks, (count, N): the same at every evaluation of a run."""
    noise = torch.rand(count, grid[0] * grid[1], generator=torch_stream(seed, "held-out masks"))
    return masking.arrange(noise, grid)


@torch.no_grad()
def held_out_loss(
    model: MaskedAutoencoder, make: MakeSample, count: int, masking: Masking, seed: int, batch_size: int = 128
) -> float:
    """The mean loss over ``count`` held-out images under fixed masks, in the units of the training loss."""
    noise = fixed_noise(seed, count, masking, model.spec.grid)
    total = 0.0
    for start, images in _batches(model, make, count, batch_size):
        part = noise[start : start + len(images)].to(images.device)
        total += float(model(images, masking.ratio, part).loss) * len(images)
    return total / count


@torch.no_grad()
def reconstruction_picture(
    model: MaskedAutoencoder, make: MakeSample, count: int, masking: Masking, seed: int
) -> Image.Image:
    """A picture with a row an image: the original, what the encoder sees, and the reconstruction.

    Visible patches of the reconstruction are the original's. With a normalised target each hidden patch is given the
    brightness and contrast of the true one, since the model does not predict them.
    """
    images = next(_batches(model, make, count, count))[1]
    output = model(images, masking.ratio, fixed_noise(seed, count, masking, model.spec.grid).to(images.device))
    hidden = model.unpatchify(output.mask.unsqueeze(-1).expand(-1, -1, model.spec.patch_size**2 * model.spec.channels))
    original = model.preprocessing.denormalize(images)
    grey = sum(model.preprocessing.value_range) / 2
    masked = torch.where(hidden > 0, torch.full_like(original, grey), original)
    rebuilt = model.preprocessing.denormalize(model.reconstruct(images, output))
    low, high = model.preprocessing.value_range
    columns = [((column - low) / (high - low)).clamp(0, 1) for column in (original, masked, rebuilt)]
    return _sheet(torch.stack(columns, dim=1))  # (B, 3, C, H, W)


def _batches(model: MaskedAutoencoder, make: MakeSample, count: int, batch_size: int) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, count, batch_size):
        pixels = np.stack([make(index, np.empty(0)).pixels for index in range(start, min(start + batch_size, count))])
        device = model.pos_embed.device
        yield start, model.preprocessing.normalize(torch.from_numpy(pixels).to(device))


def _sheet(rows: Tensor) -> Image.Image:
    """Images (rows, columns, C, H, W) in [0, 1] side by side on white; the first or the first three channels."""
    rows = rows[:, :, :3] if rows.shape[2] >= 3 else rows[:, :, :1].expand(-1, -1, 3, -1, -1)
    values = (rows.float().cpu().numpy() * 255).round().astype(np.uint8).transpose(0, 1, 3, 4, 2)
    height, width = values.shape[2:4]
    scale = max(1, -(-PICTURE_SIDE // max(height, width)))
    step_down, step_right = height * scale + GAP, width * scale + GAP
    sheet = Image.new("RGB", (values.shape[1] * step_right - GAP, values.shape[0] * step_down - GAP), "white")
    for row, column in np.ndindex(values.shape[:2]):
        tile = Image.fromarray(values[row, column]).resize((width * scale, height * scale), Image.Resampling.NEAREST)
        sheet.paste(tile, (column * step_right, row * step_down))
    return sheet
