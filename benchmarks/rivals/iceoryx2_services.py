"""iceoryx2: publish and subscribe in shared memory, written in Rust."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import tempfile
from typing import TYPE_CHECKING, Any, ClassVar

import iceoryx2
import numpy as np

from benchmarks.rivals.interface import Adapter
from benchmarks.rivals.streaming import Form, Streams, turns

if TYPE_CHECKING:
    from collections.abc import Callable

_SHM = "/dev/shm"  # noqa: S108  where it keeps its own


class Polling(Adapter, Streams):
    """Publishers and subscribers; who waits looks again and again.

    A service gives each item to all who subscribe. Where only one may have it, there is a service for each receiver, and senders
    take them in turns. Who copies, copies into a loan, and out of a sample.
    """

    in_place: ClassVar[bool] = True
    event: ClassVar[bool] = False

    def __init__(self, tag: str) -> None:
        """Begin with nothing open."""
        super().__init__(tag)
        self._place: str | None = None
        self._prefix = f"{tag}_"  # of all its files; nobody else's begins like that
        self._count = 0
        self._kept: list[Any] = []

    def lay(self, form: Form, senders: int, receivers: int) -> Any:
        """Choose a name; a service is there as soon as the first opens it."""
        del form
        iceoryx2.set_log_level(iceoryx2.LogLevel.Error)
        if self._place is None:
            self._place = tempfile.mkdtemp(prefix="iox2-")
        self._count += 1
        return self._prefix, self._place, f"{self.tag}/{self._count}", senders, receivers

    def close(self) -> None:
        """Remove what it leaves behind: its directory, and a word in shared memory for each process."""
        if self._place is not None:
            shutil.rmtree(self._place, ignore_errors=True)
            self._place = None
            for name in os.listdir(_SHM):
                if name.startswith(self._prefix):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(os.path.join(_SHM, name))

    def leave(self) -> None:
        """Drop all ends, then the services, then the nodes."""
        while self._kept:
            self._kept.pop()

    def _open(self, line: Any, form: Form, number: int) -> tuple[Any, Any]:
        """Open service `number` of a line, and its event if there is one."""
        prefix, place, name, senders, receivers = line
        iceoryx2.set_log_level(iceoryx2.LogLevel.Error)
        config = iceoryx2.config.default()
        settings = config.global_cfg
        settings.prefix = iceoryx2.FileName.new(prefix)
        settings.root_path = iceoryx2.Path.new(place)
        quiet = iceoryx2.SignalHandlingMode.Disabled
        node = iceoryx2.NodeBuilder.new().config(config).signal_handling_mode(quiet).create(iceoryx2.ServiceType.Ipc)
        named = iceoryx2.ServiceName.new(f"{name}/{number}")
        service = (
            node.service_builder(named)
            .publish_subscribe(iceoryx2.Slice[ctypes.c_uint8])
            .payload_alignment(iceoryx2.Alignment.new(64))
            .enable_safe_overflow(False)
            .history_size(0)
            .subscriber_max_buffer_size(form.slots)
            .subscriber_max_borrowed_samples(2)
            .max_publishers(senders)
            .max_subscribers(receivers if form.broadcast else 1)
            .open_or_create()
        )
        event = node.service_builder(named).event().open_or_create() if self.event else None
        self._kept += [node, service, event]
        return service, event

    def sender(self, line: Any, form: Form, number: int) -> Callable[[Any], None]:
        """Publish: loan, fill or copy, send; notify."""
        del number
        ends = []
        for receiver in range(1 if form.broadcast else line[-1]):
            service, event = self._open(line, form, receiver)
            waits = iceoryx2.BackpressureStrategy.RetryUntilDelivered
            builder = service.publisher_builder().initial_max_slice_len(form.nbytes).backpressure_strategy(waits)
            notifier = event.notifier_builder().create() if event is not None else None
            ends.append((builder.create(), notifier))
        self._kept += [end for pair in ends for end in pair]
        following, nbytes = turns(ends), form.nbytes

        def send(write: Any, item: Any) -> None:
            publisher, notifier = following()
            loan = publisher.loan_slice_uninit(nbytes)
            write(form.over(loan.payload().as_memory_view()), item)
            loan.assume_init().send()
            if notifier is not None:
                notifier.notify()

        if form.in_place:
            return lambda value: send(np.ndarray.fill, value)
        return lambda item: send(np.copyto, item)

    def receiver(self, line: Any, form: Form, number: int) -> Callable[[Any], Any]:
        """Subscribe: receive, look or copy, give back."""
        service, event = self._open(line, form, 0 if form.broadcast else number)
        subscriber = service.subscriber_builder().create()
        listener = event.listener_builder().create() if event is not None else None
        self._kept += [subscriber, listener]
        receive, in_place = subscriber.receive, form.in_place

        def take(check: Any) -> Any:
            while (sample := receive()) is None:
                if listener is not None:
                    listener.blocking_wait()
            item = form.over(sample.payload().as_memory_view())
            if in_place:
                found = check(item)
                sample.delete()
                return found
            item = item.copy()
            sample.delete()
            return check(item)

        return take


class Event(Polling):
    """The same with an event service beside: who waits sleeps until it is notified."""

    event: ClassVar[bool] = True
