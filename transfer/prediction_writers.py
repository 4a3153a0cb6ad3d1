"""Writers of predictions: a CSV of classes, COCO JSON of objects, mask PNGs."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, cast

import numpy as np
from PIL import Image

from ..core.data.class_lists import read_class_list
from ..core.data.coco_masks import encode_mask
from ..core.data.images import ImageSet
from ..core.errors import DataError, MaeliftError
from ..core.files import TableWriter, atomic_path, atomic_write_bytes, mark_output, read_regular, safe_cell, sync_tree
from .classification.model import Classifier
from .model_file import ModelFile, TrainedModel
from .predict_config import PredictConfig
from .predictions import Classification, Detections, Segmentation
from .visualize import (
    MIN_SCORE,
    ImageLike,
    class_colours,
    draw_classification,
    draw_detections,
    draw_segmentation,
    pixels_of,
)

logger = logging.getLogger("maelift")

PALETTE = 256
"""Class numbers below it fit a mask PNG with a palette; others need 16 bits."""


class PredictionWriter(ABC):
    """Writes the predictions of one task; the task's row names its class.

    ``files[number]``: the path below a folder, without suffix, under which image ``number`` has files of its own; ``count``:
    predictions written.
    """

    keys: ClassVar[tuple[str, ...]] = ()
    """keys of ``maelift predict`` that only some tasks have, and this is one of them: score_threshold, coco"""

    def __init__(self, file: ModelFile, config: PredictConfig, images: ImageSet) -> None:
        self.classes, self.config, self.images = file.classes, config, images
        self.files = _file_names([images.name(number) for number in range(len(images))])
        self.count = 0

    @abstractmethod
    def check(self, out: Path) -> None:
        """Raise MaeliftError for a place that the predictions can't be written to."""

    @abstractmethod
    def writing(self, out: Path) -> AbstractContextManager[None]:
        """Within the block predictions are added; when it ends without an error, they are moved to ``out``."""

    @abstractmethod
    def add(self, number: int, image: ImageLike, prediction: Any) -> None:
        """Write the prediction of image ``number``; adds 1 to ``count``."""

    @abstractmethod
    def draw(self, image: ImageLike, prediction: Any) -> Image.Image:
        """The image with its prediction, for people."""

    def predict(self, model: TrainedModel, images: Sequence[ImageLike]) -> Sequence[Any]:
        """The model's predictions for a batch of images."""
        return model.predict(images)


class CsvWriter(PredictionWriter):
    """Writes a CSV: the path of each image, then what ``columns`` names."""

    @abstractmethod
    def columns(self) -> list[str]:
        """The names of the columns after path."""

    @abstractmethod
    def cells(self, prediction: Any) -> list[str]:
        """The values of these columns for a prediction."""

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
            self._table.writerow(["path", *self.columns()])
            yield

    def add(self, number: int, image: ImageLike, prediction: Any) -> None:
        self._table.writerow([self.images.name(number), *self.cells(prediction)])
        self.count += 1


class ClassificationWriter(CsvWriter):
    """A CSV: path, the most probable class (or all of at least 0.5, of a multi-label model), each class's probability."""

    def columns(self) -> list[str]:
        return ["predicted", *(f"probability_{name}" for name in self.classes)]

    def cells(self, prediction: Classification) -> list[str]:
        predicted = prediction.label if prediction.labels is None else "|".join(prediction.labels)
        return [safe_cell(predicted), *(f"{prediction.probabilities[name]:.6f}" for name in self.classes)]

    def predict(self, model: TrainedModel, images: Sequence[ImageLike]) -> Sequence[Classification]:
        return cast(Classifier, model).predict(images, precision=self.config.precision)

    def draw(self, image: ImageLike, prediction: Classification) -> Image.Image:
        return draw_classification(image, prediction)


@dataclass(frozen=True)
class CocoIds:
    """The ids of images and categories in COCO JSON, by the images' names and the classes' numbers."""

    images: Mapping[str, int]
    categories: Sequence[int]


class DetectionWriter(PredictionWriter):
    """COCO JSON with ``images``, ``categories`` and, as ``annotations``, the objects with their scores; and these alone.

    The second file, NAME.results.json, is COCO's results format, for pycocotools' ``loadRes``; from a model with masks
    NAME.results_masks.json leaves the boxes out, as COCO's tools take a mask's size from its box where there is one.
    """

    keys: ClassVar[tuple[str, ...]] = ("score_threshold", "coco")

    def __init__(self, file: ModelFile, config: PredictConfig, images: ImageSet) -> None:
        super().__init__(file, config, images)
        self.ids = _coco_ids(file, config, images)
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

    def add(self, number: int, image: ImageLike, prediction: Detections) -> None:
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

    def draw(self, image: ImageLike, prediction: Detections) -> Image.Image:
        threshold = MIN_SCORE if self.config.score_threshold is None else self.config.score_threshold
        return draw_detections(image, prediction, min_score=threshold)


class SegmentationWriter(PredictionWriter):
    """A folder of mask PNGs as they are read for training: a class's value in every pixel, its colour in the palette.

    ``classes.txt`` next to them names the values.
    """

    def __init__(self, file: ModelFile, config: PredictConfig, images: ImageSet) -> None:
        super().__init__(file, config, images)
        values = cast(Sequence[int], file.head.get("values") or range(len(file.classes)))
        self.values = np.asarray(values, np.int64)
        self._palette = _palette(file.classes, values) if max(values, default=0) < PALETTE else None

    def check(self, out: Path) -> None:
        check_free(out, "out")

    @contextmanager
    def writing(self, out: Path) -> Iterator[None]:
        with staged_folder(out) as folder:
            self._folder = cast(Path, folder)
            _write_classes(self._folder, dict(zip(self.values.tolist(), self.classes, strict=True)))
            yield

    def add(self, number: int, image: ImageLike, prediction: Segmentation) -> None:
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

    def draw(self, image: ImageLike, prediction: Segmentation) -> Image.Image:
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


def _coco_ids(file: ModelFile, config: PredictConfig, images: ImageSet) -> CocoIds:
    """The ids of the COCO JSON that is asked for; else images counted from 1, and categories as in the training data."""
    names = [images.name(number) for number in range(len(images))]
    if config.coco is None:
        trained = cast(Sequence[int], file.head.get("category_ids") or range(1, len(file.classes) + 1))
        return CocoIds({name: number for number, name in enumerate(names, start=1)}, trained)
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
    return CocoIds(ids, [categories[name] for name in file.classes])


@contextmanager
def staged_folder(folder: Path | None) -> Iterator[Path | None]:
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


def check_free(folder: Path, what: str) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        raise MaeliftError(f"{what}: {folder} is there already. Choose another out, or remove it first.")
