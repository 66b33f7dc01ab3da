"""Whatever dtype or structure hypothesis thinks of comes back exactly; whatever nonsense, is a ValueError."""

from __future__ import annotations

import collections
import copy
import dataclasses
import json
import struct
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from shmarray._format.dtypes import check_dtype, decode_dtype, encode_dtype, identical
from shmarray._format.trees import Node, flatten, root, unflatten

# Pure functions are fast: look five times as hard as at processes.
HARDER = settings(max_examples=5 * settings().max_examples)


@pytest.fixture(autouse=True)
def _leak_guard() -> None:
    """Stand in for the leak guard: these functions open, map and start nothing."""


class Point(NamedTuple):
    """A namedtuple for trees."""

    x: Any
    y: Any


@dataclasses.dataclass(frozen=True)
class Layer:
    """A dataclass for trees."""

    weight: Any
    bias: Any


# dtypes

any_text = st.text(st.characters() | st.characters(categories=["Cs"]) | st.sampled_from("\ud83d\ude00"), max_size=4)
times = st.builds(
    "{}{}8[{}{}]".format,
    st.sampled_from("<>"),
    st.sampled_from("mM"),
    st.integers(1, 2**31 - 1),
    st.sampled_from(["Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as"]),
)
widths = st.builds("{}{}{}".format, st.sampled_from("<>"), st.sampled_from("SUV"), st.integers(0, 300))
types = st.builds("{}{}".format, st.sampled_from("<>"), st.sampled_from("?bBhHiIlLqQefdgFDGMm"))
plain_dtypes = st.one_of(npst.scalar_dtypes(), (times | widths | types | st.just("c")).map(np.dtype))
# NumPy takes the shape of a sub-array for the width of its base, if that can vary and is zero.
sub_array_bases = plain_dtypes.filter(lambda dtype: dtype.itemsize > 0)


@st.composite
def structs(draw: st.DrawFn, inner: st.SearchStrategy[np.dtype[Any]]) -> np.dtype[Any]:
    """Draw a struct: packed, aligned, or with gaps and overlaps; with titles or without; a part of one; a record."""
    names = draw(st.lists(any_text, max_size=4, unique=True))
    formats = [draw(inner) for _ in names]
    titles = [draw(st.none() | any_text) for _ in names]
    given_titles = [title for title in titles if title is not None]
    assume(len({*names, *given_titles}) == len(names) + len(given_titles))
    spec: Any = {"names": names, "formats": formats, "titles": titles}
    layout = draw(st.sampled_from(["packed", "aligned", "free"]))
    if layout == "free":
        offsets = [draw(st.integers(0, 40)) for _ in names]
        ends = [offset + field.itemsize for offset, field in zip(offsets, formats, strict=True)]
        spec |= {"offsets": offsets, "itemsize": max(ends, default=0) + draw(st.integers(0, 9))}
    try:
        dtype: np.dtype[Any] = np.dtype(spec, align=layout == "aligned")
    except ValueError:  # some 64 sub-arrays of sub-arrays are too large
        assume(False)
    if draw(st.booleans()) and names:
        part: Any = draw(st.lists(st.sampled_from(names), unique=True))
        dtype = np.zeros(0, dtype)[part].dtype
    return np.dtype((np.record, dtype)) if draw(st.booleans()) else dtype


@st.composite
def sub_arrays(draw: st.DrawFn, inner: st.SearchStrategy[np.dtype[Any]]) -> np.dtype[Any]:
    """Draw a sub-array of up to three dimensions, some of them zero."""
    shape = draw(npst.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=3))
    base = draw(inner)
    assume(base.itemsize > 0)
    return np.dtype((base, shape))


dtypes = st.recursive(
    plain_dtypes, lambda inner: structs(inner) | sub_arrays(inner) | structs(inner), max_leaves=6
) | npst.nested_dtypes(subtype_strategy=sub_array_bases)


def in_utf8(value: Any) -> Any:
    """Write as strict JSON in UTF-8, and read."""
    return json.loads(json.dumps(value, allow_nan=False, ensure_ascii=False).encode())


@pytest.mark.core
@HARDER
@given(dtypes)
def test_any_dtype_survives_exactly(dtype: np.dtype[Any]) -> None:
    """Encoding and decoding gives an identical dtype with one spelling, and the check lets it pass."""
    check_dtype(dtype)
    encoded = encode_dtype(dtype)
    back = decode_dtype(in_utf8(encoded))
    assert identical(back, dtype)
    assert encode_dtype(back) == encoded


@HARDER
@given(npst.array_dtypes(sub_array_bases, allow_subarrays=True, max_size=4))
def test_any_dtype_of_hypothesis_survives_exactly(dtype: np.dtype[Any]) -> None:
    """The dtypes that other projects test with survive too."""
    assert identical(decode_dtype(in_utf8(encode_dtype(dtype))), dtype)


@HARDER
@given(dtypes, st.data())
def test_an_object_anywhere_in_a_dtype_is_refused(dtype: np.dtype[Any], data: st.DataObject) -> None:
    """However deep the object field lies and whatever stands around it, the check finds it and names it."""
    path = data.draw(st.lists(st.text("ab", min_size=1, max_size=2), min_size=1, max_size=4))
    bad: np.dtype[Any] = np.dtype("O")
    for name in reversed(path):
        inside = (bad, (2,)) if data.draw(st.booleans()) else bad
        bad = np.dtype([("before", dtype), (name, inside)])
    with pytest.raises(TypeError, match="object") as caught:
        encode_dtype(bad)
    assert getattr(caught.value, "field", None) == ".".join(path)


# Nonsense: values that look a little like what is written.

words = st.sampled_from([*"abcdfilnorstuyzSUVO", "<f8", "|O", "|S3", "0x7", "", "YWI=", "7ff0000000000000", "leaves"])
atoms = st.none() | st.booleans() | st.integers(-2, 9) | st.integers() | st.floats() | words
nonsense = st.recursive(
    atoms, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4), max_leaves=12
)


@st.composite
def damaged(draw: st.DrawFn, encoded: Any) -> Any:
    """Draw a copy of `encoded` in which something is replaced, removed or added."""
    if not isinstance(encoded, (list, dict)) or not encoded or draw(st.integers(0, 3)) == 0:
        return draw(nonsense)
    result = copy.copy(encoded)
    key = draw(st.sampled_from(sorted(encoded) if isinstance(encoded, dict) else range(len(encoded))))
    change = draw(st.sampled_from(["below", "below", "remove", "add"]))
    if change == "below":
        result[key] = draw(damaged(encoded[key]))
    elif change == "remove":
        del result[key]
    elif isinstance(result, list):
        result.insert(key, draw(nonsense))
    else:
        result[draw(words)] = draw(nonsense)
    return result


def decodes_or_refuses(encoded: Any) -> None:
    """Decode; only ValueError may come, or a dtype that is sound."""
    try:
        dtype = decode_dtype(encoded)
    except ValueError:
        return
    assert not dtype.hasobject
    assert dtype.itemsize >= 0
    check_dtype(dtype)
    assert identical(decode_dtype(encode_dtype(dtype)), dtype)


@HARDER
@given(nonsense)
def test_nonsense_is_no_dtype(encoded: Any) -> None:
    """Random JSON is a ValueError, and never a dtype that holds objects."""
    decodes_or_refuses(encoded)


@HARDER
@given(dtypes.map(encode_dtype).flatmap(damaged))
def test_a_damaged_dtype_is_refused_or_sound(encoded: Any) -> None:
    """A dtype with something in it replaced, removed or added is a ValueError or another dtype that can be shared."""
    decodes_or_refuses(encoded)


# trees

pool = [np.zeros(3), np.arange(4).reshape(2, 2), np.zeros(1, [("a", "i2")])]
arrays = npst.arrays(npst.scalar_dtypes(), npst.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=2))
scalars = arrays.filter(lambda array: array.size > 0).map(lambda array: array.reshape(-1)[0])
values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers(), any_text, st.binary(max_size=5)
) | st.builds(np.str_, any_text)
keys = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | any_text
structures = st.recursive(
    values | arrays | scalars | st.sampled_from(pool),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(any_text, inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4).map(collections.OrderedDict),
        st.builds(Point, inner, inner),
        st.builds(Layer, inner, inner),
    ),
    max_leaves=20,
)


def same(a: Any, b: Any) -> bool:
    """Tell whether two structures agree in types, keys, order, values and bits, and have the same array objects."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return a is b
    if isinstance(a, np.generic):
        return identical(a.dtype, b.dtype) and bool(a == b or a.tobytes() == b.tobytes())
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b)
    if isinstance(a, complex):
        return same([a.real, a.imag], [b.real, b.imag])
    if isinstance(a, dict):
        return same([*a.keys(), *a.values()], [*b.keys(), *b.values()])
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Layer):
        return same([a.weight, a.bias], [b.weight, b.bias])
    return bool(a == b)


def arrays_of(tree: Any) -> list[Any]:
    """All arrays of a structure, each object once, in order."""
    found: dict[int, Any] = {}
    below: list[Any] = [tree]
    while below:
        item = below.pop()
        if isinstance(item, np.ndarray):
            found.setdefault(id(item), item)
        elif isinstance(item, dict):
            below.extend(reversed(item.values()))
        elif isinstance(item, (list, tuple)):
            below.extend(reversed(item))
        elif isinstance(item, Layer):
            below.extend([item.bias, item.weight])
    return list(found.values())


@pytest.mark.core
@HARDER
@given(structures)
def test_any_structure_survives_exactly(tree: Any) -> None:
    """Taking apart, writing, reading and building gives the same structure, with the same arrays in it."""
    description, leaves = flatten(tree)
    assert same(unflatten(root(in_utf8(description)), leaves.__getitem__), tree)


@HARDER
@given(structures)
def test_every_array_is_one_leaf_in_order(tree: Any) -> None:
    """Leaves that are not scalars are the arrays of the structure, in order of first occurrence, none twice."""
    _, leaves = flatten(tree)
    expected = [id(array) for array in arrays_of(tree)]
    assert [id(leaf) for leaf in leaves if id(leaf) in set(expected)] == expected


def walk(node: Node, leaves: list[Any]) -> Any:
    """Build a structure from `kind`, `keys`, `child` and `assemble` alone."""
    if node.kind == "array":
        return leaves[node.leaf]
    if node.kind == "scalar":
        return leaves[node.leaf][()]
    if node.kind == "value":
        return node.value
    keys_below = node.keys()
    below = [walk(node.child(key), leaves) for key in keys_below]
    assert len(below) == len(node) == len(node.children())
    return node.assemble(below)


@HARDER
@given(structures)
def test_walking_a_tree_finds_what_building_it_gives(tree: Any) -> None:
    """Reaching every node by its key gives the same structure as `unflatten`."""
    description, leaves = flatten(tree)
    assert same(walk(root(in_utf8(description)), leaves), tree)


def builds_or_refuses(description: Any) -> None:
    """Open and build; only ValueError may come."""
    try:
        node = root(description)
        unflatten(node, lambda _: np.zeros(()))
        walk(node, [np.zeros(())] * 100)
    except ValueError:
        return


@HARDER
@given(nonsense | nonsense.map(lambda tree: {"tree": tree, "leaves": 3, "classes": [["namedtuple", "x", "y", ["z"]]]}))
def test_nonsense_is_no_tree(description: Any) -> None:
    """Random JSON, bare or dressed as a description, is a ValueError or a structure."""
    builds_or_refuses(description)


@HARDER
@given(structures.map(lambda tree: flatten(tree)[0]).flatmap(damaged))
def test_a_damaged_description_is_refused_or_sound(description: Any) -> None:
    """A description with something in it replaced, removed or added is a ValueError or another structure."""
    builds_or_refuses(description)
