"""Pipes of a store: as those of multiprocessing, with ends that travel, and word of the other end's death."""

from __future__ import annotations

import array
import gc
import os
import pickle
import signal
from multiprocessing import BufferTooShort, get_context
from typing import TYPE_CHECKING, Any

import pytest

import shmarray as sa
from shmarray import keepers
from tests.helpers.processes import reap, wait_until
from tests.vocabulary import actors, deaths

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import SpawnContext

FORK = get_context("fork")


@pytest.mark.core
def test_both_ends_of_a_pipe_send_and_receive() -> None:
    """Values of any size go both ways, in order."""
    with sa.Store() as store:
        one, other = store.Pipe()
        for value in (1, "text", b"x" * 200_000, [None, {"a": 1}]):
            one.send(value)
            other.send([value])
        assert [other.recv() for _ in range(4)][:2] == [1, "text"]
        assert [len(one.recv()) for _ in range(3)] == [1, 1, 1]
        assert one.recv() == [[None, {"a": 1}]]
        assert (one.readable, one.writable, one.closed) == (True, True, False)


def test_a_pipe_that_is_not_duplex_goes_one_way() -> None:
    """The first end only receives, the second only sends; the other way is an OSError."""
    with sa.Store() as store:
        reader, writer = store.Pipe(duplex=False)
        assert (reader.readable, reader.writable) == (True, False)
        assert (writer.readable, writer.writable) == (False, True)
        writer.send(1)
        assert reader.recv() == 1
        for refused in (
            lambda: reader.send(1),
            lambda: reader.send_bytes(b""),
            writer.recv,
            writer.recv_bytes,
            writer.poll,
        ):
            with pytest.raises(OSError, match="only"):
                refused()


def test_bytes_are_sent_whole_or_in_part() -> None:
    """Any buffer, from an offset, of a size; what is out of range is a ValueError and sends nothing."""
    with sa.Store() as store:
        ends: tuple[Any, Any] = store.Pipe()
        one, other = ends
        numbers = array.array("i", [1, 2, 3])
        sendings: list[tuple[Callable[[], object], bytes]] = [
            (lambda: one.send_bytes(b"hello"), b"hello"),
            (lambda: one.send_bytes(b"hello", 2), b"llo"),
            (lambda: one.send_bytes(b"hello", 1, 3), b"ell"),
            (lambda: one.send_bytes(b"hello", 5), b""),
            (lambda: one.send_bytes(bytearray(b"x"), 0, 0), b""),
            (lambda: one.send_bytes(numbers), numbers.tobytes()),
            (lambda: one.send_bytes(memoryview(b"x" * 100_000)), b"x" * 100_000),
        ]
        for send, expected in sendings:
            send()
            assert other.recv_bytes() == expected
        for wrong in ((-1,), (0, -1), (6,), (2, 4), (0, 6)):
            with pytest.raises(ValueError, match=r"size|offset"):
                one.send_bytes(b"hello", *wrong)
        with pytest.raises(TypeError):
            one.send_bytes("text")
        assert not other.poll()


def test_bytes_are_received_into_a_buffer() -> None:
    """The count is returned; what does not fit comes as BufferTooShort; a limit is an OSError."""
    with sa.Store() as store:
        ends: tuple[Any, Any] = store.Pipe()
        one, other = ends
        buffer = bytearray(8)
        one.send_bytes(b"abc")
        assert (other.recv_bytes_into(buffer), bytes(buffer)) == (3, b"abc\0\0\0\0\0")
        one.send_bytes(b"abc")
        assert (other.recv_bytes_into(buffer, 5), bytes(buffer)) == (3, b"abc\0\0abc")
        one.send_bytes(b"too long by far")
        with pytest.raises(BufferTooShort) as caught:
            other.recv_bytes_into(buffer)
        assert caught.value.args == (b"too long by far",)
        numbers = array.array("i", [0, 0])
        one.send_bytes(array.array("i", [5]))
        assert other.recv_bytes_into(numbers, 4) == 4
        assert numbers.tolist() == [0, 5]
        for wrong in (-1, 9):
            with pytest.raises(ValueError, match="offset"):
                other.recv_bytes_into(buffer, wrong)
        one.send_bytes(b"long")
        with pytest.raises(OSError, match="longer"):
            other.recv_bytes(3)
        with pytest.raises(ValueError, match="maxlength"):
            other.recv_bytes(-1)


def test_poll_tells_what_is_there_and_when() -> None:
    """At once, within a time, or whenever; also when the other end is gone, as `recv` then says."""
    with sa.Store() as store:
        one, other = store.Pipe()
        assert not one.poll()
        assert not one.poll(0.02)
        assert not one.poll(-1)
        other.send(1)
        assert one.poll()
        assert one.poll(None)
        assert one.recv() == 1
        other.close()
        assert one.poll(5)
        with pytest.raises(EOFError):
            one.recv()


@pytest.mark.core
def test_the_end_of_the_other_end_is_told_after_what_it_sent() -> None:
    """What was sent is received first, then EOFError; sending there is a BrokenPipeError."""
    with sa.Store() as store:
        one, other = store.Pipe()
        one.send("last")
        one.send(store.ones(3))
        one.close()
        one.close()
        assert other.recv() == "last"
        assert other.recv().sum() == 3
        for _ in range(2):
            with pytest.raises(EOFError):
                other.recv()
            with pytest.raises(BrokenPipeError):
                other.send(1)
            with pytest.raises(BrokenPipeError):
                other.send_bytes(b"1")
        for refused in (one.recv, one.poll, one.fileno, lambda: one.send(1), lambda: pickle.dumps(one)):
            with pytest.raises(OSError, match="closed"):
                refused()
        with other:
            pass
        assert other.closed
        with pytest.raises(OSError, match="closed"), other:
            pass


@pytest.mark.parametrize(
    ("step", "deed"),
    [
        ("pack", lambda end: end.send(1)),
        ("pack_bytes", lambda end: end.send_bytes(b"1")),
        ("_wait_change", lambda end: end.recv()),
        ("_wait_change", lambda end: end.poll(60)),
    ],
    ids=["send", "send_bytes", "recv", "poll"],
)
def test_the_end_of_the_store_is_not_the_end_of_a_pipe(
    step: str, deed: Callable[[Any], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that ends in the midst of it is StoreClosedError, though it removes the other end."""
    store = sa.Store()
    one, other = store.Pipe()
    done = getattr(keepers.Keeper, step)

    def end_the_store(*args: Any) -> Any:
        result = done(*args)
        store.close()
        return result

    monkeypatch.setattr(keepers.Keeper, step, end_the_store)
    with pytest.raises(sa.StoreClosedError):
        deed(one)
    assert not other.closed


def test_a_waiting_receiver_hears_of_a_killed_sender() -> None:
    """SIGKILL of the only process with the other end: what it had sent, then EOFError, and BrokenPipeError for a waiting sender."""
    with sa.Store() as store:
        one, other = store.Pipe()

        def send() -> None:
            other.send("from the child")
            signal.pause()

        pid = deaths.in_child(send)
        other.close()
        assert one.recv() == "from the child"
        full = store.Event()

        def fill() -> None:
            with pytest.raises(BrokenPipeError):  # noqa: PT012  it fills up, and then waits
                while True:
                    one.send_bytes(bytes(20_000))
                    full.set()

        sender = deaths.in_child(fill)
        assert full.wait(20)
        os.kill(pid, signal.SIGKILL)
        reap(pid)
        assert reap(sender) == 0
        with pytest.raises(EOFError):
            one.recv()


def test_a_pipe_holds_a_bounded_amount() -> None:
    """A sender waits while much is on its way, and goes on when it is received."""
    with sa.Store() as store:
        one, other = store.Pipe()

        def send() -> None:
            for number in range(200):
                one.send_bytes(bytes([number]) * 30_000)

        pid = deaths.in_child(send)
        wait_until(other.poll, 20)
        assert [other.recv_bytes()[0] for _ in range(200)] == list(range(200))
        assert reap(pid) == 0


class WaitError(Exception):
    """Stands for the wait of a sender."""


@pytest.mark.parametrize(("size", "most"), [(100, 10_000), (20_000, 53), (100_000, 11), (2_000_000, 1)])
def test_a_sender_waits_whatever_the_size_of_its_messages(
    size: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mebibyte on its way is the bound of each direction, also where messages have blocks of their own; received is gone."""
    with sa.Store() as store:
        one, other = store.Pipe()

        def refuse(*_: Any) -> None:
            raise WaitError

        monkeypatch.setattr(keepers.Keeper, "_wait_change", refuse)
        for sender, receiver in ((one, other), (other, one)) * 2:
            sent = 0
            with pytest.raises(WaitError):  # noqa: PT012  at one of these
                while sent <= most:
                    sender.send_bytes(bytes(size))
                    sent += 1
            assert most * 3 // 4 <= sent <= most
            assert [len(receiver.recv_bytes()) for _ in range(sent)] == [size] * sent


def _used(end: Any) -> int:
    """How many bytes are on their way, both ways."""
    return sum(ring.used() for ring in end._open().rings)


def test_an_end_travels_to_any_process(start_method: SpawnContext) -> None:
    """As an argument, and through another pipe; the end lives while it is on its way."""
    with sa.Store() as store:
        one, other = store.Pipe()
        process = start_method.Process(target=actors.echo, args=(other,))
        process.start()
        outer, inner = store.Pipe()
        outer.send(one)
        del one
        gc.collect()
        one = inner.recv()
        for value in (1, store.full(3, 2.0), b"x" * 50_000):
            one.send(value)
        assert one.recv() == 1
        assert one.recv().tolist() == [2.0] * 3
        assert len(one.recv()) == 50_000
        one.send(None)
        process.join(30)
        assert process.exitcode == 0


def test_a_pipe_goes_with_its_ends_and_all_that_is_in_it() -> None:
    """Nothing is left when both ends are dropped: ends, arena, values, arrays."""
    with sa.Store() as store:
        one, other = store.Pipe()
        one.send(store.ones(5))
        other.send(b"x" * 50_000)
        del one, other
        gc.collect()
        wait_until(lambda: not deaths.files_of(store), 10, lambda: str(deaths.files_of(store)))


@pytest.mark.parametrize("value", [b"small", b"x" * 40_000])
def test_a_sender_killed_at_any_line_sends_its_value_or_does_not(value: bytes) -> None:
    """The receiver gets what was sent before, perhaps the new value whole, and goes on."""
    with sa.Store() as store:
        one, other = store.Pipe()
        seen: dict[bool, int] = {True: 0, False: 0}

        def verify(where: str) -> None:
            assert other.recv() == "before", where
            there = other.poll()
            assert not there or other.recv() == value, where
            seen[there] += 1
            other.send("back")
            assert one.recv() == "back"
            assert _used(one) == 0, where

        assert deaths.sweep(lambda: one.send("before"), lambda: one.send(value), verify, step=2) > 15
        assert min(seen.values()) > 0


@pytest.mark.parametrize("size", [1, 40_000])
def test_a_receiver_killed_at_any_line_takes_one_value_or_none(size: int) -> None:
    """The values behind it stay, in order."""
    with sa.Store() as store:
        one, other = store.Pipe()

        def ready() -> None:
            for number in range(3):
                one.send(bytes([number]) * size)

        def verify(where: str) -> None:
            found: list[Any] = []
            while other.poll():
                found.append(other.recv()[0])
            assert found in ([0, 1, 2], [1, 2]), where
            assert _used(one) == 0, where

        assert deaths.sweep(ready, other.recv, verify, step=2) > 10


@pytest.mark.parametrize("deed", ["send", "recv", "poll"])
def test_a_pipe_interrupted_at_any_step_is_usable_and_whole(deed: str) -> None:
    """A handler's exception leaves the guard free; no value is twice there, or lost but to its receiver."""
    with sa.Store() as store:
        one, other = store.Pipe()
        acts: dict[str, Callable[[], object]] = {
            "send": lambda: one.send(b"x" * 40_000),
            "recv": other.recv,
            "poll": other.poll,
        }

        def ready() -> None:
            one.send(store.ones(3))
            one.send(2)

        def verify(where: str) -> None:
            assert one._open().keeper._guard.holder() is None, where
            found = []
            while other.poll():
                value = other.recv()
                found.append(value if isinstance(value, int) else len(value))
            assert found in {"send": ([3, 2], [3, 2, 40_000]), "recv": ([3, 2], [2])}.get(deed, ([3, 2],)), where
            assert _used(one) == 0, where

        assert deaths.interrupt_everywhere(ready, acts[deed], verify) > 5
