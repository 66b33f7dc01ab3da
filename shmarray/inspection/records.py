"""What a survey says.

Owns: the records, field by field; `docs/cli.md` gives them to programs under the same names.
Must not know: how any of it is found out.

How a store stands:

    open        its owner lives
    closed      its owner closed it; processes that took part are still there
    dead        its owner died; processes that took part are still there
    leftover    nobody takes part in it: it may be removed
    orphan      files whose control file is gone
    damaged     its control file cannot be read

and a block:

    live        it can be attached, or taken out of the object in which it is kept
    unclaimed   only handles keep it that were pickled and not loaded yet, and lie in no object
    making      its maker is at work on it
    warm        memory of a freed block, kept for the next one by the store's owner, or by who made it
    dead        nobody can attach it any more
    damaged     it is not what its name says
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shmarray.channels.statistics import ChannelStats

POISONABLE = ("array", "tree")
"""Kinds of blocks that stay poisoned until someone puts the data right; other objects do so by themselves."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process as a file names it; `alive` is None where that cannot be known: it is of another pid namespace."""

    pid: int
    alive: bool | None


@dataclass(frozen=True, slots=True)
class Poison:
    """A death at work: `pid` had exclusive access when it died, which it had since `since`, in seconds since the epoch."""

    pid: int
    since: float


@dataclass(frozen=True, slots=True)
class Guard:
    """Who has access to a block, and who waits for it, at one moment.

    `kind` is "robust" or "multiprocessing". `holder` has exclusive access, `since` seconds since the epoch; it is not alive only on the
    kernel's word, and then nobody has entered since. `readers` counts the living processes that read (None: it cannot be known),
    `waiters` are the pids with threads that sleep on a word of the block (None: the kernel does not let us see).
    """

    kind: str
    holder: Process | None = None
    since: float | None = None
    readers: int | None = None
    waiters: tuple[int, ...] | None = None
    poisoned: Poison | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """One array of each item of a channel; `name` is None where it is all there is, `shape` has None for a length that varies."""

    name: str | None
    shape: tuple[int | None, ...]
    max_shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Channel:
    """A channel at one moment: what an item is (at most `item_bytes` bytes), and how it stands.

    `read_at` is in seconds since the epoch; `gone` are the pids among all those named that have ended, and of which those who are left
    have not taken notice; `latencies` has, since the channel was made, how many items took so many seconds at most and more than the
    number before.
    """

    items: tuple[Item, ...]
    item_bytes: int
    read_at: float
    gone: tuple[int, ...]
    latencies: tuple[tuple[float, int], ...]
    stats: ChannelStats


@dataclass(frozen=True, slots=True)
class Block:
    """One block: sizes in bytes, `age` in seconds, `holders` the pids that map it now.

    `kind` is "array", "tree", what the store calls another object ("Lock", "Event", ...), "slab" (many small arrays), "guard" (of a
    small array), "draft" (being made), "memory" (kept warm), "handle" (its block is deleted) or "unknown". `arrays` counts the arrays of a
    tree or in a slab, `unclaimed` the handles in flight; `kept_in` are the files of the blocks in which handles to it lie. `bytes` is the
    data, `file_bytes` what it takes. `reason` explains a state that is not live. `guard` is None where the file has none, `channel` for
    what is no channel.
    """

    file: str
    state: str
    kind: str = "unknown"
    name: str | None = None
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    arrays: int = 0
    bytes: int = 0
    file_bytes: int = 0
    creator: Process | None = None
    holders: tuple[int, ...] = ()
    unclaimed: int = 0
    kept_in: tuple[str, ...] = ()
    guard: Guard | None = None
    channel: Channel | None = None
    age: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Store:
    """One store: `bytes` is what all its blocks take, `participants` are the pids that take part in it now.

    `removable` says that it is provably ours and that nobody uses it; `reason` explains why not, or what is damaged.
    """

    id: str
    state: str
    directory: str
    name: str | None = None
    reason: str | None = None
    removable: bool = False
    control: str | None = None
    capacity: int | None = None
    bytes: int = 0
    owner: Process | None = None
    guardian: Process | None = None
    participants: tuple[int, ...] = ()
    age: float | None = None
    blocks: tuple[Block, ...] = ()


@dataclass(frozen=True, slots=True)
class Stray:
    """A file of this user with the prefix of ours that is none of them."""

    file: str
    bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class Survey:
    """All stores of one user, and what only looks like their files.

    `others` counts the files of other users with our prefix, `commands` gives the command line of every process named.
    """

    uid: int
    stores: tuple[Store, ...] = ()
    strays: tuple[Stray, ...] = ()
    others: int = 0
    commands: dict[int, str] = field(default_factory=dict)
