"""How long a suite's runs take: by finished runs of their kind, else by a few measured steps."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from typing import Any

import torch

from ..core.data.labeled_dataset import draw_labeled
from ..core.data.sampling import Sampler, each
from ..core.device import autocast, cpu_threads
from ..core.distributed import Ranks
from ..core.models.backbone import Backbone
from ..core.models.backbone_cost import backbone_flops
from ..core.models.build_backbone import build_backbone
from ..core.models.cost import MOST_FLOPS, encoder_flops, measured_images, seconds_an_image, training_seconds
from ..core.seeding import seeded_rng
from ..core.training.loader import Batches
from ..transfer.task import Task
from ..transfer.tasks import CLASSIFY
from .arm_kind import MEASURED_EVALUATION, EncoderCost, Speed, Training
from .execute import shape_only
from .experiment import Context
from .protocol import Results
from .runs import Run

BUDGET = 2.0
"""Seconds after which no further step is measured."""


class RunCosts:
    """What runs compute, by counting: images trained on or evaluated, in forward passes of the suite's encoder."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._encoders: dict[str, EncoderCost] = {}

    def of_encoder(self, arm: str) -> EncoderCost:
        """What a run that makes an arm's encoder computes."""
        if arm not in self._encoders:
            self._encoders[arm] = self._context.config.arm_kind(arm).cost(self._context, arm)
        return self._encoders[arm]

    def of(self, run: Run) -> float:
        """What a run computes, in forward passes of the suite's encoder on an image."""
        config = self._context.config
        unit = encoder_flops(config.spec)
        if run.makes_encoder:
            cost = self.of_encoder(run.arm)
            return cost.trained * cost.flops / unit
        if run.kind == "test":
            images = len(self._context.pools.tasks[run.task].splits.test)
        else:
            images = run.steps * config.recipe(run.task, run.arm).batch_size
        return images * self._context.relative_cost(run.task) * backbone_flops(config.spec_of(run.arm)) / unit


class RuntimeHistory:
    """Seconds of runs in proportion to their ``cost``, as those of the same kind and task took."""

    def __init__(self, cost: Callable[[Run], float]) -> None:
        self._cost = cost
        self._seconds: defaultdict[tuple[str, ...], float] = defaultdict(float)
        self._costs: defaultdict[tuple[str, ...], float] = defaultdict(float)

    @classmethod
    def of(cls, runs: Iterable[Run], results: Results, cost: Callable[[Run], float]) -> RuntimeHistory:
        """That of the finished ones of these runs."""
        history = cls(cost)
        for run in runs:
            if (result := results(run)) is not None:
                history.add(run, float(result["seconds"]))
        return history

    def known_seconds(self, run: Run) -> float | None:
        """What a run takes; None where none of its kind and task was added."""
        return self.seconds(run) if self.knows(run) else None

    def copy(self) -> RuntimeHistory:
        """Another with what this one has."""
        history = RuntimeHistory(self._cost)
        history._seconds.update(self._seconds)
        history._costs.update(self._costs)
        return history

    def add(self, run: Run, seconds: float, share: float = 1.0) -> None:
        """Add a run, or the ``share`` of it, that took ``seconds``."""
        for group in ((run.kind, run.task), ()):
            self._seconds[group] += seconds
            self._costs[group] += share * self._cost(run)

    def knows(self, run: Run) -> bool:
        """Whether a run of its kind and task was added."""
        return self._costs[run.kind, run.task] > 0

    def seconds(self, run: Run) -> float | None:
        """What a run takes; by all others where none of its kind and task was added, None where none was at all."""
        group = (run.kind, run.task) if self.knows(run) else ()
        total = self._costs[group]
        return self._seconds[group] / total * self._cost(run) if total > 0 else None


class MeasuredCost:
    """Seconds of a run on this machine by a few of its steps, done on its images; of large models, by counting operations."""

    def __init__(self, context: Context, device: torch.device) -> None:
        self.context, self.device = context, device
        self._costs = RunCosts(context)
        self._speeds: dict[tuple[object, ...], Speed] = {}

    def seconds(self, run: Run) -> float:
        """What a run takes, alone on its threads; 0 where only weights are read."""
        config = self.context.config
        if run.makes_encoder:
            cost = self._costs.of_encoder(run.arm)
            trained, evaluated = cost.trained, cost.evaluated
        else:
            trained, evaluated = 0.0, len(self.context.pools.tasks[run.task].splits.test)
            if run.kind == "train":
                trained = run.steps * config.recipe(run.task, run.arm).batch_size
                evaluated = config.designs[run.task].evaluations * self.context.evaluated_images(run)
        if not trained and not evaluated:
            return 0.0
        with cpu_threads(config.threads):
            speed = self._speed(run)
        return speed.training * trained + speed.evaluating * evaluated

    def _speed(self, run: Run) -> Speed:
        config = self.context.config
        arm = run.arm if run.makes_encoder else ""
        kind = config.arm_kind(run.arm)
        spec = config.spec_of(run.arm, run.task or CLASSIFY)
        like = (run.task, arm, type(kind), run.variant, json.dumps(asdict(spec), sort_keys=True))
        if like not in self._speeds:
            with seeded_rng(0, "plan"):
                if run.makes_encoder:
                    self._speeds[like] = config.arm_kind(arm).measure(self.context, arm, self.device, self._of_task)
                else:
                    self._speeds[like] = self._of_task(self._task(run))
        return self._speeds[like]

    def _of_task(self, task: Task[Any, Any]) -> Speed:
        """The speed of a task on its images, all validation images at once."""
        model = task.build_model()
        flops, model = task.flops(model), model.to(self.device)
        if 3 * flops > MOST_FLOPS:
            training = training_seconds(flops, 1, self.device)
            return Speed(training, training / 3)
        size = measured_images(flops, task.config.batch_size, self.device)
        batches = Batches(
            Sampler(len(task.splits.train), size, 0), each(task.sample), draws=task.draws, ranks=task.ranks
        )
        task.prepare(model)
        if not any(parameter.requires_grad for parameter in model.parameters()):  # nearest neighbours take no steps
            return Speed(
                0.0, seconds_an_image(lambda: task.validate(model.eval()), len(task.splits.val), self.device, BUDGET)
            )
        optimizer = task.optimizer(model)

        def step() -> None:
            batch = batches.load(0, 0).to(self.device)
            with autocast(self.device, "auto"):
                loss = task.loss(model.train(), batch)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        def evaluate() -> None:
            task.validate(model.eval())

        training = seconds_an_image(step, size, self.device, BUDGET)
        return Speed(training, seconds_an_image(evaluate, len(task.splits.val), self.device, BUDGET))

    def _task(self, run: Run) -> Task[Any, Any]:
        """The task of a run as it is trained there, but with few validation images; where there are none, labelled ones."""
        config, splits = self.context.config, self.context.pools.tasks[run.task].splits
        kind = config.arm_kind(run.arm)
        spec, preprocessing = config.spec_of(run.arm, run.task), self.context.preprocessing
        encoder: Backbone = shape_only(run, self.context)
        if kind.has_encoder:
            encoder = build_backbone(spec, preprocessing=preprocessing)
        train = draw_labeled(splits.train, run.labels, run.seed)
        val = splits.val if len(splits.val) else train
        measured = replace(splits, train=train, val=val.subset(range(min(len(val), MEASURED_EVALUATION))))
        recipe, ranks = config.recipe(run.task, run.arm), Ranks(0, 1, self.device)
        return kind.task(Training(recipe, run.variant, encoder, measured, ranks))
