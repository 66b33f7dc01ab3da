"""Proxies on their way: through queues and arguments to any process, each with a reference that nothing loses."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import textwrap
import threading
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import shmarray as sa
from tests.helpers.processes import Child, reap, wait_until
from tests.hosting.things import ThingProxy, Things

if TYPE_CHECKING:
    from multiprocessing.context import SpawnContext


def count(store: Things) -> int:
    """How many objects live in the host."""
    return store.manager()._number_of_objects()  # type: ignore[attr-defined,no-any-return]


def use(thing: Any, answers: Any) -> None:
    """Use a proxy elsewhere, and send back one that a method gave."""
    answers.put((thing.get(), thing.following().following().get(), thing.following()))


@pytest.mark.core
def test_a_proxy_travels_as_an_argument(start_method: SpawnContext, store: Things) -> None:
    """Given to a process and kept by nobody else, a proxy works there, its methods give proxies, and those come back."""
    answers = start_method.Queue()
    worker = start_method.Process(target=use, args=(store.Chain(5), answers))
    worker.start()
    value, third, following = answers.get(timeout=30)
    worker.join()
    assert (value, third, following.get()) == (5, 7, 6)
    answers.close()
    answers.join_thread()


class Rated(Things):
    """A store of a class of one's own, with an attribute of its own."""

    def __init__(self, rate: float) -> None:
        """Open it."""
        super().__init__(address=("127.0.0.1", 0), authkey=b"key")
        self.rate = rate

    def rated(self, value: float) -> Any:
        """Make something."""
        return self.Thing(self.rate * value)


def make(store: Rated, answers: Any) -> None:
    """Use a store elsewhere as what it is, and send it back."""
    answers.put((store.rated(2).get(), store.address, store))


def test_a_store_of_a_class_of_ones_own_travels_as_one(start_method: SpawnContext) -> None:
    """Its methods, what was registered with it and its attributes are there; what only the owner has is not."""
    with Rated(1.5) as store:
        answers = start_method.Queue()
        worker = start_method.Process(target=make, args=(pickle.loads(pickle.dumps(store)), answers))
        worker.start()
        value, address, back = answers.get(timeout=30)
        worker.join()
        assert (value, address, type(back), back.rate) == (3.0, None, Rated, 1.5)
        again = copy.copy(store)
        assert (type(again), again.rate, again.address, again == store) == (Rated, 1.5, None, True)
        again.close()
        assert (again.closed, store.closed) == (True, False)
        answers.close()
        answers.join_thread()


def look(thing: Any) -> Any:
    """Ask for the value."""
    return thing.get()


def test_a_proxy_travels_to_the_workers_of_a_pool(start_method: SpawnContext, store: Things) -> None:
    """As an argument of `Pool.map`, and as what a worker returns."""
    with start_method.Pool(2) as pool:
        assert pool.map(look, [store.Thing(n) for n in range(6)]) == list(range(6))
        assert pool.apply(copy.copy, (store.Own(9),)).double() == 18
        pool.close()
        pool.join()


def test_a_queue_keeps_what_only_it_has(store: Things) -> None:
    """`put` a proxy, drop it, `get` it: the object has lived on, and goes with the last proxy."""
    queue = store.Queue()
    queue.put(store.Thing(4))
    gc.collect()
    assert count(store) == 1
    thing = queue.get()
    assert thing.get() == 4
    del thing
    wait_until(lambda: count(store) == 0)


def test_a_pickle_may_be_loaded_again(store: Things) -> None:
    """The first load takes the pickle's reference over, others add theirs; when the object has gone, loading says so."""
    data = pickle.dumps(store.Own(1))
    first = pickle.loads(data)
    second = pickle.loads(data)
    assert isinstance(second, ThingProxy)
    del first
    gc.collect()
    assert second.get() == 1
    assert count(store) == 1
    del second
    wait_until(lambda: count(store) == 0)
    with pytest.raises(sa.HostError, match="is gone"):
        pickle.loads(data)


def test_an_unrelated_process_gets_a_proxy() -> None:
    """A process that joins by name, and registered nothing, takes a proxy out of a queue; methods and new proxies work."""
    source = """
    import sys
    import shmarray as sa
    from tests.helpers.processes import report
    queue = sa.connect(sys.argv[1])["queue"]
    thing = queue.get()
    queue.put(thing.following())
    report("done", [thing.get(), thing.following().get()])
    """
    with Things("hosting-travels") as store:
        queue = store.Queue(name="queue")
        queue.put(store.Own(1))
        with Child(textwrap.dedent(source), "hosting-travels") as other:
            assert other.wait_for("done") == [1, 2]
            other.finish().expect()
        assert queue.get().double() == 4
        del queue


def test_a_forked_child_holds_what_its_parent_held(store: Things) -> None:
    """After a bare `os.fork` parent and child each use their proxies, and what one drops the other still has."""
    kept, dropped = store.Thing(1), store.Thing(2)
    assert dropped.get() == 2
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(write)
            os.read(read, 1)
            del kept
            status = 0 if dropped.get() == 2 and dropped.where()[0] else 2
        finally:
            os._exit(status)
    os.close(read)
    del dropped
    gc.collect()
    wait_until(lambda: count(store) == 2)
    os.close(write)
    assert reap(pid) == 0
    wait_until(lambda: count(store) == 1)
    assert kept.get() == 1


def test_forks_of_many_threads_do_not_disturb_each_other(store: Things) -> None:
    """Threads fork while others call and drop: every child finds its proxies alive, and no call is lost."""
    thing = store.Thing(1)
    wrong: list[object] = []

    def fork_often() -> None:
        for _ in range(5):
            mine = store.Thing(2)
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    status = 0 if (mine.get(), thing.get()) == (2, 1) else 2
                finally:
                    os._exit(status)
            del mine
            wrong.append(reap(pid))

    threads = [threading.Thread(target=fork_often) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert thing.get() == 1
    for thread in threads:
        thread.join()
    assert wrong == [0] * 15
    wait_until(lambda: count(store) == 1)


def test_a_killed_process_holds_nothing_any_more(store: Things) -> None:
    """A process with the only proxies of an object is killed: the object goes; a pickle it had sent stays good."""
    source = """
    import pickle, sys
    from tests.helpers.processes import report
    thing, other = pickle.loads(bytes.fromhex(input()))
    report("has", pickle.dumps(other).hex())
    input()
    """
    with Child(textwrap.dedent(source)) as child:
        data = pickle.dumps((store.Thing(1), store.Thing(2)))
        child.tell(data.hex())
        sent = bytes.fromhex(child.wait_for("has"))
        assert count(store) == 2
        child.kill()
    wait_until(lambda: count(store) == 1)
    assert pickle.loads(sent).get() == 2


def test_objects_hold_proxies_of_each_other(store: Things) -> None:
    """A proxy put into an object of the host is a reference like any, and goes with that object."""
    outer = store.Thing(store.Thing([store.Thing(3)]))
    assert outer.get().get()[0].get() == 3
    outer.set(0)
    wait_until(lambda: count(store) == 1)


def test_a_destructor_that_hangs_holds_up_nobody(store: Things) -> None:
    """The last proxy of an object goes, whose `__del__` does not end: others are made, used and dropped meanwhile."""
    clinging, thing = store.Clinging(), store.Thing(1)
    del clinging
    gc.collect()
    wait_until(lambda: count(store) == 1)
    assert thing.get() == 1
    assert pickle.loads(pickle.dumps(thing)).get() == 1


class References(RuleBasedStateMachine):
    """Objects, proxies and pickles beside a model: an object lives exactly as long as something refers to it."""

    store: Things

    @initialize()
    def begin(self) -> None:
        """Have no object."""
        self.proxies: list[tuple[int, Any]] = []
        self.pickles: list[tuple[int, bytes, bool]] = []
        self.number = 0

    @rule()
    def make(self) -> None:
        """A new object."""
        self.number += 1
        self.proxies.append((self.number, self.store.Thing(self.number)))

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        """One proxy less."""
        if self.proxies:
            self.proxies.pop(data.draw(st.integers(0, len(self.proxies) - 1)))

    @rule(data=st.data())
    def dump(self, data: st.DataObject) -> None:
        """A pickle of a proxy."""
        if self.proxies:
            # By its number: what is drawn hypothesis keeps for itself.
            number, proxy = self.proxies[data.draw(st.integers(0, len(self.proxies) - 1))]
            self.pickles.append((number, pickle.dumps(proxy), True))

    @rule(data=st.data())
    def load(self, data: st.DataObject) -> None:
        """A pickle is loaded, for the first time or again."""
        if self.pickles:
            at = data.draw(st.integers(0, len(self.pickles) - 1))
            number, text, _ = self.pickles[at]
            if number in self.alive():
                self.proxies.append((number, pickle.loads(text)))
            else:
                with pytest.raises(sa.HostError):
                    pickle.loads(text)
            self.pickles[at] = (number, text, False)

    @rule()
    def fork(self) -> None:
        """A child is forked, uses what it has and ends."""
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                status = 0 if all(proxy.get() == number for number, proxy in self.proxies) else 2
            finally:
                os._exit(status)
        assert reap(pid) == 0

    def alive(self) -> set[int]:
        """The objects that the model says are there."""
        return {number for number, _ in self.proxies} | {number for number, _, fresh in self.pickles if fresh}

    @invariant()
    def the_host_agrees(self) -> None:
        """As many objects live in the host, and each proxy leads to its own."""
        wait_until(lambda: count(self.store) == len(self.alive()))
        assert all(proxy.get() == number for number, proxy in self.proxies)

    def teardown(self) -> None:
        """Leave no object: what is on its way is loaded and dropped."""
        self.proxies.clear()
        for _, text, fresh in self.pickles:
            if fresh:
                pickle.loads(text)
        self.pickles.clear()
        wait_until(lambda: count(self.store) == 0)


def test_an_object_lives_as_long_as_something_refers_to_it(store: Things) -> None:
    """Whatever is made, dropped, pickled, loaded and forked in whatever order."""
    machine = type("References", (References,), {"store": store})
    default: Any = hypothesis.settings.default
    settings = hypothesis.settings(
        max_examples=default.max_examples // 3, suppress_health_check=list(hypothesis.HealthCheck)
    )
    hypothesis.stateful.run_state_machine_as_test(machine, settings=settings)
