"""NumPy's constructors: what they make in shared memory is what NumPy makes in its own."""

from __future__ import annotations

import inspect
import itertools
import pickle
from typing import Any

import numpy as np
import pytest

import shmarray as sa
from tests.contract.views import dtype_facts

SHAPES: list[Any] = [(), 0, 5, (2, 3), [2, 3], (0, 4), (2, 0, 3), (3, 1, 2), np.int64(3), np.array([2, 2]), (1,) * 40]
DTYPES: list[Any] = [
    float, int, bool, complex, "f2", ">f4", "g", "G", "u1", "<i8", "l", "q",
    "S5", "U3", "S", "U", "S0", "V7", "M8[ns]", "m8[7D]", "M8",
    [("a", "<i2"), ("b", ">f8", (2,))], np.dtype([("a", "u1"), ("b", "f8")], align=True), ("f4", (2, 3)),
    np.dtype((np.record, [("r", "i4")])),
    {"names": ["x", "y"], "formats": ["i4", "S2"], "offsets": [8, 2], "itemsize": 20, "titles": ["the x", "the y"]},
]  # fmt: skip
MAKERS = ["empty", "zeros", "ones"]


def prototypes() -> dict[str, Any]:
    """Arrays of every layout that "K" and "A" look at."""
    block = np.arange(2 * 3 * 4 * 5, dtype="i4").reshape(2, 3, 4, 5)
    found: dict[str, Any] = {f"axes {axes}": block.transpose(axes) for axes in itertools.permutations(range(4))}
    found |= {
        f"axes {axes} in steps": block[::-1, ::2, :, ::-2].transpose(axes) for axes in itertools.permutations(range(4))
    }
    found |= {
        "broadcast": np.broadcast_to(np.arange(3.0), (4, 3)),
        "broadcast, transposed": np.broadcast_to(np.arange(3.0), (4, 2, 3)).transpose(2, 0, 1),
        "one column": block[:, :1, :, :1],
        "one column of Fortran": np.asfortranarray(block)[:, :1],
        "0-d": np.array(1.5),
        "empty": np.zeros((3, 0, 2), order="F"),
        "a list": [[1, 2], [3, 4]],
        "a number": 7,
        "text": np.array(["one", "three"]),
        "big-endian": np.arange(3, dtype=">i8"),
    }
    return found


def layout(array: np.ndarray[Any, Any]) -> tuple[Any, ...]:
    """Shape, dtype and order in memory; a stride matters where there is more than one step to take."""
    strides = tuple(step for step, length in zip(array.strides, array.shape, strict=True) if length > 1)
    return (
        array.shape, dtype_facts(array.dtype), strides if array.size else None,
        array.flags.c_contiguous, array.flags.f_contiguous, array.flags.writeable,
    )  # fmt: skip


@pytest.mark.core
@pytest.mark.parametrize("maker", MAKERS)
def test_a_constructor_makes_what_numpy_makes(memory_store: sa.Store, maker: str) -> None:
    """Shape, dtype, order and contents are NumPy's, for every shape and dtype that NumPy takes."""
    for shape, dtype, order in itertools.product(SHAPES, DTYPES, "CF"):
        if maker == "ones" and np.dtype(dtype).char == "V" and np.dtype(dtype).names is None:
            continue  # NumPy refuses a void of one
        model = getattr(np, maker)(shape, dtype, order)
        made = getattr(memory_store, maker)(shape, dtype, order)
        assert type(made) is sa.SharedArray
        assert layout(made) == layout(model), (shape, dtype, order)
        if maker != "empty":
            np.testing.assert_array_equal(made, model, err_msg=f"{shape}, {dtype}")
    assert getattr(memory_store, maker)((1,) * 64, "u1").ndim == 64


@pytest.mark.core
def test_the_signatures_are_those_of_numpy(memory_store: sa.Store) -> None:
    """The arguments have NumPy's names, order and defaults; what is ours is `name`, by keyword."""
    plain = "(shape: 'Any', dtype: 'DTypeLike' = <class 'float'>, order: 'Order' = 'C', *, name: 'str | None' = None)"
    for maker in MAKERS:
        assert str(inspect.signature(getattr(memory_store, maker))).startswith(plain)
    for maker in ("empty_like", "zeros_like", "ones_like", "full_like"):
        theirs = [name for name in inspect.signature(getattr(np, maker)).parameters if name not in ("subok", "device")]
        assert [*theirs, "name"] == list(inspect.signature(getattr(memory_store, maker)).parameters)
    assert list(inspect.signature(memory_store.full).parameters) == ["shape", "fill_value", "dtype", "order", "name"]


def test_defaults_are_those_of_numpy(memory_store: sa.Store) -> None:
    """No dtype means float, as does None; no order means C, as does None; small letters name orders too."""
    options: list[dict[str, Any]] = [{}, {"dtype": None}, {"order": None}, {"order": "c"}, {"order": "f"}]
    for maker, option in itertools.product(MAKERS, options):
        assert layout(getattr(memory_store, maker)((2, 3), **option)) == layout(getattr(np, maker)((2, 3), **option))
    model = np.asfortranarray(np.ones((2, 3)))
    orders: list[Any] = [None, "c", "f", "a", "k"]
    for order in orders:
        assert layout(memory_store.zeros_like(model, order=order)) == layout(np.zeros_like(model, order=order)), order


def test_an_order_that_numpy_refuses_is_refused(memory_store: sa.Store) -> None:
    """It is NumPy's own kind of error, and no block is made."""
    orders: list[Any] = ["K", "A", "Z", "", 5]
    for maker, wrong in itertools.product(MAKERS, orders):
        with pytest.raises((ValueError, TypeError)):
            getattr(np, maker)(3, order=wrong)
        with pytest.raises((ValueError, TypeError)):
            getattr(memory_store, maker)((3, 3), order=wrong)
    for wrong in orders[2:]:
        with pytest.raises((ValueError, TypeError)):
            memory_store.zeros_like(np.ones(3), order=wrong)
    assert memory_store.stats().anonymous == 0


@pytest.mark.core
def test_full_fills_as_numpy_does(memory_store: sa.Store) -> None:
    """The value decides the dtype unless one is given; it is converted and broadcast by NumPy's rules."""
    pair = np.dtype([("a", "i4"), ("b", "f8")])
    cases: list[tuple[Any, Any]] = [
        (7, None), (2.5, None), (1 + 2j, None), (True, None), ("text", None), (b"bytes", None), ([1, 2, 3], None),
        (np.float32(3), None), (np.datetime64("2020-01-02"), None), (1.9, "i4"), (7, ">u2"), ("long text", "U4"), ("abc", "S"),
        (0, "?"), (np.nan, "f2"), (np.array((1, 2.0), pair), None), (np.array((1, 2.0), pair)[()], pair), (1, pair),
    ]  # fmt: skip
    orders: list[Any] = ["C", "F"]
    for (value, dtype), order in itertools.product(cases, orders):
        model = np.full((2, 3), value, dtype, order)
        made = memory_store.full((2, 3), value, dtype, order)
        assert layout(made) == layout(model), (value, dtype)
        np.testing.assert_array_equal(made, model)


def test_a_value_that_does_not_fit_leaves_nothing(store: sa.Store) -> None:
    """NumPy's own error passes through, and no block stays."""
    for arguments in (((2, 3), [1, 2]), ((2,), 300, "u1"), ((2,), "text", "f8")):
        with pytest.raises((ValueError, OverflowError)) as ours:
            store.full(*arguments, name="x")
        with pytest.raises(type(ours.value)):
            np.full(*arguments)
    stats = store.stats()
    assert (stats.named, stats.anonymous, stats.drafts) == (0, 0, 0)


@pytest.mark.core
def test_the_like_family_follows_its_model_as_numpy_does(memory_store: sa.Store) -> None:
    """Shape, dtype and order in memory are those that NumPy chooses, for every order of axes."""
    orders: list[Any] = ["K", "A", "C", "F"]
    for (name, prototype), order in itertools.product(prototypes().items(), orders):
        model = np.zeros_like(prototype, order=order)
        assert layout(memory_store.zeros_like(prototype, order=order)) == layout(model), (name, order)
    transposed = prototypes()["axes (2, 0, 3, 1)"]
    for maker, order in itertools.product(("empty_like", "ones_like"), orders):
        made, model = getattr(memory_store, maker)(transposed, "f4", order), getattr(np, maker)(transposed, "f4", order)
        assert layout(made) == layout(model), (maker, order)
    np.testing.assert_array_equal(memory_store.ones_like(transposed), np.ones_like(transposed))
    filled = memory_store.full_like(transposed, 2.5, float)
    assert layout(filled) == layout(np.full_like(transposed, 2.5, float))
    np.testing.assert_array_equal(filled, np.full_like(transposed, 2.5, float))


def test_the_like_family_takes_another_shape(memory_store: sa.Store) -> None:
    """With `shape=` the order is kept where NumPy keeps it: when the number of axes is the same."""
    turned = prototypes()["axes (3, 1, 0, 2)"]
    shapes: list[Any] = [4, (), (2, 2), (5, 4, 3, 2), [1, 2, 3, 4], (0, 1, 2, 3), (2, 2, 2, 2, 2)]
    models = [turned, np.asfortranarray(turned), np.ascontiguousarray(turned)]
    orders: list[Any] = ["K", "A", "C", "F"]
    for shape, prototype, order in itertools.product(shapes, models, orders):
        model = np.zeros_like(prototype, order=order, shape=shape)
        assert layout(memory_store.zeros_like(prototype, order=order, shape=shape)) == layout(model), (shape, order)


def test_a_shared_array_is_a_model_like_any_other(store: sa.Store) -> None:
    """What is made like a shared array is another shared array, with memory of its own."""
    first = store.put(np.asfortranarray(np.arange(6.0).reshape(2, 3)), name="first")
    second = store.ones_like(first, name="second")
    assert (second.flags.f_contiguous, second.name) == (True, "second")
    assert not np.shares_memory(first, second)
    assert first[1, 2] == 5.0


@pytest.mark.core
def test_a_dtype_comes_back_exactly(store: sa.Store) -> None:
    """Looked up by name, or loaded from a handle, a dtype is the same to the last padding byte, title and unit."""
    for dtype in DTYPES:
        model = np.zeros((2, 2), dtype)
        store["x"] = model
        for found in (store["x"], pickle.loads(pickle.dumps(store["x"]))):
            assert dtype_facts(found.dtype) == dtype_facts(model.dtype), dtype
            assert found.shape == model.shape


def test_put_copies_in_the_order_of_the_original(store: sa.Store) -> None:
    """The copy has the contents and the axis order of the original, and no memory in common with it."""
    for name, prototype in prototypes().items():
        made = store.put(prototype) if not isinstance(prototype, list) else store.put(np.asarray(prototype))
        model = np.array(prototype, order="K", copy=True)
        assert layout(made) == layout(model), name
        np.testing.assert_array_equal(made, model, err_msg=name)
    source = np.arange(4)
    copy = store.put(source)
    source[0] = 9
    copy[1] = 8
    assert (source.tolist(), copy.tolist()) == ([9, 1, 2, 3], [0, 8, 2, 3])


def test_put_takes_what_asarray_takes(store: sa.Store, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Numbers, text, ranges, memory-mapped files, matrices, read-only and shared arrays: each gives a writable array."""
    read_only = np.arange(3)
    read_only.flags.writeable = False
    mapped = np.memmap(tmp_path_factory.mktemp("memmap") / "file", "f4", "w+", shape=(3,))
    mapped[:] = 4
    shared = store.put(np.arange(6).reshape(2, 3))
    sources: list[Any] = [
        5,
        2.5,
        "text",
        b"bytes",
        range(4),
        memoryview(b"abc"),
        read_only,
        mapped,
        np.float16(2),
        shared[::-1, 1:],
    ]
    for source in sources:
        made = store.put(source)
        assert type(made) is sa.SharedArray
        assert made.flags.writeable
        assert dtype_facts(made.dtype) == dtype_facts(np.asarray(source).dtype)
        np.testing.assert_array_equal(made, np.asarray(source))
    again = store.put(shared)
    again[...] = 0
    assert shared.sum() == 15


class Parameters:
    """A mapping in all but name, as those of torch are: NumPy would take its keys."""

    def keys(self) -> list[str]:
        """Give the names."""
        return ["w"]

    def __len__(self) -> int:
        """Say how many there are."""
        return 1

    def __getitem__(self, key: Any) -> Any:
        """Give a name by position, or an array by name."""
        return ["w"][key] if isinstance(key, int) else np.ones(2)


def test_a_mapping_in_all_but_name_is_refused_with_the_remedy(store: sa.Store) -> None:
    """Its values would be lost without a word."""
    with pytest.raises(sa.DTypeError, match=r"Parameters .*\nConvert it with dict\(\.\.\.\)\.") as caught:
        store.put(Parameters())
    assert isinstance(caught.value, TypeError)
    assert store.put(dict(Parameters()))["w"].tolist() == [1, 1]
    assert len(store) == 0


def test_a_masked_array_is_refused_with_the_remedy(store: sa.Store) -> None:
    """Its mask would be lost without a word; the message shows how to put both."""
    masked = np.ma.masked_array([1, 2], [False, True])
    with pytest.raises(TypeError, match=r"getmaskarray"):
        store.put(masked)
    with pytest.raises(TypeError, match=r"mask"):
        store["x"] = masked
    assert store.stats().named == store.stats().anonymous == 0


def test_a_name_makes_the_array_the_stores(store: sa.Store) -> None:
    """Every constructor takes `name=`: the array is then found under it, and is the same memory."""
    model = np.ones((2, 2))
    made = [
        store.empty(2, name="empty"), store.zeros(2, name="zeros"), store.ones(2, name="ones"), store.full(2, 7, name="full"),
        store.empty_like(model, name="empty_like"), store.zeros_like(model, name="zeros_like"),
        store.ones_like(model, name="ones_like"), store.full_like(model, 3, name="full_like"), store.put(model, name="put"),
    ]  # fmt: skip
    assert list(store) == sorted(array.name for array in made if array.name is not None)
    for array in made:
        array[...] = 4
        assert store[array.name].tolist() == np.full(array.shape, 4).tolist()


def test_a_typing_error_in_a_keyword_is_an_error() -> None:
    """A misspelt argument is a TypeError, never ignored, and leaves nothing."""
    with pytest.raises(TypeError):
        sa.Store(capasity=1)  # type: ignore[call-arg]
    with sa.Store() as store:
        calls: list[tuple[Any, tuple[Any, ...], str]] = [
            (store.zeros, (3,), "nmae"), (store.empty, (3,), "ordre"), (store.full, (3, 1), "dytpe"), (store.put, (1,), "names"),
            (store.zeros_like, (np.ones(3),), "shpae"), (store.check, (), "fixx"),
        ]  # fmt: skip
        for function, arguments, typo in calls:
            with pytest.raises(TypeError, match=typo):
                function(*arguments, **{typo: "x"})
        with pytest.raises(TypeError):
            store.zeros(3, float, "C", "name")  # type: ignore[call-arg]
        with pytest.raises(TypeError):
            store.check(True)  # type: ignore[call-arg]
        assert len(store) == store.stats().anonymous == 0


@pytest.mark.core
def test_what_is_equal_and_not_the_same_is_read_each_for_itself(memory_store: sa.Store) -> None:
    """Arrays of one kind are planned once; but 3.0 equals 3 and is no length, and dtypes that differ are equal too."""
    for _ in range(2):
        assert memory_store.zeros((3,), "i8").shape == (3,)
        assert memory_store.zeros(3, "i8").shape == (3,)
        for wrong in ((3.0,), 3.0, ("3",), (3, -1), [3.0]):
            with pytest.raises(sa.ShapeError):
                memory_store.zeros(wrong, "i8")
        for kind in ("l", "q", np.dtype("l"), np.dtype("q")):
            assert memory_store.empty(3, kind).dtype.char == np.dtype(kind).char
        told = np.dtype("f8", metadata={"unit": "m"})
        memory_store.empty(5, told)
        assert memory_store.empty(5, "f8").dtype.metadata is None
        assert memory_store.empty(5, np.dtype("f8")).dtype.metadata is None
        with pytest.raises(ValueError, match="order"):
            memory_store.empty(3, "i8", "Z")  # type: ignore[arg-type]  # that is the question
