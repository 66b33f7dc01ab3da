"""Queues, as users see them.

Owns: `Queue`, `JoinableQueue`, `SimpleQueue`, `LifoQueue`, `PriorityQueue`: who waits and who is woken.
Must not know: how records lie in memory (`shelves`, `heaps`).

No thread feeds anything: when `put` returns, the value is in shared memory, and it survives the death of whoever put it. A
value is there or not by a single store; one that was taken is the receiver's, and lost with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

from shmarray import keepers, objects
from shmarray._format import flags
from shmarray.errors import LostTaskError
from shmarray.queues import heaps, lines, shelves
from shmarray.queues.tasks import DONE_TURN, ENTRIES, FIRST, JOINERS, MAXSIZE, Tasks

if TYPE_CHECKING:
    import numpy as np

    from shmarray.membership import Membership


class _Base(objects.SharedObject):
    """What all queues have in common."""

    __slots__ = ("_closed", "_keeper", "_line", "_shelf", "_tasks")
    _order: ClassVar[type[shelves.Shelf]] = shelves.Ring
    _counts_tasks: ClassVar[bool] = False
    _closed_error: ClassVar[type[Exception]] = ValueError

    @classmethod
    def make(cls, member: Membership, maxsize: int = 0, name: str | None = None) -> Self:
        """Make a queue of at most `maxsize` values; without bound if that is zero or less."""

        def fill(memory: np.ndarray[Any, Any]) -> None:
            memory[MAXSIZE] = max(0, maxsize)

        return cls._create(member, FIRST + (ENTRIES if cls._counts_tasks else 0), name, fill)

    def _attached(self) -> None:
        self._keeper = keepers.Keeper.of(self)
        self._shelf = self._order(self._keeper, 0)
        self._tasks = Tasks.of(self, self._shelf) if self._counts_tasks else None
        mendable = (self._shelf,) if self._tasks is None else (self._shelf, self._tasks)
        self._line = lines.Line(self._keeper, self._shelf, 0, mendable)
        self._closed = False

    # -- putting and getting -------------------------------------------------------------------------------------------

    def _put(self, value: Any, deadline: float | None) -> None:
        self._require_open()
        parcel = self._keeper.pack(value)
        try:
            self._line.put(parcel, deadline, self._is_full)
        except BaseException:
            self._keeper.give_back(parcel)
            raise

    def _get(self, deadline: float | None) -> Any:
        self._require_open()
        return self._keeper.unpack(*self._line.get(deadline, None if self._tasks is None else self._tasks.begin))

    def _is_full(self) -> bool:
        maxsize = self._words[MAXSIZE]
        return bool(maxsize) and len(self._shelf) >= maxsize

    # -- what all say --------------------------------------------------------------------------------------------------

    def empty(self) -> bool:
        """Whether there is no value now; another process may put one at any moment.

        `OSError` once this object was closed and there are values, as of the standard one: this process does not get them.
        """
        found = not len(self._shelf)
        if self._closed and not found:
            message = f"{type(self).__name__} is closed"
            raise OSError(message)
        return found

    def close(self) -> None:
        """Use the queue no more in this process, by this object: `put` and `get` raise `ValueError`, of a `SimpleQueue` `OSError`.

        Others go on.
        """
        self._closed = True

    def _require_open(self) -> None:
        if self._closed:
            raise self._closed_error(f"{type(self).__name__} is closed")

    def __repr__(self) -> str:
        """Show how many values there are."""
        return f"<{type(self).__name__} of {len(self._shelf)}>"


class SimpleQueue(_Base):
    """A `multiprocessing.SimpleQueue` that travels through any queue, survives its users, and passes arrays as handles.

    >>> import shmarray as sa
    >>> with sa.Store() as store:
    ...     queue = store.SimpleQueue()
    ...     queue.put("hello")
    ...     print(queue.get(), queue.empty())
    hello True
    """

    __slots__ = ()
    _kind = "SimpleQueue"
    _closed_error = OSError

    def empty(self) -> bool:
        """Whether there is no value now. Raises `OSError` once closed."""
        self._require_open()
        return super().empty()

    def put(self, item: Any) -> None:
        """Put a value. Raises what pickling raises, `StoreFullError`, `StoreClosedError`."""
        self._put(item, None)

    def get(self) -> Any:
        """Take the oldest value; waits for one."""
        return self._get(None)


class Queue(_Base):
    """A `multiprocessing.Queue`: of values that can be pickled, `maxsize` of them or without bound; arrays go as handles.

    Travels through any queue or argument. A value is in shared memory when `put` returns: it is there for others at once, in order,
    and survives the process that put it. Raises `queue.Full` and `queue.Empty` as the standard one does.

    >>> import shmarray as sa
    >>> with sa.Store() as store:
    ...     queue = store.Queue(maxsize=2)
    ...     queue.put(store.zeros(3))
    ...     queue.put("second")
    ...     print(queue.full(), queue.get(), queue.get(), queue.qsize())
    True [0. 0. 0.] second 0
    """

    __slots__ = ()
    _kind = "Queue"

    def put(self, obj: Any, block: bool = True, timeout: float | None = None) -> None:  # noqa: FBT001, FBT002  as in multiprocessing
        """Put a value; `queue.Full` if there is no room at once (`block=False`) or for `timeout` seconds.

        Raises also what pickling raises, `StoreFullError`, `StoreClosedError`; then nothing was put.
        """
        self._put(obj, objects.deadline_of(timeout if flags.check_block(block) else 0))

    def get(self, block: bool = True, timeout: float | None = None) -> Any:  # noqa: FBT001, FBT002  as in multiprocessing
        """Take the next value; `queue.Empty` if there is none at once (`block=False`) or for `timeout` seconds."""
        return self._get(objects.deadline_of(timeout if flags.check_block(block) else 0))

    def put_nowait(self, obj: Any) -> None:
        """`put(obj, block=False)`."""
        self.put(obj, block=False)

    def get_nowait(self) -> Any:
        """`get(block=False)`."""
        return self.get(block=False)

    def qsize(self) -> int:
        """How many values there are now."""
        return len(self._shelf)

    def full(self) -> bool:
        """Whether there are `maxsize` values now."""
        return self._is_full()

    def join_thread(self) -> None:
        """Do nothing: there is no thread; values are in the queue when `put` returns."""

    def cancel_join_thread(self) -> None:
        """Do nothing: there is no thread to wait for at exit."""


class JoinableQueue(Queue):
    """A `multiprocessing.JoinableQueue`: a `Queue` that counts which values have been dealt with.

    Where the standard one would wait for ever for the tasks of a process that has ended, `join` raises `LostTaskError`.

    >>> import shmarray as sa
    >>> with sa.Store() as store:
    ...     queue = store.JoinableQueue()
    ...     queue.put(1)
    ...     queue.get()
    ...     queue.task_done()
    ...     queue.join(timeout=1)
    1
    True
    """

    __slots__ = ()
    _kind = "JoinableQueue"
    _counts_tasks = True

    _tasks: Tasks

    def task_done(self) -> None:
        """Say that one value that was taken has been dealt with; `ValueError` if that is said more often than values were put."""
        if not self._line.within(self._tasks.end):
            message = "task_done() called too many times"
            raise ValueError(message)
        if self._words[JOINERS]:
            self._wake(DONE_TURN)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until all values that were put have been dealt with; false after `timeout` seconds.

        Raises `LostTaskError` when processes have ended, killed or not, that had taken values and not said `task_done()`: once for
        each loss, then they count as dealt with.
        """
        deadline = objects.deadline_of(timeout)
        self._line.within(lambda: self._count_joiners(1))
        try:
            while True:
                seen = self._words[DONE_TURN]
                if self._tasks.all_done():
                    return True
                in_time = self._wait_change(DONE_TURN, seen, deadline)
                self._give_up_lost()
                if not in_time:
                    return self._tasks.all_done()
        finally:
            self._line.within(lambda: self._count_joiners(-1))

    def _count_joiners(self, change: int) -> None:
        self._words[JOINERS] = max(0, self._words[JOINERS] + change)

    def _give_up_lost(self) -> None:
        """Raise if processes have died with tasks at work."""
        lost = self._line.within(self._tasks.give_up_lost)
        if lost:
            self._wake(DONE_TURN)
            raise LostTaskError(
                f"{lost} of the values taken from {self.name or 'this queue'} are lost: who had taken them has ended "
                "without saying task_done()",
                remedy="Put them again, and join again; they count as dealt with.",
                name=self.name,
                count=lost,
            )


class LifoQueue(JoinableQueue):
    """A `queue.LifoQueue` across processes: `get` takes the value that was put last.

    >>> import shmarray as sa
    >>> with sa.Store() as store:
    ...     stack = store.LifoQueue()
    ...     stack.put("a")
    ...     stack.put("b")
    ...     print(stack.get())
    b
    """

    __slots__ = ()
    _kind = "LifoQueue"
    _order = shelves.Stack


class PriorityQueue(JoinableQueue):
    """A `queue.PriorityQueue` across processes: `get` takes the least value; usually tuples `(priority, value)`.

    Values are compared by whoever puts or gets, which loads them for it: a few microseconds for each comparison.

    >>> import shmarray as sa
    >>> with sa.Store() as store:
    ...     queue = store.PriorityQueue()
    ...     queue.put((2, "later"))
    ...     queue.put((1, "first"))
    ...     print(queue.get())
    (1, 'first')
    """

    __slots__ = ()
    _kind = "PriorityQueue"
    _order = heaps.Heap
