"""Errors that a user can fix: one line that says what is wrong, where, what was expected and what to do."""

from __future__ import annotations

from collections.abc import Mapping


class MaeliftError(Exception):
    """A user's mistake or a failure of the machine, reported in one line: exit code 2, no traceback."""

    exit_code = 2


class DataError(MaeliftError):
    """Images or labels that are missing or invalid."""


class CheckpointError(MaeliftError):
    """Weights or checkpoints that are missing or invalid."""


class ConfigError(MaeliftError):
    """An invalid value of a key: names the key, the value, what was expected and what to do."""

    def __init__(self, key: str, value: object, expected: str, advice: str = "") -> None:
        self.key, self.value, self.expected, self.advice = key, value, expected, advice
        super().__init__(f"{key}={shortened(show(value))}: expected {expected}.{f' {advice}' if advice else ''}")


MAX_VALUE_LENGTH = 300
"""Characters up to which a value is repeated in an error."""


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


def shortened(text: str) -> str:
    """A text up to ``SHOWN_LETTERS``, with its length where it is longer."""
    return text if len(text) <= MAX_VALUE_LENGTH else f"{text[:MAX_VALUE_LENGTH]}... ({len(text):,} letters)"
