"""Queues, dicts and lists beside plain Python objects as their models, through several handles and a worker process."""

from __future__ import annotations

import gc
import heapq
import pickle
from typing import TYPE_CHECKING, Any, ClassVar

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

import shmarray as sa
from tests.helpers.processes import reap, wait_until
from tests.vocabulary import deaths

if TYPE_CHECKING:
    from collections.abc import Callable

HANDLES = 3
SIZES = st.sampled_from([0, 1, 15, 16, 17, 1000, 9_000, 32_768, 40_000])
WHO = st.integers(0, HANDLES)
"""Number of a handle; the last means: in a process of its own."""


class Machine(RuleBasedStateMachine):
    """A store, an object in it, three handles to that, and a model."""

    store: ClassVar[sa.Store]
    shared: list[Any]

    def __init__(self) -> None:
        """Make the object and its handles."""
        super().__init__()
        made = self.make()
        self.shared = [made, *(pickle.loads(pickle.dumps(made)) for _ in range(HANDLES - 1))]
        self.number = 0

    def make(self) -> Any:
        """Make the object under test."""
        raise NotImplementedError

    def value(self, size: int, as_array: bool) -> tuple[Any, Any]:  # noqa: FBT001  drawn
        """Give a new value, and how the model has it; each has a number of its own."""
        self.number += 1
        if as_array:
            return (self.number, self.store.full(size % 100, self.number)), (self.number, [self.number] * (size % 100))
        return (self.number, bytes(size)), (self.number, bytes(size))

    def do(self, who: int, deed: Callable[[Any], Any]) -> Any:
        """Do a deed through a handle, or in a child, and give what came of it in the model's form."""
        if who < HANDLES:
            return plain(deed(self.shared[who]))
        answer = self.store.Queue()

        def answer_from_child() -> None:
            answer.put(plain(deed(self.shared[0])))

        assert reap(deaths.in_child(answer_from_child)) == 0
        return answer.get(timeout=20)

    def teardown(self) -> None:
        """Let go of everything: nothing may be left but the control file."""
        self.shared.clear()
        gc.collect()
        wait_until(lambda: not deaths.files_of(self.store), 10, lambda: str(deaths.files_of(self.store)))


def plain(value: Any) -> Any:
    """Give a value with lists for arrays."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, tuple):
        return tuple(plain(part) for part in value)
    return [plain(part) for part in value] if isinstance(value, list) else value


class QueueMachine(Machine):
    """A queue beside a list."""

    kind: ClassVar[str]

    def __init__(self) -> None:
        """Begin with an empty model."""
        super().__init__()
        self.model: list[Any] = []

    def make(self) -> Any:
        """Make a queue."""
        return getattr(self.store, self.kind)()

    def _next(self) -> Any:
        if self.kind == "LifoQueue":
            return self.model.pop()
        return heapq.heappop(self.model) if self.kind == "PriorityQueue" else self.model.pop(0)

    @rule(who=WHO, size=SIZES, as_array=st.booleans(), count=st.sampled_from([1, 1, 2, 40]))
    def put(self, who: int, size: int, as_array: bool, count: int) -> None:  # noqa: FBT001  drawn
        """Put one value or many."""
        pairs = [self.value(size if count < 40 else size % 3000, as_array and count < 40) for _ in range(count)]
        self.do(who, lambda shared: [shared.put(value) for value, _ in pairs])
        for _, model in pairs:
            if self.kind == "PriorityQueue":
                heapq.heappush(self.model, model)
            else:
                self.model.append(model)

    @precondition(lambda self: self.model)
    @rule(who=WHO, count=st.sampled_from([1, 1, 2, 40]))
    def get(self, who: int, count: int) -> None:
        """Take one value or many."""
        count = min(count, len(self.model))
        expected = [self._next() for _ in range(count)]
        assert self.do(who, lambda shared: [shared.get(timeout=20) for _ in range(count)]) == expected

    @invariant()
    def has_as_many(self) -> None:
        """Every handle counts what the model has."""
        assert [shared.qsize() for shared in self.shared] == [len(self.model)] * HANDLES


class DictMachine(Machine):
    """A dict beside a dict."""

    def __init__(self) -> None:
        """Begin with an empty model."""
        super().__init__()
        self.model: dict[Any, Any] = {}

    def make(self) -> Any:
        """Make a dict."""
        return self.store.dict()

    KEYS = st.sampled_from(["a", "b", 1, None, (1, "c"), 2.5])

    @rule(who=WHO, key=KEYS, size=SIZES, as_array=st.booleans())
    def set(self, who: int, key: Any, size: int, as_array: bool) -> None:  # noqa: FBT001  drawn
        """Put a value under a key."""
        value, self.model[key] = self.value(size, as_array)
        self.do(who, lambda shared: shared.__setitem__(key, value))

    @rule(who=WHO, key=KEYS)
    def pop(self, who: int, key: Any) -> None:
        """Take a key out."""
        assert self.do(who, lambda shared: shared.pop(key, None)) == self.model.pop(key, None)

    @rule(who=WHO, sizes=st.lists(SIZES, max_size=4))
    def update(self, who: int, sizes: list[int]) -> None:
        """Put several at once."""
        pairs = {index: self.value(size, as_array=False) for index, size in enumerate(sizes)}
        self.do(who, lambda shared: shared.update({key: value for key, (value, _) in pairs.items()}))
        self.model.update({key: model for key, (_, model) in pairs.items()})

    @precondition(lambda self: self.model)
    @rule(who=WHO)
    def popitem(self, who: int) -> None:
        """Take the last key out."""
        assert self.do(who, lambda shared: shared.popitem()) == self.model.popitem()

    @rule(who=WHO)
    def clear(self, who: int) -> None:
        """Empty it."""
        self.do(who, lambda shared: shared.clear())
        self.model.clear()

    @invariant()
    def is_equal(self) -> None:
        """Every handle shows what the model has, in its order."""
        for shared in self.shared:
            assert plain(shared.items()) == list(self.model.items())


class ListMachine(Machine):
    """A list beside a list."""

    def __init__(self) -> None:
        """Begin with an empty model."""
        super().__init__()
        self.model: list[Any] = []

    def make(self) -> Any:
        """Make a list."""
        return self.store.list()

    PLACES = st.integers(-6, 6)

    @rule(who=WHO, place=PLACES, size=SIZES, as_array=st.booleans())
    def insert(self, who: int, place: int, size: int, as_array: bool) -> None:  # noqa: FBT001  drawn
        """Put an element somewhere."""
        value, model = self.value(size, as_array)
        self.do(who, lambda shared: shared.insert(place, value))
        self.model.insert(place, model)

    @rule(who=WHO, start=PLACES, stop=PLACES, sizes=st.lists(SIZES, max_size=3))
    def set_slice(self, who: int, start: int, stop: int, sizes: list[int]) -> None:
        """Replace a slice."""
        pairs = [self.value(size, as_array=False) for size in sizes]
        self.do(who, lambda shared: shared.__setitem__(slice(start, stop), [value for value, _ in pairs]))
        self.model[start:stop] = [model for _, model in pairs]

    @rule(who=WHO, start=PLACES, stop=PLACES, step=st.sampled_from([1, 2, -1, -2]))
    def delete_slice(self, who: int, start: int, stop: int, step: int) -> None:
        """Remove a slice."""
        self.do(who, lambda shared: shared.__delitem__(slice(start, stop, step)))
        del self.model[start:stop:step]

    @precondition(lambda self: self.model)
    @rule(who=WHO, number=st.integers(0, 100), size=SIZES, as_array=st.booleans())
    def set(self, who: int, number: int, size: int, as_array: bool) -> None:  # noqa: FBT001  drawn
        """Replace an element."""
        place = number % len(self.model)
        value, self.model[place] = self.value(size, as_array)
        self.do(who, lambda shared: shared.__setitem__(place, value))

    @precondition(lambda self: self.model)
    @rule(who=WHO, number=st.integers(0, 100))
    def pop(self, who: int, number: int) -> None:
        """Take an element out."""
        place = number % len(self.model)
        assert self.do(who, lambda shared: shared.pop(place)) == self.model.pop(place)

    @rule(who=WHO)
    def reverse(self, who: int) -> None:
        """Turn it round."""
        self.do(who, lambda shared: shared.reverse())
        self.model.reverse()

    @rule(who=WHO)
    def sort(self, who: int) -> None:
        """Sort by number."""
        self.do(who, lambda shared: shared.sort(key=lambda value: value[0]))
        self.model.sort(key=lambda value: value[0])

    @invariant()
    def is_equal(self) -> None:
        """Every handle shows what the model has."""
        for shared in self.shared:
            assert plain(shared[:]) == self.model


class RowMachine(Machine):
    """A ShareableList beside a list."""

    FIRST: ClassVar[list[Any]] = [0, 1.5, None, True, "a text of some length", b"bytes\0\0"]

    def __init__(self) -> None:
        """Begin with the same values."""
        super().__init__()
        self.model = list(self.FIRST)

    def make(self) -> Any:
        """Make a list of fixed length."""
        return self.store.ShareableList(self.FIRST)

    VALUES = st.one_of(
        st.integers(-(1 << 63), (1 << 63) - 1),
        st.floats(allow_nan=False),
        st.none(),
        st.booleans(),
        st.text(max_size=8),
        st.binary(max_size=8),
    )

    @rule(who=WHO, place=st.integers(-6, 5), value=VALUES)
    def set(self, who: int, place: int, value: Any) -> None:
        """Replace a value; one that does not fit changes nothing."""
        if isinstance(value, str) and len(value.encode("utf-8", "surrogatepass")) > 8:
            value = value[:2]
        self.do(who, lambda shared: shared.__setitem__(place, value))
        self.model[place] = value

    @invariant()
    def is_equal(self) -> None:
        """Every handle shows what the model has, with its types."""
        for shared in self.shared:
            assert [(type(value), value) for value in shared] == [(type(value), value) for value in self.model]


def _run(machine: type[Machine]) -> None:
    """Run a machine in a store of its own, with fewer examples than others: each has forks."""
    fewer = hypothesis.settings(max_examples=hypothesis.settings.default.max_examples // 3)  # type: ignore[union-attr]
    with sa.Store() as store:
        machine.store = store
        try:
            run_state_machine_as_test(machine, settings=fewer)
        finally:
            del machine.store


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue", "LifoQueue", "PriorityQueue"])
def test_a_queue_behaves_as_its_model(kind: str) -> None:
    """Order and counts, small and large values and arrays, while arenas grow and shrink; at the end nothing is left."""
    _run(type(kind, (QueueMachine,), {"kind": kind}))


@pytest.mark.parametrize("machine", [DictMachine, ListMachine, RowMachine])
def test_a_container_behaves_as_its_model(machine: type[Machine]) -> None:
    """Every handle, here and in another process, shows the same after each step; at the end nothing is left."""
    _run(machine)
