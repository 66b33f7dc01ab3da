"""The vocabulary of `multiprocessing`, as methods of a store.

Owns: the factory methods `Lock`, `RLock`, `Semaphore`, `BoundedSemaphore`, `Event`, `Condition`, `Barrier`, `Value`, `Array`,
`Queue`, `JoinableQueue`, `SimpleQueue`, `LifoQueue`, `PriorityQueue`, `Pipe`,
`SharedMemory`, `ShareableList`, `dict`, `list`, `Namespace`.
Must not know: how any of them works.

Everything made here is freed with the store at the latest, travels through any queue or argument under every start method,
and may have a name by which other processes of the store find it: `store["name"]`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shmarray import locks, objects
from shmarray._format import counts, flags, names
from shmarray._os import late

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from shmarray import managed, memory, queues, sync, values
    from shmarray.membership import Membership

# Loaded when the first of their objects is made or met: most programs use few of them.
_PLACES = {
    "shmarray.sync": ("Semaphore", "BoundedSemaphore", "Event", "Condition", "Barrier"),
    "shmarray.values": ("Value", "Array"),
    "shmarray.memory": ("SharedMemory", "ShareableList"),
    "shmarray.queues": ("Queue", "JoinableQueue", "SimpleQueue", "LifoQueue", "PriorityQueue", "Pipe", "PipeEnd"),
    "shmarray.managed": ("dict", "list", "Namespace"),
    "shmarray.channels": ("Channel",),
}
if not TYPE_CHECKING:
    managed, memory, queues, sync, values = (
        late.Module(f"shmarray.{name}") for name in ("managed", "memory", "queues", "sync", "values")
    )
for _module, _kinds in _PLACES.items():
    objects.come_late(_module, _kinds)


class Vocabulary:
    """The part of `Store` that makes what `multiprocessing` makes."""

    def _open(self) -> Membership:
        """Give the membership of an open store."""
        raise NotImplementedError

    def Lock(self, *, name: str | None = None) -> locks.Lock:  # noqa: N802  as in multiprocessing
        """Make a lock that survives the death of its holder; see `shmarray.locks.Lock`."""
        return objects.create_lock(self._open(), locks.Lock, _checked(name))

    def RLock(self, *, name: str | None = None) -> locks.RLock:  # noqa: N802  as in multiprocessing
        """Make a re-entrant lock; see `shmarray.locks.RLock`."""
        return objects.create_lock(self._open(), locks.RLock, _checked(name))

    def Semaphore(self, value: int = 1, *, name: str | None = None) -> sync.Semaphore:  # noqa: N802  as in multiprocessing
        """Make a semaphore with `value` permits; see `shmarray.sync.Semaphore`."""
        return sync.Semaphore.make(self._open(), counts.check(value, "value"), _checked(name))

    def BoundedSemaphore(self, value: int = 1, *, name: str | None = None) -> sync.BoundedSemaphore:  # noqa: N802
        """Make a semaphore that cannot be released more often than it was acquired."""
        return sync.BoundedSemaphore.make(self._open(), counts.check(value, "value"), _checked(name))

    def Event(self, *, name: str | None = None) -> sync.Event:  # noqa: N802  as in multiprocessing
        """Make an event that is not set; see `shmarray.sync.Event`."""
        return sync.Event.make(self._open(), _checked(name))

    def Condition(self, lock: locks.Lock | None = None, *, name: str | None = None) -> sync.Condition:  # noqa: N802
        """Make a condition of a lock of a store, by default of an `RLock` of its own; see `shmarray.sync.Condition`."""
        return sync.Condition.make(self._open(), _lock(lock), _checked(name))

    def Barrier(  # noqa: N802  as in multiprocessing
        self,
        parties: int,
        action: Callable[[], Any] | None = None,
        timeout: float | None = None,
        *,
        name: str | None = None,
    ) -> sync.Barrier:
        """Make a barrier for `parties`; see `shmarray.sync.Barrier`."""
        return sync.Barrier.make(self._open(), counts.check(parties, "parties"), action, timeout, _checked(name))

    def Value(  # noqa: N802  as in multiprocessing
        self, typecode_or_type: Any, init: Any = 0, *, lock: locks.Lock | bool = True, name: str | None = None
    ) -> values.Value:
        """Make a value of a type code, ctypes type or dtype; it always has a lock. See `shmarray.values.Value`."""
        return values.Value.make(self._open(), typecode_or_type, init, _lock(lock), _checked(name))

    def Array(  # noqa: N802  as in multiprocessing
        self,
        typecode_or_type: Any,
        size_or_initializer: Any,
        *,
        lock: locks.Lock | bool = True,
        name: str | None = None,
    ) -> values.Array:
        """Make an array of that many zeros, or of what an iterable gives; see `shmarray.values.Array`."""
        return values.Array.make(self._open(), typecode_or_type, size_or_initializer, _lock(lock), _checked(name))

    def Queue(self, maxsize: int = 0, *, name: str | None = None) -> queues.Queue:  # noqa: N802  as in multiprocessing
        """Make a queue of at most `maxsize` values, or without bound; see `shmarray.queues.Queue`."""
        return queues.Queue.make(self._open(), counts.check(maxsize, "maxsize"), _checked(name))

    def JoinableQueue(self, maxsize: int = 0, *, name: str | None = None) -> queues.JoinableQueue:  # noqa: N802
        """Make a queue that counts what has been dealt with; see `shmarray.queues.JoinableQueue`."""
        return queues.JoinableQueue.make(self._open(), counts.check(maxsize, "maxsize"), _checked(name))

    def SimpleQueue(self, *, name: str | None = None) -> queues.SimpleQueue:  # noqa: N802  as in multiprocessing
        """Make a queue with `put`, `get` and `empty` alone."""
        return queues.SimpleQueue.make(self._open(), 0, _checked(name))

    def LifoQueue(self, maxsize: int = 0, *, name: str | None = None) -> queues.LifoQueue:  # noqa: N802  as in queue
        """Make a queue from which the value put last is taken first; see `shmarray.queues.LifoQueue`."""
        return queues.LifoQueue.make(self._open(), counts.check(maxsize, "maxsize"), _checked(name))

    def PriorityQueue(self, maxsize: int = 0, *, name: str | None = None) -> queues.PriorityQueue:  # noqa: N802
        """Make a queue from which the least value is taken first; see `shmarray.queues.PriorityQueue`."""
        return queues.PriorityQueue.make(self._open(), counts.check(maxsize, "maxsize"), _checked(name))

    def Pipe(self, duplex: bool = True) -> tuple[queues.Connection, queues.Connection]:  # noqa: N802, FBT001, FBT002
        """Make a pipe and give its two ends; without `duplex` the first only receives, the second only sends."""
        return queues.pipe(self._open(), duplex=flags.check_block(duplex, "duplex"))

    def SharedMemory(self, size: int, *, name: str | None = None) -> memory.SharedMemory:  # noqa: N802
        """Make `size` bytes of bare memory; see `shmarray.memory.SharedMemory`."""
        return memory.SharedMemory.make(self._open(), counts.check(size, "size"), _checked(name))

    def ShareableList(  # noqa: N802  as in multiprocessing.shared_memory
        self, sequence: Iterable[Any] = (), *, name: str | None = None
    ) -> memory.ShareableList:
        """Make a list of fixed length; see `shmarray.memory.ShareableList`."""
        return memory.ShareableList.make(self._open(), sequence, _checked(name))

    def dict(self, *args: Any, **items: Any) -> managed.SharedDict:
        """Make a dict of what `dict` takes; see `shmarray.managed.SharedDict`. `store["name"] = it` gives it a name."""
        return managed.SharedDict.make_of(self._open(), *args, **items)

    def list(self, sequence: Iterable[Any] = ()) -> managed.SharedList:
        """Make a list; see `shmarray.managed.SharedList`. `store["name"] = it` gives it a name."""
        return managed.SharedList.make_of(self._open(), sequence)

    def Namespace(self, **items: Any) -> managed.Namespace:  # noqa: N802  as of a manager
        """Make a namespace with these attributes; see `shmarray.managed.Namespace`. `store["name"] = it` gives it a name."""
        return managed.Namespace.make_of(self._open(), items)


def _lock(lock: object) -> locks.Lock | None:
    """Read a `lock` argument: one of a store; or None, True, False, as `multiprocessing` has it: the object's own."""
    if lock is None or isinstance(lock, bool):
        return None
    if isinstance(lock, locks.Lock):
        return lock
    message = f"the lock must be one of a store, not {type(lock).__name__}: store.Lock(), store.RLock() or the lock of an array"
    raise TypeError(message)


def _checked(name: str | None) -> str | None:
    return None if name is None else names.check(name)
