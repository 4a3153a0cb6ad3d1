"""Data sets of images with boxes, and with masks where every object has one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError
from .coco_masks import Segmentation, draw_mask
from .pixel_format import ANY_FORMAT, Picture, PixelFormat
from .readers.folder import FolderImages
from .splits import Strata, rarest_first_order
from .string_table import Numbers


@dataclass(frozen=True)
class Objects:
    """The annotated objects of one image.

    ``boxes`` (n, 4) float32: x1, y1, x2, y2 in pixels of the image, cut to it; ``labels`` (n,) int64 into the classes;
    ``crowd`` (n,) bool: regions of many objects, which evaluation ignores; ``areas`` (n,) float64: as annotated, in
    square pixels (COCO sorts small, medium and large by it); ``size`` is (height, width) of the image.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]
    segmentations: tuple[Segmentation | None, ...]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Sequence[int]) -> Objects:
        """The objects with these numbers, in this order."""
        chosen = np.asarray(indices, dtype=np.int64)
        segmentations = tuple(self.segmentations[index] for index in chosen)
        return Objects(
            self.boxes[chosen],
            self.labels[chosen],
            self.crowd[chosen],
            self.areas[chosen],
            segmentations,
            self.size,
        )

    def masks(self) -> NDArray[np.bool_]:
        """(n, H, W); an object without a segmentation has an empty mask."""
        masks = np.zeros((len(self), *self.size), dtype=bool)
        for number, segmentation in enumerate(self.segmentations):
            if segmentation is not None:
                masks[number] = draw_mask(segmentation, self.size)
        return masks


@dataclass(frozen=True)
class SizedImages(FolderImages):
    """Image files with their (height, width) in the annotations; opening an image of another size raises DataError."""

    sizes: tuple[tuple[int, int], ...]

    def open(self, index: int, form: PixelFormat = ANY_FORMAT) -> Image.Image | Picture:
        image = super().open(index, form)
        self.check_size(index, image.size[::-1] if isinstance(image, Image.Image) else image.shape[:2])
        return image

    def check_size(self, index: int, size: tuple[int, ...]) -> None:
        """Raise DataError for an image of another (height, width) than in its annotations."""
        if size != self.sizes[index]:
            found, expected = (f"{width}×{height}" for height, width in (size, self.sizes[index]))
            raise DataError(
                f"{self.root / self.paths[index]}: the image is {found} px (upright), but its "
                f"annotations are for {expected}. Annotate the upright image, or correct its width and height"
            )

    def origin(self) -> str | None:
        sizes = hashlib.sha256(repr(self.sizes).encode()).hexdigest()  # which images can be opened depends on them
        return f"folder {self.root.absolute()}, sizes {sizes}"

    def subset(self, indices: Numbers) -> SizedImages:
        chosen = super().subset(indices)
        return SizedImages(chosen.root, chosen.paths, tuple(self.sizes[index] for index in indices))


@dataclass(frozen=True)
class DetectionImages:
    """Images with the objects on them (see ``LabeledDataset``); some may have none.

    ``category_ids`` are the JSON's ids of the ``classes``, ``image_ids`` of the images. ``has_masks``: every object
    except crowds has a segmentation.
    """

    images: SizedImages
    objects: tuple[Objects, ...]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_ids: tuple[int, ...]
    has_masks: bool

    def __len__(self) -> int:
        return len(self.objects)

    @property
    def min_train(self) -> int:
        """One: an image may show all classes, or none."""
        return 1

    def subset(self, indices: Sequence[int]) -> DetectionImages:
        """The images with these numbers, in this order."""
        return DetectionImages(
            self.images.subset(indices),
            tuple(self.objects[index] for index in indices),
            self.classes,
            self.category_ids,
            tuple(self.image_ids[index] for index in indices),
            self.has_masks,
        )

    def label_text(self, index: int) -> str:
        """A hash of all objects of an image, with the names of their classes."""
        objects = self.objects[index]
        digest = hashlib.blake2b(digest_size=16)
        digest.update(repr((objects.size, [self.classes[label] for label in objects.labels])).encode())
        for array in (objects.boxes, objects.crowd, objects.areas):
            digest.update(array.tobytes())
        for segmentation in objects.segmentations:
            digest.update(b"|")
            if isinstance(segmentation, tuple):
                for polygon in segmentation:
                    digest.update(polygon.tobytes())
            elif segmentation is not None:
                digest.update(segmentation["counts"].encode())
        return digest.hexdigest()

    def label_sampling_order(self, seed: int) -> list[int]:
        """An order whose every prefix has all classes about equally often, as far as the images allow."""
        return rarest_first_order(self.present, seed, "labels")

    @property
    def strata(self) -> Strata:
        """The classes on each image."""
        return self.present

    def ground_truth(self) -> dict[str, Any]:
        """The images and objects as COCO JSON: image and category ids as in the file, annotation ids from 1."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index, (image_id, objects) in enumerate(zip(self.image_ids, self.objects, strict=True)):
            height, width = objects.size
            images.append({"id": image_id, "file_name": self.images.paths[index], "height": height, "width": width})
            for number in range(len(objects)):
                x1, y1, x2, y2 = (float(value) for value in objects.boxes[number])
                annotation: dict[str, Any] = {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": self.category_ids[objects.labels[number]],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(objects.areas[number]),
                    "iscrowd": int(objects.crowd[number]),
                }
                segmentation = objects.segmentations[number]
                if isinstance(segmentation, tuple):
                    annotation["segmentation"] = [polygon.tolist() for polygon in segmentation]
                elif segmentation is not None:
                    annotation["segmentation"] = dict(segmentation)
                annotations.append(annotation)
        categories = [{"id": id, "name": name} for id, name in zip(self.category_ids, self.classes, strict=True)]
        return {"info": {}, "images": images, "annotations": annotations, "categories": categories}

    @cached_property
    def present(self) -> list[tuple[int, ...]]:
        """The classes on each image."""
        return [tuple(int(label) for label in np.unique(objects.labels)) for objects in self.objects]
