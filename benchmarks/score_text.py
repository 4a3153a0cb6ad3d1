"""Scores, differences and places as text: percent, signed points, intervals, "at 25 labels"."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..core.progress import duration
from ..core.report.html import MINUS
from ..transfer.tasks import CLASSIFY
from .power import MOST_UNITS, UnitPlan
from .results import Arm, TaskResult
from .stats import Difference


def interval(difference: Difference) -> str:
    """The ends of a difference's interval, in points."""
    return f"{signed(difference.low)} to {signed(difference.high)}"


def confidence(difference: Difference) -> str:
    """The confidence of a difference's interval, in percent."""
    return f"{100 * difference.confidence:g} %"


def percent(share: float) -> str:
    """A share in percent, without the sign; "unknown" for NaN."""
    return "unknown" if math.isnan(share) else f"{100 * share:.2f}"


def signed(share: float) -> str:
    """A difference in points, with its sign; a small one with as many digits as show that it isn't 0."""
    points = round(100 * share, 10)
    digits = f"{points:+.2f}" if abs(points) >= 0.005 else f"{points:+.1g}"
    return "0.00" if points == 0 else digits.replace("-", MINUS)


def at_labels(labels: int) -> str:
    """The place of a comparison: "with 25 labels"."""
    return f"with {labels:,} label{'' if labels == 1 else 's'}"


def place(part: TaskResult, labels: int) -> str:
    """A task and a label count, as a row of a table or plot has them."""
    counted = f"{labels:,} label{'' if labels == 1 else 's'}"
    return counted if part.name == CLASSIFY else f"{part.name}, {counted}"


def validated_on(part: TaskResult) -> str:
    """What settings were chosen by: the validation images, or cross-validation."""
    if part.cross_folds:
        return f"by {part.cross_folds}-fold cross-validation of each seed's labelled images"
    return f"on the {part.counts['validation']:,} validation images"


def listed(words: Sequence[str], word: str = "and") -> str:
    """Words as a list in a sentence: "one, two and three"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {word} {words[-1]}"


def pretraining_time(arm: Arm) -> str:
    """How long an arm's pretraining took here; "elsewhere" of weights that are only read."""
    if arm.pretrain_seconds:
        return duration(arm.pretrain_seconds)
    return "elsewhere" if arm.pretrained else "none"


def plan_sentence(plan: UnitPlan, difference: Difference) -> str:
    """How many seeds or encoders resolve the effect of a plan, as a range, or what of the design is too little for it."""
    goal = f"to resolve a true difference of {percent(plan.effect)} points with a chance of {100 * plan.power:.0f} %"
    if plan.obstacles:
        lacking = " and ".join(plan.obstacles)
        enough = f"; it takes {plan.items:,} of these or more" if plan.obstacles[0].endswith("test images") else ""
        return f"The {lacking} alone are too few {goal}{enough}: more {plan.unit}s don't help."
    if plan.likely is None:
        return f"No realistic number of {plan.unit}s is enough {goal} on these test images."
    fewest, most = (f"{MOST_UNITS:,} or more" if end is None else f"{end:,}" for end in (plan.fewest, plan.most))
    several = f", corrected for {plan.comparisons} comparisons" if plan.comparisons > 1 else ""
    return (
        f"About {plan.likely:,} {plan.unit}s are needed {goal}{several} ({fewest} to {most}, as the spread is known from "
        f"{difference.units} only)."
    )
