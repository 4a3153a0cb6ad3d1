"""Scores and differences as text: percent, signed points, intervals."""

from __future__ import annotations

import math

from ..core.report.html import MINUS
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
