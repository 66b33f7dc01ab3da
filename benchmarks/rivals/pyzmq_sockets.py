"""ZeroMQ over local sockets."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from typing import TYPE_CHECKING, Any

import numpy as np
import zmq

from benchmarks.rivals.interface import Adapter
from benchmarks.rivals.streaming import Form, Streams, turns

if TYPE_CHECKING:
    from collections.abc import Callable


class Sockets(Adapter, Streams):
    """`zmq` over `ipc://`: PUSH and PULL, one socket for each receiver, which senders take in turns; XPUB and SUB for a broadcast.

    Frames are neither copied into a message nor out of it: their sender has some, and fills one again when it has been sent.
    """

    def __init__(self, tag: str) -> None:
        """Begin with nothing open."""
        super().__init__(tag)
        self._stack = contextlib.ExitStack()

    def lay(self, form: Form, senders: int, receivers: int) -> Any:
        """Make a place for the sockets."""
        del form, senders
        place = tempfile.mkdtemp(prefix="zmq-")
        self._stack.callback(shutil.rmtree, place)
        return place, receivers

    def close(self) -> None:
        """Remove the places."""
        self._stack.close()

    leave = close

    def _socket(self, kind: int, form: Form) -> Any:
        context = self._stack.enter_context(zmq.Context())
        socket = self._stack.enter_context(context.socket(kind))
        socket.set_hwm(form.slots)
        socket.linger = 0
        socket.reconnect_ivl = 10
        return socket

    def sender(self, line: Any, form: Form, number: int) -> Callable[[Any], None]:
        """Connect to every receiver; or bind, and wait until each has subscribed."""
        del number
        place, receivers = line
        if form.broadcast:
            socket = self._socket(zmq.XPUB, form)
            socket.setsockopt(zmq.XPUB_NODROP, 1)
            socket.bind(f"ipc://{os.path.join(place, 'all')}")
            for _ in range(receivers):
                socket.setsockopt(zmq.XPUB_VERBOSE, 1)
                socket.recv()
            return socket.send  # type: ignore[no-any-return]  # it is one
        ends = []
        for receiver in range(receivers):
            socket = self._socket(zmq.PUSH, form)
            socket.connect(f"ipc://{os.path.join(place, str(receiver))}")
            ends.append(socket.send)
        following = turns(ends)
        frames = turns([[form.blank(), None] for _ in range(form.slots)])

        def fill(value: int) -> None:
            frame = frames()
            if frame[1] is not None:
                frame[1].wait()
            frame[0].fill(value)
            frame[1] = following()(frame[0], copy=False, track=True)

        if form.in_place:
            return fill

        def send(item: Any) -> None:
            following()(item)

        return ends[0] if receivers == 1 else send

    def receiver(self, line: Any, form: Form, number: int) -> Callable[[Any], Any]:
        """Bind; or connect and subscribe."""
        place, _ = line
        socket = self._socket(zmq.SUB if form.broadcast else zmq.PULL, form)
        if form.broadcast:
            socket.subscribe(b"")
            socket.connect(f"ipc://{os.path.join(place, 'all')}")
        else:
            socket.bind(f"ipc://{os.path.join(place, str(number))}")
        receive = socket.recv
        if form.in_place:
            return lambda check: check(form.over(receive(copy=False).buffer))
        dtype = np.dtype(form.dtype)
        return lambda check: check(np.frombuffer(receive(), dtype))
