"""Where handles go, and whether loading takes them: what a thread is doing while it pickles and unpickles.

Owns: that state. A handle made for a place inside a block (an item of a queue, a value of a dict) is *kept*: the name of its link
ends with the inode of the file it lies in, so it can be told when it has become garbage. A handle that is only looked at is *lent*:
loading it leaves its link where it is.
Must not know: how a handle is made or loaded.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from shmarray._os import segments

if TYPE_CHECKING:
    from collections.abc import Iterator


class Destination(threading.local):
    """Where the handles go that this thread makes: `ending` of their names, and the links that were `made` for them."""

    def __init__(self) -> None:
        """Begin, in each thread, with handles that go on their way."""
        self.ending = ""
        self.made: list[str] = []


class Lending(threading.local):
    """Whether handles that this thread loads stay where they lie."""

    active = False


destination = Destination()
lending = Lending()


@contextlib.contextmanager
def kept_in(inode: int) -> Iterator[list[str]]:
    """While inside, handles that this thread makes are to lie in the file with that inode, and go with it; gives the paths of their links.

    An error that leaves the `with` block takes back what was made.
    """
    before = destination.ending, destination.made
    made: list[str] = []
    destination.ending, destination.made = f".{inode:x}", made
    try:
        yield made
    except BaseException:
        for path in made:
            segments.unlink(path)
        raise
    finally:
        destination.ending, destination.made = before


@contextlib.contextmanager
def lent() -> Iterator[None]:
    """While inside, loading a handle that lies in a block does not take it out of there."""
    before = lending.active
    lending.active = True
    try:
        yield
    finally:
        lending.active = before
