"""Millions of file names in three arrays: a tenth of the memory of as many strings, shared with forked workers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

Numbers = Sequence[int] | NDArray[np.int64]
"""Numbers of things in a sequence."""

ENCODING = ("utf-8", "surrogateescape")
"""File names may be of any bytes."""


class StringTable(Sequence[str]):
    """A sequence of strings, stored as the bytes ``text`` (T,) uint8, of which name i is ``text[starts[i] : stops[i]]``.

    Our own, as PyArrow is optional, and NumPy's strings are of one length, or (StringDType) neither mapped from files nor of any
    bytes.

    The arrays may be mapped from a file. A subset shares the text. Equal to any other sequence of the same strings.
    """

    __slots__ = ("starts", "stops", "text")

    def __init__(self, text: NDArray[np.uint8], starts: NDArray[np.int64], stops: NDArray[np.int64]) -> None:
        self.text, self.starts, self.stops = text, starts, stops

    @classmethod
    def of(cls, names: Iterable[str]) -> StringTable:
        """These names, in this order."""
        encoded = [name.encode(*ENCODING) for name in names]
        stops = np.cumsum(np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded)), dtype=np.int64)
        return cls.packed(np.frombuffer(b"".join(encoded), dtype=np.uint8), stops)

    @classmethod
    def packed(cls, text: NDArray[np.uint8], stops: NDArray[np.int64]) -> StringTable:
        """Names that follow one another in the text without gaps."""
        return cls(text, np.concatenate([np.zeros(min(1, len(stops)), dtype=np.int64), stops[:-1]]), stops)

    @classmethod
    def joined(cls, parts: Sequence[StringTable]) -> StringTable:
        """All names of the parts, one part after the other."""
        if len(parts) == 1:
            return parts[0]
        compact = [part.compact() for part in parts]
        begins = np.cumsum([0, *(len(part.text) for part in compact[:-1])])
        stops = [part.stops + begin for part, begin in zip(compact, begins, strict=True)]
        return cls.packed(np.concatenate([part.text for part in compact]), np.concatenate(stops))

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> StringTable: ...
    def __getitem__(self, index: int | slice) -> str | StringTable:
        if isinstance(index, slice):
            return StringTable(self.text, self.starts[index], self.stops[index])
        return self.text[self.starts[index] : self.stops[index]].tobytes().decode(*ENCODING)

    def __iter__(self) -> Iterator[str]:
        for begin in range(0, len(self), 4096):  # in parts: taking each name out of the array would be ten times slower
            starts, stops = self.starts[begin : begin + 4096].tolist(), self.stops[begin : begin + 4096].tolist()
            first, last = min(starts), max(stops)
            if last - first > 2**24:
                yield from (self[number] for number in range(begin, begin + len(starts)))
                continue
            part = self.text[first:last].tobytes()
            for start, stop in zip(starts, stops, strict=True):
                yield part[start - first : stop - first].decode(*ENCODING)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"StringTable({len(self)}: {', '.join(self[:3])}{', …' if len(self) > 3 else ''})"

    def subset(self, indices: Numbers) -> StringTable:
        """The names with these numbers, in this order."""
        numbers = np.asarray(indices, dtype=np.int64)
        return StringTable(self.text, self.starts[numbers], self.stops[numbers])

    def compact(self) -> StringTable:
        """The same names with a text that holds nothing else."""
        lengths = self.stops - self.starts
        if len(self) == 0 or (self.starts[0] == 0 and (self.starts[1:] == self.stops[:-1]).all()):
            return StringTable(self.text[: int(lengths.sum())], self.starts, self.stops)
        stops = np.cumsum(lengths, dtype=np.int64)
        # Byte k of the new text is byte k + (start - new start) of the old one.
        places = np.arange(stops[-1]) + np.repeat(self.starts - (stops - lengths), lengths)
        return StringTable.packed(self.text[places], stops)

    @property
    def digest(self) -> str:
        """A hash of the names in their order."""
        packed = self.compact()
        found = hashlib.sha256(np.ascontiguousarray(packed.text).data)
        found.update(np.ascontiguousarray(packed.stops).data)
        return found.hexdigest()
