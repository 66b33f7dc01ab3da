"""Channels beside a plain model: by several objects and threads of one process, and by several processes."""

from __future__ import annotations

import gc
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, ClassVar

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.channels.hands import Here, InProcess, InThread
from tests.channels.model import Model, Reader, User
from tests.helpers.processes import wait_until

if TYPE_CHECKING:
    import shmarray as sa

HANDS = 3
NOW = st.sampled_from([0, 0, -1, 0.002])
"""Timeouts where there is nothing to be had."""
BOUNDS = {"fixed": 40, "small": 40, "large": 9000}
"""Elements of the largest item: copied the short way; with a lock held; in a slot of its own."""
WHO = st.integers(0, HANDS - 1)
WHICH = st.integers(0, 7)


class Machine(RuleBasedStateMachine):
    """A channel, those who use it, and the model."""

    store: ClassVar[sa.Store]
    fleet: ClassVar[list[Any]]
    shares: ClassVar[bool]
    """Whether the first two hands have the same object."""

    @initialize(
        mode=st.sampled_from(["queue", "broadcast"]),
        full=st.sampled_from(["block", "drop-new", "drop-oldest"]),
        slots=st.integers(1, 5),
        bound=st.sampled_from(["fixed", "small", "large"]),
        stay=st.booleans(),
    )
    def begin(self, mode: str, full: str, slots: int, bound: str, stay: bool) -> None:  # noqa: FBT001  drawn
        """Make a channel."""
        self.bound, self.varies = BOUNDS[bound], bound != "fixed"
        self.channel: Any = self.store.channel(
            self.bound if bound == "fixed" else None, "i8", max_shape=self.bound, slots=slots, mode=mode, full=full, stay=stay  # type: ignore[arg-type]
        )  # fmt: skip
        self.model = Model(mode, full, slots, stay)
        first = self.store.Queue()
        first.put(self.channel)
        self.users = [User(0 if self.shares else number) for number in range(HANDS)]
        if self.shares:
            self.users[1] = self.users[0]
            shared = first.get()
        for number, hand in enumerate(self.fleet):
            hand.begin(shared if self.shares and number < 2 else self.channel)
        if self.shares:
            self.fleet[2].do("renew")
        self.count = 0
        self.loans: dict[int, tuple[int, User, int]] = {}
        """By key: whose hand, which object, how long."""
        self.receipts: dict[int, tuple[int, Reader | None, int, tuple[int, int]]] = {}
        self.readers: dict[int, tuple[int, Reader]] = {}

    def next(self) -> int:
        """Give a number that nothing has yet."""
        self.count += 1
        return self.count

    def length(self, drawn: int) -> int:
        """Give a length that items can have."""
        return [1, 2, self.bound // 2, self.bound - 1, self.bound][drawn % 5] if self.varies else self.bound

    def pick(self, there: dict[int, Any], which: int) -> int:
        """Choose one of several."""
        return sorted(there)[which % len(there)]

    # -- putting

    @rule(
        who=WHO,
        drawn=WHICH,
        now=NOW,
        later=st.sampled_from([None, 20]),
        way=st.sampled_from(["put", "list", "plain", "nowait"]),
    )
    def put(self, who: int, drawn: int, now: float, later: float | None, way: str) -> None:
        """Put an item."""
        number, length = self.next(), self.length(drawn)
        answer = self.model.claim(self.users[who])
        if answer is None:
            self.model.publish((number, length))
        timeout = later if answer in (None, "closed") else now
        assert self.fleet[who].do("put", number, length, timeout, way) == (True if answer is None else answer)

    @rule(who=WHO, drawn=WHICH, now=NOW)
    def loan(self, who: int, drawn: int, now: float) -> None:
        """Take a slot in hand, to fill it."""
        key, length = self.next(), self.length(drawn)
        answer = self.model.claim(self.users[who])
        found = self.fleet[who].do("loan", key, length, now if answer == "full" else None)
        if answer is None or answer is False:  # refused by "drop-new": it gets memory that nobody will see
            assert found is True
            self.loans[key] = (who, self.users[who], length if answer is None else 0)
            self.model.loans += answer is None
        else:
            assert found == answer

    @precondition(lambda self: self.loans)
    @rule(which=WHICH, aborts=st.booleans())
    def finish_loan(self, which: int, aborts: bool) -> None:  # noqa: FBT001  drawn
        """Publish what was lent, or drop it."""
        key, number = self.pick(self.loans, which), self.next()
        who, _, length = self.loans.pop(key)
        published = self.fleet[who].do("abort", key) if aborts else self.fleet[who].do("publish", key, number)
        assert published is (length > 0 and not aborts)
        self.model.loans -= length > 0
        if published:
            self.model.publish((number, length))

    # -- taking

    def source(self, who: int, which: int) -> int | None:
        """Choose what a hand takes by: a subscription of its own, or (None) its object of the channel."""
        mine = [key for key, (whose, _) in sorted(self.readers.items()) if whose == who]
        return None if not mine or which % (len(mine) + 1) == 0 else mine[which % len(mine)]

    def taken(self, who: int, subscription: int | None) -> tuple[Any, Reader | None]:
        """Take from the model: number, item, missed, or the answer; and by whom."""
        user, reader = self.users[who], None
        if self.model.broadcasts:
            found: Any = self.model.reader(user) if subscription is None else self.readers[subscription][1]
            if not isinstance(found, Reader):
                return found, None
            reader = found
            return self.model.take_by(reader), reader
        answer = self.model.consume(user) or self.model.take()
        return ((*answer, 0) if isinstance(answer, tuple) else answer), None

    @rule(who=WHO, which=WHICH, now=NOW, way=st.sampled_from(["get", "nowait"]))
    def get(self, who: int, which: int, now: float, way: str) -> None:
        """Take a copy."""
        subscription = self.source(who, which)
        answer, reader = self.taken(who, subscription)
        timeout = now if answer == "empty" else 20
        found = self.fleet[who].do("get", subscription, timeout, way)
        if isinstance(answer, tuple):
            number, item, _ = answer
            assert found == item
            if reader is not None:
                self.model.give_back(reader, number)
            self.model.undone += 1
        else:
            assert found == answer

    @rule(who=WHO, which=WHICH, now=NOW)
    def receive(self, who: int, which: int, now: float) -> None:
        """Take an item in hand, to read it."""
        key, subscription = self.next(), self.source(who, which)
        answer, reader = self.taken(who, subscription)
        found = self.fleet[who].do("receive", key, subscription, now if answer == "empty" else None)
        if isinstance(answer, tuple):
            number, item, missed = answer
            assert found == (*item, number, missed)
            self.receipts[key] = (who, reader, number, item)
            self.model.taken += reader is None
        else:
            assert found == answer

    @precondition(lambda self: self.receipts)
    @rule(which=WHICH)
    def give_back(self, which: int) -> None:
        """Be done with an item; until then it was what it was."""
        key = self.pick(self.receipts, which)
        who, reader, number, item = self.receipts.pop(key)
        assert self.fleet[who].do("give_back", key) == item
        self.model.give_back(reader, number)

    @rule(who=WHO, which=WHICH, most=st.integers(1, 6))
    def walk(self, who: int, which: int, most: int) -> None:
        """Go through what there is by a loop, and leave it before it would wait."""
        subscription = self.source(who, which)
        expected: list[Any] = []
        if self.users[who].closed and subscription is None:
            return
        while len(expected) < most:
            if not self.has_next(who, subscription):
                break
            answer, reader = self.taken(who, subscription)
            expected.append(answer[1])
            self.model.taken += reader is None
            self.model.give_back(reader, answer[0])
        if expected:
            assert self.fleet[who].do("walk", subscription, len(expected)) == expected

    def has_next(self, who: int, subscription: int | None) -> bool:
        """Whether there is an item to be taken at once."""
        if not self.model.broadcasts:
            return bool(self.model.items)
        reader = self.users[who].reader if subscription is None else self.readers[subscription][1]
        return reader is not None and reader.held is None and self.model.behind(reader) > 0

    @rule(who=WHO)
    def task_done(self, who: int) -> None:
        """Say of a copy that it was dealt with, whoever got it."""
        expected = None if self.model.undone else "refused: ValueError"
        self.model.undone = max(0, self.model.undone - 1)
        assert self.fleet[who].do("task_done") == expected

    @rule(who=WHO)
    def join(self, who: int) -> None:
        """Ask whether all is done."""
        drained = self.model.is_drained()
        if self.model.gone and drained:
            return  # until they are found out, there is something that nobody will take
        if not self.model.gone:
            assert self.fleet[who].do("join", 20 if drained else 0) is drained

    # -- waiting

    @precondition(lambda self: hasattr(self, "model") and not self.model.gone)
    @rule(who=WHO, drawn=WHICH, lends=st.booleans())
    def wait_to_put(self, who: int, drawn: int, lends: bool) -> None:  # noqa: FBT001  drawn
        """Put where there is no room: it is done as soon as there is, and not before."""
        if not self.fleet[who].background or self.model.full == "drop-new" or not self._can_make_room(who):
            return
        user, number, length = self.users[who], self.next(), self.length(drawn)
        if (answer := self.model.claim(user)) is None:
            self.model.loans += 1
            assert self.fleet[who].do("loan", number, length, 20) is True
            self.loans[number] = who, user, length
            return
        if answer != "full":
            return
        if lends:
            self.fleet[who].ask("loan", number, length, None)
        else:
            self.fleet[who].ask("put", number, length, None, "put")
        self._wait_until_counted("waiting_to_send")
        while self.model.claim(user) is not None:
            self._make_room(who)
        assert self.fleet[who].answer() is True
        if lends:
            self.loans[number] = who, user, length
            self.model.loans += 1
        else:
            self.model.publish((number, length))

    def _can_make_room(self, who: int) -> bool:
        """Whether others than one who waits can make room."""
        mine = [whose for whose, *_ in (*self.loans.values(), *self.receipts.values())]
        if self.model.broadcasts:
            readers = [user.reader for number, user in enumerate(self.users) if user.reader and number != who]
            readers += [reader for whose, reader in self.readers.values() if whose != who]
            return who not in mine and set(readers) >= set(self.model.readers)
        return who not in mine

    def _make_room(self, who: int) -> None:
        """Let another finish with something."""
        if self.loans:
            self.finish_loan(0, aborts=True)
        elif self.receipts:
            self.give_back(0)
        elif self.model.broadcasts:
            for other, user in enumerate(self.users):
                if other != who and user.reader in self.model.readers and self.model.behind(user.reader):
                    return self._take_one(other, None)
            for key, (other, reader) in self.readers.items():
                if self.model.behind(reader):
                    return self._take_one(other, key)
        else:
            self._take_one((who + 1) % HANDS if not self.users[(who + 1) % HANDS].closed else who, None)
        return None

    def _take_one(self, who: int, subscription: int | None) -> None:
        answer, reader = self.taken(who, subscription)
        if not isinstance(answer, tuple):  # it is one who was closed: have another object
            assert answer == "closed"
            return self.renew(who)
        number, item, _ = answer
        assert self.fleet[who].do("get", subscription, 20, "get") == item
        if reader is not None:
            self.model.give_back(reader, number)
        self.model.undone += 1
        return None

    @rule(who=WHO, other=WHO, which=WHICH, drawn=WHICH, ends=st.sampled_from([False, False, True]))
    def wait_to_take(self, who: int, other: int, which: int, drawn: int, ends: bool) -> None:  # noqa: FBT001  drawn
        """Take where there is nothing: it is done as soon as there is something, or nothing more can come."""
        if not self.fleet[who].background or who == other or self.users[other].closed:
            return
        subscription = self.source(who, which)
        if self.has_next(who, subscription) or not self._has_room():
            return
        answer, reader = self.taken(who, subscription)
        if answer != "empty":
            assert not isinstance(answer, tuple)
            assert self.fleet[who].do("get", subscription, 20, "get") == answer
            return
        self.fleet[who].ask("get", subscription, None, "get")
        self._wait_until_counted("waiting_to_receive")
        if ends:
            self.end(other)
            assert self.fleet[who].answer() == "closed"
            return
        self.put(other, drawn, 0, 20, "put")
        answer = self.model.take() if reader is None else self.model.take_by(reader)
        assert self.fleet[who].answer() == answer[1]
        if reader is not None:
            self.model.give_back(reader, answer[0])
        self.model.undone += 1

    def _has_room(self) -> bool:
        return self.model.in_use() < self.model.slots

    def _wait_until_counted(self, what: str) -> None:
        wait_until(lambda: getattr(self.channel.stats(), what) == 1, 30, lambda: str(self.channel.stats()))

    # -- coming and going

    @precondition(lambda self: self.model.broadcasts)
    @rule(who=WHO)
    def subscribe(self, who: int) -> None:
        """Subscribe explicitly."""
        if len(self.readers) < 5:
            key = self.next()
            assert self.fleet[who].do("subscribe", key) is None
            self.readers[key] = who, self.model.subscribe()

    def _is_idle(self, reader: Reader | None) -> bool:
        return all(each is not reader for _, each, *_ in self.receipts.values())

    @precondition(lambda self: self.readers)
    @rule(which=WHICH, drops=st.booleans())
    def end_subscription(self, which: int, drops: bool) -> None:  # noqa: FBT001  drawn
        """Close a subscription, or drop it: its items are nobody's then."""
        key = self.pick(self.readers, which)
        who, reader = self.readers[key]
        if self._is_idle(reader):
            del self.readers[key]
            self.fleet[who].do("drop_subscription" if drops else "close_subscription", key)
            self.model.leave(reader)
            if drops:
                self.model.gone.append(reader)

    @precondition(lambda self: self.readers)
    @rule(which=WHICH, to=WHO)
    def send_subscription(self, which: int, to: int) -> None:
        """Let a subscription travel to another hand; what it is late for, and has been told of, travels along."""
        key = self.pick(self.readers, which)
        who, reader = self.readers[key]
        if self._is_idle(reader):
            handle = self.fleet[who].do("send_subscription", key)
            self.fleet[to].do("load_subscription", key, handle)
            self.readers[key] = to, reader

    @rule(who=WHO)
    def close(self, who: int) -> None:
        """Close an object, for all hands that have it."""
        user = self.users[who]
        if user.reader is None or self._is_idle(user.reader):
            self.model.close(user)
            self.fleet[who].do("close")

    @rule(who=WHO)
    def renew(self, who: int) -> None:
        """Have another object; the one before is dropped: its process keeps its roles, its own subscription ends."""
        user = self.users[who]
        others = any(each is user for number, each in enumerate(self.users) if number != who)
        has = [whose for whose, *_ in (*self.loans.values(), *self.receipts.values(), *self.readers.values())]
        if who in has:
            return
        self.fleet[who].do("renew")
        self.users[who] = User(user.process)
        if not others:
            user.dropped = True
            if user.reader in self.model.readers:
                self.model.leave(user.reader)
                self.model.gone.append(user.reader)

    @precondition(lambda self: self.count > 20)
    @rule(who=WHO)
    def end(self, who: int) -> None:
        """End the stream for all."""
        self.model.ended = True
        self.fleet[who].do("end")

    # -- what holds after each step

    @precondition(lambda self: hasattr(self, "model"))
    @invariant()
    def the_books_are_those_of_the_model(self) -> None:
        """Every number of `stats` is exact, for everyone."""
        model, stats = self.model, self.channel.stats()
        in_use = model.in_use()
        depth = len(model.items)
        if model.gone:
            assert depth <= stats.depth <= model.slots
        else:
            assert stats.depth == depth
        assert (stats.sent, stats.received, stats.dropped) == (model.tail, model.received, model.dropped)
        assert (stats.lost, stats.redelivered, stats.ended) == (0, 0, model.ended)
        assert (stats.waiting_to_send, stats.waiting_to_receive) == (0, 0)
        hands = sorted(hand for _, hand, _ in stats.held)
        assert hands == ["loan"] * model.loans + ["receive"] * len(self.receipts)
        readers = sorted((each.depth, each.received, each.missed) for each in stats.subscribers if each.pid)
        assert readers == sorted((model.behind(each), each.seen, each.missed) for each in model.readers)
        assert bool(stats.producers) == bool(model.producers)
        assert bool(stats.consumers) == bool(model.consumers)
        for number, hand in enumerate(self.fleet):
            size, full, sizes, missed = hand.do("look")
            reader = self.users[number].reader
            expected = depth if not model.broadcasts else model.behind(reader) if reader in model.readers else 0
            if reader is None or reader in model.readers:
                assert size == expected
            assert full == (in_use == model.slots) or model.gone
            mine = {key: reader for key, (whose, reader) in self.readers.items() if whose == number}
            assert sizes == {key: model.behind(reader) for key, reader in mine.items()}
            assert missed == {key: reader.missed for key, reader in mine.items()}

    def teardown(self) -> None:
        """All that is left can be taken, in order, and then all memory goes."""
        if hasattr(self, "model"):
            for hand in self.fleet:
                hand.do("drop")
            # Loans and receipts that were dropped with their blocks open keep their slots until their process ends.
            del self.channel
            gc.collect()


def _run(store: sa.Store, fleet: list[Any], *, shares: bool, times: float) -> None:
    examples = int(hypothesis.settings.default.max_examples * times)  # type: ignore[union-attr]
    machine = type("Of", (Machine,), {"store": store, "fleet": fleet, "shares": shares})
    try:
        run_state_machine_as_test(machine, settings=hypothesis.settings(max_examples=examples))
    finally:
        for hand in fleet:
            hand.end()
        machine.store = machine.fleet = None  # type: ignore[attr-defined]


def test_a_channel_behaves_as_its_model_in_one_process(store: sa.Store) -> None:
    """Several objects and threads: order, counts, who waits, what was missed, whichever mode and policy; memory goes at the end."""
    before = store.stats().anonymous
    _run(store, [Here(), InThread(), InThread()], shares=True, times=2)
    wait_until(lambda: store.stats().anonymous == before, 10)


@pytest.mark.parametrize(("method", "times"), [("fork", 2), ("spawn", 0.5)])
def test_a_channel_behaves_as_its_model_among_processes(
    store: sa.Store, any_guard: None, method: str, times: float
) -> None:
    """Three processes, told what to do one after the other and while one of them waits; memory goes at the end."""
    before = store.stats().anonymous
    _run(store, [InProcess(get_context(method)) for _ in range(HANDS)], shares=False, times=times)
    wait_until(lambda: store.stats().anonymous == before, 10)
