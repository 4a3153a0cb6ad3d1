"""What an arm's trained model costs to use: parameters, operations, latency, throughput, memory on a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CLEARLY = 0.9
"""Latency of a model, as a multiple of another's, from which on it is called cheaper: less may be noise of the measurement."""


@dataclass(frozen=True)
class ModelCost:
    """What the trained model of an ``arm`` on a ``task`` costs to use.

    ``run``: the key of the training that it is of. ``image``: channels, height and width. ``flops``: floating-point operations
    on an image, forward, two a multiply-add. On ``device``: ``latency`` in seconds for one image, ``throughput`` in images a
    second ``batch`` at a time, ``memory`` in bytes at its peak. None of what could not be measured; ``reason`` says why.
    """

    arm: str
    task: str
    run: str
    device: str
    image: tuple[int, ...] = ()
    parameters: int | None = None
    flops: float | None = None
    latency: float | None = None
    throughput: float | None = None
    batch: int = 0
    memory: int | None = None
    reason: str = ""


def cost_of(costs: Sequence[ModelCost], task: str, arm: str) -> ModelCost | None:
    """What an arm's model on a task costs; None where that isn't known."""
    return next((cost for cost in costs if (cost.task, cost.arm) == (task, arm)), None)


def cheaper(costs: Sequence[ModelCost], task: str, arm: str, than: str) -> bool:
    """Whether an arm's model is clearly cheaper to use than another's: faster on one device, else by fewer operations."""
    one, other = cost_of(costs, task, arm), cost_of(costs, task, than)
    if one is None or other is None:
        return False
    if one.latency is not None and other.latency is not None and one.device == other.device:
        return one.latency < CLEARLY * other.latency
    return one.flops is not None and other.flops is not None and one.flops < CLEARLY * other.flops


def cost_phrase(costs: Sequence[ModelCost], task: str, arm: str, than: str) -> str:
    """The cost of one arm's model beside another's, as a sentence has it: "0.1 ms an image instead of 0.4"."""
    one, other = cost_of(costs, task, arm), cost_of(costs, task, than)
    if one is None or other is None:
        return "cost unknown"
    if one.latency is not None and other.latency is not None and one.device == other.device:
        return f"{milliseconds(one.latency)} ms an image instead of {milliseconds(other.latency)}"
    return f"{millions(one.flops)} million operations an image instead of {millions(other.flops)}"


def milliseconds(seconds: float) -> str:
    """Seconds in milliseconds, three digits."""
    return _digits(1e3 * seconds)


def millions(count: float | None) -> str:
    """A count in millions, three digits; "unknown" for None."""
    return "unknown" if count is None else _digits(count / 1e6)


def _digits(value: float) -> str:
    """A number with three digits that count, and no exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    decimals = 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{decimals}f}"
