"""What child processes do in the tests of queues, pipes, dicts and lists; importable, so that every start method finds it."""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import shmarray as sa


def put_arrays(shared: Any, store: sa.Store, numbers: range) -> None:
    """Put arrays of the store, and end with no hold on them."""
    for number in numbers:
        shared.put((number, store.full(20, float(number))))


def double(inbox: Any, outbox: Any) -> None:
    """Send back twice what comes, until None comes."""
    while (value := inbox.get()) is not None:
        outbox.put(value * 2)


def produce(shared: Any, numbers: range) -> None:
    """Put numbers."""
    for number in numbers:
        shared.put(number)


def consume(shared: Any, sums: Any, name: int) -> None:
    """Take numbers until None comes; leave all of them under a key."""
    taken = []
    while (number := shared.get()) is not None:
        taken.append(number)
    sums[name] = taken


def deal(shared: Any) -> None:
    """Take everything there is and say that it is dealt with."""
    while True:
        try:
            shared.get(timeout=0.2)
        except queue.Empty:
            return
        shared.task_done()


def echo(end: Any) -> None:
    """Send back what comes through a pipe, until None comes."""
    while (value := end.recv()) is not None:
        end.send(value)


def meet(objects: dict[str, Any]) -> None:
    """Change each of some shared objects in a way the test can see."""
    objects["queue"].put("from the child")
    objects["stack"].put(2)
    objects["dict"]["child"] = objects["dict"]["parent"] + 1
    objects["list"].append("child")
    objects["list"][0] += 1
    objects["namespace"].child = objects["namespace"].parent + 1
    objects["memory"].buf[0] = 7
    objects["row"][0] = "child"
    objects["end"].send("child")


def count_up(shared: Any, times: int) -> None:
    """Add one to an element many times, with the lock held."""
    for _ in range(times):
        with shared.get_lock():
            shared["n"] = shared["n"] + 1


def append_many(shared: Any, name: str, times: int) -> None:
    """Append many elements that say whose they are."""
    for number in range(times):
        shared.append((name, number))
