"""Events, as in `multiprocessing`.

Owns: `Event`: one word.
Must not know: guards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from shmarray import objects

if TYPE_CHECKING:
    from shmarray.membership import Membership


class Event(objects.SharedObject):
    """A `multiprocessing.Event` that travels through any queue; setting it is one store, so no death can leave it half-set.

    >>> import shmarray as sa
    >>> with sa.Store() as store:
    ...     ready = store.Event()
    ...     ready.set()
    ...     print(ready.wait(timeout=1))
    True
    """

    __slots__ = ()
    _kind = "Event"

    @classmethod
    def make(cls, member: Membership, name: str | None = None) -> Self:
        """Make an event that is not set."""
        return cls._create(member, 1, name)

    def is_set(self) -> bool:
        """Whether the event is set."""
        return bool(self._words[0])

    def set(self) -> None:
        """Set the event and wake all who wait for it."""
        self._words[0] = 1
        self._wake(0)

    def clear(self) -> None:
        """Unset the event."""
        self._words[0] = 0

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the event is set; false after `timeout` seconds. Raises `StoreClosedError` when the store ends."""
        deadline = objects.deadline_of(timeout)
        while not self._words[0]:
            if not self._wait_change(0, 0, deadline):
                return bool(self._words[0])
        return True

    def __repr__(self) -> str:
        """Show whether it is set."""
        return f"<Event at {id(self):#x} {'set' if self.is_set() else 'unset'}>"
