"""Channels in coroutines: the loop goes on, one thread waits for all, and who is cancelled loses nothing for others."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import pickle
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shmarray as sa
from shmarray import membership
from shmarray.channels import aio
from tests.channels.test_streams import ITEM, in_thread, is_clean
from tests.helpers.processes import reap, wait_until
from tests.vocabulary.deaths import in_child

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

LENGTHS = pytest.mark.parametrize("length", [4, 20_000])


@pytest.fixture(autouse=True)
def _no_thread_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The thread that waits goes when it has had nothing to do for a while, here a short one: see that it does."""
    monkeypatch.setattr(aio, "_LINGER", 0.02)
    yield
    wait_until(lambda: not waiters(), 20)


def waiters() -> list[threading.Thread]:
    """Threads of ours."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("shmarray channel")]


def run(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine with a deadline."""

    async def within() -> Any:
        async with asyncio.timeout(50):
            return await main()

    return asyncio.run(within())


async def until(true: Callable[[], Any]) -> None:
    """Let others run until something is so."""
    async with asyncio.timeout(40):
        while not true():  # noqa: ASYNC110  it is no event of this process
            await asyncio.sleep(0.001)


def settles(channel: Any) -> None:
    """See that nobody holds or awaits anything; a thread that waited for coroutines needs a moment to notice that they have gone."""
    wait_until(lambda: is_clean(channel), 20, lambda: str(channel.stats()))


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel a task, and see that it was."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.core
@LENGTHS
def test_every_way_of_waiting_has_its_coroutine(store: sa.Store, length: int) -> None:
    """Two tasks hand items over in one loop by one slot: lending and copying, by `async with`, `await` and `async for`."""
    channel = store.channel(length, "i8", slots=1, meta_bytes=64)

    async def produce() -> None:
        for number in range(10):
            if number % 2:
                assert await channel.aput(np.full(length, number), meta=number) is True
            else:
                async with channel.aloan(meta=number) as frame:
                    frame[:] = number
        channel.close()

    async def consume() -> list[int]:
        passing = store.Queue()
        passing.put(channel)
        mine = passing.get()
        found = [int((await mine.aget())[0])]
        async with (received := mine.areceive()) as frame:
            assert not frame.flags.writeable
            assert (received.item.meta, received.item.sequence) == (1, 1)
            found.append(int(frame[0]))
        return found + [int(frame[0]) async for frame in mine]

    async def main() -> list[int]:
        producer = asyncio.create_task(produce())
        found = await consume()
        await producer
        return found

    assert run(main) == list(range(10))
    settles(channel)


def test_a_loan_that_fails_in_a_coroutine_is_not_published(store: sa.Store) -> None:
    """Its slot is free again, and a coroutine that waits for one gets it."""
    channel = store.channel(4, "i8", slots=1)

    async def main() -> None:
        with pytest.raises(ZeroDivisionError):  # noqa: PT012  it waits within
            async with channel.aloan() as frame:
                waiting = asyncio.create_task(channel.aput(ITEM))
                await until(lambda: channel.stats().waiting_to_send == 1)
                frame[:] = 9
                raise ZeroDivisionError
        assert await waiting is True

    run(main)
    assert channel.get().tolist() == ITEM.tolist()
    settles(channel)


def test_many_coroutines_wait_in_one_thread(store: sa.Store) -> None:
    """Forty takers and forty givers, over two slots: one thread for each word that they wait for, and everybody is served."""
    channel = store.channel(4, "i8", slots=2)
    most = []

    async def main() -> list[int]:
        takers = [asyncio.create_task(channel.aget()) for _ in range(40)]
        await until(lambda: channel.stats().waiting_to_receive)
        most.append(len(waiters()))
        assert channel.stats().waiting_to_receive == 1  # threads are counted, and one sleeps for all
        givers = [asyncio.create_task(channel.aput(np.full(4, number))) for number in range(40)]
        for giver in givers:
            assert await giver is True
            most.append(len(waiters()))
        return sorted([int((await taker)[0]) for taker in takers])

    assert run(main) == list(range(40))
    assert max(most) <= 2
    settles(channel)


def test_the_loop_goes_on_while_coroutines_wait(store: sa.Store) -> None:
    """Others run hundreds of times meanwhile; what another thread or process puts wakes who waits."""
    channel = store.channel(4, "i8")
    turns = 0

    async def main() -> Any:
        nonlocal turns
        waiting = asyncio.create_task(channel.aget())
        await until(lambda: channel.stats().waiting_to_receive)
        for _ in range(300):
            await asyncio.sleep(0)
            turns += 1
        assert not waiting.done()
        thread, _ = in_thread(lambda: channel.put(ITEM))
        first = await waiting
        thread.join(30)
        waiting = asyncio.create_task(channel.aget())
        await until(lambda: channel.stats().waiting_to_receive)
        pid = in_child(lambda: channel.put(ITEM + 1))
        second = await waiting
        assert reap(pid) == 0
        return first.tolist(), second.tolist()

    assert run(main) == (ITEM.tolist(), (ITEM + 1).tolist())
    assert turns == 300
    settles(channel)


@LENGTHS
def test_who_is_cancelled_loses_no_item_and_no_slot(store: sa.Store, length: int) -> None:
    """While it waits, in its block, and by timeouts at the very moment when items come; the others get all."""
    channel = store.channel(length, "i8", slots=2)
    item = np.zeros(length, "i8")

    async def in_block(make: Callable[[], Any]) -> None:
        async with make():
            await asyncio.sleep(100)

    async def main() -> None:
        for make in (channel.aget, lambda: in_block(channel.areceive)):
            tasks = [asyncio.create_task(make()) for _ in range(3)]
            await until(lambda: channel.stats().waiting_to_receive)
            for task in tasks:
                await cancelled(task)
        for _ in range(2):
            await channel.aput(item)
        held = [asyncio.create_task(in_block(channel.areceive)) for _ in range(2)]
        await until(lambda: len(channel.stats().held) == 2)
        waiting = [
            asyncio.create_task(make()) for make in (lambda: channel.aput(item), lambda: in_block(channel.aloan))
        ]
        await until(lambda: channel.stats().waiting_to_send)
        for task in (*waiting, *held):
            await cancelled(task)
        lent = asyncio.create_task(in_block(channel.aloan))
        await until(lambda: channel.stats().held)
        await cancelled(lent)
        assert channel.stats().held == ()

    run(main)
    settles(channel)
    assert (channel.stats().sent, channel.stats().received) == (2, 2)


def test_timeouts_at_the_moment_of_arrival_lose_nothing(store: sa.Store) -> None:
    """`asyncio.wait_for` around each get, with timeouts about as long as items take: every item arrives, once, in order."""
    channel = store.channel(4, "i8", slots=2)

    def produce() -> None:
        for number in range(300):
            channel.put(np.full(4, number), timeout=60)

    async def main() -> tuple[list[int], int]:
        found: list[int] = []
        late = 0
        while len(found) < 300:
            try:
                found.append(int((await asyncio.wait_for(channel.aget(), 0.0001 * (late % 7)))[0]))
            except TimeoutError:
                late += 1
        return found, late

    pid = in_child(produce)
    found, late = run(main)
    assert reap(pid) == 0
    assert found == list(range(300))
    assert late
    settles(channel)


def test_errors_arrive_in_coroutines(guard_kind: str) -> None:
    """The end of the stream, a closed object, metadata that do not fit, a store that closes while they wait."""
    store = sa.Store()
    channel = store.channel(4, "i8", slots=1, meta_bytes=16)

    async def main() -> None:
        other = store.Queue()
        other.put(channel)
        producer = other.get()
        with pytest.raises(sa.ShapeError):
            await producer.aput(np.zeros(5))
        with pytest.raises(ValueError, match="meta_bytes"):
            await producer.aput(ITEM, meta="x" * 100)
        tasks = [asyncio.create_task(channel.aget()) for _ in range(3)]
        await until(lambda: channel.stats().waiting_to_receive)
        producer.close()
        for task in tasks:
            with pytest.raises(sa.ChannelClosedError):
                await task
        assert [frame async for frame in channel] == []
        with pytest.raises(sa.ChannelClosedError):
            async with channel.areceive():
                pass
        with pytest.raises(sa.ChannelClosedError):
            await producer.aput(ITEM)
        other.put(channel)
        again = other.get()
        await again.aput(ITEM)
        waits = [asyncio.create_task(again.aput(ITEM)) for _ in range(2)]
        await until(lambda: channel.stats().waiting_to_send)
        takers = [asyncio.create_task(broadcast.aget()), asyncio.create_task(_receive(broadcast))]
        await until(lambda: broadcast.stats().waiting_to_receive)
        store.close()
        for task in (*waits, *takers):
            with pytest.raises(sa.StoreClosedError):
                await task

    broadcast = store.channel(4, "i8", mode="broadcast")
    run(main)
    wait_until(lambda: is_clean(channel, 1) and broadcast.stats().waiting_to_receive == 0, 20)


async def _receive(source: Any) -> int:
    async with source.areceive() as frame:
        return int(frame[0])


def test_a_loop_that_is_left_gives_its_slot_back_in_a_coroutine(store: sa.Store) -> None:
    """After `break`, when the loop of events has had its turn."""
    channel = store.channel(4, "i8", slots=1)

    async def main() -> None:
        await channel.aput(ITEM)
        async for frame in channel:
            assert frame[0] == 0
            break
        await channel.aput(ITEM + 1)
        assert (await channel.aget()).tolist() == (ITEM + 1).tolist()

    run(main)
    settles(channel)


@pytest.mark.parametrize("mode", ["queue", "broadcast"])
def test_a_loop_over_items_in_a_coroutine_sees_what_goes_beside_the_arrays(store: sa.Store, mode: Any) -> None:
    """As `items`: the slot goes back at the next step and when the loop is left."""
    channel = store.channel(4, "i8", slots=1, mode=mode)

    async def main() -> list[tuple[int, int, Any, int]]:
        source: Any = channel.subscribe() if mode == "broadcast" else channel
        other = pickle.loads(pickle.dumps(channel))

        async def produce() -> None:
            for number in range(6):
                await other.aput(np.full(4, number), meta=str(number))
            other.close()

        producer = asyncio.create_task(produce())
        found: list[tuple[int, int, Any, int]] = []
        async with contextlib.aclosing(source.aitems()) as items:
            async for item in items:
                found.append((int(item.frame[0]), item.sequence, item.meta, item.missed))
                if len(found) == 3:
                    break
        found += [(int(item.frame[0]), item.sequence, item.meta, item.missed) async for item in source.aitems()]
        await producer
        if mode == "broadcast":
            source.close()
        return found

    assert run(main) == [(number, number, str(number), 0) for number in range(6)]
    settles(channel)


def test_coroutines_take_by_subscriptions(store: sa.Store) -> None:
    """Each subscription sees all; a slow one holds up a coroutine that publishes."""
    channel = store.channel(4, "i8", mode="broadcast", slots=2)

    async def main() -> list[list[int]]:
        one, two = channel.subscribe(), channel.subscribe()

        async def produce() -> None:
            for number in range(12):
                await channel.aput(np.full(4, number))
            channel.close()

        async def read(subscription: Any) -> list[int]:
            found = [int((await subscription.aget())[0]), await _receive(subscription)]
            found += [int(frame[0]) async for frame in subscription]
            subscription.close()
            return found

        first = asyncio.create_task(read(one))
        producer = asyncio.create_task(produce())
        await until(lambda: channel.stats().waiting_to_send)
        assert channel.stats().sent == 2
        second = await read(two)
        await producer
        return [await first, second]

    assert run(main) == [list(range(12))] * 2
    settles(channel)


def test_loops_in_two_threads_pass_items_to_each_other(store: sa.Store) -> None:
    """Two channels there and back, each waited for in both loops."""
    there, back = store.channel(4, "i8", slots=1), store.channel(4, "i8", slots=1)

    async def serve() -> int:
        count = 0
        for _ in range(50):
            await back.aput(await there.aget() + 1)
            count += 1
        return count

    async def ask() -> int:
        for number in range(50):
            await there.aput(np.full(4, number))
            assert int((await back.aget())[0]) == number + 1
        return 50

    threads = [in_thread(lambda: run(serve)), in_thread(lambda: run(ask))]
    for thread, _ in threads:
        thread.join(60)
    assert [answers for _, answers in threads] == [[50], [50]]
    wait_until(lambda: is_clean(there) and is_clean(back), 20)


def test_a_loop_that_is_closed_while_it_waited_disturbs_nobody(store: sa.Store) -> None:
    """Its waits are nobody's; another loop, and a thread, go on."""
    channel = store.channel(4, "i8")
    loop = asyncio.new_event_loop()
    task = loop.create_task(channel.aget())
    loop.run_until_complete(asyncio.sleep(0.001))
    wait_until(lambda: channel.stats().waiting_to_receive, 20)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        loop.run_until_complete(task)
    loop.close()

    async def main() -> Any:
        waiting = asyncio.create_task(channel.aget())
        await until(lambda: channel.stats().waiting_to_receive)
        channel.put(ITEM)
        return await waiting

    assert run(main).tolist() == ITEM.tolist()
    settles(channel)


def test_a_forked_child_waits_for_itself(store: sa.Store) -> None:
    """Forked while the parent's coroutines wait: a loop of the child has a thread of the child's, and both get what is theirs."""
    channel = store.channel(4, "i8")

    def child() -> None:
        async def take() -> int:
            assert not waiters()
            taking = asyncio.create_task(channel.aget())
            await until(lambda: channel.stats().waiting_to_receive == 2)
            assert len(waiters()) == 1
            told.set()
            return int((await taking)[0])

        found.put(run(take))
        # The thread counts itself out when it has told the coroutine; who ends before that stays counted until someone looks for the dead.
        wait_until(lambda: channel.stats().waiting_to_receive == 0, 20)

    found, told = store.Queue(), store.Event()

    async def main() -> int:
        waiting = asyncio.create_task(channel.aget())
        await until(lambda: channel.stats().waiting_to_receive == 1)
        pids.append(await asyncio.to_thread(in_child, child))
        await until(told.is_set)
        for number in (5, 5):
            await channel.aput(np.full(4, number))
        return int((await waiting)[0])

    pids: list[int] = []
    assert run(main) == 5
    assert found.get(timeout=30) == 5
    assert reap(pids[0]) == 0
    wait_until(lambda: channel.stats().waiting_to_receive == 0, 20)


def test_having_waited_in_coroutines_keeps_no_memory(store: sa.Store) -> None:
    """The last object is dropped after waits that were served, cancelled, and ended: its memory goes, with the collector off."""
    before = store.stats().anonymous
    gc.collect()
    gc.disable()
    try:
        for mode in ("queue", "broadcast"):
            channel = store.channel(4, "i8", slots=1, mode=mode)

            async def main(channel: Any) -> None:
                waiting = [asyncio.create_task(channel.aget()) for _ in range(2)]
                await until(lambda: channel.stats().waiting_to_receive)
                await cancelled(waiting[1])
                await channel.aput(ITEM)
                await waiting[0]
                waiting.clear()

            loop = asyncio.new_event_loop()
            loop.run_until_complete(asyncio.wait_for(main(channel), 50))
            loop.close()
            assert store.stats().anonymous == before + 1
            del channel, main
            wait_until(lambda: store.stats().anonymous == before, 20)
            assert not [
                name for name in os.listdir("/dev/shm") if f".{store.id}." in name and not name.endswith(".ctl")
            ]
    finally:
        gc.enable()


def test_what_fails_while_coroutines_wait_is_raised_where_they_wait(
    store: sa.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No descriptor to look for the dead with: each wait says so, at both ends, none hangs, and nothing stands on standard error."""
    channel = store.channel(4, "i8", slots=1)
    real = membership.Membership.open_control
    full: list[bool] = []

    def open_control(self: membership.Membership) -> Any:
        if full:
            raise sa.StoreFullError("no free descriptor", remedy="Close files.")
        return real(self)

    monkeypatch.setattr(membership.Membership, "open_control", open_control)

    async def main() -> None:
        for stat in ("waiting_to_receive", "waiting_to_send"):
            takes = stat == "waiting_to_receive"
            waiting = [asyncio.create_task(channel.aget() if takes else channel.aput(ITEM)) for _ in range(3)]
            await until(functools.partial(lambda stat: getattr(channel.stats(), stat), stat))
            full.append(True)
            for task in waiting:
                with pytest.raises(sa.StoreFullError, match="no free descriptor"):
                    await task
            full.clear()
            if takes:
                await channel.aput(ITEM)  # it goes on; and then there is no room
        assert (await channel.aget()).tolist() == ITEM.tolist()

    run(main)
    settles(channel)


def test_a_child_forked_while_another_thread_begins_to_wait_can_wait(store: sa.Store) -> None:
    """The lock under which that is done is held at the fork, by a thread that the child does not have."""
    channel = store.channel(4, "i8")

    def child() -> None:
        with pytest.raises(TimeoutError):
            asyncio.run(asyncio.wait_for(channel.aget(), 0.01))

    with aio._Here.lock:
        pid = in_child(child)
    assert reap(pid) == 0
