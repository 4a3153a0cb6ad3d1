"""Prediction: a trained model and images in; a CSV, COCO JSON or mask PNGs out, and drawn images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from ..core.data.audit import named_broken, summary_lines, write_rejected
from ..core.data.composite import Display
from ..core.data.images import ImageSet, opened
from ..core.data.pixel_format import PixelFormat, image_of
from ..core.data.sources import find_images_to_use
from ..core.device import autocast, choose_device
from ..core.dry_run import Plan
from ..core.errors import ConfigError, DataError
from ..core.files import (
    output_folder,
)
from ..core.progress import progress_logger
from .model_file import ModelFile, read_model
from .predict_config import PredictConfig
from .prediction_writers import (
    PredictionWriter,
    check_free,
    staged_folder,
)
from .trained_model import build_model, task_entry
from .visualize import (
    ExampleImage,
    ImageLike,
)

logger = logging.getLogger("maelift")


@dataclass(frozen=True)
class PredictResult:
    """Where the predictions are, of how many images, and which files name those that could not be read or show them."""

    out: Path
    count: int
    rejected: int
    pictures: Path | None = None

    def summary(self) -> str:
        """The result in a few lines."""
        broken = named_broken(self.rejected, rejected_file(self.out))
        drawn = f"\npictures: {self.pictures}" if self.pictures is not None else ""
        return f"predictions of {self.count} images: {self.out}{broken}{drawn}"


def predict(config: PredictConfig) -> PredictResult:
    """Predict for images; a broken one is left out, counted and named in a file next to the predictions.

    Everything is written, or nothing.

    Raises MaeliftError when the model or the images can't be read, when something is in the way, or when every image is
    broken.
    """
    device = choose_device(config.device)
    file = read_model(config.model)
    display = Display(file.preprocessing.channel_names, config.shown)
    display.positions(len(file.preprocessing.mean))  # an error now, not after the predictions
    model = build_model(file).to(device)
    images = find_images_to_use(config.images, file.preprocessing.reading.slices)
    out = Path(config.out or task_entry(file).out)
    writer = _writer(file, config, images)
    writer.check(out)
    pictures = pictures_folder(out) if config.draw else None
    if pictures is not None:
        check_free(pictures, "pictures")
    output_folder(out.parent)
    rejected: list[tuple[str, str]] = []
    unusual: list[tuple[str, str]] = []
    log_progress = progress_logger("predict")
    with writer.writing(out), staged_folder(pictures) as drawn:
        for start in range(0, len(images), config.batch_size):
            batch = range(start, min(start + config.batch_size, len(images)))
            numbers, found_images = _open_images(images, batch, file.preprocessing.reading, rejected, unusual)
            if numbers:
                with torch.inference_mode(), autocast(device, config.precision):
                    found = writer.predict(model, found_images)
                for number, image, prediction in zip(numbers, found_images, found, strict=True):
                    writer.add(number, image, prediction)
                    if drawn is not None:
                        picture = writer.draw(display.image(image), prediction)
                        _write_picture(drawn / writer.files[number], display.with_tiles(picture, image))
            log_progress(writer.count + len(rejected), len(images))
        if writer.count == 0:
            raise DataError(f"images={config.images}: none of {len(images)} can be read; the first: {rejected[0][1]}")
    for line in summary_lines(writer.count, unusual):
        logger.warning("predict: %s", line)
    if rejected:
        write_rejected(rejected_file(out), rejected)
    else:
        rejected_file(out).unlink(missing_ok=True)  # of an earlier prediction
    return PredictResult(out, writer.count, len(rejected), pictures)


def plan(config: PredictConfig) -> Plan:
    """What ``predict`` would do; writes nothing."""
    file = read_model(config.model)
    count = len(find_images_to_use(config.images, file.preprocessing.reading.slices))
    out = Path(config.out or task_entry(file).out)
    drawn = (("pictures", str(pictures_folder(out))),) if config.draw else ()
    return Plan(
        (
            ("task", file.task),
            ("images", f"{count} in {config.images} (unchecked yet)"),
            ("classes", f"{len(file.classes)}"),
            ("device", str(choose_device(config.device))),
            ("result", str(out)),
            *drawn,
        ),
        parameters=sum(tensor.numel() for tensor in file.state.values()),
    )


def rejected_file(out: Path) -> Path:
    """Where broken images are named."""
    return out.with_suffix(".rejected.csv") if out.suffix in (".csv", ".json") else _beside(out, ".rejected.csv")


def pictures_folder(out: Path) -> Path:
    """Where pictures are drawn."""
    return out.with_suffix(".pictures") if out.suffix in (".csv", ".json") else _beside(out, ".pictures")


def _writer(file: ModelFile, config: PredictConfig, images: ImageSet) -> PredictionWriter:
    writer_type = task_entry(file).writer_type()
    for key in ("score_threshold", "coco"):
        if getattr(config, key) is not None and key not in writer_type.keys:
            raise ConfigError(key, getattr(config, key), f"null: {config.model} finds no objects ({file.task})")
    return writer_type(file, config, images)


def _open_images(
    images: ImageSet,
    numbers: Sequence[int],
    form: PixelFormat,
    rejected: list[tuple[str, str]],
    unusual: list[tuple[str, str]],
) -> tuple[list[int], list[ImageLike]]:
    """The sound images among these, with their numbers; the others go to ``rejected``, notes on pixels to ``unusual``."""
    sound: list[int] = []
    found: list[ImageLike] = []
    for number in numbers:
        try:
            image = opened(images, number, form)
            found.append(image_of(image.pixels()))
            sound.append(number)
            unusual.append((images.name(number), "; ".join(image.decoded_notes)))
        except DataError as error:
            rejected.append((images.name(number), str(error)))
    return sound, found


def _write_picture(path: Path, image: Image.Image) -> None:
    picture = ExampleImage.of(image, "", True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f"{path.name}.{'jpg' if picture.kind == 'jpeg' else 'png'}").write_bytes(picture.data)


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f"{path.name}{ending}")
