"""Every error and warning of shmarray.

Owns: one exception type for each state of the world a caller may want to tell apart. Each is a `ShmArrayError` and also
the builtin that a caller would expect, carries its facts as attributes, survives pickling, and ends with the remedy.
Must not know: how any of these states comes about.
"""

from __future__ import annotations

import errno
import pickle
from typing import Any, ClassVar

__all__ = [
    "ArrayExistsError",
    "ArrayNameError",
    "ArrayNotFoundError",
    "ChannelClosedError",
    "CorruptBlockError",
    "DTypeError",
    "FileFormatError",
    "GuardError",
    "GuardTimeoutError",
    "GuardianWarning",
    "HostError",
    "LostTaskError",
    "PoisonedError",
    "ShapeError",
    "ShmArrayError",
    "StoreClosedError",
    "StoreExistsError",
    "StoreFullError",
    "StoreNotFoundError",
]


class ShmArrayError(Exception):
    """Base of every error of shmarray; `summary` says what is so, `remedy` what to do, `facts` the rest by name.

    Every fact is also an attribute (`error.name`, `error.path`, ...).

    >>> from shmarray import ShmArrayError
    >>> error = ShmArrayError("the cup is empty", remedy="Fill it.", litres=0)
    >>> error.litres
    0
    >>> print(error)
    the cup is empty
    Fill it.
    """

    _errno: ClassVar[int | None] = None

    def __init__(self, summary: str, *, remedy: str = "", **facts: Any) -> None:
        """Keep the facts as attributes; `summary` and `remedy` become the text."""
        super().__init__(summary)
        self.summary = summary
        self.remedy = remedy
        self.facts = facts
        if self._errno is not None:
            setattr(self, "errno", self._errno)  # noqa: B010  the slot of OSError, which this base class has not
        for key, value in facts.items():
            setattr(self, key, value)

    def __str__(self) -> str:
        """Give the summary, and the remedy on the last line."""
        return f"{self.summary}\n{self.remedy}" if self.remedy else self.summary

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle with facts and remedy, so that an error crosses a process boundary whole."""
        facts = {key: value if _pickles(value) else repr(value) for key, value in self.facts.items()}
        return _rebuild, (type(self), self.summary, self.remedy, facts)

    def __getattr__(self, name: str) -> Any:
        """Reached for a fact that this error does not carry."""
        raise AttributeError(f"{type(self).__name__} carries no {name!r}")


def _pickles(value: object) -> bool:
    """Say whether a fact, which may be what a user gave, can cross a process boundary."""
    try:
        pickle.dumps(value)
    except Exception:  # noqa: BLE001  pickling runs code of the value's own
        return False
    return True


def _rebuild(kind: type[ShmArrayError], summary: str, remedy: str, facts: dict[str, Any]) -> ShmArrayError:
    return kind(summary, remedy=remedy, **facts)


class ArrayNotFoundError(ShmArrayError, KeyError, FileNotFoundError):
    """No array of that name, or a handle whose array has been deleted or replaced."""

    _errno = errno.ENOENT


class ArrayExistsError(ShmArrayError, FileExistsError):
    """An array of that name is there already."""

    _errno = errno.EEXIST


class StoreExistsError(ShmArrayError, FileExistsError):
    """A store of that name is alive."""

    _errno = errno.EEXIST


class StoreNotFoundError(ShmArrayError, FileNotFoundError):
    """No living store of that name or identity."""

    _errno = errno.ENOENT


class StoreClosedError(ShmArrayError, ValueError):
    """The store was closed, or its owner died."""


class GuardTimeoutError(ShmArrayError, TimeoutError):
    """A guard could not be entered in the time given."""

    _errno = errno.ETIMEDOUT


class GuardError(ShmArrayError, RuntimeError, ValueError, AssertionError):
    """A guard was entered twice by one thread, left by one that does not hold it, or is of a kind that this system has not."""


class HostError(ShmArrayError, ConnectionError):
    """The host of a store, in which managed objects live, was killed, does not answer, or could not be started."""


class ChannelClosedError(ShmArrayError, EOFError, ValueError):
    """Nothing more comes out of a channel, or can be put into it (`name`): it was ended, or those at the other end have left or died."""


class LostTaskError(ShmArrayError, RuntimeError):
    """Processes died with tasks of a queue that they had taken and not finished: waiting for those would be for ever."""


class PoisonedError(ShmArrayError, RuntimeError):
    """A process died while it was writing: the array may be half old and half new."""


class StoreFullError(ShmArrayError, MemoryError):
    """Shared memory, the capacity of the store, a memory limit or the address space is exhausted."""


class DTypeError(ShmArrayError, TypeError):
    """A dtype that cannot be shared between processes."""


class ArrayNameError(ShmArrayError, ValueError):
    """A text that cannot name an array or a store."""


class ShapeError(ShmArrayError, ValueError):
    """A shape no array can have."""


class CorruptBlockError(ShmArrayError, OSError):
    """A block that is damaged, truncated, not ours, or another user's."""

    _errno = errno.EIO


class FileFormatError(ShmArrayError, ValueError):
    """A file to be loaded that is not what it is taken for: of another format, damaged, too short, or longer than it says."""


class GuardianWarning(RuntimeWarning):
    """The guardian process could not be started: a SIGKILL of the owner is then repaired only by the next store."""
