"""What a user can fix: errors of one line that say what was wrong, where, what was expected and what to do."""

from __future__ import annotations

from collections.abc import Mapping


class MaeliftError(Exception):
    """A user's mistake or a state of the world to be told in one line: exit code 2, no traceback."""

    exit_code = 2


class DataError(MaeliftError):
    """Images or labels that are missing or not what they should be."""


class CheckpointError(MaeliftError):
    """Weights or checkpoints that are missing or not what they should be."""


class ConfigError(MaeliftError):
    """A value that a key can't have: names the key, the value, what was expected and what to do."""

    def __init__(self, key: str, value: object, expected: str, advice: str = "") -> None:
        self.key, self.value, self.expected, self.advice = key, value, expected, advice
        super().__init__(f"{key}={_shortened(show(value))}: expected {expected}.{f' {advice}' if advice else ''}")


SHOWN_LETTERS = 300
"""Letters up to which a value is repeated in an error."""


def show(value: object) -> str:
    """A value as a user would type it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ",".join(show(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {show(item)}" for key, item in value.items()) + "}"
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value)


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN_LETTERS else f"{text[:SHOWN_LETTERS]}... ({len(text):,} letters)"
