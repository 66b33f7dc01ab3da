"""Work that several threads of this process share.

Owns: how many threads there are to be, starting them for one deed, waiting for them.
Must not know: what the work is.

No thread outlives the deed that it was started for, but for the moment that it takes to end, for which a fork waits: so a fork between
two deeds finds none, and Python, which warns of forks beside other threads from 3.12 on, is silent. They are started and waited for by
calls into C, and not by `threading.Thread`, which an exception of a signal handler can leave half started, and what it was to work on
with it.
"""

from __future__ import annotations

import _thread
import os
from collections import deque
from time import monotonic, sleep
from typing import TYPE_CHECKING

from shmarray._os import processes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_MOST = 4  # by then it is the memory that all wait for
_SETTING = os.environ.get("SHMARRAY_COPY_THREADS", "")
_SLICE = 0.1  # seconds after which a child looks whether it is one
_start_thread = _thread.start_new_thread
_ending: deque[int] = deque(maxlen=16)  # threads that have nothing more to do, by the kernel's numbers
_MOMENT = 0.5  # seconds for which a fork waits for them at most: a number may be another thread's by now


def cores() -> int:
    """How many threads are to share work where nobody says it: one for each core this process may use, at most 4.

    The environment may say otherwise.
    """
    if _SETTING.isdecimal() and int(_SETTING):
        return int(_SETTING)
    return min(len(os.sched_getaffinity(0)), _MOST)


def share(pieces: Iterable[int], mine: Callable[[int], object], theirs: Callable[[int], bool], threads: int) -> None:
    """Do each piece once: by this thread with `mine`, from the first on, and by others with `theirs`, from the last on.

    Another thread gives up when `theirs` says False; what it leaves is done here. What any of them raises is raised here, when all have
    ended.
    """
    everything = list(pieces)
    waiting = deque(everything)
    finished: list[int] = []
    errors: list[BaseException] = []

    def help_out() -> None:
        try:
            while (piece := _next(waiting.pop)) is not None and theirs(piece):
                finished.append(piece)
        except BaseException as error:  # noqa: BLE001  it is raised where the work was asked for
            errors.append(error)
            waiting.clear()

    crew = _Crew()
    try:
        crew.start(help_out, min(threads, len(everything)) - 1)
        while (piece := _next(waiting.popleft)) is not None:
            mine(piece)
            finished.append(piece)
        crew.wait()
    except BaseException:
        waiting.clear()
        crew.wait()
        raise
    if errors:
        try:
            raise errors[0]
        finally:
            errors.clear()  # its traceback knows the list, and by it all that was worked on
    # What was given up; and in a child that a signal handler forked in the midst of this, what those were at who are not there.
    done = set(finished)
    for piece in everything:
        if piece not in done:
            mine(piece)


class _Crew:
    """Other threads at one deed. What has been started is known at each moment."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._ends: list[_thread.LockType] = []
        self._over: list[_thread.LockType] = []
        self._started: list[int] = []

    def start(self, work: Callable[[], None], number: int) -> None:
        """Start so many threads, or as many as there may be: at the interpreter's end none."""
        for _ in range(number):
            end = _thread.allocate_lock()
            end.acquire()
            self._ends.append(end)
            try:
                # One call into C: it has been started, or it has not and is not in the list.
                self._started.extend(map(_start_thread, (_run,), (([work], self._over, end),)))
            except RuntimeError:
                return

    def wait(self) -> None:
        """Wait until all have ended. May be repeated. In a child that was forked meanwhile they are not there."""
        for end in self._ends[: len(self._started)]:
            while end not in self._over and not end.acquire(timeout=_SLICE):
                if os.getpid() != self._pid:
                    return


def _run(work: list[Callable[[], None]], over: list[_thread.LockType], end: _thread.LockType) -> None:
    """Do it. Whoever waits for the end finds that nothing of it is held any more."""
    work.pop()()
    _ending.append(_thread.get_native_id())
    over.append(end)  # first: who was interrupted when it had just seen the end finds it here
    end.release()


def _next(take: Callable[[], int]) -> int | None:
    """Take a piece; None when there is none left."""
    try:
        return take()
    except IndexError:
        return None


def _see_off() -> None:
    """Before a fork: wait until threads that have nothing more to do have gone for the kernel as well."""
    until = monotonic() + _MOMENT
    while (thread := _next(_ending.popleft)) is not None:
        while os.path.exists(f"/proc/self/task/{thread}") and monotonic() < until:
            sleep(1e-4)


processes.around_fork(_see_off, list)
