"""What `docs/reference.md` shows, in which order, and the sentence that begins each group.

Owns: the groups of the page. Must not know: how an entry is written (`reference`).
"""

from __future__ import annotations

import inspect
from typing import NamedTuple

import shmarray
from shmarray import (
    census,
    channels,
    constructors,
    filing,
    locks,
    managed,
    memory,
    objects,
    queues,
    streaming,
    sync,
    trees,
    values,
    vocabulary,
)
from shmarray.channels import aio, loans
from shmarray.hosting import hosted, manager
from tests.project.test_public_api import FROZEN


def _of(kind: type) -> tuple[str, ...]:
    return tuple(
        f"Store.{name}"
        for name, value in vars(kind).items()
        if not name.startswith("_") and not hasattr(value, "_made_by_register")
    )


class Group(NamedTuple):
    """A part of the page: its title, its first sentence, and what is in it: names of the door or a store, and classes."""

    title: str
    sentence: str
    entries: tuple[str | type, ...]


COMMAND_LINE = "Command line"
_CONTAINERS = ("Store.dict", "Store.list", "Store.Namespace")
_MAPPING = (
    *("Store.__getitem__", "Store.__setitem__", "Store.__delitem__", "Store.__contains__", "Store.__iter__"),
    *("Store.__len__", "Store.get", "Store.setdefault"),
)
_ERRORS = tuple(
    kind for name in FROZEN if inspect.isclass(kind := getattr(shmarray, name)) and issubclass(kind, BaseException)
)
GROUPS = (
    Group(
        "Opening a store",
        "A store is what arrays and all else live in; `with` it, and nothing is left behind.",
        (shmarray.Store, "connect", census.StoreStats, census.Problem, "__version__"),
    ),
    Group(
        "Arrays",
        "NumPy's constructors as methods of a store, and what they return: an `ndarray` with these additions.",
        (*_of(constructors.Constructors), shmarray.SharedArray),
    ),
    Group(
        "Guards",
        "Exclusive and shared access to an array or a tree, as `write()`, `read()` and `lock` of either give it.",
        (locks.WriteAccess, locks.ReadAccess),
    ),
    Group(
        "Trees",
        "Nested structures of arrays in one block, as `store.put` makes them of dicts, lists, tuples and dataclasses.",
        (shmarray.SharedTree, trees.SharedMapping, trees.SharedSequence),
    ),
    Group("Names", "A store is a mutable mapping of names to what has been given one.", _MAPPING),
    Group("Files", "NumPy's files and raw ones, straight into shared memory and out of it.", _of(filing.Filing)),
    Group(
        "Channels",
        "Streams of arrays through slots in shared memory.",
        (
            *_of(streaming.Streaming),
            *(channels.Channel, loans.Loan, loans.Receipt, aio.Loaned, aio.Received, channels.Subscription),
            *(channels.ChannelStats, channels.SubscriberStats),
        ),
    ),
    Group(
        "What `multiprocessing` has",
        "Its names and signatures, in shared memory; each outlives whoever is killed with it in hand.",
        (
            *(name for name in _of(vocabulary.Vocabulary) if name not in _CONTAINERS),
            *(objects.SharedObject, locks.Lock, locks.RLock, sync.Semaphore, sync.BoundedSemaphore, sync.Event),
            *(sync.Condition, sync.Barrier, values.Value, values.Array, queues.SimpleQueue, queues.Queue),
            *(queues.JoinableQueue, queues.LifoQueue, queues.PriorityQueue, queues.Connection),
            *(memory.SharedMemory, memory.ShareableList),
        ),
    ),
    Group(
        "Dicts, lists, namespaces",
        "What a manager of `multiprocessing` makes, without a manager.",
        (*_CONTAINERS, managed.SharedDict, managed.SharedList, managed.Namespace),
    ),
    Group(
        "Custom types, pools, managers",
        "Objects that live in a process of the store, and are used through proxies.",
        (*_of(hosted.Hosted), manager.HostManager),
    ),
    Group(COMMAND_LINE, "For the user's own stores; [cli.md](cli.md) has output and exit codes.", ()),
    Group(
        "Errors and warnings",
        "Each error is a `ShmArrayError`, also the builtin that a caller expects, pickles, and ends with the remedy.",
        _ERRORS,
    ),
)
