"""dtypes as JSON values: every fixed-size one survives exactly; what cannot be shared is refused with its remedy."""

from __future__ import annotations

import copy
import functools
import json
import pickle
import weakref
from typing import Any, cast

import numpy as np
import pytest
from numpy._core._multiarray_umath import _get_sfloat_dtype  # type: ignore[import-not-found]
from numpy._core._rational_tests import rational  # type: ignore[import-not-found]

from shmarray._format.dtypes import MAX_DEPTH, check_dtype, decode_dtype, encode_dtype, identical
from shmarray.errors import DTypeError, ShmArrayError


@pytest.fixture(autouse=True)
def _leak_guard() -> None:
    """Stand in for the leak guard: these functions open, map and start nothing."""


def nested(levels: int) -> np.dtype[Any]:
    """Put a struct into a struct into a struct, `levels` of them."""
    dtype: np.dtype[Any] = np.dtype("f8")
    for _ in range(levels):
        dtype = np.dtype([("x", dtype)])
    return dtype


ALIGNED = np.dtype([("a", "i1"), ("b", "f8"), ("c", "i2")], align=True)
UNITS = ("Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as")
PLAIN = {
    **{char: np.dtype(char) for char in "?bBhHiIlLqQefdgFDGSUVMmpPc"},
    **{f">{char}": np.dtype(f">{char}") for char in "?bBhHiIlLqQefdgFDGUMm"},
    **{text: np.dtype(text) for text in ("S5", "U7", ">U7", "V9", "S0", "U0", "V0", "U536870911")},
    **{f"M8[{unit}]": np.dtype(f"M8[{unit}]") for unit in (*UNITS, "25s", "2147483647us")},
    **{f">m8[{unit}]": np.dtype(f">m8[{unit}]") for unit in (*UNITS, "7ns", "3D/4")},
    "native order, said aloud": np.dtype("i4").newbyteorder("<"),
}
COMPOUND: dict[str, np.dtype[Any]] = {
    "packed": np.dtype([("a", "i1"), ("b", "f8")]),
    "aligned": ALIGNED,
    "aligned, part of it": np.zeros(1, ALIGNED)[["a", "c"]].dtype,
    "gaps": np.dtype({"names": ["a", "b"], "formats": ["u1", ">u4"], "offsets": [3, 11], "itemsize": 40}),
    "overlaps": np.dtype({"names": ["word", "low"], "formats": ["<u4", "<u2"], "offsets": [0, 0]}),
    "out of order": np.dtype({"names": ["b", "a"], "formats": ["f8", "f8"], "offsets": [8, 0]}),
    "titles": np.dtype([(("the title", "a"), "f8"), ("b", "f4")]),
    "an empty title": np.dtype({"names": ["a"], "formats": ["f8"], "titles": [""]}),
    "no fields": np.dtype([]),
    "no fields, aligned": np.dtype([], align=True),
    "no fields, but bytes": np.dtype({"names": [], "formats": [], "itemsize": 12}),
    "an empty name": np.dtype({"names": ["", "b"], "formats": ["i4", "i4"]}),
    "odd names": np.dtype([("a.b", "i4"), ("ä \n\0", "i4"), ("\N{SNOWMAN}", "i4"), ("😀", "i4")]),
    "names that are not Unicode": np.dtype([("\ud83d\ude00", "i4"), (("\udfff", "\ud83d"), "i4")]),
    "a name of a subclass of str": np.dtype([(np.str_("a"), "i4")]),
    "nested": np.dtype([("p", [("x", ">f4"), ("y", [("z", "S3")])]), ("q", ALIGNED)], align=True),
    "sub-array": np.dtype(("i4", (2, 3))),
    "sub-array of one": np.dtype(("i4", (1,))),
    "sub-array of none": np.dtype(("i4", (0, 3))),
    "sub-array of sub-arrays": np.dtype((np.dtype(("i4", (2,))), (3,))),
    "sub-array of structs": np.dtype((ALIGNED, (2,))),
    "sub-array in a struct": np.dtype([("m", ">f8", (3, 3)), ("n", "M8[ns]", 2)]),
    "sub-array with the most dimensions": np.dtype(("i1", (1,) * 32)),
    "record": np.dtype((np.record, [("a", "i4"), ("b", "S2")])),
    "record, aligned": np.dtype((np.record, ALIGNED)),
    "record, part of it": np.rec.array(np.zeros(1, ALIGNED))[["a", "c"]].dtype,
    "record without fields": np.dtype((np.record, 8)),
    "record without fields and bytes": np.dtype(np.record),
    "record with no fields": np.dtype((np.record, [])),
    "record in a struct": np.dtype([("r", np.dtype((np.record, ALIGNED)))], align=True),
    "sub-array of records": np.dtype((np.dtype((np.record, [("a", "i4")])), (2,))),
    "struct from a record": np.dtype((np.void, np.dtype((np.record, ALIGNED)))),
    "number with fields": np.dtype((np.int32, [("low", "u2"), ("high", "u2")])),
    "number with fields, swapped": np.dtype((">i4", [("high", ">u2"), ("low", ">u2")])),
    "long long with fields": np.dtype(("q", [("low", "u4"), ("high", "u4")])),
    "bytes with fields": np.dtype(("S8", [("a", "i4"), ("b", "i4")])),
    "time with fields": np.dtype((">M8[ns]", [("a", "i4"), ("b", "i4")])),
    "at the depth limit": nested(MAX_DEPTH),
}


def through_json(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Encode, write as strict JSON in UTF-8, read, decode."""
    text = json.dumps(encode_dtype(dtype), allow_nan=False, ensure_ascii=False).encode()
    return decode_dtype(json.loads(text))


@pytest.mark.parametrize("dtype", PLAIN.values(), ids=PLAIN.keys())
def test_a_plain_dtype_survives_exactly(dtype: np.dtype[Any]) -> None:
    """Byte order, C type, width and unit of a dtype without fields come back as they were."""
    assert identical(through_json(dtype), dtype)
    assert isinstance(encode_dtype(dtype), str)


@pytest.mark.parametrize("dtype", COMPOUND.values(), ids=COMPOUND.keys())
def test_a_compound_dtype_survives_exactly(dtype: np.dtype[Any]) -> None:
    """Offsets, gaps, overlaps, titles, item size, alignment, nesting, sub-arrays and records come back as they were."""
    assert identical(through_json(dtype), dtype)


@pytest.mark.parametrize("dtype", [*PLAIN.values(), *COMPOUND.values()], ids=[*PLAIN, *COMPOUND])
def test_every_dtype_has_one_spelling(dtype: np.dtype[Any]) -> None:
    """Encoding what was decoded gives the same text."""
    encoded = encode_dtype(dtype)
    assert encode_dtype(decode_dtype(encoded)) == encoded


@pytest.mark.parametrize("text", ["<f8", "|S5", "<M8[25ns]", "|b1", ">U3", "|V7"])
def test_a_plain_dtype_is_written_as_its_str(text: str) -> None:
    """The text of a simple dtype is `dtype.str`, which every NumPy user can read."""
    assert encode_dtype(np.dtype(text)) == text == np.dtype(text).str


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("l", "q"),
        ("S1", "c"),
        ("V8", (np.record, 8)),
        ("i4", ("i4", [("a", "i2"), ("b", "i2")])),
        (ALIGNED, (np.record, ALIGNED)),
        (ALIGNED, (np.void, ALIGNED)),
        ([("a", "i4")], np.dtype([("a", "i4")], align=True)),
        (("l", (2,)), ("q", (2,))),
        ([("a", "l")], [("a", "q")]),
    ],
)
def test_dtypes_that_compare_equal_are_told_apart(one: Any, other: Any) -> None:
    """What `==` takes for the same is encoded, cached and compared as what it is, in either order."""
    first, second = np.dtype(one), np.dtype(other)
    assert first == second
    assert not identical(first, second)
    for a, b in [(first, second), (second, first)]:
        assert encode_dtype(a) != encode_dtype(b)
        assert identical(decode_dtype(encode_dtype(b)), b)


def test_units_that_numpy_takes_for_equal_by_an_overflow_are_told_apart() -> None:
    """A unit of time never comes back as another, though the two compare equal one way round and share their hash."""
    seconds, milliseconds = np.dtype("m8[2145339s]"), np.dtype("m8[2147483646ms]")
    assert hash(seconds) == hash(milliseconds)
    for dtype in (seconds, milliseconds, seconds):
        assert encode_dtype(dtype) == dtype.str
        assert decode_dtype(encode_dtype(dtype)).str == dtype.str
    assert not identical(seconds, milliseconds)
    assert not identical(milliseconds, seconds)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("<f8", ">f8"),
        ("f8", ("f8", (1,))),
        ([("a", "f8")], [("b", "f8")]),
        ([("a", "f8")], [("a", "f8"), ("b", "f8")]),
        ([(("t", "a"), "f8")], [("a", "f8")]),
        ({"names": ["a"], "formats": ["i1"], "itemsize": 4}, {"names": ["a"], "formats": ["i1"], "itemsize": 5}),
        ({"names": ["a"], "formats": ["i1"], "offsets": [1]}, {"names": ["a"], "formats": ["i1"], "itemsize": 2}),
        ([], "V0"),
        ("M8[s]", "M8[ms]"),
    ],
)
def test_dtypes_that_differ_are_not_identical(one: Any, other: Any) -> None:
    """`identical` sees every difference that `==` sees."""
    assert not identical(np.dtype(one), np.dtype(other))
    assert not identical(np.dtype(other), np.dtype(one))


def test_metadata_is_dropped() -> None:
    """`dtype.metadata` does not travel, neither of a plain dtype nor of a field, and nothing else is lost with it."""
    plain = np.dtype(">q", metadata={"unit": "m"})
    field = np.dtype([("a", plain)], metadata={"b": 1})
    for dtype in (plain, field):
        back = through_json(dtype)
        assert back.metadata is None
        assert identical(back, dtype)
    assert back["a"].metadata is None


class Unit:
    """Something to be held by metadata."""


def test_metadata_is_not_kept_alive() -> None:
    """No cache holds on to what a dtype carries as metadata."""
    unit = Unit()
    alive = weakref.ref(unit)
    encode_dtype(np.dtype("V7919", metadata={"unit": unit}))  # one that no other test has put into the cache
    del unit
    assert alive() is None


def test_renaming_fields_of_a_decoded_dtype_changes_no_other() -> None:
    """Field names can be assigned to, so each decoding of a struct gives a fresh dtype."""
    encoded = encode_dtype(np.dtype([("a", "i4")]))
    decode_dtype(encoded).names = ("changed",)
    assert decode_dtype(encoded).names == ("a",)


class Odd(np.void):  # type: ignore[misc]  # final on paper only
    """A scalar type of the program's own."""


REFUSED: dict[str, tuple[Any, str, str, str]] = {
    # dtype, field, what the message says, what the remedy says
    "object": ("O", "", "object", "'U<n>'"),
    "object in a struct": ([("a", "f8"), ("b", [("c", "O")])], "b.c", "object", "Queue"),
    "object in a sub-array": (("O", (2,)), "", "object", "Queue"),
    "object in a sub-array in a struct": ([("a", "O", (2, 2))], "a", "object", "Queue"),
    "object in a record": ((np.record, [("a", "O")]), "a", "object", "Queue"),
    "StringDType": (np.dtypes.StringDType(), "", "StringDType", "np.strings.str_len(a).max()"),
    "StringDType with NA": (np.dtypes.StringDType(na_object=None), "", "StringDType", "a.astype('U<n>')"),
    "user-defined": (rational, "", "another package", "a.view(np.uint64)"),
    "user-defined in a struct": ([("x", [("y", rational)])], "x.y", "another package", "a.view(np.uint64)"),
    "user-defined in a sub-array": ((rational, (2,)), "", "another package", "a.view(np.uint64)"),
    "user-defined, of the new kind": (_get_sfloat_dtype()(2.0), "", "another package", "a.view(np.uint64)"),
    "of a scalar type of the program": ((Odd, [("a", "i4")]), "", "Odd", "np.void"),
    "of a scalar type of the program, as a field": ([("f", (Odd, [("a", "i4")]))], "f", "Odd", "np.void"),
    "too deep": (nested(MAX_DEPTH + 1), ".".join("x" * (MAX_DEPTH + 1)), "64 levels", "Flatten"),
    "a title that is no string": ({"names": ["a"], "formats": ["i4"], "titles": [5]}, "a", "title", "str"),
    "overflowing": ({"names": ["a"], "formats": ["i4"], "offsets": [2**31 - 2]}, "", "negative", "offsets"),
}


@pytest.mark.parametrize(("spec", "field", "says", "remedy"), REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.parametrize("act", [check_dtype, encode_dtype])
def test_what_cannot_be_shared_is_refused_with_its_remedy(
    act: Any, spec: Any, field: str, says: str, remedy: str
) -> None:
    """The error is a TypeError, names the offending field and the dtype, and ends with what to do."""
    with pytest.raises(DTypeError) as caught:
        act(np.dtype(spec))
    error = caught.value
    assert isinstance(error, TypeError)
    assert isinstance(error, ShmArrayError)
    assert (error.field, isinstance(error.dtype, str)) == (field, True)
    assert says in str(error).splitlines()[0]
    assert remedy in str(error).splitlines()[-1]
    if field:
        assert f"field {field!r}" in str(error)
    back = pickle.loads(pickle.dumps(error))
    assert (str(back), back.field, back.dtype) == (str(error), error.field, error.dtype)


def test_the_remedy_for_a_scalar_type_of_the_program_works() -> None:
    """What the error proposes gives a dtype that can be shared, with the same fields."""
    array = np.zeros(2, np.dtype((Odd, [("a", "i4")])))
    proposed = array.view(np.dtype((np.void, array.dtype))).dtype
    check_dtype(proposed)
    assert proposed.names == ("a",)


def test_the_remedy_for_a_user_defined_dtype_works() -> None:
    """Bytes viewed as the proposed integers and back are the same values."""
    array = np.array([1, 2, 3]).astype(rational)
    check_dtype(array.view(np.uint64).dtype)
    assert (array.view(np.uint64).view(rational) == array).all()


def test_a_long_dtype_is_shown_in_part() -> None:
    """A struct of hundreds of fields does not fill the screen."""
    with pytest.raises(DTypeError) as caught:
        check_dtype(np.dtype((Odd, [(f"field{i}", "i4") for i in range(500)])))
    assert len(str(caught.value)) < 500


def test_a_dtype_too_deep_to_show_is_refused_all_the_same() -> None:
    """Thousands of levels give the typed error and no RecursionError."""
    deep: np.dtype[Any] = np.dtype("i4")
    for _ in range(3000):
        deep = np.dtype((deep, (1,)))
    for dtype in (deep, nested(3000)):
        with pytest.raises(DTypeError, match="64 levels"):
            check_dtype(dtype)


@pytest.mark.parametrize("dtype", [*PLAIN.values(), *COMPOUND.values()], ids=[*PLAIN, *COMPOUND])
def test_what_can_be_shared_passes_the_check(dtype: np.dtype[Any]) -> None:
    """`check_dtype` lets every fixed-size dtype pass."""
    check_dtype(dtype)


GOOD: dict[str, Any] = {"n": ["a", "b"], "f": ["<i4", "<f8"], "o": [0, 4], "s": 12}
MALFORMED: dict[str, Any] = {
    **{repr(value): value for value in list[Any]([None, True, 7, 1.5, "", [], {}, [[]], [{}], "f8", "<f9", "<i8 "])},
    **{text: text for text in ("|O", "O", "<O8", "object", "T", "|T16", "=i8", "|i8", "<i1", "<b1", "i4,i4", "2i4")},
    **{text: text for text in ("|S05", "|S", "|V99999999999", "<U536870912", "|S-1", "<M8[x]", "<M8[1s]", "<l")},
    "a very long number": "|S" + "9" * 5000,
    "a number in other digits": "<f\u0668",
    "no base": [None, [2]],
    "an object base": ["|O", [2]],
    "no shape": ["<i4", []],
    "negative shape": ["<i4", [-1]],
    "boolean shape": ["<i4", [True]],
    "text for a shape": ["<i4", "22"],
    "too many items": ["<i4", [2**31 - 1, 2**31 - 1]],
    "huge shape": ["<i4", [2**70]],
    "too many dimensions": ["<i1", [1] * 65],
    "deep": functools.reduce(lambda base, _: [base, [1]], range(100_000), cast("Any", "<i4")),
    "a key missing": {key: GOOD[key] for key in "nfo"},
    "a key too many": {**GOOD, "x": 1},
    "a name missing": {**GOOD, "n": ["a"]},
    "an offset missing": {**GOOD, "o": [0]},
    "a name twice": {**GOOD, "n": ["a", "a"]},
    "a name that is a number": {**GOOD, "n": ["a", 5]},
    "a name that is no hexadecimal": {**GOOD, "n": ["a", ["xy"]]},
    "a name that is no UTF-8": {**GOOD, "n": ["a", ["ff"]]},
    "names that are text": {**GOOD, "n": "ab"},
    "an object field": {**GOOD, "f": ["<i4", "|O"]},
    "a negative offset": {**GOOD, "o": [0, -4]},
    "an offset beyond the end": {**GOOD, "o": [0, 8]},
    "an offset that overflows": {**GOOD, "o": [0, 2**31 - 2], "s": 2**31 - 1},
    "a boolean offset": {**GOOD, "o": [False, 4]},
    "an item size too large": {**GOOD, "s": 2**31},
    "an item size that is text": {**GOOD, "s": "12"},
    "titles missing": {**GOOD, "t": ["x"]},
    "titles twice": {**GOOD, "t": ["x", "x"]},
    "a title that is a name": {**GOOD, "t": ["b", None]},
    "a title that is a number": {**GOOD, "t": [5, None]},
    "a title for titles": {**GOOD, "t": None},
    "aligned, but is not": {**GOOD, "a": 1},
    "alignment unknown": {**GOOD, "a": 3},
    "alignment by truth": {**GOOD, "a": True},
    "alignment by number": {**GOOD, "a": 1.0},
    "record unknown": {**GOOD, "r": 2},
    "a base of another size": {**GOOD, "b": "<i4"},
    "an object base with fields": {**GOOD, "b": "|O"},
    "a base that is a list": {**GOOD, "b": ["<i4", [3]]},
    "a record of negative size": {"s": -1, "r": 1},
    "a record of no size": {"s": None, "r": 1},
    "no record": {"s": 8, "r": 0},
}


@pytest.mark.parametrize("encoded", MALFORMED.values(), ids=[name[:40] for name in MALFORMED])
def test_malformed_input_is_a_value_error(encoded: Any) -> None:
    """What `encode_dtype` never wrote raises ValueError, and makes no dtype."""
    with pytest.raises(ValueError, match=r"dtype|text|hexadecimal|utf-8"):
        decode_dtype(encoded)


def test_decoding_leaves_its_input_alone() -> None:
    """The value that is decoded is not changed by it."""
    encoded = encode_dtype(np.dtype((np.record, [(("t", "a"), "f8")]), align=True))
    before = copy.deepcopy(encoded)
    decode_dtype(encoded)
    assert encoded == before
