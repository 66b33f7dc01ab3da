"""What has ended and is still to be seen to, and what has not.

Owns: emptying a list to which the callbacks of weak references append, so that an exception of a signal handler, between any two
lines, loses none of it; handing on the `KeyboardInterrupt` of a Ctrl-C that comes in such a callback, where nobody could catch it; listing
what a table of weak references has, while other threads enter more. Must not know: what it is, or what is to be done.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import signal
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from weakref import WeakValueDictionary

T = TypeVar("T")
_IS_UP = True  # first of the names that the interpreter's end takes away
_MOST_IDLE = 64
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


class Callbacks:
    """Callbacks of weak references that call `settle`, and in which a Ctrl-C is handed on.

    A function in Python would not do: Python looks for signals at its very entry, and so finds those there that came while C code computed
    something, or unmapped what ends. A generator goes on inside its `try`. It serves one weak reference at a time, and then another one.
    """

    def __init__(self, settle: Callable[[], object]) -> None:
        """Have none ready."""
        self._settle = settle
        self._idle: deque[Generator[None, Any]] = deque()

    def give(self) -> Callable[[object], object]:
        """Give one, for one weak reference."""
        try:
            waiting = self._idle.pop()
        except IndexError:
            return self._new()
        # It may have come back a moment too early, in another thread or below this very call; or have come to its end by an exception then.
        fit = waiting.gi_frame is not None and not waiting.gi_running  # type: ignore[attr-defined]  # a generator has these
        return waiting.send if fit else self._new()

    def _new(self) -> Callable[[object], object]:
        waiting = self._wait()
        next(waiting)
        waiting.send(waiting)
        return waiting.send

    def _wait(self) -> Generator[None, Any]:
        me = yield
        try:
            while True:
                yield
                self._settle()
                if len(self._idle) >= _MOST_IDLE:
                    break  # it goes with the weak reference
                self._idle.append(me)
        except KeyboardInterrupt:
            with contextlib.suppress(ValueError):
                self._idle.remove(me)
            with contextlib.suppress(KeyboardInterrupt):
                self._settle()
            hand_on()  # last: what it brings is not to come in here
        del me  # no cycle
        yield  # not to end: that would be an exception, too


def once(act: Callable[[], object]) -> Callable[[object], object]:
    """Make such a callback for one weak reference alone; what `act` has is nobody's but that one's."""
    waiting = _once(act)
    next(waiting)
    return waiting.send


def _once(act: Callable[[], object]) -> Generator[None, object]:
    try:
        yield
        act()
    except KeyboardInterrupt:
        with contextlib.suppress(KeyboardInterrupt):
            act()
        hand_on()
    yield


def hand_on() -> None:
    """In a callback that was interrupted: interrupt the main thread again, once this callback has ended.

    Out of a callback no exception comes: Python would write it to standard error, and the program would go on as if nothing had been.
    """
    try:
        _thread.start_new_thread(_interrupt, ())
    except RuntimeError:  # no thread to be had
        _thread.interrupt_main()


def _interrupt() -> None:
    main = threading.main_thread().ident
    if not (_IS_UP and main):
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.pthread_kill(main, signal.SIGINT)  # which ends a system call too
    else:  # a handler of the program's own has had its turn
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(main), ctypes.py_object(KeyboardInterrupt))


def living(table: WeakValueDictionary[Any, T]) -> list[T]:
    """Give what such a table has. Going through it, or a `WeakSet`, would raise where another thread enters something meanwhile."""
    return [one for found in table.valuerefs() if (one := found()) is not None]
