"""maelift try: from a folder to a page with a verdict, within a given time: init's suite, sized for it, and bench."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from ..core.config import resolve
from ..core.data.images import ImageSet
from ..core.device import choose_device
from ..core.dry_run import Plan
from ..core.durations import seconds_of
from ..core.progress import duration
from ..core.terminal import quoted
from ..pretrain.auto_recipe import choose
from ..pretrain.config import PretrainConfig
from .estimates import MeasuredCost
from .init_suite import InitConfig, SuiteSize, annotated, given_parts, plan_lines, pool_images, write_suite
from .protocol import predict_runs
from .runner import BenchResult, bench, concurrent_runs, read_context
from .suite import BenchConfig

logger = logging.getLogger("maelift")

SUITE_FILE = "suite.yaml"
"""In the output folder; written once, so that the same command goes on with it."""
PRETRAINING_SHARE = 0.35
"""Of the time, for pretraining."""
PREPARATION_SHARE = 0.1
"""Of the time, for looking for broken images and near-duplicates, and the report."""
GROWTH = 1.4
"""By how much the runs that are added, as rates and steps are extended, make it longer than planned."""
SPARE = 1.25
"""How much longer than the time it may take before no run is begun any more."""
SIZES = (
    SuiteSize(encoders=3, seeds=6, steps=250, max_doublings=2, supervised=False),
    SuiteSize(encoders=2, seeds=4, steps=250, max_doublings=2, supervised=False),
    SuiteSize(encoders=2, seeds=4, steps=150, max_doublings=1, supervised=False),
    SuiteSize(encoders=2, seeds=3, steps=100, max_doublings=1, supervised=False),
    SuiteSize(encoders=1, seeds=3, steps=100, max_doublings=0, supervised=False),
)
"""From the most on; the first that fits the time is taken."""


@dataclass(frozen=True)
class TryConfig(InitConfig):
    """Pretrain on your images, compare with the best without, and write one page, within a given time."""

    out: str = "maelift-try"
    """folder for the suite file, every run and the page; the same command goes on there"""
    budget: str = "30m"
    """time that it may take here, as 30m or 2h; the comparison is sized for it"""

    def __post_init__(self) -> None:
        super().__post_init__()
        seconds_of("budget", self.budget)

    @property
    def suite(self) -> Path:
        """The suite's file."""
        return Path(self.out) / SUITE_FILE


@dataclass(frozen=True)
class TryResult:
    """What was found, and how to go on."""

    bench: BenchResult
    suite: Path
    encoder: Path | None

    @property
    def error(self) -> str | None:
        """The error of a run that failed."""
        return self.bench.error

    def summary(self) -> str:
        """The verdicts, the page, and the commands to go on with."""
        lines = [self.bench.summary()]
        if self.encoder is not None:
            lines.append(f"encoder: {self.encoder}")
            lines.append(f"use it: maelift export {quoted(self.encoder)} --to timm out=FOLDER")
        lines.append(
            f"for real: raise seeds, pretrain_seeds, steps and epochs in {quoted(self.suite)} and give "
            f"maelift bench {quoted(self.suite)} out=FOLDER --dry-run"
        )
        return "\n".join(lines)


def try_data(config: TryConfig) -> TryResult:
    """Write a suite for what is in ``config.data`` that fits the time, run it, and return its verdicts.

    Raises MaeliftError where nothing can be compared, Interrupted when asked to stop; the same command goes on.
    """
    if not config.suite.exists():
        _write_sized(config)
    result = bench(_within_budget(config))
    return TryResult(result, config.suite, _first_encoder(Path(config.out)))


def _within_budget(config: TryConfig) -> BenchConfig:
    """The suite with the hours of computing that the time allows, where these are more than when it was written."""
    keys = {"suite": str(config.suite), "out": config.out}
    suite = BenchConfig.resolve(keys)
    hours = _hours(seconds_of("budget", config.budget), concurrent_runs(suite))
    if suite.budget.hours is None or suite.budget.hours >= hours:
        return suite
    return BenchConfig.resolve({**keys, "budget": {"hours": hours}})


def _hours(seconds: float, at_once: int) -> float:
    """Hours of computing, of all runs together, after which none is begun any more."""
    return max(0.01, round(SPARE * seconds * at_once / 3600, 2))


def plan(config: TryConfig) -> Plan:
    """What ``try`` would look at; the suite is written when it begins."""
    return Plan((*plan_lines(config)[:-1], ("time", config.budget), ("page", str(Path(config.out) / "report.html"))))


def _first_encoder(out: Path) -> Path | None:
    """An encoder that was pretrained on the pool, to go on with."""
    found = sorted(out.glob("runs/*/encoder.safetensors"))
    return found[0] if found else None


def _write_sized(config: TryConfig) -> None:
    """Write the suite: pretraining by the time for it, then as many seeds and steps as fit into the rest."""
    seconds = seconds_of("budget", config.budget)
    found = annotated(config)
    images = pool_images(config, found)
    least = SIZES[-1]
    first = config.suite.with_name(f".{SUITE_FILE}.trial")
    first.unlink(missing_ok=True)
    try:
        trial = _pretrained_within(config, images, seconds, least)
        write_suite(replace(config, out=str(first)), found, trial)
        training, at_once = _measured(BenchConfig.resolve({"suite": str(first), "out": config.out}))
    finally:
        first.unlink(missing_ok=True)
    left = seconds * (1 - PRETRAINING_SHARE - PREPARATION_SHARE)
    needed = {design: GROWTH * training * design.work / least.work / at_once for design in SIZES}
    chosen = next((design for design in SIZES if needed[design] <= left), least)
    hours = _hours(seconds, at_once)
    sized = trial if chosen is least else _pretrained_within(config, images, seconds, chosen)
    sized = replace(sized, hours=hours)
    for line in write_suite(replace(config, out=str(config.suite)), found, sized).lines:
        logger.info("try: %s", line)
    logger.info(
        "try: within %s: encoders: %d, seeds: %d, steps from %d on with up to %d doublings (%s)",
        *(duration(seconds), sized.encoders, sized.seeds, sized.steps, sized.max_doublings, config.suite),
    )
    if needed[chosen] > left:
        logger.warning(
            "try: even so it takes some %s: give budget=%dm, or the page will be a partial one",
            *(duration(needed[chosen] + seconds - left), int((needed[chosen] + seconds - left) / 60) + 1),
        )


def _pretrained_within(config: TryConfig, images: ImageSet, seconds: float, design: SuiteSize) -> SuiteSize:
    """The design with a model and its pretraining, so that its encoders take their share of the time."""
    each = PRETRAINING_SHARE * seconds / design.encoders
    keys = {"data": config.data, "out": config.out, "recipe": "auto", "budget": f"{max(1.0, each):.0f}s"}
    usual = resolve(PretrainConfig, {**keys, **given_parts(config)})
    return replace(design, pretrain=dict(choose(usual, lambda key: False, images).keys))


def _measured(config: BenchConfig) -> tuple[float, int]:
    """Seconds of a suite's runs besides pretraining, each alone on its threads, and how many go on at a time."""
    context = read_context(config)
    measured = MeasuredCost(context, choose_device(config.device))
    runs = predict_runs(context, lambda run: None)
    return sum(measured.seconds(run) for run in runs.values() if not run.makes_encoder), concurrent_runs(config)
