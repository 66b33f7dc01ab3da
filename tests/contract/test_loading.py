"""Loading: what is in a file is in shared memory afterwards, exactly, without a second copy; what fails leaves nothing."""

from __future__ import annotations

import errno
import gzip
import io
import itertools
import os
import pickle
import pty
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import shmarray as sa
from shmarray import drafts, loading, streams
from shmarray._os import files
from tests.contract.views import dtype_facts, models
from tests.helpers import leaks
from tests.helpers.processes import Child, environment, run_script, wait_until
from tests.helpers.tracing import count_calls, fail_at
from tests.limits.small import run_in_small_memory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STRUCT = np.dtype([("a", "<i2"), ("b", ">f8", (2,)), ("größe", "U2")])
DTYPES = [
    *("?", "i1", "<u8", ">i4", "f2", ">f4", "g", "c8", ">c16", "S5", "U3", "V7", "M8[ns]", "m8[7D]"),
    *(STRUCT, np.dtype([("a", "u1"), ("b", "f8")], align=True), np.dtype((np.record, [("r", "i4")]))),
]
SMALL = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
MiB = 1 << 20


def some(dtype: Any, shape: Any = (3, 4), order: Any = "C") -> np.ndarray[Any, Any]:
    """An array whose bytes all differ, as far as its dtype can show them."""
    kind = np.dtype(dtype)
    count = int(np.prod(shape)) * kind.itemsize
    step = 1 if kind.kind not in "?U" and kind.names is None else 0
    raw = (np.arange(count) * step % 100).astype(np.uint8)
    return np.frombuffer(raw.tobytes(), kind).reshape(shape, order=order) if count else np.zeros(shape, kind, order)


def saved(array: Any, version: tuple[int, int] | None = None) -> bytes:
    """What `numpy.save` writes."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of versions that old NumPys cannot read
        np.lib.format.write_array(file, np.asanyarray(array), version=version)
    return file.getvalue()


def same(made: Any, model: np.ndarray[Any, Any]) -> bool:
    """Whether an array is shared and has dtype, shape, order and every byte of another."""
    assert type(made) is sa.SharedArray
    assert made.is_shared
    assert made.flags.writeable
    assert (made.shape, made.dtype) == (model.shape, model.dtype)
    assert (made.flags.c_contiguous, made.flags.f_contiguous) == (model.flags.c_contiguous, model.flags.f_contiguous)
    return np.asarray(made).tobytes("A") == model.tobytes("A")  # in the order of memory: nothing is converted


def nothing(store: sa.Store) -> bool:
    """Whether the store is as if nothing had been loaded."""
    stats = store.stats()
    return (stats.named, stats.anonymous, stats.drafts, stats.in_flight) == (0, 0, 0, 0)


class Drops(io.RawIOBase):
    """A stream that gives a few bytes at a time, cannot seek, and has nothing but `readinto`."""

    def __init__(self, data: bytes, most: int = 7) -> None:
        """Take what it is to give, and how many bytes at a time."""
        self._data = memoryview(data)
        self._most = most

    def readable(self) -> bool:
        """It can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Give a few bytes."""
        count = min(len(buffer), self._most, len(self._data))
        buffer[:count] = self._data[:count]
        self._data = self._data[count:]
        return count


# -- .npy --------------------------------------------------------------------------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize("mmap", [False, True])
def test_an_npy_file_is_loaded_as_numpy_loads_it(store: sa.Store, tmp_path: Path, *, mmap: bool) -> None:
    """Every dtype, order and shape: dtype, order and bytes are those of `numpy.load`, read or mapped, named or not."""
    path = tmp_path / "a.npy"
    orders: list[Any] = ["C", "F"]
    for dtype in DTYPES:
        for shape in ((3, 4), (5,), (), (0, 3), (2, 0), (2, 3, 4)):
            for order in orders:
                path.write_bytes(saved(some(dtype, shape, order)))
                model = np.load(path)
                made = store.load(path, "a", mmap)
                assert same(made, model), (dtype, shape, order)
                assert dtype_facts(made.dtype) == dtype_facts(model.dtype)
                assert same(store["a"], model)
                del store["a"]
    del made
    assert nothing(store)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_format_is_read(memory_store: sa.Store, version: tuple[int, int]) -> None:
    """A header in Latin-1 with a short or a long length, and one in UTF-8, names of fields included."""
    dtype = np.dtype([("größe" if version < (3, 0) else "größe\\Ω'\"", "f4"), ("n", "i2")])
    model = some(dtype, (2, 3), "F")
    assert same(memory_store.load(io.BytesIO(saved(model, version))), model)


def test_a_file_of_python_2_is_read(memory_store: sa.Store) -> None:
    """Lengths with an L, as Python 2 wrote them; NumPy warns of it, as `numpy.load` does."""
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (2L, 3L), }".ljust(117) + b"\n"
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + np.arange(6.0).tobytes()
    with pytest.warns(UserWarning, match="Python 2"):
        made = memory_store.load(io.BytesIO(data))
    assert same(made, np.arange(6.0).reshape(2, 3))


@SMALL
@given(data=st.data())
def test_any_array_of_hypothesis_is_loaded(memory_store: sa.Store, data: st.DataObject) -> None:
    """Round trip through `.npy`, in one piece and in drops, and raw, for dtypes, shapes and orders that nobody thought of."""
    model = data.draw(hnp.arrays(hnp.array_dtypes() | hnp.scalar_dtypes(), hnp.array_shapes(min_dims=0, min_side=0)))
    model = np.asarray(model, order=data.draw(st.sampled_from("CF")))
    file = saved(model)
    loaded = np.load(io.BytesIO(file))
    assert same(memory_store.load(io.BytesIO(file)), loaded)
    assert same(memory_store.load(Drops(file)), loaded)
    raw = model.tobytes(order="A")
    order: Any = "F" if model.flags.fnc else "C"
    assert same(
        memory_store.load(Drops(b"xyz" + raw), dtype=model.dtype, shape=model.shape, offset=3, order=order), model
    )


@pytest.mark.core
def test_a_stream_is_read_from_where_it_stands_to_where_the_array_ends(memory_store: sa.Store, tmp_path: Path) -> None:
    """Arrays behind one another in an open file, a gzip file, memory, a socket: each load takes one and no byte more."""
    first, second = some("f8", (3, 4), "F"), some(">i2", (70, 5))
    data = b"head" + saved(first) + saved(second) + b"tail"
    plain, packed = tmp_path / "a", tmp_path / "a.gz"
    plain.write_bytes(data)
    packed.write_bytes(gzip.compress(data))
    ours, theirs = socket.socketpair()
    with (
        ours,
        theirs,
        plain.open("rb") as buffered,
        plain.open("rb", buffering=0) as raw,
        gzip.open(packed) as unpacked,
    ):
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        with theirs.makefile("rb") as stream:
            for file in (buffered, raw, unpacked, io.BytesIO(data), stream, io.BufferedReader(Drops(data))):
                assert file.read(4) == b"head"
                assert same(memory_store.load(file), first), file
                assert same(memory_store.load(file), second), file
                assert file.read() == b"tail"


# -- .npz --------------------------------------------------------------------------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize("write", [np.savez, np.savez_compressed], ids=["stored", "compressed"])
def test_an_npz_file_is_one_tree(store: sa.Store, tmp_path: Path, write: Callable[..., None]) -> None:
    """All arrays of an archive in one block, under their names and in their order, as dtype, order and bytes are."""
    arrays = models() | {"s/t": some("S3"), "u": some(STRUCT, (2,))}
    path = tmp_path / "a"
    with path.open("wb") as file:
        write(file, **arrays)
    with path.open("rb") as file:
        sources: list[Any] = [str(path), os.fsencode(path), file, io.BytesIO(path.read_bytes())]
        for source in sources:
            tree = store.load(source, name="all")
            assert issubclass(type(tree), sa.SharedTree)
            assert list(tree) == list(arrays)
            for name, array in arrays.items():
                assert same(tree[name], array if array.flags.forc else np.ascontiguousarray(array)), name
            assert store.stats().named == 1
            assert type(tree.unflatten()) is dict
            other = pickle.loads(pickle.dumps(tree))
            assert other["u"].tobytes() == arrays["u"].tobytes()
            del store["all"], tree, other
    assert nothing(store)


def test_an_empty_archive_is_an_empty_tree(memory_store: sa.Store, tmp_path: Path) -> None:
    """No member is no error, as in NumPy."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w"):
        pass
    assert len(memory_store.load(tmp_path / "a.npz")) == 0


def test_a_damaged_member_is_found_by_its_checksum(memory_store: sa.Store, tmp_path: Path) -> None:
    """One bit of the data or of the sum, stored or compressed: the error names file and member, and nothing is left."""
    path = tmp_path / "a.npz"
    for write, size in itertools.product((np.savez, np.savez_compressed), (10, 3000, 4 * MiB // 8)):
        file = io.BytesIO()
        write(file, a=np.arange(3), b=np.arange(size) % 7)
        with zipfile.ZipFile(file) as archive:
            info = archive.getinfo("b.npy")
        index = file.getvalue().rfind(b"PK\x01\x02")  # of the last member
        for place in (info.header_offset + info.compress_size, index + 16):
            data = bytearray(file.getvalue())
            data[place] ^= 1
            path.write_bytes(data)
            with pytest.raises(sa.FileFormatError, match=r"a\.npz.*'b(\.npy)?'") as caught:
                memory_store.load(path, name="all")
            assert caught.value.remedy
            del caught
        assert nothing(memory_store)


def test_members_that_are_no_arrays_are_refused(memory_store: sa.Store) -> None:
    """Text, a member whose header and size differ, two of one name, an encrypted one: one line says what is wrong."""
    good = saved(np.arange(4))
    cases = {
        "is no array": {"readme.txt": b"hello", "a.npy": good},
        "has 159 bytes": {"a.npy": good[:-1]},
        "has 161 bytes": {"a.npy": good + b"x"},
        "two members": {"a.npy": good, "a": good},
    }
    for word, members in cases.items():
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        file.seek(0)
        with pytest.raises(sa.FileFormatError, match=word):
            memory_store.load(file)
    locked = bytearray(file.getvalue())
    for mark in (b"PK\x03\x04", b"PK\x01\x02"):
        locked[locked.find(mark) + (6 if mark[2] == 3 else 8)] |= 1
    with pytest.raises(sa.FileFormatError, match="encrypted"):
        memory_store.load(io.BytesIO(locked))
    with pytest.raises(sa.FileFormatError, match="cannot seek"):
        memory_store.load(Drops(file.getvalue()))
    assert nothing(memory_store)


# -- raw ---------------------------------------------------------------------------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize("mmap", [False, True])
def test_raw_data_are_what_the_caller_says(store: sa.Store, tmp_path: Path, *, mmap: bool) -> None:
    """dtype, shape with at most one -1 or none, offset, order: as `numpy.fromfile` and `numpy.memmap` take them."""
    path = tmp_path / "a.raw"
    path.write_bytes(bytes(range(48)))
    cases: list[tuple[dict[str, Any], Any]] = [
        ({"dtype": "u1"}, np.fromfile(path, "u1")),
        ({"dtype": ">i2", "shape": -1}, np.fromfile(path, ">i2")),
        ({"dtype": "<i4", "shape": (3, -1)}, np.fromfile(path, "<i4").reshape(3, 4)),
        (
            {"dtype": "<i4", "shape": [-1, np.int64(2)], "order": "F"},
            np.fromfile(path, "<i4").reshape((6, 2), order="F"),
        ),
        ({"dtype": "<i4", "shape": (2, 3), "offset": 6}, np.memmap(path, "<i4", "r", 6, (2, 3))),
        ({"dtype": "V5", "offset": 3}, np.fromfile(path, "V5", offset=3)),
        ({"dtype": ("<f4", (3,)), "shape": (2,)}, np.fromfile(path, ("<f4", (3,)), 2)),
        ({"dtype": "u1", "shape": ()}, np.array(0, "u1")),
        ({"dtype": "u1", "shape": (0, 4)}, np.zeros((0, 4), "u1")),
        ({"dtype": STRUCT, "shape": 1}, np.fromfile(path, STRUCT, 1)),
        ({"dtype": "u1", "offset": 48}, np.zeros(0, "u1")),
    ]
    for options, model in cases:
        assert same(store.load(path, None, mmap, **options), np.asarray(model)), options
        with path.open("rb") as file:
            file.seek(0)
            assert same(store.load(file, **options), np.asarray(model)), options
    with open("/dev/zero", "rb") as file:
        assert not store.load(file, dtype="i4", shape=9).any()
    assert not store.load("/dev/zero", dtype="i4", shape=9).any()
    assert nothing(store)


def test_a_stream_of_raw_data_gives_as_many_bytes_as_the_shape_asks(memory_store: sa.Store) -> None:
    """Behind the array the stream goes on, however short the array is; without a shape a stream that cannot seek is refused."""
    stream = io.BufferedReader(Drops(bytes(range(100))), 1)
    assert memory_store.load(stream, dtype="u1", shape=3, offset=2).tolist() == [2, 3, 4]
    assert memory_store.load(stream, dtype="u1", shape=()) == 5
    assert memory_store.load(stream, dtype=">u2", shape=(2, 2), order="F").tolist() == [
        [0x0607, 0x0A0B],
        [0x0809, 0x0C0D],
    ]
    assert stream.read(1) == b"\x0e"
    for shape in (None, (-1, 2)):
        with pytest.raises(sa.FileFormatError, match="Give the whole shape"):
            memory_store.load(Drops(b"abcdef"), dtype="u1", shape=shape)
    assert memory_store.load(io.BytesIO(b"abcdef"), dtype="S2").tolist() == [b"ab", b"cd", b"ef"]


def test_what_the_caller_says_of_raw_data_must_fit(memory_store: sa.Store, tmp_path: Path) -> None:
    """Lengths that do not come out, a file that is too short, nonsense for an argument: what is wrong, and nothing is left."""
    path = tmp_path / "a.raw"
    path.write_bytes(bytes(10))
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"dtype": "i4"}, sa.FileFormatError, "10 bytes of data are no multiple of 4"),
        ({"dtype": "u1", "shape": (-1, 3)}, sa.FileFormatError, "no multiple of 3"),
        ({"dtype": "u1", "shape": 11}, sa.FileFormatError, "10 bytes came where 11"),
        ({"dtype": "u1", "offset": 11}, sa.FileFormatError, "10 bytes came where 11"),
        ({"dtype": "u1", "shape": (-1, -1)}, sa.ShapeError, "more than one"),
        ({"dtype": "u1", "shape": (-1, 0)}, sa.ShapeError, "no length follows"),
        ({"dtype": "u1", "shape": (-2,)}, sa.ShapeError, "negative"),
        ({"dtype": "u1", "shape": "abc"}, sa.ShapeError, "not an integer"),
        ({"dtype": "u1", "shape": (2.5,)}, sa.ShapeError, "not an integer"),
        ({"dtype": "u1", "shape": (1 << 40, 1 << 40)}, sa.ShapeError, "address"),
        ({"dtype": "u1", "offset": -1}, ValueError, "negative"),
        ({"dtype": "u1", "offset": "1"}, TypeError, "number of bytes"),
        ({"dtype": "u1", "order": "K"}, ValueError, "C or F"),
        ({"dtype": "O"}, sa.DTypeError, "object"),
        ({"dtype": "no such"}, TypeError, "no such"),
        ({"shape": (2,)}, TypeError, "give its dtype"),
        ({"offset": 2}, TypeError, "give its dtype"),
        ({"order": "F"}, TypeError, "give its dtype"),
        ({"dtpye": "u1"}, TypeError, "dtpye"),
        ({"mmap": "r", "dtype": "u1"}, TypeError, "True or False"),
        ({"name": "", "dtype": "u1"}, sa.ArrayNameError, "empty"),
        ({}, sa.FileFormatError, "Give dtype="),
    ]
    for options, kind, word in cases:
        with pytest.raises(kind, match=word):
            memory_store.load(path, **options)
    with pytest.raises(sa.FileFormatError, match="2 bytes came where 3"):
        memory_store.load(Drops(b"abcd"), dtype="u1", shape=3, offset=2)
    with pytest.raises(sa.FileFormatError, match="2 bytes came where 3"):
        memory_store.load(io.BytesIO(b"abcd"), dtype="u1", shape=3, offset=2)
    assert nothing(memory_store)


def test_what_is_said_of_a_file_that_says_it_itself_must_agree(memory_store: sa.Store, tmp_path: Path) -> None:
    """dtype, shape and order of a `.npy` file may be given if they are right; a `.npz` file takes none."""
    path, archive = tmp_path / "a", tmp_path / "b"
    model = some("<i4", (3, 4))
    path.write_bytes(saved(model))
    with archive.open("wb") as file:
        np.savez(file, a=model)
    shapes: list[Any] = [None, (3, 4), (-1, 4), (3, -1), -1]
    for shape in shapes:
        assert same(memory_store.load(path, dtype="<i4", shape=shape), model)
    wrong: list[tuple[dict[str, Any], type[Exception]]] = [
        ({"dtype": "<i8"}, sa.DTypeError),
        ({"dtype": ">i4"}, sa.DTypeError),
        ({"dtype": "<i4", "shape": (4, 3)}, sa.ShapeError),
        ({"dtype": "<i4", "shape": 12}, sa.ShapeError),
        ({"dtype": "<i4", "order": "F"}, ValueError),
    ]
    for options, kind in wrong:
        with pytest.raises(kind, match=r"is a \.npy file"):
            memory_store.load(path, **options)
    with pytest.raises(TypeError, match="leave dtype out"):
        memory_store.load(archive, dtype="<i4")
    assert memory_store.load(path, dtype="u1", offset=1)[:5].tobytes() == b"NUMPY"  # from there on it is raw


# -- what fails --------------------------------------------------------------------------------------------------------


@pytest.mark.core
def test_a_file_cut_off_anywhere_is_refused(memory_store: sa.Store, tmp_path: Path) -> None:
    """At every byte, by path, mapped and as a stream: `FileFormatError` with path and remedy, and nothing is left."""
    path = tmp_path / "a"
    archive = io.BytesIO()
    np.savez_compressed(archive, a=np.arange(4), b=np.ones((2, 2)))
    for whole in (saved(some("f4", (2, 3), "F")), saved(np.array(7, ">i2")), archive.getvalue()):
        for size in range(len(whole)):
            path.write_bytes(whole[:size])
            sources: list[Any] = [path, io.BytesIO(whole[:size]), Drops(whole[:size], 5)]
            for source in sources:
                with pytest.raises(sa.FileFormatError) as caught:
                    memory_store.load(source, "a", source is path and size % 2 == 0)
                assert caught.value.path
                assert str(caught.value).splitlines()[-1] == caught.value.remedy
                del caught
        assert nothing(memory_store)


def test_what_follows_the_array_is_not_ignored(memory_store: sa.Store, tmp_path: Path) -> None:
    """A `.npy` file by path holds one array and no more; the error says how to read several."""
    path = tmp_path / "a.npy"
    path.write_bytes(saved(np.arange(3)) + b"x")
    with pytest.raises(sa.FileFormatError, match="1 bytes follow the array, which its header says has 24") as caught:
        memory_store.load(path)
    assert "once for each" in caught.value.remedy
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.path, again.found) == (str(caught.value), str(path), 25)


@SMALL
@given(data=st.data())
def test_a_damaged_file_is_refused_or_sound(memory_store: sa.Store, data: st.DataObject) -> None:
    """Any bytes put anywhere in a header: an array of some kind, or a typed error; never another, never anything left."""
    whole = bytearray(saved(some(STRUCT, (2, 3))))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, 200))
        piece = data.draw(st.binary(max_size=4) | st.sampled_from([b"(", b"9", b"-", b"O", b"'", b"\\", b"[", b"\0"]))
        whole[at : at + len(piece)] = piece
    try:
        memory_store.load(io.BytesIO(whole))
    except (sa.FileFormatError, sa.DTypeError, sa.StoreFullError) as error:
        assert str(error).splitlines()[-1] == error.remedy  # noqa: PT017  it may also be sound
    assert nothing(memory_store)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (4294967296, 4294967296), }",
        "{'descr': '<f8', 'fortran_order': 1, 'shape': (1,), }",
        "{'descr': ('<f4', (2,)), 'fortran_order': False, 'shape': (1,), }",
        "{'descr': 7, 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': " + str((1,) * 65) + ", }",
        "__import__('os').mkdir('evaluated')",
        "[" * 5000,
        "-" * 200_000 + "1",
        "{" * 150,
        " " * 300_000,
        "",
    ],
    ids=str.__len__,
)
def test_a_header_that_is_none_is_refused(
    memory_store: sa.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header: str
) -> None:
    """Nonsense, code, or what would exhaust a parser: `FileFormatError`, and nothing is run."""
    monkeypatch.chdir(tmp_path)
    data = b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header.encode() + bytes(64)
    with pytest.raises(sa.FileFormatError, match="damaged"):
        memory_store.load(io.BytesIO(data))
    assert os.listdir(tmp_path) == []
    assert nothing(memory_store)


class _Trap:
    """Says so when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, ("pickle-was-loaded",)


def test_pickles_are_never_loaded(memory_store: sa.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays of objects, in a `.npy` or `.npz` file or inside a struct, are a `DTypeError` that names file and field."""
    monkeypatch.chdir(tmp_path)
    for array in (np.array([_Trap()]), np.array([(1, _Trap())], [("n", "i4"), ("o", object)])):
        np.save("a.npy", array, allow_pickle=True)
        np.savez("a.npz", first=np.arange(3), o=array)
        for name, word in (("a.npy", "object"), ("a.npz", r"\['o'\]")):
            with pytest.raises(sa.DTypeError, match=word) as caught:
                memory_store.load(name)
            assert caught.value.path == name
            assert name in str(caught.value)
    with open("a", "wb") as file:
        pickle.dump(_Trap(), file)
    with pytest.raises(sa.FileFormatError, match="pickles are never loaded"):
        memory_store.load("a")
    assert sorted(os.listdir()) == ["a", "a.npy", "a.npz"]
    assert nothing(memory_store)


def test_what_is_no_file_is_refused_as_open_refuses_it(memory_store: sa.Store, tmp_path: Path) -> None:
    """A missing file and a directory are the operating system's errors; numbers, text streams and None are `TypeError`s."""
    with pytest.raises(FileNotFoundError) as missing:
        memory_store.load(tmp_path / "none.npy")
    assert missing.value.filename == str(tmp_path / "none.npy")
    with pytest.raises(IsADirectoryError):
        memory_store.load(tmp_path)
    text = tmp_path / "text"
    text.write_text("x")
    with text.open() as file:
        for wrong, word in (
            (file, "mode 'rb'"),
            (7, "path"),
            (None, "path"),
            (object(), "readinto"),
            (io.StringIO(), "rb"),
        ):
            with pytest.raises(TypeError, match=word):
                memory_store.load(wrong)
    with text.open("ab") as written, pytest.raises(io.UnsupportedOperation):
        memory_store.load(written)


def test_a_stream_that_misbehaves_is_an_error(memory_store: sa.Store) -> None:
    """It raises, has nothing ready, claims to have read what it was not asked for: an error of its kind, and nothing is left."""

    def stream(answer: Callable[[Any], Any]) -> Any:
        class Odd:
            def readinto(self, buffer: Any) -> Any:
                return answer(buffer)

        return Odd()

    def fail(_: Any) -> None:
        message = "gone"
        raise ConnectionResetError(message)

    def stop(_: Any) -> None:
        raise EOFError

    cases: list[tuple[Any, type[Exception], str]] = [
        (fail, ConnectionResetError, "gone"),
        (lambda _: None, BlockingIOError, "set it to block"),
        (lambda buffer: len(buffer) + 1, OSError, "says that it read"),
        (lambda _: -1, OSError, "says that it read"),
        (stop, sa.FileFormatError, "0 bytes came where 80"),
        (lambda _: 0, sa.FileFormatError, "0 bytes came where 80"),
    ]
    for answer, kind, word in cases:
        with pytest.raises(kind, match=word):
            memory_store.load(stream(answer), dtype="f8", shape=10)
        assert nothing(memory_store)
    kept: list[Any] = []

    def keep(buffer: Any) -> int:
        kept.append(buffer)
        return len(buffer)

    assert memory_store.load(stream(keep), dtype="u1", shape=10).nbytes == 10
    with pytest.raises(ValueError, match="released"):
        kept[0][0] = 1
    kept.clear()
    cut = gzip.compress(bytes(range(256)) * 50)[:-30]
    with gzip.open(io.BytesIO(cut)) as file, pytest.raises(sa.FileFormatError, match="bytes came where 12800 were"):
        memory_store.load(file, dtype="u1", shape=12800)
    assert nothing(memory_store)


@pytest.mark.core
def test_a_name_that_is_taken_is_refused_before_anything_is_read(store: sa.Store, tmp_path: Path) -> None:
    """`ArrayExistsError` as from `zeros`; the stream stands where it stood. A name taken meanwhile is refused at the end."""
    store["a"] = np.arange(3)
    (tmp_path / "a.npy").write_bytes(saved(np.ones(4)))
    file = io.BytesIO(saved(np.ones(4)))
    for source in (tmp_path / "a.npy", file):
        with pytest.raises(sa.ArrayExistsError, match=r"'a' is already in .*; nothing of") as caught:
            store.load(source, name="a")
        assert caught.value.name == "a"
        del caught
    assert file.tell() == 0

    class Sly(io.BytesIO):
        def readinto(self, buffer: Any) -> int:
            if "b" not in store:
                store["b"] = np.arange(5)
            return super().readinto(buffer)

    with pytest.raises(sa.ArrayExistsError):
        store.load(Sly(file.getvalue()), name="b")
    assert store["a"].tolist() == [0, 1, 2]
    assert store["b"].tolist() == [0, 1, 2, 3, 4]
    stats = store.stats()
    assert (stats.named, stats.anonymous, stats.drafts) == (2, 0, 0)


def test_a_closed_store_loads_nothing(tmp_path: Path) -> None:
    """`StoreClosedError`, before the file is opened."""
    with sa.Store() as store:
        pass
    with pytest.raises(sa.StoreClosedError):
        store.load(tmp_path / "none")


def test_nobody_sees_an_array_before_all_of_it_is_there(memory_store: sa.Store) -> None:
    """At every read of the stream the name is not there yet; afterwards it is, whole."""
    seen = []

    class Watched(io.BytesIO):
        def readinto(self, buffer: Any) -> int:
            seen.append("a" in memory_store)
            return super().readinto(memoryview(buffer)[:100])

    model = np.arange(1000)
    memory_store.load(Watched(saved(model)), name="a")
    assert len(seen) > 50
    assert not any(seen)
    assert same(memory_store["a"], model)


@pytest.mark.parametrize("mmap", [False, True])
def test_a_file_that_is_cut_off_while_it_is_loaded_is_an_error(
    memory_store: sa.Store, tmp_path: Path, *, mmap: bool
) -> None:
    """Another process makes it shorter when its length has been looked at: `FileFormatError`, and no SIGBUS when it is mapped."""
    path = tmp_path / "a.npy"
    making, mapping = drafts.Draft.__init__, files.map_source

    def meanwhile(*args: Any, **options: Any) -> None:
        os.truncate(path, size)
        making(*args, **options)

    def later(file: Any) -> Any:
        mapped = mapping(file)
        os.truncate(path, size)
        return mapped

    # To nothing, to whole pages, into a page, into the last page.
    for size in (0, MiB, MiB + 1000, 3 * MiB + 127):
        for place, name, stand_in in ((drafts.Draft, "__init__", meanwhile), (files, "map_source", later)):
            path.write_bytes(saved(np.ones(3 * MiB, "u1")))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(place, name, stand_in)
                if mmap or place is not files:
                    with pytest.raises(sa.FileFormatError, match=f"{max(0, size - 128)} bytes came where {3 * MiB}"):
                        memory_store.load(path, "a", mmap)
            assert nothing(memory_store)


def test_whatever_system_call_fails_nothing_is_left(
    store: sa.Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each call to the kernel fails once, in loads of every kind: it loads all the same, or says so, and no file stays open."""
    path, archive = tmp_path / "a.npy", tmp_path / "a.npz"
    path.write_bytes(saved(np.arange(100)))
    with archive.open("wb") as file:
        np.savez(file, a=np.arange(100))
    deeds: list[Callable[[], Any]] = [
        lambda: store.load(path, "a"),
        lambda: store.load(path, "a", mmap=True),
        lambda: store.load(archive, "a"),
    ]
    before, failed = leaks.descriptors(), 0
    for deed in deeds:
        calls = count_calls(deed)
        del store["a"]
        assert any(call.function == "open" for call in calls)
        for number in (5, 12, 24):  # EIO, ENOMEM, EMFILE
            for n in range(1, len(calls) + 1):
                try:
                    with fail_at(n, number):
                        deed()
                except (sa.ShmArrayError, OSError, MemoryError) as error:
                    error.__traceback__ = None
                    failed += 1
                if "a" in store:
                    assert np.asarray(store["a"]["a"] if deed is deeds[2] else store["a"]).sum() == 4950
                    del store["a"]
                assert leaks.descriptors() == before, (calls[n - 1], number)
        store.check(fix=True)
        assert nothing(store)
    assert failed > 20
    assert capfd.readouterr() == ("", "")


# -- memory ------------------------------------------------------------------------------------------------------------

FLAT = """
import gzip, os, shutil, sys
import numpy as np, shmarray as sa

def status(word):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(word)) << 10

size = 200 << 20
with open("a.npy", "wb") as file:
    np.save(file, np.zeros(0, "u1"))
    head = file.tell()
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (size,)})
    head = file.tell()
    for _ in range(size >> 20):
        file.write(bytes(range(256)) * 4096)
if sys.argv[1] == "archive":
    import zipfile
    with zipfile.ZipFile("a", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.write("a.npy")
elif sys.argv[1] == "gzip":
    with open("a.npy", "rb") as source, gzip.open("a", "wb", 1) as target:
        shutil.copyfileobj(source, target, 1 << 20)
else:
    os.rename("a.npy", "a")

with sa.Store() as store:
    store.load("a", dtype="u1", shape=5, offset=head)
    store.put(np.ones(5))
    open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
    before, peak_before = status("RssAnon:"), status("VmHWM:")
    if sys.argv[1] == "gzip":
        with gzip.open("a") as file:
            array = store.load(file)
    elif sys.argv[1] == "raw":
        array = store.load("a", dtype="u1", offset=head)
    elif sys.argv[1] == "archive":
        array = store.load("a")["a"]
    else:
        array = store.load("a", mmap=sys.argv[1] == "mapped")
    # What was resident at the highest moment, less what is shared memory, is private, or pages of the file itself.
    shared = status("RssShmem:")
    private = status("VmHWM:") - peak_before - shared
    print(max(private, status("RssAnon:") - before))
    assert array.nbytes == size and array[::256].sum() == 0 and (array[255::256] == 255).all()
    store.save("b.npy", array)
    store.save("c.npy", array.reshape(1024, -1)[::2, ::3])
    print(status("VmHWM:") - peak_before - max(size, status("RssShmem:")))
"""


@pytest.mark.parametrize("kind", ["npy", "mapped", "raw", "gzip", "archive"])
def test_no_second_copy_is_in_private_memory(kind: str) -> None:
    """While 200 MiB are loaded, and saved again, private memory grows by some pieces, and never by the array."""
    loading, saving = map(int, run_script(FLAT, kind, timeout=100).expect().split())
    assert loading < 32 * MiB
    assert saving < 64 * MiB


FULL = """
import io, os
import numpy as np, shmarray as sa

class Counted(io.BytesIO):
    asked = 0
    def readinto(self, buffer):
        self.asked += len(buffer)
        return super().readinto(buffer)

model = np.zeros(80 << 20, "u1")
file = io.BytesIO()
np.save(file, model)
np.save("a.npy", model)
np.savez("a.npz", a=model[: 40 << 20], b=model[: 40 << 20])
stream = Counted(file.getvalue())
with sa.Store() as store:
    before = sorted(os.listdir("/dev/shm"))
    acts = [
        lambda: store.load("a.npy", "a"), lambda: store.load("a.npy", "a", mmap=True), lambda: store.load("a.npz"),
        lambda: store.load(stream, "a"), lambda: store.load("a.npy", dtype="u1", offset=7),
    ]
    for act in acts:
        try:
            act()
        except sa.StoreFullError as error:
            assert 80 << 20 <= error.asked < 81 << 20
        else:
            raise AssertionError("there was room")
        assert sorted(os.listdir("/dev/shm")) == before
    assert stream.asked < 1000
    assert store.load("a.npy", dtype="u1", shape=50 << 20, offset=7).nbytes == 50 << 20
print("done")
"""


def test_full_memory_is_said_before_anything_is_read() -> None:
    """On 64 MiB of shared memory: `StoreFullError` with nothing of the stream's data taken and nothing left, for each kind."""
    with tempfile.TemporaryDirectory() as place:
        done = run_in_small_memory(f"import os\nos.chdir({place!r})\n{FULL}")
    assert done.expect() == "done\n"


KILLED = """
import io, sys
import numpy as np, shmarray as sa
from tests.helpers.processes import report

class Slow(io.BytesIO):
    def readinto(self, buffer):
        if self.tell() > 2000:
            report("in the midst")
            input()
        return super().readinto(memoryview(buffer)[:512])

file = io.BytesIO()
np.save(file, np.arange(1000))
options = {"directory": sys.argv[2]} if sys.argv[2] else {}
if sys.argv[1] == "owner":
    store = sa.Store(**options, capacity=1 << 20 if sys.argv[3] else None)
else:
    store = sa.connect(sys.argv[1])
report("ready", store.id)
store.load(Slow(file.getvalue()), name="a")
"""


@pytest.mark.parametrize("capacity", ["", "capacity"])
def test_a_process_killed_in_the_midst_of_loading_leaves_nothing(place: str | None, capacity: str) -> None:
    """SIGKILL of a worker or of the owner half-way: no file stays, no name is seen, and the name can be loaded again."""
    name = f"loading-{os.getpid()}"
    with sa.Store(name, directory=place, capacity=1 << 20 if capacity else None) as store:
        with Child(KILLED, name, "", "") as worker:
            worker.wait_for("ready")
            worker.wait_for("in the midst")
            assert "a" not in store
            worker.kill()
        store.check(fix=True)
        assert nothing(store)
        assert store.load(io.BytesIO(saved(np.arange(4))), name="a").sum() == 6
    before = leaks.shm_entries()
    with Child(KILLED, "owner", place or "", capacity) as owner:
        identity = owner.wait_for("ready")
        owner.wait_for("in the midst")
        owner.kill()
    wait_until(
        lambda: not [entry for entry in leaks.shm_entries() - before if identity in entry],
        10,
        lambda: "the store was left",
    )


def test_a_load_is_interrupted_like_anything_else(memory_store: sa.Store) -> None:
    """Ctrl-C while a stream is waited for: `KeyboardInterrupt`, and nothing is left."""
    ours, theirs = socket.socketpair()
    with ours, theirs, theirs.makefile("rb", buffering=0) as stream:
        ours.sendall(saved(np.arange(1000))[:4000])
        main = threading.main_thread().ident
        assert main is not None

        def interrupt() -> None:
            wait_until(lambda: not select.select([theirs], [], [], 0)[0], 20, lambda: "the bytes were not read")
            signal.pthread_kill(main, signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            memory_store.load(stream, "a")
        thread.join()
    assert nothing(memory_store)


# -- progress ----------------------------------------------------------------------------------------------------------

SHOWN = """
import io, sys
import numpy as np, shmarray as sa
from shmarray import progress

progress._DELAY, progress._PAUSE = (1e9 if sys.argv[1] == "short" else 0), 0     # from when on a load is long

class Slow(io.BytesIO):
    def readinto(self, buffer):
        return super().readinto(memoryview(buffer)[:1000])

file = io.BytesIO()
np.save(file, np.arange(500))
slow = Slow(file.getvalue())
slow.name = "päth/f\\x1b.npy"
with sa.Store() as store:
    option = {"never": False, "always": True}.get(sys.argv[1])
    store.load(slow, progress=option)
"""


def screen(*args: str) -> bytes:
    """What a script says in a terminal."""
    ours, theirs = pty.openpty()
    with tempfile.TemporaryDirectory() as place:
        script = os.path.join(place, "script.py")
        with open(script, "w", encoding="utf-8") as file:
            file.write(SHOWN)
        process = subprocess.Popen(
            [sys.executable, script, *args], stdin=theirs, stdout=theirs, stderr=theirs, cwd=place, env=environment()
        )
        os.close(theirs)
        heard, deadline = b"", time.monotonic() + 60
        while time.monotonic() < deadline and select.select([ours], [], [], 60)[0]:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # nobody holds the other side any more
                break
            if not piece:
                break
            heard += piece
        os.close(ours)
        assert process.wait(60) == 0, heard
    return heard


def test_in_a_terminal_a_long_load_shows_a_bar_and_takes_it_away() -> None:
    """Label, bar and sizes, in letters any terminal has; the line is empty at the end. A short one, or one told not to, shows none."""
    heard = screen("long")
    assert b"\r\x1b[Kloading f\\x1b.npy [###" in heard
    assert b"/3.9 KiB" in heard
    assert heard.endswith(b"] 3.9 KiB/3.9 KiB\r\x1b[K")
    assert screen("short") == b""
    assert screen("never") == b""


def test_without_a_terminal_nothing_is_said() -> None:
    """On a pipe there is no bar, unless it is asked for."""
    run_script(SHOWN, "long").expect()
    assert "loading" in run_script(SHOWN, "always").stderr


# -- the floor below ---------------------------------------------------------------------------------------------------


def test_pieces_make_no_difference(memory_store: sa.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in pieces of five bytes, every kind of file gives the same as whole."""
    monkeypatch.setattr(streams, "_PIECE", 5)
    monkeypatch.setattr(loading, "_PIECE", 5)
    model = some(">f8", (3, 5), "F")
    (tmp_path / "a").write_bytes(saved(model))
    with (tmp_path / "b").open("wb") as file:
        np.savez_compressed(file, a=model, b=np.arange(9))
    for mmap in (False, True):
        assert same(memory_store.load(tmp_path / "a", mmap=mmap), model)
    assert same(memory_store.load(tmp_path / "b")["a"], model)
    assert memory_store.load(tmp_path / "a", dtype="u1", offset=3).tobytes() == (tmp_path / "a").read_bytes()[3:]


@pytest.mark.parametrize("pieces", [0, 1])
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS])
def test_a_file_out_of_which_the_kernel_does_not_copy_is_read(
    memory_store: sa.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, pieces: int
) -> None:
    """On a system that copies from none, and on one that stops in the midst of it: all is read, from the beginning."""
    usual = os.sendfile
    poured: list[int] = []

    def send(out: int, source: int, offset: int, count: int) -> int:
        if len(poured) == pieces:
            raise OSError(number, os.strerror(number))
        poured.append(offset)
        return usual(out, source, offset, count)

    monkeypatch.setattr(os, "sendfile", send)
    monkeypatch.setattr(loading, "_PIECE", 50)
    model = np.arange(99)
    (tmp_path / "a").write_bytes(saved(model))
    assert same(memory_store.load(tmp_path / "a"), model)
    assert len(poured) == pieces


def test_a_file_that_cannot_be_mapped_is_read(
    memory_store: sa.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Archives, streams, and files on a system that maps none or copies from none: `mmap=True` loads them all the same."""
    model = np.arange(9)
    with (tmp_path / "b").open("wb") as file:
        np.savez(file, a=model)
    assert same(memory_store.load(tmp_path / "b", mmap=True)["a"], model)
    assert same(memory_store.load(io.BytesIO(saved(model)), mmap=True), model)
    (tmp_path / "a").write_bytes(saved(model))
    monkeypatch.setattr(files, "copy_memory", lambda *_numbers: None)
    assert same(memory_store.load(tmp_path / "a", mmap=True), model)
    monkeypatch.setattr(files, "map_source", lambda _file: None)
    assert same(memory_store.load(tmp_path / "a", mmap=True), model)
