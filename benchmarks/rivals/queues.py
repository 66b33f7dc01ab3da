"""Streams by `multiprocessing`: its queue, its pipe, and the limit of what its semaphores and memory allow."""

from __future__ import annotations

import contextlib
import multiprocessing
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from benchmarks.rivals.interface import Adapter
from benchmarks.rivals.streaming import Form, Streams, turns

if TYPE_CHECKING:
    from collections.abc import Callable

_CONTEXT: Any = multiprocessing.get_context("spawn")


class Queue(Adapter, Streams):
    """`multiprocessing.Queue`; for a broadcast one for each receiver.

    It pickles in a thread, some time after `put` has returned, so what is put must be an array of its own.
    """

    @staticmethod
    def make(form: Form) -> Any:
        """Make one queue."""
        return _CONTEXT.Queue(form.slots)

    @staticmethod
    def own(item: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Give what may be put and is not changed later."""
        return item.copy()

    def lay(self, form: Form, senders: int, receivers: int) -> Any:
        """Make a queue."""
        del senders
        return [self.make(form) for _ in range(receivers if form.broadcast else 1)]

    def sender(self, line: Any, form: Form, number: int) -> Callable[[Any], None]:
        """Put an array, a copy or a new one."""
        del number
        put, own = line[0].put, self.own
        if form.broadcast:

            def put_each(item: Any) -> None:
                item = own(item)
                for queue in line:
                    queue.put(item)

            return put_each
        if form.in_place:
            return lambda value: put(np.full(form.shape, value, form.dtype))
        return lambda item: put(own(item))

    def receiver(self, line: Any, form: Form, number: int) -> Callable[[Any], Any]:
        """Get an array."""
        get = line[number if form.broadcast else 0].get
        return lambda check: check(get())


class Pipe(Adapter, Streams):
    """`multiprocessing.Pipe`, bytes into a buffer that is there already.

    Only one process may read a pipe, so there is one for each receiver, which senders take in turns, each under its lock.
    """

    def lay(self, form: Form, senders: int, receivers: int) -> Any:
        """Make the pipes, and a lock for each that more than one may write to."""
        del form
        pipes = [_CONTEXT.Pipe(duplex=False) for _ in range(receivers)]
        return [(*pipe, _CONTEXT.Lock() if senders > 1 else None) for pipe in pipes]

    def sender(self, line: Any, form: Form, number: int) -> Callable[[Any], None]:
        """Send bytes, into every pipe or one after the other."""
        del number
        frame = form.blank()
        ends = [(sending.send_bytes, lock or contextlib.nullcontext()) for _, sending, lock in line]
        following = turns(ends)

        def send(item: Any) -> None:
            sending, lock = following()
            with lock:
                sending(item)

        def send_each(item: Any) -> None:
            for sending, _ in ends:
                sending(item)

        def fill(value: int) -> None:
            frame.fill(value)
            send(frame.data.cast("B"))

        if form.broadcast:
            return send_each
        if form.in_place:
            return fill
        return ends[0][0] if len(ends) == 1 and line[0][2] is None else send

    def receiver(self, line: Any, form: Form, number: int) -> Callable[[Any], Any]:
        """Receive into one's own item."""
        item = form.blank()
        buffer = item.data.cast("B")
        receiving = line[number][0].recv_bytes_into

        def take(check: Any) -> Any:
            receiving(buffer)
            return check(item)

        return take


class Semaphores(Adapter, Streams):
    """The limit of one sender and one receiver that sleep while they wait: a ring of slots and two semaphores.

    Nobody looks who holds what: when one of the two dies the other waits for ever.
    """

    senders: ClassVar[int] = 1
    receivers: ClassVar[int] = 1
    in_place: ClassVar[bool] = True

    def lay(self, form: Form, senders: int, receivers: int) -> Any:
        """Make memory and semaphores."""
        del senders, receivers
        memory = _CONTEXT.RawArray("B", form.slots * form.nbytes)
        return memory, _CONTEXT.Semaphore(form.slots), _CONTEXT.Semaphore(0)

    @staticmethod
    def slots(memory: Any, form: Form) -> Callable[[], Any]:
        """Give slot after slot, for ever."""
        whole = memoryview(memory).cast("B")
        return turns([form.over(whole[start:]) for start in range(0, len(whole), form.nbytes)])

    def sender(self, line: Any, form: Form, number: int) -> Callable[[Any], None]:
        """Take a free slot, fill it, say so."""
        del number
        memory, free, full = line
        following, wait_for, say = self.slots(memory, form), free.acquire, full.release

        def send(item: Any) -> None:
            wait_for()
            following()[...] = item
            say()

        def fill(value: int) -> None:
            wait_for()
            following().fill(value)
            say()

        return fill if form.in_place else send

    def receiver(self, line: Any, form: Form, number: int) -> Callable[[Any], Any]:
        """Wait for a full slot, look at it or copy it, say that it is free."""
        del number
        memory, free, full = line
        following, wait_for, say = self.slots(memory, form), full.acquire, free.release

        def take(check: Any) -> Any:
            wait_for()
            found = check(following())
            say()
            return found

        def copy(check: Any) -> Any:
            wait_for()
            item = following().copy()
            say()
            return check(item)

        return take if form.in_place else copy


class OverTwo(Adapter, Streams):
    """The limit of every sender: fill slots that are there already, one after the other; nobody reads them.

    How many they are decides whether they stay in the processor's cache.
    """

    senders: ClassVar[int] = 1
    receivers: ClassVar[int] = 0
    slots: ClassVar[int] = 2

    def lay(self, form: Form, senders: int, receivers: int) -> Any:
        """Nothing needs to travel."""

    def sender(self, line: Any, form: Form, number: int) -> Callable[[Any], None]:
        """Copy into the next slot, or fill it."""
        del line, number
        count = self.slots or form.slots
        following = turns([np.ones(form.shape, form.dtype) for _ in range(count)])

        def send(item: Any) -> None:
            following()[...] = item

        def fill(value: int) -> None:
            following().fill(value)

        return fill if form.in_place else send

    def receiver(self, line: Any, form: Form, number: int) -> Callable[[Any], Any]:
        """Nobody receives."""
        raise NotImplementedError


class OverOne(OverTwo):
    """The same over one slot."""

    slots: ClassVar[int] = 1


class OverAll(OverTwo):
    """The same over as many slots as a stream has."""

    slots: ClassVar[int] = 0
