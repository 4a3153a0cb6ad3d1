"""Prediction: a trained model and images in; a CSV, COCO JSON or mask PNGs out, and pictures for people."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast

import numpy as np
import torch
from PIL import Image

from ..core.data.audit import told_once, write_rejected
from ..core.data.class_lists import read_class_list
from ..core.data.coco_masks import encode_mask
from ..core.data.images import ImageSet, opened
from ..core.data.pixel_format import PixelFormat, image_of
from ..core.data.readers.folder import find_images
from ..core.device import Precision, autocast, choose_device
from ..core.dry_run import Plan
from ..core.errors import ConfigError, DataError, MaeliftError
from ..core.files import (
    TableWriter,
    atomic_path,
    atomic_write_bytes,
    mark_output,
    output_folder,
    read_regular,
    safe_cell,
    sync_tree,
)
from ..core.progress import progress_logger
from .model_file import ModelFile, read_model
from .predictions import Classification, Detections, Segmentation
from .trained_model import build_model, task_entry
from .visualize import (
    LEAST_SCORE,
    Picture,
    Shown,
    class_colours,
    draw_classification,
    draw_detections,
    draw_segmentation,
    pixels_of,
)

logger = logging.getLogger("maelift")

PALETTE = 256
"""Class numbers below it fit a mask PNG with a palette; others need 16 bits."""


@dataclass(frozen=True)
class PredictConfig:
    """Predictions of a trained model: classes, objects, or a class for every pixel."""

    model: str
    """model.safetensors of maelift transfer"""
    images: str
    """folder of images (nested or flat), or idx file"""
    out: str | None = None
    """CSV (classify), COCO JSON (detect) or new folder of mask PNGs (segment); null: predictions.csv, .json or masks"""
    draw: bool = False
    """also draw every prediction, into a new folder beside out: NAME.pictures"""
    score_threshold: float | None = None
    """least score of an object, 0 to 1 (detect); null: the detector's own (0.05 by default), and 0.5 in pictures"""
    coco: str | None = None
    """COCO JSON whose image and category ids are used, by file and class name (detect); null: images are counted from 1"""
    batch_size: int = 64
    """images at a time"""
    precision: Precision = "auto"
    """of the computation; auto: bfloat16 on a GPU that has it, else float32"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to run; auto: a GPU when there is one"""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError("batch_size", self.batch_size, "1 or more")
        if self.score_threshold is not None and not 0 <= self.score_threshold <= 1:
            raise ConfigError("score_threshold", self.score_threshold, "a score from 0 to 1")


@dataclass(frozen=True)
class PredictResult:
    """Where the predictions are, of how many images, and which files name those that could not be read or show them."""

    out: Path
    count: int
    rejected: int
    pictures: Path | None = None

    def summary(self) -> str:
        """The result in a few lines."""
        broken = f"; {self.rejected} broken images are named in {rejected_file(self.out)}" if self.rejected else ""
        drawn = f"\npictures: {self.pictures}" if self.pictures is not None else ""
        return f"predictions of {self.count} images: {self.out}{broken}{drawn}"


def predict(config: PredictConfig) -> PredictResult:
    """Predict for images; a broken one is left out, named beside the predictions and counted. All is written, or nothing.

    Raises MaeliftError when the model or the images can't be read, when something is in the way, or when every image is
    broken.
    """
    device = choose_device(config.device)
    file = read_model(config.model)
    model = build_model(file).to(device)
    images = find_images(config.images, "images")
    out = Path(config.out or task_entry(file).out)
    writer = _writer(file, model, config, images, out)
    writer.check(out)
    pictures = pictures_folder(out) if config.draw else None
    if pictures is not None:
        _check_free(pictures, "pictures")
    output_folder(out.parent)
    rejected: list[tuple[str, str]] = []
    unusual: list[tuple[str, str]] = []
    own = {"precision": config.precision} if file.task == "classify" else {}
    tell = progress_logger("predict")
    with writer.writing(out), _staged(pictures) as drawn:
        for start in range(0, len(images), config.batch_size):
            batch = range(start, min(start + config.batch_size, len(images)))
            numbers, found_images = _opened(images, batch, file.preprocessing.reading, rejected, unusual)
            if numbers:
                with torch.inference_mode(), autocast(device, config.precision):
                    found = cast(Any, model).predict(found_images, **own)
                for number, image, prediction in zip(numbers, found_images, found, strict=True):
                    writer.add(number, image, prediction)
                    if drawn is not None:
                        _write_picture(drawn / writer.files[number], writer.picture(image, prediction))
            tell(writer.count + len(rejected), len(images))
        if writer.count == 0:
            raise DataError(f"images={config.images}: none of {len(images)} can be read; the first: {rejected[0][1]}")
    for line in told_once(writer.count, unusual):
        logger.warning("predict: %s", line)
    if rejected:
        write_rejected(rejected_file(out), rejected)
    else:
        rejected_file(out).unlink(missing_ok=True)  # of an earlier prediction
    return PredictResult(out, writer.count, len(rejected), pictures)


def plan(config: PredictConfig) -> Plan:
    """What ``predict`` would do; writes nothing."""
    file = read_model(config.model)
    count = len(find_images(config.images, "images"))
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


class Writer:
    """Writes the predictions of one task.

    ``files[number]``: the path below a folder, without ending, under which image ``number`` has files of its own.
    """

    def __init__(self, file: ModelFile, config: PredictConfig, images: ImageSet) -> None:
        self.classes, self.config, self.images = file.classes, config, images
        self.files = _file_names([images.name(number) for number in range(len(images))])
        self.count = 0

    def check(self, out: Path) -> None:
        """Raise MaeliftError for a place that the predictions can't be written to."""
        raise NotImplementedError

    @contextmanager
    def writing(self, out: Path) -> Iterator[None]:
        """Within the block predictions are added; once it has ended well, they stand in ``out``."""
        raise NotImplementedError
        yield

    def add(self, number: int, image: Shown, prediction: Any) -> None:
        """Take the prediction of image ``number``."""
        raise NotImplementedError

    def picture(self, image: Shown, prediction: Any) -> Image.Image:
        """Draw a prediction."""
        raise NotImplementedError


class ClassWriter(Writer):
    """A CSV: path, the likeliest class (or all of 0.5 and more, of a multi-label model), each class's probability."""

    def check(self, out: Path) -> None:
        _no_folder(out, "CSV")

    @contextmanager
    def writing(self, out: Path) -> Iterator[None]:
        with (
            atomic_path(out) as temporary,
            # in UTF-8, with the names of files that are not UTF-8 as the system has them
            temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            self._table = TableWriter(file)
            self._table.writerow(["path", "predicted", *(f"probability_{name}" for name in self.classes)])
            yield

    def add(self, number: int, image: Shown, prediction: Classification) -> None:
        predicted = prediction.label if prediction.labels is None else "|".join(prediction.labels)
        shares = [f"{prediction.probabilities[name]:.6f}" for name in self.classes]
        self._table.writerow([self.images.name(number), safe_cell(predicted), *shares])
        self.count += 1

    def picture(self, image: Shown, prediction: Classification) -> Image.Image:
        return draw_classification(image, prediction)


@dataclass(frozen=True)
class Ids:
    """The ids of images and categories in COCO JSON, by the images' names and the classes' numbers."""

    images: Mapping[str, int]
    categories: Sequence[int]


class ObjectWriter(Writer):
    """COCO JSON with ``images``, ``categories`` and, as ``annotations``, the objects with their scores; and these alone.

    The second file, NAME.results.json, is COCO's results format, for pycocotools' ``loadRes``; from a model with masks
    NAME.results_masks.json leaves the boxes out, as COCO's tools take a mask's size from its box where there is one.
    """

    def __init__(self, file: ModelFile, config: PredictConfig, images: ImageSet, ids: Ids) -> None:
        super().__init__(file, config, images)
        self.ids = ids
        self._images: list[dict[str, object]] = []
        self._objects: list[dict[str, object]] = []

    def check(self, out: Path) -> None:
        _no_folder(out, "JSON")

    @contextmanager
    def writing(self, out: Path) -> Iterator[None]:
        yield
        if not self.count:
            return
        categories = [{"id": id, "name": name} for id, name in zip(self.ids.categories, self.classes, strict=True)]
        content = {"images": self._images, "annotations": self._objects, "categories": categories}
        keys = ("image_id", "category_id", "bbox", "score", "segmentation")
        results = [{key: found[key] for key in keys if key in found} for found in self._objects]
        _write_json(out.with_suffix(".results.json"), results)
        if any("segmentation" in found for found in results):
            masks = [{key: value for key, value in found.items() if key != "bbox"} for found in results]
            _write_json(out.with_suffix(".results_masks.json"), masks)
        _write_json(out, content)

    def add(self, number: int, image: Shown, prediction: Detections) -> None:
        name = self.images.name(number)
        image_id = self.ids.images[name]
        height, width = pixels_of(image)
        self._images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        kept = prediction.above(self.config.score_threshold or 0.0)
        for index in range(len(kept)):
            x1, y1, x2, y2 = (round(float(side), 3) for side in kept.boxes[index])
            found: dict[str, object] = {
                "id": len(self._objects) + 1,
                "image_id": image_id,
                "category_id": self.ids.categories[int(kept.labels[index])],
                "bbox": [x1, y1, round(x2 - x1, 3), round(y2 - y1, 3)],
                "area": round((x2 - x1) * (y2 - y1), 3),
                "iscrowd": 0,
                "score": round(float(kept.scores[index]), 6),
            }
            if kept.masks is not None:
                found["segmentation"] = encode_mask(kept.masks[index])
                found["area"] = int(kept.masks[index].sum())
            self._objects.append(found)
        self.count += 1

    def picture(self, image: Shown, prediction: Detections) -> Image.Image:
        threshold = LEAST_SCORE if self.config.score_threshold is None else self.config.score_threshold
        return draw_detections(image, prediction, least_score=threshold)


class MaskWriter(Writer):
    """A folder of mask PNGs as they are read for training: a class's value in every pixel, its colour in the palette.

    ``classes.txt`` beside them names the values.
    """

    def __init__(self, file: ModelFile, config: PredictConfig, images: ImageSet, values: Sequence[int]) -> None:
        super().__init__(file, config, images)
        self.values = np.asarray(values, np.int64)
        self._palette = _palette(file.classes, values) if max(values, default=0) < PALETTE else None

    def check(self, out: Path) -> None:
        _check_free(out, "out")

    @contextmanager
    def writing(self, out: Path) -> Iterator[None]:
        with _staged(out) as folder:
            self._folder = cast(Path, folder)
            _write_classes(self._folder, dict(zip(self.values.tolist(), self.classes, strict=True)))
            yield

    def add(self, number: int, image: Shown, prediction: Segmentation) -> None:
        path = self._folder / f"{self.files[number]}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = self.values[np.asarray(prediction.mask, np.int64)]
        if self._palette is None:
            Image.fromarray(values.astype(np.uint16)).save(path)
        else:
            picture = Image.fromarray(values.astype(np.uint8))
            picture.putpalette(self._palette)
            picture.save(path)
        self.count += 1

    def picture(self, image: Shown, prediction: Segmentation) -> Image.Image:
        return draw_segmentation(image, prediction)


def _write_classes(folder: Path, names: Mapping[int, str]) -> None:
    """Write a mask folder's names by value as ``classes.txt``; as ``classes.json`` where lines would not be read as these."""
    path = folder / "classes.txt"
    lines = "".join(f"{name}, {value}\n" for value, name in names.items())
    path.write_bytes(lines.encode("utf-8", "backslashreplace"))
    try:
        found = read_class_list(folder)
    except DataError:
        found = None
    if found is None or found.names != names:
        path.unlink()
        content = {name: value for value, name in names.items()}
        path.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        logger.info("classes.json, not classes.txt, names the values of the masks: some names are no text of one line")


def _writer(file: ModelFile, model: torch.nn.Module, config: PredictConfig, images: ImageSet, out: Path) -> Writer:
    if file.task != "detect":
        for key in ("score_threshold", "coco"):
            if getattr(config, key) is not None:
                raise ConfigError(key, getattr(config, key), f"null: {config.model} finds no objects ({file.task})")
    if file.task == "classify":
        return ClassWriter(file, config, images)
    if file.task == "segment":
        values = cast(Sequence[int], file.head.get("values") or range(len(file.classes)))
        return MaskWriter(file, config, images, values)
    return ObjectWriter(file, config, images, _ids(file, config, images))


def _ids(file: ModelFile, config: PredictConfig, images: ImageSet) -> Ids:
    """The ids of the COCO JSON that is asked for; else images counted from 1, and categories as in the training data."""
    names = [images.name(number) for number in range(len(images))]
    if config.coco is None:
        trained = cast(Sequence[int], file.head.get("category_ids") or range(1, len(file.classes) + 1))
        return Ids({name: number for number, name in enumerate(names, start=1)}, trained)
    try:
        content = json.loads(read_regular(config.coco))
        known = {str(image["file_name"]): int(image["id"]) for image in content["images"]}
        categories = {str(category["name"]): int(category["id"]) for category in content["categories"]}
    except OSError as error:
        raise DataError(f"coco={config.coco}: can't be read ({error.strerror or error}).") from error
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"coco={config.coco}: no COCO JSON with images and categories ({error}).") from error
    absent = [name for name in file.classes if name not in categories]
    if absent:
        raise DataError(f"coco={config.coco}: no category named {', '.join(absent[:5])}, which the model finds.")
    by_last = Counter(PurePosixPath(name).name for name in known)
    last = {PurePosixPath(name).name: id for name, id in known.items() if by_last[PurePosixPath(name).name] == 1}
    found = {name: known.get(name, last.get(PurePosixPath(name).name)) for name in names}
    unknown = [name for name, id in found.items() if id is None]
    if unknown:
        raise DataError(
            f"coco={config.coco}: names no image {unknown[0]}"
            + (f", nor {len(unknown) - 1} others" if len(unknown) > 1 else "")
            + f" of images={config.images}. Give the JSON of these images, or none."
        )
    ids = {name: id for name, id in found.items() if id is not None}
    if len(set(ids.values())) < len(ids):
        raise DataError(
            f"coco={config.coco}: several images of images={config.images} have one id by their file names."
        )
    return Ids(ids, [categories[name] for name in file.classes])


def _opened(
    images: ImageSet,
    numbers: Sequence[int],
    form: PixelFormat,
    rejected: list[tuple[str, str]],
    unusual: list[tuple[str, str]],
) -> tuple[list[int], list[Shown]]:
    """The sound images among these, with their numbers; the others go to ``rejected``, notes on pixels to ``unusual``."""
    sound: list[int] = []
    found: list[Shown] = []
    for number in numbers:
        try:
            image = opened(images, number, form)
            found.append(image_of(image.pixels()))
            sound.append(number)
            unusual.append((images.name(number), "; ".join(image.decoded_notes)))
        except DataError as error:
            rejected.append((images.name(number), str(error)))
    return sound, found


@contextmanager
def _staged(folder: Path | None) -> Iterator[Path | None]:
    """A temporary folder that becomes ``folder`` once the block has ended well, and else is removed."""
    if folder is None:
        yield None
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        mark_output(temporary)
        yield temporary
        temporary.chmod(0o755)
        sync_tree(temporary)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_picture(path: Path, image: Image.Image) -> None:
    picture = Picture.of(image, "", True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f"{path.name}.{'jpg' if picture.kind == 'jpeg' else 'png'}").write_bytes(picture.data)


def _file_names(names: Sequence[str]) -> list[str]:
    """A path without ending for each image: its name without ending, or with it where two would be the same."""
    bare = [os.path.splitext(name)[0] for name in names]
    count = Counter(bare)
    return [short if count[short] == 1 else name for short, name in zip(bare, names, strict=True)]


def _palette(classes: Sequence[str], values: Sequence[int]) -> list[int]:
    colours = [0] * 3 * PALETTE
    for value, colour in zip(values, class_colours(classes), strict=True):
        colours[3 * value : 3 * value + 3] = colour
    return colours


def _write_json(path: Path, content: object) -> None:
    text = json.dumps(content, ensure_ascii=False)
    atomic_write_bytes(path, text.encode("utf-8", "surrogateescape"))


def _no_folder(out: Path, kind: str) -> None:
    if out.is_dir():
        raise MaeliftError(f"out={out}: a folder. Expected the name of a {kind} file.")


def _check_free(folder: Path, what: str) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        raise MaeliftError(f"{what}: {folder} is there already. Choose another out, or remove it first.")


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f"{path.name}{ending}")
