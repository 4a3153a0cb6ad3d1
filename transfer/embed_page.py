"""The page of maelift embed: maps of the images, nearest neighbours, maps of patch tokens and of attention."""

from __future__ import annotations

import io
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..core.data.composite import Display
from ..core.data.pixel_format import Picture
from ..core.files import atomic_write_bytes
from ..core.optional_imports import installed_versions
from ..core.progress import progress_logger
from ..core.public_names import public_config
from ..core.report.html import data_url, describe_machine, keys_table, render
from ..core.seeding import stream
from ..core.yaml_files import to_dict
from ..version import __version__
from .embed_config import EmbedConfig
from .embed_images import FittedEncoder, NamedImages
from .embed_map import FeatureMap, pca_map, tsne_map
from .feature_files import FeatureTable
from .neighbours import nearest_neighbours
from .token_maps import attention_pictures, token_pictures
from .visualize import ExampleImage, class_colours

logger = logging.getLogger("maelift")

MAPPED = 2000
"""Images that the maps are computed of, drawn where there are more."""
DRAWN = 400
"""Of these, those that are drawn as thumbnails; the others are points."""
QUERIES, NEAREST, INSIDE = 6, 5, 6
"""Images whose neighbours are shown, and how many; images whose tokens are shown."""
THUMBNAIL, SHOWN = 48, 160
"""Pixels of a thumbnail's side, and of a larger picture's longer one."""
COLUMNS = 20
"""Thumbnails in a row of the sheet that holds them."""
COLOURED = 20
"""Classes that have a colour on the maps, the most frequent ones; others are gray."""
OTHERS = "var(--quiet)"


@dataclass(frozen=True, eq=False)
class _Gallery:
    """The images as the page shows them: the part that the encoder gets, by row of the table of features."""

    config: EmbedConfig
    fitted: FittedEncoder
    images: NamedImages
    table: FeatureTable
    kept: NDArray[np.int64]

    def pixels(self, row: int) -> Picture:
        """The pixels (H, W, C) of an image that the encoder gets."""
        found, _ = self.fitted.pixels(self.images.images, int(self.kept[row]))
        last: Picture = found.transpose(1, 2, 0)
        return last

    def picture(self, row: int) -> Image.Image:
        """The image in RGB."""
        return (
            Display(self.fitted.encoder.preprocessing.channel_names, self.config.shown)
            .image(self.pixels(row))
            .convert("RGB")
        )

    def label(self, row: int) -> str:
        """The image's class; empty where none is known."""
        return "" if self.table.labels is None else self.table.labels[row] or "no class"

    def caption(self, row: int) -> str:
        """The image's name, and its class where that is known."""
        label = self.label(row)
        return f"{self.table.names[row]} ({label})" if label else self.table.names[row]

    def normalised(self, rows: Sequence[int], device: torch.device) -> torch.Tensor:
        """The encoder's input (B, C, H, W)."""
        pixels = torch.from_numpy(np.stack([self.pixels(row).transpose(2, 0, 1) for row in rows]))
        return self.fitted.encoder.preprocessing.normalize(pixels.to(device))


def write_page(
    path: Path,
    config: EmbedConfig,
    fitted: FittedEncoder,
    images: NamedImages,
    table: FeatureTable,
    kept: NDArray[np.int64],
    device: torch.device,
) -> None:
    """Write the page of a table of features, whose rows are the images numbered ``kept``; it needs nothing from elsewhere."""
    gallery = _Gallery(config, fitted, images, table, kept)
    count = len(kept)
    order = stream(config.seed, "images on the page of features").permutation(count)
    mapped, drawn = order[:MAPPED], order[:DRAWN]
    maps = [pca_map(table.features[mapped]), tsne_map(table.features[mapped], config.seed)]
    colours, legend = _class_colours(gallery, mapped)
    display = Display(fitted.encoder.preprocessing.channel_names, config.shown)
    html = render(
        Path(__file__).with_name("embed.html.j2"),
        title=f"Features of images: {path.stem}",
        headline=f"{count:,} images as vectors of {table.features.shape[1]:,} numbers",
        encoder=f"{table.metadata['encoder']}, {fitted.encoder.size_text()}, features: {table.metadata['features']}",
        shown_channels=display.caption(len(fitted.encoder.preprocessing.mean)),
        rejected=len(images) - count,
        maps=[_drawn_map(one, colours, gallery, mapped) for one in maps if isinstance(one, FeatureMap)],
        missing=[one for one in maps if isinstance(one, str)],
        mapped=len(mapped),
        drawn=len(drawn),
        count=count,
        seed=config.seed,
        sheet=_sheet(gallery, drawn),
        columns=COLUMNS,
        legend=legend,
        **_neighbours(gallery, order[:QUERIES], device),
        **_inside(gallery, order[:INSIDE], device),
        keys=keys_table(public_config(to_dict(config))),
        machine=describe_machine(),
        versions={"maelift": __version__, **installed_versions("torch", "timm", "numpy", "scikit-learn")},
    )
    atomic_write_bytes(path, html.encode("utf-8", "replace"))  # file names need not be UTF-8


def _class_colours(gallery: _Gallery, rows: NDArray[np.int64]) -> tuple[dict[str, str], list[tuple[str, str, int]]]:
    """The colour of each class on the maps, and the legend: its name, colour, and images on the maps."""
    if gallery.table.labels is None:
        return {}, []
    known = gallery.images.classes
    by_class = dict(zip(known, ("#{:02x}{:02x}{:02x}".format(*colour) for colour in class_colours(known)), strict=True))
    counts = Counter(gallery.table.labels[row] for row in rows)
    frequent = [name for name, _ in counts.most_common() if name in by_class][:COLOURED]
    legend = [(name, by_class[name], counts[name]) for name in sorted(frequent, key=list(known).index)]
    if (others := sum(counts.values()) - sum(number for _, _, number in legend)) > 0:
        legend.append(("other classes, several, or none", OTHERS, others))
    return {name: by_class[name] for name in frequent}, legend


def _drawn_map(
    found: FeatureMap, colours: dict[str, str], gallery: _Gallery, rows: NDArray[np.int64]
) -> dict[str, Any]:
    """A map as the template draws it: (x, y, caption, colour) of its points, in percent from the upper left corner."""
    labels = gallery.table.labels
    points = [
        (
            f"{100 * x:.2f}",
            f"{100 * (1 - y):.2f}",
            gallery.caption(row),
            OTHERS if labels is None else colours.get(labels[row], OTHERS),
        )
        for (x, y), row in zip(found.places, rows.tolist(), strict=True)
    ]
    return {"title": found.title, "words": found.words, "points": points}


def _sheet(gallery: _Gallery, rows: NDArray[np.int64]) -> str:
    """The thumbnails of all drawn images in one picture, ``COLUMNS`` in a row."""
    sheet = Image.new("RGB", (COLUMNS * THUMBNAIL, -(-len(rows) // COLUMNS) * THUMBNAIL), "white")
    log_progress = progress_logger("embed, page")
    for place, row in enumerate(rows.tolist()):
        thumbnail = gallery.picture(row).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
        sheet.paste(thumbnail, (place % COLUMNS * THUMBNAIL, place // COLUMNS * THUMBNAIL))
        log_progress(place + 1, len(rows))
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=85)
    return data_url(file.getvalue(), "jpeg")


def _neighbours(gallery: _Gallery, rows: NDArray[np.int64], device: torch.device) -> dict[str, Any]:
    """The nearest neighbours of some images, as (picture, name, class, cosine) each; and how often classes agree, over all."""
    table = gallery.table
    k = min(NEAREST, len(table.names) - 1)
    if k < 1:
        return {"queries": [], "agreement": ""}
    near = nearest_neighbours(table.features, k, device, rows.tolist())
    queries = [
        [
            (_shown(gallery.picture(row)), table.names[row], gallery.label(row), cosine)
            for row, cosine in zip([query, *numbers], ["", *(f"{value:.3f}" for value in cosines)], strict=True)
        ]
        for query, numbers, cosines in zip(rows.tolist(), near.numbers.tolist(), near.cosines, strict=True)
    ]
    return {"queries": queries, "agreement": _agreement(table)}


def _agreement(table: FeatureTable) -> str:
    """How many images have the class of their nearest neighbour, in a sentence; empty where either isn't known."""
    if table.labels is None or table.neighbours is None:
        return ""
    pairs = zip(table.labels, table.neighbours.numbers[:, 0].tolist(), strict=True)
    same = sum(label == table.labels[number] for label, number in pairs)
    splits = sorted(set(table.splits or ()))
    return (
        f"Of {len(table.labels):,} images ({'split ' if len(splits) == 1 else 'splits '}{', '.join(splits)}), {same:,} "
        f"({100 * same / len(table.labels):.1f} %) have the class of their nearest neighbour among all the others; one encoder, "
        "no training."
    )


def _inside(gallery: _Gallery, rows: NDArray[np.int64], device: torch.device) -> dict[str, Any]:
    """Maps of the patch tokens of some images and, where there is such attention, of the class token's attention."""
    encoder = gallery.fitted.encoder
    pixels = gallery.normalised(rows.tolist(), device)
    tokens, attention = token_pictures(encoder, pixels), attention_pictures(encoder, pixels)
    figures = []
    for place, row in enumerate(rows.tolist()):
        parts = [(_shown(gallery.picture(row)), "image")]
        if tokens is not None:
            parts.append((_shown(Image.fromarray(tokens[place])), "patch tokens"))
        if attention is not None:
            share = attention[1][place]
            parts.append((_shown(Image.fromarray(attention[0][place])), f"attention, {100 * share:.0f} % on patches"))
        figures.append((gallery.caption(row), parts))
    return {
        "inside": figures if tokens is not None or attention is not None else [],
        "has_attention": attention is not None,
    }


def _shown(image: Image.Image) -> str:
    """A picture as a data URL, its longer side ``SHOWN`` pixels, or as many as make whole pixels of it."""
    scale = SHOWN / max(image.size)
    scale = max(1, round(scale)) if scale > 1 else scale
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    size = [max(1, round(side * scale)) for side in image.size]
    found = ExampleImage.of(image.resize((size[0], size[1]), how), "", True)
    return data_url(found.data, found.kind)
