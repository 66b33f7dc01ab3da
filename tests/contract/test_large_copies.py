"""Large arrays are copied by several threads, into the store and out of it: the same bytes, and no thread stays."""

from __future__ import annotations

import os
import pickle
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shmarray as sa
from tests.helpers.copies import none_is_left, record_starts
from tests.helpers.processes import reap, run_script, wait_until
from tests.helpers.sweeps import in_child

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIDE = 1500
"""A square of that many numbers of eight bytes is more than is copied by one thread."""


def sources() -> dict[str, np.ndarray[Any, Any]]:
    """Large arrays in all orders."""
    square = np.arange(SIDE * SIDE, dtype=np.int64).reshape(SIDE, SIDE)
    return {
        "C": square,
        "Fortran": square.T,
        "in steps": np.arange(SIDE * SIDE * 2, dtype=np.int64).reshape(SIDE, 2 * SIDE)[:, ::2],
        "axes exchanged": square.reshape(SIDE, 50, SIDE // 50).transpose(1, 0, 2),
        "repeated": np.broadcast_to(square[0], (SIDE, SIDE)),
        "fields": np.resize(np.arange(251, dtype="u1"), 18_000_000).view([("a", "u1"), ("b", "<f8")]),
        "not writable": pickle.loads(pickle.dumps(square)).view(),
    }


SOURCES = sources()
SOURCES["not writable"].flags.writeable = False


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Threads that are started from now on."""
    return record_starts(monkeypatch)


@pytest.mark.core
@pytest.mark.parametrize("name", SOURCES)
def test_a_large_array_put_by_threads_is_the_array(name: str, started: list[int]) -> None:
    """Into fresh memory, into memory that was used before, and out again by `copy`; other threads took part in each."""
    source = SOURCES[name]
    with sa.Store(copy_threads=2) as store:
        for _ in range(3):
            array = store.put(source)
            assert array.tobytes("A") == source.copy("K").tobytes("A")
            assert array.strides == source.copy("K").strides
            assert started
            started.clear()
            private = array.copy("K")
            assert private.tobytes("A") == source.copy("K").tobytes("A")
            assert started
            started.clear()
            del array
    wait_until(none_is_left)


@pytest.mark.parametrize("way", ["itself", "its bytes", "strided"])
def test_what_lies_in_a_file_that_is_cut_off_is_an_error_and_no_signal(way: str, tmp_path: Path) -> None:
    """However the array came to be over the mapping: it is copied by system call, and no thread helps."""
    path = tmp_path / "numbers"
    SOURCES["C"].tofile(path)
    mapped = np.memmap(path, np.int64, "r+", shape=(SIDE, SIDE))
    tricks: Any = np.lib.stride_tricks
    ways: dict[str, Callable[[], Any]] = {
        "itself": lambda: mapped,
        "its bytes": lambda: np.frombuffer(mapped.data.cast("B"), np.int64),
        "strided": lambda: tricks.sliding_window_view(mapped, mapped.shape),
    }

    def put() -> None:
        with sa.Store(copy_threads=2) as store:
            source = ways[way]()
            os.truncate(path, SOURCES["C"].nbytes // 2)
            with pytest.raises(OSError, match="Bad address"):
                store.put(source)

    assert reap(in_child(put)) == 0


def test_a_large_copy_has_the_order_that_was_asked_for() -> None:
    """Every order that NumPy takes, None among them, means for a large array what it means for a small one."""
    with sa.Store(copy_threads=2) as store:
        for name in ("C", "Fortran", "axes exchanged"):
            array, plain = store.put(SOURCES[name]), SOURCES[name].copy("K")
            for order in ("C", "F", "A", "K", "c", None):
                assert array.copy(order).strides == plain.copy(order).strides, (name, order)  # type: ignore[arg-type]
            assert array.copy().strides == plain.copy().strides


def test_a_tree_with_a_large_leaf_is_put_by_threads(started: list[int]) -> None:
    """Small leaves and large ones lie behind each other, each whole."""
    tree = {"small": np.arange(5), "large": SOURCES["C"], "last": np.float32(7), "turned": SOURCES["Fortran"]}
    with sa.Store(copy_threads=3) as store:
        for _ in range(2):
            put = store.put(tree)
            assert all((put[key] == value).all() for key, value in tree.items())
            del put
    assert started


def test_one_thread_means_the_calling_one(started: list[int], store_dir: str) -> None:
    """With `copy_threads=1` no other is started; into another directory all is written by system call, by one."""
    for store in (sa.Store(copy_threads=1), sa.Store(directory=store_dir, warm=0)):
        with store:
            array = store.put(SOURCES["C"])
            assert (array == SOURCES["C"]).all()
            assert not started
            del array


def test_a_worker_copies_with_as_many_threads_as_the_store_says() -> None:
    """What the owner said holds in every process that joins."""
    run_script(
        """
import multiprocessing
import numpy as np, pytest, shmarray as sa
from tests.helpers.copies import record_starts

def put(store):
    with pytest.MonkeyPatch.context() as patch:
        started = record_starts(patch)
        assert store.put(np.ones(3 << 20)).sum() == 3 << 20
        return len(started)

if __name__ == "__main__":
    for method in ("fork", "spawn", "forkserver"):
        with sa.Store(copy_threads=3) as three, sa.Store(copy_threads=1) as one:
            with multiprocessing.get_context(method).Pool(1) as pool:
                assert pool.map(put, [three, one]) == [2, 0]
""",
        timeout=60,
    ).expect()


@pytest.mark.parametrize(
    ("said", "error"), [(0, ValueError), (-1, ValueError), ("2", TypeError), (True, TypeError), (1.5, TypeError)]
)
def test_what_is_no_number_of_threads_is_refused(said: Any, error: type[Exception]) -> None:
    """The message names the argument and the value."""
    with pytest.raises(error, match=f"copy_threads .*{said!r}"):
        sa.Store(copy_threads=said)


def test_threads_that_put_at_once_do_not_mix(started: list[int]) -> None:
    """Several threads of the user's put and drop large arrays, each helped by others."""
    wrong: list[object] = []

    def put(store: sa.Store, number: int) -> None:
        source = np.full(2_500_000, number, dtype=np.int64)
        for _ in range(6):
            array = store.put(source)
            if not (array == number).all():
                wrong.append(number)
            del array

    with sa.Store(copy_threads=2) as store:
        threads = [threading.Thread(target=put, args=(store, number)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert len(started) > 3
