"""How long a suite's runs take: by runs of their like that are finished, and by a few measured steps where there are none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from ..core.data.labeled_dataset import Splits, draw_labeled
from ..core.data.sampling import Batches, Sampler, each
from ..core.device import autocast
from ..core.distributed import Ranks
from ..core.models.cost import MOST_FLOPS, measured_images, seconds_an_image, training_seconds
from ..core.models.encoder import Encoder
from ..core.seeding import seeded_rng
from ..pretrain.dry_run import loading_seconds, training_seconds_an_image
from ..transfer.classification.task import ClassificationTask
from ..transfer.recipe import Recipe
from ..transfer.task import Task
from .protocol import Results
from .runs import Context, Run, task_of
from .task_design import CLASSIFY

JUDGED = 32
"""Images that are judged to tell how long that takes."""
BUDGET = 2.0
"""Seconds after which no further step is measured."""


class RuntimeHistory:
    """Seconds of a run in proportion to what it costs by counting, as those of the same kind and task were."""

    def __init__(self) -> None:
        self._seconds: defaultdict[tuple[str, ...], float] = defaultdict(float)
        self._images: defaultdict[tuple[str, ...], float] = defaultdict(float)

    @classmethod
    def of(cls, runs: Iterable[Run], results: Results) -> RuntimeHistory:
        """That of the finished ones of these runs."""
        pace = cls()
        for run in runs:
            if (result := results(run)) is not None:
                pace.see(run, float(result["seconds"]))
        return pace

    def see(self, run: Run, seconds: float, share: float = 1.0) -> None:
        """Take in a run, or the ``share`` of it, that took ``seconds``."""
        for like in ((run.kind, run.task), ()):
            self._seconds[like] += seconds
            self._images[like] += share * run.images

    def knows(self, run: Run) -> bool:
        """Whether a run of its like was seen."""
        return self._images[run.kind, run.task] > 0

    def seconds(self, run: Run) -> float | None:
        """What a run takes; by all others where none of its like was seen, None where none was at all."""
        like = (run.kind, run.task) if self.knows(run) else ()
        return self._seconds[like] / self._images[like] * run.images if self._images[like] > 0 else None


class MeasuredCost:
    """Seconds of a run on this machine by a few of its steps, done on its images; of large models, by counting operations."""

    def __init__(self, context: Context, device: torch.device) -> None:
        self.context, self.device = context, device
        self._known: dict[tuple[object, ...], tuple[float, float]] = {}

    def seconds(self, run: Run) -> float:
        """What a run takes, alone on its threads; 0 where only weights are read."""
        config, pools = self.context.config, self.context.pools
        if run.kind == "weights":
            return 0.0
        with _threads(config.threads):
            if run.kind == "mae":
                mae = config.mae_config(run.arm, run.seed, "")
                training, _ = self._speed(run)
                return training * mae.epochs * self.context.pool_size(run.arm)
            training, judging = self._speed(run)
        if run.kind == "test":
            return judging * len(pools.tasks[run.task].splits.test)
        recipe: Recipe
        if run.kind == "supervised":
            recipe, looks, judged = config.supervised_recipe(run.arm), config.evaluations, pools.classify.val
        else:
            recipe, looks = config.recipe(run.task, run.arm), config.designs[run.task].evaluations
            judged = pools.tasks[run.task].splits.val
        return training * run.steps * recipe.batch_size + judging * looks * len(judged)

    def _speed(self, run: Run) -> tuple[float, float]:
        """Seconds of training on an image and of judging one."""
        config = self.context.config
        pretrained = run.arm if run.kind in ("mae", "supervised") else ""
        like = (run.task, pretrained, config.spec_of(run.arm, run.task or CLASSIFY))
        if like not in self._known:
            with seeded_rng(0, "plan"):
                self._known[like] = self._pretraining(run.arm) if run.kind == "mae" else self._task(run)
        return self._known[like]

    def _pretraining(self, arm: str) -> tuple[float, float]:
        config, images = self.context.config.mae_config(arm, 0, ""), self.context.pool_of(arm)
        spec = self.context.config.spec_of(arm)
        config = replace(config, channels=spec.channels)
        loading = loading_seconds(config, images, spec) or 0.0
        return training_seconds_an_image(config, spec, self.device) + loading, 0.0

    def _task(self, run: Run) -> tuple[float, float]:
        task = self._built(run)
        model = task.build_model()
        flops, model = task.flops(model), model.to(self.device)
        if 3 * flops > MOST_FLOPS:
            training = training_seconds(flops, 1, self.device)
            return training, training / 3
        size = measured_images(flops, task.config.batch_size, self.device)
        batches = Batches(
            Sampler(len(task.splits.train), size, 0), each(task.sample), draws=task.draws, ranks=task.ranks
        )
        task.begin(model)
        optimizer = task.optimizer(model)

        def step() -> None:
            batch = batches.load(0, 0).to(self.device)
            with autocast(self.device, "auto"):
                loss = task.loss(model.train(), batch)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        def judge() -> None:
            task.validate(model.eval())

        judged = len(task.splits.val)
        return seconds_an_image(step, size, self.device, BUDGET), seconds_an_image(judge, judged, self.device, BUDGET)

    def _built(self, run: Run) -> Task[Any, Any]:
        """The task of a run as it is trained there, but with few validation images."""
        config, pools = self.context.config, self.context.pools
        encoder = Encoder(config.spec_of(run.arm, run.task or CLASSIFY), preprocessing=self.context.preprocessing)
        ranks = Ranks(0, 1, self.device)
        if run.kind == "supervised":
            train, val = self.context.labelled_pool_of(run.arm), pools.classify.val
            splits = Splits(train, _few(val), pools.classify.test)
            return ClassificationTask(config.supervised_recipe(run.arm), encoder, splits, ranks)
        whole = pools.tasks[run.task].splits
        splits = replace(whole, train=draw_labeled(whole.train, run.labels, run.seed), val=_few(whole.val))
        return task_of(run.task, config.recipe(run.task, run.arm), encoder, splits, ranks)


def _few(images: Any) -> Any:
    return images.subset(range(min(len(images), JUDGED)))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """As many threads as a run has."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
