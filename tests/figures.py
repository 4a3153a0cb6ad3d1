"""The figures that a change of the code's shape must not move: losses, weights, scores, tables and exports of tiny runs.

They are computed through what users have (commands, the functions of ``maelift``, the files that are left behind), so that they
can be computed before and after any change within. ``tests/golden/numbers.json`` holds them with the machine they are of;
``test_numbers.py`` computes them again. A change that is meant to move some records them again, and says why:

    python tests/figures.py tests/golden/numbers.json
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from maelift.tests.preloaded import CODE
from maelift.tests.support import ROOT, environment, preloaded, run_maelift, run_ranks
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file

Figure: TypeAlias = "bool | int | float | str | Sequence[Figure] | Mapping[str, Figure] | None"
Keys: TypeAlias = Mapping[str, object]

SMALLEST = 1e-8
"""Differences below this are none on another machine."""
COUNTED = re.compile(r"/(metrics/(?!nll)|per_class/|val/|confusion|[a-z_]+\.json/objects)")
"""Scores that count images, pixels or objects."""

PRETRAIN: Keys = {
    "model": "vit_nano",
    "image_size": 16,
    "patch_size": 4,
    "decoder.embed_dim": 16,
    "decoder.depth": 1,
    "decoder.num_heads": 2,
    "batch_size": 8,
    "holdout": 4,
    "epochs": 4,
    "evaluations": 2,
    "log_every": 1,
    "workers": 0,
    "lr": 1e-3,
}
"""20 steps on the 40 of 44 images that aren't held out."""
TRAIN: Keys = {"batch_size": 8, "steps": 6, "evaluations": 2, "workers": 0, "lr": 3e-3, "recipe": "small"}
CLASSIFY: Keys = {**TRAIN, "val": 9, "test": 12}
DETECT: Keys = {
    **TRAIN,
    "steps": 12,
    "pyramid_channels": 16,
    "pyramid_scales": "[1,0.5]",
    "head_channels": 16,
    "fc_dim": 32,
    "box_convs": 1,
    "mask_convs": 1,
    "proposals": 30,
    "box_samples": 16,
    "region_samples": 16,
}
SEGMENT: Keys = {**TRAIN, "scale": "[0.8,1.3]", "stride": 24}
SMALL_EXPORT: Mapping[str, Keys] = {
    "torchvision": {"out_channels": 16},
    "detectron2": {"out_channels": 16},
    "mmseg": {"crop_size": 32, "head_channels": 16, "num_classes": 3},
}
"""Keys that make an export's certificate a matter of seconds; the other frameworks need none."""

SUITE = """
title: Can dark, middle and light be lines apart?
data: {path: images, pool: 30, val: 12}
labels: [6, 12]
seeds: [0, 1]
model: vit_nano
image_size: 16
patch_size: 8
workers: 1
evaluations: 1
tuning: {rates: [3e-4, 1e-3, 3e-3, 1e-2], max_doublings: 0, max_extensions: 0}
baseline: scratch
arms:
  mae:
    start: mae
    label: MAE on the pool
    pretrain:
      {epochs: 4, batch_size: 8, lr: 1e-3, holdout: 4, evaluations: 1, decoder: {embed_dim: 16, depth: 1, num_heads: 2}}
    recipe: &small {batch_size: 4, mixup: 0.0, cutmix: 0.0, random_erasing: 0.0}
    steps: {6: 3, 12: 4}
  scratch:
    start: scratch
    label: from scratch
    recipe: *small
    steps: {6: 3, 12: 4}
"""

FUNCTIONS = """
import sys
import maelift
images, classes, encoder, out, pretrain, transfer = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], *map(eval, sys.argv[5:])
maelift.pretrain(data=images, out=f"{out}/pretrained", **pretrain)
maelift.transfer("classify", data=classes, encoder=encoder, out=f"{out}/classifier", **transfer)
maelift.export(encoder, to="timm", out=f"{out}/timm")
"""
FEATURES = """
import sys
import maelift, torch
from safetensors.torch import save_file
encoder = maelift.load_encoder(sys.argv[1]).eval()
pixels = (torch.arange(2 * 3 * 32 * 32).reshape(2, 3, 32, 32) * 37 % 251).to(torch.uint8)
with torch.inference_mode():
    save_file({"features": encoder(encoder.preprocessing.normalize(pixels)).contiguous()}, sys.argv[2])
"""


class Inputs:
    """What the runs are given, made in a folder when it is first asked for; the same bytes on every machine."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def images(self) -> Path:
        """44 images of smooth noise, of many odd sizes."""
        folder = self.root / "images"
        folder.mkdir()
        for number in range(44):
            generator = np.random.default_rng([1, number])
            width, height = (2 * int(side) + 1 for side in generator.integers(8, 24, 2))
            small = Image.fromarray(generator.integers(0, 256, (5, 5, 3), dtype=np.uint8))
            small.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{number:02d}.png")
        return folder

    @cached_property
    def classes(self) -> Path:
        """Three classes of 19 images of noise, which differ in brightness."""
        return write_classes(self.root / "classes", range(19))

    @cached_property
    def shapes(self) -> Path:
        """Bright squares and dark diamonds with boxes and masks, as COCO JSON."""
        root = self.root / "shapes"
        for seed, (split, count) in enumerate((("train", 16), ("val", 6), ("test", 6))):
            (root / "images" / split).mkdir(parents=True)
            content: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
            content["categories"] = [{"id": 3, "name": "square"}, {"id": 7, "name": "diamond"}]
            for number in range(count):
                pixels, objects = draw_shapes(np.random.default_rng([2, seed, number]))
                name, identity = f"{number}.png", 50 + number
                Image.fromarray(pixels).save(root / "images" / split / name)
                size = {"height": pixels.shape[0], "width": pixels.shape[1]}
                content["images"].append({"id": identity, "file_name": name, **size})
                for entry in objects:
                    more = {"id": len(content["annotations"]) + 1, "image_id": identity, "iscrowd": 0}
                    content["annotations"].append({**entry, **more})
            (root / f"{split}.json").write_text(json.dumps(content))
        return root

    @cached_property
    def scenes(self) -> Path:
        """A brick and a leaf on noisy ground, with masks, in the layout images/SPLIT, masks/SPLIT."""
        root = self.root / "scenes"
        for seed, (split, count) in enumerate((("train", 16), ("val", 6), ("test", 6))):
            for kind in ("images", "masks"):
                (root / kind / split).mkdir(parents=True)
            for number in range(count):
                pixels, mask = draw_scene(np.random.default_rng([3, seed, number]))
                Image.fromarray(pixels).save(root / "images" / split / f"{number}.png")
                Image.fromarray(mask).save(root / "masks" / split / f"{number}.png")
        (root / "classes.txt").write_text("ground\nbrick\nleaf")
        return root

    @cached_property
    def encoder(self) -> Path:
        """An encoder file of drawn weights, brought in by ``maelift import``: it depends on no training."""
        weights, path = self.root / "weights.safetensors", self.root / "encoder.safetensors"
        save_file(drawn_weights(), weights)
        keys = {"out": path, "num_heads": 2, "mean": "[0.5,0.4,0.3]", "std": "[0.2,0.25,0.3]"}
        maelift("import", weights, **keys)
        return path


def write_classes(root: Path, numbers: Sequence[int]) -> Path:
    """Images of noise of three levels, of odd sizes, in a folder for each."""
    for label, level in (("dark", 118), ("middle", 128), ("light", 138)):
        (root / label).mkdir(parents=True)
        for number in numbers:
            generator = np.random.default_rng([4, level, number])
            height, width = (2 * int(side) + 1 for side in generator.integers(7, 17, 2))
            values = generator.integers(level - 100, level + 100, (height, width, 3))
            Image.fromarray(values.astype(np.uint8)).save(root / label / f"{number}.png")
    return root


def draw_shapes(generator: np.random.Generator) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
    """An image (H, W, 3) with one or two objects, and their annotations."""
    height, width = (2 * int(side) + 1 for side in generator.integers(13, 22, 2))
    pixels = generator.integers(110, 146, (height, width, 3)).astype(np.uint8)
    rows, columns = np.mgrid[:height, :width]
    found = []
    for half in (slice(0, width // 2), slice(width // 2, width))[: int(generator.integers(1, 3))]:
        radius, label = int(generator.integers(4, 6)), int(generator.integers(2))
        y = int(generator.integers(radius, height - radius))
        x = int(generator.integers(half.start + radius, max(half.start + radius + 1, half.stop - radius)))
        down, across = np.abs(rows - y), np.abs(columns - x)
        pixels[(down + across if label else np.maximum(down, across)) < radius] = (235, 30)[label]
        left, top, right, bottom = x - radius, y - radius, x + radius, y + radius
        corners = (
            [left, y, x, top, right, y, x, bottom] if label else [left, top, right, top, right, bottom, left, bottom]
        )
        side = 2 * radius
        area = side * side // (2 if label else 1)
        entry = {"bbox": [left, top, side, side], "area": area, "segmentation": [corners]}
        found.append({"category_id": (3, 7)[label], **entry})
    return pixels, found


def draw_scene(generator: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An image (H, W, 3) and its mask (H, W), a row of which is ignored."""
    height, width = (2 * int(side) + 1 for side in generator.integers(12, 24, 2))
    pixels = generator.integers(80, 140, (height, width, 3))
    mask = np.zeros((height, width), np.uint8)
    for number, colour in ((1, (200, 60, 40)), (2, (50, 170, 60))):
        rows, columns = (
            int(generator.integers(height // 4, height // 2)),
            int(generator.integers(width // 4, width // 2)),
        )
        top, left = int(generator.integers(height - rows)), int(generator.integers(width - columns))
        pixels[top : top + rows, left : left + columns] = colour + generator.integers(-30, 31, (rows, columns, 3))
        mask[top : top + rows, left : left + columns] = number
    mask[0] = 255
    return pixels.astype(np.uint8), mask


def drawn_weights() -> dict[str, torch.Tensor]:
    """Weights of a ViT under timm's names: 32×32 pixels, patches of 4, width 32, four blocks."""
    dim, generator = 32, np.random.default_rng(5)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, dim),
        "pos_embed": (1, 65, dim),
        "patch_embed.proj.weight": (dim, 3, 4, 4),
        "patch_embed.proj.bias": (dim,),
    }
    for block in range(4):
        layers = {
            "attn.qkv": (3 * dim, dim),
            "attn.proj": (dim, dim),
            "mlp.fc1": (4 * dim, dim),
            "mlp.fc2": (dim, 4 * dim),
        }
        for name, shape in layers.items():
            shapes |= {f"blocks.{block}.{name}.weight": shape, f"blocks.{block}.{name}.bias": shape[:1]}
    norms = ["norm", *(f"blocks.{block}.{name}" for block in range(4) for name in ("norm1", "norm2"))]
    shapes |= {f"{name}.{part}": (dim,) for name in norms for part in ("weight", "bias")}
    drawn = {name: generator.uniform(-0.15, 0.15, shape).astype(np.float32) for name, shape in shapes.items()}
    for name in norms:
        drawn[f"{name}.weight"] += np.float32(1)
    return {name: torch.from_numpy(array) for name, array in drawn.items()}


def words(keys: Keys) -> list[str]:
    """Keys as the command line has them."""
    return [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in keys.items()]


def check(done: subprocess.CompletedProcess[str]) -> None:
    """Raise RuntimeError with what a command said, unless it ended well."""
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode} of {' '.join(done.args)}\n{done.stdout}\n{done.stderr}")


def maelift(*command: object, **keys: object) -> None:
    """Run a command to its end."""
    check(run_maelift(*command, *words(keys)))


def python(block: str, *arguments: object) -> None:
    """Run a block of Python as a process of its own."""
    check(preloaded().run([CODE, block, *map(str, arguments)], None, environment(), 240))


def tensors(state: Mapping[str, torch.Tensor]) -> dict[str, Figure]:
    """A hash over names, types, shapes and bytes, and the sum and the norm (float64) of all floats together."""
    digest, total, squares = hashlib.sha256(), 0.0, 0.0
    for name, tensor in sorted(state.items()):
        array = tensor.detach().contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode() + array.tobytes())
        values = array.astype(np.float64) if array.dtype.kind == "f" else np.zeros(1)
        total, squares = total + float(values.sum()), squares + float(np.square(values).sum())
    return {"tensors": len(state), "sha256": digest.hexdigest(), "sum": total, "norm": math.sqrt(squares)}


def records(folder: Path) -> dict[str, Figure]:
    """What a run logged of losses, rates and scores, by name, in order."""
    found: dict[str, list[Figure]] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        for name, value in json.loads(line).items():
            if re.match(r"(train/(loss|lr)|val/|held_out|probe)", name) and "second" not in name:
                found.setdefault(name, []).append(value)
    return dict(found)


def pretrained(folder: Path) -> dict[str, Figure]:
    """What a pretraining left."""
    files = ("encoder.safetensors", "decoder.safetensors")
    return {**records(folder), **{name: tensors(load_file(folder / name)) for name in files}}


def transferred(folder: Path) -> dict[str, Figure]:
    """What a transfer left."""
    scores = json.loads((folder / "test.json").read_text())
    figures: dict[str, Figure] = {
        **records(folder),
        "model.safetensors": tensors(load_file(folder / "model.safetensors")),
    }
    figures |= {name: scores[name] for name in ("metrics", "per_class", "val")}
    # That of objects counts boxes above a score, which rounding can cross on another machine.
    figures["confusion"] = scores["confusion"] if scores["confusion_of"] == "images" else None
    for file in sorted(folder.glob("*_test.json")):
        found = json.loads(file.read_text())
        boxes = [one["bbox"] for one in found if "bbox" in one]
        figures[file.name] = {
            "objects": len(found),
            "scores": sum(one["score"] for one in found),
            "boxes": np.sum(boxes, axis=0).tolist() if boxes else None,
        }
    return figures


def exported(folder: Path) -> dict[str, Figure]:
    """The names of an export's files, and the tensors in them."""
    figures: dict[str, Figure] = {"files": sorted(path.name for path in folder.iterdir())}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors":
            figures[path.name] = tensors(load_file(path))
        elif path.suffix == ".pth":
            figures[path.name] = tensors(flat(torch.load(path, weights_only=True)))
        elif path.suffix == ".onnx":
            figures[path.name] = graph(path)
    return figures


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, torch.Tensor]:
    """The tensors of nested mappings, by their names with dots."""
    found: dict[str, torch.Tensor] = {}
    for name, value in content.items():
        if isinstance(value, torch.Tensor):
            found[prefix + name] = value
        elif isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
    return found


def graph(path: Path) -> dict[str, Figure]:
    """A graph's operations, inputs and outputs, and its weights sorted by what they hold: their names are ours to choose."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    arrays = sorted((numpy_helper.to_array(one) for one in model.graph.initializer), key=lambda one: content_of(one))
    return {
        "operations": sorted(node.op_type for node in model.graph.node),
        "inputs": [one.name for one in model.graph.input],
        "outputs": [one.name for one in model.graph.output],
        **tensors({f"{place:04d}": torch.from_numpy(np.array(one)) for place, one in enumerate(arrays)}),
    }


def content_of(array: NDArray[Any]) -> str:
    """A hash of an array's type, shape and bytes."""
    return hashlib.sha256(f"{array.dtype} {array.shape}\n".encode() + array.tobytes()).hexdigest()


@dataclass(frozen=True)
class Tolerance:
    """How far figures may be off on another machine than the recorded one, whose bits depend on the width of its vectors."""

    relative: float = 1e-6
    """of losses, norms of weights, and all that isn't named below"""
    sums: float = 5e-4
    """of sums of weights, as shares of the norm; keys' biases have a gradient of rounding only, AdamW makes whole steps of it"""
    scores: float = 2e-3
    """absolute or relative, of scores that count; a pixel on the edge falls to either side"""

    def allowed(self, where: str, value: float, norm: float) -> float:
        """The largest difference from ``value``, which stands at this place beside this norm."""
        if where.endswith("/sum"):
            return self.sums * norm
        return max(SMALLEST, self.relative * abs(value), self.scores * max(1, abs(value)) * bool(COUNTED.search(where)))


DETECTORS = Tolerance(relative=2e-2, sums=5e-3, scores=2e-2)
"""Which boxes a detector keeps while it is trained is chosen by their order, which rounding can turn."""
BATCH_NORMS = Tolerance(relative=2e-4)
"""Batch norms of few images, which mmseg's heads have, make rounding larger."""


@dataclass(frozen=True)
class Group:
    """Figures that are computed together: ``compute`` writes below a new folder; ``needs`` are the frameworks that it takes."""

    compute: Callable[[Inputs, Path], Mapping[str, Figure]]
    needs: tuple[str, ...] = ()
    tolerance: Tolerance = Tolerance()


def pretraining(**keys: object) -> Group:
    """A pretraining by one process."""

    def compute(inputs: Inputs, out: Path) -> Mapping[str, Figure]:
        maelift("pretrain", data=inputs.images, out=out, **{**PRETRAIN, **keys})
        return pretrained(out)

    return Group(compute)


def pretraining_by_two(inputs: Inputs, out: Path) -> Mapping[str, Figure]:
    """A pretraining by two processes that hold a half of the parameters each (FSDP2, gloo)."""
    keys = {"data": inputs.images, "out": out, **PRETRAIN, "parallel": "fsdp", "clip_grad": 0.5, "ema_decay": 0.9}
    check(run_ranks(2, "pretrain", *words(keys)))
    return pretrained(out)


def classifier(*needs: str, **keys: object) -> Group:
    """A short training of a classifier."""
    return transfer("classify", lambda inputs: inputs.classes, CLASSIFY, needs, keys)


def detector(*needs: str, **keys: object) -> Group:
    """A short training of a detector."""
    return replace(transfer("detect", lambda inputs: inputs.shapes, DETECT, needs, keys), tolerance=DETECTORS)


def segmentor(*needs: str, **keys: object) -> Group:
    """A short training of a segmentor."""
    tolerance = BATCH_NORMS if keys.get("engine") == "mmseg" else Tolerance()
    return replace(transfer("segment", lambda inputs: inputs.scenes, SEGMENT, needs, keys), tolerance=tolerance)


def transfer(task: str, data: Callable[[Inputs], Path], usual: Keys, needs: tuple[str, ...], keys: Keys) -> Group:
    """A short training from the drawn encoder."""

    def compute(inputs: Inputs, out: Path) -> Mapping[str, Figure]:
        maelift("transfer", task, data=data(inputs), out=out, encoder=inputs.encoder, **{**usual, **keys})
        return transferred(out)

    return Group(compute, needs)


def exporting(to: str, *needs: str) -> Group:
    """The drawn encoder for a framework."""

    def compute(inputs: Inputs, out: Path) -> Mapping[str, Figure]:
        maelift("export", inputs.encoder, "--to", to, out=out, **SMALL_EXPORT.get(to, {}))
        return exported(out)

    return Group(compute, needs)


def suite(inputs: Inputs, out: Path) -> Mapping[str, Figure]:
    """The table of a suite: two arms, two label counts, two seeds. The hashes of its runs are those of suites begun earlier."""
    out.mkdir()
    (out / "suite.yaml").write_text(SUITE)
    write_classes(out / "images" / "train", range(22))
    write_classes(out / "images" / "test", range(22, 30))
    check(run_maelift("bench", "suite.yaml", "out=done", cwd=out))
    table = io.StringIO((out / "done" / "results.csv").read_text())
    return {"rows": list(csv.DictReader(table))}


def functions(inputs: Inputs, out: Path) -> Mapping[str, Figure]:
    """The commands as functions."""
    nested = {key: value for key, value in PRETRAIN.items() if "." not in key}
    nested["decoder"] = {key.partition(".")[2]: value for key, value in PRETRAIN.items() if "." in key}
    python(FUNCTIONS, inputs.images, inputs.classes, inputs.encoder, out, nested, dict(CLASSIFY))
    return {
        "pretrain": pretrained(out / "pretrained"),
        "transfer": transferred(out / "classifier"),
        "export": exported(out / "timm"),
    }


def features(inputs: Inputs, out: Path) -> Mapping[str, Figure]:
    """An imported encoder, and its features of two images as ``maelift.load_encoder`` gives them."""
    out.mkdir()
    python(FEATURES, inputs.encoder, out / "features.safetensors")
    return {
        "encoder": tensors(load_file(inputs.encoder)),
        "features": tensors(load_file(out / "features.safetensors")),
    }


GROUPS: Mapping[str, Group] = {
    "pretrain-random": pretraining(),
    "pretrain-block": pretraining(**{"masking.strategy": "block"}),
    "pretrain-grid": pretraining(**{"masking.strategy": "grid"}),
    "pretrain-in-encoder": pretraining(**{"masking.in_encoder": True}),
    "pretrain-cross": pretraining(**{"decoder.attention": "cross", "decoder.predict": 0.5}),
    "pretrain-all-keys": pretraining(
        accumulate=2,
        activation_checkpointing=True,
        clip_grad=0.5,
        ema_decay=0.9,
        crops_per_image=2,
        norm_pix_loss=False,
    ),
    "pretrain-fsdp": Group(pretraining_by_two),
    "classify-full": classifier(),
    "classify-scratch": classifier(init="scratch"),
    "classify-partial": classifier(method="partial", blocks=1),
    "classify-lora": classifier("peft", method="lora"),
    "classify-linear": classifier(method="linear"),
    "classify-lbfgs": classifier(method="linear", solver="lbfgs", features="both"),
    "classify-attentive": classifier(method="attentive"),
    "classify-knn": classifier(method="knn", recipe="paper", neighbours=5),
    "detect-torchvision": detector(head="mask"),
    "detect-torchvision-boxes": detector(head="faster"),
    "detect-detectron2": detector("detectron2", engine="detectron2", head="mask"),
    "detect-detectron2-cascade": detector("detectron2", engine="detectron2", head="cascade"),
    "segment-linear": segmentor(head="linear"),
    "segment-conv": segmentor(head="conv"),
    "segment-upernet": segmentor(head="upernet", relative_positions=True),
    "segment-mmseg-conv": segmentor("mmseg", engine="mmseg", head="conv"),
    "segment-mmseg-upernet": segmentor("mmseg", engine="mmseg", head="upernet"),
    "suite": Group(suite),
    "functions": Group(functions),
    "features": Group(features),
    "export-timm": exporting("timm"),
    "export-transformers": exporting("transformers", "transformers"),
    "export-torchvision": exporting("torchvision"),
    "export-onnx": exporting("onnx", "onnx", "onnxruntime"),
    "export-detectron2": exporting("detectron2", "detectron2"),
    "export-mmseg": exporting("mmseg", "mmseg"),
}


def compute(name: str, inputs: Inputs) -> Mapping[str, Figure]:
    """The figures of a group, as JSON gives them back."""
    figures: Mapping[str, Figure] = json.loads(json.dumps(GROUPS[name].compute(inputs, inputs.root / f"out-{name}")))
    return figures


def machine() -> dict[str, str]:
    """What the bits of the figures depend on beside the code."""
    cpu = Path("/proc/cpuinfo")
    lines = re.findall(
        r"^(?:model name|cpu family|model|stepping)\s*:\s*(.*)$", cpu.read_text() if cpu.exists() else "", re.MULTILINE
    )
    return {
        "cpu": ", ".join(lines[:4]) or platform.processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


def differences(
    recorded: Figure, found: Figure, tolerance: Tolerance | None, where: str = "", norm: float = 0.0
) -> Iterator[str]:
    """What moved, a line each: anything at all, or with a tolerance numbers by more than it, and never hashes."""
    if isinstance(recorded, Mapping) and isinstance(found, Mapping) and recorded.keys() == found.keys():
        norm = _number(recorded.get("norm")) or 0.0
        for name, value in recorded.items():
            if name != "sha256" or tolerance is None:
                yield from differences(value, found[name], tolerance, f"{where}/{name}", norm)
    elif isinstance(recorded, list) and isinstance(found, list) and len(recorded) == len(found):
        for place, (one, other) in enumerate(zip(recorded, found, strict=True)):
            yield from differences(one, other, tolerance, f"{where}[{place}]", norm)
    elif recorded != found:
        before, after = _number(recorded), _number(found)
        if (
            tolerance is None
            or before is None
            or after is None
            or not abs(after - before) <= tolerance.allowed(where, before, norm)
        ):
            yield f"{where}: recorded {recorded}, found {found}"


def _number(value: Figure) -> float | None:
    """A number, or a cell of a table that holds one."""
    try:
        return float(value) if isinstance(value, int | float | str) else None
    except ValueError:
        return None


def main(arguments: Sequence[str]) -> None:
    """Record all figures in a file, or those of the groups that are named after it, the others kept; tells the seconds of each.

    Groups that were recorded by themselves have their own machine and commit, in ``later``.
    """
    target, *names = arguments
    figures: dict[str, Mapping[str, Figure]] = {}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MAELIFT_CACHE"] = f"{folder}/cache"
        inputs = Inputs(Path(folder))
        for name in names or GROUPS:
            start = time.monotonic()
            figures[name] = compute(name, inputs)
            print(f"{time.monotonic() - start:6.1f} s  {name}", flush=True)
    print(f"{time.monotonic() - began:6.1f} s  together")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    here, file = {"machine": machine(), "commit": commit}, Path(target)
    content: dict[str, Any] = {**here, "figures": figures, "later": {}}
    if names and file.exists():
        content = json.loads(file.read_text())
        content["figures"] |= figures
        content["later"] = {**content.get("later", {}), **dict.fromkeys(names, here)}
    file.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
