"""What goes through a channel: shapes, dtypes, fields, metadata; and what is refused, with the facts."""

from __future__ import annotations

import gc
import pickle
import time
from typing import Any

import numpy as np
import pytest

import shmarray as sa
from tests.helpers.processes import wait_until

DTYPES: dict[str, Any] = {
    "bool": "?",
    "half": "f2",
    "complex": "c8",
    "long double": np.longdouble,
    "big-endian": ">i4",
    "datetime": "M8[us]",
    "timedelta": "m8[D]",
    "bytes": "S5",
    "text": "U3",
    "void": "V7",
    "structured": [("x", "<f4"), ("y", ">i2", (2,)), ("name", "S3")],
    "with offsets": np.dtype({"names": ["a", "b"], "formats": ["u1", "f8"], "offsets": [3, 8], "itemsize": 24}),
}


def filled(shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    """Make an array whose every byte that counts is other than zero, and which equals itself."""
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return np.ones(shape, dtype)
    if dtype.names is not None:
        array = np.zeros(shape, dtype)
        for name in dtype.names:
            array[name] = b"abc" if dtype[name].kind == "S" else 7
        return array
    if dtype.kind in "SU":
        return np.full(shape, "abc", dtype)
    if dtype.kind == "V":
        return np.full(shape, np.void(b"\x01\x02\x03\x04\x05\x06\x07"), dtype)
    return np.arange(1, 1 + int(np.prod(shape))).reshape(shape).astype(dtype)


def test_every_dtype_of_fixed_size_goes_through(store: sa.Store) -> None:
    """Put and got, lent and received: dtype and values are those that were put."""
    for dtype in DTYPES.values():
        _pass_dtype(store, dtype)


def _pass_dtype(store: sa.Store, dtype: Any) -> None:
    item = filled((2, 3), dtype)
    channel = store.channel((2, 3), dtype)
    channel.put(item)
    with channel.loan() as frame:
        assert frame.dtype == item.dtype
        frame[...] = item
    got = channel.get()
    with channel.receive() as frame:
        for arrived in (got, frame):
            assert arrived.dtype == item.dtype
            assert arrived.shape == (2, 3)
            assert arrived.tobytes() == item.tobytes() or (arrived == item).all()
    assert type(got) is np.ndarray


def test_every_shape_goes_through(store: sa.Store) -> None:
    """Scalars too; the default dtype is float, as NumPy's."""
    for shape in ((), (1,), (7, 1, 2), (1, 1, 1, 1, 1)):
        _pass_shape(store, shape)


def _pass_shape(store: sa.Store, shape: tuple[int, ...]) -> None:
    channel = store.channel(shape)
    item = filled(shape, float)
    for _ in range(2):
        assert channel.put(item)
    with channel.receive() as frame:
        assert (frame.shape, frame.dtype, frame.tolist()) == (shape, np.dtype(float), item.tolist())
    assert channel.get().tolist() == item.tolist()


def test_a_sub_array_dtype_lengthens_the_shape(store: sa.Store, any_guard: None) -> None:
    """As in `np.zeros`."""
    channel = store.channel((None, 2), ("i4", (3,)), max_shape=(5, 2))
    channel.put(np.ones((4, 2, 3), "i4"))
    assert channel.get().shape == (4, 2, 3)


@pytest.mark.core
def test_what_is_put_is_made_an_array_of_the_channels_dtype(store: sa.Store) -> None:
    """Lists, numbers, arrays in any order of memory, shared arrays; cast as NumPy casts within a kind, and no further."""
    channel = store.channel((2, 3), "f4", slots=4)
    whole = np.arange(12.0).reshape(2, 6)
    for item in (
        [[1, 2, 3], [4, 5, 6]],
        whole[:, ::2],
        np.asfortranarray(whole[:, :3]),
        whole[::-1, 5:2:-1],
        store.ones((2, 3), "i8"),
    ):
        channel.put(item)
        got = channel.get()
        assert got.dtype == np.float32
        assert got.flags.c_contiguous
        assert got.tolist() == np.asarray(item, "f4").tolist()
    with pytest.raises(TypeError, match="complex128"):
        channel.put(np.ones((2, 3), complex))
    with pytest.raises(TypeError, match="float64"):
        store.channel(3, "i8").put([1.5, 2, 3])
    with pytest.raises(TypeError):
        channel.put(np.array([["a", "b", "c"]] * 2))
    with pytest.raises(TypeError, match="mask"):
        channel.put(np.ma.masked_array(np.ones((2, 3)), mask=True))
    with pytest.raises(TypeError):
        channel.put({"a": 1})
    stats = channel.stats()
    assert (stats.sent, stats.depth, stats.held) == (5, 0, ())


@pytest.mark.parametrize("length", [3, 20_000])
def test_what_does_not_fit_is_refused_and_takes_no_slot(store: sa.Store, length: int) -> None:
    """The ShapeError has the shape as a fact and names the one wanted; small items and large ones."""
    channel = store.channel((length, 2), "f4", slots=1)
    for shape in ((length,), (length, 3), (2, length), (), (0, 2), (length, 2, 1)):
        with pytest.raises(sa.ShapeError, match=f"{length}, 2") as caught:
            channel.put(np.ones(shape, "f4"))
        assert caught.value.shape == shape
        assert pickle.loads(pickle.dumps(caught.value)).facts == caught.value.facts
        with pytest.raises(sa.ShapeError):
            channel.loan(shape=shape).__enter__()
    assert channel.stats().held == ()
    assert channel.put(np.ones((length, 2), "f4"), block=False)


@pytest.mark.core
def test_lengths_vary_up_to_their_bounds(store: sa.Store) -> None:
    """From nothing to the largest, in each dimension that varies and in no other; a loan is the largest unless it says otherwise."""
    channel = store.channel((None, 4, None), "i2", max_shape=(3, 4, 5))
    for shape in ((3, 4, 5), (0, 4, 5), (2, 4, 1), (1, 4, 0)):
        item = filled(shape, "i2")
        channel.put(item)
        with channel.loan(shape=shape) as frame:
            assert frame.shape == shape
            frame[...] = item
        with channel.receive() as frame:
            assert frame.shape == shape
            assert (frame == item).all()
        assert channel.get().tolist() == item.tolist()
    with channel.loan() as frame:
        assert frame.shape == (3, 4, 5)
    unfit: list[tuple[int, ...]] = [(4, 4, 5), (3, 3, 5), (3, 4, 6), (3, 4)]
    for wrong in unfit:
        with pytest.raises(sa.ShapeError, match="at most") as caught:
            channel.put(np.ones(wrong, "i2"))
        assert caught.value.shape == wrong
        with pytest.raises(sa.ShapeError):
            channel.loan(shape=wrong).__enter__()
    with pytest.raises(sa.ShapeError):
        channel.loan(shape=(None, 4, 5)).__enter__()
    assert store.channel(None, "u1", max_shape=9).put(np.ones(3, "u1"))


@pytest.mark.core
def test_several_arrays_go_as_one_item(store: sa.Store) -> None:
    """Fields with shapes and dtypes of their own, some of which vary: a dict in, a dict out, all or nothing."""
    form = {"rgb": ((4, 5, 3), "u1"), "points": ((None, 2), ">f8"), "when": ((), "M8[ns]")}
    channel = store.channel(form, max_shape={"points": (6, 2)})
    item = {"rgb": filled((4, 5, 3), "u1"), "points": filled((3, 2), ">f8"), "when": np.datetime64("2020-02-02", "ns")}
    channel.put(item)
    with channel.loan(shape={"points": (1, 2)}) as frame:
        assert {name: array.shape for name, array in frame.items()} == {"rgb": (4, 5, 3), "points": (1, 2), "when": ()}
        frame["rgb"][...], frame["points"][...], frame["when"][...] = 1, 2, item["when"]
    with channel.loan() as frame:
        assert frame["points"].shape == (6, 2)
        frame.clear()  # the dict is this block's own
    got = channel.get()
    assert {name: got[name].tolist() for name in form} == {name: np.asarray(item[name]).tolist() for name in form}
    with channel.receive() as frame:
        assert (frame["rgb"].sum(), frame["points"].tolist(), frame["when"]) == (60, [[2, 2]], item["when"])
        assert not any(array.flags.writeable for array in frame.values())
    assert set(channel.get()) == set(form)
    for wrong in ({"rgb": item["rgb"]}, {**item, "more": 1}, item["rgb"], [1, 2, 3]):
        with pytest.raises(TypeError, match="'rgb', 'points', 'when'"):
            channel.put(wrong)
    with pytest.raises(sa.ShapeError, match="'points'"):
        channel.put({**item, "points": np.ones((7, 2))})
    for shape in ((4, 5, 3), {"point": (1, 2)}, 7):
        with pytest.raises(TypeError, match="mapping of fields"):
            channel.loan(shape=shape).__enter__()
    assert channel.stats().held == ()


# -- metadata ----------------------------------------------------------------------------------------------------------

METAS = [0, "text", {"a": (1, 2.5)}, np.float32(1.5), np.int64(3), np.arange(3).tolist(), b"", False]


@pytest.mark.parametrize("length", [3, 20_000])
def test_metadata_go_with_their_item(store: sa.Store, length: int) -> None:
    """By put, by loan, and set within the block; None where none were given, also in a slot that had some before."""
    channel = store.channel(length, slots=1)
    item = np.zeros(length)
    for meta in METAS:
        with channel.loan(meta="other"):
            pass
        with (received := channel.receive()):
            assert received.meta == "other"
        with (loan := channel.loan()):
            loan.meta = meta
        with (received := channel.receive()):
            assert received.meta == meta
            assert type(received.meta) is type(meta)
        channel.put(item, meta=meta)
        with (received := channel.receive()):
            assert received.meta == meta
        for _ in range(2):
            channel.put(item)
            with (received := channel.receive()):
                assert received.meta is None


def test_the_frame_of_an_item_is_that_of_its_block(store: sa.Store) -> None:
    """Of the item's own lengths and fields, and not writable, as long as the block lasts."""
    varying = store.channel((None, 3), "i4", max_shape=(9, 3), slots=2)
    fields = store.channel({"a": (3, "u1"), "b": ((2, 2), "f4")}, slots=2)
    varying.put(np.ones((5, 3), "i4"))
    fields.put({"a": np.arange(3, dtype="u1"), "b": np.eye(2, dtype="f4")})
    with (item := varying.receive()) as frame:
        assert item.frame.shape == (5, 3)
        assert np.shares_memory(item.frame, frame)
        assert not item.frame.flags.writeable
    with (item := fields.receive()) as parts:
        assert item.frame.keys() == parts.keys()
        assert all(np.shares_memory(item.frame[name], parts[name]) for name in parts)
    with pytest.raises(sa.GuardError, match="not in hand"):
        _ = item.frame


@pytest.mark.parametrize("length", [3, 20_000])
def test_metadata_that_cannot_go_leave_nothing_half_done(store: sa.Store, length: int) -> None:
    """Too large, or nothing that pickles: the error says so, the item is dropped, its slot is free."""
    channel = store.channel(length, slots=1, meta_bytes=64)
    item = np.zeros(length)
    with pytest.raises(ValueError, match=r"64.*meta_bytes"):
        channel.put(item, meta="x" * 64)
    with pytest.raises(Exception, match="pickle"):
        channel.put(item, meta=lambda: None)
    with pytest.raises(ValueError, match="meta_bytes"), channel.loan(meta=b"x" * 100):
        pass
    with pytest.raises(Exception, match="pickle"), (loan := channel.loan()):
        loan.meta = lambda: None
    assert not loan.published
    with pytest.raises(ValueError, match="0 for them"):
        store.channel(length, meta_bytes=0).put(item, meta=1)
    stats = channel.stats()
    assert (stats.sent, stats.depth, stats.held) == (0, 0, ())
    assert channel.put(item, block=False, meta=b"x" * 30)


def test_an_item_has_a_number_and_a_time(store: sa.Store) -> None:
    """Numbers count what was published from 0 on, whatever was dropped before; the time is that of publishing."""
    channel = store.channel(2, slots=2)
    for number in range(5):
        with pytest.raises(ZeroDivisionError), channel.loan():
            raise ZeroDivisionError
        with channel.loan() as frame:
            frame[:] = number
            before = time.time()
        after = time.time()
        with (item := channel.receive()) as frame:
            assert (item.sequence, item.missed, frame.tolist()) == (number, 0, [number] * 2)
            assert before - 0.001 <= item.time <= after + 0.001


# -- frames ------------------------------------------------------------------------------------------------------------


def test_what_is_received_cannot_be_written_and_what_is_got_is_private(store: sa.Store) -> None:
    """A frame is read-only; a copy is writable, and no slot changes with it."""
    channel = store.channel(4, "i8", slots=1)
    channel.put(np.arange(4))
    with channel.receive() as frame:
        assert type(frame) is np.ndarray
        with pytest.raises(ValueError, match="read-only"):
            frame[0] = 1
    channel.put(np.arange(4))
    copy = channel.get()
    copy[:] = 9
    channel.put(np.arange(4))
    assert channel.get().tolist() == [0, 1, 2, 3]
    assert copy.tolist() == [9] * 4


def test_frames_kept_beyond_their_block_stay_memory(store: sa.Store) -> None:
    """Of a loan, of a receipt, a view of one, of a channel that is dropped and deleted: never a crash; and they keep the memory."""
    before = store.stats().anonymous
    channel = store.channel((3, 1000), "i8", slots=2)
    with channel.loan() as lent:
        lent[:] = 5
    with channel.receive() as received:
        row = received[1]
    del channel
    gc.collect()
    assert lent.sum() == 5 * 3000
    lent[:] = 6  # not for anyone else: the channel has gone
    assert row[0] in (5, 6)
    assert store.stats().anonymous == before + 1
    del lent, received
    assert row.sum() == 6000
    del row
    wait_until(lambda: store.stats().anonymous == before)


def test_a_frame_is_the_slot_itself(store: sa.Store) -> None:
    """No copy on the way: with one slot, what is lent and what is received lie at the same address."""
    channel = store.channel(1000, slots=1)
    with channel.loan() as frame:
        address = frame.__array_interface__["data"][0]
    with channel.receive() as frame:
        assert frame.__array_interface__["data"][0] == address
        assert address % 64 == 0


def test_slots_are_used_again_the_one_freed_last_first(store: sa.Store) -> None:
    """A stream that keeps up stays in one slot, and in the processor's cache."""
    channel = store.channel(1000, slots=8)
    places = set()
    for _ in range(20):
        with channel.loan() as frame:
            places.add(frame.__array_interface__["data"][0])
        channel.get()
    assert len(places) == 1


# -- what is refused ---------------------------------------------------------------------------------------------------

WRONG: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
    ((3, object), {}, sa.DTypeError, "object"),
    ((3, [("a", "O")]), {}, sa.DTypeError, "object"),
    ((3, "no dtype"), {}, TypeError, "no dtype"),
    (((None, 3),), {}, sa.ShapeError, "max_shape"),
    (((None, 3),), {"max_shape": (4, 5)}, sa.ShapeError, "does not go with"),
    (((None, 3),), {"max_shape": 4}, sa.ShapeError, "does not go with"),
    (((2, 3),), {"max_shape": (4, 3)}, sa.ShapeError, "does not go with"),
    (((None, 3),), {"max_shape": (None, 3)}, sa.ShapeError, "not an integer"),
    (((None, 3),), {"max_shape": (-1, 3)}, sa.ShapeError, "negative"),
    ((-1,), {}, sa.ShapeError, "negative"),
    (((2, 0),), {}, sa.ShapeError, "no bytes"),
    ((2.5,), {}, sa.ShapeError, "integer|float"),
    (("abc",), {}, sa.ShapeError, "integer|str"),
    (((1 << 40, 1 << 40),), {}, ValueError, "."),
    ((3,), {"slots": 0}, ValueError, "slots"),
    ((3,), {"slots": -1}, ValueError, "slots"),
    ((3,), {"slots": 1 << 20}, ValueError, "slots"),
    ((3,), {"slots": 2.5}, TypeError, "slots must be a whole number"),
    ((3,), {"mode": "stack"}, ValueError, "mode.*'queue', 'broadcast'"),
    ((3,), {"full": "wait"}, ValueError, "full.*'block', 'drop-new', 'drop-oldest'"),
    ((3,), {"mode": None}, ValueError, "mode"),
    ((3,), {"meta_bytes": -1}, ValueError, "meta_bytes"),
    ((3,), {"meta_bytes": "1"}, TypeError, "meta_bytes must be a whole number"),
    ((3,), {"spin": -1}, ValueError, "spin"),
    ((3,), {"spin": float("nan")}, ValueError, "spin"),
    ((3,), {"spin": float("inf")}, ValueError, "spin"),
    ((3,), {"mode": "broadcast", "redeliver": True}, ValueError, "redeliver"),
    ((3,), {"name": ""}, sa.ArrayNameError, "."),
    ((3,), {"name": 7}, sa.ArrayNameError, "."),
    (({},), {}, ValueError, "fields"),
    (({1: (3, "u1")},), {}, ValueError, "texts"),
    (({"a": 3},), {}, TypeError, r"\(shape, dtype\)"),
    (({"a": (3, 4, 5)},), {}, TypeError, r"\(shape, dtype\)"),
    (({"a": (3, "u1")}, "u1"), {}, TypeError, "dtype of its own"),
    (({"a": ((None,), "u1")},), {}, sa.ShapeError, "max_shape"),
    (({"a": ((None,), "u1")},), {"max_shape": (3,)}, TypeError, "mapping"),
    (({"a": ((None,), "u1")},), {"max_shape": {"b": 3}}, TypeError, "mapping"),
    (({"a": (3, object)},), {}, sa.DTypeError, "object"),
]  # fmt: skip


def test_a_channel_that_cannot_be_is_refused_with_a_clear_error(store: sa.Store, any_guard: None) -> None:
    """Each wrong argument has an error that names it, and nothing is left."""
    for arguments, options, error, text in WRONG:
        try:
            with pytest.raises(error, match=text):
                store.channel(*arguments, **options)
        except BaseException as failure:
            failure.add_note(f"{arguments} {options}")
            raise
    stats = store.stats()
    assert (stats.named, stats.anonymous) == (0, 0)
