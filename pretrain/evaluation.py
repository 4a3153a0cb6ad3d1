"""Evaluations of a masked autoencoder in training: held-out loss on fixed masks, reconstructions, online probes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..core.data.composite import UNKNOWN, Display, levels, picture_grid, stretch_ends
from ..core.data.images import ImageSet
from ..core.data.sampling import MakeSample
from ..core.data.transforms import Pixels
from ..core.files import atomic_path
from ..core.models.preprocessing import Preprocessing, known_pixels
from ..core.seeding import torch_stream
from ..core.training.batch_sheet import enlarged, shown_ends
from ..core.training.schedule import evenly_spaced_steps
from .config import PretrainConfig
from .data import Source
from .mae import MaeOutput, MaskedAutoencoder
from .masking import Masking
from .online_probe import ProbeImages, evaluate_probes

PICTURE_FILE = "reconstruction.png"
PICTURE_FOLDER = "reconstructions"
SHOWN = 8
"""Images in a picture of reconstructions."""
COLUMNS, GAP = 3, 4


@dataclass(frozen=True)
class Evaluator:
    """The evaluations of a run: ``labeled`` are the images of its probes; pictures are written to ``folder``."""

    source: Source
    folder: Path
    labeled: ProbeImages | None
    steps: int

    @property
    def at_steps(self) -> frozenset[int]:
        """The steps after which there is an evaluation."""
        return self._loss_steps | self._probe_steps

    @property
    def _loss_steps(self) -> frozenset[int]:
        return evenly_spaced_steps(self.steps, self.source.config.evaluations)

    @property
    def _probe_steps(self) -> frozenset[int]:
        return (
            evenly_spaced_steps(self.steps, self.source.config.probe.times) if self.labeled is not None else frozenset()
        )

    def evaluate(self, model: MaskedAutoencoder, step: int) -> dict[str, float]:
        """The metrics of a model after ``step`` steps, by name; writes the pictures of its reconstructions."""
        source, config, metrics = self.source, self.source.config, {}
        if step in self._loss_steps:
            self._save_picture(model, step)
            if (count := len(source.held_out)) > 0:
                metrics["held_out/loss"] = held_out_loss(model, source.center, count, config)
        if step in self._probe_steps and self.labeled is not None:
            metrics |= evaluate_probes(model, self.labeled, config.probe.kinds, self._pixels, config.seed)
        return metrics

    def _pixels(self, images: ImageSet, index: int) -> Pixels:
        return self.source.fitted(images, index).pixels

    def _save_picture(self, model: MaskedAutoencoder, step: int) -> None:
        picture = reconstruction_picture(model, self.source.shown, shown_count(self.source), self.source.config)
        pictures = self.folder / PICTURE_FOLDER
        pictures.mkdir(exist_ok=True)
        for path in (pictures / f"step-{step:08d}.png", self.folder / PICTURE_FILE):
            with atomic_path(path) as temporary:
                picture.save(temporary, format="PNG")


def shown_count(source: Source) -> int:
    """The number of images in a picture of reconstructions."""
    return min(SHOWN, len(source.held_out) or len(source.pool))


def fixed_noise(seed: int, count: int, masking: Masking, grid: tuple[int, int]) -> Tensor:
    """The noise of the held-out masks, (count, N): the same in every evaluation of a run."""
    noise = torch.rand(count, grid[0] * grid[1], generator=torch_stream(seed, "held-out masks"))
    return masking.arrange(noise, grid)


@torch.no_grad()
def held_out_loss(
    model: MaskedAutoencoder, make: MakeSample, count: int, config: PretrainConfig, batch_size: int = 128
) -> float:
    """The mean loss over ``count`` held-out images under fixed masks, in the units of the training loss."""
    noise = fixed_noise(config.seed, count, config.masking, model.spec.grid)
    total = 0.0
    for start, images, known in _batches(model, make, count, batch_size):
        output = _predict(model, images, noise[start : start + len(images)], config, known)
        total += float(output.loss) * len(images)
    return total / count


@torch.no_grad()
def reconstruction_picture(
    model: MaskedAutoencoder, make: MakeSample, count: int, config: PretrainConfig
) -> Image.Image:
    """A picture with a row for each image: the original, the visible patches, and the reconstruction.

    Visible patches of the reconstruction are the original's. With a normalised target each hidden patch gets the
    brightness and contrast of the true one, since the model does not predict them. Which channels are shown: ``config.shown``.
    Values of more than 8 bits are stretched by the percentiles of the original in the full row; pixels without a value are gray.
    """
    _, images, known = next(_batches(model, make, count, count))
    output = _predict(model, images, fixed_noise(config.seed, count, config.masking, model.spec.grid), config)
    hidden = model.unpatchify(output.mask.unsqueeze(-1).expand(-1, -1, model.spec.patch_size**2 * model.spec.channels))
    original = model.preprocessing.denormalize(images)
    if known is not None:
        original = original.masked_fill(~known, torch.nan)
    rebuilt = model.preprocessing.denormalize(model.reconstruct(images, output))
    display = Display(model.preprocessing.channel_names, config.shown)
    stacks = (_channels_last(values) for values in (original, rebuilt, hidden))
    rows = zip(*stacks, strict=True)
    tiles = [_row(image, made, mask, model.preprocessing, display) for image, made, mask in rows]
    return picture_grid([tile for row in tiles for tile in row], COLUMNS, GAP)


def _row(
    original: NDArray[np.float32],
    rebuilt: NDArray[np.float32],
    hidden: NDArray[np.float32],
    preprocessing: Preprocessing,
    display: Display,
) -> list[Image.Image]:
    """The pictures of an image, all arrays (H, W, C): itself, its visible patches, and the reconstruction."""
    known = shown_ends(preprocessing)
    ends = stretch_ends(original) if known is None else known
    seen, made = levels(original, ends), levels(rebuilt, ends)
    masked = np.where(hidden > 0, np.uint8(UNKNOWN), seen)
    return [
        display.with_tiles(enlarged(display.image(values).convert("RGB")), values) for values in (seen, masked, made)
    ]


def _channels_last(images: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = images.permute(0, 2, 3, 1).float().cpu().numpy()
    return array


def picture_columns(sheet: Image.Image, rows: int) -> list[list[Image.Image]]:
    """The tiles of a picture of ``rows`` images: the originals, the visible patches, the reconstructions."""
    width, height = (sheet.width - 2 * GAP) // COLUMNS, (sheet.height - (rows - 1) * GAP) // rows
    corners = [[(column * (width + GAP), row * (height + GAP)) for row in range(rows)] for column in range(COLUMNS)]
    return [[sheet.crop((x, y, x + width, y + height)) for x, y in column] for column in corners]


def loading_advice(config: PretrainConfig, workers: int) -> str:
    """What to change when training waits for images."""
    cores = os.cpu_count() or 1
    ways = []
    if workers == 0:
        ways.append(
            f"workers=0: the training process itself loads the images, between steps; set workers=N (of {cores} cores)"
        )
    elif workers < cores:
        ways.append(f"set more workers (now {workers}, of {cores} cores)")
    else:
        ways.append(f"all {cores} cores load images already (workers={workers})")
    if workers and config.device != "cuda" and not torch.cuda.is_available() and torch.get_num_threads() > 1:
        ways.append(
            f"leave cores to the workers: torch uses {torch.get_num_threads()} threads; OMP_NUM_THREADS=N sets fewer"
        )
    ways.append("pack the images into shards on a fast disk (maelift data pack)")
    if config.crops_per_image == 1:
        ways.append("train on several crops of each image that is decoded (crops_per_image=4)")
    return f"What helps: {'; '.join(ways)}."


def _predict(
    model: MaskedAutoencoder, images: Tensor, noise: Tensor, config: PretrainConfig, known: Tensor | None = None
) -> MaeOutput:
    return model.predict(images, config.masking.ratio, noise.to(images.device), known)


def _batches(
    model: MaskedAutoencoder, make: MakeSample, count: int, batch_size: int
) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """Normalised images from number to number, and which pixels have a value (``known_pixels``)."""
    for start in range(0, count, batch_size):
        pixels = np.stack([make(index, np.empty(0)).pixels for index in range(start, min(start + batch_size, count))])
        stored = torch.from_numpy(pixels).to(model.pos_embed.device)
        yield start, model.preprocessing.normalize(stored), known_pixels(stored)
