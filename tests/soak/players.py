"""The owner and the workers of a troupe.

Owns: their main functions: queues between owner and workers, starting anew whoever was killed, the ordinary end.
Must not know: who kills, and when.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import pickle
import queue
import random
import signal
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple

import shmarray as sa
from tests.soak import workload
from tests.soak.board import OWNER, Board, Journal
from tests.soak.workload import BrokenPromiseError, EndedError, Workload

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

FAILED = 70
_ON_THE_WAY = 20  # messages to one worker at most: a queue's pipe must not fill, for its reader may be dead


class Part(NamedTuple):
    """What a process of a troupe is given. `options` are those of `Store`."""

    method: str
    seed: int
    workers: int
    board: str
    journal: str
    options: dict[str, Any]

    @property
    def tight(self) -> bool:
        """Whether the store may be full."""
        return "capacity" in self.options


def _guarded(part: Part, play: Callable[[Board, Journal], None]) -> None:
    """Play; whatever goes wrong is written down, and the process ends with `FAILED`."""
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)  # asks where it hangs
    journal = Journal(part.journal)
    try:
        play(Board(part.board), journal)
    except BrokenPromiseError as error:
        journal.write(error.kind, f"{error.detail}\n{traceback.format_exc()}")
        os._exit(FAILED)
    except BaseException:  # noqa: BLE001  it is the soak's to judge
        journal.write("error", traceback.format_exc())
        os._exit(FAILED)


# -- a worker ----------------------------------------------------------------------------------------------------------


def work(part: Part, slot: int, seed: int, store: bytes, inbox: Any, outbox: Any) -> None:
    """Be a worker: use the pickled store until it ends or all are asked to stop."""
    # Whoever reads this queue may be killed, and nobody empties its pipe then.
    outbox.cancel_join_thread()

    def play(board: Board, journal: Journal) -> None:
        try:
            joined = pickle.loads(store)
        except sa.StoreClosedError:
            if not board.final:
                raise
            return
        rng = random.Random(seed)  # noqa: S311  no secret
        load = Workload(joined, rng, board, journal, slot, tight=part.tight)
        load.send = lambda blob, value, named: outbox.put((blob, value, named))
        try:
            while not board.stop:
                board.count(slot)
                load.reap()
                load.step()
                _take(inbox, load)
        except EndedError:
            load.outlive()
        load.held.clear()

    _guarded(part, play)


def _take(inbox: Any, load: Workload) -> None:
    """Load what has come."""
    for _ in range(3):
        try:
            message = inbox.get_nowait()
        except queue.Empty:
            return
        load.receive(message[0], message[1], named=message[2])


# -- the owner ---------------------------------------------------------------------------------------------------------


class _Hand(NamedTuple):
    """A worker as the owner sees it."""

    process: Any
    inbox: Any
    outbox: Any


class _Owner:
    """The owner's side of the troupe."""

    def __init__(self, part: Part, lane: Connection, board: Board, journal: Journal) -> None:
        self.part = part
        self.lane = lane
        self.board = board
        self.rng = random.Random(part.seed)  # noqa: S311  no secret
        self.context: Any = multiprocessing.get_context(part.method)
        if part.method == "forkserver":
            self.context.set_forkserver_preload(["tests.soak.players"])
        self.store = sa.Store(**part.options)
        workload.prepare(self.store)
        lane.send(("open", self.store.id, self.store.guardian_pid or 0))
        self.load = Workload(self.store, self.rng, board, journal, OWNER, tight=part.tight)
        self.hands: dict[int, _Hand] = {}
        for slot in range(1, part.workers + 1):
            self._start(slot)

    def _start(self, slot: int) -> None:
        # Queues of its own for each: a killed process leaves the locks of its queues locked for ever.
        inbox, outbox = self.context.Queue(), self.context.Queue()
        inbox.cancel_join_thread()
        args = (self.part, slot, self.rng.randrange(1 << 32), pickle.dumps(self.store), inbox, outbox)
        process = self.context.Process(target=work, args=args)
        process.start()
        self.hands[slot] = _Hand(process, inbox, outbox)
        self.lane.send(("worker", slot, process.pid))

    def play(self) -> str:
        """Work until the lane says how to end; returns that."""
        while True:
            self.board.count(OWNER)
            if self.lane.poll():
                word: str = self.lane.recv()
                return word
            self.load.reap()
            self.load.step()
            for slot, hand in list(self.hands.items()):
                if hand.process.is_alive():
                    self._pass_on(hand)
                else:
                    self._ended(hand)
                    self._start(slot)

    def _pass_on(self, hand: _Hand) -> None:
        """Load what a worker sent, and send some of it to another."""
        for _ in range(3):
            try:
                blob, value, named = hand.outbox.get_nowait()
            except queue.Empty:
                return
            held = self.load.receive(blob, value, named=named)
            other = self.hands[self.rng.choice(list(self.hands))]
            if held is not None and other.inbox.qsize() < _ON_THE_WAY:
                self.load.send = lambda *message: other.inbox.put(message)  # noqa: B023  used at once
                self.load.hand_over()  # something of what it holds, of this worker or of another
                self.load.send = None

    def _ended(self, hand: _Hand) -> None:
        hand.process.join()
        self.lane.send(("ended", hand.process.pid, hand.process.exitcode))
        for channel in (hand.inbox, hand.outbox):
            channel.close()

    def close(self, how: str) -> None:
        """End in the ordinary way: workers first, or the store first while they work."""
        self.board.announce_end()
        if how == "close beside workers":
            self.store.close()
        self.board.ask_to_stop()
        for hand in self.hands.values():
            self._ended(hand)
        self.load.held.clear()
        self.store.close()


def own(part: Part, lane: Connection) -> None:
    """Be the owner: open a store, start workers, work with them, end as the lane says."""

    def play(board: Board, journal: Journal) -> None:
        owner = _Owner(part, lane, board, journal)
        try:
            how = owner.play()
        except EOFError:
            how = "close"  # the lane is gone
        owner.close(how)
        lane.send(("closed", 0, 0))

    _guarded(part, play)
