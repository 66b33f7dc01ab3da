"""Channels, as methods of a store.

Owns: `channel` and `open_channel`: what they take and what they promise.
Must not know: how a channel works (`channels`, which is loaded when first used).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from shmarray._format import names
from shmarray._os import late

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from shmarray import channels
    from shmarray.membership import Membership

if not TYPE_CHECKING:
    channels = late.Module("shmarray.channels")


class Streaming:
    """The part of `Store` that makes channels."""

    def _open(self) -> Membership:
        """Give the membership of an open store."""
        raise NotImplementedError

    def __getitem__(self, name: str) -> Any:
        """Attach what has that name."""
        raise NotImplementedError

    def channel(
        self,
        shape: Any,
        dtype: DTypeLike | None = None,
        *,
        slots: int = 8,
        mode: Literal["queue", "broadcast"] = "queue",
        full: Literal["block", "drop-new", "drop-oldest"] = "block",
        max_shape: Any = None,
        meta_bytes: int = 256,
        redeliver: bool = False,
        stay: bool = False,
        spin: float = 0.0,
        name: str | None = None,
    ) -> channels.Channel:
        """Make a channel: a stream of arrays of this shape and dtype (float by default); see `shmarray.channels.Channel`.

        `shape` has None for a length that varies, and then `max_shape` says how large it can be. A mapping `{name: (shape, dtype)}`
        makes items of several arrays; `max_shape` is then a mapping too. `mode="queue"` gives each item to one consumer, in the order in
        which its producer put it; `mode="broadcast"` gives every item to each subscriber. There are so many `slots`; when all are in use,
        `full` says whether producers wait ("block"), their item is dropped ("drop-new"), or the oldest is that nobody has in hand
        ("drop-oldest": the newest wins). `meta_bytes` is room for what goes with an item, pickled. With `redeliver` an item whose consumer
        died goes to another: each is received at least once, and not at most once. With `stay` consumers go on waiting when there is no
        producer any more, and producers when there is no consumer. `spin` is how many seconds a consumer polls before it sleeps: it
        buys latency with processor time.

        Takes `slots` times the bytes of the largest item, and a few pages. Raises `ShapeError`, `DTypeError`, `ValueError`,
        `StoreFullError`, `ArrayExistsError`, `ArrayNameError`, `StoreClosedError`.

        >>> import numpy as np, shmarray as sa
        >>> with sa.Store() as store, store.channel((480, 640), np.uint8, name="camera") as camera:
        ...     with camera.loan(meta={"exposure": 3}) as frame:
        ...         frame[:] = 5
        ...     with store.open_channel("camera").receive() as frame:
        ...         print(frame.mean())
        5.0
        """
        return channels.make(
            self._open(),
            shape,
            dtype,
            max_shape=max_shape,
            slots=slots,
            mode=mode,
            full=full,
            meta_bytes=meta_bytes,
            redeliver=redeliver,
            stay=stay,
            spin=spin,
            name=None if name is None else names.check(name),
        )

    def open_channel(self, name: str) -> channels.Channel:
        """Find a channel by its name. Raises `ArrayNotFoundError`; `TypeError` if the name is that of something else."""
        found = self[name]
        if not isinstance(found, channels.Channel):
            message = f"{name!r} is of type {type(found).__name__}, not a channel: store[{name!r}] gives it"
            raise TypeError(message)
        return found
