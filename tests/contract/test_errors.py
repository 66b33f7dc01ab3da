"""Bad input: each state of the world has its own typed error, with facts and the remedy, and leaves nothing behind."""

from __future__ import annotations

import copy
import os
import pickle
import textwrap
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shmarray as sa
from tests.helpers.processes import Child, run_script, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

OBJECTS: list[Any] = [
    object, "O", np.dtypes.StringDType(), np.dtypes.StringDType(na_object=None), [("a", object)], ("O", (2,)),
    [("a", "i4"), ("b", [("c", "f8"), ("d", [("e", "O", 2)])])],
]  # fmt: skip
BAD_NAMES: list[tuple[Any, str]] = [
    ("", "empty"), ("a\0b", "control"), ("\n", "control"), ("tab\t", "control"), ("\x7f", "control"), ("\x85", "control"),
    ("\ud800", "surrogate"), ("x" * 256, "256 bytes"), ("é" * 128, "256 bytes"), (5, "int"), (b"bytes", "bytes"), (("a",), "tuple"),
]  # fmt: skip
BAD_SHAPES: list[Any] = [
    -1, (2, -3), 1.5, (1, 2.0), "3", b"3", None, (None,), ((1, 2), 3), [[1]], (1,) * 65, 2**62, (2**40, 2**40), 2**64, 1 + 0j,
    {2, 3}, frozenset([2]), {2: 3},
]  # fmt: skip


def assert_sound(error: sa.ShmArrayError, *builtins: type[BaseException]) -> None:
    """Check what holds for every error: its parents, its facts, its remedy, and that it crosses processes whole."""
    assert isinstance(error, sa.ShmArrayError)
    for builtin in builtins:
        assert isinstance(error, builtin)
    assert error.remedy
    assert str(error).splitlines()[-1] == error.remedy.splitlines()[-1]
    assert error.summary in str(error)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for again in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error)):
            assert type(again) is type(error)
            assert str(again) == str(error)
            assert again.facts == error.facts
            for name, value in error.facts.items():
                assert getattr(again, name) == value


def refused(kind: type[sa.ShmArrayError], act: Callable[[], object], *builtins: type[BaseException]) -> Any:
    """Run what must be refused; returns the error, seen to be sound."""
    with pytest.raises(kind) as caught:
        act()
    error = caught.value
    assert_sound(error, *builtins)
    return error.with_traceback(None)


def assert_empty(store: sa.Store) -> None:
    """Check from outside that nothing is in the store but itself, and what is kept for the next small arrays."""
    store.trim()
    entries = [name for name in os.listdir(store.stats().directory) if f".{store.id}." in name]
    assert sorted(name.rpartition(".")[2] for name in entries) in (["ctl"], ["dir"])


@pytest.mark.core
def test_a_dtype_of_python_objects_is_refused(store: sa.Store) -> None:
    """`object` and StringDType, also deep inside a struct: DTypeError names dtype and field, says what to do; nothing stays."""
    for dtype in OBJECTS:
        array = np.zeros(2, dtype)
        acts: list[Callable[[], object]] = [
            partial(store.zeros, 3, dtype), partial(store.empty, 3, dtype, name="x"), partial(store.full, 2, 0, dtype),
            partial(store.put, array), partial(store.zeros_like, array), partial(store.__setitem__, "x", array),
            partial(store.put, {"deep": [array]}, name="x"), partial(store.ones_like, np.ones(3), dtype),
        ]  # fmt: skip
        for act in acts:
            error = refused(sa.DTypeError, act, TypeError)
            assert type(error.dtype) is str
        nested = np.dtype(dtype).names is not None
        assert bool(error.field) == nested
    error = refused(sa.DTypeError, lambda: store.zeros(1, OBJECTS[6]), TypeError)
    assert error.field == "b.d.e"
    refused(sa.DTypeError, lambda: store.full(3, object()), TypeError)
    refused(sa.DTypeError, lambda: store.put({1, 2}), TypeError)
    assert_empty(store)


def test_a_dtype_that_numpy_does_not_know_is_numpys_error(store: sa.Store) -> None:
    """What is no dtype at all raises what NumPy raises."""
    unknown: list[Any] = ["nonsense", "f3", [("a",)], 5]
    for wrong in unknown:
        for act in (np.dtype, partial(store.zeros, 3)):
            with pytest.raises((TypeError, ValueError)):
                act(wrong)
    assert_empty(store)


@pytest.mark.core
def test_a_bad_name_is_refused_with_the_reason(store: sa.Store) -> None:
    """Wherever a name is given to an array or a store: ArrayNameError carries the name, and the message why not."""
    for name, reason in BAD_NAMES:
        acts: list[Callable[[], object]] = [
            partial(store.zeros, 3, name=name), partial(store.put, np.ones(3), name=name), partial(store.put, [1, 2], name=name),
            partial(store.ones_like, [1], name=name), partial(store.__setitem__, name, np.ones(3)), partial(store.full, 2, 2, name=name),
            partial(sa.Store, name), partial(sa.connect, name),
        ]  # fmt: skip
        for act in acts:
            error = refused(sa.ArrayNameError, act, ValueError)
            assert error.name == name
            assert reason in error.summary
        for look in (store.__getitem__, store.__delitem__, store.pop):
            with pytest.raises((sa.ArrayNameError, KeyError)):
                look(name)
    assert_empty(store)


@pytest.mark.core
def test_a_shape_that_cannot_be_is_refused(store: sa.Store) -> None:
    """Negative, absurd, not integers, too many dimensions: ShapeError carries the shape; nothing is allocated."""
    for shape in BAD_SHAPES:
        acts: list[Callable[[], object]] = [
            partial(store.zeros, shape), partial(store.empty, shape, "f8", "F", name="x"), partial(store.full, shape, 1.0),
        ]  # fmt: skip
        for act in acts:
            error = refused(sa.ShapeError, act, ValueError)
            assert error.shape in (shape, (shape,))
        if shape is not None:
            refused(sa.ShapeError, partial(store.zeros_like, np.ones(1), shape=shape), ValueError)
    assert_empty(store)


@pytest.mark.core
def test_an_error_crosses_processes_even_with_a_fact_that_does_not(memory_store: sa.Store) -> None:
    """What the user gave may be anything; the error about it still pickles, and says the same at the other end."""
    bad: Any = {"a": 1}.items()
    acts: list[Callable[[], object]] = [
        lambda: memory_store.zeros(bad),
        lambda: memory_store.zeros(3, name=bad),
        lambda: sa.Store(bad),
    ]
    for act in acts:
        with pytest.raises(sa.ShmArrayError) as caught:
            act()
        again = pickle.loads(pickle.dumps(caught.value))
        assert (type(again), str(again)) == (type(caught.value), str(caught.value))
        assert set(again.facts) == set(caught.value.facts)


def test_more_than_there_is_is_refused_before_a_byte_is_taken(store: sa.Store) -> None:
    """A petabyte is a shape, but more than there is: StoreFullError, a MemoryError, says how much there would be."""
    error = refused(sa.StoreFullError, lambda: store.zeros(1 << 47), MemoryError)
    assert error.asked >= 1 << 50
    assert 0 < error.free < error.asked
    assert error.limit < error.asked
    assert type(error.biggest) is list
    assert_empty(store)


def test_a_name_that_exists_is_not_taken_over(store: sa.Store) -> None:
    """ArrayExistsError, a FileExistsError, for every constructor; the array that is there is not touched."""
    old = store.full(3, 7, name="x")
    makers: list[Callable[[], object]] = [
        lambda: store.zeros(5, name="x"), lambda: store.put(np.ones(3), name="x"), lambda: store.put([np.ones(3)], name="x"),
        lambda: store.full_like(old, 1, name="x"),
    ]  # fmt: skip
    for act in makers:
        error = refused(sa.ArrayExistsError, act, FileExistsError, OSError)
        assert error.name == "x"
        assert error.errno == 17
        assert "store['x'] = " in error.remedy
    assert store["x"].tolist() == old.tolist() == [7, 7, 7]
    stats = store.stats()
    assert (stats.named, stats.anonymous, stats.drafts) == (1, 0, 0)


def test_a_name_that_does_not_exist_is_a_key_error_and_a_missing_file(store: sa.Store) -> None:
    """ArrayNotFoundError names the array and says how to see what there is."""
    for act in (lambda: store["x"], lambda: store.__delitem__("x")):
        error = refused(sa.ArrayNotFoundError, act, KeyError, FileNotFoundError, LookupError, OSError)
        assert (error.name, error.errno) == ("x", 2)
        assert "list(store)" in error.remedy


@pytest.mark.core
def test_a_handle_of_a_deleted_array_is_refused(store: sa.Store) -> None:
    """However the array went, by name, scope, unlink or replacement: never another array's bytes, always a typed error."""

    def published() -> Any:
        store["x"] = np.zeros(3)
        return store["x"]

    ends: dict[str, Callable[[Any], object]] = {
        "del": lambda _: store.__delitem__("x"),
        "unlink": lambda a: a.unlink(),
        "scope": lambda a: a.__exit__(None, None, None),
        "replaced": lambda _: store.__setitem__("x", np.ones(3)),
        "deleted and made again": lambda _: (store.__delitem__("x"), store.ones(3, name="x")),
        "clear": lambda _: store.clear(),
    }
    for label, end in ends.items():
        array = published()
        handle = pickle.dumps(array[1:])
        end(array)
        for _ in range(2):
            error = refused(sa.ArrayNotFoundError, partial(pickle.loads, handle), KeyError, FileNotFoundError)
            assert error.name == "x", label
        refused(sa.ArrayNotFoundError, partial(pickle.dumps, array), KeyError)
        assert array.tolist() == [0, 0, 0], label
        del array
        refused(sa.ArrayNotFoundError, partial(pickle.loads, handle), KeyError)
        store.clear()
    anonymous = store.zeros(3)
    handle = pickle.dumps(anonymous)
    anonymous.unlink()
    error = refused(sa.ArrayNotFoundError, lambda: pickle.loads(handle), KeyError)
    assert error.name is None
    del anonymous
    refused(sa.ArrayNotFoundError, lambda: pickle.loads(handle), KeyError)
    tree = store.put([np.ones(2)], name="tree")
    handle = pickle.dumps(tree)
    del store["tree"]
    refused(sa.ArrayNotFoundError, lambda: pickle.loads(handle), KeyError)
    refused(sa.ArrayNotFoundError, lambda: pickle.dumps(tree[0]), KeyError)
    assert_empty(store)


def test_a_handle_of_an_array_whose_holders_have_gone_is_refused(store: sa.Store) -> None:
    """An anonymous array given up by `release_unclaimed` is gone for its handles too."""
    handle = pickle.dumps(store.zeros(3))
    assert store.release_unclaimed() == 1
    error = refused(sa.ArrayNotFoundError, lambda: pickle.loads(handle), KeyError)
    assert error.name is None
    assert_empty(store)


@pytest.mark.core
def test_a_closed_store_refuses_everything(place: str | None) -> None:
    """Every method says StoreClosedError, a ValueError; so do handles to it; what is held stays valid."""
    store = sa.Store(directory=place)
    named, anonymous, tree = store.zeros(3, name="x"), store.ones(3), store.put([np.ones(2)], name="t")
    handles = [pickle.dumps(each) for each in (store, named, anonymous, tree, tree[0])]
    store.close()
    acts: dict[str, Callable[[], object]] = {
        "empty": lambda: store.empty(3), "zeros": lambda: store.zeros(3), "ones": lambda: store.ones(3, name="n"),
        "full": lambda: store.full(3, 1), "empty_like": lambda: store.empty_like(named), "zeros_like": lambda: store.zeros_like(named),
        "ones_like": lambda: store.ones_like(named), "full_like": lambda: store.full_like(named, 1), "put": lambda: store.put(named),
        "put a tree": lambda: store.put([1]), "get item": lambda: store["x"], "set item": lambda: store.__setitem__("x", named),
        "del item": lambda: store.__delitem__("x"), "in": lambda: "x" in store, "iter": lambda: iter(store), "len": lambda: len(store),
        "bool": lambda: bool(store), "list": lambda: list(store.items()), "get": lambda: store.get("x"), "pop": lambda: store.pop("x"),
        "clear": store.clear, "setdefault": lambda: store.setdefault("x", named), "popitem": store.popitem, "stats": store.stats,
        "update": lambda: store.update(a=named),
        "check": store.check, "release_unclaimed": store.release_unclaimed, "manager": store.manager, "enter": store.__enter__,
        "pickle the store": lambda: pickle.dumps(store), "pickle named": lambda: pickle.dumps(named),
        "pickle anonymous": lambda: pickle.dumps(anonymous), "pickle a tree": lambda: pickle.dumps(tree),
    }  # fmt: skip
    for handle in handles:
        acts[f"load {len(acts)}"] = partial(pickle.loads, handle)
    for name, act in acts.items():
        error = refused(sa.StoreClosedError, act, ValueError)
        assert error.dead is False, name
        assert store.id in error.summary, name
    assert (named.sum(), anonymous.sum(), tree[0].sum()) == (0, 3, 2)
    anonymous += 1
    named.unlink()
    store.close()


def test_a_store_that_is_not_there_cannot_be_joined(place: str | None) -> None:
    """Never opened, or closed: StoreNotFoundError, a FileNotFoundError, with the name."""
    name = "contract-nowhere"
    assert refused(sa.StoreNotFoundError, lambda: sa.connect(name), FileNotFoundError).name == name
    sa.Store(name, directory=place).close()
    assert refused(sa.StoreNotFoundError, lambda: sa.connect(name), FileNotFoundError).name == name


def test_the_name_of_a_living_store_cannot_be_taken(place: str | None) -> None:
    """StoreExistsError, a FileExistsError, names the owner; the living store goes on."""
    with sa.Store("contract-taken", directory=place) as store:
        store["x"] = np.ones(3)
        for directory in (None, place):
            error = refused(
                sa.StoreExistsError, partial(sa.Store, "contract-taken", directory=directory), FileExistsError
            )
            assert (error.name, error.owner) == ("contract-taken", os.getpid())
        assert store["x"].sum() == 3
        assert sa.connect("contract-taken")["x"].sum() == 3


OWNER = """
import sys
import numpy as np, shmarray as sa, pickle
from tests.helpers.processes import report
store = sa.Store("contract-dies", directory=sys.argv[1] or None)
store["x"] = np.arange(3)
anonymous = store.put(np.ones(3))
report("ready", [pickle.dumps(each).hex() for each in (store, store["x"], anonymous)])
input()
"""


def test_a_store_whose_owner_was_killed_says_so(place: str | None) -> None:
    """Held views stay valid; creating, looking up and loading say StoreClosedError with `dead`; its name is free again."""
    with Child(OWNER, place or "") as owner:
        handles = [pickle.loads(bytes.fromhex(text)) for text in owner.wait_for("ready")]
        store, named, anonymous = handles
        again = pickle.dumps(named)
        owner.kill()
        wait_until(lambda: store.closed, 5, "a participant does not notice the owner's death")
        acts: list[Callable[[], object]] = [
            lambda: store.zeros(3), lambda: store["x"], lambda: len(store), lambda: store.__setitem__("y", named), store.stats,
            lambda: pickle.dumps(named), lambda: pickle.dumps(anonymous), lambda: pickle.loads(again), lambda: pickle.dumps(store),
        ]  # fmt: skip
        for act in acts:
            assert refused(sa.StoreClosedError, act, ValueError).dead is True
        assert (named.sum(), anonymous.sum()) == (3, 3)
        named += 1
        named.unlink()
        refused(sa.StoreNotFoundError, lambda: sa.connect("contract-dies"), FileNotFoundError)
        with sa.Store("contract-dies", directory=place) as new:
            assert list(new) == []
            refused(sa.StoreClosedError, lambda: pickle.loads(again), ValueError)
        store.close()


@pytest.mark.core
def test_wrong_arguments_of_a_store_are_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A capacity that is no positive number of bytes, a directory that is none: the builtin error, and no store is left."""
    folder = tmp_path_factory.mktemp("arguments")
    (folder / "file").touch()
    wrong: list[tuple[type[Exception], dict[str, Any]]] = [
        (ValueError, {"capacity": 0}), (ValueError, {"capacity": -1}), (TypeError, {"capacity": "1G"}), (TypeError, {"capacity": 1.5}),
        (TypeError, {"capacity": True}), (TypeError, {"capacity": None, "directory": 5}), (TypeError, {"directory": b"/tmp"}),
        (FileNotFoundError, {"directory": folder / "nowhere"}), (NotADirectoryError, {"directory": folder / "file"}),
        (NotADirectoryError, {"directory": str(folder / "file" / "below")}), (FileNotFoundError, {"directory": ""}),
        (OSError, {"directory": "/proc"}),
    ]  # fmt: skip
    for kind, options in wrong:
        with pytest.raises((kind, FileNotFoundError) if kind is NotADirectoryError else kind) as caught:
            sa.Store(**options)
        assert str(caught.value)
        caught.value.with_traceback(None)
    for good in (folder, str(folder), np.int64(1 << 20)):
        options = {"capacity": good} if isinstance(good, np.integer) else {"directory": good}
        with sa.Store(**options) as store:
            store.zeros(3)
    assert sorted(os.listdir(folder)) == ["file"]


def test_a_store_of_another_user_is_refused() -> None:
    """A handle that another user got hold of: a clear CorruptBlockError, whatever is in the file, and nothing is touched."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    script = """
    import encodings.ascii, os, pickle, sys
    import numpy as np, numpy.ma, shmarray as sa
    receive, send = os.pipe()
    done, finish = os.pipe()
    pid = os.fork()                                  # before there is a store: the other user has nothing but the handles
    if pid == 0:
        os.close(send), os.close(done)
        os.setgid(65534), os.setuid(65534)
        for handle in pickle.load(os.fdopen(receive, "rb")):
            try:
                print("loaded", pickle.loads(handle), flush=True)
            except sa.CorruptBlockError as error:
                assert error.remedy and "user 0" in str(error), str(error)
                assert isinstance(error, OSError)
        try:
            sa.connect("contract-mine")
            print("connected", flush=True)
        except sa.StoreNotFoundError:
            pass
        os._exit(0)
    os.close(receive), os.close(finish)
    with sa.Store("contract-mine") as store:
        array = store.put(np.ones(3), name="x")
        handles = [pickle.dumps(each) for each in (store, array, store.put([array]), store.zeros(3), array)]
        with os.fdopen(send, "wb") as file:
            pickle.dump(handles, file)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert store["x"].sum() == 3
        assert store.check() == []
        assert store.stats().in_flight == 2
    """
    assert run_script(textwrap.dedent(script)).expect() == ""
