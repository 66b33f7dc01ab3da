"""Nobody fills a slot that another reads: whatever becomes, meanwhile, of the subscription by which it was taken."""

from __future__ import annotations

import gc
import os
import pickle
import queue
import signal
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shmarray as sa
from tests.channels_deaths import deaths
from tests.helpers.processes import kill_and_reap, reap, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmarray.channels import Channel

SIZE = 100


def flood(channel: Channel) -> None:
    """Put more than there is room for, the dead being looked for."""
    for number in range(10, 20):
        channel._flow._looked = 0.0
        try:
            channel.put(np.full(SIZE, number), timeout=0)
        except queue.Full:
            channel._flow.look_for_deaths()


@pytest.fixture(params=["block", "drop-oldest", "drop-new"])
def channel(request: pytest.FixtureRequest, store: sa.Store) -> Channel:
    """A broadcast."""
    return store.channel(SIZE, np.int64, slots=2, mode="broadcast", full=request.param)


def is_usable(channel: Channel) -> None:
    """All slots are there for those who come now."""

    def nobody_is_there() -> bool:
        channel._flow.look_for_deaths()
        stats = channel.stats()
        return (stats.held, stats.subscribers) == ((), ())

    # Who reads /proc/PID/maps while that process dies keeps what it maps, and the locks on it, until after it has been reaped.
    wait_until(nobody_is_there, 20, lambda: str(channel.stats()))
    with channel.subscribe() as late:
        for number in (1, 2):
            assert channel.put(np.full(SIZE, number), block=False)
        assert [int(late.get(timeout=5)[0]) for _ in range(2)] == [1, 2]


def test_a_subscription_that_is_dropped_keeps_the_item_in_hand(channel: Channel) -> None:
    """The block of an item outlives every name of the subscription, and frees its slot at its end."""

    def first() -> Any:
        subscription = channel.subscribe()
        channel.put(np.full(SIZE, 1))
        return subscription.receive()

    with first() as frame:
        gc.collect()
        flood(channel)
        assert (frame == 1).all()
    flood(channel)
    is_usable(channel)


def test_a_subscription_that_is_closed_keeps_the_item_in_hand(channel: Channel) -> None:
    """It ends when the item is given back, and takes no other before."""
    subscription = channel.subscribe()
    channel.put(np.full(SIZE, 1))
    with subscription.receive() as frame:
        subscription.close()
        subscription.close()
        flood(channel)
        assert (frame == 1).all()
    with pytest.raises(sa.ChannelClosedError):
        subscription.get(timeout=5)
    flood(channel)
    is_usable(channel)


def test_a_channel_that_is_closed_keeps_the_item_in_hand(channel: Channel) -> None:
    """The same for the subscription that a channel object has by itself."""
    again = pickle.loads(pickle.dumps(channel))
    with pytest.raises(queue.Empty):
        again.get_nowait()
    channel.put(np.full(SIZE, 1))
    with again.receive() as frame:
        again.close()
        flood(channel)
        assert (frame == 1).all()
    flood(channel)
    is_usable(channel)


@pytest.mark.parametrize("deed", [lambda given: given.receive(), lambda given: given.get(timeout=0)])
def test_a_forked_child_does_not_end_what_its_parent_has_in_hand(channel: Channel, deed: Callable[[Any], Any]) -> None:
    """A child that asks for the next item while its parent reads one is refused or waits; its death harms nobody."""
    with channel.subscribe() as subscription:
        channel.put(np.full(SIZE, 1))
        with subscription.receive() as frame:

            def play() -> None:
                with pytest.raises(sa.GuardError):
                    deed(subscription).__enter__()

            assert reap(deaths.in_child(play)) == 0
            flood(channel)
            assert (frame == 1).all()
    is_usable(channel)


def test_a_parent_does_not_end_what_its_forked_child_has_in_hand(channel: Channel) -> None:
    """The child has the item in its own name, whoever asked for the next one before it was taken."""
    subscription = channel.subscribe()
    channel.put(np.full(SIZE, 1), meta=None)
    ready, go = os.pipe(), os.pipe()

    def play() -> None:
        item = subscription.receive()
        os.write(ready[1], b"!")
        os.read(go[0], 1)  # meanwhile the parent asks too
        with item as frame:
            os.write(ready[1], b"!")
            os.read(go[0], 1)
            assert (frame == 1).all()

    pid = deaths.in_child(play)
    os.read(ready[0], 1)
    subscription.receive()  # it is the parent's again
    os.write(go[1], b"!")
    os.read(ready[0], 1)
    assert [each.pid for each in channel.stats().subscribers] == [pid]
    os.write(go[1], b"!")
    assert reap(pid) == 0
    is_usable(channel)
    for end in (*ready, *go):
        os.close(end)


def test_what_a_killed_child_has_in_hand_comes_back(channel: Channel) -> None:
    """The subscription ends with the process that took by it, and others who had it are told."""
    subscription = channel.subscribe()
    channel.put(np.full(SIZE, 1))
    ready = os.pipe()

    def play() -> None:
        subscription.receive().__enter__()
        os.write(ready[1], b"!")
        signal.pause()

    pid = deaths.in_child(play)
    os.read(ready[0], 1)
    kill_and_reap(pid)
    is_usable(channel)
    with pytest.raises(sa.ChannelClosedError):
        subscription.get(timeout=5)
    for end in ready:
        os.close(end)


def test_a_child_killed_before_it_used_a_subscription_leaves_it_to_its_parent(channel: Channel) -> None:
    """Nothing has changed: the parent takes the next item."""
    with channel.subscribe() as subscription:
        channel.put(np.full(SIZE, 1))
        ready = os.pipe()

        def play() -> None:
            os.write(ready[1], b"!")
            signal.pause()

        pid = deaths.in_child(play)
        os.read(ready[0], 1)
        kill_and_reap(pid)
        channel._flow.look_for_deaths()
        assert (subscription.get(timeout=5) == 1).all()
        for end in ready:
            os.close(end)
    is_usable(channel)


@pytest.mark.parametrize("closed", ["after its object has gone", "before", "not"])
def test_what_was_in_hand_of_a_block_without_its_end_keeps_no_subscription(channel: Channel, closed: str) -> None:
    """Its end was never called (a handler raised on the very entry): the subscription ends all the same, and the slot is there."""
    subscription = channel.subscribe()
    channel.put(np.full(SIZE, 1))
    item = subscription.receive(20)
    item.__enter__()
    if closed == "before":
        subscription.close()
        assert len(channel.stats().held) == 1
        del subscription, item
    elif closed == "not":
        del subscription, item
    else:
        del item
        subscription.close()
        assert channel.stats().subscribers == ()
    channel._flow._looked = 0.0
    channel._flow.look_now_and_then()  # as who waits does
    for _ in range(2 * channel.slots):
        assert channel.put(np.full(SIZE, 1), timeout=20)
    assert (channel.stats().subscribers, channel.stats().held) == ((), ())
    is_usable(channel)


@pytest.mark.parametrize("way", ["loan", "receive", "subscription"])
def test_what_a_forked_child_has_in_hand_of_a_block_without_its_end_comes_back(way: str, store: sa.Store) -> None:
    """What has slots in hand is used again in the child, with what its parent noted of it; what the parent has in hand stays its own."""
    channel = store.channel(SIZE, np.int64, slots=3, mode="broadcast" if way == "subscription" else "queue")
    source = channel.subscribe() if way == "subscription" else channel
    item = np.full(SIZE, 1)

    def once() -> Any:
        if way != "loan":
            channel.put(item, timeout=20)
        return channel.loan(20) if way == "loan" else source.receive(20)

    with once():
        pass  # from here on there is one to be used again

    def child() -> None:
        block = once()
        block.__enter__()
        del block  # a handler raised on the very entry of its end
        channel._flow._looked = 0.0
        channel._flow.look_now_and_then()
        pids = [held[2] for held in channel.stats().held]
        assert os.getpid() not in pids, pids

    assert reap(deaths.in_child(child)) == 0
    if way == "loan":
        with once():
            assert reap(deaths.in_child(child)) == 0
            assert [held[2] for held in channel.stats().held] == [os.getpid()]


def kill_when_forked() -> None:
    """Have a child that has all this process has, and is killed before it has used any of it."""
    ready = os.pipe()

    def play() -> None:
        os.write(ready[1], b"!")
        signal.pause()

    pid = deaths.in_child(play)
    os.read(ready[0], 1)
    kill_and_reap(pid)
    for end in ready:
        os.close(end)


@pytest.mark.parametrize("handed", ["by a fork", "by pickling"])
def test_what_a_child_never_used_ends_when_its_parent_closes_it(channel: Channel, handed: str, store: sa.Store) -> None:
    """Whatever was published meanwhile: nothing is held for the dead."""
    subscription = channel.subscribe()
    if handed == "by pickling":
        pickle.dumps(subscription)  # and nobody has loaded it
    kill_when_forked()
    flood(channel)
    subscription.close()
    is_usable(channel)
    store.release_unclaimed()  # the channel's own handle, which is still on its way


@pytest.mark.parametrize("handed", ["by a fork", "by pickling", "by pickling, and dropped"])
@pytest.mark.parametrize("end", ["returns", "is killed"])
def test_what_a_child_never_used_ends_with_its_parent(channel: Channel, handed: str, end: str, store: sa.Store) -> None:
    """Also if the parent had let go of it, for whoever loads it: it is the parent's until then."""
    ready, go = os.pipe(), os.pipe()

    def parent() -> None:
        subscription: Any = channel.subscribe()
        if handed != "by a fork":
            pickle.dumps(subscription)
        kill_when_forked()
        if handed == "by pickling, and dropped":
            subscription = None
        os.write(ready[1], b"!")
        os.read(go[0], 1)
        if end == "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        del subscription

    pid = deaths.in_child(parent)
    os.read(ready[0], 1)
    assert [each.pid for each in channel.stats().subscribers] == [pid]
    flood(channel)
    os.write(go[1], b"!")
    assert reap(pid) == (-signal.SIGKILL if end == "is killed" else 0)
    wait_until(lambda: channel.put(np.full(SIZE, 1), timeout=20), 20)  # whoever finds no slot finds it out
    is_usable(channel)
    store.release_unclaimed()
    for each in (*ready, *go):
        os.close(each)


class Heir:
    """A forked child that has a subscription, and uses it when it is told to."""

    def __init__(self, deed: Callable[[], object]) -> None:
        """Fork it; when it is told to go on it does a deed."""
        self._ready, self._go = os.pipe(), os.pipe()

        def play() -> None:
            os.write(self._ready[1], b"!")
            os.read(self._go[0], 1)
            deed()

        self.pid = deaths.in_child(play)
        os.read(self._ready[0], 1)

    def go_on(self) -> int:
        """Let it do its deed; gives how it ended."""
        os.write(self._go[1], b"!")
        return self._ended(reap(self.pid))

    def kill(self) -> None:
        """Kill it before that."""
        kill_and_reap(self.pid)
        self._ended(0)

    def _ended(self, code: int) -> int:
        for end in (*self._ready, *self._go):
            os.close(end)
        return code


def fill(channel: Channel) -> None:
    """Put more than there is room for, as one who waits until others see to it."""
    for _ in range(2 * channel.slots):
        wait_until(lambda: channel.put(np.full(SIZE, 1), timeout=20), 20)
    wait_until(lambda: channel._flow.look_for_deaths() or not channel.stats().subscribers, 20)


@pytest.mark.parametrize("first", ["dropped", "killed", "returned", "dropped there"])
def test_what_was_left_to_a_child_that_never_used_it_ends_with_that(channel: Channel, first: str) -> None:
    """Whether its parent, which goes on, had let go of it before; and however the child ends, or lets go of it too."""
    subscriptions = [channel.subscribe()]
    child = Heir(subscriptions.clear if first == "dropped there" else lambda: None)
    if first == "killed":
        child.kill()
        flood(channel)
        assert [each.pid for each in channel.stats().subscribers] == [os.getpid()]
        subscriptions.clear()
    else:
        subscriptions.clear()
        flood(channel)
        assert [each.pid for each in channel.stats().subscribers] == [0]  # somebody may use it
        if first == "dropped":
            child.kill()
        else:
            assert child.go_on() == 0
    fill(channel)
    is_usable(channel)


def test_what_was_left_to_children_is_whose_who_uses_it(store: sa.Store) -> None:
    """However long that takes, and whoever of them has died; and its parent too. Then it ends with that one."""
    channel = store.channel(SIZE, np.int64, slots=2, mode="broadcast")
    answers = os.pipe()

    def parent() -> None:
        subscriptions = [channel.subscribe()]

        def use() -> None:
            os.write(answers[1], b"%d" % subscriptions[0].get(timeout=20)[0])
            os.write(answers[1], b"%d" % (channel.stats().subscribers[0].pid == os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)

        children = [Heir(lambda: None), Heir(use), Heir(lambda: None)]
        subscriptions.clear()
        children[0].kill()
        assert children[2].go_on() == 0
        os.kill(os.getpid(), signal.SIGSTOP)
        os.write(children[1]._go[1], b"!")
        os.kill(os.getpid(), signal.SIGKILL)

    pid = deaths.in_child(parent)
    wait_until(lambda: deaths.is_stopped(pid), 20)
    for number in (7, 8):
        channel.put(np.full(SIZE, number), timeout=20)
    with pytest.raises(queue.Full):
        channel.put(np.full(SIZE, 9), timeout=0.3)  # the dead are looked for meanwhile
    assert [(each.pid, each.depth) for each in channel.stats().subscribers] == [(0, 2)]
    os.kill(pid, signal.SIGCONT)
    assert reap(pid) == -signal.SIGKILL
    assert os.read(answers[0], 1) == b"7"
    assert os.read(answers[0], 1) == b"1"
    fill(channel)
    is_usable(channel)
    for end in answers:
        os.close(end)


def test_what_was_left_to_a_child_may_travel_on_from_there(store: sa.Store) -> None:
    """Without having been used; on its way it is the child's."""
    channel = store.channel(SIZE, np.int64, slots=2, mode="broadcast")
    passing, done = store.Queue(), store.Event()
    subscriptions = [channel.subscribe()]

    def hand_on() -> None:
        passing.put(subscriptions.pop())
        done.wait(20)

    child = Heir(hand_on)
    subscriptions.clear()
    loaded: list[Any] = []

    def load() -> None:
        channel.put(np.full(SIZE, 5))
        wait_until(lambda: [each.pid for each in channel.stats().subscribers] == [child.pid], 20)
        assert channel._flow.look_for_deaths() is False
        loaded.append(passing.get(timeout=20))
        done.set()

    thread = threading.Thread(target=load)
    thread.start()
    assert child.go_on() == 0
    thread.join(30)
    assert [each.pid for each in channel.stats().subscribers] == [os.getpid()]
    assert loaded[0].get(timeout=20)[0] == 5
    loaded.clear()
    fill(channel)
    is_usable(channel)


@pytest.mark.parametrize("found_out", [False, True])
def test_a_child_that_begins_after_its_parents_death_takes_or_is_told(channel: Channel, found_out: bool) -> None:  # noqa: FBT001
    """What was handed on is the child's from its first use, in time or not at all: never are there items that it does not get."""
    ready, go, answers = os.pipe(), os.pipe(), os.pipe()

    def parent() -> None:
        subscription = channel.subscribe()

        def child() -> None:
            os.write(ready[1], b"!")
            os.read(go[0], 1)
            try:
                os.write(answers[1], b"%d" % subscription.get(timeout=20)[0])
            except sa.ChannelClosedError:
                os.write(answers[1], b"!")

        deaths.in_child(child)
        os.read(ready[0], 1)
        os.kill(os.getpid(), signal.SIGKILL)

    assert reap(deaths.in_child(parent)) == -signal.SIGKILL
    channel.put(np.full(SIZE, 7))
    if found_out:
        wait_until(
            channel._flow.look_for_deaths, 20
        )  # its mappings may end a moment after it is reaped: /proc is read by others
    os.write(go[1], b"!")
    assert os.read(answers[0], 1) == (b"!" if found_out else b"7")
    wait_until(lambda: channel._flow.look_for_deaths() or not channel.stats().subscribers, 20)
    is_usable(channel)
    for each in (*ready, *go, *answers):
        os.close(each)


def test_an_item_that_is_given_back_unseen_never_leads_to_another(store: sa.Store) -> None:
    """If what comes after it was dropped meanwhile, it is missed too: a slot that is free, or is being filled, is nobody's to read."""
    channel = store.channel(SIZE, np.int64, slots=3, mode="broadcast", full="drop-oldest")
    with channel.subscribe() as subscription:
        flow = channel._flow
        for dropped in (0, 1, 2, 5):
            before = channel.stats()
            for number in range(3):
                channel.put(np.full(SIZE, number))
            got: list[int] = []
            flow.take(subscription.side, 0.0, got)
            for number in range(3, 3 + dropped):
                channel.put(np.full(SIZE, number))
            flow.with_get(flow._untake, subscription.side, got)
            found = []
            while not subscription.empty():
                found.append(int(subscription.get(timeout=5)[0]))
            last = 3 + dropped
            assert found == list(range(0 if not dropped else dropped + 1, last)), dropped
            after = channel.stats()
            assert after.missed - before.missed + len(found) == last
    is_usable(channel)


def test_what_is_missed_is_told_with_the_item_after_it(store: sa.Store) -> None:
    """Not with the one before, though that was still in hand when the others were dropped; nor twice."""
    channel = store.channel(SIZE, np.int64, slots=3, mode="broadcast", full="drop-oldest")
    with channel.subscribe() as subscription:
        for number in range(3):
            channel.put(np.full(SIZE, number))
        flow = channel._flow
        taken = subscription.receive(5)
        take = type(flow).take

        def late(self: Any, *arguments: Any) -> None:
            take(self, *arguments)
            for number in range(3, 5):
                channel.put(np.full(SIZE, number))  # between the taking and the look at what was missed

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(flow), "take", late)
            frame = taken.__enter__()
        assert (int(frame[0]), taken.missed) == (0, 0)
        taken.__exit__(None, None, None)
        for expected in ((3, 2), (4, 0)):
            after = subscription.receive(5)
            with after as frame:
                assert (int(frame[0]), after.missed) == expected
