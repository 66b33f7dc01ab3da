"""A journal of changes, which every process reads for itself.

Owns: how changes lie in an arena, which one store makes them valid, and how the journal is written anew when it is full.
Must not know: what the changes are changes of.

A container is a journal: each change is appended, with the guard held, and becomes valid by one store, that of the journal's end. A
process keeps, for itself, where the values lie that are in the container now; before it does anything it reads on in the
journal. A value is loaded where it lies each time it is asked for, so what one gets is one's own, as from a manager's proxy.

    record    size, what, length of argument, number of links; argument (pickled), links, value (a parcel)
"""

from __future__ import annotations

import pickle
import struct
import threading
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from shmarray import keepers, keeping, objects
from shmarray.errors import ArrayNotFoundError
from shmarray.keepers import Keeper, Parcel
from shmarray.locks import RLock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from shmarray.keepers import Arena
    from shmarray.membership import Membership

_ARENA = 0
_END = 0  # of the arena's words: where the journal ends
_HEAD = struct.Struct("<IHHII")  # size, what, kind of the parcel, length of argument, of links
_FIRST_SIZE = 4096
_ALIGN = 16
_LEFT_TO_REMOVALS = 16  # this part of an arena; less than what is free in each that is made (`Keeper.make_arena`)


class _Shown(threading.local):
    """The containers of which this thread is saying what is in them, each by its block."""

    def __init__(self) -> None:
        self.blocks: set[tuple[int, int]] = set()


_shown = _Shown()


class Change(NamedTuple):
    """One change: what, of what (None, or anything that can be pickled), and the value it brings."""

    what: int
    argument: Any = None
    value: Parcel | None = None


class Record(NamedTuple):
    """A change as it was read: `at` is where it lies."""

    what: int
    argument: Any
    at: int


class Container(objects.SharedObject):
    """A container in shared memory. Subclasses say what the changes do to what a process keeps for itself."""

    __slots__ = ("_arena", "_keeper", "_read_to")

    @classmethod
    def make(cls, member: Membership, name: str | None = None) -> Self:
        """Make an empty container."""
        return cls._create(member, 1, name)

    def _attached(self) -> None:
        self._keeper = Keeper.of(self)
        self._arena: Arena | None = None
        self._read_to = 0
        self._forget()

    def _described(self, within: str, describe: Callable[[], str]) -> str:
        """Put what is in the container into `within`, in the place of its dots; they stay where that is being said already.

        A container may contain itself, and each time it is loaded it is another object.
        """
        block = objects.segment_of(self).tag.identity
        if block in _shown.blocks:
            return within
        _shown.blocks.add(block)
        try:
            return within.replace("...", describe())
        finally:
            _shown.blocks.discard(block)

    # -- for subclasses ------------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        """Begin with an empty container."""
        raise NotImplementedError

    def _apply(self, record: Record) -> list[int]:
        """Do to what this process keeps what a change says; gives the places of the values that are in it no more."""
        raise NotImplementedError

    def _places(self) -> list[tuple[Any, int]]:
        """Give arguments and places of what is in the container, in the order in which it may be made anew by `_renewal`."""
        raise NotImplementedError

    _renewal: ClassVar[int]
    """What a change is that brings one value back, when the journal is written anew."""

    _removals: ClassVar[tuple[int, ...]]
    """What changes are that only take away: a part of the journal is left to them, so that a full store can be emptied."""

    # -- the journal ---------------------------------------------------------------------------------------------------

    @property
    def arena_number(self) -> int:
        """Number of the arena, as a signed word; 0 before the first change."""
        number: int = self._words[_ARENA]
        return number

    def mend(self) -> None:
        """Nothing has to be put right after a death: a change is valid or not by one store."""

    def _within(self, work: Callable[[], keepers.Result], *, open_to_me: bool = False) -> keepers.Result:
        """Take the guard, read on in the journal, and do `work`; with `open_to_me` this thread may get in once more meanwhile."""

        def work_on() -> keepers.Result:
            self._catch_up()
            return work()

        return self._keeper.within(work_on, (self,), open_to_me=open_to_me)

    def _catch_up(self) -> None:
        number = self._words[_ARENA]
        if not number:
            return
        if self._arena is None or keepers.signed(self._arena.number) != number or self._read_to < 0:
            self._arena = self._keeper.find_arena(number)
            self._read_to = 0
            self._forget()
        at, end = self._read_to, self._arena.words[_END]
        if at == end:
            return
        # Whoever is interrupted here, or forked, has applied who knows how much, and begins anew.
        self._read_to = -1
        while at < end:
            size, record = self._record(self._arena, at)
            self._apply(record)
            at += size
        self._read_to = at

    def _record(self, arena: Arena, at: int) -> tuple[int, Record]:
        start = arena.HEAD + at
        size, what, _, length, _ = _HEAD.unpack_from(arena.memory, start)
        start += _HEAD.size
        argument = pickle.loads(arena.memory[start : start + length]) if length else None  # noqa: S301  of this user's processes
        return size, Record(what, argument, at)

    def _change(self, decide: Callable[[], list[Change]], parcels: Sequence[Parcel] = ()) -> None:
        """With the guard held, ask `decide` for changes, make them valid in one step, and drop what is in the container no more.

        Raises what `decide` raises, `StoreFullError`, `StoreClosedError`; then nothing has changed, and `parcels` are given back.
        """
        begun: list[tuple[Arena, int]] = []

        def change() -> None:
            changes = decide()
            if changes:
                self._append([(change, self._packed(change)) for change in changes], begun)

        try:
            self._within(change)
        except BaseException:
            # An exception from a signal handler may come after the step that made the changes valid: then they are.
            if not begun or begun[0][0].words[_END] == begun[0][1]:
                for parcel in parcels:
                    self._keeper.give_back(parcel)
            raise

    def _packed(self, change: Change) -> bytes:
        parcel = change.value
        with keeping.kept_in(objects.segment_of(self).tag.identity[1]) as handles:
            text = _text(change.argument)
            if handles:
                message = "a key may not be an array or a shared object without a name, nor hold one: its handle can be loaded once"
                raise TypeError(message)
        if parcel is None:
            return _record_bytes(change.what, text, keepers.PLAIN, b"", b"")
        links = b"\0".join(link.removeprefix(self._keeper.prefix).encode() for link in parcel.links)
        return _record_bytes(change.what, text, parcel.kind, links, bytes(parcel.data))

    def _append(self, packed: list[tuple[Change, bytes]], begun: list[tuple[Arena, int]]) -> None:
        need = sum(len(data) for _, data in packed)
        arena = self._arena
        frees = all(change.what in self._removals for change, _ in packed)
        if arena is None or arena.words[_END] + need > arena.size - (0 if frees else arena.size // _LEFT_TO_REMOVALS):
            arena = self._renew(need)
        at = begin = arena.words[_END]
        # Applied here first: what cannot be applied must not become valid, for nobody could read on behind it.
        self._read_to = -1
        dropped: list[int] = []
        for change, data in packed:
            arena.memory[arena.HEAD + at : arena.HEAD + at + len(data)] = data
            dropped += self._apply(Record(change.what, change.argument, at))
            at += len(data)
        begun.append((arena, begin))
        arena.words[_END] = at
        self._read_to = at
        for place in dropped:
            self._drop_value(place)

    def _renew(self, need: int) -> Arena:
        """Write the journal anew, with what is in the container now, where there is room for `need` bytes more."""
        pieces = [self._rewritten(argument, at) for argument, at in self._places()]
        try:
            arena = self._keeper.make_arena(_FIRST_SIZE, sum(map(len, pieces)) + need)
            at = 0
            for data in pieces:
                arena.memory[arena.HEAD + at : arena.HEAD + at + len(data)] = data
                at += len(data)
            arena.words[_END] = at
            before = self._words[_ARENA]
            self._read_to = -1  # places change
            self._words[_ARENA] = keepers.signed(arena.number)
            if before:
                self._keeper.drop_arena(before)
        except BaseException:
            self._keeper.spoil()  # there may be an arena too many
            raise
        self._catch_up()
        return arena

    def _rewritten(self, argument: Any, at: int) -> bytes:
        kind, links, data = self._value_at(at)
        return _record_bytes(self._renewal, _text(argument), kind, links, data)

    # -- values --------------------------------------------------------------------------------------------------------

    def _value_at(self, at: int) -> tuple[int, bytes, bytes]:
        """Kind, links and bytes of the value that a record brings."""
        arena = self._arena
        if arena is None:
            message = "there is no journal yet"
            raise IndexError(message)
        start = arena.HEAD + at
        size, _, kind, length, links = _HEAD.unpack_from(arena.memory, start)
        end = start + size
        start += _HEAD.size + length
        padding = arena.memory[end - 1]
        return kind, bytes(arena.memory[start : start + links]), bytes(arena.memory[start + links : end - padding])

    def _drop_value(self, at: int) -> None:
        _, links, _ = self._value_at(at)
        for link in links.split(b"\0"):
            if link:
                self._keeper.release(self._keeper.prefix + link.decode())

    def _load(self, find: Callable[[], int]) -> Any:
        """Load the value whose place `find` tells, with the guard held; raises what `find` raises."""
        failed: tuple[int, int] | None = None

        def look() -> tuple[tuple[int, int], int, bytes]:
            at = find()
            kind, _, data = self._value_at(at)
            return (self._words[_ARENA], at), kind, data

        while True:
            place, kind, data = self._within(look)
            try:
                return self._keeper.show(kind, data)
            except ArrayNotFoundError:
                # Replaced meanwhile, and what it referred to has gone: the value that is there now is the one to load.
                if failed == place:
                    raise
                failed = place

    def _load_all(self, find: Callable[[], Iterable[int]]) -> list[Any]:
        """Load several values as they are at one moment."""
        return self._within(lambda: [self._keeper.show(kind, data) for kind, _, data in map(self._value_at, find())])

    def _pack(self, values: Iterable[Any]) -> list[Parcel]:
        """Make parcels of values; none is left behind if one cannot be made."""
        parcels: list[Parcel] = []
        try:
            parcels.extend(map(self._keeper.pack, values))
        except BaseException:
            for parcel in parcels:
                self._keeper.give_back(parcel)
            raise
        return parcels


class Locked(Container):
    """A container whose users can reach its lock; a namespace's names are all for what is in it."""

    __slots__ = ()

    def get_lock(self) -> RLock:
        """A lock that keeps every other process from the container: for changes that depend on what is there.

        Every call takes it for microseconds, and waits for it without end: beside a process that was stopped (SIGSTOP) with it, until
        that one goes on or dies. Who must not wait so long takes it before, with `get_lock().acquire(timeout=...)`.
        """
        return RLock(self._array, self._guard)


def _text(argument: Any) -> bytes:
    return b"" if argument is None else pickle.dumps(argument, pickle.HIGHEST_PROTOCOL)


def _record_bytes(what: int, text: bytes, kind: int, links: bytes, data: bytes) -> bytes:
    size = _HEAD.size + len(text) + len(links) + len(data) + 1
    padding = -size % _ALIGN + 1
    head = _HEAD.pack(size + padding - 1, what, kind, len(text), len(links))
    return head + text + links + data + bytes(padding - 1) + bytes([padding])
