"""Wrong arguments: each is refused at once by an error that names it, whatever the state of things, and leaves nothing behind."""

from __future__ import annotations

import collections
import itertools
import math
import os
import types
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shmarray as sa

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmarray.channels import Channel

NO_NUMBERS: list[Any] = ["3", 1.5, None, [2], True, b"4"]
NO_TIMEOUTS: list[tuple[Any, type[Exception]]] = [
    ("1", TypeError),
    ([1], TypeError),
    (math.nan, ValueError),
    (1j, TypeError),
]


def refused(kind: type[BaseException], word: str, act: Callable[[], object]) -> None:
    """Run what must be refused by an error of just this kind that says `word`."""
    with pytest.raises(kind) as caught:
        act()
    assert type(caught.value) is kind
    assert word in str(caught.value), str(caught.value)
    del caught  # the frames of its traceback keep what was made


def uses(channel: Channel, item: Any) -> list[Callable[[Any], object]]:
    """Give what one does with a channel up to a timeout, none of which has to wait now."""
    channel.put(item)
    return [
        channel.loan,
        channel.receive,
        lambda timeout: channel.put(item, timeout=timeout),
        lambda timeout: channel.get(timeout=timeout),
    ]


def left(store: sa.Store) -> list[str]:
    """Files of the store that are neither its own nor kept for the next small arrays."""
    store.trim()
    names = [name for name in os.listdir("/dev/shm") if f".{store.id}." in name]
    return [name for name in names if name.rpartition(".")[2] != "ctl"]


def test_a_number_of_something_is_a_whole_number(memory_store: sa.Store) -> None:
    """What is none is a `TypeError` that names the argument, and no text of the interpreter's about objects and integers."""
    makers: dict[str, list[Callable[[Any], object]]] = {
        "maxsize": [memory_store.Queue, memory_store.JoinableQueue, memory_store.LifoQueue, memory_store.PriorityQueue],
        "value": [memory_store.Semaphore, memory_store.BoundedSemaphore],
        "parties": [memory_store.Barrier],
        "size": [memory_store.SharedMemory],
        "slots": [lambda slots: memory_store.channel(3, slots=slots)],
        "meta_bytes": [lambda room: memory_store.channel(3, meta_bytes=room)],
    }
    for word, acts in makers.items():
        for act in acts:
            for wrong in NO_NUMBERS:
                refused(TypeError, f"{word} must be a whole number, not {wrong!r}", partial(act, wrong))
            kind = ValueError if word in ("slots", "meta_bytes") else OverflowError
            refused(kind, word, partial(act, 1 << 70))
    assert memory_store.Queue(np.int64(2)) is not None  # type: ignore[arg-type]  # as good as an int
    assert left(memory_store) == []


def test_a_timeout_is_a_number_of_seconds(memory_store: sa.Store) -> None:
    """NaN never comes, and what is no number is none: said by every wait, also where there is nothing to wait for."""
    array, event, queue = memory_store.ones(3), memory_store.Event(), memory_store.Queue(1)
    channel, condition = memory_store.channel(3, slots=1), memory_store.Condition()
    lock, end = memory_store.Lock(), memory_store.Pipe()[0]
    channel.put(np.ones(3))
    queue.put(1)
    waits: list[Callable[[Any], object]] = [
        array.write, array.read, lambda timeout: lock.acquire(timeout=timeout), lambda timeout: array.lock.acquire(timeout=timeout),
        lambda timeout: memory_store.RLock().acquire(timeout=timeout), event.wait, lambda timeout: queue.put(2, timeout=timeout),
        lambda timeout: queue.get(timeout=timeout), lambda timeout: memory_store.Semaphore(0).acquire(timeout=timeout),
        memory_store.Barrier(2).wait, lambda timeout: memory_store.Barrier(2, timeout=timeout), end.poll,
        lambda timeout: channel.put([1, 2, 3], timeout=timeout), lambda timeout: channel.loan(timeout).__enter__(),
        lambda timeout: memory_store.JoinableQueue().join(timeout), channel.join,
    ]  # fmt: skip
    with condition:
        waits += [condition.wait, lambda timeout: condition.wait_for(bool, timeout)]
        for wrong, kind in NO_TIMEOUTS:
            for act in waits:
                refused(kind, "timeout must be a number of seconds", partial(act, wrong))
    free = [act for size in (3, 1 << 17) for act in uses(memory_store.channel(size, slots=2), np.ones(size))]
    heard = memory_store.channel(3, mode="broadcast").subscribe()
    free += [heard.receive, lambda timeout: heard.get(timeout=timeout)]
    for wrong, kind in NO_TIMEOUTS:
        for act in free:
            refused(kind, "timeout must be a number of seconds", partial(act, wrong))
    assert repr(condition).endswith(", 0)>")  # nobody was left among those who wait
    with array.write(timeout=np.float64(0.5)), lock:
        pass
    assert queue.get(timeout=1) == 1


def test_a_store_that_is_open_here_is_to_be_closed_here() -> None:
    """At a prompt or in a notebook, where a line is run again: the remedy is not to look for another process."""
    with sa.Store("arguments-again"):
        refused(sa.StoreExistsError, "is open in this process\nClose it first", partial(sa.Store, "arguments-again"))


def test_what_else_is_wrong_is_named(memory_store: sa.Store) -> None:
    """Choices, seconds, callables, positions: each by an error that names it."""
    store = memory_store
    wrong: list[tuple[type[BaseException], str, Callable[[], object]]] = [
        (ValueError, "mode is one of", lambda: store.channel(3, mode=[])),  # type: ignore[arg-type]
        (ValueError, "full is one of", lambda: store.channel(3, full={})),  # type: ignore[arg-type]
        (TypeError, "spin must be a number", lambda: store.channel(3, spin="0")),  # type: ignore[arg-type]
        (TypeError, "spin must be a number", lambda: store.channel(3, spin=True)),
        (ValueError, "spin lies between", lambda: store.channel(3, spin=math.nan)),
        (ValueError, "order must be one of", lambda: store.zeros(2, order=5)),  # type: ignore[arg-type]
        (ValueError, "order must be one of", lambda: store.zeros(2, order=b"C")),  # type: ignore[arg-type]
        (ValueError, "order must be one of", lambda: store.zeros((2, 3), order=[1, 0])),  # type: ignore[arg-type]
        (TypeError, "action must be callable", lambda: store.Barrier(2, 5)),  # type: ignore[arg-type]
        (TypeError, "n must be a whole number", lambda: store.Semaphore(1).release("2")),  # type: ignore[arg-type]
        (TypeError, "n must be a whole number", lambda: store.Condition().notify(1.5)),  # type: ignore[arg-type]
        (OverflowError, "n must be a number", lambda: store.Semaphore(1).release((1 << 63) - 1)),
        (OverflowError, "n must be a number", lambda: store.Semaphore(0).release(1 << 70)),
        (TypeError, "the position in an Array", lambda: store.Array("i", 3)[None]),
        (TypeError, "the position in an Array", lambda: store.Array("i", 3).__setitem__(None, 1)),
        (TypeError, "the position in an Array", lambda: store.Array("i", 3)[[0, 1]]),
        (TypeError, "position in a ShareableList", lambda: store.ShareableList([1, 2])[0.5]),  # type: ignore[index]
        (TypeError, "position in a ShareableList", lambda: store.ShareableList([1, 2])["0"]),  # type: ignore[index]
        (TypeError, "the position in a list", lambda: store.put([1, 2])["0"]),
        (TypeError, "the position in a tuple", lambda: store.put((1, 2))[0.5]),
        (TypeError, "read-only", lambda: store.Pipe()[0].recv_bytes_into(b"xyz")),
        (TypeError, "saved to SharedArray", lambda: store.save(store.ones(2), "x.npy")),
        (TypeError, "directory must be a path", lambda: sa.Store(directory=5)),  # type: ignore[arg-type]
        (TypeError, "directory must be a path", lambda: sa.Store(directory=b"/tmp")),  # type: ignore[arg-type]
        (ValueError, "the port in address", lambda: sa.Store(address=("127.0.0.1", 70000), authkey=b"key")),
        (TypeError, "exposed of 'Odd'", lambda: sa.Store.register("Odd", dict, exposed="items")),
        (TypeError, "exposed of 'Odd'", lambda: sa.Store.register("Odd", dict, exposed=5)),  # type: ignore[arg-type]
        (TypeError, "method_to_typeid of 'Odd'", lambda: sa.Store.register("Odd", dict, method_to_typeid=["a"])),  # type: ignore[arg-type]
    ]  # fmt: skip
    for kind, word, act in wrong:
        refused(kind, word, act)
    assert not hasattr(sa.Store, "Odd")
    assert [store.put([7, 8])[True], store.ShareableList([7, 8])[True]] == [8, 8]  # as of lists
    numbers = store.Array("i", [7, 8])
    numbers[True] = 9
    assert (numbers[:], numbers[True]) == ([7, 9], 9)
    semaphore = store.Semaphore(0)
    semaphore.release((1 << 63) - 1)
    refused(OverflowError, "n must be", semaphore.release)
    assert (semaphore.get_value(), semaphore.acquire(timeout=1)) == ((1 << 63) - 1, True)
    del numbers, semaphore
    assert left(store) == []


def test_a_message_stays_in_its_pipe_where_an_argument_is_wrong(memory_store: sa.Store) -> None:
    """What tells where, or how much, is a whole number: looked at before anything is taken or sent, and before waiting."""
    ends: tuple[Any, Any] = memory_store.Pipe()
    one, other = ends
    wrongs: list[Any] = ["3", 1.5, math.nan, [1], b"x"]
    for wrong in wrongs:
        for take in (one.recv_bytes, partial(one.recv_bytes_into, bytearray(9))):
            refused(TypeError, "must be a whole number", partial(take, wrong))
    other.send_bytes(b"abc")
    for wrong in wrongs:
        refused(TypeError, "offset must be a whole number", partial(one.recv_bytes_into, bytearray(9), wrong))
        refused(TypeError, "offset must be a whole number", partial(other.send_bytes, b"abc", wrong))
        refused(TypeError, "size must be a whole number", partial(other.send_bytes, b"abc", 0, wrong))
    assert (one.recv_bytes(np.int64(3)), one.poll()) == (b"abc", False)


def test_a_mapping_that_is_no_dict_is_not_taken_for_its_keys(memory_store: sa.Store) -> None:
    """NumPy makes an array of the keys of some, and the values would be lost."""
    memory_store["x"] = np.ones(2)
    mappings: list[Any] = [collections.UserDict(a=1), types.MappingProxyType({"a": 1}), memory_store]
    for value in mappings:
        refused(sa.DTypeError, "dict(...)", partial(memory_store.put, value))
        refused(sa.DTypeError, "dict(...)", partial(memory_store.__setitem__, "y", value))
    assert list(memory_store) == ["x"]


def test_what_is_no_item_of_a_channel_is_told_what_to_do_instead(memory_store: sa.Store) -> None:
    """A sentinel, as for a queue, and a dict where the channel has one array: no advice about what a store can keep."""
    plain, fields = memory_store.channel(3), memory_store.channel({"a": (3, "f8")})
    for channel in (plain, fields):
        refused(sa.DTypeError, "close()", partial(channel.put, None))
        refused(sa.DTypeError, "close()", partial(channel.put_nowait, None))
    refused(sa.DTypeError, "one array, not a dict\nMake the channel with fields", partial(plain.put, {"a": [1, 2, 3]}))
    refused(TypeError, "the fields 'a'", partial(fields.put, np.ones(3)))
    assert [channel.qsize() for channel in (plain, fields)] == [0, 0]


def test_what_a_store_makes_has_no_place_in_a_tree(memory_store: sa.Store) -> None:
    """And the remedy says where it goes instead."""
    refused(TypeError, "store.dict()", lambda: memory_store.put({"jobs": memory_store.Queue()}))


def test_a_name_that_is_not_there_is_not_to_be_looked_up_again(memory_store: sa.Store) -> None:
    """That is what has just been done."""
    with pytest.raises(sa.ArrayNotFoundError) as caught:
        memory_store["x"]
    assert caught.value.remedy == "list(store) shows what is there."


def test_yes_or_no_is_said_by_true_or_false(memory_store: sa.Store) -> None:
    """A text is true in an `if`, also the text "no"; so nothing but True and False will do, and NumPy's of the two."""
    store = memory_store
    array, tree = store.ones(3), store.put({"a": 1})
    acts: dict[str, list[Callable[[Any], object]]] = {
        "redeliver": [lambda value: store.channel(3, redeliver=value)],
        "stay": [lambda value: store.channel(3, stay=value)],
        "mmap": [lambda value: store.load("none.npy", mmap=value), lambda value: store.load("none.npy", None, value)],
        "compressed": [lambda value: store.save("none.npz", {"a": 1}, compressed=value)],
        "fix": [lambda value: store.check(fix=value)],
        "heal": [lambda value: array.write(heal=value), lambda value: tree.write(heal=value)],
    }
    may_be_left: dict[str, list[Callable[[Any], object]]] = {
        "progress": [
            lambda value: store.load("none.npy", progress=value),
            lambda value: store.save("none.npy", array, progress=value),
        ]
    }
    wrong: list[Any] = ["no", "", 0, 1, [], np.zeros(2)]
    for word, some in acts.items():
        for act, value in itertools.product(some, [*wrong, None]):
            refused(TypeError, f"{word} must be True or False, not {value!r}", partial(act, value))
    for word, some in may_be_left.items():
        for act, value in itertools.product(some, wrong):
            refused(TypeError, f"{word} must be True or False, or None", partial(act, value))
    yes: Any = np.True_
    assert store.check(fix=yes) == []
    assert store.channel(3, redeliver=yes, stay=yes).stats().mode == "queue"
    assert not os.path.exists("none.npz")


def test_whether_to_wait_is_no_number_of_seconds(memory_store: sa.Store) -> None:
    """`get(5)` waits for ever in `multiprocessing`: who writes that means a timeout. 1 and 0 will do there, and so they do here."""
    store = memory_store
    channel, broadcast, queue = store.channel(3), store.channel(3, mode="broadcast"), store.Queue()
    subscription, lock, rlock = broadcast.subscribe(), store.Lock(), store.RLock()
    acts: list[Callable[[Any], object]] = [
        lambda block: queue.put(1, block),
        queue.get,
        lambda block: channel.put(np.ones(3), block),
        channel.get,
        subscription.get,
        lock.acquire,
        rlock.acquire,
        store.ones(2).lock.acquire,
        store.Semaphore().acquire,
        store.Condition().acquire,
        store.Value("i").acquire,
    ]
    channel.put(np.ones(3), 1)  # type: ignore[arg-type]  # a bool of old
    broadcast.put(np.ones(3), True)
    queue.put(1, 1)  # type: ignore[arg-type]
    with rlock:
        for act in acts:
            for value in ("no", None, [1], 5, 0.5, -1):
                refused(TypeError, f"block must be True or False, not {value!r}", partial(act, value))
            refused(TypeError, "timeout=5", partial(act, 5))
    refused(TypeError, "duplex must be True or False, not 'no'", partial(store.Pipe, "no"))  # type: ignore[arg-type]
    refused(
        TypeError,
        "create_method of 'Odd' must be",
        lambda: sa.Store.register("Odd", dict, create_method="no"),  # type: ignore[arg-type]
    )
    taken = [queue.get(1), channel.get(np.True_), subscription.get(0), lock.acquire(0), rlock.acquire(1)]  # type: ignore[arg-type]
    assert [bool(np.all(value)) for value in taken] == [True] * 5
    assert store.Pipe(0)[0].writable is False  # type: ignore[arg-type]
    lock.release()
    rlock.release()
