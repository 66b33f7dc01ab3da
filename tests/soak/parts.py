"""Who puts into a channel and who takes from it, in the soak of channels.

Owns: their main function; items with a checksum; the ledger, a file in which each writes down what it has done.
Must not know: who kills, and when.
"""

from __future__ import annotations

import faulthandler
import os
import queue
import random
import time
import traceback
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import shmarray as sa

if TYPE_CHECKING:
    from shmarray.channels import Channel

SIZES = (40, 12_000)
"""Words of an item that is copied with the lock held, and of one that is not."""
MOST = 1 << 14
"""Items of one producer."""
_WHO, _NUMBER, _SUM, _DATA = range(4)
_FAILED = 70


class Part(NamedTuple):
    """What a process is given."""

    role: str
    number: int
    seed: int
    ledger: str
    again: bool
    errors: str


class Ledger:
    """What was done, by producer and item. Survives every death; each word has one writer."""

    def __init__(self, path: str, producers: int) -> None:
        """Map the file, which is made if it is not there."""
        self.path = path
        self._done: Any = self._map(".done", np.int64, (producers + 1,))
        self._seen: Any = self._map(".seen", np.uint8, (producers, MOST))
        self._work: Any = self._map(".work", np.int64, (2,))

    def _map(self, what: str, dtype: Any, shape: tuple[int, ...]) -> Any:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        fd = os.open(self.path + what, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, size)
        finally:
            os.close(fd)
        return np.memmap(self.path + what, dtype, "r+", shape=shape)

    def stop(self) -> None:
        """Ask the producers to end."""
        self._done[-1] = 1

    @property
    def stops(self) -> bool:
        """Whether they are to end."""
        return bool(self._done[-1])

    def put(self, producer: int) -> None:
        """Write down that an item was put."""
        self._done[producer] += 1
        self._work[0] += 1

    def take(self, producer: int, number: int) -> None:
        """Write down that an item was seen."""
        self._seen[producer, number] += 1
        self._work[1] += 1

    def work(self) -> None:
        """Give a sign of life as a consumer."""
        self._work[1] += 1

    def worked(self, role: str) -> int:
        """How much those of a role have done."""
        return int(self._work[0 if role == "producer" else 1])

    def books(self) -> tuple[int, int, int]:
        """How many items were put, as their producers say; how many were seen; how often one that had been seen already."""
        seen = np.asarray(self._seen, np.int64)
        once = int((seen > 0).sum())
        return int(self._done[:-1].sum()), once, int(seen.sum()) - once


def item(size: int, producer: int, number: int) -> np.ndarray[Any, Any]:
    """Make an item: who made it, which it is, a checksum, and data."""
    made = np.arange(size, dtype=np.int64)
    made *= producer * 1_000_003 + number * 7 + 1
    made[_WHO], made[_NUMBER] = producer, number
    made[_SUM] = zlib.crc32(made[_DATA:].data)
    return made


def check(found: np.ndarray[Any, Any]) -> tuple[int, int]:
    """See that an item is whole; gives whose it is, and which."""
    producer, number = int(found[_WHO]), int(found[_NUMBER])
    if zlib.crc32(found[_DATA:].data) != found[_SUM] or found[-1] != (len(found) - 1) * (
        producer * 1_000_003 + number * 7 + 1
    ):
        message = f"torn: {found[:8]}"
        raise AssertionError(message)
    return producer, number


def act(part: Part, given: Any, size: int) -> None:
    """Be a producer or a consumer until the end; whatever goes wrong is written down, and the process ends with `_FAILED`."""
    fd = os.open(part.errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(fd, 2)
    os.close(fd)
    faulthandler.enable()
    try:
        ledger = Ledger(part.ledger, _producers(part.ledger))
        rng = random.Random(part.seed)  # noqa: S311  no secret
        if part.role == "producer":
            _produce(part, given, size, ledger, rng)
        else:
            _consume(part, given, ledger, rng)
    except BaseException:  # noqa: BLE001  it is the soak's to judge
        os.write(2, traceback.format_exc().encode())
        os._exit(_FAILED)
    os._exit(0)


def _producers(path: str) -> int:
    return os.path.getsize(path + ".seen") // MOST


def _produce(part: Part, channel: Channel, size: int, ledger: Ledger, rng: random.Random) -> None:
    for number in range(MOST):
        if ledger.stops:
            break
        made, published = item(size, part.number, number), False
        while not ledger.stops:
            try:
                published = _put(channel, made, rng)
            except queue.Full:
                continue
            if published:
                ledger.put(part.number)
            break
        if not published:
            time.sleep(0.001)
    channel.close()


def _put(channel: Channel, made: np.ndarray[Any, Any], rng: random.Random) -> bool:
    if rng.random() < 0.5:
        return channel.put(made, timeout=0.5)
    loan = channel.loan(0.5, meta=("n", int(made[_NUMBER])))
    with loan as frame:
        middle = rng.randrange(len(made))
        frame[:middle] = made[:middle]
        frame[middle:] = made[middle:]
    return loan.published


def _consume(part: Part, given: Any, ledger: Ledger, rng: random.Random) -> None:
    broadcasts = not hasattr(given, "mode") or given.mode == "broadcast"
    source = given.subscribe() if broadcasts and hasattr(given, "subscribe") else given
    last: dict[int, int] = {}
    came = -1
    while True:
        try:
            if broadcasts or part.again or rng.random() < 0.7:
                taken = source.receive(20)
                with taken as frame:
                    producer, number = check(frame)
                    if taken.meta not in (None, ("n", number)):
                        message = f"of another item: {taken.meta}"
                        raise AssertionError(message)
                    if broadcasts and came >= 0 and taken.sequence != came + 1 + taken.missed:
                        message = f"item {taken.sequence} after {came}, {taken.missed} missed"
                        raise AssertionError(message)
                    came = taken.sequence
                    _note(broadcasts, ledger, producer, number)
                    check(frame)
            else:
                producer, number = check(source.get(timeout=20))
                _note(broadcasts, ledger, producer, number)
        except sa.ChannelClosedError:
            return
        except queue.Empty:
            continue
        if number <= last.get(producer, -1) and not part.again:
            message = f"item {number} of {producer} after {last[producer]}"
            raise AssertionError(message)
        last[producer] = number


def _note(broadcasts: bool, ledger: Ledger, producer: int, number: int) -> None:  # noqa: FBT001  a fact
    if broadcasts:
        ledger.work()
    else:
        ledger.take(producer, number)
