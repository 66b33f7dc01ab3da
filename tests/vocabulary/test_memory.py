"""Bare memory and lists in it: as in multiprocessing.shared_memory, without its faults."""

from __future__ import annotations

import pickle
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shmarray as sa
from tests.helpers.processes import run_script
from tests.vocabulary import deaths

if TYPE_CHECKING:
    from multiprocessing.context import SpawnContext


@pytest.mark.core
def test_memory_is_zero_writable_and_of_exactly_its_size() -> None:
    """`buf` has `size` bytes; each handle sees what another writes."""
    with sa.Store() as store:
        memory = store.SharedMemory(1000)
        assert (memory.size, len(memory.buf or b""), bytes(memory.buf or b"")) == (1000, 1000, bytes(1000))
        other = pickle.loads(pickle.dumps(memory))
        assert memory.buf is not None
        assert other.buf is not None
        memory.buf[:5] = b"hello"
        assert bytes(other.buf[:5]) == b"hello"
        assert (other.name, other.size) == (memory.name, 1000)
        with pytest.raises((ValueError, IndexError)):
            memory.buf[1000] = 1
        for size in (0, -1):
            with pytest.raises(ValueError, match="positive"):
                store.SharedMemory(size)


def test_memory_is_closed_here_and_unlinked_for_everyone() -> None:
    """`close` gives up `buf`, and what was made of it stays valid; `unlink` twice is a FileNotFoundError."""
    with sa.Store() as store:
        memory = store.SharedMemory(16)
        other = pickle.loads(pickle.dumps(memory))
        view = np.frombuffer(memory.buf, np.uint8)  # type: ignore[arg-type]
        memory.close()
        memory.close()
        view[3] = 8
        assert other.buf[3] == 8
        del view
        assert memory.buf is None
        other.unlink()
        with pytest.raises(FileNotFoundError):
            other.unlink()
        other.buf[0] = 1
        with pytest.raises(sa.ArrayNotFoundError):
            pickle.dumps(other)


_STANDARD = """
import sys
from multiprocessing.shared_memory import SharedMemory
memory = SharedMemory(name=sys.argv[1], **({"track": False} if sys.version_info >= (3, 13) else {}))
memory.buf[0] += 1
if sys.version_info < (3, 13):
    from multiprocessing import resource_tracker
    resource_tracker.unregister(memory._name, "shared_memory")
memory.close()
"""


def test_the_standard_class_attaches_by_name() -> None:
    """Another program reads and writes the memory by the standard library alone, and the memory stays."""
    with sa.Store() as store:
        memory = store.SharedMemory(16)
        assert memory.buf is not None
        memory.buf[0] = 41
        run_script(_STANDARD, memory.name).expect()
        assert memory.buf[0] == 42
        assert memory.name in deaths.files_of(store)


VALUES: list[Any] = [
    *(1, -5, 0, (1 << 63) - 1, -(1 << 63)),
    *(1.5, float("inf"), True, False, None),
    *("", "text", "gr\u00fcn \U0001f600", "end\0\0", "\ud800", b"", b"bytes", b"\0\0", b"x" * 3000),
]


@pytest.mark.core
def test_a_list_keeps_each_value_with_its_type() -> None:
    """Trailing NULs, text beyond ASCII, 64-bit integers, booleans: all come back as they went in."""
    with sa.Store() as store:
        row = store.ShareableList(VALUES)
        assert list(row) == VALUES
        assert [type(value) for value in row] == [type(value) for value in VALUES]
        assert len(row) == len(VALUES)
        assert row[-1] == VALUES[-1]
        other = pickle.loads(pickle.dumps(row))
        other[0] = 99
        assert row[0] == 99
        for position in (len(VALUES), -len(VALUES) - 1):
            with pytest.raises(IndexError):
                row[position]
            with pytest.raises(IndexError):
                row[position] = 1
        empty = store.ShareableList()
        assert (len(empty), list(empty)) == (0, [])


def test_a_list_takes_what_fits_into_the_first_values_room() -> None:
    """In bytes, not characters; types may change; what does not fit or is of no such type changes nothing."""
    with sa.Store() as store:
        row = store.ShareableList(["12345678", 7])
        for value in (1, None, 2.5, b"12345678", "\u00fc\u00fc\u00fc\u00fc", True):
            row[0] = value
            assert row[0] == value
            assert type(row[0]) is type(value)
        for position, value in ((0, "x" * 100), (0, "\u00fc" * 50), (1, b"x" * 100)):
            before = row[position]
            with pytest.raises(ValueError, match="fit"):
                row[position] = value
            assert row[position] == before
        for number in (1 << 63, -(1 << 63) - 1):
            with pytest.raises(ValueError, match="64 bits"):
                row[1] = number
            with pytest.raises(ValueError, match="64 bits"):
                store.ShareableList([number])
        for wrong in ([1], 1j, object()):
            with pytest.raises(TypeError):
                row[1] = wrong
            with pytest.raises(TypeError):
                store.ShareableList([wrong])
        assert row[1] == 7


def test_a_list_takes_numpys_numbers_as_numbers() -> None:
    """They come back as Python's; what Python has no number of 64 bits for is refused."""
    with sa.Store() as store:
        row = store.ShareableList([np.int64(-3), np.uint8(7), np.float32(0.5), np.float64(1e300), np.bool_(True)])
        assert list(row) == [-3, 7, 0.5, 1e300, True]
        assert [type(value) for value in row] == [int, int, float, float, bool]
        row[0] = np.int16(9)
        assert row[0] == 9
        with pytest.raises(ValueError, match="64 bits"):
            row[0] = np.uint64((1 << 64) - 1)
        for wrong in (np.timedelta64(1, "s"), np.complex128(1), np.ones(1)):
            with pytest.raises(TypeError):
                row[0] = wrong
        assert row[0] == 9


def test_a_list_made_of_a_list_has_the_same_room() -> None:
    """Also where a text has been replaced by one with as many characters and more bytes."""
    with sa.Store() as store:
        row = store.ShareableList(["1234567", "\u4e2d" * 7])
        row[0] = "123456\u00fc"
        again = store.ShareableList(row)
        assert (list(again), again.format) == (list(row), row.format)


def test_a_list_counts_finds_and_tells_its_format() -> None:
    """`count`, `index`, `in`, `format`, `shm`, `repr`."""
    with sa.Store() as store:
        row = store.ShareableList([1, "a", 2.0, "a", None, True, b"xyz"])
        assert (row.count("a"), row.count(1), row.count("no")) == (2, 2, 0)
        assert (row.index("a"), row.index(None)) == (1, 4)
        assert "a" in row
        assert "b" not in row
        with pytest.raises(ValueError, match="not in"):
            row.index("no")
        assert struct.calcsize(row.format) > 0
        assert row.format[0] == "q"
        assert row.shm.size > 0
        assert "'a'" in repr(row)


def _write(row: Any, memory: Any) -> None:
    row[0] = "child"
    memory.buf[3] = 9


def test_memory_and_lists_travel(start_method: SpawnContext) -> None:
    """By every start method."""
    with sa.Store() as store:
        row, memory = store.ShareableList(["parent"]), store.SharedMemory(10)
        process = start_method.Process(target=_write, args=(row, memory))
        process.start()
        process.join(60)
        assert process.exitcode == 0
        assert row[0] == "child"
        assert memory.buf is not None
        assert memory.buf[3] == 9
