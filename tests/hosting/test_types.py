"""Types of a user's own: registered with a class of stores, made in the host, used by proxies."""

from __future__ import annotations

import os
import textwrap
import threading
from multiprocessing.managers import RemoteError
from typing import Any

import numpy as np
import pytest

import shmarray as sa
from tests.helpers.processes import run_script
from tests.hosting.things import Thing, ThingProxy, Things


@pytest.mark.core
def test_a_class_of_a_module_lives_in_the_host(common: Things) -> None:
    """A registered class is made once, in a process that is a child of the guardian, and keeps its state there."""
    thing = common.Thing(3)
    thing.set(thing.get() + 1)
    assert thing.get() == 4
    pid, parent = thing.where()
    assert pid != os.getpid()
    assert parent == common.guardian_pid
    assert common.Thing().where() == (pid, parent)
    assert "Thing" in str(thing)


@pytest.mark.core
def test_a_class_of_the_main_module_is_found() -> None:
    """A class that stands in the script itself lives in the host, and the script's guarded part does not run there."""
    source = """
    import shmarray as sa
    class Counter:
        def __init__(self): self.n = 0
        def up(self): self.n += 1; return self.n
    sa.Store.register("Counter", Counter)
    if __name__ == "__main__":
        with sa.Store() as store:
            counter = store.Counter()
            print(counter.up(), counter.up())
    """
    assert run_script(textwrap.dedent(source)).expect() == "1 2\n"


def test_a_program_without_a_guard_is_told_so() -> None:
    """Without `if __name__ == "__main__"` a class of the script gives an error with the remedy, and what needs none works."""
    source = """
    import shmarray as sa
    class Counter: pass
    sa.Store.register("Counter", Counter)
    store = sa.Store()
    print(store.manager().list([7])[:])
    try:
        store.Counter()
    except sa.HostError as error:
        print(error.remedy.split(",")[0])
    store.close()
    """
    said = run_script(textwrap.dedent(source)).expect()
    assert said == '[7]\nGuard what the program does by `if __name__ == "__main__":`\n'


def test_a_main_module_that_does_not_exist_is_said_to_be_missing() -> None:
    """A class that was typed at a prompt cannot be found by another process; the error says what to do."""
    source = """
    import sys, shmarray as sa
    class Counter: pass
    sa.Store.register("Counter", Counter)
    del sys.modules["__main__"].__file__
    with sa.Store() as store:
        try:
            store.Counter()
        except sa.HostError as error:
            print(error.remedy)
    """
    assert "into a module of its own" in run_script(textwrap.dedent(source)).expect()


def test_only_exposed_methods_can_be_called(common: Things) -> None:
    """With `exposed` the proxy has these methods alone, and the host refuses others whoever asks."""
    narrow = common.Narrow(5)
    assert narrow.get() == 5
    assert not hasattr(narrow, "set")
    with pytest.raises(AttributeError, match="exposed are get"):
        narrow._callmethod("set", (1,))


def test_a_proxy_type_of_ones_own_is_used(common: Things) -> None:
    """With `proxytype` what comes back is an instance of it, also from a method, and its own methods work."""
    own = common.Own(4)
    assert isinstance(own, ThingProxy)
    assert own.double() == 8
    following = own.following()
    assert isinstance(following, ThingProxy)
    assert following.double() == 10


def test_what_a_method_makes_may_stay_in_the_host(common: Things) -> None:
    """With `method_to_typeid` a method gives a proxy, whose methods may do so again."""
    end = common.Chain(1).following().following()
    assert end.get() == 3
    assert not isinstance(end, Thing)


def test_a_type_without_a_callable_takes_the_object_itself(common: Things) -> None:
    """Registered without a callable, the one argument is what lives in the host."""
    given = common.Given(Thing(8))
    assert given.get() == 8
    with pytest.raises(TypeError, match="without a callable"):
        common.Given(1, 2)


def test_what_cannot_be_named_cannot_be_sent() -> None:
    """A lambda, or a class inside a function, gives a TypeError at the call that says what to do."""

    class Local:
        pass

    class Mine(Things):
        Nameless: Any
        Local: Any

    Mine.register("Nameless", lambda: 3)
    Mine.register("Local", Local)
    with Mine() as store:
        for make in (store.Nameless, store.Local):
            with pytest.raises(TypeError, match="top level of a module"):
                make()
        with pytest.raises(TypeError, match="pickle"):
            store.Thing(threading.Lock())
        assert store.Thing(1).get() == 1


def test_a_type_cannot_hide_what_a_store_has() -> None:
    """A typeid that is an attribute of a store is refused, as long as a method for it is asked for; another may be given anew."""

    class Mine(sa.Store):
        Mine: Any

    for taken in ("put", "Pool", "manager", "close", "keys", "_member"):
        with pytest.raises(ValueError, match="choose another"):
            Mine.register(taken, Thing)
    Mine.register("put", Thing, create_method=False)
    Mine.register("Mine", dict)
    Mine.register("Mine", Thing)
    assert not hasattr(sa.Store, "Mine")
    with Mine() as store:
        assert store.Mine(2).get() == 2
    wrong: list[dict[str, Any]] = [
        {"typeid": 3, "callable": Thing},
        {"typeid": "A", "callable": 3},
        {"typeid": "A", "callable": Thing, "proxytype": 3},
        {"typeid": "A", "callable": Thing, "exposed": [3]},
        {"typeid": "A", "callable": Thing, "method_to_typeid": {"get": 3}},
    ]
    for arguments in wrong:
        with pytest.raises(TypeError):
            Mine.register(**arguments)


def test_a_subclass_has_the_types_of_its_parents() -> None:
    """Types of a parent class are there, also those registered later; those of a child are not the parent's."""

    class Parent(sa.Store):
        Late: Any

    class Child(Parent):
        Early: Any

    Child.register("Early", Thing)
    Parent.register("Late", Thing)
    with Child() as store:
        assert (store.Early(1).get(), store.Late(2).get()) == (1, 2)
    assert not hasattr(Parent, "Early")


def test_errors_of_the_type_come_as_themselves(common: Things) -> None:
    """What constructor or method raise is raised here; an error that cannot be sent comes as text, and nothing ends by it."""
    with pytest.raises(ValueError, match="no value"):
        common.Thing(None)
    thing = common.Thing([1])
    with pytest.raises(TypeError):
        thing.following()
    with pytest.raises(RemoteError, match="StubbornError"):
        thing.fail()
    with pytest.raises(RemoteError, match="left"):
        thing.leave()
    assert thing.get() == [1]


def test_arrays_pass_as_handles_both_ways(common: Things) -> None:
    """An array given to an object in the host is the same memory there; what it gives back is the same memory here."""
    array = common.ones(1000)
    thing = common.Thing(array)
    assert thing.place() == array.block_name
    array[0] = 7
    back = thing.get()
    assert back[0] == 7
    back[1] = 8
    assert array[1] == 8
    thing.set(np.arange(3))
    assert thing.get().sum() == 3


def test_a_process_that_connects_makes_objects_too() -> None:
    """In an unrelated process that registered the same type, its store makes objects in the same host."""
    source = """
    import sys
    import shmarray as sa
    from tests.hosting.things import Thing
    sa.Store.register("Other", Thing)
    other = sa.connect(sys.argv[1]).Other(6)
    print(other.get(), other.where()[0])
    """
    with Things("hosting-connects") as store:
        host = store.Thing().where()[0]
        assert run_script(textwrap.dedent(source), "hosting-connects").expect() == f"6 {host}\n"
