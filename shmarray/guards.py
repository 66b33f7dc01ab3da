"""Guards: exclusive and shared access to what is in a block, that survive the death of whoever holds them.

Owns: the protocol of the guard, and which guards the threads of this process hold.
Must not know: NumPy, what is guarded.

The rules, in the order in which a thread takes the steps:

    exclusive   lock the mutex; wait until the table of readers is empty; write down the holder
                ... work ...  strike out the holder; unlock
    shared      lock the mutex; enter the table; unlock
                ... work ...  leave the table; if a writer waits, wake it

A writer waits with the mutex held, so readers that come later stand behind it, and it is starved by none; and when it
leaves, the next to lock the mutex may be a reader or a writer, so readers are not starved either.

Deaths. The mutex is robust: the kernel gives it to the next with word of the death. A holder written down then means that it
died at work: the block is *poisoned*. None written down means that it died on the way in or out, and nothing was touched. A
reader that died is found in the table by the writer that waits for it: the kernel says that the slot's mark is free, or the
slot has a new epoch. The writer strikes it out while it holds the mutex, so no new reader can be hit. Death is looked for
once in a slice of time; the slice is when to look, never the proof.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from shmarray import attachments
from shmarray._format import guard as form
from shmarray._os import futexes, mutexes, processes, segments
from shmarray.errors import GuardError
from shmarray.guardwords import GuardWords

if TYPE_CHECKING:
    from shmarray.attachments import Block

SLICE = 0.05
"""Seconds of waiting after which signal handlers run and deaths are looked for."""

_ident = threading.get_ident
_now = time.time_ns
_FREE, _DIED, _BUSY = mutexes.FREE, mutexes.OWNER_DIED, mutexes.BUSY
_trylock, _unlock = mutexes.mutex_trylock, mutexes.mutex_unlock
_trywait, _post = mutexes.semaphore_trywait, mutexes.semaphore_post


class Process:
    """What changes in a forked child: its pid, and that none of its threads holds anything."""

    pid = os.getpid()
    generation = 0


_known: weakref.WeakSet[Guard] = weakref.WeakSet()


def _after_fork() -> None:
    """In a forked child: the mutexes stay the parent's, whose threads took them. This process holds nothing."""
    Process.pid = os.getpid()
    Process.generation += 1
    for guard in list(_known):
        guard.forget()


class Guard(GuardWords):
    """The guard of one block in this process. Made once for each mapping; valid as long as the mapping is."""

    __slots__ = ("__weakref__", "_local", "_slot", "depth", "kept", "owner", "readers")

    def __init__(self, segment: segments.Segment) -> None:
        """Find the guard of a block; nobody here holds it."""
        super().__init__(segment)
        self.forget()
        _known.add(self)

    def forget(self) -> None:
        """Begin as a process of which no thread holds the guard."""
        self.owner = 0
        self.depth = 0  # how often the owner has a re-entrant lock
        # What is held is kept mapped, for the kernel's list of held mutexes leads through it. A cycle, as long as it is held.
        self.kept: Any = None
        self.readers: dict[int, Any] = {}  # threads that read, each with what keeps the mapping
        self._slot: tuple[int, int] | None = None
        self._local = threading.Lock()

    # -- exclusive -----------------------------------------------------------------------------------------------------

    def acquire(self, keep: Any, timeout: float | None = None) -> bool:
        """Enter exclusively; false after `timeout` seconds (None: wait, 0: only look). `keep` keeps the mapping meanwhile.

        Raises `GuardError` when this thread is inside already, exclusively or shared.
        """
        me = _ident()
        if self.owner == me:
            if timeout == 0:
                return False
            raise self._twice("has it already")
        # An exception may come out of a signal handler after any call: then what was taken is given back.
        try:
            code = _trylock(self._lock) if self._robust else self._take_plain(_trywait, (self._lock,))
            if (code or self._table.raw != form.NO_READERS) and not self._acquire_slowly(code, timeout):
                return False
            self.owner = me
            self.kept = keep
            self._since.value = _now()
            self._holder.value = Process.pid
        except BaseException:
            self.give_back()
            raise
        return True

    def release(self) -> None:
        """Leave exclusive access. Raises `GuardError` if this thread does not have it."""
        if self.owner != _ident():
            raise self._not_held()
        try:
            self._holder.value = 0
            self.owner = 0
            self.kept = None
        finally:
            # No function of ours here: its first instruction is where a signal's exception could come in between.
            (_unlock if self._robust else _post)(self._lock)

    def give_back(self) -> None:
        """Let the mutex go if this thread has it, whether that was noted or not."""
        robust = self._robust
        if mutexes.mutex_owner(self._lock) == threading.get_native_id() if robust else self.owner == _ident():
            self._holder.value = 0
            self.owner = 0
            self.kept = None
            # As in `release`: no function of ours here.
            (_unlock if robust else _post)(self._lock)

    def _let_go(self) -> None:
        self.owner = 0
        (_unlock if self._robust else _post)(self._lock)

    def _take_plain(self, call: Any, arguments: tuple[Any, ...]) -> int:
        """Take the semaphore by this call, and note whose it is: it does not know itself, and an exception may follow.

        The answer is put into a list by C code, so a signal's handler, which runs after any call, finds it there.
        """
        me = _ident()
        answers: list[int] = []
        try:
            answers.extend(map(call, *zip(arguments)))
        finally:
            if answers == [0]:
                self.owner = me
        return _FREE if answers == [0] else _BUSY

    def _acquire_slowly(self, code: int, timeout: float | None) -> bool:
        """Go on after the quick try said `code`, or found readers inside."""
        if _ident() in self.readers:
            if code == _FREE:
                self._let_go()
            raise self._twice("reads it already")
        deadline = futexes.deadline_of(timeout)
        if code != _FREE and not self._enter(code, deadline):
            return False
        if not self._drain(deadline):
            self._let_go()
            return False
        return True

    def _enter(self, code: int, deadline: float | None) -> bool:
        """Get the mutex, waiting in slices so that signal handlers run."""
        while code in (_BUSY, mutexes.TIMED_OUT):
            left = SLICE if deadline is None else min(SLICE, deadline - time.monotonic())
            if left <= 0:
                return False
            code = (
                mutexes.mutex_wait(self._lock, left)
                if self._robust
                else self._take_plain(*mutexes.semaphore_wait(self._lock, left))
            )
        if code == _DIED:
            self._recover()
        elif code == errno.EDEADLK:
            # A signal handler or finalizer, between the call into C and the note that it succeeded.
            raise self._twice("is just taking or leaving it")
        elif code != _FREE:
            raise OSError(code, f"the lock of {self.label} answers {code}: its bytes are damaged")
        return True

    def _recover(self) -> None:
        """After a death with the mutex held: note whether it died at work, then make the mutex whole.

        Should this process die here, the kernel tells the next, who finds the same or the poison already written.
        """
        pid = self._holder.value
        if pid:
            self._poisoned_at.value = self._since.value
            self._poison.value = pid
            self._holder.value = 0
        mutexes.mutex_consistent(self._lock)

    def _drain(self, deadline: float | None) -> bool:
        """With the mutex held, wait until no reader is left; strike out the dead. False at the deadline."""
        looked = 0.0
        try:
            self._draining.value = 1
            while True:
                turn = self._turn.value
                table = self._table.raw
                if table == form.NO_READERS:
                    return True
                now = time.monotonic()
                if now - looked >= SLICE:
                    looked = now
                    self._strike_out(table)
                    continue
                left = SLICE if deadline is None else min(SLICE, deadline - now)
                if left <= 0:
                    return False
                futexes.wait(self._address + form.TURN, turn, left)
        finally:
            self._draining.value = 0

    def _strike_out(self, table: bytes) -> None:
        """Clear the entries of readers that the kernel says are gone."""
        entries = struct.unpack(f"<{form.SLOTS}H", table)
        taken = [slot for slot, entry in enumerate(entries) if entry]
        alive = self.member.slots_alive(taken)
        for slot in taken:
            if slot not in alive or form.epoch_word(alive[slot]) != entries[slot]:
                self._entries[slot] = 0

    # -- shared --------------------------------------------------------------------------------------------------------

    def acquire_shared(self, keep: Any, timeout: float | None = None) -> bool:
        """Enter shared; false after `timeout` seconds. Where all slots are taken this is exclusive access.

        Raises `GuardError` when this thread is inside already.
        """
        me = _ident()
        if me in self.readers or self.owner == me:
            raise self._twice("reads it already" if me in self.readers else "has it already")
        slot = self._slot or self._find_slot()
        if slot is None:
            return self.acquire(keep, timeout)
        try:
            code = _trylock(self._lock) if self._robust else self._take_plain(_trywait, (self._lock,))
            if code:
                deadline = futexes.deadline_of(timeout)
                if not self._enter(code, deadline):
                    return False
            self.owner = me
            with self._local:
                self.readers[me] = keep
                self._entries[slot[0]] = slot[1]
            self.owner = 0
            (_unlock if self._robust else _post)(self._lock)
        except BaseException:
            self.give_back()
            self._leave(me)
            raise
        return True

    def _find_slot(self) -> tuple[int, int] | None:
        """Ask for this process's slot in the table and what it writes there."""
        found = self.member.reader_slot()
        if found is not None:
            self._slot = (found[0], form.epoch_word(found[1]))
        return self._slot

    def release_shared(self) -> None:
        """Leave shared access. Raises `GuardError` if this thread does not have it."""
        me = _ident()
        if me not in self.readers:
            if self.owner != me:
                raise self._not_held()
            self.release()  # where all slots were taken
            return
        try:
            self._leave(me)
        except BaseException:
            self._leave(me)  # a signal's handler raised in the midst; every step may be done twice
            raise

    def _leave(self, me: int) -> None:
        with self._local:
            self.readers.pop(me, None)
            if not self.readers and self._slot is not None:
                self._entries[self._slot[0]] = 0
        if self._draining.value:
            self._turn.value = (self._turn.value + 1) & 0xFFFF_FFFF
            futexes.wake(self._address + form.TURN)

    def _twice(self, what: str) -> GuardError:
        return GuardError(
            f"this thread {what}: entering the guard of {self.label} once more would wait for itself for ever",
            remedy="Leave the first `with` block before, or pass the array it gave you on."
            if self.noun in ("array", "tree")
            else "Release it before, or use an RLock, which its holder may take again.",
            name=self.key.name,
        )

    def _not_held(self) -> GuardError:
        return GuardError(
            f"this thread does not hold the guard of {self.label}",
            remedy="Only the thread that acquired it may release it; use `with`.",
            name=self.key.name,
        )


class _Barred(Guard):
    """A robust guard in a process that has no robust mutexes: it can be looked at, not entered."""

    __slots__ = ()

    def acquire(self, keep: Any, timeout: float | None = None) -> bool:
        """Raise `GuardError`."""
        del keep, timeout
        raise GuardError(
            f"the lock of {self.label} is a robust mutex, and this process has none ({mutexes.NOT_ROBUST})",
            remedy="Open the store with guard='multiprocessing', or run this process with the C library of the one that opened it.",
            name=self.key.name,
        )

    acquire_shared = acquire


processes.after_fork_in_child(_after_fork)


def generation() -> int:
    """How many forks lie between the process that imported this module and this one."""
    return Process.generation


def guard_of(segment: segments.Segment) -> Guard:
    """Give the guard of a mapped block, the same one for every view in this process."""
    block: Block = segment.tag
    guard = block.cache.get(attachments.GUARD)
    if guard is None:
        made = Guard(segment)
        if made._robust and mutexes.NOT_ROBUST:
            made = _Barred(segment)
        guard = block.cache.setdefault(attachments.GUARD, made)
    return guard  # type: ignore[return-value]  # setdefault may give another thread's, which is a Guard too
