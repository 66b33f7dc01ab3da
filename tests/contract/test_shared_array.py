"""SharedArray is an ndarray: its views share, what is computed from it and copied from it does not."""

from __future__ import annotations

import copy
import io
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shmarray as sa
from tests.contract.views import facts, models, views_of

if TYPE_CHECKING:
    from collections.abc import Callable

Maker = dict[str, "Callable[[Any], Any]"]

COMPUTED: Maker = {
    "a + 1": lambda a: a + 1,
    "1 + a": lambda a: 1 + a,
    "a + a": lambda a: a + a,
    "-a": lambda a: -a,
    "byteswap": lambda a: a.byteswap(),
    "a @ a.T": lambda a: a @ a.T,
    "a > 3": lambda a: a > 3,
    "a == a": lambda a: a == a.copy(),
    "divmod": lambda a: np.divmod(a, 2)[0],
    "np.sin": np.sin,
    "np.add.outer": lambda a: np.add.outer(a[0], a[0]),
    "np.add.reduce": lambda a: np.add.reduce(a, axis=0),
    "np.add.accumulate": lambda a: np.add.accumulate(a, axis=1),
    "vectorize": np.vectorize(float),
    "sum by axis": lambda a: a.sum(axis=0),
    "sum, dimensions kept": lambda a: a.sum(keepdims=True),
    "mean": lambda a: a.mean(axis=1),
    "cumsum": lambda a: a.cumsum(),
    "max": lambda a: a.max(axis=0),
    "any": lambda a: a.any(axis=0),
    "clip": lambda a: a.clip(1, 3),
    "round": lambda a: a.round(),
    "dot": lambda a: a.dot(a.T),
    "argsort": lambda a: a.argsort(),
    "argmax": lambda a: a.argmax(axis=0),
    "astype": lambda a: a.astype("f4"),
    "astype, same": lambda a: a.astype(a.dtype),
    "np.sort": np.sort,
    "np.concatenate": lambda a: np.concatenate([a, a]),
    "np.stack": lambda a: np.stack([a, a]),
    "np.where": lambda a: np.where(a > 3, a, 0),
    "np.pad": lambda a: np.pad(a, 1),
    "np.unique": np.unique,
    "np.tril": np.tril,
    "np.median": lambda a: np.median(a, axis=0),
    "np.einsum": lambda a: np.einsum("ij,kj->ik", a, a),
    "np.kron": lambda a: np.kron(a, a),
    "np.fft.fft": np.fft.fft,
    "np.linalg.norm": lambda a: np.linalg.norm(a, axis=0),
    "np.linalg.svd": lambda a: np.linalg.svd(a)[0],
    "np.array": np.array,
    "np.copy": np.copy,
    "np.asarray": np.asarray,
    "__array__": lambda a: a.__array__(),
}

COPIED: Maker = {
    "mask": lambda a: a[a >= 0],
    "list of indices": lambda a: a[[0, 1]],
    "array of indices": lambda a: a[np.array([1, 0])],
    "take": lambda a: a.take([0, 1]),
    "repeat": lambda a: a.repeat(2),
    "compress": lambda a: a.compress([True, False, True], axis=0),
    "flatten": lambda a: a.flatten(),
    "ravel that must copy": lambda a: a.T.ravel(),
    "reshape that must copy": lambda a: a.T.reshape(-1),
    "np.array, subok": lambda a: np.array(a, subok=True),
    "np.roll": lambda a: np.roll(a, 1),
    "np.gradient": lambda a: np.gradient(a)[0],
    "np.nan_to_num": np.nan_to_num,
    "empty_like": np.empty_like,
    "zeros_like": np.zeros_like,
    "delete": lambda a: np.delete(a, 0, 0),
}

PRIVATE: Maker = {
    "copy()": lambda a: a.copy(),
    "copy(order)": lambda a: a.copy(order="F"),
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
    "deepcopy of a dict": lambda a: copy.deepcopy({"a": [a]})["a"][0],
    "copy of a view": lambda a: copy.copy(a[::-1].T),
    "deepcopy of a view": lambda a: copy.deepcopy(a[::2]),
}


def numbers(store: sa.Store) -> Any:
    """Make an array of twelve different numbers. No fixture: pytest would hold it until after the leak guard."""
    return store.put(np.arange(12.0).reshape(3, 4), name="numbers")


@pytest.mark.core
def test_a_shared_array_is_an_ndarray(store: sa.Store) -> None:
    """It is one to isinstance and to NumPy, knows its name, and says where its memory is."""
    named, anonymous = store.zeros((2, 3), name="train/images/0"), store.zeros(3)
    for array in (named, anonymous):
        assert isinstance(array, np.ndarray)
        assert isinstance(array, sa.SharedArray)
    assert (named.name, anonymous.name) == ("train/images/0", None)
    assert (named.is_shared, anonymous.is_shared) == (True, True)
    assert named.block_name != anonymous.block_name
    view: Any = named[1:].T
    assert view.block_name == named.block_name
    assert (named.ndim, named.size, named.nbytes, len(named)) == (2, 6, 48, 2)


def test_a_shared_array_is_not_made_by_its_constructor(store: sa.Store) -> None:
    """It would be private memory that looks shared: a TypeError shows who makes one. What NumPy makes in C is as before."""
    makers: list[Callable[[], Any]] = [
        lambda: sa.SharedArray((3,)),
        lambda: sa.SharedArray(shape=3, dtype="u1"),
        lambda: sa.SharedArray([1, 2]),
    ]
    for make in makers:
        with pytest.raises(TypeError, match=r"store\.zeros"):
            make()
    a = store.zeros((2, 3))
    assert type(a.view(np.ndarray).view(sa.SharedArray)) is sa.SharedArray
    assert pickle.loads(pickle.dumps(a[[0]])).shape == (1, 3)


class Declining:
    """Another library's array, which adds itself to none of NumPy's."""

    __array_priority__ = 1000

    def __radd__(self, other: Any) -> str:
        """Add in its own way."""
        return "its own"


def test_what_will_not_be_added_in_place_is_a_type_error(store: sa.Store) -> None:
    """`a += tensor` bound `NotImplemented` to the name, and added nothing."""
    a = store.zeros(3, name="a")
    with pytest.raises(TypeError, match=r"\nGive NumPy's array: a \+= numpy\.asarray\(b\)"):
        a += Declining()
    with pytest.raises(TypeError, match="Declining"):
        store["a"] += Declining()
    a += 1
    a += np.arange(3)
    before = a
    a += [1, 1, 1]
    assert a is before
    assert (store["a"].tolist(), a + Declining()) == ([2, 3, 4], "its own")


def test_what_is_given_for_the_result_is_the_result(store: sa.Store) -> None:
    """The very object, whether it is given by name or by position."""
    x, out = store.put(np.arange(6.0).reshape(2, 3)), store.zeros(3)
    assert np.sum(x, axis=0, out=out) is out
    assert np.sum(x, 0, None, out) is out
    assert np.concatenate([x[0, :1], x[1, :2]], out=out) is out
    assert np.take(x[0], [0, 1, 2], out=out) is out
    assert np.clip(x[0], 1, 2, out=out) is out
    assert out.tolist() == [1, 1, 2]


def test_bytes_are_swapped_in_place_on_demand(store: sa.Store) -> None:
    """`byteswap(True)` changes the memory that all see, and returns the array; without, the result is a plain copy."""
    a = store.put(np.array([1, 256], "u2"))
    assert a.byteswap(inplace=True) is a
    assert a.tolist() == [256, 1]
    assert type(a.byteswap()) is np.ndarray


def test_every_view_is_the_same_memory(store: sa.Store) -> None:
    """Slices, transposes, fields and the rest are SharedArrays over one block, with the name of the whole."""
    for label, model in models().items():
        array = store.put(model, name=label)
        for name, view in views_of(array).items():
            assert type(view) is sa.SharedArray, (label, name)
            assert view.is_shared, (label, name)
            assert view.name == label
            assert view.block_name == array.block_name
            assert np.shares_memory(view, array) or view.size == 0


def test_a_view_writes_into_the_whole(store: sa.Store) -> None:
    """Views are views: what is written through them is there, and read-only ones refuse."""
    array = store.put(np.arange(24).reshape(2, 3, 4), name="x")
    array[1, ::-1, ::2].T[0] = -1
    model = np.arange(24).reshape(2, 3, 4)
    model[1, ::-1, ::2].T[0] = -1
    assert array.tolist() == model.tolist()
    view = array[0]
    view.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1
    assert not view[1:].flags.writeable
    array[0] = 5
    assert view.sum() == 60


def test_indexing_one_element_gives_a_scalar(memory_store: sa.Store) -> None:
    """As with any ndarray: a NumPy scalar, private."""
    shared = numbers(memory_store)
    assert type(shared[1, 2]) is np.float64
    assert type(shared.item(3)) is float
    assert type(shared.sum()) is np.float64
    assert [type(row) for row in shared] == [sa.SharedArray] * 3


@pytest.mark.core
def test_what_numpy_computes_is_a_plain_ndarray(memory_store: sa.Store) -> None:
    """Operators, ufuncs, reductions and functions give what they give for a plain array, of its type too."""
    shared = numbers(memory_store)
    read_only = shared[...]
    read_only.flags.writeable = False
    for array in (shared, read_only, shared[::-1, ::2]):
        plain = np.array(array)
        for name, function in COMPUTED.items():
            result, model = function(array), function(plain)
            assert type(result) is type(model), name
            np.testing.assert_array_equal(result, model, err_msg=name)
            assert result.dtype == model.dtype


@pytest.mark.core
def test_linear_algebra_takes_shared_arrays(memory_store: sa.Store) -> None:
    """Every function of `numpy.linalg` and `numpy.fft` gives what it gives for a plain array, and leaves its argument alone."""
    model = np.array([[4.0, 1, 0], [1, 3, 1], [0, 1, 2]])
    shared, vector = memory_store.put(model), memory_store.put(np.array([1.0, 2, 3]))
    one: list[Any] = [
        np.linalg.inv, np.linalg.pinv, np.linalg.det, np.linalg.slogdet, np.linalg.cholesky, np.linalg.qr, np.linalg.svd, np.linalg.eig,
        np.linalg.eigh, np.linalg.eigvals, np.linalg.eigvalsh, np.linalg.svdvals, np.linalg.norm, np.linalg.cond, np.linalg.matrix_rank,
        np.linalg.trace, np.linalg.diagonal, np.linalg.matrix_transpose,
        np.fft.fft, np.fft.ifft2, np.fft.rfft, np.fft.fftshift, np.fft.hfft,
    ]  # fmt: skip
    two: list[Any] = [
        np.linalg.solve, np.dot, np.matmul, np.inner, np.outer, np.linalg.vecdot, lambda a, b: np.tensordot(a, b, 1),
        lambda a, b: np.linalg.lstsq(a, b)[0],
        lambda a, _: np.linalg.matrix_power(a, 3), lambda a, b: np.linalg.multi_dot([a, a, b]),
        lambda a, b: np.linalg.solve(a[::-1].T, b),
    ]  # fmt: skip
    for function in one:
        compare(function(shared), function(model))
    for function in two:
        compare(function(shared, vector), function(model, np.array(vector)))
    np.testing.assert_array_equal(shared, model)


def compare(result: Any, model: Any) -> None:
    """Check that two results, or tuples of results, are the same; none may be called shared that is not a view."""
    if isinstance(model, tuple):
        assert type(result) is type(model)
        for mine, theirs in zip(result, model, strict=True):
            compare(mine, theirs)
    else:
        np.testing.assert_array_equal(result, model)


def test_a_copy_made_by_numpy_is_private(memory_store: sa.Store) -> None:
    """Whatever its type is called, it is no shared memory: it says so, and cannot be unlinked."""
    shared = numbers(memory_store)
    for name, function in COPIED.items():
        result = function(shared)
        assert not np.shares_memory(result, shared), name
        assert not repr(result).startswith("SharedArray"), name
        if isinstance(result, sa.SharedArray):
            assert (result.is_shared, result.name, result.block_name) == (False, None, None), name
            with pytest.raises(ValueError, match="private"):
                result.unlink()
        result[...] = -1
    assert shared.tolist() == np.arange(12.0).reshape(3, 4).tolist()


@pytest.mark.core
def test_copies_are_plain_and_private(memory_store: sa.Store) -> None:
    """`copy()`, `copy.copy` and `deepcopy` give ordinary arrays, with the order that NumPy would give them."""
    shared = numbers(memory_store)
    plain = np.array(shared)
    for name, function in PRIVATE.items():
        result, model = function(shared), function(plain)
        assert type(result) is np.ndarray, name
        assert facts(result) == facts(model), name
        np.testing.assert_array_equal(result, model, err_msg=name)
        result[...] = -1
    assert shared[2, 3] == 11


@pytest.mark.core
def test_in_place_operations_write_shared_memory(memory_store: sa.Store) -> None:
    """Augmented assignment, `out=`, fill, sort and the rest change the block, and give back the shared array itself."""
    array = memory_store.put(np.array([3.0, 1.0, 2.0]), name="x")
    other = memory_store["x"]
    same = array
    same += 1
    assert same is array
    assert np.multiply(array, 10, out=array) is array
    assert other.tolist() == [40, 20, 30]
    array.sort()
    assert other.tolist() == [20, 30, 40]
    array.fill(5)
    np.copyto(array[1:], [6, 7])
    array.put([0], 4)
    np.add.at(array, [2], 1)
    array.clip(0, 6, out=array)
    assert other.tolist() == [4, 6, 6]
    assert type(np.sum(np.ones((2, 3)), axis=0, out=array)) is sa.SharedArray
    assert other.tolist() == [2, 2, 2]


@pytest.mark.core
def test_repr_says_what_is_shared(memory_store: sa.Store) -> None:
    """The word stands where the memory is shared; `str` and formatting are NumPy's."""
    shared = numbers(memory_store)
    plain = np.array(shared)
    assert repr(shared) == repr(plain).replace("array", "SharedArray", 1)
    assert repr(shared[0]) == "SharedArray" + repr(plain[0]).removeprefix("array")
    assert repr(shared.copy()) == repr(plain)
    assert str(shared) == str(plain)
    assert f"{shared[0]}" == f"{plain[0]}"
    assert f"{shared[0, 1]:.2f}" == "1.00"


def test_comparison_truth_and_hash_are_those_of_an_ndarray(memory_store: sa.Store) -> None:
    """Elementwise comparison, no truth value of many elements, no hash."""
    shared = numbers(memory_store)
    assert (shared == shared.copy()).all()
    assert type(shared != 3) is np.ndarray
    with pytest.raises(ValueError, match="ambiguous"):
        bool(shared)
    with pytest.raises(TypeError, match="unhashable"):
        hash(shared)


@pytest.mark.core
def test_zero_size_and_0d_arrays_are_arrays(store: sa.Store) -> None:
    """They can be made, named, looked up and computed with; a 0-d array can be written."""
    empty, point = store.zeros((0, 3), name="empty"), store.full((), 7, name="point")
    assert (store["empty"].shape, store["empty"].size, (empty + 1).shape) == ((0, 3), 0, (0, 3))
    assert empty.sum() == 0
    assert point.shape == ()
    assert int(point) == point[()] == 7
    point[()] = 8
    point += 1
    assert store["point"] == 9
    store["empty"] = np.zeros((2, 0))
    assert store["empty"].shape == (2, 0)
    assert empty.shape == (0, 3)


@pytest.mark.core
def test_a_scope_frees_its_array(store: sa.Store) -> None:
    """`with store.zeros(...) as a:` deletes at the end, also after an exception; views stay valid, names are free."""
    for name in (None, "scratch"):
        with store.zeros(4, name=name) as array:
            array[:] = 3
            assert store.stats().named + store.stats().anonymous == 1
        assert store.stats().named + store.stats().anonymous == 0
        assert array.sum() == 12
    with pytest.raises(ZeroDivisionError), store.ones(2, name="scratch") as array:
        array[0] = 1 // 0
    assert "scratch" not in store
    with store.ones(2) as array:
        array.unlink()
        array.unlink()
    with store.ones(3, name="whole") as whole:
        part: Any = whole[1:]
        with part:
            assert part.sum() == 2
    assert len(store) == store.stats().anonymous == 0


def test_other_views_of_the_buffer_keep_the_memory(store: sa.Store) -> None:
    """A memoryview, `np.frombuffer`, a plain view: each holds the mapping when the array itself has gone."""
    kinds: list[Callable[[Any], Any]] = [
        memoryview,
        np.frombuffer,
        np.asarray,
        lambda a: a.data,
        lambda a: a.view(np.ndarray)[1:],
    ]
    kinds += [lambda a: a.flat, iter, lambda a: a.view(np.recarray), lambda a: a.ctypes]
    for kind in kinds:
        array = store.put(np.arange(4.0))
        held = kind(array)
        del array
        assert store.stats().anonymous == 1, kind
        if not hasattr(held, "data_as"):
            assert list(np.asarray(list(held), float))[-1] == 3.0
        del held
        assert store.stats().anonymous == 0


def test_files_hold_values_not_handles(memory_store: sa.Store) -> None:
    """`np.save` and `np.savez` write the contents, from a view too."""
    shared = numbers(memory_store)
    file = io.BytesIO()
    np.savez(file, whole=shared, part=shared[::-1, ::2])
    file.seek(0)
    loaded = np.load(file)
    np.testing.assert_array_equal(loaded["whole"], np.arange(12.0).reshape(3, 4))
    np.testing.assert_array_equal(loaded["part"], np.arange(12.0).reshape(3, 4)[::-1, ::2])
    assert shared.tobytes() == np.arange(12.0).tobytes()
