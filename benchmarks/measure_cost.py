"""Measuring what each arm's trained model costs to use, once a suite, on the device that it is trained on."""

from __future__ import annotations

import json
import logging
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..core.device import autocast, cpu_threads, device_name
from ..core.errors import shortened
from ..core.files import atomic_write_text
from ..core.signals import Interrupted
from ..transfer.classification.evaluation import pixel_batches
from ..transfer.detection.model import Detector
from ..transfer.model_file import MODEL_FILE
from .experiment import Context
from .model_cost import ModelCost
from .results import Cell, SuiteResult

logger = logging.getLogger("maelift")

COSTS_FILE = "costs.json"
BATCH = 32
"""Images at a time when throughput is measured, as far as the test split has so many."""
SECONDS = 0.5
"""Of measuring latency, and of measuring throughput, for each model."""
FEWEST, MOST = 3, 50
"""Measurements that the median is taken of."""
LONGEST = 20.0
"""Seconds that a batch may take by the latency of one image: beyond that throughput isn't measured."""


def measure_costs(context: Context, result: SuiteResult, out: Path, device: torch.device) -> tuple[ModelCost, ...]:
    """What the models of a result cost, each measured once: the file in ``out`` holds what was, on whatever machine.

    The model of an arm on a task is that of its first run at the most labels. One that can't be measured is named with the
    reason, and costs no report.
    """
    path = out / COSTS_FILE
    known = {(cost.task, cost.arm): cost for cost in read_costs(path)}
    found = []
    for task, cell in _measured_cells(result):
        cost = known.get((task, cell.arm))
        if cost is None or cost.run != cell.key:
            cost = _measure(context, task, cell, out / "runs", device)
        found.append(cost)
    if found != list(known.values()):
        atomic_write_text(path, json.dumps([asdict(cost) for cost in found], indent=1) + "\n")
    return tuple(found)


def read_costs(path: Path) -> list[ModelCost]:
    """The costs in a suite's file; none where it isn't there or damaged, as they are then measured again."""
    try:
        content = json.loads(path.read_text())
        return [ModelCost(**{**entry, "image": tuple(entry["image"])}) for entry in content]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def _measured_cells(result: SuiteResult) -> Iterator[tuple[str, Cell]]:
    """The task and run whose model is measured, for each task and arm that has one."""
    for part in result.parts:
        for arm in result.arms:
            cells = [cell for cell in part.cells if cell.arm == arm.name]
            if cells:
                yield part.name, max(cells, key=lambda cell: (cell.labels, -cell.seed))


def _measure(context: Context, task: str, cell: Cell, store: Path, device: torch.device) -> ModelCost:
    """Measure the model of a run; every error becomes a reason."""
    cost = ModelCost(cell.arm, task, cell.key, described(context, device))
    try:
        model = context.config.arm_kind(cell.arm).load_model(store / cell.key / MODEL_FILE).to(device).eval()
        images = context.pools.tasks[task].splits.test.images
        (pixels, *_) = pixel_batches(images, model.spec, BATCH, model.preprocessing.reading)
        with cpu_threads(context.config.threads):
            return measured(cost, model, pixels.to(device), device)
    except Interrupted:
        raise
    except Exception as error:  # a figure beside the scores: no reason to lose a report
        reason = shortened(str(error).strip().partition("\n")[0] or type(error).__name__)
        logger.warning("bench: what %s costs to use is not measured: %s", cell.arm, reason)
        return replace(cost, reason=reason)


def described(context: Context, device: torch.device) -> str:
    """A device as the report names it."""
    threads = context.config.threads
    name = device_name(device)
    return name if device.type == "cuda" else f"{name}, {threads} thread{'' if threads == 1 else 's'}"


def measured(cost: ModelCost, model: nn.Module, pixels: Tensor, device: torch.device) -> ModelCost:
    """Measure a model on stored pixel values (B, C, H, W), which are on its device: from there to logits, boxes or maps.

    Latency is the median over single images, throughput that over batches; both after a first pass, which isn't measured.
    """
    step = prediction_step(model)
    cost = replace(
        cost,
        image=tuple(pixels.shape[1:]),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        flops=forward_flops(step, pixels[:1]),
    )
    with torch.inference_mode(), autocast(device, "auto"):
        latency = median_seconds(lambda: step(pixels[:1]), device)
        cost = replace(cost, latency=latency)
        if latency * len(pixels) > LONGEST:
            return replace(cost, reason=f"throughput not measured, as a batch takes {latency * len(pixels):,.0f} s")
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds = median_seconds(lambda: step(pixels), device)
        memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return replace(cost, throughput=len(pixels) / seconds, batch=len(pixels), memory=memory)


def prediction_step(model: Any) -> Callable[[Tensor], object]:
    """What a trained model does with stored pixel values (B, C, H, W); detectors normalise them themselves."""
    if isinstance(model, Detector):
        return model
    return lambda pixels: model(model.preprocessing.normalize(pixels))


@torch.no_grad()
def forward_flops(step: Callable[[Tensor], object], pixels: Tensor) -> float:
    """Floating-point operations on one image, forward: of matrix products and convolutions."""
    with (
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),
    ):  # whose products it counts on a CPU too
        step(pixels)
    return float(counter.get_total_flops())


def median_seconds(step: Callable[[], object], device: torch.device) -> float:
    """The median seconds of a step, measured for ``SECONDS`` or so after a first one."""
    times: list[float] = []
    _finished(step, device)
    began = time.perf_counter()
    while len(times) < FEWEST or (len(times) < MOST and time.perf_counter() - began < SECONDS):
        start = time.perf_counter()
        _finished(step, device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _finished(step: Callable[[], object], device: torch.device) -> None:
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
