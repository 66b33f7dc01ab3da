"""What a process of the soak does with a store, one random step after the other, and what must hold at each.

Owns: the steps, the views a process holds meanwhile, and telling a broken promise from an error that is documented.
Must not know: processes, queues, who is killed.

Every array is filled with one value, so a torn one shows two. Names under `perm/` are never changed and those under `keep/`
replaced but never deleted, so they must be there as long as the store is; what is under `tmp/` comes and goes.
"""

from __future__ import annotations

import os
import pickle
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import shmarray as sa
from tests.soak.board import LOADED, POISONED

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from tests.soak.board import Board, Journal

KEEP, TMP = 4, 4
_HELD = 12
_PATIENCE = 30.0
_DTYPES = ("f8", "f4", "i8", "u2", "c16")
_MENDABLE = (
    "a block that was never finished; its maker is gone",
    "nobody holds it, and no handle to it is in flight",
    "a handle in flight to a block that was deleted, or that lay in one",
    "memory kept for the next array; who kept it is gone",
)


class BrokenPromiseError(Exception):
    """Something that must hold does not: `kind` says what."""

    def __init__(self, kind: str, detail: str) -> None:
        """Say what."""
        super().__init__(kind, detail)
        self.kind = kind
        self.detail = detail


class EndedError(Exception):
    """The store has ended, as was announced."""


class Held(NamedTuple):
    """A view, or a tree, and the value that fills it."""

    view: Any
    value: int


def value_of(thing: Any) -> int:
    """Return the value that fills an array or all arrays of a tree; raises `BrokenPromiseError` if there are two."""
    leaves = [thing] if isinstance(thing, sa.SharedArray) else thing["leaves"]
    found = {int(value.real) for leaf in leaves for value in np.unique(np.asarray(leaf))}
    if len(found) != 1:
        raise BrokenPromiseError("torn", f"{thing!r:.200} holds {sorted(found)}")
    return found.pop()


def prepare(store: sa.Store) -> None:
    """Make the arrays that are there from the first to the last moment."""
    for number in range(KEEP):
        store.put(np.full(100 + number, number), name=f"perm/{number}")
        store[f"keep/{number}"] = np.zeros(100)
        store[f"keep/tree/{number}"] = tree(number)
    store.zeros(1000, dtype="i8", name="guarded")


def tree(value: int) -> dict[str, Any]:
    """Nest some arrays."""
    return {
        "leaves": [np.full((3, 4), value), np.full(50, value, "f4"), np.full(1, value, "i8")],
        "note": "same everywhere",
        "none": None,
    }


class Workload:
    """One process's part."""

    def __init__(
        self, store: sa.Store, rng: random.Random, board: Board, journal: Journal, slot: int, *, tight: bool
    ) -> None:
        """Begin with nothing held; `slot` is its part in the troupe; in a `tight` store there may be no room."""
        self.store = store
        self.rng = rng
        self.board = board
        self.journal = journal
        self.slot = slot
        self.tight = tight
        self.held: list[Held] = []
        self.children: list[int] = []
        self.send: Callable[[bytes, int, bool], None] | None = None
        self._steps: list[tuple[Callable[[], None], int]] = [
            (self._make, 20),
            (self._drop, 14),
            (self._use, 10),
            (self.hand_over, 20),
            (self._replace, 12),
            (self._read, 14),
            (self._come_and_go, 14),
            (self._nest, 6),
            (self._scope, 4),
            (self._guarded, 6),
            (self._look, 2),
            (self._fork, 1),
        ]

    def step(self) -> None:
        """Do something. Raises `EndedError` when the store has ended as announced, `BrokenPromiseError`."""
        steps, weights = zip(*self._steps, strict=True)
        try:
            self.rng.choices(steps, weights)[0]()
        except sa.StoreClosedError as error:
            if not self.board.final:
                raise BrokenPromiseError("refused", str(error)) from error
            raise EndedError from None
        except sa.StoreFullError:
            if not self.tight:
                raise
            self.held.clear()

    def receive(self, blob: bytes, value: int, *, named: bool) -> Held | None:
        """Load what another process sent; None if it was a named array, replaced meanwhile."""
        try:
            view = pickle.loads(blob)
        except sa.StoreClosedError:
            if not self.board.final:
                raise
            raise EndedError from None
        except sa.ArrayNotFoundError as error:
            if named or self.board.final:
                return None
            raise BrokenPromiseError("vanished", f"a handle in flight: {error}") from error
        held = Held(view, value)
        self._verify(held)
        self._keep(held)
        self.board.count(self.slot, LOADED)
        return held

    def outlive(self) -> None:
        """After the end of the store: views are as good as ever, new work is refused."""
        for _ in range(20):
            for held in self.held:
                self._verify(held)
        for deed in (
            lambda: self.store.zeros(3),
            lambda: self.store["perm/0"],
            lambda: self.store.put(np.zeros(3), name="late"),
        ):
            try:
                deed()
            except sa.StoreClosedError:
                continue
            raise BrokenPromiseError("accepted", "work in a store that has ended")
        self.held.clear()

    def _verify(self, held: Held) -> None:
        found = value_of(held.view)
        if found != held.value:
            raise BrokenPromiseError("torn", f"{found} where {held.value} was put")
        if isinstance(held.view, sa.SharedArray):
            held.view[...] = held.value

    def _keep(self, held: Held) -> None:
        self.held.append(held)
        if len(self.held) > _HELD:
            self._drop()

    def _value(self) -> int:
        return self.rng.randrange(1, 1 << 15)

    # -- the steps -----------------------------------------------------------------------------------------------------

    def _make(self) -> None:
        value, size = self._value(), int(10 ** self.rng.uniform(0, 4.5))
        dtype = self.rng.choice(_DTYPES)
        if self.rng.random() < 0.5:
            view = self.store.full(size, value, dtype=dtype)
        else:
            view = self.store.put(np.full((size, 2), value, dtype)[:, self.rng.randrange(2)])
        self._keep(Held(view, value))

    def _drop(self) -> None:
        if self.held:
            self.held.pop(self.rng.randrange(len(self.held)))

    def _use(self) -> None:
        for held in self.held:
            self._verify(held)

    def hand_over(self) -> None:
        """Send something that is held, if there is somewhere to send it."""
        if self.send is None or not self.held:
            return
        held = self.rng.choice(self.held)
        name = getattr(held.view, "name", None)
        try:
            self.send(pickle.dumps(held.view), held.value, name is not None)
        except sa.ArrayNotFoundError as error:
            # An anonymous array that this very process holds is nobody's to remove.
            if name is None:
                raise BrokenPromiseError("vanished", f"held here: {error}") from error

    def _replace(self) -> None:
        number, value = self.rng.randrange(KEEP), self._value()
        if self.rng.random() < 0.7:
            self.store[f"keep/{number}"] = np.full(self.rng.randrange(1, 2000), value)
        else:
            self.store[f"keep/tree/{number}"] = tree(value)

    def _read(self) -> None:
        number = self.rng.randrange(KEEP)
        name = self.rng.choice((f"perm/{number}", f"keep/{number}", f"keep/tree/{number}"))
        try:
            found = self.store[name]
        except sa.ArrayNotFoundError as error:
            if self.board.final:
                return
            raise BrokenPromiseError("vanished", f"{name} was deleted by nobody: {error}") from error
        value = value_of(found)
        if name.startswith("perm/") and value != number:
            raise BrokenPromiseError("torn", f"{name} holds {value}")
        if name.startswith("keep/") and self.rng.random() < 0.3:
            self._keep(Held(found, value))

    def _come_and_go(self) -> None:
        name, value = f"tmp/{self.rng.randrange(TMP)}", self._value()
        try:
            match self.rng.randrange(5):
                case 0:
                    self.store.full(self.rng.randrange(1, 5000), value, name=name)
                case 1:
                    del self.store[name]
                case 2:
                    self.store[name] = np.full(10, value)
                case 3:
                    self.store[name].unlink()
                case _:
                    found = self.store[name]
                    self._keep(Held(found, value_of(found)))
        except (sa.ArrayExistsError, sa.ArrayNotFoundError):
            pass

    def _nest(self) -> None:
        value = self._value()
        self._keep(Held(self.store.put(tree(value)), value))

    def _scope(self) -> None:
        value = self._value()
        with self.store.full(100, value) as inside:
            self._verify(Held(inside, value))

    def _guarded(self) -> None:
        try:
            counter = self.store["guarded"]
        except sa.ArrayNotFoundError as error:
            if self.board.final:
                return
            raise BrokenPromiseError("vanished", f"guarded was deleted by nobody: {error}") from error
        try:
            with counter.write(timeout=_PATIENCE) as inside:
                if len(np.unique(inside)) != 1:
                    raise BrokenPromiseError("torn", "half of an update, and nobody said that its writer died")
                np.add(inside, 1, out=inside)
        except sa.PoisonedError:
            self.board.count(self.slot, POISONED)
            with counter.write(timeout=_PATIENCE, heal=True) as inside:
                inside[:] = inside.max()

    def _look(self) -> None:
        names = set(self.store)
        missing = {f"perm/{number}" for number in range(KEEP)} - names
        if missing and not self.board.final:
            raise BrokenPromiseError("vanished", f"not listed: {missing}")
        self.store.stats()
        for problem in self.store.check(fix=self.rng.random() < 0.5):
            if problem.reason not in _MENDABLE and not self.board.final:
                raise BrokenPromiseError("damaged", str(problem))

    def _fork(self) -> None:
        """Let a forked child use what it inherited, and work in the store, while this process goes on."""
        child = os.fork()
        if child:
            # Not waited for here: it may outlive this process.
            self.children.append(child)
            self.reap()
            return
        status = 70
        try:
            self._steps = [entry for entry in self._steps if entry[0] not in (self._fork, self.hand_over)]
            self.children = []
            self._use()
            for _ in range(5):
                self.step()
            self.held.clear()
            status = 0
        except EndedError:
            status = 0
        except BrokenPromiseError as error:
            self.journal.write(error.kind, f"in a forked child: {error.detail}")
        except BaseException as error:  # noqa: BLE001  it would go on as a second worker
            self.journal.write("error", f"in a forked child: {error!r}")
        finally:
            os._exit(status)

    def reap(self) -> None:
        """Reap forked children that have ended; one that failed is a broken promise."""
        for child in list(self.children):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                self.children.remove(child)
                if status:
                    raise BrokenPromiseError(
                        "crash", f"a forked child ended with status {os.waitstatus_to_exitcode(status)}"
                    )
