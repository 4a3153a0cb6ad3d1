"""Tiles of five bands and 16 bits that a CPU core loads, against tifffile and torchvision's transforms on the same crops.

    python benchmarks/perf/tiff_loader.py [images=200] [side=256] [repeats=5]

Both read the same TIFF files (contiguous bands, deflate with a predictor, as GDAL writes them) in one process with one thread,
and take turns: ours as pretraining reads them, without and with a tag for no data; theirs ``tifffile.imread`` on the bytes, as
float32, ``v2.functional.resized_crop`` (bicubic, antialias) on the very boxes of our crops, mirrored as ours. What is counted is
the process's CPU time a crop. Prints the ratio, and the largest difference of values between both.
"""

from __future__ import annotations

import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import tifffile
import torch
from maelift.core.data.images import opened
from maelift.core.data.pixel_format import PixelFormat
from maelift.core.data.readers.folder import FolderImages
from maelift.core.data.transforms import crop_box, random_crops
from numpy.typing import NDArray
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

BANDS = 5
SIZE = (224, 224)
SCALE = (0.2, 1.0)
RANGE = (0.0, 10000.0)


def tiles(folder: Path, count: int, side: int, *, nodata: bool) -> FolderImages:
    """Tiles of smooth random fields, each band another mixture, with a strip of zeros where zero is no data."""
    generator, names = np.random.default_rng(0), []
    for number in range(count):
        coarse = torch.from_numpy(generator.normal(size=(1, BANDS, side // 8, side // 8)))
        smooth = F.resize(coarse, [side, side], InterpolationMode.BICUBIC, antialias=True)[0]
        values = (2000 + 700 * smooth + 30 * torch.from_numpy(generator.normal(size=smooth.shape))).clamp(1, 9999)
        stored = values.permute(1, 2, 0).numpy().astype(np.uint16)
        if nodata:
            stored[: side // 10] = 0
        name = f"{number:05d}.tif"
        tags = [(42113, 2, 0, "0", True)] if nodata else []
        layout = {"photometric": "minisblack", "planarconfig": "contig", "compression": "deflate", "predictor": 2}
        tifffile.imwrite(folder / name, stored, metadata=None, extratags=tags, **layout)
        names.append(name)
    return FolderImages(folder, tuple(names))


def ours(images: FolderImages, draws: NDArray[np.float64]) -> list[NDArray[np.generic]]:
    """A crop of each tile, (H, W, C)."""
    form = PixelFormat(BANDS, RANGE)
    return [
        random_crops(opened(images, number, form), SIZE, draws[number : number + 1])[0] for number in range(len(images))
    ]


def theirs(images: FolderImages, draws: NDArray[np.float64]) -> list[torch.Tensor]:
    """The same crops, (C, H, W)."""
    found = []
    for number, row in enumerate(draws):
        values = tifffile.imread(io.BytesIO(images.content(number) or b"")).astype(np.float32)
        top, left, height, width = crop_box((values.shape[0], values.shape[1]), row, SCALE)
        picture = torch.from_numpy(values).permute(2, 0, 1)
        crop = F.resized_crop(picture, top, left, height, width, list(SIZE), InterpolationMode.BICUBIC, antialias=True)
        found.append(F.horizontal_flip(crop) if row[4] < 0.5 else crop)
    return found


def seconds(work: Callable[[], object]) -> float:
    """CPU time of the process."""
    began = time.process_time()
    work()
    return time.process_time() - began


def main(words: Sequence[str]) -> None:
    """Measure, and print."""
    keys = {"images": "200", "side": "256", "repeats": "5"}
    keys.update({key: value for key, _, value in (word.partition("=") for word in words)})
    count, side, repeats = (int(keys[key]) for key in ("images", "side", "repeats"))
    torch.set_num_threads(1)
    draws = np.random.default_rng(1).random((count, 5))
    with tempfile.TemporaryDirectory() as name:
        folders = {title: Path(name) / title for title in ("values everywhere", "a strip without data")}
        for title, folder in folders.items():
            folder.mkdir()
            images = tiles(folder, count, side, nodata=title != "values everywhere")
            if title == "values everywhere":
                pairs = zip(ours(images, draws), theirs(images, draws), strict=True)
                most = max(float(np.abs(mine.transpose(2, 0, 1) - other.numpy()).max()) for mine, other in pairs)
                print(f"largest difference of values between both: {most:.2g} of {RANGE[1]:g}")
            times = [
                (seconds(partial(ours, images, draws)), seconds(partial(theirs, images, draws))) for _ in range(repeats)
            ]
            ratios = sorted(slow / fast for fast, slow in times)
            milliseconds = sorted(1000 * fast / count for fast, _ in times)
            print(
                f"{title}: median {statistics.median(milliseconds):.2f} ms a crop ({milliseconds[0]:.2f} to "
                f"{milliseconds[-1]:.2f}); {statistics.median(ratios):.2f} times the rate of tifffile and torchvision "
                f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
