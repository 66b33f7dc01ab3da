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


@pytest.mark.parametrize("kind", ["S3", "U3", np.dtype("S3")])
def test_a_text_that_is_too_long_is_refused_and_not_cut(kind: object) -> None:
    """In a value, an element, a slice, and at the beginning; what is no text is refused too; nothing has changed then."""
    with sa.Store() as store:
        empty, full = (b"", b"abc") if np.dtype(kind).kind == "S" else ("", "abc")  # type: ignore[call-overload]
        value, array = store.Value(kind), store.Array(kind, 2)
        assert (value.value, array[:]) == (empty, [empty, empty])
        value.value = array[0] = full
        array[1:] = [full]
        for wrong, error in (("abcd", ValueError), (b"abcd", ValueError), (1, TypeError), (None, TypeError)):
            for refused in (
                lambda wrong=wrong: setattr(value, "value", wrong),
                lambda wrong=wrong: value.set(wrong),
                lambda wrong=wrong: array.__setitem__(0, wrong),
                lambda wrong=wrong: array.__setitem__(slice(0, 2), [full, wrong]),
                lambda wrong=wrong: store.Value(kind, wrong),
                lambda wrong=wrong: store.Array(kind, [wrong]),
            ):
                with pytest.raises(error):
                    refused()
        assert (value.value, array[:]) == (full, [full, full])


def test_a_character_is_one_byte_or_its_number() -> None:
    """As `ctypes.c_char`: a number is the character's code and not its digits; everything else is a TypeError."""
    with sa.Store() as store:
        value, array = store.Value("c", 65), store.Array("c", [66, b"C", bytearray(b"D"), np.uint8(0)])
        assert (value.value, array.raw) == (b"A", b"BCD\0")
        value.value, array[0], array[1:3] = 66, 255, [0, b"x"]
        assert (value.value, array.raw) == (b"B", b"\xff\0x\0")
        for wrong in (256, -1, b"", b"ab", "a", 1.5, None):
            with pytest.raises(TypeError):
                value.value = wrong
            with pytest.raises(TypeError):
                array[0] = wrong
        assert (value.value, array[0]) == (b"B", b"\xff")


def test_bytes_are_a_slice_of_characters_alone_and_have_its_length() -> None:
    """Fewer are not repeated; into an array of numbers they go as numbers, and not as its memory."""
    with sa.Store() as store:
        text, numbers = store.Array("c", b"abc"), store.Array("i", 3)
        for wrong in (b"", b"x", b"wxyz"):
            with pytest.raises(ValueError, match="do not fit"):
                text[:] = wrong
        numbers[:2] = b"\1\2"
        assert (text.raw, numbers[:]) == (b"abc", [1, 2, 0])


def test_a_value_has_the_methods_of_a_managers() -> None:
    """`get` and `set` beside the property."""
    with sa.Store() as store:
        value = store.Value("i", 5)
        value.set(value.get() + 1)
        assert (value.get(), value.value) == (6, 6)


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
