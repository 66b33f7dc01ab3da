"""Values and arrays of a store: as in multiprocessing.sharedctypes, of any dtype."""

from __future__ import annotations

import ctypes
import pickle
from multiprocessing import get_context
from typing import TYPE_CHECKING

import numpy as np
import pytest

import shmarray as sa
from tests.guards import actors

if TYPE_CHECKING:
    from multiprocessing.context import SpawnContext


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [
        ("i", 5, -7),
        ("B", 1, 255),
        ("d", 0.5, 1e300),
        (ctypes.c_longlong, 3, -(1 << 62)),
        (np.float32, 0.25, 2.0),
        ("c", b"x", b"\0"),
        ("u", "x", "\u00e9"),
        (bool, True, False),
        ("c16", 1j, 2 + 3j),
    ],
)
def test_a_value_of_any_kind_is_read_as_it_was_written(kind: object, first: object, second: object) -> None:
    """Type codes, ctypes types and dtypes; the value comes back as a Python object of the same type."""
    with sa.Store() as store:
        value = store.Value(kind, first)
        assert value.value == first
        value.value = second
        again = pickle.loads(pickle.dumps(value))
        assert again.value == second
        assert type(again.value) is type(second)


def test_a_value_begins_at_zero_and_refuses_what_does_not_fit() -> None:
    """The default is zero; a number too big for the type raises OverflowError and changes nothing."""
    with sa.Store() as store:
        value = store.Value("b")
        assert value.value == 0
        with pytest.raises(OverflowError):
            value.value = 300
        assert value.value == 0
        with pytest.raises(TypeError):
            store.Value("no such type")


@pytest.mark.core
def test_a_structured_value_is_a_record() -> None:
    """A dtype with fields gives the record, and its fields can be set together."""
    with sa.Store() as store:
        value = store.Value([("x", "f8"), ("n", "i4")], (1.5, 2))
        assert value.value["x"] == 1.5
        value.value = (2.5, 3)
        assert value.value.item() == (2.5, 3)


def test_adding_is_atomic(start_method: SpawnContext) -> None:
    """Processes that add at the same time lose nothing; so do those that use the lock themselves."""
    with sa.Store() as store:
        value = store.Value("q")
        processes = [start_method.Process(target=actors.count_in, args=(value, 2000)) for _ in range(3)]
        for process in processes:
            process.start()
        for _ in range(500):
            with value.get_lock():
                value.value += 1
        for process in processes:
            process.join(60)
            assert process.exitcode == 0
        assert value.value == 6500


@pytest.mark.core
def test_an_array_is_made_of_a_size_or_of_values() -> None:
    """Zeros of a size, or the values of a list, a range or a generator; elements and slices as in multiprocessing."""
    with sa.Store() as store:
        assert store.Array("i", 3)[:] == [0, 0, 0]
        assert store.Array("d", [0.5, 1.5])[1] == 1.5
        squares = store.Array("i", (i * i for i in range(5)))
        assert squares[1:4] == [1, 4, 9]
        assert squares[-1] == 16
        assert list(squares) == [0, 1, 4, 9, 16]
        assert len(squares) == 5
        squares[0] = 7
        squares[1:3] = [8, 9]
        assert squares[:3] == [7, 8, 9]
        with pytest.raises(IndexError):
            squares[5]
        with pytest.raises(ValueError, match="do not fit"):
            squares[1:3] = [1, 2, 3]
        with pytest.raises(ValueError, match="-1"):
            store.Array("i", -1)
        assert squares.get_obj().sum() == 7 + 8 + 9 + 9 + 16
        assert type(squares.get_obj()) is sa.SharedArray


def test_an_array_of_characters_has_value_and_raw() -> None:
    """`value` is the text up to the first NUL, raw is all of it, NULs at the end included; other arrays have neither."""
    with sa.Store() as store:
        text = store.Array("c", 8)
        text.value = b"hello"
        assert text.value == b"hello"
        assert text.raw == b"hello\0\0\0"
        text[5:8] = b"abc"
        text.value = b"x"
        assert text.raw == b"x\0lloabc"
        assert text[0] == b"x"
        with pytest.raises(ValueError, match="do not fit"):
            text.value = b"too long by far"
        with pytest.raises(AttributeError):
            store.Array("i", 3).value  # noqa: B018  reading is the subject


def test_a_lock_may_be_shared_by_several_values() -> None:
    """Two values with one lock: holding the one's lock is holding the other's, also after a journey."""
    with sa.Store() as store:
        lock = store.RLock()
        one, other = store.Value("i", lock=lock), store.Array("i", 2, lock=lock)
        assert one.get_lock() == other.get_lock() == pickle.loads(pickle.dumps(other)).get_lock()
        with one:
            assert other.acquire(False)
            other.release()


def test_values_and_arrays_are_freed_with_their_last_holder() -> None:
    """An anonymous value is gone when nobody has it."""
    with sa.Store() as store:
        value = store.Value("i")
        assert store.stats().anonymous == 1
        process = get_context("fork").Process(target=actors.count_in, args=(value, 1))
        process.start()
        process.join(30)
        del value, process
        assert store.stats().anonymous == 0
