"""What a way to stream arrays can do, as adapters say it.

Owns: the ability `Streams`, and what its items look like.
Must not know: any particular way, what is measured, which processes there are.

A *line* is what makes a stream reachable: it is made in the contender's own process and travels to the others as an argument
of theirs. An *end* is a function that sends one item, or takes one; it is what is timed, so it does what a user of that rival
would write for one item, and nothing else.
"""

from __future__ import annotations

import abc
import dataclasses
import itertools
import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclasses.dataclass(frozen=True, slots=True)
class Form:
    """What the items of a stream are, and how many may wait in it.

    Items that are `in_place` are filled where they lie and looked at where they lie, by whoever can; all others are copied in
    and out. A stream that is `broadcast` gives each item to every receiver, else to one.
    """

    shape: tuple[int, ...]
    dtype: str
    slots: int
    in_place: bool = False
    broadcast: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of an item."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def blank(self) -> np.ndarray[Any, Any]:
        """Make an item of one's own."""
        return np.zeros(self.shape, self.dtype)

    def over(self, buffer: Any) -> np.ndarray[Any, Any]:
        """Lay an item over a buffer, which may be longer."""
        return np.ndarray(self.shape, self.dtype, buffer)


class Streams(abc.ABC):
    """Carries items from processes to processes, in order, without losing one: who is too fast waits."""

    #: How many may send, and how many receive; it can also be nobody who receives.
    senders: ClassVar[int] = 8
    receivers: ClassVar[int] = 8
    #: Whether an item that is `in_place` lies, while it is looked at, where it was filled.
    in_place: ClassVar[bool] = False

    @abc.abstractmethod
    def lay(self, form: Form, senders: int, receivers: int) -> Any:
        """Make a stream between so many processes; returns its line. The adapter's `close` ends it."""

    @abc.abstractmethod
    def sender(self, line: Any, form: Form, number: int) -> Callable[[Any], None]:
        """Give the sending end of sender `number`; all receiving ends are there already.

        It is called with an array, which it sends a copy of; or, if `form.in_place`, with a value that it fills the item with.
        """

    @abc.abstractmethod
    def receiver(self, line: Any, form: Form, number: int) -> Callable[[Any], Any]:
        """Give the receiving end of receiver `number`.

        It is called with a function, waits for an item, and returns what that function makes of it.
        """


def turns(ends: list[Any]) -> Callable[[], Any]:
    """Give one of these after the other, for ever: how a sender shares its items out where receivers share nothing."""
    return itertools.cycle(ends).__next__
