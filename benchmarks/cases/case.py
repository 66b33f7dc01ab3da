"""What a case is.

Owns: the frame: a case is made in the contender's own process with one adapter, set up once, measured in rounds, cleaned up.
Must not know: other contenders.
"""

from __future__ import annotations

import abc
import contextlib
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks.rivals.interface import UnableError

if TYPE_CHECKING:
    from benchmarks.measure import Aim, Measure, Scale

__all__ = ["Case", "Samples", "UnableError", "size_title"]

Samples = dict[str, list[float]]


class Case(abc.ABC):
    """One question, asked of one contender. The first of `rivals` is what the others are compared with."""

    name: ClassVar[str]
    question: ClassVar[str]
    rivals: ClassVar[tuple[str, ...]]
    aims: ClassVar[tuple[Aim, ...]] = ()
    #: Measures that are taken once a session and not in each round.
    once: ClassVar[tuple[str, ...]] = ()

    def __init__(self, adapter: Any, scale: Scale) -> None:
        """Ask it of this adapter, at this scale."""
        self.adapter = adapter
        self.scale = scale
        #: What `set_up` has to undo, entered as it is done; the contender's process closes it in every case.
        self.cleanup = contextlib.ExitStack()
        #: What is worth knowing besides times; shown behind the contender's row.
        self.facts: dict[str, Any] = {}

    @staticmethod
    @abc.abstractmethod
    def measures(scale: Scale) -> list[Measure]:
        """List what is measured at that scale. A contender need not have samples for each."""

    @staticmethod
    def rounds(scale: Scale) -> tuple[int, int]:
        """Tell how many sessions, each in fresh processes, of how many rounds; a round before the first is not counted."""
        return scale.sessions, scale.rounds

    def open(self) -> None:
        """Open what the adapter needs, untimed, until the end of the case."""
        self.adapter.open()
        self.cleanup.callback(self.adapter.close)
        self.adapter.settle()

    @abc.abstractmethod
    def set_up(self) -> None:
        """Prepare, untimed."""

    @abc.abstractmethod
    def round(self) -> Samples:
        """Take samples, in seconds, by the key of the measure."""


def size_title(nbytes: int) -> str:
    """Write a size for a table.

    >>> size_title(64 << 20)
    '64 MiB'
    """
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if nbytes >= 1 << power:
            return f"{nbytes >> power} {unit}"
    return f"{nbytes} bytes"
