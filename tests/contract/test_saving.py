"""Saving: what is in shared memory is in a file afterwards, exactly, and under its name at once or not at all."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import socket
import stat
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import shmarray as sa
from shmarray import saving
from shmarray._os import files
from tests.contract.structures import Fixed, Point
from tests.contract.views import RECORD, models, views_of
from tests.helpers import leaks
from tests.helpers.processes import Child
from tests.helpers.tracing import Interrupted, Interrupter, count_calls, fail_at

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SMALL = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def same(one: Any, other: Any) -> bool:
    """Whether two arrays are equal in dtype, shape, elements and, as far as `.npy` files tell them, order."""
    fortran = [array.flags.f_contiguous and not array.flags.c_contiguous for array in (one, other)]
    if (one.dtype, one.shape, fortran[0]) != (other.dtype, other.shape, fortran[1]):
        return False
    sizes = [one.dtype[name].itemsize for name in one.dtype.names or ()]
    if sizes and sum(sizes) != one.dtype.itemsize:  # bytes between fields are nobody's
        return bool((np.asarray(one) == np.asarray(other)).all())
    opaque = [np.asarray(array).view(f"V{array.itemsize}") if array.nbytes else array for array in (one, other)]
    return opaque[0].tobytes() == opaque[1].tobytes()


@pytest.mark.core
def test_every_view_is_saved_as_numpy_saves_it(store: sa.Store, tmp_path: Path) -> None:
    """Any dtype, order, and any view: `numpy.load` and `store.load` give what was saved; NumPy writes the very same file."""
    for model in models().values():
        shared = store.put(model)
        for name, view in views_of(shared).items():
            store.save(tmp_path / "a.npy", view)
            np.save(tmp_path / "b.npy", np.asarray(view))
            assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes() or view.dtype.names, name
            assert same(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy")), name
            assert same(store.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy")), name
    assert sorted(os.listdir(tmp_path)) == ["a.npy", "b.npy"]


def test_bytes_between_fields_are_saved_as_they_are(memory_store: sa.Store) -> None:
    """Of a struct with gaps every byte comes back, from dense arrays and from strided ones."""
    raw = np.arange(6 * RECORD.itemsize, dtype="u1")
    for array in (raw.view(RECORD).reshape(2, 3), raw.view(RECORD)[::2], raw.view(RECORD).reshape(2, 3).T):
        file = io.BytesIO()
        memory_store.save(file, array)
        file.seek(0)
        loaded = memory_store.load(file)
        opaque = array.view(f"V{RECORD.itemsize}")
        assert np.asarray(loaded).view(opaque.dtype).tolist() == opaque.tolist()


@SMALL
@given(data=st.data())
def test_any_array_of_hypothesis_comes_back(memory_store: sa.Store, tmp_path: Path, data: st.DataObject) -> None:
    """Saved and loaded, alone and in an archive, arrays are as they were; or the dtype is refused, and then NumPy loses it too."""
    dtypes = hnp.array_dtypes(allow_subarrays=True) | hnp.scalar_dtypes()
    model = data.draw(hnp.arrays(dtypes, hnp.array_shapes(min_dims=0, min_side=0)))
    model = np.asarray(model, order=data.draw(st.sampled_from("CF")))
    if model.ndim:
        model = model[..., :: data.draw(st.sampled_from([1, 2, -1]))]
    path = tmp_path / "a"
    memory_store.save(path, model)
    assert same(memory_store.load(path), model if model.flags.forc else np.ascontiguousarray(model))
    memory_store.save(path, {"a": model, "b": model.T}, compressed=data.draw(st.booleans()))
    tree = memory_store.load(path)
    assert same(tree["b"], model.T if model.flags.forc else np.ascontiguousarray(model.T))


@pytest.mark.core
def test_a_tree_is_saved_as_an_archive(store: sa.Store, tmp_path: Path) -> None:
    """By name, as a tree, as a dict, as a dataclass: NumPy loads it, and so does a store; numbers and texts become 0-d arrays."""
    path = tmp_path / "a.npz"
    arrays = {"w": np.arange(6.0).reshape(2, 3, order="F"), "a/b": np.ones(3, ">i2"), "größe": np.zeros((0, 2), "U3")}
    tree = store.put(arrays, name="all")
    values: list[Any] = ["all", tree, arrays, store.put({"x": 1, **arrays})]
    for value in values:
        for compressed in (False, True):
            store.save(path, value, compressed=compressed)
            with np.load(path, allow_pickle=False) as loaded:
                assert all(same(loaded[name], array) for name, array in arrays.items())
            again = store.load(path)
            assert all(same(again[name], array) for name, array in arrays.items())
            with zipfile.ZipFile(path) as archive:
                kinds = {info.compress_type for info in archive.infolist()}
                assert kinds == {zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED}
    store.save(path, {"n": 7, "x": 2.5, "t": "text", "s": np.float32(1), "b": True})
    with np.load(path) as loaded:
        assert {name: loaded[name][()] for name in loaded.files} == {"n": 7, "x": 2.5, "t": "text", "s": 1, "b": True}
    store.save(path, {})
    assert len(store.load(path)) == 0
    store.save(path, store.put(Fixed(np.ones(2), "label")))
    assert sorted(store.load(path)) == ["label", "numbers"]


def test_what_no_file_of_numpy_can_hold_is_refused(memory_store: sa.Store, tmp_path: Path) -> None:
    """Objects, dtypes that NumPy would alter, nested trees, names that no member can have: before anything is written."""
    overlapping = np.dtype({"names": ["a", "b"], "formats": ["i4", "i2"], "offsets": [0, 2]})
    lost = np.dtype({"names": ["a", ""], "formats": ["i4", "V4"]})
    disordered = np.dtype({"names": ["a", "b"], "formats": ["i4", "i4"], "offsets": [4, 0]})
    cases: list[tuple[Any, type[Exception], str]] = [
        (np.array([None]), sa.DTypeError, "object"),
        ({"o": np.array([(1, None)], [("n", "i4"), ("o", object)])}, sa.DTypeError, r"\['o'\]"),
        (np.zeros(2, overlapping), sa.DTypeError, "cannot hold"),
        (np.zeros(2, lost), sa.DTypeError, "cannot hold"),
        (memory_store.zeros(2, disordered), sa.DTypeError, "cannot hold"),
        (np.ma.masked_array([1, 2], [False, True]), TypeError, "mask"),
        ([1, 2], TypeError, "asarray"),
        (None, TypeError, "NoneType"),
        (memory_store.Lock(), TypeError, "Lock"),
        (memory_store.put([np.ones(2)]), TypeError, "SharedSequence"),
        (memory_store.put(Point(np.ones(2), 1)), TypeError, "SharedSequence"),
        ({"a": [np.ones(2)]}, TypeError, r"\['a'\].*list"),
        (memory_store.put({"a": {"b": np.ones(2)}}), TypeError, r"\['a'\].*SharedMapping"),
        ({"a": None}, TypeError, "NoneType"),
        ({1: np.ones(2)}, TypeError, "have names"),
        ({"a\0b": np.ones(2)}, ValueError, "cannot name"),
        ({"\ud800": np.ones(2)}, ValueError, "cannot name"),
        ({"x" * 70_000: np.ones(2)}, ValueError, "cannot name"),
        ({"a": 1 << 70}, sa.DTypeError, "object"),
        ("none", sa.ArrayNotFoundError, "none"),
    ]
    for value, kind, word in cases:
        with pytest.raises(kind, match=word):
            memory_store.save(tmp_path / "a", value)
    with pytest.raises(ValueError, match=r"for \.npz files"):
        memory_store.save(tmp_path / "a", np.ones(2), compressed=True)
    with pytest.raises(ValueError, match=r"call it .*a\.npy"):
        memory_store.save(tmp_path / "a.npz", np.ones(2))
    with pytest.raises(ValueError, match=r"call it .*a\.npz"):
        memory_store.save(tmp_path / "a.npy", {"a": np.ones(2)})
    unknown: Any = {"compresed": True}
    with pytest.raises(TypeError, match="compresed"):
        memory_store.save(tmp_path / "a", np.ones(2), **unknown)
    for place in (7, None, io.StringIO()):
        with pytest.raises(TypeError, match="give a path"):
            memory_store.save(place, np.ones(2))
    assert os.listdir(tmp_path) == []


def test_long_and_unusual_headers_come_back(memory_store: sa.Store, tmp_path: Path) -> None:
    """Thousands of fields (version 2 of the format), names outside Latin-1 (version 3): NumPy and a store load them, in silence."""
    many = np.zeros(2, [(f"field{number}", "i1") for number in range(5000)])
    for array in (many, np.ones(3, [("größe", "f4")]), np.ones(3, [("Ω\\'\"", "f4"), ("日本", "i2")])):
        memory_store.save(tmp_path / "a", array)
        assert same(np.load(tmp_path / "a", max_header_size=1 << 20), array)
        assert same(memory_store.load(tmp_path / "a"), array)
        assert (tmp_path / "a").stat().st_size % 64 == array.nbytes % 64


@pytest.mark.core
def test_anything_with_write_takes_it(memory_store: sa.Store, tmp_path: Path) -> None:
    """Open files, raw ones that take a part, gzip, sockets, memory: arrays one behind the other, and archives."""
    first, second = memory_store.ones((2, 3)), np.arange(5)[::2]

    class Part(io.RawIOBase):
        def __init__(self) -> None:
            self.data = b""

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            self.data += bytes(data[:7])
            return min(7, len(data))

    part = Part()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with (
            theirs.makefile("wb") as sent,
            (tmp_path / "a").open("wb") as opened,
            gzip.open(tmp_path / "b", "wb") as packed,
        ):
            for file in (sent, opened, packed, part):
                memory_store.save(file, first)
                memory_store.save(file, second)
        with (
            ours.makefile("rb") as received,
            (tmp_path / "a").open("rb") as read,
            gzip.open(tmp_path / "b") as unpacked,
        ):
            for source in (received, read, unpacked, io.BytesIO(part.data)):
                assert same(memory_store.load(source), first)
                assert same(memory_store.load(source), second)
    part = Part()
    memory_store.save(part, {"a": first})
    assert same(memory_store.load(io.BytesIO(part.data))["a"], first)
    with open("/dev/null", "wb") as nowhere:
        memory_store.save(nowhere, first)
    memory_store.save("/dev/null", first)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


# -- the file as a whole -----------------------------------------------------------------------------------------------


@pytest.mark.core
def test_a_file_is_replaced_in_one_step(
    memory_store: sa.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is written the old one stands; who has it open keeps it; its mode stays, a link to it is followed."""
    path, link = tmp_path / "a.npy", tmp_path / "link"
    memory_store.save(path, np.arange(3))
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    path.chmod(0o640)
    link.symlink_to("a.npy")
    seen: list[Any] = []
    real = saving._pieces

    def look(array: Any) -> Any:
        seen.append((np.load(path).tolist(), sorted(os.listdir(tmp_path))))
        return real(array)

    monkeypatch.setattr(saving, "_pieces", look)
    with path.open("rb") as old:
        memory_store.save(link, np.arange(5))
        assert memory_store.load(old).tolist() == [0, 1, 2]
    assert seen == [([0, 1, 2], ["a.npy", "link"])]
    assert np.load(path).tolist() == [0, 1, 2, 3, 4]
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert sorted(os.listdir(tmp_path)) == ["a.npy", "link"]


def test_where_nothing_can_be_written_the_system_says_so(memory_store: sa.Store, tmp_path: Path) -> None:
    """A directory, a missing directory, a full device: its own error, and the old file stays."""
    with pytest.raises(IsADirectoryError):
        memory_store.save(tmp_path, np.ones(2))
    with pytest.raises(FileNotFoundError):
        memory_store.save(tmp_path / "none" / "a.npy", np.ones(2))
    with pytest.raises(OSError, match="No space left"):
        memory_store.save("/dev/full", np.ones(100_000))
    with pytest.raises(OSError, match="too long"):
        memory_store.save(tmp_path / ("x" * 300), np.ones(2))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("way", ["unnamed", "named"])
def test_whatever_system_call_fails_the_old_file_or_the_new_stands(
    memory_store: sa.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each call to the kernel fails once, with and without unnamed files: one of the two is there whole, and nothing beside it."""
    if way == "named":
        monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)  # the kernel then answers EISDIR
    path, new = tmp_path / "a.npy", np.arange(1000)
    before, failed = leaks.descriptors(), 0
    for old in (None, np.zeros(5)):

        def deed() -> None:
            memory_store.save(path, new)

        def ready(old: Any = old) -> None:
            path.unlink(missing_ok=True)
            if old is not None:
                np.save(path, old)

        ready()
        calls = count_calls(deed)
        assert [call.function for call in calls].count("os.fsync") == 2  # the file, and its name
        for number in (5, 17, 28):  # EIO, EEXIST, ENOSPC
            for n in range(1, len(calls) + 1):
                ready()
                try:
                    with fail_at(n, number):
                        deed()
                except OSError as error:
                    error.__traceback__ = None
                    failed += 1
                where = (calls[n - 1], number)
                assert os.listdir(tmp_path) in (["a.npy"], [] if old is None else ["a.npy"]), where
                if path.exists():
                    assert np.load(path).tolist() in (new.tolist(), None if old is None else old.tolist()), where
                assert leaks.descriptors() == before, where
    assert failed > 10
    assert capfd.readouterr() == ("", "")


def test_a_name_taken_meanwhile_is_replaced(
    memory_store: sa.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two who save under a new name at once: the last one stands, whole."""
    path = tmp_path / "a.npy"
    real = files._give_name

    def late(*args: Any) -> bool:
        np.save(path, np.zeros(2))
        return real(*args)

    monkeypatch.setattr(files, "_give_name", late)
    memory_store.save(path, np.arange(4))
    assert np.load(path).tolist() == [0, 1, 2, 3]
    assert os.listdir(tmp_path) == ["a.npy"]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_moment_leaves_nothing_open_and_nothing_half_made(
    memory_store: sa.Store, tmp_path: Path, *, request: pytest.FixtureRequest
) -> None:
    """Whatever handler raises between any two calls of ours, while loading or saving: no descriptor, no block, no file beside."""
    path, archive = tmp_path / "a.npy", tmp_path / "a.npz"
    deeds: list[Callable[[], Any]] = [
        lambda: memory_store.save(path, np.arange(9)),
        lambda: memory_store.save(archive, {"a": np.arange(9)}),
        lambda: memory_store.load(path, "x"),
        lambda: memory_store.load(path, "x", mmap=True),
        lambda: memory_store.load(archive, "x"),
    ]
    for deed in deeds:
        deed()
        memory_store.pop("x", None)
        before, n, reached = leaks.descriptors(), 1, True
        while reached:
            with contextlib.suppress(Interrupted), Interrupter(n) as interrupter:
                deed()
            reached = interrupter.count >= n
            where = (n, interrupter.where)
            memory_store.pop("x", None)
            stats = memory_store.stats()
            assert (stats.named, stats.anonymous, stats.drafts) == (0, 0, 0), where
            assert leaks.descriptors() == before, where
            assert sorted(os.listdir(tmp_path)) == sorted({"a.npy", "a.npz"} & set(os.listdir(tmp_path))), where
            n += 1 if request.config.getoption("--deep") else 5


KILLED = """
import sys
import numpy as np, shmarray as sa
from shmarray import saving
from tests.helpers.processes import report

pieces = saving._pieces
def slowly(array):
    for piece in pieces(array):
        yield piece[:100]
        report("in the midst")
        input()
saving._pieces = slowly
with sa.Store() as store:
    store.save(sys.argv[1], {"a": np.ones(10000)} if sys.argv[1].endswith("z") else np.ones(10000))
"""


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_a_process_killed_while_it_saves_leaves_the_old_file(memory_store: sa.Store, tmp_path: Path, name: str) -> None:
    """SIGKILL half-way: what was there is there, whole, and nothing else; where nothing was, there is nothing."""
    for old in (None, np.arange(3)):
        if old is not None:
            (tmp_path / name).write_bytes(b"old")
        with Child(KILLED, str(tmp_path / name)) as child:
            child.wait_for("in the midst")
            child.kill()
        assert os.listdir(tmp_path) == ([] if old is None else [name])
    assert (tmp_path / name).read_bytes() == b"old"


def test_a_closed_store_saves_nothing(tmp_path: Path) -> None:
    """`StoreClosedError`, and no file."""
    with sa.Store() as store:
        pass
    with pytest.raises(sa.StoreClosedError):
        store.save(tmp_path / "a", np.ones(2))
    assert os.listdir(tmp_path) == []


def test_pieces_make_no_difference_to_the_file(
    memory_store: sa.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written in pieces of some elements, dense or not, the file is the same."""
    cases: list[Callable[[Any], Any]] = [lambda a: a, lambda a: a.T, lambda a: a[::-1, ::2], lambda a: a[:, 1]]
    model = memory_store.put(np.arange(60.0).reshape(6, 10))
    for size in (16 << 20, 100, 8, 1):
        monkeypatch.setattr(saving, "_PIECE", size)
        for view in cases:
            memory_store.save(tmp_path / "a", view(model))
            assert np.load(tmp_path / "a").tolist() == view(model).tolist()
