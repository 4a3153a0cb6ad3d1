"""Reconstruction of hidden parts of images, by an encoder and its pretraining decoder (MAE, Figures 2 to 4)."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..core.data.audit import summary_lines, write_rejected
from ..core.data.composite import UNKNOWN, Display, PictureKeys, levels, stretch_ends
from ..core.data.decode import image_file
from ..core.data.image_formats import SUFFIXES
from ..core.data.images import ImageSet, opened
from ..core.data.readers.folder import find_images
from ..core.data.sources import find_images_to_use
from ..core.data.transforms import resized_around_gaps, to_array
from ..core.device import choose_device
from ..core.dry_run import Plan
from ..core.errors import ConfigError, DataError, MaeliftError
from ..core.files import atomic_path, mark_output, output_folder
from ..core.models.decoder_file import DECODER_FILE, read_decoder
from ..core.models.encoder_file import read_encoder
from ..core.notebook import Fact, facts_table
from ..core.progress import progress_logger
from ..core.seeding import torch_stream
from ..core.training.run_dir import check_settings
from .mae import MaskedAutoencoder, autoencoder_from_state_dict, patchify_channels_last
from .masking import Mask, Masking, mask_of, random_mask

logger = logging.getLogger("maelift")

GAP = 4
"""Pixels between the pictures of a comparison."""
EIGHT_BITS = np.array([[0.0, 255.0]])
"""What is black and white in pictures whose values aren't stretched."""


@dataclass(frozen=True)
class ReconstructConfig(PictureKeys):
    """Reconstruct hidden parts of images, and show them beside the originals."""

    encoder: str
    """encoder.safetensors of a pretraining, its decoder.safetensors beside it"""
    images: str
    """image file, folder of images (nested or flat), idx, .npy or .parquet file"""
    out: str
    """folder for the results: a PNG for each image and draw, of the image's size, and comparisons"""
    mask: str | None = None
    """mask image, white where pixels are hidden: one for all, or a folder of such by the images' names; null: random masks"""
    masking: Masking = field(default_factory=Masking)
    draws: int = 1
    """random masks for each image, each reconstructed separately"""
    keep_visible: bool = True
    """leave visible pixels unchanged; false: the decoder's prediction everywhere, at the encoder's resolution"""
    brightness: Literal["neighbours", "truth"] = "neighbours"
    """brightness of hidden patches, which decoders with norm_pix_loss don't predict: interpolated from visible patches near by,
    or that of the hidden truth, for comparison only"""
    compare: bool = True
    """also write NAME.compare.png: the image, its visible part, and the result"""
    seed: int = 0
    """seed of the random masks"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to run; auto: a GPU when there is one"""

    def __post_init__(self) -> None:
        self.check_shown()
        if self.draws < 1:
            raise ConfigError("draws", self.draws, "1 or more")
        if self.mask is not None and self.draws > 1:
            raise ConfigError("draws", self.draws, "1 with mask: the same mask gives the same result each time")
        if self.mask is not None and self.brightness == "truth":
            raise ConfigError("brightness", "truth", "neighbours with mask: the truth under it isn't known")


@dataclass(frozen=True)
class ReconstructResult:
    """Where the results are, how many images were reconstructed, and how many could not be read."""

    out: Path
    count: int
    rejected: int
    brightness: str | None

    def summary(self) -> str:
        """The result in a line or two."""
        broken = f"; {self.rejected} could not be read, see {self._broken}" if self.rejected else ""
        brightness = (
            "" if self.brightness is None else f"\nbrightness and contrast of hidden patches: {self.brightness}"
        )
        return f"reconstructions of {self.count} images: {self.out}{broken}{brightness}"

    @property
    def _broken(self) -> Path:
        return self.out / "rejected.csv"

    def _repr_html_(self) -> str:
        facts: list[Fact] = [("images", f"{self.count}"), ("reconstructions", self.out)]
        if self.rejected:
            facts += [("could not be read", f"{self.rejected}"), ("which", self._broken)]
        if self.brightness is not None:
            facts.append(("brightness and contrast of hidden patches", self.brightness))
        return facts_table("Reconstruction", facts)


def reconstruct(config: ReconstructConfig) -> ReconstructResult:
    """Reconstruct the hidden parts of every image; results that exist already are skipped.

    Raises MaeliftError when model, images or masks can't be read, or ``out`` holds the results of other settings.
    """
    device = choose_device(config.device)
    model = load_autoencoder(config.encoder).to(device).eval()
    images = find_images_to_use(config.images, model.preprocessing.reading.slices)
    masks = None if config.mask is None else _Masks(Path(config.mask))
    if masks is None:
        config.masking.check_grid(model.spec.grid)
    display = Display(model.preprocessing.channel_names, config.shown)
    display.positions(model.spec.channels)  # an error now, not after the first image
    out = output_folder(config.out)
    check_settings(out, config, "reconstructions")
    mark_output(out)
    rejected, names = [], _file_names(images)
    form = replace(model.preprocessing.reading, channels=model.spec.channels, plain=False)
    unusual: dict[str, str] = {}
    progress = progress_logger("reconstruct")
    for number in range(len(images)):
        for draw in range(config.draws):
            path = out / (names[number] + (f".{draw + 1}" if config.draws > 1 else "") + ".png")
            compared = path.with_suffix(".compare.png")
            if path.exists() and (compared.exists() or not config.compare):
                continue
            try:
                found = opened(images, number, form)
                stored = found.pixels()
                unusual[images.name(number)] = "; ".join(found.decoded_notes)
                image = to_array(stored, model.spec.channels)
                hidden = None if masks is None else masks.of(images.name(number), (image.shape[1], image.shape[2]))
                filled = _reconstruct_image(config, model, image, hidden, number, draw)
            except DataError as error:
                rejected.append((images.name(number), str(error)))
                break
            path.parent.mkdir(parents=True, exist_ok=True)
            if config.compare:
                _write(_side_by_side(filled, display, deep=stored.dtype != np.uint8), compared)
            _write(_result(filled, display, gray=stored.shape[2] == 1, deep=found.bits == 16), path)
        progress(number + 1, len(images))
    for line in summary_lines(len(unusual), tuple(unusual.items())):
        logger.warning("reconstruct: %s", line)
    if rejected:
        write_rejected(out / "rejected.csv", rejected)
    if len(rejected) == len(images):
        raise DataError(f"images={config.images}: none of {len(images)} can be read; the first: {rejected[0][1]}")
    return ReconstructResult(out, len(images) - len(rejected), len(rejected), _brightness_source(config, model))


def plan(config: ReconstructConfig) -> Plan:
    """The dry run of ``reconstruct``: what it would do; writes nothing."""
    model = load_autoencoder(config.encoder)
    images = find_images_to_use(config.images, model.preprocessing.reading.slices)
    hidden = f"where {config.mask} is white"
    if config.mask is None:
        config.masking.check_grid(model.spec.grid)
        hidden = f"{config.masking.ratio:.0%} of {model.spec.num_patches} patches, {config.masking.strategy}"
    return Plan(
        (
            ("images", f"{len(images)} in {config.images} (unchecked yet), {config.draws} draws each"),
            ("hidden", hidden),
            ("brightness", _brightness_source(config, model) or "as predicted"),
            ("device", str(choose_device(config.device))),
            ("result", config.out),
        ),
        parameters=sum(p.numel() for p in model.parameters()),
    )


def load_autoencoder(encoder: str | Path) -> MaskedAutoencoder:
    """The masked autoencoder of an encoder file and the decoder file beside it; raises CheckpointError."""
    path = Path(encoder)
    file = read_encoder(path)
    decoder = read_decoder(path.with_name(DECODER_FILE))
    if decoder.encoder != file.content_hash:
        raise MaeliftError(
            f"{path.with_name(DECODER_FILE)}: the decoder of another encoder than {path}. Expected the two files of one "
            "pretraining."
        )
    model = autoencoder_from_state_dict(
        {**file.encoder.state_dict(), **decoder.state},
        num_heads=file.encoder.spec.num_heads,
        decoder_num_heads=decoder.num_heads,
        norm_pix_loss=decoder.norm_pix_loss,
        image_size=file.encoder.spec.image_size,
    )
    model.preprocessing = file.encoder.preprocessing
    return model


@dataclass(frozen=True)
class Reconstruction:
    """Of the image's own size: the image and the result (C, H, W), from 0 to 255, and which pixels are ``hidden`` (H, W)."""

    image: NDArray[np.float32]
    hidden: NDArray[np.bool_]
    result: NDArray[np.float32]


@torch.no_grad()
def _reconstruct_image(
    config: ReconstructConfig,
    model: MaskedAutoencoder,
    image: NDArray[np.generic],
    hidden_pixels: NDArray[np.bool_] | None,
    number: int,
    draw: int,
) -> Reconstruction:
    """Reconstruct an image (C, H, W); ``hidden_pixels`` (H, W) are those of a mask image, None for a random mask."""
    size, grid = (image.shape[1], image.shape[2]), model.spec.grid
    if hidden_pixels is None:
        noise = torch.rand(1, model.spec.num_patches, generator=torch_stream(config.seed, "reconstruct", number, draw))
        mask = random_mask(config.masking.arrange(noise, grid), config.masking.ratio)
        patches = mask.hidden.reshape(grid).bool().numpy()
        unknown = patches[np.ix_(_cells(size[0], grid[0]), _cells(size[1], grid[1]))]
    else:
        unknown = hidden_pixels
        mask = mask_of(torch.from_numpy(_any_in_patch(unknown, grid)).reshape(1, -1))
    device = model.pos_embed.device
    known = image if hidden_pixels is None else _inpainted(image, hidden_pixels)
    pixels = torch.from_numpy(_resized(known, model.spec.image_size)).to(device)
    images = model.preprocessing.normalize(pixels[None])
    moved = mask.to(device)
    pred = model.decode(model.encode(images, moved), moved).float()
    patches_true = patchify_channels_last(images, model.spec.patch_size)
    if model.norm_pix_loss:
        mean, std = _brightness(config, patches_true, moved, grid)
        pred = pred * std + mean
    kept = patches_true if config.keep_visible or not model.predicts_visible else pred
    rebuilt = model.unpatchify(torch.where(moved.hidden.unsqueeze(-1) > 0, pred, kept))
    low, high = model.preprocessing.value_range
    whole = _resized(model.preprocessing.denormalize(rebuilt)[0].cpu().numpy(), size).clip(low, high)
    result = np.where(unknown, whole, image).astype(np.float32) if config.keep_visible else whole
    scaled = [(values - low) * np.float32(255 / (high - low)) for values in (image.astype(np.float32), result)]
    return Reconstruction(scaled[0], unknown, scaled[1])


def _brightness(config: ReconstructConfig, patches: Tensor, mask: Mask, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Mean and deviation (1, N, 1) of the patches (1, N, P): the true ones, or for hidden ones interpolated.

    Interpolation weights visible patches by the inverse square of their distance.
    """
    mean = patches.mean(dim=-1, keepdim=True)
    std = (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()
    if config.brightness == "truth":
        return mean, std
    places = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1])).to(patches)  # (N, 2)
    weights = 1 / torch.cdist(places, places).square().clamp(min=1e-6)  # (N, N)
    weights = weights * (1 - mask.hidden[0])
    weights = weights / weights.sum(dim=1, keepdim=True)
    return (weights @ mean[0])[None], (weights @ std[0])[None]


class _Masks:
    """The mask image of each image: one for all, or those of a folder by the images' names without extension."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: dict[str, Path] | None = None
        if path.is_dir():
            found = find_images(path, "mask")
            self._files = {str(Path(found.name(n)).with_suffix("")): path / found.name(n) for n in range(len(found))}
        elif not path.is_file():
            raise DataError(
                f"mask={path}: no such file. Expected a picture, or a folder of pictures named as the images."
            )

    def of(self, name: str, size: tuple[int, int]) -> NDArray[np.bool_]:
        """(H, W) bool, True where the picture is white, for an image of ``size``.

        Raises DataError where it hides nothing or all, or has other proportions than the image.
        """
        file = self._path if self._files is None else self._files.get(str(Path(name).with_suffix("")))
        if file is None:
            raise DataError(f"mask={self._path}: no mask for {name}. Expected {Path(name).with_suffix('.png')} there.")
        try:
            with image_file(file) as picture:
                hidden: NDArray[np.bool_] = np.asarray(picture.convert("L")) > 127
        except (OSError, ValueError, SyntaxError, DataError) as error:
            raise DataError(
                f"mask={file}: can't be read ({error}). Expected a picture, white where it hides."
            ) from error
        if hidden.all() or not hidden.any():
            what = "everything" if hidden.all() else "nothing"
            raise DataError(f"mask={file}: hides {what}. Expected white pixels where the image is to be filled in.")
        height, width = hidden.shape
        if abs(height * size[1] - width * size[0]) > max(height, width, *size):  # a pixel of rounding
            raise DataError(
                f"mask={file}: {height}×{width} pixels for an image of {size[0]}×{size[1]}; expected its shape."
            )
        scaled = Image.fromarray(hidden).resize((size[1], size[0]), Image.Resampling.NEAREST)
        return np.asarray(scaled, dtype=bool)


def _file_names(images: ImageSet) -> list[str]:
    """File names of the results: the image's name without extension, unless another image has the same."""
    names = [images.name(number).replace("[", "-").replace("]", "") for number in range(len(images))]
    bare = [str(Path(name).with_suffix("")) if Path(name).suffix.lower() in SUFFIXES else name for name in names]
    counts = Counter(bare)
    return [short if counts[short] == 1 else name for short, name in zip(bare, names, strict=True)]


def _brightness_source(config: ReconstructConfig, model: MaskedAutoencoder) -> str | None:
    if not model.norm_pix_loss:
        return None
    if config.brightness == "truth":
        return "of the hidden truth, not predicted by the model (brightness=truth)"
    return "interpolated from visible patches near by, as the model predicts none (norm_pix_loss)"


def _any_in_patch(hidden: NDArray[np.bool_], grid: tuple[int, int]) -> NDArray[np.bool_]:
    """(rows, columns): whether any pixel of a patch is hidden, of an image (H, W)."""
    rows, columns = _cells(hidden.shape[0], grid[0]), _cells(hidden.shape[1], grid[1])
    patches = np.zeros(grid, dtype=bool)
    y, x = np.nonzero(hidden)
    patches[rows[y], columns[x]] = True
    if patches.all():
        raise DataError("mask: every patch has a hidden pixel; the encoder would see nothing. Hide less.")
    return patches


def _cells(pixels: int, patches: int) -> NDArray[np.int64]:
    """The index of the patch that each of ``pixels`` pixels in a row belongs to, (pixels,)."""
    return np.minimum((np.arange(pixels) + 0.5) * patches / pixels, patches - 1).astype(np.int64)


def _resized(image: NDArray[np.generic], size: tuple[int, int]) -> NDArray[np.float32]:
    """An image (C, H, W) resized to (height, width), without keeping its aspect ratio."""
    values = image.astype(np.float32)
    if values.shape[1:] == size:
        return values
    found = resized_around_gaps(values, lambda planes: np.stack([_resized_plane(plane, size) for plane in planes]), 0)
    return found.astype(np.float32)


def _resized_plane(plane: NDArray[np.generic], size: tuple[int, int]) -> NDArray[np.float32]:
    picture = Image.fromarray(plane.astype(np.float32))
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _inpainted(image: NDArray[np.generic], hidden: NDArray[np.bool_]) -> NDArray[np.generic]:
    """An image (C, H, W) with hidden pixels (H, W) set to the nearest visible one, since resizing mixes neighbours."""
    from scipy.ndimage import distance_transform_edt

    rows, columns = distance_transform_edt(hidden, return_distances=False, return_indices=True)
    return np.ascontiguousarray(image[:, rows, columns])


def _result(filled: Reconstruction, display: Display, *, gray: bool, deep: bool) -> Image.Image:
    """The result as a picture: gray if the image was, with 16 bits if it was gray and had them; of more channels a composite."""
    result = filled.result.mean(axis=0, keepdims=True) if gray else filled.result
    if deep and len(result) == 1:
        return Image.fromarray((result[0].clip(0, 255) * (65535 / 255)).round().astype(np.uint16))
    ends = EIGHT_BITS if len(result) in (1, 3) else stretch_ends(_channels_last(filled.image))
    return display.image(levels(_channels_last(result), ends))


def _side_by_side(filled: Reconstruction, display: Display, *, deep: bool) -> Image.Image:
    """The image, its visible part and the result, ``deep`` values stretched by the image's percentiles."""
    image, result = (_channels_last(values) for values in (filled.image, filled.result))
    ends = stretch_ends(image) if deep else EIGHT_BITS
    shown, made = levels(image, ends), levels(result, ends)
    seen = np.where(filled.hidden[:, :, None], np.uint8(UNKNOWN), shown)
    pictures = [display.with_tiles(display.image(values).convert("RGB"), values) for values in (shown, seen, made)]
    width, height = pictures[0].size
    sheet = Image.new("RGB", (len(pictures) * (width + GAP) - GAP, height), "white")
    for place, picture in enumerate(pictures):
        sheet.paste(picture, (place * (width + GAP), 0))
    return sheet


def _channels_last(values: NDArray[np.float32]) -> NDArray[np.float32]:
    last: NDArray[np.float32] = values.transpose(1, 2, 0)
    return last


def _write(picture: Image.Image, path: Path) -> None:
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")
