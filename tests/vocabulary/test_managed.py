"""Dicts, lists and namespaces of a store: as a manager's, and as the plain ones."""

from __future__ import annotations

import gc
import os
import pickle
import signal
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import pytest

import shmarray as sa
from tests.helpers.processes import reap, wait_until
from tests.vocabulary import actors, deaths

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import SpawnContext

FORK = get_context("fork")
LARGE = b"x" * 50_000


@pytest.mark.core
def test_a_dict_has_the_methods_of_a_managers() -> None:
    """Items, keys, values, get, pop, popitem, setdefault, update, copy, clear, in, len, iteration, comparison, merging."""
    with sa.Store() as store:
        shared = store.dict([("a", 1)], b=2)
        shared[3] = (4, 5)
        assert (sorted(map(str, shared)), len(shared), "a" in shared, "z" in shared) == (
            ["3", "a", "b"],
            3,
            True,
            False,
        )
        assert shared.keys() == ["a", "b", 3]
        assert shared.values() == [1, 2, (4, 5)]
        assert shared.items() == [("a", 1), ("b", 2), (3, (4, 5))]
        assert (shared.get("a"), shared.get("z"), shared.get("z", 9)) == (1, None, 9)
        assert (shared.pop("a"), shared.pop("a", None)) == (1, None)
        with pytest.raises(KeyError, match="'a'"):
            shared.pop("a")
        with pytest.raises(KeyError):
            shared["a"]
        with pytest.raises(KeyError):
            del shared["a"]
        assert (shared.setdefault("b", 7), shared.setdefault("c", 8)) == (2, 8)
        assert shared.popitem() == ("c", 8)
        shared.update({"d": LARGE}, e=6)
        assert shared | {"b": 0} == {"b": 0, 3: (4, 5), "d": LARGE, "e": 6}
        shared |= {"e": 7}
        assert shared == {"b": 2, 3: (4, 5), "d": LARGE, "e": 7}
        assert shared == store.dict(shared.copy())
        assert shared != {"b": 2}
        assert type(shared.copy()) is dict
        shared.clear()
        assert (len(shared), shared.items(), repr(shared)) == (0, [], "<SharedDict {}>")
        with pytest.raises(KeyError, match="empty"):
            shared.popitem()
        wrongs: list[Any] = [[], set()]
        for wrong in wrongs:
            with pytest.raises(TypeError, match="unhashable"):
                shared[wrong] = 1
        with pytest.raises(TypeError):
            hash(shared)


@pytest.mark.core
def test_a_list_has_the_methods_of_a_managers() -> None:
    """Indices, slices, append, extend, insert, pop, remove, index, count, sort, reverse, copies, sums and products."""
    with sa.Store() as store:
        shared = store.list(range(5))
        plain = list(range(5))
        assert shared[:] == plain
        assert (shared[-1], shared[1:3], shared[::-2], len(shared)) == (4, [1, 2], [4, 2, 0], 5)
        for deed in LIST_DEEDS:
            deed(shared)
            deed(plain)
            assert shared == plain
        assert shared + (1,) == [*plain, 1]  # noqa: RUF005  the sum is what is tested
        assert shared * 2 == 2 * shared == plain * 2
        assert list(reversed(shared)) == plain[::-1]
        assert (shared.index(7), shared.count(7), 7 in shared, 99 in shared) == (
            plain.index(7),
            plain.count(7),
            True,
            False,
        )
        assert repr(shared) == f"<SharedList {plain!r}>"
        for refusal, error in LIST_REFUSALS:
            for target in (shared, plain):
                with pytest.raises(error):
                    refusal(target)
            assert shared == plain


def _iadd(x: Any) -> None:
    x += (7, 8)


def _imul(x: Any) -> None:
    x *= 2


LIST_DEEDS: list[Callable[[Any], object]] = [
    lambda x: x.append(9),
    lambda x: x.extend(iter([7, 7])),
    lambda x: x.insert(0, 8),
    lambda x: x.insert(-1, 6),
    lambda x: x.insert(100, 5),
    lambda x: x.insert(-100, 5),
    lambda x: x.__setitem__(2, 70),
    lambda x: x.__setitem__(-2, 71),
    lambda x: x.__setitem__(slice(1, 3), [1, 2, 3]),
    lambda x: x.__setitem__(slice(3, 1), [4]),
    lambda x: x.__setitem__(slice(None, None, 2), [0] * len(x[::2])),
    lambda x: x.__setitem__(slice(2, 2), x),
    lambda x: x.__delitem__(0),
    lambda x: x.__delitem__(-1),
    lambda x: x.__delitem__(slice(0, 2)),
    lambda x: x.__delitem__(slice(None, None, 3)),
    lambda x: x.__delitem__(slice(-1, None, -4)),
    lambda x: x.pop(),
    lambda x: x.pop(0),
    lambda x: x.remove(max(x)),
    lambda x: x.append(7),
    lambda x: x.append(7),
    lambda x: x.reverse(),
    lambda x: x.sort(),
    lambda x: x.sort(key=lambda value: -value),
    lambda x: x.sort(reverse=True),
    _iadd,
    _imul,
]
LIST_REFUSALS: list[tuple[Callable[[Any], object], type[Exception]]] = [
    (lambda x: x[1000], IndexError),
    (lambda x: x.__setitem__(1000, 1), IndexError),
    (lambda x: x.__delitem__(1000), IndexError),
    (lambda x: x.__setitem__(slice(None, None, 2), [1]), ValueError),
    (lambda x: x["a"], TypeError),
    (lambda x: x.pop(1000), IndexError),
    (lambda x: x.remove("nothing"), ValueError),
    (lambda x: x.index("nothing"), ValueError),
    (lambda x: x.insert("a", 1), TypeError),
    (lambda x: x.extend(5), TypeError),
    (lambda x: x.sort(key=lambda _: 1 // 0), ZeroDivisionError),
]


@pytest.mark.core
def test_a_namespace_has_attributes() -> None:
    """They are set, read and deleted; those that are not there raise AttributeError; underscores are the object's own."""
    with sa.Store() as store:
        shared = store.Namespace(x=1, name="n")
        shared.y = LARGE
        assert (shared.x, shared.name, shared.y) == (1, "n", LARGE)
        del shared.y
        with pytest.raises(AttributeError, match="'y'"):
            shared.y  # noqa: B018  reading is the subject
        with pytest.raises(AttributeError):
            del shared.y
        shared._own = 1
        assert shared._own == 1
        assert not hasattr(pickle.loads(pickle.dumps(shared)), "_own")
        assert repr(shared) == "Namespace(name='n', x=1)"


def test_a_container_that_contains_itself_can_be_shown() -> None:
    """With dots where it comes again, as Python's own; one that is shown twice, but not within itself, is shown twice."""
    with sa.Store() as store:
        lines, settings, names = store.list([1]), store.dict(a=1), store.Namespace(n=1)
        lines.append(lines)
        settings["self"] = settings
        names.other = lines
        lines.append(names)
        assert repr(lines) == "<SharedList [1, <SharedList [...]>, Namespace(n=1, other=<SharedList [...]>)]>"
        assert repr(settings) == "<SharedDict {'a': 1, 'self': <SharedDict {...}>}>"
        plain = store.list([0])
        assert repr(store.list([plain, plain])) == "<SharedList [<SharedList [0]>, <SharedList [0]>]>"


def test_what_one_gets_is_ones_own() -> None:
    """As from a manager: changing it changes nothing until it is put back."""
    with sa.Store() as store:
        shared = store.dict(a=[1])
        shared["a"].append(2)
        assert shared["a"] == [1]
        shared["a"] = [*shared["a"], 2]
        assert shared["a"] == [1, 2]


def test_containers_lie_in_containers() -> None:
    """A dict in a list in a dict: changed through any way, the same; and all of it goes with the outermost."""
    with sa.Store() as store:
        outer = store.dict()
        outer["list"] = store.list([store.dict(x=1)])
        outer["list"][0]["x"] = 2
        outer["list"].append(outer["list"][0])
        outer["list"][1]["y"] = store.ones(2)
        assert outer["list"][0]["x"] == 2
        assert outer["list"][0]["y"].sum() == 2
        del outer["list"]
        gc.collect()
        wait_until(lambda: len(deaths.files_of(store)) == 3, 10, lambda: str(deaths.files_of(store)))
        assert len(outer) == 0
        del outer
        gc.collect()
        wait_until(lambda: not deaths.files_of(store), 10, lambda: str(deaths.files_of(store)))


def test_an_array_lives_while_it_lies_in_a_container() -> None:
    """Put by a process that ended it is there; replaced or removed it goes."""
    with sa.Store() as store:
        table, row = store.dict(), store.list()
        files = len(deaths.files_of(store))

        def put() -> None:
            table["a"] = store.full(5, 1.0)
            row.extend([store.full(5, 2.0), LARGE])

        assert reap(deaths.in_child(put)) == 0
        assert (table["a"].sum(), row[0].sum(), row[1]) == (5, 10, LARGE)
        table["a"] = 1
        del row[:]
        gc.collect()
        wait_until(lambda: len(deaths.files_of(store)) == files + 4, 10, lambda: str(deaths.files_of(store)))


def test_changes_of_several_processes_add_up(start_method: SpawnContext) -> None:
    """With the lock nothing is lost; appended elements are all there, each process's in its order."""
    with sa.Store() as store:
        table, row = store.dict(n=0), store.list()
        processes = [start_method.Process(target=actors.count_up, args=(table, 100)) for _ in range(2)]
        processes += [start_method.Process(target=actors.append_many, args=(row, name, 100)) for name in "ab"]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
            assert process.exitcode == 0
        assert table["n"] == 200
        for name in "ab":
            assert [number for who, number in row if who == name] == list(range(100))


def test_of_several_who_pop_each_gets_another() -> None:
    """No element is given twice, none is lost."""
    with sa.Store() as store:
        row, table, taken = (
            store.list(range(200)),
            store.dict(zip(range(200), range(200), strict=True)),
            store.list(),
        )

        def take() -> None:
            mine = []
            sources: list[Any] = [row, table]
            for source in sources:
                while True:
                    try:
                        mine.append(source.pop() if source is row else source.popitem()[0])
                    except (IndexError, KeyError):
                        break
            taken.extend(mine)

        assert [reap(pid) for pid in [deaths.in_child(take) for _ in range(3)]] == [0] * 3
        assert sorted(taken) == sorted(2 * list(range(200)))


def test_who_is_killed_with_the_lock_held_stops_nobody() -> None:
    """The next has the lock soon, and what was done before the death is there."""
    with sa.Store() as store:
        table = store.dict(n=1)

        def die() -> None:
            with table.get_lock():
                table["n"] = 2
                os.kill(os.getpid(), signal.SIGKILL)

        assert reap(deaths.in_child(die)) == -signal.SIGKILL
        with table.get_lock():
            table["n"] = table["n"] + 1
        assert table == {"n": 3}


def test_a_lock_with_a_timeout_is_the_way_past_who_was_stopped_with_it() -> None:
    """A process stopped in the midst of a change: whoever takes the lock with a timeout is told; with the lock, every call goes through."""
    with sa.Store() as store:
        table, row, held = store.dict(n=1), store.list([1]), store.Semaphore(0)

        def hold(shared: Any) -> None:
            def stop() -> None:
                held.release()
                os.kill(os.getpid(), signal.SIGSTOP)

            shared._within(stop)

        containers: list[Any] = [table, row]
        pids = [deaths.in_child(partial(hold, shared)) for shared in containers]
        for _ in pids:
            assert held.acquire(timeout=20)
        for shared, pid in zip(containers, pids, strict=True):
            assert not shared.get_lock().acquire(timeout=0.05)
            assert shared.get_lock().holder()[0] == pid
            os.kill(pid, signal.SIGCONT)
            assert reap(pid) == 0
        assert table.get_lock().acquire(timeout=20)
        assert row.get_lock().acquire(timeout=20)
        try:
            table["n"] += 1
            table.update(m=LARGE)
            assert (table.pop("n"), table.setdefault("k", 3), table.items()) == (2, 3, [("m", LARGE), ("k", 3)])
            row.append(2)
            row.sort(reverse=True)
            assert (row.pop(), row[:], len(row), list(row)) == (1, [2], 1, [2])
            assert reap(deaths.in_child(lambda: os._exit(table.get_lock().acquire(block=False)))) == 0
        finally:
            row.get_lock().release()
            table.get_lock().release()
        assert reap(deaths.in_child(lambda: table.update(n=1))) == 0
        assert (table["n"], row[:]) == (1, [2])


def test_the_names_of_a_namespace_are_all_its_users() -> None:
    """Those of the methods of other shared objects too: none of them is in the way of an attribute, or mistaken for one."""
    with sa.Store() as store:
        shared: Any = store.Namespace(get_lock=1)
        shared.name, shared.unlink = 2, 3
        assert (shared.get_lock, shared.name, shared.unlink) == (1, 2, 3)
        assert not hasattr(type(shared), "get_lock")


def test_memory_does_not_grow_with_the_number_of_changes() -> None:
    """A journal is written anew when it is full: thousands of changes of few values stay within some kilobytes."""
    with sa.Store() as store:
        table, row = store.dict(), store.list([0])
        for number in range(5000):
            table[number % 3] = number
            row[0] = number
        assert (sorted(table.values()), row[0]) == ([4997, 4998, 4999], 4999)
        gc.collect()
        sizes = [os.path.getsize(os.path.join("/dev/shm", entry)) for entry in deaths.files_of(store)]
        assert sum(sizes) < 200_000


class Key:
    """A key whose comparison runs code."""

    def __init__(self, n: int) -> None:
        """Be number n."""
        self.n = n

    def __hash__(self) -> int:
        """Be the same for all, so that they have to be compared."""
        return 1

    def __eq__(self, other: object) -> bool:
        """Compare; number 13 cannot be compared."""
        if 13 in (self.n, getattr(other, "n", None)):
            message = "thirteen"
            raise ArithmeticError(message)
        return isinstance(other, Key) and self.n == other.n


def test_a_key_that_raises_changes_nothing() -> None:
    """An error out of the code of a key comes out of the call; the dict goes on, for others too."""
    with sa.Store() as store:
        table = store.dict()
        table[Key(1)] = 1
        table[Key(2)] = 2
        with pytest.raises(ArithmeticError):
            table[Key(13)] = 3
        with pytest.raises(ArithmeticError):
            del table[Key(13)]
        assert table[Key(2)] == 2
        other = pickle.loads(pickle.dumps(table))
        assert (len(other), other[Key(1)]) == (2, 1)


def test_a_key_may_not_be_a_shared_object() -> None:
    """The handle in a key could be loaded once: such a key is a TypeError, and nothing is left of it."""
    with sa.Store() as store:
        table, lock = store.dict(a=1), store.Lock()
        files = deaths.files_of(store)
        with pytest.raises(TypeError, match="key"):
            table[lock] = 2
        assert table == {"a": 1}
        assert deaths.files_of(store) == files


def test_a_list_changed_while_it_is_sorted_says_so() -> None:
    """As a plain list: ValueError, and no element is lost."""
    with sa.Store() as store:
        row = store.list([3, 1, 2])
        with pytest.raises(ValueError, match="modified"):
            row.sort(key=lambda value: (row.append(value), value))  # type: ignore[func-returns-value]
        assert row[:3] == [3, 1, 2]
        with pytest.raises(ValueError, match="modified"):
            row.sort(key=lambda value: row.pop() and value)
        other = pickle.loads(pickle.dumps(row))
        assert other == row[:]


def test_a_container_of_a_closed_store_refuses_changes() -> None:
    """StoreClosedError instead of a change that nobody would see."""
    store = sa.Store()
    table, row = store.dict(a=1), store.list([1])
    store.close()
    refusals: list[Callable[[], object]] = [
        lambda: table.__setitem__("b", 1),
        lambda: row.append(1),
        lambda: row.insert(0, LARGE),
    ]
    for refused in refusals:
        with pytest.raises(sa.StoreClosedError):
            refused()


def test_an_interrupted_reader_reads_on_from_the_beginning() -> None:
    """A child forked in the midst of reading a journal applies no change twice."""
    with sa.Store() as store:
        row = store.list()
        other = pickle.loads(pickle.dumps(row))
        row.extend(range(50))
        found: list[int] = []
        kind: Any = type(other)
        apply = kind._apply

        def forking(self: Any, record: Any) -> Any:
            result = apply(self, record)
            if not found and len(self._index) == 20:
                found.append(0)
                found[0] = deaths.in_child(look)
            return result

        def look() -> None:
            kind._apply = apply
            assert other[:] == list(range(50))

        kind._apply = forking
        try:
            assert len(other) == 50
        finally:
            kind._apply = apply
        assert reap(found[0]) == 0
