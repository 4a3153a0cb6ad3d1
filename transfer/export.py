"""The command ``maelift export`` for all files: encoder files (adapters/export.py), and full models as ONNX."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..adapters import export as encoder_export
from ..adapters import onnx
from ..adapters.bundle import Bundle, ExportConfig
from ..adapters.certificate import LIMITS, Certificate, Difference, Keys, LevelResult, SizeResult, tool_versions
from ..adapters.export import ExportCommand, ExportResult
from ..adapters.onnx import OnnxExport
from ..adapters.onnx_graph import data_file
from ..adapters.parity import certificate_sizes, sample_images
from ..core.dry_run import Plan
from ..core.errors import CheckpointError, ConfigError
from ..core.optional_imports import require
from ..core.terminal import printable
from .model_file import ModelFile, is_model, read_model
from .onnx_graph import write_model_graph
from .segmentation.model import Segmentor
from .trained_model import build_model

__all__ = ["ExportCommand", "export", "plan"]

GRAPH_FILE = "model.onnx"
ONNX = "export to onnx"
USAGE = """\
import numpy as np, onnxruntime                        # neither torch nor maelift
session = onnxruntime.InferenceSession("{out}/model.onnx")
images = np.zeros((1, {channels}, {height}, {width}), np.float32)  # {meaning}
{outputs} = session.run([{names}], {{"images": images}})  # the classes: classes.txt"""


def export(config: ExportConfig) -> ExportResult:
    """Write an encoder file for ``config.to``, or the full model of a model file as ONNX: the complete folder, or nothing.

    Raises MaeliftError as the adapters do, and CheckpointError for models that have no graph.
    """
    if not is_model(config.encoder):
        return encoder_export.export(config)
    file, settings = _checked(config)
    return encoder_export.export_to_folder(Path(config.out), lambda folder: _export_model(file, folder, settings))


def plan(config: ExportConfig) -> Plan:
    """What ``maelift export`` would do."""
    if not is_model(config.encoder):
        return encoder_export.plan(config)
    file, _ = _checked(config)
    encoder_export.check_free(Path(config.out))
    return Plan(
        (
            ("model", f"{file.task}, {len(file.classes)} classes"),
            ("writes", "a folder for onnx, if its certificate passes"),
        ),
        parameters=sum(tensor.numel() for tensor in file.state.values()),
    )


def _checked(config: ExportConfig) -> tuple[ModelFile, OnnxExport]:
    if not isinstance(config, OnnxExport):
        raise CheckpointError(
            f"{config.encoder}: a full model, which can be exported to onnx only. For {config.to} give an encoder file: the "
            "encoder.safetensors beside it, where there is one."
        )
    for key in ("image_size", "patch_size"):
        if getattr(config, key) is not None:
            raise ConfigError(key, getattr(config, key), "null: a full model has the size that it was trained at")
    file = read_model(config.encoder)
    if file.task == "detect":
        raise CheckpointError(
            f"{config.encoder}: a detector, whose search for objects has no ONNX graph here. Nothing was written; "
            "classifiers and segmentors have one."
        )
    file.plain_spec(ONNX)
    return file, config


def _export_model(file: ModelFile, folder: Path, config: OnnxExport) -> Bundle:
    require("onnx")
    model = build_model(file)
    path = folder / GRAPH_FILE
    outputs = write_model_graph(file, model, path, config)
    lines = [printable(name) for name in file.classes]
    (folder / "classes.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (folder / "classes.json").write_text(json.dumps(list(file.classes)) + "\n", encoding="utf-8")
    files = {
        GRAPH_FILE: "the graph, its weights, and in its metadata task, classes and preprocessing",
        "classes.txt": "the classes, one a line, in the order of the logits",
        "classes.json": "the same as a list",
    }
    if (data := data_file(path)).exists():
        files[data.name] = "weights; keep it beside the graph"
    usage = onnx.usage(
        USAGE,
        file.plain_spec(ONNX),
        file.preprocessing,
        list(outputs),
        None if config.normalize else "the metadata say",
    )
    escaped = sum(line != name for line, name in zip(lines, file.classes, strict=True))
    names = "1 class has" if escaped == 1 else f"{escaped} classes have"
    escape_note = (
        f"{names} a name of letters that are no text of one line: escaped in classes.txt, as it is in classes.json",
    )
    return Bundle(
        files, certify_graph(file, model, path, config), usage, (*_notes(model), *(escape_note if escaped else ()))
    )


def _notes(model: nn.Module) -> tuple[str, ...]:
    if not isinstance(model, Segmentor):
        return ("images are expected as maelift prepares them: the shorter side fitted, the centre cut out",)
    how = model.inference
    if how.mode == "whole":
        return (f"images are expected with a shorter side of {how.short_side} pixels (0: their own)",)
    return (
        f"one window at a time: maelift brings images to a shorter side of {how.short_side} pixels (0: their own), cuts "
        f"windows of {how.crop[0]}×{how.crop[1]} every {how.stride[0]}×{how.stride[1]} pixels, and averages their logits",
    )


def certify_graph(file: ModelFile, model: nn.Module, path: Path, config: OnnxExport) -> Certificate:
    """Compare a written graph, as onnxruntime runs it, with the model: logits of several sizes, of two images and of one."""
    session = onnx.session(str(path))
    model = model.eval().float()
    spec, preprocessing = file.plain_spec(ONNX), file.preprocessing
    sizes = certificate_sizes(spec) if config.dynamic_size else [spec.image_size]
    if isinstance(model, Segmentor) and config.dynamic_size:
        sizes.append((spec.image_size[0] + 1, spec.image_size[1] + spec.patch_size - 1))  # padded
    results, failures = [], []
    for size in sizes:
        stored = sample_images(size, spec.channels, preprocessing.value_range)
        batch = torch.from_numpy(np.stack(stored)).permute(0, 3, 1, 2)
        normed = preprocessing.normalize(batch)
        with torch.inference_mode():
            expected = cast(Tensor, model(normed)).numpy()
        images = (batch.float() if config.normalize else normed).numpy()
        found = session.run(["logits"], {"images": images})[0]
        single = session.run(["logits"], {"images": images[:1]})[0]
        levels = tuple(
            LevelResult(name, spec.depth - 1, {"float32": _difference(one, other)})
            for name, one, other in (("logits", found, expected), ("one image", single, expected[:1]))
        )
        results.append(SizeResult(size, 0, Difference(0.0, 0.0), levels))
        for level in levels:
            relative = level.differences["float32"].relative
            if not relative <= LIMITS[torch.float32]:
                failures.append(
                    f"{level.name} of {size[0]}×{size[1]} pixels differ by {relative:.1e} of the largest (limit "
                    f"{LIMITS[torch.float32]:g})"
                )
    return Certificate(
        framework="onnx",
        encoder=file.content_hash,
        keys=Keys(tuple(file.state)),
        sizes=tuple(results),
        failures=tuple(failures),
        versions=tool_versions("onnx", "onnxruntime", "torch"),
    )


def _difference(found: NDArray[np.float32], expected: NDArray[np.float32]) -> Difference:
    if found.shape != expected.shape:
        return Difference(math.inf, math.inf)
    largest = float(np.abs(found - expected).max())
    return Difference(largest, largest / max(float(np.abs(expected).max()), 1e-12))
