"""Nested structures: taken apart into a description and arrays, and made again; what has no place in one is refused."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import gc
import json
import math
import struct
import sys
from collections import OrderedDict
from typing import Any, ClassVar, NamedTuple, Self, cast

import numpy as np
import pytest
from numpy._core._rational_tests import rational  # type: ignore[import-not-found]

from shmarray._format import trees
from shmarray._format.dtypes import identical
from shmarray._format.trees import MAX_DEPTH, Node, flatten, root, unflatten
from shmarray.errors import DTypeError


@pytest.fixture(autouse=True)
def _leak_guard() -> None:
    """Stand in for the leak guard: these functions open, map and start nothing."""


class Point(NamedTuple):
    """A namedtuple, the modern way."""

    x: Any
    y: Any = 0


Pair = collections.namedtuple("Pair", ["left", "right"])  # noqa: PYI024  the old way must work too


class Vector(Point):
    """A subclass of a namedtuple, with a place for attributes."""

    def norm(self) -> float:
        """Only a method; it does not matter."""
        return math.hypot(self.x, self.y)

    def __iter__(self) -> Any:
        """Something else than the fields."""
        return iter(("not", "the", "fields"))


class Picky(NamedTuple("Picky", [("a", int)])):
    """A namedtuple that cannot be made of its fields alone."""

    __slots__ = ()

    def __new__(cls, a: int, *, really: bool) -> Self:
        """Ask for more than a field."""
        return super().__new__(cls, a if really else -1)


class Outer:
    """Holds a class by a dotted name."""

    class Inner(NamedTuple):
        """Found as `Outer.Inner`."""

        a: Any


@dataclasses.dataclass
class Layer:
    """A plain dataclass that must not be initialised again."""

    weight: Any
    bias: Any = None
    name: str = "layer"
    made: ClassVar[int] = 0

    def __post_init__(self) -> None:
        """Count how often it ran."""
        Layer.made += 1

    @functools.cached_property
    def size(self) -> int:
        """Computed once; need not be kept."""
        return int(self.weight.size)


@dataclasses.dataclass(frozen=True)
class Frozen:
    """A dataclass that refuses assignment."""

    a: Any


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenSlots:
    """One without a `__dict__`."""

    a: Any
    b: Any = dataclasses.field(default=7, init=False)


@dataclasses.dataclass
class Child(Layer):
    """Fields of its parent come first."""

    extra: Any = ()


@dataclasses.dataclass
class Nothing:
    """No field at all."""


@dataclasses.dataclass
class Gap:
    """A field that may have no value."""

    a: Any = dataclasses.field(init=False)


@dataclasses.dataclass
class Mapping(dict):  # type: ignore[type-arg]
    """A dataclass whose content is not in its fields."""

    a: Any = 0


class Undecorated(Nothing):
    """Inherits from a dataclass; what it adds is not a field."""

    def __init__(self) -> None:
        """Set what no field holds."""
        self.hidden = 1


class SlottedBase:
    """Has a slot that is not a field."""

    __slots__ = ("hidden",)


@dataclasses.dataclass
class OnSlots(SlottedBase):
    """Inherits that slot."""

    a: Any = 0


@dataclasses.dataclass
class Loud:
    """Complains when a half-made instance dies."""

    a: Any

    def __del__(self) -> None:
        """Need the field."""
        self.a  # noqa: B018


class Subclass(np.ndarray):
    """An array class of the user's own."""


class Number(enum.IntEnum):
    """An int that is more than an int."""

    ONE = 1


@dataclasses.dataclass
class Coordinates:
    """What the members of an Enum are made of."""

    x: int


class Place(Coordinates, enum.Enum):
    """Members are dataclass instances; copies of them are no members."""

    HOME = 1


class MyFloat(np.float64):
    """A NumPy scalar that is more than one."""


def through_json(tree: object) -> tuple[Node, list[np.ndarray[Any, Any]]]:
    """Flatten, write as strict JSON in UTF-8, read, open."""
    description, leaves = flatten(tree)
    text = json.dumps(description, allow_nan=False, ensure_ascii=False).encode()
    return root(json.loads(text)), leaves


def again(tree: object) -> Any:
    """Take apart and make again."""
    node, leaves = through_json(tree)
    return unflatten(node, leaves.__getitem__)


def bits(value: float) -> bytes:
    """All of a float, the payload of a NaN included."""
    return struct.pack(">d", value)


VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**63, -(2**64), 2**64, 10**5000, -(10**5000)),
    *(0.0, -0.0, 0.1, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, math.nan, -math.nan),
    struct.unpack(">d", bytes.fromhex("7ff0000000000001"))[0],
    *(1j, complex(-0.0, math.nan), complex(math.inf, -0.0)),
    *("", "text", 'ä\0\n"\\', "😀", "\ud83d\ude00", "\udfff", b"", b"\x00\xff", bytes(range(256))),
    *(np.str_("a\0"), np.str_(""), np.str_("\ud83d\ude00"), np.bytes_(b"a\0\0"), np.bytes_(b"")),
]


def same(a: Any, b: Any) -> bool:
    """Whether two values are the same, type and bits."""
    if type(a) is not type(b):
        return False
    if type(a) is float:
        return bits(a) == bits(b)
    if type(a) is complex:
        return bits(a.real) + bits(a.imag) == bits(b.real) + bits(b.imag)
    return bool(a == b)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: ascii(hex(value) if type(value) is int else value)[:30])
def test_a_value_comes_back_with_type_and_bits(value: Any) -> None:
    """Numbers of any size, NaN payloads, signs of zero, text that is not Unicode and bytes survive."""
    assert same(again(value), value)
    assert same(again([value])[0], value)


@pytest.mark.parametrize(
    "tree",
    [
        [],
        (),
        {},
        OrderedDict(),
        [1, [2, (3, [4])], ()],
        (1,),
        {"a": 1, "b": {"c": [True]}},
        OrderedDict([("b", 1), ("a", 2)]),
        OrderedDict([(1, 1), ("a", 2)]),
        {1: "int", 2.5: "float", None: "none", "1": "text"},
        {True: 1, 0: 2},
        {1.0: "float"},
        {"\ud83d\ude00": 1, "a": 2},
        {-(10**5000): 1},
        Point(1, [2]),
        Pair("l", "r"),
        Picky(1, really=True),
        Vector(3, 4),
        Outer.Inner({"a": 1}),
        [Point(1, 2), Point(3, 4), Pair(5, 6), Outer.Inner(7)],
        Frozen(1),
        FrozenSlots((1, 2)),
        Nothing(),
        {"a": [Layer(1, 2), Child(1, 2, "n", [Frozen(None)])]},
    ],
)
def test_a_structure_comes_back_with_its_types_and_order(tree: Any) -> None:
    """Containers, their exact types, key types and the order of keys survive."""
    back = again(tree)
    assert back == tree
    assert shape_of(back) == shape_of(tree)


def shape_of(tree: Any) -> Any:
    """Types of everything in a tree, keys in order."""
    kind = type(tree)
    if isinstance(tree, dict):
        return kind, [(type(key), key, shape_of(value)) for key, value in tree.items()]
    if isinstance(tree, (list, tuple)):
        return kind, [shape_of(tree[i]) for i in range(len(tree))]
    if dataclasses.is_dataclass(tree):
        return kind, [shape_of(getattr(tree, field.name)) for field in dataclasses.fields(tree)]
    return kind


def test_nan_keys_come_back() -> None:
    """Two NaN keys of one dict stay two."""
    back = again({math.nan: 1, float("nan"): 2})
    assert [math.isnan(key) for key in back] == [True, True]
    assert list(back.values()) == [1, 2]


ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "C": np.arange(6.0).reshape(2, 3),
    "Fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "view": np.arange(20)[::-3],
    "0-d": np.array(5, ">i4"),
    "empty": np.zeros((0, 3), "U5"),
    "struct": np.zeros(2, [("a", "f8"), ("b", "S3", 2)]),
    "read-only": np.broadcast_to(np.float32(1), (3, 4)),
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS.keys())
def test_an_array_is_a_leaf_and_not_a_copy(array: np.ndarray[Any, Any]) -> None:
    """The leaf is the array itself, whatever its layout."""
    description, leaves = flatten(array)
    assert leaves[0] is array
    assert description == {"tree": ["a", 0], "leaves": 1, "classes": []}
    assert again({"a": array})["a"] is array


SCALARS: list[Any] = [
    *(np.bool_(True), np.int8(-1), np.uint64(2**64 - 1), np.longlong(3), np.float16(0.1), np.float64("nan")),
    *(np.longdouble("0.1"), np.complex64(1j), np.clongdouble(2), np.datetime64("2020-01-01", "D")),
    *(np.datetime64("NaT", "s"), np.timedelta64(5, ("s", 25)), np.zeros(1, "m8")[0], np.void(b"abc"), np.void(b"")),
    np.zeros(1, [("a", ">f4"), ("b", "S2")])[0],
    np.zeros(1, np.dtype([(("t", "a"), "i1"), ("b", "f8")], align=True))[0],
    np.zeros(1, np.dtype((np.record, [("a", ">f4")])))[0],
]


@pytest.mark.parametrize("scalar", SCALARS, ids=lambda scalar: f"{scalar.dtype}")
def test_a_numpy_scalar_is_a_0_d_leaf_and_comes_back_a_scalar(scalar: Any) -> None:
    """A NumPy scalar keeps its type, its dtype and its bytes."""
    node, leaves = through_json([scalar])
    assert node.child(0).kind == "scalar"
    assert leaves[0].shape == ()
    assert type(leaves[0]) is np.ndarray
    assert identical(leaves[0].dtype, scalar.dtype)
    back = unflatten(node, leaves.__getitem__)[0]
    assert type(back) is type(scalar)
    assert identical(back.dtype, scalar.dtype)
    # A long double has bytes without meaning, and a NaN has no equal.
    assert back == scalar or back.tobytes() == scalar.tobytes()


def test_a_subclass_of_ndarray_becomes_a_plain_view() -> None:
    """Arrays of other classes lose their class and nothing else."""
    array = np.eye(2).view(Subclass)
    records = np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")])
    _, leaves = flatten([array, records])
    assert [type(leaf) for leaf in leaves] == [np.ndarray, np.ndarray]
    assert np.shares_memory(leaves[0], array)
    assert np.shares_memory(leaves[1], records)
    assert leaves[1].dtype.type is np.record


def test_one_array_met_twice_is_one_leaf() -> None:
    """A shared array is stored once and comes back shared; equal arrays that are two stay two."""
    array, other = np.zeros(3), np.zeros(3)
    node, leaves = through_json({"a": array, "b": [array, other], "c": Frozen(array)})
    assert [id(leaf) for leaf in leaves] == [id(array), id(other)]
    back = unflatten(node, leaves.__getitem__)
    assert back["a"] is back["b"][0] is back["c"].a is array


class Fresh:
    """A descriptor that makes a new array each time it is read."""

    def __get__(self, instance: object, owner: object) -> Any:
        """Give an array nobody else holds."""
        return np.zeros(3).view(Subclass)

    def __set__(self, instance: object, value: object) -> None:
        """Ignore the value."""


@dataclasses.dataclass
class Temporary:
    """Its field is never the same object twice."""

    a: Any


Temporary.a = Fresh()


def test_arrays_that_come_and_go_are_not_taken_for_one() -> None:
    """An array made while flattening is not confused with a later one at the same address."""
    _, leaves = flatten([Temporary(0) for _ in range(100)])
    gc.collect()
    assert len(leaves) == 100


def test_a_dataclass_is_made_without_being_initialised() -> None:
    """`__init__` and `__post_init__` do not run; a cached property is computed anew."""
    layer = Layer(np.ones(4), name="a")
    assert layer.size == 4
    before = Layer.made
    back = again(layer)
    assert (Layer.made, vars(back).keys()) == (before, {"weight", "bias", "name"})
    assert (back.size, back.name) == (4, "a")


def test_flattening_makes_no_instance_of_a_class(capfd: pytest.CaptureFixture[str]) -> None:
    """A class that complains in `__del__` about missing fields has no reason to."""
    flatten(Loud(1))
    gc.collect()
    assert capfd.readouterr().err == ""


def test_a_class_is_recorded_once_however_many_instances() -> None:
    """Thousands of records cost a few characters each."""
    description, _ = flatten([Point(i, i) for i in range(1000)])
    assert len(description["classes"]) == 1
    assert len(json.dumps(description)) < 1000 * 25


def test_a_class_of_main_is_found_from_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is called `__mp_main__` in a spawned process is described as `__main__`, its name everywhere else."""
    found = type("InMain", (Point,), {"__module__": "__mp_main__", "__qualname__": "InMain"})
    monkeypatch.setattr(sys.modules["__main__"], "InMain", found, raising=False)
    description, _ = flatten(found(1, 2))
    assert description["classes"][0][1] == "__main__"
    assert type(unflatten(root(description), [].__getitem__)) is found


class Shadow(NamedTuple):
    """Stands where another class of the same name and fields is looked for."""

    a: Any


Shadowed = collections.namedtuple("Shadow", ["a"])  # type: ignore[name-match]  # noqa: PYI024  not the one above
Local = collections.namedtuple("Elsewhere", ["a"])  # type: ignore[name-match]  # noqa: PYI024  not where it says


def make_local() -> Any:
    """Make an instance of a class nobody can import."""

    @dataclasses.dataclass
    class Hidden:
        a: int = 0

    return Hidden()


def surplus_namedtuple() -> Vector:
    """Make a namedtuple with an attribute beside its fields."""
    vector = Vector(1, 2)
    vector.note = "lost"  # type: ignore[attr-defined]
    return vector


def surplus_slot() -> OnSlots:
    """Make a dataclass with a value in a slot of its base."""
    record = OnSlots()
    record.hidden = 1  # type: ignore[attr-defined]
    return record


REFUSED: dict[str, tuple[Any, str, str]] = {
    # tree, what stands before the colon, what the rest says
    "a set": ({"a": [{1}]}, "['a'][0]", "a set cannot be shared"),
    "an object": ([object()], "[0]", "np.asarray"),
    "a class": ([Layer], "[0]", "cannot be shared"),
    "a function": ((len,), "[0]", "cannot be shared"),
    "the tree itself": ({1, 2}, "the tree itself", "set"),
    "a bytearray": ([bytearray(b"x")], "[0]", "bytearray"),
    "a range": ([range(3)], "[0]", "list(...)"),
    "defaultdict": (
        {"d": collections.defaultdict(list)},
        "['d']",
        "a collections.defaultdict would come back as a dict",
    ),
    "Counter": ([collections.Counter("a")], "[0]", "dict(...)"),
    "a subclass of list": ([type("L", (list,), {})()], "[0]", "list(...)"),
    "struct_time": ([sys.version_info], "[0]", "tuple(...)"),
    "IntEnum": ([Number.ONE], "[0]", "int(...)"),
    "an Enum over a dataclass": ([Place.HOME], "[0]", "Place cannot be shared"),
    "a subclass of str": ({"s": type("S", (str,), {})("x")}, "['s']", "str(...)"),
    "a subclass of a NumPy scalar": ([MyFloat(1)], "[0]", "would come back as a numpy.float64"),
    "a masked array": ([np.ma.masked_array([1], [True])], "[0]", "a.filled()"),
    "a key that is a tuple": ({"a": {(1, 2): 3}}, "['a']", "a tuple as the key of a dict"),
    "a key that is a NumPy scalar": ({np.int64(1): 3}, "the tree itself", "Use str, int"),
    "a key that is a NumPy string": ({np.str_("a"): 3}, "the tree itself", "Use str, int"),
    "a key that is bytes": ({b"a": 3}, "the tree itself", "a bytes as the key"),
    "a local class": ([make_local()], "[0]", "Define it at the level of its module."),
    "a class that is not where it says": ([Local(1)], "[0]", "test_trees.Elsewhere cannot be imported"),
    "a class behind another": ([Shadowed(1)], "[0]", "test_trees.Shadow cannot be imported"),
    "a namedtuple with an attribute": ([surplus_namedtuple()], "[0]", "no fields: note"),
    "a dataclass with an attribute": ([Undecorated()], "[0]", "no fields: hidden"),
    "a dataclass with a slot": ([surplus_slot()], "[0]", "no fields: hidden"),
    "a dataclass that lacks a value": ([Gap()], "[0]", "Give each field a value"),
    "a dataclass that is a dict": ([Mapping()], "[0]", "extends a built-in type"),
    "deep inside": ({"encoder": [Layer(Point(1, {2.5: (set(),)}))]}, "['encoder'][0].weight.y[2.5][0]", "set"),
    "below a key of many digits": ({10**5000: set()}, "[0x", "set"),
}


@pytest.mark.parametrize(("tree", "path", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_what_has_no_place_in_a_tree_is_refused_with_path_and_remedy(tree: Any, path: str, says: str) -> None:
    """No type is changed and nothing is dropped in silence: a TypeError names the path, the reason and the remedy."""
    with pytest.raises(TypeError) as caught:
        flatten(tree)
    message = str(caught.value)
    assert message.startswith(path)
    assert says in message
    assert len(message.splitlines()) == 2
    assert len(message) < 500


class Tensor:
    """Memory of another library, as torch and jax show theirs."""

    def __init__(self, data: Any) -> None:
        """Hold what NumPy is to see."""
        self.data = data
        self.dtype = "tensor.float32"

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        """Show it, or say why not."""
        if isinstance(self.data, Exception):
            raise self.data
        return np.asarray(self.data, dtype)

    def __dlpack__(self) -> object:
        """Say that this is memory with shape and dtype."""
        raise NotImplementedError


class Parameter(Tensor):
    """A tensor whose gradient is recorded: NumPy is not given it, but what it is made of."""

    def detach(self) -> Tensor:
        """Give that."""
        return Tensor(np.asarray(self.data, "f4"))

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        """Refuse."""
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.")


class Picture:
    """Memory of another library, as Pillow shows its own."""

    __array_interface__: ClassVar[dict[str, Any]] = {"version": 3, "shape": (2,), "typestr": "|u1", "data": b"\1\2"}


class Labelled:
    """What NumPy would take half of: as a table of pandas, with names for its rows."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        """Give the values, without the names."""
        return np.zeros(2)


def test_arrays_of_other_libraries_are_leaves() -> None:
    """Tensors and pictures come back as NumPy's arrays, one for each object; nothing is copied."""
    data = np.arange(3, dtype="f4")
    tensor = Tensor(data)
    description, leaves = flatten({"w": tensor, "again": [tensor], "other": Tensor([1]), "picture": Picture()})
    assert [leaf.tolist() for leaf in leaves] == [[0, 1, 2], [1], [1, 2]]
    assert np.shares_memory(leaves[0], data)
    back = unflatten(root(description), leaves.__getitem__)
    assert back["w"] is back["again"][0]
    assert [type(leaf) for leaf in leaves] == [np.ndarray] * 3
    assert [leaf.tolist() for leaf in flatten([Parameter([1, 2])])[1]] == [[1, 2]]


def test_a_tensor_that_numpy_cannot_read_is_refused_by_its_path() -> None:
    """Memory of a GPU, or with a gradient: the library's own reason, in one line."""
    for error in (RuntimeError("it is elsewhere\nmore"), TypeError("Got unsupported ScalarType BFloat16")):
        with pytest.raises(TypeError) as caught:
            flatten({"w": [Tensor(error)]})
        lines = str(caught.value).splitlines()
        assert lines[0].startswith("['w'][0]: of a ")
        assert lines[0].endswith(str(error).splitlines()[0])
        assert len(lines) == 2
        assert lines[1].startswith("Put its bytes" if "BFloat16" in lines[0] else "Put it as an array in main memory")
    with pytest.raises(DTypeError) as refused:
        flatten({"w": Tensor(np.array([None]))})
    assert refused.value.path == "['w']"
    with pytest.raises(TypeError, match="Labelled cannot be shared"):
        flatten([Labelled()])


@pytest.mark.parametrize(
    ("leaf", "field"),
    [
        (np.array([None]), ""),
        (np.zeros(1, [("a", [("b", "O")])]), "a.b"),
        (np.array(["x"], np.dtypes.StringDType()), ""),
        (np.zeros(1, int).astype(rational), ""),
        (np.zeros(1, [("a", "O")])[0], "a"),
    ],
)
def test_a_leaf_whose_dtype_cannot_be_shared_is_named_by_its_path(leaf: Any, field: str) -> None:
    """The DTypeError carries the path in the tree and the field in the dtype, and keeps the remedy."""
    with pytest.raises(DTypeError) as caught:
        flatten({"encoder": [Layer(leaf)]})
    error = caught.value
    assert (error.path, error.field) == ("['encoder'][0].weight", field)
    assert str(error).startswith("['encoder'][0].weight: ")
    assert error.remedy in str(error)
    assert error.remedy


def test_a_cycle_is_found() -> None:
    """A container that contains itself is a ValueError that names the path; one met twice side by side is not."""
    for cyclic in (cyclic_list(), cyclic_dict(), cyclic_dataclass()):
        with pytest.raises(ValueError, match=r"(?s)\['x'\].*contains itself.*Break"):
            flatten({"x": cyclic})
    shared = [1]
    assert again([shared, shared]) == [[1], [1]]


def cyclic_list() -> Any:
    """Put a list in itself."""
    tree: list[Any] = []
    tree.append([tree])
    return tree


def cyclic_dict() -> Any:
    """Put a dict in itself."""
    tree: dict[str, Any] = {}
    tree["a"] = (tree,)
    return tree


def cyclic_dataclass() -> Any:
    """Put a dataclass in itself."""
    tree = Layer(None)
    tree.weight = {"l": tree}
    return tree


def nested(levels: int) -> Any:
    """Put lists in lists."""
    tree: Any = 5
    for _ in range(levels):
        tree = [tree]
    return tree


def test_the_depth_limit_is_exact_and_clear() -> None:
    """As many levels as are promised work; one more, or thousands, are a ValueError and no RecursionError."""
    assert again(nested(MAX_DEPTH)) == nested(MAX_DEPTH)
    for levels in (MAX_DEPTH + 1, 10_000):
        with pytest.raises(ValueError, match=f"(?s)deeper than {MAX_DEPTH} levels.*Flatten") as caught:
            flatten(nested(levels))
        assert len(str(caught.value)) < 500


def test_a_tree_that_grows_without_bound_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few objects that hold each other twice make a tree of 2**60 nodes: a ValueError, soon."""
    monkeypatch.setattr(trees, "MAX_NODES", 10_000)
    assert len(again(list(range(10_000)))) == 10_000
    tree: Any = [1]
    for _ in range(60):
        tree = [tree, tree]
    with pytest.raises(ValueError, match=r"(?s)more than 10,000 nodes.*arrays"):
        flatten(tree)


TREE = {"a": np.zeros(2), "l": [1, "two", np.float32(3)], "t": (), "p": Point(np.ones(1), 2), "d": Layer(4), 5: None}


def test_a_tree_can_be_walked_without_being_built() -> None:
    """Kind, length, keys, children, leaf and value are there node by node."""
    node, _ = through_json(TREE)
    assert (node.kind, len(node), node.keys()) == ("dict", 6, ["a", "l", "t", "p", "d", 5])
    assert [child.kind for child in node.children()] == ["array", "list", "tuple", "namedtuple", "dataclass", "value"]
    assert (node.child("a").leaf, node.child("l").child(2).kind, node.child("l").child(-1).leaf) == (0, "scalar", 1)
    assert [node.child("l").child(i).value for i in range(2)] == [1, "two"]
    assert (node.child("l").keys(), node.child("p").keys(), node.child("t").keys()) == ([0, 1, 2], [0, 1], [])
    assert (node.child("p").fields, node.child("p").child("y").value, node.child("p").child(1).value) == (
        ("x", "y"),
        2,
        2,
    )
    assert (node.child("d").keys(), node.child("d").child("weight").value) == (["weight", "bias", "name"], 4)
    assert (node.child(5).value, node.child(5.0).value, node.fields) == (None, None, ())
    assert unflatten(node.child("l").child(1), [].__getitem__) == "two"


@pytest.mark.parametrize(
    ("path", "key", "error"),
    [
        ([], "x", KeyError),
        ([], 7, KeyError),
        ([], [], TypeError),
        (["l"], 3, IndexError),
        (["l"], -4, IndexError),
        (["l"], "0", TypeError),
        (["l"], 1.0, TypeError),
        (["t"], 0, IndexError),
        (["p"], 2, IndexError),
        (["p"], "z", KeyError),
        (["d"], "z", KeyError),
        (["d"], 0, KeyError),
        (["a"], 0, IndexError),
        ([5], 0, IndexError),
    ],
)
def test_a_child_that_is_not_there_raises_as_its_container_would(
    path: list[Any], key: Any, error: type[Exception]
) -> None:
    """Missing keys and indices give the errors of dict and list."""
    node = functools.reduce(Node.child, path, through_json(TREE)[0])
    with pytest.raises(error):
        node.child(key)


def test_a_node_of_another_kind_has_no_leaf_and_no_value() -> None:
    """Asking a container for its leaf or an array for its value is a TypeError."""
    node, _ = through_json(TREE)
    for ask in (lambda: node.leaf, lambda: node.value, lambda: node.child("a").value, lambda: node.child(5).leaf):
        with pytest.raises(TypeError, match="is no"):
            ask()


def test_a_large_dict_is_not_copied_to_reach_one_child() -> None:
    """Reaching a child looks at a fixed number of objects, however many siblings there are."""
    node = root(flatten({"big": dict.fromkeys(map(str, range(100_000)), 0), "list": [0] * 100_000})[0])
    visited = 0

    def count(frame: Any, event: str, arg: Any) -> Any:
        nonlocal visited
        visited += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        node.child("big").child("5")
        node.child("list").child(5)
    finally:
        sys.setprofile(None)
    assert visited < 200


def test_what_leaf_raises_passes_through() -> None:
    """An error of the function that fetches arrays is not disguised."""
    node, _ = through_json([np.zeros(1)])
    with pytest.raises(ZeroDivisionError):
        unflatten(node, lambda i: 1 // i)


def describe(tree: Any, leaves: Any = 1, table: Any = ()) -> dict[str, Any]:
    """Write a description with one node in it."""
    return {"tree": tree, "leaves": leaves, "classes": list(table)}


def raw_list(levels: int, tag: str = "l", *more: Any) -> Any:
    """Put nodes in nodes."""
    return functools.reduce(lambda tree, _: [tag, tree, *more], range(levels), cast("Any", 0.0))


BAD_NODES: list[Any] = [
    *([], {}, ["x"], [[]], [1], ["a"], ["a", 1], ["a", -1], ["a", False], ["s", None], ["a", 0, 0], ["a", 0.0]),
    *(["d"], ["d", 1], ["o", [1]], ["d", [1], []], ["d", [[]], [1]], ["d", [1, True], [1, 2]]),
    *(["d", [1, 1.0], [1, 2]], ["d", [["y", ""]], [1]], ["l", ["x"]], ["t", {}], ["c", 0], ["c"]),
    *(["i", "7"], ["i", "0x"], ["i", "0x_1"], ["i", 7], ["f", "7"], ["f", "7FF0000000000000"]),
    *(["z", 1, 2.0], ["z", 1.0], ["z", 1.0, "x"], ["z", ["z", 1.0, 1.0], 1.0]),
    *(["y", "a"], ["y", "ä"], ["y", "YWI=\n"], ["S", "*"], ["u", "xy"], ["u", "ff"], ["U", "ff"], ["u", ["eda080"]]),
]
HERE = __name__
MALFORMED: dict[str, Any] = {
    **{repr(value): value for value in list[Any]([None, [], {}, "text", 5, {"tree": 1}, {"tree": 1, "leaves": 0}])},
    "a key too many": {**describe(1), "x": 1},
    "leaves by truth": describe(1, True),
    "leaves as text": describe(1, "1"),
    "classes as text": {"tree": 1, "leaves": 0, "classes": "ab"},
    **{f"node {node!r}": describe(node) for node in BAD_NODES},
    "a dict of a bad child": describe(["d", {"a": ["x"]}]),
    "too deep": describe(raw_list(MAX_DEPTH + 1)),
    "very deep": describe(raw_list(50_000)),
    "very deep complex": describe(raw_list(50_000, "z", 0.0)),
    "class beyond the table": describe(["c", 1], 0, [["dataclass", HERE, "Nothing", []]]),
    "class before the table": describe(["c", -1], 0, [["dataclass", HERE, "Nothing", []]]),
    "class of too many children": describe(["c", 0, 1], 0, [["dataclass", HERE, "Nothing", []]]),
    "class of too few children": describe(["c", 0], 0, [["dataclass", HERE, "Frozen", ["a"]]]),
    "namedtuple of too few children": describe(["c", 0, 1], 0, [["namedtuple", HERE, "Point", ["x", "y"]]]),
    "class of other fields": describe(["c", 0, 1], 0, [["dataclass", HERE, "Frozen", ["b"]]]),
    "class of another kind": describe(["c", 0, 1], 0, [["namedtuple", HERE, "Frozen", ["a"]]]),
    "class that is a dict": describe(["c", 0, 1], 0, [["dataclass", HERE, "Mapping", ["a"]]]),
    "class that is a function": describe(["c", 0], 0, [["dataclass", HERE, "describe", []]]),
    "class that is no record": describe(["c", 0], 0, [["dataclass", "builtins", "object", []]]),
    "class that is an instance": describe(["c", 0], 0, [["dataclass", HERE, "TREE", []]]),
    "class that is not there": describe(["c", 0], 0, [["dataclass", HERE, "Missing", []]]),
    "module that is not there": describe(["c", 0], 0, [["dataclass", "no.such.module", "A", []]]),
    "module without a name": describe(["c", 0], 0, [["dataclass", "", "A", []]]),
    "module that is relative": describe(["c", 0], 0, [["dataclass", ".x", "A", []]]),
    "module with a zero": describe(["c", 0], 0, [["dataclass", "a\0b", "A", []]]),
    "class without a name": describe(["c", 0], 0, [["dataclass", HERE, "", []]]),
    **{
        f"table {entry!r}": describe(1, 0, [entry])
        for entry in (1, [], ["x", HERE, "A", []], ["dataclass", 1, "A", []])
    },
    **{
        f"table {entry!r}": describe(1, 0, [["dataclass", HERE, "A", entry]]) for entry in ("ab", [1], ["a", "a"], None)
    },
}


@pytest.mark.parametrize("description", MALFORMED.values(), ids=[name[:50] for name in MALFORMED])
def test_a_malformed_description_is_a_value_error(description: Any) -> None:
    """Whatever `flatten` never wrote raises ValueError, at the latest when it is built."""
    with pytest.raises(ValueError, match=r"."):
        unflatten(root(description), lambda _: np.zeros(()))


@pytest.mark.parametrize("node", [["d", [1], []], ["d", [1, True], [1, 2]], ["d", [["y", ""]], [1]], ["c", 0, 1]])
def test_a_malformed_container_is_found_without_building_it(node: Any) -> None:
    """Walking meets keys without children, keys that are equal or cannot be, and missing fields as ValueError."""
    description = describe(node, 0, [["namedtuple", HERE, "Point", ["x", "y"]]])
    with pytest.raises(ValueError, match=r"."):
        root(description).keys()


def test_a_module_that_fails_to_import_is_a_value_error(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the class and keeps the cause, whatever the module raised."""
    (tmp_path / "shmarray_broken_module.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"shmarray_broken_module\.A") as caught:
        unflatten(root(describe(["c", 0], 0, [["dataclass", "shmarray_broken_module", "A", []]])), [].__getitem__)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_another_version_of_a_class_is_not_taken_for_the_one_that_was_put(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fields that were renamed or reordered since are an error, not values in the wrong place."""
    node, _ = through_json(Point(1, 2))
    monkeypatch.setattr(sys.modules[HERE], "Point", collections.namedtuple("Point", ["y", "x"]))  # noqa: PYI024
    with pytest.raises(ValueError, match=r"(?s)not the namedtuple with the fields x, y.*version"):
        unflatten(node, [].__getitem__)


def test_a_class_is_refused_when_its_module_has_no_name() -> None:
    """A class made by hand without a proper module is a TypeError like any other that cannot be imported."""
    for module in ("", None, 5):
        with pytest.raises(TypeError, match="cannot be imported"):
            flatten(type("Odd", (Point,), {"__module__": module})(1, 2))
