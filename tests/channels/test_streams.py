"""A stream from its first item to its end: waiting, roles, closing, tasks, threads, forks, signals."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import queue
import signal
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shmarray as sa
from shmarray._format import channel as form
from shmarray._os import futexes
from tests.helpers.processes import reap, wait_until
from tests.vocabulary.deaths import in_child

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ITEM = np.arange(4)
LARGE = np.arange(20_000)


class Handled(BaseException):
    """What the signal handlers here raise."""


def is_clean(channel: Any, depth: int = 0) -> bool:
    """Say whether nobody holds or awaits anything."""
    stats = channel.stats()
    return (stats.held, stats.waiting_to_send, stats.waiting_to_receive, stats.depth) == ((), 0, 0, depth)


def in_thread(deed: Callable[[], object]) -> tuple[threading.Thread, list[Any]]:
    """Start a thread; gives it, and where its answer or exception will be."""
    answers: list[Any] = []

    def run() -> None:
        try:
            answers.append(deed())
        except Exception as error:  # noqa: BLE001  the test looks at it
            answers.append(error.with_traceback(None))

    thread = threading.Thread(target=run)
    thread.start()
    return thread, answers


# -- one process -------------------------------------------------------------------------------------------------------


@pytest.mark.core
def test_items_come_in_order_and_once(store: sa.Store) -> None:
    """Put, lent, got, received, in any mixture; qsize, empty and full agree; nothing is left."""
    channel = store.channel(4, "i8", slots=4)
    assert (channel.qsize(), channel.empty(), channel.full(), channel.slots) == (0, True, False, 4)
    assert (channel.mode, channel.full_policy) == ("queue", "block")
    for number in range(4):
        if number % 2:
            with (loan := channel.loan()) as frame:
                frame[:] = number
            assert loan.published
        else:
            assert channel.put(np.full(4, number)) is True
    assert (channel.qsize(), channel.empty(), channel.full()) == (4, False, True)
    with channel.receive() as frame:
        assert frame.tolist() == [0] * 4
        assert (channel.qsize(), channel.full()) == (3, True)
    assert [int(channel.get_nowait()[0]) for _ in range(3)] == [1, 2, 3]
    assert is_clean(channel)
    assert "4 slots, 0 items" in repr(channel)


def test_a_wait_ends_at_its_timeout(store: sa.Store) -> None:
    """`queue.Empty` and `queue.Full`, for copies and for slots, large and small; nobody stays counted."""
    for timeout, item in itertools.product((0, -1, -0.5, 0.01), (ITEM, LARGE)):
        channel = store.channel(len(item), "i8", slots=1)
        takes: list[Callable[[], object]] = [
            partial(channel.get, timeout=timeout), channel.receive(timeout).__enter__, channel.get_nowait,
        ]  # fmt: skip
        for take in takes:
            with pytest.raises(queue.Empty):
                take()
        channel.put(item)
        gives: list[Callable[[], object]] = [
            partial(channel.put, item, timeout=timeout), channel.loan(timeout).__enter__,
            partial(channel.put_nowait, item), partial(channel.put, item, block=False),
        ]  # fmt: skip
        for give in gives:
            with pytest.raises(queue.Full):
                give()
        assert is_clean(channel, 1)
        assert channel.join(timeout) is False


def test_a_loan_that_fails_is_not_published(store: sa.Store) -> None:
    """Whatever comes out of the block; its slot is free, and the next item is the next in order."""
    channel = store.channel(4, "i8", slots=1)
    for error in (ValueError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error), (loan := channel.loan()) as frame:  # noqa: PT012  the walrus is within
            frame[:] = 7
            raise error
        assert not loan.published
        assert is_clean(channel)
    channel.put(ITEM)
    with pytest.raises(OSError, match="in receive"), channel.receive():
        raise OSError("in receive")
    assert is_clean(channel)
    assert channel.stats().received == 1


def test_drop_new_gives_memory_that_nobody_sees(store: sa.Store) -> None:
    """Without a free slot `put` says False, a loan is writable and not published, and both are counted."""
    channel = store.channel(4, "i8", slots=1, full="drop-new")
    assert channel.put(ITEM)
    assert channel.put(ITEM + 1) is False
    with (loan := channel.loan()) as frame:
        frame[:] = 99
    assert not loan.published
    assert channel.put_nowait(ITEM) is False
    assert channel.get().tolist() == ITEM.tolist()
    assert (channel.stats().sent, channel.stats().dropped) == (1, 3)
    assert is_clean(channel)


def test_drop_oldest_lets_the_newest_win(store: sa.Store) -> None:
    """The oldest that nobody has in hand goes; what is in hand stays as it is; with all in hand a producer waits."""
    channel = store.channel(4, "i8", slots=2, full="drop-oldest")
    for number in range(5):
        assert channel.put(np.full(4, number))
    with channel.receive() as first:
        assert first[0] == 3
        channel.put(np.full(4, 5))
        assert first[0] == 3
        with channel.receive() as second:
            assert second[0] == 5
            with pytest.raises(queue.Full):
                channel.put(ITEM, timeout=0.01)
    assert (channel.stats().sent, channel.stats().dropped, channel.stats().received) == (6, 4, 2)
    assert is_clean(channel)


def test_a_block_that_is_left_is_not_entered_twice_at_once(store: sa.Store) -> None:
    """One loan or receipt is one slot: again only after its end."""
    channel = store.channel(4, "i8", slots=3)
    loan, item = channel.loan(), channel.receive()
    with loan, pytest.raises(sa.GuardError), loan:
        pass
    with item, pytest.raises(sa.GuardError), item:
        pass
    assert is_clean(channel)


# -- loops -------------------------------------------------------------------------------------------------------------


def test_a_loop_gives_each_slot_back_at_the_next_step(store: sa.Store) -> None:
    """With one slot a producer can fill it again while the loop goes on; the loop ends when the last producer has closed."""
    channel = store.channel(4, "i8", slots=1)
    other = store.Queue()
    other.put(channel)
    producer = other.get()

    def produce() -> None:
        with producer:
            for number in range(20):
                producer.put(np.full(4, number), timeout=30)

    thread, answers = in_thread(produce)
    assert [int(frame[0]) for frame in channel] == list(range(20))
    thread.join(30)
    assert answers == [None]
    assert is_clean(channel)


def test_a_loop_that_is_left_gives_its_slot_back(store: sa.Store) -> None:
    """By break, by an exception, by dropping its iterator."""
    channel = store.channel(4, "i8", slots=1)
    channel.put(ITEM)
    for _ in channel:
        break
    assert is_clean(channel)
    channel.put(ITEM)
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        for _ in channel:
            raise ZeroDivisionError
    assert is_clean(channel)
    channel.put(ITEM)
    steps = iter(channel)
    next(steps)
    assert channel.stats().held
    del steps
    assert is_clean(channel)


@pytest.mark.parametrize("length", [4, 20_000])
def test_a_loop_over_items_sees_what_goes_beside_the_arrays(store: sa.Store, length: int) -> None:
    """Number, time and metadata are there with the frame; each slot goes back at the next step, and then the frame is nobody's here."""
    channel = store.channel(length, "i8", slots=1)
    with pytest.raises(sa.GuardError, match="not in hand"):
        _ = channel.receive().frame
    other = store.Queue()
    other.put(channel)
    producer = other.get()

    def produce() -> None:
        with producer:
            for number in range(20):
                producer.put(np.full(length, number), timeout=30, meta=None if number % 3 else {"number": number})

    thread, answers = in_thread(produce)
    seen: list[Any] = []
    for item in channel.items():
        assert (item.frame == item.sequence).all()
        assert not item.frame.flags.writeable
        assert item.meta == (None if item.sequence % 3 else {"number": item.sequence})
        assert item.time > 0
        assert item.missed == 0
        for earlier in seen:
            with pytest.raises(sa.GuardError, match="not in hand"):
                _ = earlier.frame
        seen.append(item)
    thread.join(30)
    assert answers == [None]
    assert [item.sequence for item in seen] == list(range(20))
    assert is_clean(channel)


def test_a_loop_over_items_that_is_left_gives_its_slot_back(store: sa.Store) -> None:
    """By break, by an exception, by dropping its iterator."""
    channel = store.channel(4, "i8", slots=1)
    channel.put(ITEM)
    for item in channel.items():
        assert (item.frame == ITEM).all()
        break
    assert is_clean(channel)
    channel.put(ITEM)
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        for _ in channel.items():
            raise ZeroDivisionError
    assert is_clean(channel)
    channel.put(ITEM)
    steps = channel.items()
    next(steps)
    assert channel.stats().held
    del steps
    assert is_clean(channel)


# -- the end -----------------------------------------------------------------------------------------------------------


@pytest.mark.core
def test_the_last_producer_to_close_ends_the_stream(store: sa.Store) -> None:
    """What was put can still be taken, then ChannelClosedError, an EOFError, comes out of every way to take."""
    channel = store.channel(4, "i8")
    passing = store.Queue()
    passing.put(channel)
    one, two = channel, passing.get()
    passing.put(channel)
    reader = passing.get()
    one.put(ITEM)
    two.put(ITEM)
    one.close()
    one.close()
    reader.get()
    reader.get()
    with pytest.raises(queue.Empty):
        reader.get(timeout=0.01)
    two.put(ITEM)
    two.close()
    reader.get()
    for take in (reader.get, reader.get_nowait, lambda: reader.receive(0).__enter__(), lambda: reader.get(timeout=30)):
        with pytest.raises(sa.ChannelClosedError, match="at its end") as caught:
            take()
        assert isinstance(caught.value, EOFError)
        assert isinstance(caught.value.remedy, str)
    assert list(reader) == []
    passing.put(channel)
    late = passing.get()
    late.put(ITEM)  # another may come: the stream goes on
    assert reader.get().tolist() == ITEM.tolist()


def test_a_closed_object_refuses_and_others_go_on(store: sa.Store) -> None:
    """`with channel:` closes it; put, loan, get and receive say so, looks do not."""
    channel = store.channel(4, "i8", name="camera")
    with channel as same:
        assert same is channel
        channel.put(ITEM)
    for use in (
        lambda: channel.put(ITEM),
        lambda: channel.loan().__enter__(),
        channel.get,
        channel.get_nowait,
        lambda: channel.receive().__enter__(),
        lambda: channel.put_nowait(ITEM),
    ):
        with pytest.raises(sa.ChannelClosedError, match="is closed") as caught:
            use()
        assert caught.value.name == "camera"
    assert list(channel) == []
    assert (channel.qsize(), channel.stats().depth, channel.stats().producers) == (1, 1, ())
    assert store.open_channel("camera").get().tolist() == ITEM.tolist()


def test_end_ends_it_for_everyone(store: sa.Store) -> None:
    """Nothing more is put, by anyone, whatever they have in mind; what is there is taken; then all is over."""
    channel = store.channel(4, "i8", stay=True)
    channel.put(ITEM)
    channel.end()
    channel.end()
    assert channel.stats().ended
    for use in (
        lambda: channel.put(ITEM),
        lambda: channel.loan().__enter__(),
        lambda: channel.put_nowait(ITEM),
        lambda: channel.put(ITEM.tolist()),
    ):
        with pytest.raises(sa.ChannelClosedError, match="was ended"):
            use()
    assert len(list(channel)) == 1
    with pytest.raises(sa.ChannelClosedError, match="was ended"):
        channel.get()
    assert is_clean(channel)


def test_a_consumer_may_come_before_any_producer(store: sa.Store) -> None:
    """It waits, and gets the first item there is."""
    channel = store.channel(4, "i8")
    thread, answers = in_thread(channel.get)
    wait_until(lambda: channel.stats().waiting_to_receive == 1, 30)
    channel.put(ITEM)
    thread.join(30)
    assert answers[0].tolist() == ITEM.tolist()
    assert is_clean(channel)


@pytest.mark.parametrize("how", ["close", "end", "exit"])
def test_who_waits_for_an_item_is_told_of_the_end(store: sa.Store, how: str) -> None:
    """The last producer closes, ends the stream, or its process ends: ChannelClosedError for all who wait."""
    channel = store.channel(4, "i8")
    gate = store.Event()

    def produce() -> None:
        channel.put(ITEM)
        gate.wait(30)
        if how != "exit":
            getattr(channel, how)()

    pid = in_child(produce)
    assert channel.get(timeout=30).tolist() == ITEM.tolist()
    waits = [in_thread(channel.get), in_thread(lambda: channel.receive().__enter__())]
    wait_until(lambda: channel.stats().waiting_to_receive == 2, 30)
    gate.set()
    for thread, answers in waits:
        thread.join(30)
        assert [type(answer) for answer in answers] == [sa.ChannelClosedError]
    assert reap(pid) == 0
    assert is_clean(channel)


def test_who_waits_for_a_slot_is_told_when_the_last_consumer_goes(store: sa.Store) -> None:
    """ChannelClosedError: nobody will make room; with room to be had a producer goes on."""
    channel = store.channel(4, "i8", slots=1)
    channel.put(ITEM)
    consumer = store.Queue()
    consumer.put(channel)
    other = consumer.get()
    other.get()
    channel.put(ITEM)
    thread, answers = in_thread(lambda: channel.put(ITEM))
    wait_until(lambda: channel.stats().waiting_to_send == 1, 30)
    other.close()
    thread.join(30)
    assert [type(answer) for answer in answers] == [sa.ChannelClosedError]
    assert "no consumer" in str(answers[0])
    assert is_clean(channel, 1)


def test_with_stay_nobody_takes_an_absence_for_the_end(store: sa.Store) -> None:
    """Consumers wait without producers, producers without consumers, until someone comes; or it is ended."""
    channel = store.channel(4, "i8", slots=1, stay=True)
    passing = store.Queue()
    passing.put(channel)
    first = passing.get()
    first.put(ITEM)
    first.get()
    first.close()
    thread, answers = in_thread(channel.get)
    wait_until(lambda: channel.stats().waiting_to_receive == 1, 30)
    channel.put(ITEM + 1)
    thread.join(30)
    assert answers[0].tolist() == (ITEM + 1).tolist()
    with pytest.raises(queue.Empty):
        channel.get(timeout=0.01)
    channel.close()
    passing.put(channel)
    again = passing.get()
    again.put(ITEM)
    thread, answers = in_thread(lambda: again.put(ITEM))
    wait_until(lambda: again.stats().waiting_to_send == 1, 30)
    assert (again.stats().consumers, answers) == ((), [])
    again.end()
    thread.join(30)
    assert [type(answer) for answer in answers] == [sa.ChannelClosedError]


@pytest.mark.parametrize("way", ["put", "put, the long way", "loan"])
def test_who_publishes_writes_nothing_that_a_sleeper_has_said(store: sa.Store, way: str) -> None:
    """It wakes one who sleeps once for each sleep, and leaves the word by which sleepers ask for that as it is.

    (It used to clear a flag: one who had set it anew, and was not quite asleep, was forgotten until its slice of time was over.)
    """
    channel = store.channel(2, np.int64, slots=4)
    channel.put([0, 0])
    channel.get()
    words, flow = channel._words, channel._flow
    ticket = [0]
    flow.count_in(form.GETTERS, ticket)
    woken: list[tuple[Any, ...]] = []
    try:
        for turn in range(3):
            said = words[form.TAIL] + 1  # as one says who goes to sleep now
            words[form.ASLEEP] = said
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(futexes, "_wake", lambda *arguments: woken.append(arguments))
                for _ in range(2):
                    _publish(channel, way)
            assert len(woken) == turn + 1
            assert words[form.ASLEEP] == said
            while not channel.empty():
                with channel.receive():
                    pass
    finally:
        flow.count_out(form.GETTERS, ticket)
    assert channel.stats().waiting_to_receive == 0


def _publish(channel: Any, way: str) -> None:
    if way == "loan":
        with channel.loan() as item:
            item[:] = 1
    elif way == "put":
        channel.put(np.ones(2, np.int64))
    else:
        channel.put([1, 1])


def test_an_object_that_is_dropped_ends_nothing(store: sa.Store) -> None:
    """A process keeps its part as producer and consumer, as a worker has another object in each task; closing the next ends it."""
    channel = store.channel(4, "i8")
    passing = store.Queue()
    for number in range(3):
        passing.put(channel)
        worker = passing.get()
        worker.put(ITEM + number)
        worker.get()
        del worker
        stats = channel.stats()
        assert (stats.producers, stats.consumers) == ((os.getpid(),), (os.getpid(),))
        with pytest.raises(queue.Empty):
            channel.get(timeout=0)
    passing.put(channel)
    last = passing.get()
    last.put(ITEM)
    last.close()
    assert channel.stats().producers == ()
    channel.get()
    with pytest.raises(sa.ChannelClosedError):
        channel.get()


def test_a_process_that_ends_normally_ends_its_part(store: sa.Store) -> None:
    """Its items are there, and then the stream is at its end, without anybody's having closed it."""
    channel = store.channel(4, "i8", slots=8)

    def produce() -> None:
        for number in range(3):
            channel.put(np.full(4, number))

    assert reap(in_child(produce)) == 0
    assert [int(frame[0]) for frame in channel] == [0, 1, 2]


@pytest.mark.parametrize("what", ["get", "receive", "put", "loan", "join", "loop"])
def test_who_waits_is_told_when_the_store_closes(guard_kind: str, what: str) -> None:
    """StoreClosedError, soon, out of every wait."""
    store = sa.Store()
    channel = store.channel(4, "i8", slots=1)
    waits: dict[str, Callable[[], object]] = {
        "get": channel.get,
        "receive": lambda: channel.receive().__enter__(),
        "loop": lambda: next(iter(channel)),
        "put": lambda: channel.put(ITEM),
        "loan": lambda: channel.loan().__enter__(),
        "join": channel.join,
    }
    if what in ("put", "loan", "join"):
        channel.put(ITEM)
    thread, answers = in_thread(waits[what])
    wait_until(lambda: channel.stats().waiting_to_send + channel.stats().waiting_to_receive or what == "join", 30)
    store.close()
    thread.join(30)
    assert [type(answer) for answer in answers] == [sa.StoreClosedError]
    assert (channel.stats().waiting_to_send, channel.stats().waiting_to_receive) == (0, 0)


# -- tasks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [4, 20_000])
def test_join_waits_until_all_is_dealt_with(store: sa.Store, length: int) -> None:
    """Copies by `task_done`, receipts by the end of their block, what was dropped by nobody."""
    channel = store.channel(length, "i8", full="drop-oldest", slots=2)
    assert channel.join()
    for number in range(3):
        channel.put(np.full(length, number))
    assert not channel.join(0)
    channel.get()
    with channel.receive():
        assert not channel.join(0.01)
    assert not channel.join(0)
    thread, answers = in_thread(channel.join)
    channel.task_done()
    thread.join(30)
    assert answers == [True]
    for _ in range(2):
        with pytest.raises(ValueError, match="too many times"):
            channel.task_done()
    assert is_clean(channel)


@pytest.mark.parametrize("quick", [True, False])
def test_tasks_of_a_process_that_ended_are_told_of_once(store: sa.Store, quick: bool) -> None:  # noqa: FBT001
    """LostTaskError with their number; then they count as dealt with. What others say of them before is no loss."""
    channel = store.channel(4 if quick else None, "i8", max_shape=None if quick else 4)
    for number in range(4):
        channel.put(ITEM + number)

    def take() -> None:
        channel.put(ITEM)
        for _ in range(3):
            channel.get()
        channel.task_done()

    assert reap(in_child(take)) == 0
    channel.task_done()
    for _ in range(2):
        channel.get()
        channel.task_done()
    with pytest.raises(sa.LostTaskError, match="1 of the items") as caught:
        channel.join()
    assert caught.value.count == 1
    assert channel.join(30)


# -- threads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("length", [4, 20_000])
def test_threads_pass_every_item_once(store: sa.Store, shared: bool, length: int) -> None:  # noqa: FBT001
    """Four put, four take, by one object or by one for each, at once from the first moment on; each producer's in order."""
    channel = store.channel(length, "i8", slots=3)
    passing = store.Queue()
    count = 100 if length < 100 else 30

    def own() -> Any:
        if shared:
            return channel
        passing.put(channel)
        return passing.get()

    objects = [own() for _ in range(8)]
    together = threading.Barrier(8)
    taken: list[list[int]] = [[] for _ in range(4)]

    def produce(number: int) -> None:
        together.wait()
        for step in range(count):
            objects[number].put(np.full(length, number * 1000 + step), timeout=60)

    def consume(number: int) -> None:
        together.wait()
        for step in range(count):
            if step % 2:
                with objects[4 + number].receive(60) as frame:
                    assert (frame == frame[0]).all()
                    taken[number].append(int(frame[0]))
            else:
                item = objects[4 + number].get(timeout=60)
                assert (item == item[0]).all()
                taken[number].append(int(item[0]))

    threads = [in_thread(partial(f, n)) for n in range(4) for f in (produce, consume)]
    for thread, _ in threads:
        thread.join(100)
    assert [answers for _, answers in threads] == [[None]] * 8
    assert sorted(number for mine in taken for number in mine) == [n * 1000 + s for n in range(4) for s in range(count)]
    for mine in taken:
        for producer in range(4):
            own_of = [number for number in mine if number // 1000 == producer]
            assert own_of == sorted(own_of)
    assert is_clean(channel)


def test_the_first_to_receive_may_be_two_threads_at_once(store: sa.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one thread enters itself among the consumers, another takes already."""
    channel = store.channel(4, "i8")
    channel.put(ITEM)
    role = channel._roles[1]
    join, found = type(role).join, []

    def slow(self: Any, *arguments: Any) -> None:
        join(self, *arguments)
        if self is role:
            thread, answers = in_thread(channel.get)
            thread.join(30)
            found.extend(answers)

    monkeypatch.setattr(type(role), "join", slow)
    with pytest.raises(queue.Empty):
        channel.get(timeout=0)
    assert [item.tolist() for item in found] == [ITEM.tolist()]


# -- forks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [4, 20_000])
def test_a_child_forked_inside_a_loan_neither_publishes_nor_drops_it(store: sa.Store, length: int) -> None:
    """The slot is the parent's; the child can have slots of its own."""
    channel = store.channel(length, "i8", slots=2)

    def leave(loan: Any, error: bool) -> None:  # noqa: FBT001
        loan.__exit__(OSError if error else None, OSError() if error else None, None)
        assert channel.stats().held == ((held[0], "loan", os.getppid()),)
        with channel.loan(5) as mine:
            mine[:] = 7

    for error in (False, True):
        with (loan := channel.loan()) as frame:
            frame[:] = 1
            held = channel.stats().held[0]
            assert reap(in_child(partial(leave, loan, error))) == 0
            assert channel.stats().held == (held,)
            frame[:] = 2
        assert [int(channel.get(timeout=5)[0]) for _ in range(2)] == [7, 2]
    assert is_clean(channel)


@pytest.mark.parametrize("length", [4, 20_000])
def test_a_child_forked_inside_a_receipt_does_not_give_it_back(store: sa.Store, length: int) -> None:
    """Nor in a loop; the child goes on taking for itself."""
    channel = store.channel(length, "i8", slots=3)
    for number in range(3):
        channel.put(np.full(length, number))

    def leave(item: Any, steps: Iterator[Any]) -> None:
        assert int(next(steps)[0]) == 2
        item.__exit__(None, None, None)
        held = channel.stats().held
        assert [(kind, pid) for _, kind, pid in held] == [("receive", os.getppid())] * 2 + [("receive", os.getpid())]
        steps.close()  # type: ignore[attr-defined]
        assert len(channel.stats().held) == 2

    with (item := channel.receive()) as frame:
        steps = iter(channel)
        assert int(next(steps)[0]) == 1
        assert reap(in_child(partial(leave, item, steps))) == 0
        assert len(channel.stats().held) == 2
        assert frame[0] == 0
    del steps
    assert is_clean(channel)
    assert channel.stats().received == 3


def test_a_forked_child_has_parts_of_its_own(store: sa.Store) -> None:
    """It is neither producer nor consumer before it puts or takes; its tasks are its own; its end takes nothing from the parent."""
    channel = store.channel(4, "i8")
    for _ in range(3):
        channel.put(ITEM)
    channel.get()
    me = os.getpid()

    def use() -> None:
        stats = channel.stats()
        assert (stats.producers, stats.consumers) == ((me,), (me,))
        channel.put(ITEM)
        assert set(channel.stats().producers) == {me, os.getpid()}
        assert channel.stats().consumers == (me,)
        channel.get()
        assert set(channel.stats().consumers) == {me, os.getpid()}
        channel.close()
        assert (channel.stats().producers, channel.stats().consumers) == ((me,), (me,))

    assert reap(in_child(use)) == 0
    # Of four items one is in the parent's hands, one was in the child's, and two are there.
    channel.get()
    channel.get()
    for _ in range(3):
        channel.task_done()
    with pytest.raises(sa.LostTaskError) as caught:
        channel.join(5)
    assert caught.value.count == 1
    channel.put(ITEM)
    assert channel.stats().producers == (me,)


# -- signals -----------------------------------------------------------------------------------------------------------


def _raise(*_: object) -> None:
    raise Handled


@contextlib.contextmanager
def handled_in_wait(channel: Any, handler: Callable[..., object]) -> Iterator[None]:
    """Have a signal handled in this thread as soon as it is counted among those who wait for something of a channel."""
    words, me = channel._words, threading.main_thread().ident or 0
    lines = (form.PUTTERS, form.GETTERS, form.JOINERS)

    def alarm() -> None:
        wait_until(lambda: any(words[line] for line in lines), 40)
        signal.pthread_kill(me, signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, handler)
    thread, _ = in_thread(alarm)
    try:
        yield
    finally:
        thread.join(60)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("length", [4, 20_000])
def test_a_handler_that_raises_ends_a_wait_and_leaves_nothing(store: sa.Store, length: int) -> None:
    """As Ctrl-C: it comes at once, nobody stays counted, nothing is held or lost, and the same process goes on."""
    for what in ("get", "receive", "put", "loan", "join", "spin"):
        _interrupt(store, what, length)


def _interrupt(store: sa.Store, what: str, length: int) -> None:
    channel = store.channel(length, "i8", slots=1, spin=100 if what == "spin" else 0)
    item = np.arange(length)
    waits: dict[str, Callable[[], object]] = {
        "get": channel.get,
        "spin": channel.get,
        "receive": lambda: channel.receive().__enter__(),
        "put": lambda: channel.put(item),
        "loan": lambda: channel.loan().__enter__(),
        "join": channel.join,
    }
    depth = int(what in ("put", "loan", "join"))
    if depth:
        channel.put(item)
    for _ in range(3):
        with handled_in_wait(channel, _raise), pytest.raises(Handled):
            waits[what]()
        assert is_clean(channel, depth)
        assert not channel._words[form.JOINERS]
    if not depth:
        channel.put(item)
    assert channel.get(timeout=0).tolist() == item.tolist()
    channel.task_done()
    assert channel.join(0)
    stats = channel.stats()
    assert (stats.sent, stats.received, stats.lost, stats.redelivered) == (1, 1, 0, 0)


def test_a_handler_may_use_the_channel_in_which_its_process_waits(store: sa.Store) -> None:
    """What it puts wakes the wait that it interrupted."""
    channel = store.channel(4, "i8")
    with handled_in_wait(channel, lambda *_: channel.put(ITEM)):
        assert channel.get(timeout=30).tolist() == ITEM.tolist()
    assert is_clean(channel)


# -- waiting -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spin", [0.0, 0.05])
def test_many_who_wait_are_all_served(store: sa.Store, spin: float) -> None:
    """Eight threads wait for items, then for slots: each wakes for its own, and none stays counted."""
    channel = store.channel(4, "i8", slots=2, spin=spin)
    takers = [in_thread(lambda: channel.get(timeout=60)) for _ in range(8)]
    wait_until(lambda: channel.stats().waiting_to_receive == 8, 30)
    for number in range(8):
        channel.put(ITEM + number, timeout=60)
    for thread, _ in takers:
        thread.join(60)
    assert sorted(int(answers[0][0]) for _, answers in takers) == list(range(8))
    for _ in range(2):
        channel.put(ITEM)
    givers = [in_thread(lambda: channel.put(ITEM, timeout=60)) for _ in range(8)]
    wait_until(lambda: channel.stats().waiting_to_send == 8, 30)
    for _ in range(10):
        channel.get(timeout=60)
    for thread, answers in givers:
        thread.join(60)
        assert answers == [True]
    assert is_clean(channel)


def test_waiting_is_sleeping(store: sa.Store, any_guard: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In slices, not in circles: who waits for a third of a second looks some seven times."""
    channel = store.channel(4, "i8")
    looks: list[int] = []
    wait = futexes.wait

    def look(*arguments: Any) -> None:
        looks.append(1)
        wait(*arguments)

    monkeypatch.setattr(futexes, "wait", look)
    with pytest.raises(queue.Empty):
        channel.get(timeout=0.35)
    channel.put(ITEM)
    assert 1 <= len(looks) <= 12


def test_statistics_tell_who_holds_what_and_how_long_items_took(store: sa.Store) -> None:
    """Slot, kind and pid of each slot in hand; percentiles of the latency, in order; None before the first."""
    channel = store.channel(4, "i8", slots=3)
    assert channel.stats().latency is None
    with channel.loan(), channel.loan():
        assert sorted(channel.stats().held) == [(0, "loan", os.getpid()), (1, "loan", os.getpid())]
    with channel.receive(), channel.receive():
        assert sorted(channel.stats().held) == [(0, "receive", os.getpid()), (1, "receive", os.getpid())]
    for _ in range(40):
        channel.put(ITEM)
        channel.get()
    latency = channel.stats().latency
    assert latency is not None
    assert list(latency) == ["p50", "p90", "p99", "max"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"] < 100
    gc.collect()
    assert is_clean(channel)


def test_items_in_hand_of_this_process_do_not_keep_it_waiting_at_the_end(store: sa.Store) -> None:
    """With `redeliver` what others have in hand may come back; what this process has itself does not."""
    channel = store.channel(4, "i8", redeliver=True)
    passing = store.Queue()
    passing.put(channel)
    producer = passing.get()
    producer.put(ITEM)
    producer.close()
    with channel.receive(), pytest.raises(sa.ChannelClosedError):
        channel.get(timeout=5)
    assert channel.stats().received == 1
