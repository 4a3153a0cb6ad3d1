"""Classifiers without an encoder of ours, and their files: pixels under a probe, or a small ResNet of timm."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast

import timm
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..core.files import atomic_path
from ..core.models.encoder_spec import EncoderSpec
from ..core.models.preprocessing import Preprocessing
from ..core.models.probes import NearestNeighbours
from ..version import __version__

Kind = Literal["linear", "knn", "convnet"]

PIXEL_SIDE = 28
"""Side of the small copies of images, in pixels; smaller images stay as they are."""
SMALL_SIDE = 96
"""Images with a shorter side below this keep their size through the first layer of the ResNet, as is usual for such images."""
CONVNET = "resnet10t"
SMALL_CHANNELS = (16, 32, 64, 128)
"""Channels of its four stages there; for larger images they are timm's."""
METADATA = "maelift.baseline"


class BaselineClassifier(nn.Module):
    """A network from normalised images (B, C, H, W) to logits (B, classes).

    ``spec`` says the size and the channels of its images; of the encoder that it describes nothing is there. ``neighbours``:
    of the kind "knn" the number that vote, ``count`` the labelled images among which they are.
    """

    def __init__(
        self,
        kind: Kind,
        spec: EncoderSpec,
        preprocessing: Preprocessing,
        classes: Sequence[str],
        *,
        neighbours: int = 1,
        count: int = 1,
    ) -> None:
        super().__init__()
        self.kind, self.spec, self.preprocessing, self.classes = kind, spec, preprocessing, tuple(classes)
        self.neighbours, self.count = neighbours, count
        self.network = convnet(spec, len(classes)) if kind == "convnet" else self._probe()

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.network(images))

    def _probe(self) -> nn.Sequential:
        """Small copies of the images as vectors, and a head on them."""
        size = pixel_size(self.spec)
        dim = self.spec.channels * size[0] * size[1]
        head: nn.Module = nn.Linear(dim, len(self.classes))
        if self.kind == "knn":
            voting = {"k": self.neighbours, "temperature": 0.07, "multi_label": False}
            head = NearestNeighbours(dim, len(self.classes), self.count, **voting)  # type: ignore[arg-type]
        return nn.Sequential(nn.AdaptiveAvgPool2d(size), nn.Flatten(), head)


def pixel_size(spec: EncoderSpec) -> tuple[int, int]:
    """(height, width) in pixels of the small copies: the shorter side ``PIXEL_SIDE``, never enlarged."""
    shorter = min(spec.image_size)
    height, width = (max(1, round(side * min(1.0, PIXEL_SIDE / shorter))) for side in spec.image_size)
    return height, width


def convnet(spec: EncoderSpec, num_classes: int) -> nn.Module:
    """A ResNet of ten layers; for small images with a stem that keeps their size (He et al. 2016, Sec. 4.2)."""
    model = timm.create_model(CONVNET, num_classes=num_classes, in_chans=spec.channels, **widths(spec))
    if min(spec.image_size) >= SMALL_SIDE:
        return cast(nn.Module, model)
    stem = next(module for module in model.conv1.modules() if isinstance(module, nn.Conv2d))
    stem.stride = (1, 1)
    model.maxpool = nn.Identity()
    return cast(nn.Module, model)


def widths(spec: EncoderSpec) -> dict[str, Any]:
    """What makes the ResNet narrower for small images, as timm's arguments."""
    if min(spec.image_size) >= SMALL_SIDE:
        return {}
    return {"channels": SMALL_CHANNELS, "stem_width": SMALL_CHANNELS[0]}


def save_baseline(model: BaselineClassifier, path: Path) -> None:
    """Write a model with all that is needed to use it."""
    content = {
        "kind": model.kind,
        "spec": asdict(model.spec),
        "preprocessing": model.preprocessing.to_json(),
        "classes": model.classes,
        "neighbours": model.neighbours,
        "count": model.count,
        "version": __version__,
    }
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(state, temporary, {METADATA: json.dumps(content)})


def load_baseline(path: Path) -> BaselineClassifier:
    """The model of a file that ``save_baseline`` wrote, in eval mode."""
    with safe_open(path, "pt") as file:
        content = json.loads(file.metadata()[METADATA])
    spec, preprocessing = EncoderSpec.from_json(content["spec"]), Preprocessing.from_json(content["preprocessing"])
    voting = {"neighbours": content["neighbours"], "count": content["count"]}
    model = BaselineClassifier(content["kind"], spec, preprocessing, content["classes"], **voting)
    model.load_state_dict(load_file(path))
    return model.eval()
