"""The result of a suite, collected from its finished runs."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.data.groups import groups_of
from ..core.data.labeled_dataset import LabeledDataset
from ..core.device import choose_device
from ..core.models.encoder_spec import EncoderSpec
from ..core.public_names import public_config, public_text
from ..core.yaml_files import to_dict, to_yaml
from ..pretrain.evaluation import PICTURE_FILE
from ..transfer.tasks import CLASSIFY
from ..version import __version__
from .data import SuiteImages
from .examples import to_data_url, won_and_lost
from .experiment import Context
from .leakage import shown_text
from .protocol import ArmState, Results, arm_state, encoder_runs, iter_cells, seconds_spent
from .public_data import pretraining_overlaps, unknown_sources
from .results import Arm, Example, NearPair, SuiteResult, TaskResult
from .runs import Run, libraries
from .suite import BenchConfig


@dataclass
class RunOutcome:
    """How a suite ended: runs that ``failed``, by key, with the error; and why others were not started."""

    failed: dict[str, tuple[Run, str]] = field(default_factory=dict)
    unspent: str = ""


def collect(context: Context, store: Path, results: Results, outcome: RunOutcome | None = None) -> SuiteResult:
    """Collect the result from the finished runs, and the ``outcome`` of the suite."""
    outcome = RunOutcome() if outcome is None else outcome
    config, pools = context.config, context.pools
    comparisons = [arm_state(context, *place, results, outcome.failed) for place in iter_cells(config)]
    encoders = {arm: _encoders(context, arm, results) for arm in config.arms}
    pictures = [store / run.key / PICTURE_FILE for arm in config.arms for run, _ in encoders[arm]]
    parts = tuple(
        _part(context, task, [state for state in comparisons if state.task == task], results) for task in config.designs
    )
    arms = tuple(
        Arm(
            name,
            config.arms[name].label,
            _note(config, name),
            sum(float(result["seconds"]) for _, result in encoders[name])
            if config.arm_kind(name).trains_on_pool
            else 0,
            config.arms[name].x,
            config.arm_kind(name).pretrained,
            config.arm_kind(name).upper_bound,
            pretraining=public_config(config.arm_kind(name).pretraining(config, name)),
            network=_network(config, name),
        )
        for name in config.arms
    )
    result = SuiteResult(
        name=Path(config.suite).stem,
        title=config.title,
        baseline=config.baseline,
        arms=arms,
        parts=parts,
        pool=len(pools.pool),
        guards=(*pools.findings, *unknown_sources(config.public_sources(), list(context.origins.values()))),
        seen=tuple(_seen(context)),
        reconstructions=next((path for path in pictures if path.is_file()), None),
        config_yaml=to_yaml(public_config(config.given())),
        versions=_versions(),
        machine=_machine(config),
        seconds_total=seconds_spent((run for state in comparisons for run in state.requested), results),
        pretraining_seeds=len(config.pretrain_seeds),
        missing=tuple(
            f"{state.arm}{'' if state.task == CLASSIFY else f', {state.task},'} at {state.labels} labels"
            for state in comparisons
            if not state.cells
        ),
        failed=tuple(
            f"{run.title()}: {public_text(problem, [store.parent])}" for run, problem in outcome.failed.values()
        ),
        unspent=outcome.unspent,
        axis=config.axis,
        published=config.published,
        looks=config.looks,
        effect=None if config.effect is None else config.effect / 100,
        near=tuple(_near(pools)),
        shown="" if config.plain_images and config.shown is None else shown_text(pools.pool, config.form, config.shown),
    )
    return replace(result, examples=tuple(_examples(context, result)))


def _encoders(context: Context, arm: str, results: Results) -> list[tuple[Run, Mapping[str, Any]]]:
    return [(run, found) for run in encoder_runs(context, arm) if (found := results(run)) is not None]


def _examples(context: Context, result: SuiteResult) -> Iterator[Example]:
    """Test images that the compared arms win and lose, of every task that is compared."""
    for part in result.parts:
        if part.cells and not part.short:
            test = context.pools.tasks[part.name].splits.test
            reference = result.reference(part, min(part.label_counts))
            yield from won_and_lost(part, test, result.rivals, reference, context.config.form, context.config.shown)


def _seen(context: Context) -> Iterator[str]:
    """What is known of arms' weights having seen the suite's own public data sets; of arms that share weights once."""
    sources, named = context.config.public_sources(), set[str]()
    for arm, weights in context.origins.items():
        if weights not in named:
            named.add(weights)
            yield from pretraining_overlaps(context.config.arms[arm].label, weights, sources)


def _near(pools: SuiteImages) -> Iterator[NearPair]:
    """The near-duplicates that were left out, with pictures."""
    for pair in pools.pairs:
        first, second = (to_data_url(picture) for picture in pair.pictures)
        yield NearPair(pair.part, pair.name, pair.other, pair.similarity, (first, second))


def _part(context: Context, task: str, comparisons: Sequence[ArmState], results: Results) -> TaskResult:
    """A task with what came of it."""
    design = context.config.designs[task]
    compared = {cell.key for state in comparisons for cell in state.cells}
    tried: dict[str, dict[str, Run]] = {state.arm: {} for state in comparisons}
    for state in comparisons:
        tried[state.arm] |= {run.key: run for run in state.requested if run.kind == "train" and run.key not in compared}
    return TaskResult(
        name=task,
        kind=design.kind,
        label_counts=design.labels,
        seeds={labels: design.seeds_at(labels) for labels in design.labels},
        cells=tuple(cell for state in comparisons for cell in state.cells),
        tunings=tuple(state.tuning for state in comparisons if state.tuning is not None),
        checks=tuple(state.check for state in comparisons if state.check is not None),
        counts=context.pools.tasks[task].counts,
        recipes={arm: public_config(to_dict(context.config.recipe(task, arm))) for arm in context.config.arms},
        short=design.short,
        clusters=_clusters(context, task),
        class_counts=_class_counts(context.pools.tasks[task].splits.test) if design.scores.is_accuracy else (),
        tuning_seconds={arm: seconds_spent(runs.values(), results) for arm, runs in tried.items()},
        cross_folds=_cross_folds(context, task),
    )


def _cross_folds(context: Context, task: str) -> int:
    """The most folds of a seed's labelled images; 0 where validation images choose."""
    design = context.config.designs[task]
    places = ((labels, seed) for labels in design.labels for seed in design.seeds_at(labels))
    return max((found.count for place in places if (found := context.folds(task, *place)) is not None), default=0)


def _class_counts(images: LabeledDataset) -> tuple[int, ...]:
    """Images of each class that there are any of."""
    counts = Counter(label for labels in images.strata for label in labels)
    return tuple(counts[label] for label in sorted(counts))


def _clusters(context: Context, task: str) -> tuple[int, ...]:
    """The group that each test image of a task is of, as a number; none where images aren't grouped."""
    config = context.config
    group = config.data.group if task == CLASSIFY else config.transfer(task).group
    if group is None:
        return ()
    names = groups_of(context.pools.tasks[task].splits.test, group)
    return tuple(int(number) for number in np.unique(names, return_inverse=True)[1])


def _note(config: BenchConfig, name: str) -> str:
    """How an arm gets its encoder, for the report."""
    arm, network = config.arms[name], _network(config, name)
    shape = f"{network}: " if network else "" if arm.model is None else f"{arm.model}: "
    return shape + config.arm_kind(name).describe(arm)


def _network(config: BenchConfig, name: str) -> str:
    """The architecture and image size of an arm that has its own; empty of others."""
    if not config.arm_kind(name).own_architecture:
        return ""
    spec = config.spec_of(name)
    height, width = spec.image_size
    if isinstance(spec, EncoderSpec):
        what = f"a ViT of width {spec.embed_dim} and depth {spec.depth}"
    else:
        what = f"timm's {spec.architecture}"
    return f"{what} at {height}×{width} pixels"


def _versions() -> dict[str, str]:
    return {"maelift": __version__, "python": platform.python_version(), **libraries()}


def _machine(config: BenchConfig) -> str:
    device = device_of(config)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return f"{device.type} ({name}), {os.cpu_count()} cores, {config.threads} threads a run"


def device_of(config: BenchConfig) -> torch.device:
    """The device of the runs; of a cluster, what this machine has."""
    return choose_device(config.device if config.executor == "local" else "auto")
