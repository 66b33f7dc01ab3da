"""Who uses a channel in the tests beside a model: in this thread, in another, in a process of its own.

Owns: doing one deed at a time to a channel, at once or in the background, and telling what came of it in plain values.
Must not know: what should have come of it (`model`).
"""

from __future__ import annotations

import gc
import pickle
import queue
import threading
from typing import Any

import numpy as np

import shmarray as sa

SOON = 40.0
_STEP = 1 << 20


def payload(number: int, length: int) -> np.ndarray[Any, Any]:
    """Make an item that shows, in every element, which it is and how long."""
    return np.arange(length, dtype=np.int64) + (number * _STEP + length * 7)


def whose(item: np.ndarray[Any, Any]) -> tuple[int, int]:
    """Tell number and length of an item; fails if any element is another's."""
    length = len(item)
    number = (int(item[0]) - length * 7) // _STEP
    assert np.array_equal(item, payload(number, length)), "torn"
    return number, length


class Hand:
    """What one user of a channel has: an object of the channel, subscriptions, slots to fill and items to read."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.clear()

    def clear(self) -> None:
        """Let go of everything."""
        self.channel: Any = None
        self.subscriptions: dict[int, Any] = {}
        self.loans: dict[int, Any] = {}
        self.receipts: dict[int, Any] = {}
        gc.collect()

    def do(self, verb: str, *arguments: Any) -> Any:
        """Do a deed; what the channel raises comes back as a word."""
        try:
            return getattr(self, f"_{verb}")(*arguments)
        except queue.Full:
            return "full"
        except queue.Empty:
            return "empty"
        except sa.ChannelClosedError:
            return "closed"
        except sa.GuardError:
            return "in hand"
        except ValueError as error:
            return f"refused: {type(error).__name__}"

    def _begin(self, channel: Any) -> None:
        self.clear()
        self.channel = pickle.loads(channel) if isinstance(channel, bytes) else channel

    def _drop(self) -> None:
        self.clear()

    def _source(self, key: int | None) -> Any:
        return self.channel if key is None else self.subscriptions[key]

    # -- putting

    def _put(self, number: int, length: int, timeout: float | None, way: str) -> Any:
        item = payload(number, length)
        if way == "nowait":
            return self.channel.put_nowait(item)
        if way == "plain":
            return self.channel.put(item, timeout=timeout)
        if way == "list":
            return self.channel.put(item.tolist(), timeout=timeout, meta=number)
        return self.channel.put(item, timeout is None or timeout > 0, timeout, meta=number)

    def _loan(self, key: int, length: int, timeout: float | None) -> Any:
        loan = self.channel.loan(timeout, shape=length)
        frame = loan.__enter__()
        assert frame.shape == (length,)
        self.loans[key] = loan, frame
        return True

    def _publish(self, key: int, number: int) -> Any:
        loan, frame = self.loans.pop(key)
        frame[:] = payload(number, len(frame))
        loan.meta = number
        loan.__exit__(None, None, None)
        return loan.published

    def _abort(self, key: int) -> Any:
        loan, frame = self.loans.pop(key)
        frame[:] = -1
        loan.__exit__(OSError, OSError(), None)
        return loan.published

    # -- taking

    def _get(self, subscription: int | None, timeout: float | None, way: str) -> Any:
        source = self._source(subscription)
        return whose(source.get_nowait() if way == "nowait" else source.get(timeout=timeout))

    def _receive(self, key: int, subscription: int | None, timeout: float | None) -> Any:
        item = self._source(subscription).receive(timeout)
        frame = item.__enter__()
        assert not frame.flags.writeable
        self.receipts[key] = item, frame
        number, length = whose(frame)
        assert item.meta in (None, number)
        return number, length, item.sequence, item.missed

    def _give_back(self, key: int) -> Any:
        item, frame = self.receipts.pop(key)
        told = whose(frame)
        item.__exit__(None, None, None)
        return told

    def _walk(self, subscription: int | None, most: int) -> Any:
        """Take up to so many by a loop, and leave it."""
        found = []
        for frame in self._source(subscription):
            found.append(whose(frame))
            if len(found) == most:
                break
        return found

    # -- the rest

    def _subscribe(self, key: int) -> Any:
        self.subscriptions[key] = self.channel.subscribe()

    def _close_subscription(self, key: int) -> Any:
        subscription = self.subscriptions.pop(key)
        subscription.close()
        subscription.close()

    def _drop_subscription(self, key: int) -> Any:
        del self.subscriptions[key]

    def _send_subscription(self, key: int) -> Any:
        return pickle.dumps(self.subscriptions.pop(key))

    def _load_subscription(self, key: int, handle: bytes) -> Any:
        self.subscriptions[key] = pickle.loads(handle)

    def _close(self) -> Any:
        self.channel.close()
        self.channel.close()

    def _renew(self) -> Any:
        """Have another object of the same channel; the one before is dropped."""
        self.channel = pickle.loads(pickle.dumps(self.channel))

    def _end(self) -> Any:
        self.channel.end()

    def _task_done(self) -> Any:
        self.channel.task_done()

    def _join(self, timeout: float) -> Any:
        return self.channel.join(timeout)

    def _look(self) -> Any:
        channel = self.channel
        sizes = {key: subscription.qsize() for key, subscription in self.subscriptions.items()}
        missed = {key: subscription.missed for key, subscription in self.subscriptions.items()}
        assert channel.empty() == (channel.qsize() == 0)
        return channel.qsize(), channel.full(), sizes, missed


class Here:
    """A hand in this thread."""

    background = False

    def __init__(self) -> None:
        """Have nothing yet."""
        self.hand = Hand()

    def do(self, verb: str, *arguments: Any) -> Any:
        """Do it now."""
        return self.hand.do(verb, *arguments)

    def begin(self, channel: Any) -> None:
        """Use that object of a channel."""
        self.hand.do("begin", channel)

    def end(self) -> None:
        """Let go of all."""
        self.hand.clear()


class InThread:
    """A hand in another thread."""

    background = True

    def __init__(self) -> None:
        """Start the thread."""
        self._deeds: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._asked = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        hand = Hand()
        while True:
            asked = self._deeds.get()
            if asked is None:
                return
            number, *deed = asked
            try:
                answer = hand.do(*deed)
            except Exception as error:  # noqa: BLE001  the thread that waits for the answer fails with it
                answer = repr(error)
            del asked, deed
            self._answers.put((number, answer))
            del answer

    def ask(self, *deed: Any) -> None:
        """Begin to do something."""
        self._asked += 1
        self._deeds.put((self._asked, *deed))

    def answer(self) -> Any:
        """Wait for what came of it; what a test before did not wait for, because it failed, is passed over."""
        while True:
            number, answer = self._answers.get(timeout=SOON)
            if number == self._asked:
                return answer

    def do(self, *deed: Any) -> Any:
        """Do it there, and wait."""
        self.ask(*deed)
        return self.answer()

    def begin(self, channel: Any) -> None:
        """Use that object of a channel."""
        self.do("begin", channel)

    def end(self) -> None:
        """End the thread."""
        self._deeds.put(None)
        self._thread.join(SOON)
        assert not self._thread.is_alive()


def serve(line: Any) -> None:
    """Do what comes over a pipe, until None comes."""
    hand = Hand()
    while (deed := line.recv()) is not None:
        number, *deed = deed
        try:
            answer = hand.do(*deed)
        except Exception as error:  # noqa: BLE001  the process that waits for the answer fails with it
            answer = repr(error)
        line.send((number, answer))
    hand.clear()


class InProcess:
    """A hand in a process of its own."""

    background = True

    def __init__(self, context: Any) -> None:
        """Start the process."""
        self._line, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self.pid = self._process.pid
        self._asked = 0

    def ask(self, *deed: Any) -> None:
        """Begin to do something."""
        self._asked += 1
        self._line.send((self._asked, *deed))

    def answer(self) -> Any:
        """Wait for what came of it; what a test before did not wait for, because it failed, is passed over."""
        while True:
            assert self._line.poll(SOON), "no answer"
            number, answer = self._line.recv()
            if number == self._asked:
                return answer

    def do(self, *deed: Any) -> Any:
        """Do it there, and wait."""
        self.ask(*deed)
        return self.answer()

    def begin(self, channel: Any) -> None:
        """Use that channel; its handle travels as bytes, loaded there."""
        self.do("begin", pickle.dumps(channel))

    def end(self) -> None:
        """End the process."""
        self._line.send(None)
        self._process.join(SOON)
        assert self._process.exitcode == 0
        self._process.close()
        self._line.close()
