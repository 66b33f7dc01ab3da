"""What has ended and is still to be seen to, and what has not.

Owns: emptying a list to which the callbacks of weak references append, so that an exception of a signal handler, between any two
lines, loses none of it; listing what a table of weak references has, while other threads enter more. Must not know: what it is, or
what is to be done.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from weakref import WeakValueDictionary

T = TypeVar("T")
_pop: Callable[[deque[Any]], Any] = deque.popleft


def drain(ended: deque[T], see_to: Callable[[T], None]) -> None:
    """See to all that has ended: what has just, and what an exception came before. Seeing to one twice must do no harm."""
    while ended:
        mine: list[T] = []
        try:
            try:  # noqa: SIM105  what suppresses costs more than all else here
                mine.extend(map(_pop, (ended,)))  # one call into C: it is in one of the two at each moment
            except IndexError:
                pass  # another thread was faster
            for one in mine:
                see_to(one)
        except BaseException:
            ended.extend(mine)
            raise


def living(table: WeakValueDictionary[Any, T]) -> list[T]:
    """Give what such a table has. Going through it, or a `WeakSet`, would raise where another thread enters something meanwhile."""
    return [one for found in table.valuerefs() if (one := found()) is not None]
