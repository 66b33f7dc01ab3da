"""Broadcasts: every subscription sees what is published while it lives, and keeps nobody waiting when it is gone."""

from __future__ import annotations

import gc
import os
import pickle
import queue
import threading
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shmarray as sa
from shmarray._format import channel as form
from shmarray.channels.subscriptions import Seat
from tests.channels import actors
from tests.channels.test_streams import ITEM, in_thread, is_clean
from tests.helpers.processes import reap, wait_until
from tests.vocabulary.deaths import in_child

if TYPE_CHECKING:
    from multiprocessing.context import SpawnContext


def broadcast(store: sa.Store, **options: Any) -> Any:
    """Make one of small items."""
    return store.channel(4, "i8", mode="broadcast", **options)


def publish(channel: Any, *numbers: int) -> None:
    """Publish items that are these numbers."""
    for number in numbers:
        assert channel.put(np.full(4, number), timeout=30)


def rest(source: Any) -> list[int]:
    """Take what there is."""
    found = []
    while True:
        try:
            found.append(int(source.get(block=False)[0]))
        except (queue.Empty, sa.ChannelClosedError):
            return found


@pytest.mark.core
def test_every_subscriber_sees_every_item_from_then_on(store: sa.Store) -> None:
    """Early ones all, late ones what comes later; each in order, without a copy; what nobody is subscribed to is gone at once."""
    channel = broadcast(store, slots=3)
    publish(channel, *range(10))  # for nobody
    assert channel.stats().depth == 0
    with channel.subscribe() as early:
        publish(channel, 10, 11)
        with channel.subscribe() as late:
            publish(channel, 12)
            assert (early.qsize(), late.qsize(), channel.full()) == (3, 1, True)
            with early.receive() as one, pytest.raises(queue.Full):
                channel.put(ITEM, timeout=0.01)
            assert one[0] == 10
            with (item := late.receive()) as other:
                assert (other[0], item.sequence, item.missed) == (12, 12, 0)
            with (item := early.receive()) as one:
                assert (one[0], item.sequence) == (11, 11)
            with early.receive() as one:
                assert one.__array_interface__["data"][0] == other.__array_interface__["data"][0]
        assert (early.empty(), channel.stats().received) == (True, 4)
    assert channel.stats().subscribers == ()
    assert is_clean(channel)


def test_an_object_subscribes_itself_when_it_first_takes(store: sa.Store) -> None:
    """And has one subscription, however often and by how many threads at once it takes; closing ends it."""
    channel = broadcast(store)
    assert (channel.qsize(), channel.empty()) == (0, True)
    with pytest.raises(queue.Empty):
        channel.get(timeout=0)
    publish(channel, 1, 2)
    assert channel.qsize() == 2
    assert rest(channel) == [1, 2]
    assert len(channel.stats().subscribers) == 1
    channel.close()
    assert channel.stats().subscribers == ()
    with pytest.raises(sa.ChannelClosedError):
        channel.get()
    other = broadcast(store, slots=8)
    together = threading.Barrier(6)

    def first() -> Any:
        together.wait()
        return other.get(timeout=30)

    threads = [in_thread(first) for _ in range(6)]
    wait_until(lambda: other.stats().waiting_to_receive == 6, 30)
    assert len(other.stats().subscribers) == 1
    publish(other, *range(6))
    for thread, _ in threads:
        thread.join(30)
    assert sorted(int(answers[0][0]) for _, answers in threads) == list(range(6))


def test_threads_that_subscribe_an_object_at_once_share_one_subscription(
    store: sa.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one is about to have a place, another has taken one: that stays, and the first place is given up."""
    channel = broadcast(store)
    make = Seat.make
    others: list[Seat] = []

    def slow(*arguments: Any, **options: Any) -> Seat:
        seat = make(*arguments, **options)
        if not others:
            others.append(seat)
            thread, answers = in_thread(partial(channel.get, timeout=0))
            thread.join(30)
            assert [type(answer) for answer in answers] == [queue.Empty]
        return seat

    monkeypatch.setattr(Seat, "make", slow)
    with pytest.raises(queue.Empty):
        channel.get(timeout=0)
    assert [each.pid for each in channel.stats().subscribers] == [os.getpid()]
    publish(channel, 1)
    assert rest(channel) == [1]
    others.clear()


def test_one_subscription_has_one_item_in_hand(store: sa.Store) -> None:
    """A second receive or get inside the block is a GuardError, and takes nothing; also in another thread."""
    channel = broadcast(store)
    with channel.subscribe() as subscription:
        publish(channel, 1, 2)
        with subscription.receive() as frame:
            for take in (subscription.get, subscription.get_nowait, lambda: subscription.receive().__enter__()):
                with pytest.raises(sa.GuardError, match="in hand"):
                    take()
                thread, answers = in_thread(take)
                thread.join(30)
                assert [type(answer) for answer in answers] == [sa.GuardError]
            assert frame[0] == 1
        assert rest(subscription) == [2]


def test_only_a_broadcast_has_subscribers(store: sa.Store) -> None:
    """A queue says so."""
    with pytest.raises(ValueError, match="broadcast"):
        store.channel(3).subscribe()


# -- policies ----------------------------------------------------------------------------------------------------------


def test_a_slow_subscriber_holds_the_producer_up(store: sa.Store) -> None:
    """With "block" until it has taken, or is closed; the others have theirs meanwhile."""
    channel = broadcast(store, slots=2)
    quick, slow = channel.subscribe(), channel.subscribe()
    publish(channel, 0, 1)
    assert rest(quick) == [0, 1]
    for leave in (slow.get, slow.close):
        thread, answers = in_thread(lambda: channel.put(ITEM))
        wait_until(lambda: channel.stats().waiting_to_send == 1, 30)
        assert answers == []
        leave()
        thread.join(30)
        assert answers == [True]
    quick.close()
    assert is_clean(channel)


def test_drop_new_drops_for_all(store: sa.Store) -> None:
    """As long as one has not taken what fills the slots."""
    channel = broadcast(store, slots=1, full="drop-new")
    with channel.subscribe() as one, channel.subscribe() as two:
        publish(channel, 1)
        assert rest(one) == [1]
        assert channel.put(ITEM) is False
        assert rest(two) == [1]
        publish(channel, 2)
        assert (rest(one), rest(two), one.missed, channel.stats().dropped) == ([2], [2], 0, 1)


@pytest.mark.parametrize("length", [4, 20_000])
def test_who_is_late_learns_what_it_missed(store: sa.Store, length: int) -> None:
    """Exactly, with the item after the gap, however it takes; who keeps up misses nothing; what is in hand is never dropped."""
    channel = store.channel(length, "i8", mode="broadcast", slots=2, full="drop-oldest")
    with channel.subscribe() as quick, channel.subscribe() as slow:

        def put(*numbers: int) -> None:
            for number in numbers:
                channel.put(np.full(length, number), timeout=30)
                assert int(quick.get()[0]) == number

        put(0, 1, 2, 3, 4)
        with (item := slow.receive()) as frame:
            assert (item.sequence, item.missed, frame[0]) == (3, 3, 3)
            put(5, 6, 7)  # which drops others, while that is read
            assert (frame == 3).all()
            assert item.missed == 3
        with (item := slow.receive()):
            assert (item.sequence, item.missed) == (7, 3)
        put(8, 9, 10, 11)
        assert slow.get()[0] == 10  # the misses before it are not told with the next
        with (item := slow.receive()):
            assert (item.sequence, item.missed) == (11, 0)
        assert (slow.missed, quick.missed) == (8, 0)
        stats = channel.stats()
        assert (stats.sent, stats.dropped, stats.missed, stats.received) == (12, 8, 8, 16)
        assert sorted((each.received, each.missed) for each in stats.subscribers) == [(4, 8), (12, 0)]


def test_a_loop_over_the_items_of_a_subscription_tells_what_it_missed(store: sa.Store) -> None:
    """With the item after the gap, as `receive` does."""
    channel = broadcast(store, slots=2, full="drop-oldest")
    with channel.subscribe() as subscription:
        publish(channel, 0, 1, 2, 3, 4)
        seen = []
        for item in subscription.items():
            seen.append((item.sequence, item.missed, int(item.frame[0])))
            if len(seen) == 1:
                publish(channel, 5, 6)
            if item.sequence == 6:
                channel.end()
        assert seen == [(3, 3, 3), (6, 2, 6)]
    assert channel.stats().held == ()


def test_what_one_reads_is_not_dropped_for_others_alone(store: sa.Store) -> None:
    """Where another holds the oldest, the next goes, and who had seen neither misses both: order is that of publishing."""
    channel = broadcast(store, slots=2, full="drop-oldest")
    with channel.subscribe() as reader, channel.subscribe() as late:
        publish(channel, 0, 1)
        with reader.receive() as frame:
            publish(channel, 2)
            assert frame[0] == 0
        with (item := late.receive()) as frame:
            assert (frame[0], item.missed) == (2, 2)
        with (item := reader.receive()) as frame:
            assert (frame[0], item.missed) == (2, 1)
    assert is_clean(channel)


def test_an_item_given_up_after_later_ones_were_dropped_is_missed(
    store: sa.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A get is interrupted between taking and giving; meanwhile the ring went on: nothing comes twice, or out of order."""
    channel = broadcast(store, slots=2, full="drop-oldest")
    with channel.subscribe() as subscription:
        publish(channel, 0, 1)
        side, flow = subscription.side, channel._flow
        got: list[int] = []
        flow.take(side, 0.0, got)
        publish(channel, 2)
        flow.with_get(flow._untake, side, got)
        with (item := subscription.receive()) as frame:
            assert (frame[0], item.missed, subscription.missed) == (2, 2, 2)
        publish(channel, 3, 4)
        flow.take(side, 0.0, got)
        flow.with_get(flow._untake, side, got)
        with (item := subscription.receive()) as frame:
            assert (frame[0], item.missed) == (3, 0)
        assert rest(subscription) == [4]
    assert is_clean(channel)


# -- the end -----------------------------------------------------------------------------------------------------------


def test_subscribers_drain_and_then_learn_of_the_end(store: sa.Store) -> None:
    """Each what it has before it; loops end; a closed subscription says so, and others do not mind."""
    channel = broadcast(store)
    one, two, three = (channel.subscribe() for _ in range(3))
    publish(channel, 1, 2)
    passing = pickle.loads(pickle.dumps(channel))
    publish(passing, 3)
    passing.close()
    channel.close()
    assert [int(frame[0]) for frame in one] == [1, 2, 3]
    assert rest(two) == [1, 2, 3]
    with pytest.raises(sa.ChannelClosedError, match="at its end"):
        two.get()
    three.close()
    three.close()
    for take in (three.get, lambda: three.receive().__enter__()):
        with pytest.raises(sa.ChannelClosedError, match="has ended"):
            take()
    one.close()
    two.close()
    assert is_clean(passing)


def test_who_waits_is_told_when_its_subscription_is_closed(store: sa.Store) -> None:
    """By another thread."""
    channel = broadcast(store)
    subscription = channel.subscribe()
    thread, answers = in_thread(lambda: subscription.get(timeout=30))
    wait_until(lambda: channel.stats().waiting_to_receive == 1, 30)
    subscription.close()
    thread.join(30)
    assert [type(answer) for answer in answers] == [sa.ChannelClosedError]
    assert is_clean(channel)


def test_a_subscription_that_is_dropped_holds_nobody_up(store: sa.Store) -> None:
    """Explicit, or an object's own: at once, with the collector off; who waits for an item stays counted as waiting."""
    channel = broadcast(store, slots=1)
    gc.collect()
    gc.disable()
    try:
        subscription, other = channel.subscribe(), pickle.loads(pickle.dumps(channel))
        with pytest.raises(queue.Empty):
            other.get(timeout=0)
        for drop in ("explicit", "own"):
            publish(channel, 1)
            if drop == "explicit":
                assert rest(other) == [1]
                del subscription
            else:
                del other
            with channel.subscribe() as living:
                thread, answers = in_thread(partial(living.get, timeout=30))
                wait_until(lambda: channel.stats().waiting_to_receive == 1, 30)
                era = channel._words[form.WAIT_ERA]  # that in which who waits is counted
                assert channel.put(np.full(4, 2), block=False)
                assert channel._words[form.WAIT_ERA] == era
                thread.join(30)
                assert answers[0][0] == 2
                if drop == "explicit":
                    assert rest(other) == [2]
        assert channel.stats().subscribers == ()
    finally:
        gc.enable()


def test_an_object_that_is_dropped_after_a_fork_holds_nobody_up(store: sa.Store) -> None:
    """Its own subscription is nobody's any more: a child has another."""
    channel = broadcast(store, slots=1)
    own = pickle.loads(pickle.dumps(channel))
    with pytest.raises(queue.Empty):
        own.get(timeout=0)

    assert reap(in_child(lambda: rest(channel))) == 0
    publish(channel, 1)
    del own
    publish(channel, 2)
    assert channel.stats().subscribers == ()


def test_what_only_a_dropped_subscription_had_not_seen_is_no_drop(store: sa.Store) -> None:
    """With "drop-oldest" it makes room, and nobody is said to have missed anything."""
    channel = broadcast(store, slots=2, full="drop-oldest")
    living, dropped = channel.subscribe(), channel.subscribe()
    del dropped
    for number in range(6):
        publish(channel, number)
        assert rest(living) == [number]
    stats = channel.stats()
    assert (stats.dropped, stats.missed, stats.sent) == (0, 0, 6)
    assert len(stats.subscribers) == 1
    living.close()


def test_what_is_received_by_a_passing_subscription_is_kept(store: sa.Store) -> None:
    """The receipt keeps the subscription by which it was taken, as long as the block lasts."""
    channel = broadcast(store, slots=1)
    item = channel.subscribe().receive(30)
    publish(channel, 7)
    with item as frame:
        with pytest.raises(queue.Full):
            channel.put(ITEM, timeout=0.01)
        assert (frame == 7).all()
    del item
    assert channel.put(ITEM, timeout=30)


def test_there_are_64_subscriptions_and_no_more(store: sa.Store) -> None:
    """The 65th is refused with the facts; closed ones, dropped ones and those of ended processes leave their places."""
    channel = broadcast(store)
    many = [channel.subscribe() for _ in range(64)]
    with pytest.raises(sa.StoreFullError, match="64 subscriptions") as caught:
        channel.subscribe()
    assert caught.value.limit == 64
    with pytest.raises(sa.StoreFullError):
        channel.get(timeout=0)
    many.pop().close()
    many.append(channel.subscribe())
    del many[:40]
    many += [channel.subscribe() for _ in range(40)]
    assert len(channel.stats().subscribers) == 64
    for subscription in many:
        subscription.close()

    def fill() -> None:
        held = [channel.subscribe() for _ in range(64)]
        assert len(held) == 64
        os._exit(0)

    assert reap(in_child(fill)) == 0
    with channel.subscribe() as last:
        publish(channel, 5)
        assert rest(last) == [5]


# -- other processes ---------------------------------------------------------------------------------------------------


@pytest.mark.core
def test_a_subscription_travels(start_method: SpawnContext, store: sa.Store, any_guard: None) -> None:
    """As an argument: whoever loads it has all from the moment it was made, though it was sent later."""
    channel = broadcast(store, slots=8)
    found = store.Queue()
    subscriptions = [channel.subscribe() for _ in range(2)]
    publish(channel, 0, 1)
    workers = [start_method.Process(target=actors.collect, args=(each, found)) for each in subscriptions]
    for worker in workers:
        worker.start()
    if start_method.get_start_method() == "fork":
        wait_until(lambda: {each.pid for each in channel.stats().subscribers} == {w.pid for w in workers}, 30)
    del subscriptions
    publish(channel, *range(2, 20))
    channel.close()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
        worker.close()
    assert [found.get(timeout=30) for _ in range(2)] == [list(range(20))] * 2
    assert channel.stats().missed == 0


def test_a_subscription_travels_through_queues_and_executors(
    store: sa.Store, any_guard: None, start_method: SpawnContext
) -> None:
    """What it missed on the way is told with the first item; whoever has it last and drops it ends it."""
    channel = broadcast(store, slots=2, full="drop-oldest")
    subscription = channel.subscribe()
    publish(channel, *range(5))
    passing = store.Queue()
    passing.put(subscription)
    del subscription
    publish(channel, *range(5, 8))
    arrived = passing.get()
    with (item := arrived.receive()):
        assert (item.sequence, item.missed) == (6, 6)
    with ProcessPoolExecutor(1, mp_context=start_method) as pool:
        assert pool.submit(actors.get_one, arrived).result(60) == (7, 0, 6)
    # The worker had it, and dropped it with its task.
    for use in (arrived.get, lambda: pickle.loads(pickle.dumps(arrived))):
        with pytest.raises(sa.ChannelClosedError, match="has ended"):
            use()
    arrived.close()


def test_a_handle_that_arrives_after_the_end_says_so(store: sa.Store) -> None:
    """ChannelClosedError from loading it, also when its place in the table is another's."""
    channel = broadcast(store)
    subscription = channel.subscribe()
    handle = pickle.dumps(subscription)
    subscription.close()
    with channel.subscribe(), pytest.raises(sa.ChannelClosedError, match="has ended"):
        pickle.loads(handle)


def test_a_forked_child_subscribes_for_itself(store: sa.Store) -> None:
    """Its object's own subscription is another than the parent's: what it takes, counts and closes is not the parent's."""
    channel = broadcast(store, slots=4)
    with pytest.raises(queue.Empty):
        channel.get(timeout=0)
    publish(channel, 1)

    def use() -> None:
        assert channel.qsize() == 0
        channel.close()
        other = pickle.loads(pickle.dumps(channel))
        with pytest.raises(queue.Empty):
            other.get(timeout=0)
        publish(channel_of_child := other, 2)
        assert rest(channel_of_child) == [2]
        assert len(other.stats().subscribers) == 2

    assert reap(in_child(use)) == 0
    assert channel.qsize() == 2
    assert rest(channel) == [1, 2]

    def look_and_end() -> None:
        with pytest.raises(queue.Empty):
            channel.get(timeout=0)

    assert reap(in_child(look_and_end)) == 0
    publish(channel, 3)
    assert rest(channel) == [3]
    channel.close()


def test_a_forked_child_may_use_an_inherited_subscription(store: sa.Store) -> None:
    """It is then the child's, and ends with it; one that the child does not touch stays the parent's."""
    channel = broadcast(store, slots=4)
    used, kept = channel.subscribe(), channel.subscribe()
    publish(channel, 1, 2)

    def use() -> None:
        assert int(used.get(timeout=5)[0]) == 1
        assert {each.pid for each in channel.stats().subscribers} == {os.getpid(), os.getppid()}

    assert reap(in_child(use)) == 0
    assert rest(kept) == [1, 2]
    channel._flow.look_for_deaths()
    with pytest.raises(sa.ChannelClosedError, match="has ended"):
        used.get(timeout=0)
    kept.close()
    assert channel.stats().subscribers == ()


def test_many_processes_see_all_of_many_producers(store: sa.Store) -> None:
    """Three publish, three have subscribed before: each sees all, each producer's in order, and nothing twice."""
    channel = broadcast(store, slots=3)
    found = store.Queue()
    subscriptions = [channel.subscribe() for _ in range(3)]

    def read(number: int) -> None:
        found.put([int(frame[0]) for frame in subscriptions[number]])

    def write(number: int) -> None:
        for step in range(60):
            channel.put(np.full(4, number * 1000 + step), timeout=60)
        gate.wait(60)

    gate = store.Event()
    readers = [in_child(partial(read, n)) for n in range(3)]
    writers = [in_child(partial(write, n)) for n in range(3)]
    wait_until(lambda: channel.stats().sent == 180, 60)
    gate.set()
    assert [reap(pid, 60) for pid in writers] == [0] * 3
    assert [reap(pid, 60) for pid in readers] == [0] * 3
    for _ in range(3):
        seen = found.get(timeout=30)
        assert sorted(seen) == sorted(n * 1000 + s for n in range(3) for s in range(60))
        for producer in range(3):
            mine = [number for number in seen if number // 1000 == producer]
            assert mine == sorted(mine)
    assert channel.stats().received == 540
