"""Every view of a shared array pickles as a small handle to the same memory."""

from __future__ import annotations

import copyreg
import io
import itertools
import multiprocessing
import pickle
from multiprocessing import reduction

import numpy as np
import pytest

import shmarray as sa
from tests.contract.views import facts, models, views_of
from tests.helpers import leaks

PROTOCOLS = range(2, pickle.HIGHEST_PROTOCOL + 1)
SIMPLE = 300


@pytest.mark.core
def test_every_view_arrives_as_the_same_memory(store: sa.Store) -> None:
    """Shape, strides, dtype, flags and contents are those of the view, under every protocol; a write shows in the original."""
    for (label, model), name in itertools.product(models().items(), (None, "named/array")):
        with store.put(model, name=name) as array:
            for (kind, view), protocol in itertools.product(views_of(array).items(), PROTOCOLS):
                handle = pickle.dumps(view, protocol)
                loaded = pickle.loads(handle)
                case = label, kind, protocol
                assert type(loaded) is sa.SharedArray, case
                assert facts(loaded) == facts(view), case
                assert (loaded.name, loaded.block_name) == (array.name, array.block_name), case
                assert loaded.__array_interface__["data"] == view.__array_interface__["data"] or not view.size, case
                assert len(handle) < SIMPLE + 100 * (model.dtype.names is not None), case


def test_the_size_of_a_handle_has_nothing_to_do_with_that_of_the_array(store: sa.Store) -> None:
    """A few hundred bytes, for 80 bytes as for 16 MiB, named or not, whole or a view."""
    for name in (None, "frames"):
        with store.zeros(10, name=name) as small:
            sizes = [len(pickle.dumps(small)), len(pickle.dumps(small[1::2]))]
        with store.zeros(2 << 20, name=name) as large:
            for view, size in zip((large, large[1::2]), sizes, strict=True):
                assert len(pickle.dumps(view)) <= size + 16 < SIMPLE


def test_a_handle_of_a_long_name_or_a_wide_dtype_stays_small(store: sa.Store) -> None:
    """The longest name adds its own length; a view with its own dtype adds that dtype."""
    long = store.zeros(10, name="é" * 127)
    assert len(pickle.dumps(long)) < SIMPLE + 255
    wide = store.zeros(10, [(f"field {number}", "f8") for number in range(100)])
    assert len(pickle.dumps(wide)) < SIMPLE
    assert len(pickle.dumps(wide["field 7"])) < SIMPLE


@pytest.mark.core
def test_every_kind_of_pickler_makes_a_handle(store: sa.Store) -> None:
    """Also pickle written in Python, that of multiprocessing, out-of-band buffers, `copyreg`'s old protocols."""
    array = store.put(np.arange(6.0).reshape(2, 3))
    view = array[:, ::-1]
    file = io.BytesIO()
    pickle._Pickler(file, 5).dump(view)
    buffers: list[pickle.PickleBuffer] = []
    made = {
        "in Python": file.getvalue(),
        "of multiprocessing": bytes(reduction.ForkingPickler.dumps(view)),
        "with buffers": pickle.dumps(view, 5, buffer_callback=buffers.append),
        "protocol 0": pickle.dumps(view, 0),
        "protocol 1": pickle.dumps(view, 1),
    }
    for number, (name, data) in enumerate(made.items()):
        assert len(data) < 2 * SIMPLE, name
        loaded = pickle.loads(data)
        assert type(loaded) is sa.SharedArray
        loaded[0, 0] = number
        assert array[0, 2] == number
    assert buffers == []
    function, arguments = view.__reduce__()[:2]
    assert np.shares_memory(function(*arguments), array)


def test_a_table_of_reducers_for_ndarray_does_not_catch_it(store: sa.Store) -> None:
    """Who replaces how plain arrays are pickled, as joblib does, leaves shared arrays alone."""
    array = store.put(np.arange(3))
    file = io.BytesIO()
    pickler = pickle.Pickler(file)
    pickler.dispatch_table = copyreg.dispatch_table.copy()
    pickler.dispatch_table[np.ndarray] = lambda _: (str, ("caught",))
    pickler.dump([array, np.arange(3)])
    loaded, plain = pickle.loads(file.getvalue())
    assert plain == "caught"
    assert np.shares_memory(loaded, array)


def test_private_copies_travel_by_value(store: sa.Store) -> None:
    """What is not shared memory pickles as NumPy does, whatever its type."""
    array = store.put(np.arange(1000))
    for private in (array[array > 5], array[[1, 2, 3]], array.copy(), array + 1, array.flatten()):
        loaded = pickle.loads(pickle.dumps(private))
        assert type(loaded) is np.ndarray
        np.testing.assert_array_equal(loaded, private)
    assert store.stats().in_flight == 0


def test_one_object_pickled_twice_arrives_as_one(store: sa.Store) -> None:
    """Identity within a pickle is kept, and two views of one array arrive as two views of one array."""
    array = store.put(np.arange(4), name="x")
    one, two, part = pickle.loads(pickle.dumps([array, array, array[1:]]))
    assert one is two
    part[0] = 50
    assert one[1] == array[1] == 50


def test_containers_of_arrays_travel_as_handles(store: sa.Store) -> None:
    """A dict of lists of arrays is as large as its handles."""
    arrays = {f"key {number}": [store.zeros(1 << 16), store.zeros(1 << 16, name=str(number))] for number in range(10)}
    data = pickle.dumps(arrays)
    assert len(data) < 20 * SIMPLE
    loaded = pickle.loads(data)
    loaded["key 3"][0][:] = 3
    assert arrays["key 3"][0].sum() == 3 << 16


@pytest.mark.usefixtures("each_in_a_file")
def test_an_array_is_mapped_once_however_often_it_is_loaded(store: sa.Store) -> None:
    """Loading, looking up and loading views adds no second mapping, and no descriptor stays open."""
    for name in (None, "x"):
        array = store.zeros(1000, name=name)
        before = len(leaks.mappings()), len(leaks.descriptors())
        loaded = [pickle.loads(pickle.dumps(array[number:])) for number in range(20)]
        loaded += [store["x"] for _ in range(20) if name is not None]
        assert (len(leaks.mappings()), len(leaks.descriptors())) == before
        del loaded, array
        assert len(leaks.mappings()) == before[0] - 1


@pytest.mark.core
def test_a_handle_opens_an_array_that_nobody_here_holds(store: sa.Store) -> None:
    """A handle of a named array finds it by its name when no view is left; it may be loaded any number of times."""
    store["x"] = np.arange(3)
    handle = pickle.dumps(store["x"][1:])
    for _ in range(3):
        loaded = pickle.loads(handle)
        assert loaded.tolist() == [1, 2]
        del loaded


def test_a_read_only_view_arrives_read_only(store: sa.Store) -> None:
    """Nobody writes by accident at the other end what was handed out for reading."""
    array = store.put(np.arange(3))
    array.flags.writeable = False
    loaded = pickle.loads(pickle.dumps(array))
    with pytest.raises(ValueError, match="read-only"):
        loaded[0] = 1
    assert not pickle.loads(pickle.dumps(loaded[1:])).flags.writeable


def test_a_handle_goes_through_a_pipe_of_multiprocessing(store: sa.Store) -> None:
    """`send` and `recv` move a handle, not the array: what is sent is smaller than the pipe's own buffer."""
    array = store.zeros(1 << 20)
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        for _ in range(50):
            ours.send(array)  # 50 times 8 MiB would block: nobody reads
        theirs.recv()[7] = 1
    assert array[7] == 1
    assert store.release_unclaimed() == 49
