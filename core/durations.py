"""Spans of time that a user gives, as 2h or 30m."""

from __future__ import annotations

import re

from .errors import ConfigError

UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
"""Seconds of each unit."""


def seconds_of(key: str, text: str) -> float:
    """The seconds of a text such as "90s", "30m", "1.5h", "1h30m" or "2d"; raises ConfigError for another."""
    compact = text.replace(" ", "").lower()
    parts = re.findall(r"(\d+(?:\.\d+)?)(min|[smhd])", compact)
    found = sum(float(count) * UNITS[unit] for count, unit in parts)
    if "".join(count + unit for count, unit in parts) != compact or found <= 0:
        raise ConfigError(key, text, "a span of time with its unit, as 90s, 30m, 2h or 1h30m")
    return found
