"""The processes of a run, as reading its images and its folder needs them, or one process without torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")


class Processes(Protocol):
    """This process among those of a run: its number, how many there are, and what they exchange."""

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""

    @property
    def world_size(self) -> int:
        """How many there are."""

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes files and prints."""

    def broadcast(self, compute: Callable[[], T]) -> T:
        """The result of ``compute`` on the main process, on all; a MaeliftError that it raises is raised on all."""

    def all_gather(self, values: list[T]) -> list[T]:
        """The values of all processes, in the order of their ranks."""

    def barrier(self) -> None:
        """Wait until every process has reached this."""


@dataclass(frozen=True)
class OneProcess:
    """A run of one process, whose device isn't of interest."""

    rank: int = 0
    world_size: int = 1
    is_main: bool = True

    def broadcast(self, compute: Callable[[], T]) -> T:
        """The result of ``compute``."""
        return compute()

    def all_gather(self, values: list[T]) -> list[T]:
        """The values."""
        return values

    def barrier(self) -> None:
        """Nothing to wait for."""
