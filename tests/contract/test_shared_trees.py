"""A nested structure of arrays in one block: read as what it was, small as a handle, shared to the last leaf."""

from __future__ import annotations

import collections.abc
import copy
import pickle
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

import shmarray as sa
from tests.contract.structures import Fixed, Layer, Point


def model() -> dict[Any, Any]:
    """Make a structure of every kind of container, leaf and value."""
    return {
        "layers": [
            Layer(np.ones((2, 3)), np.zeros(3, ">f4"), origin=Point(1, np.arange(2))),
            Fixed(np.arange(3), "last"),
        ],
        "point": Point(x=1.5, y=np.asfortranarray(np.arange(6.0).reshape(2, 3))),
        "epoch": 7,
        "notes": ("text", b"bytes", None, True, 2.5, 1j, -(10**30), float("inf")),
        "scalar": np.float32(2.5),
        "0-d": np.array(4),
        "empty": [np.zeros((0, 3)), {}, [], ()],
        5: OrderedDict(b=np.ones(1), a=np.zeros(1)),
    }


def assert_same(one: Any, other: Any) -> None:
    """Compare two structures: types of containers, values, and contents of arrays."""
    if isinstance(other, np.ndarray):
        assert isinstance(one, np.ndarray)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
        return
    assert type(one) is type(other)
    if isinstance(other, dict):
        assert list(one) == list(other)
        for key in other:
            assert_same(one[key], other[key])
    elif isinstance(other, (list, tuple)):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_same(mine, theirs)
    elif isinstance(other, (Layer, Fixed)):
        for name in other.__dataclass_fields__:
            assert_same(getattr(one, name), getattr(other, name))
    else:
        assert one == other


@pytest.mark.core
def test_a_tree_gives_back_the_structure_that_was_put(store: sa.Store) -> None:
    """`unflatten` builds the same containers, records and values; arrays are shared, scalars private."""
    for name in (None, "tree"):
        tree = store.put(model(), name=name)
        assert isinstance(tree, sa.SharedTree)
        assert tree.name == name
        assert_same(tree.unflatten(), model())
    store["tree"] = [model()]
    assert_same(store["tree"].unflatten(), [model()])
    leaf = store["tree"][0]["point"].y
    assert (type(leaf), leaf.flags.f_contiguous) == (sa.SharedArray, True)
    assert np.shares_memory(leaf, store["tree"].unflatten()[0]["point"].y)


@pytest.mark.core
def test_a_tree_reads_like_its_outermost_container(store: sa.Store) -> None:
    """A Mapping or a Sequence, with attributes for fields; it cannot be written."""
    tree: Any = store.put(model())
    assert issubclass(type(tree), collections.abc.Mapping)
    assert list(tree) == list(model())
    assert (len(tree), "epoch" in tree, "nothing" in tree, tree.get("nothing", 3)) == (8, True, False, 3)
    assert (tree["epoch"], tree["notes"][0], tree["scalar"]) == (7, "text", 2.5)
    assert type(tree["scalar"]) is np.float32
    layers = tree["layers"]
    assert isinstance(layers, collections.abc.Sequence)
    assert isinstance(layers, sa.SharedTree)
    assert (len(layers), len(layers[-1]), len(layers[:1])) == (2, 2, 1)
    assert layers[0].weight.shape == (2, 3)
    assert layers[0]["rate"] == layers[0].rate == 0.5
    assert tree["point"].x == tree["point"][0] == 1.5
    assert tree["layers"][0].origin.y.tolist() == [0, 1]
    assert tree["layers"][1].label == "last"
    assert tree[5]["b"].sum() == 1
    assert {type(value) for value in tree.values()} > {sa.SharedArray, int}
    acts: list[Any] = [
        lambda: tree["nothing"],
        lambda: layers[2],
        lambda: tree["point"].z,
        lambda: tree["layers"][0].weights,
    ]
    for act in acts:
        with pytest.raises((KeyError, IndexError, AttributeError)):
            act()
    with pytest.raises(TypeError):
        tree["epoch"] = 8
    with pytest.raises(TypeError):
        layers[0] = 8


def test_a_tree_is_made_by_a_store_alone() -> None:
    """Whoever calls the class is told so, and gets no object without a block."""
    for given in ((), ({"a": np.ones(3)},)):
        with pytest.raises(TypeError, match=r"store\.put"):
            sa.SharedTree(*given)


def test_numpy_makes_no_array_of_the_keys_of_a_tree(store: sa.Store) -> None:
    """What stands for a dict or a dataclass is refused, with what to take instead, also in a list; sequences are arrays as before."""
    tree: Any = store.put({"w": np.ones(2), "b": np.zeros(2)})
    record: Any = store.put(Fixed(np.arange(3), "last"))
    numbered, nothing = store.put({0: np.ones(2), 1: np.zeros(2)}), store.put({})
    acts: list[Any] = [np.asarray, np.sum, lambda value: np.multiply(value, 2), lambda value: np.array([value])]
    remedies = [
        (tree, r"tree\['w'\]"),
        (record, r"tree\['numbers'\]"),
        (numbered, r"tree\[0\]"),
        (nothing, "nothing in it"),
    ]
    for value, remedy in remedies:
        for act in [*acts, lambda value: np.asarray(value, float)]:
            with pytest.raises(TypeError, match=remedy):
                act(value)
    with pytest.raises(TypeError, match="is no array"):
        np.asarray(store.put([{"a": 1}, {"a": 2}]))
    assert np.asarray(tree, dtype=object)[()] is tree
    boxed = np.array([tree, record], dtype=object)
    assert (boxed.shape, boxed[0] is tree, boxed[1] is record) == ((2,), True, True)
    assert np.asarray(store.put([np.ones(2), np.zeros(2)])).tolist() == [[1, 1], [0, 0]]
    assert np.asarray(store.put(Point(1, 2.5))).tolist() == [1, 2.5]


def test_leaves_are_the_same_memory_wherever_they_are_reached(store: sa.Store) -> None:
    """Through the tree, a part of it, the unflattened structure or a pickle: one write is seen by all."""
    tree = store.put(model(), name="tree")
    tree["layers"][0].weight[0, 0] = 50
    again: Any = store["tree"]
    assert again["layers"][0]["weight"][0, 0] == 50
    assert tree.unflatten()["layers"][0].weight[0, 0] == 50
    loaded = pickle.loads(pickle.dumps(tree["layers"][0].weight))
    loaded[0, 0] = 51
    assert again["layers"][0].weight[0, 0] == 51
    assert loaded.block_name == tree.block_name


def test_the_source_stays_private(store: sa.Store) -> None:
    """What was put is copied: neither side sees the other's later writes."""
    source: dict[str, Any] = {"a": np.zeros(3), "b": [np.zeros(3)]}
    tree = store.put(source)
    source["a"][0] = 1
    tree["b"][0][:] = 2
    assert (tree["a"].sum(), source["b"][0].sum()) == (0, 0)


def test_the_handle_of_a_tree_is_small_however_many_leaves_it_has(store: sa.Store) -> None:
    """Ten thousand leaves or one: a few hundred bytes, under every protocol, for parts too; it is one block."""
    tree = store.put({"many": [np.full(3, number) for number in range(10_000)], "few": Point(1, np.ones(2))})
    assert store.stats().anonymous == 1
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert len(pickle.dumps(tree, protocol)) < 300
        assert len(pickle.dumps(tree["many"], protocol)) < 300
        assert len(pickle.dumps(tree["many"][5000], protocol)) < 300
        assert pickle.loads(pickle.dumps(tree["many"][9999], protocol)).tolist() == [9999] * 3
        part = pickle.loads(pickle.dumps(tree["few"], protocol))
        assert (part.x, part.y.sum(), type(part.unflatten())) == (1, 2, Point)
    loaded = pickle.loads(pickle.dumps(tree["many"]))
    loaded[7][:] = -1
    assert tree["many"][7].tolist() == [-1, -1, -1]


def test_a_tree_lives_as_an_array_does(store: sa.Store) -> None:
    """An anonymous tree is kept by any part of it or handle to it; a scope and `unlink()` free all; a name can be replaced."""
    part = store.put(model())["layers"][1].numbers
    assert store.stats().anonymous == 1
    handle = pickle.dumps(part)
    del part
    assert store.stats().anonymous == 1
    assert pickle.loads(handle).tolist() == [0, 1, 2]
    assert store.stats().anonymous == 0
    with store.put(model(), name="scoped") as tree:
        assert "scoped" in store
    assert "scoped" not in store
    assert tree["epoch"] == 7
    tree.unlink()
    store["x"] = np.ones(3)
    store["x"] = model()
    assert type(store["x"]).__name__ == "SharedMapping"
    store["x"] = np.ones(3)
    assert type(store["x"]) is sa.SharedArray


def test_a_copied_tree_writes_into_no_shared_memory(store: sa.Store) -> None:
    """`deepcopy` gives private arrays, as it does for a SharedArray, alone or inside other objects."""
    tree: Any = store.put(model())
    for copied in (copy.deepcopy(tree), copy.deepcopy([tree])[0]):
        copied["layers"][0].weight[...] = -1
        copied["point"].y[...] = -1
    assert tree["layers"][0].weight.sum() == 6
    assert tree["point"].y.sum() == 15


def test_a_shared_tree_can_be_put_again(store: sa.Store) -> None:
    """A tree, a part of one and shared arrays within a structure are copied into the new block."""
    tree = store.put(model(), name="one")
    store["two"] = tree
    store["three"] = {"part": tree["layers"].unflatten(), "leaf": tree["point"].y}
    tree["point"].y[...] = -1
    tree["layers"][0].weight[...] = -1
    assert_same(store["two"].unflatten(), model())
    assert store["three"]["leaf"].sum() == 15
    assert store["three"]["part"][0].weight.sum() == 6


def test_a_leaf_is_changed_in_place_by_any_operator(store: sa.Store) -> None:
    """`tree[key] += 1` is no assignment of another value; any other value is refused with the remedy, and nothing has changed."""
    mapping = store.put({"a": np.zeros(3), "b": {"c": np.ones(2)}, "n": 5}, name="t")
    mapping["a"] += 2
    store["t"]["b"]["c"] *= 3
    sequence = store.put([np.zeros(2), 7])
    sequence[0] -= 1
    sequence[-2] = sequence[0]
    assert (mapping["a"].tolist(), store["t"]["b"]["c"].tolist(), sequence[0].tolist()) == ([2, 2, 2], [3, 3], [-1, -1])
    refused: list[tuple[Any, Any, Any]] = [
        (mapping, "a", np.zeros(3)),
        (mapping, "a", mapping["a"][:2]),
        (mapping, "b", {}),
        (mapping, "n", 6),
        (sequence, 0, sequence[0][::-1]),
        (sequence, 1, 8),
    ]
    for tree, key, value in refused:
        with pytest.raises(TypeError, match=r"fixed\nWrite into a leaf, tree\[key\]\[\.\.\.\]"):
            tree[key] = value
    with pytest.raises(KeyError):
        mapping["missing"] = np.zeros(3)


def test_a_field_of_a_tree_cannot_be_set(store: sa.Store) -> None:
    """It would be this object's alone, and nobody else would see it."""
    tree = store.put(Point(np.zeros(2), np.ones(2)))
    for name in ("x", "typo"):
        with pytest.raises(AttributeError, match=r"fixed\nWrite into a leaf"):
            setattr(tree, name, np.ones(2))
    tree.x[:] = 4
    assert tree.x.tolist() == [4, 4]


def test_a_leaf_that_occurs_twice_is_stored_once(store: sa.Store) -> None:
    """The same object in two places stays one array."""
    shared = np.zeros(3)
    tree = store.put([shared, {"again": shared}])
    tree[0][0] = 5
    assert tree[1]["again"][0] == 5


@pytest.mark.core
def test_what_has_no_place_in_a_tree_is_refused_whole(store: sa.Store) -> None:
    """Sets, objects, local classes, object arrays deep inside: a TypeError that names the path, and no block stays."""

    class Local(Point):
        """A class that no other process can import."""

    wrong: list[Any] = [
        {"a": [1, {2}]},
        [object()],
        {"a": np.array([None])},
        [Local(1, 2)],
        {("a", "b"): 1},
        [np.array(["x"], object)],
    ]
    wrong += [
        [np.array(["text"], np.dtypes.StringDType())],
        [np.ma.masked_array([1], [True])],
        {"a": lambda: 1},
        [bytearray(b"x")],
    ]
    for value in wrong:
        with pytest.raises(TypeError):
            store.put(value, name="x")
        with pytest.raises(TypeError):
            store["x"] = value
    with pytest.raises(sa.DTypeError) as caught:
        store.put({"deep": [0, {"leaf": np.array([None])}]})
    assert "deep" in str(caught.value)
    assert "leaf" in str(caught.value)
    cycle: list[Any] = []
    cycle.append(cycle)
    with pytest.raises(ValueError, match="itself"):
        store.put(cycle)
    stats = store.stats()
    assert (stats.named, stats.anonymous, stats.drafts, stats.nbytes) == (0, 0, 0, 0)
    assert list(store) == []
