"""NumPy dtypes as small JSON values, and back without loss.

Owns: which dtypes can be shared, and how each is written:

    "<f8", "|S5", "<M8[25ns]"   a plain dtype: its `dtype.str`. Where that names another C type, byte order and type
                                character, as in "<q" (long long) and "|c"
    [BASE, [3, 4]]              a sub-array
    {"n": [name, ...],          fields; the key is absent for a record type that has none
     "f": [dtype, ...],         their dtypes
     "o": [offset, ...],        their offsets in bytes
     "t": [title, ...],         their titles or null, if any has one
     "s": itemsize,
     "a": 1 or 2,               aligned; 2 if it is so flagged, and yet may stand at any address
     "r": 1,                    the scalar type is `numpy.record`
     "b": "<i4"}                fields laid over this plain dtype

Must not know: where the text goes, arrays, files.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from shmarray._format.values import decode_text, encode_text
from shmarray.errors import DTypeError

if TYPE_CHECKING:
    from collections.abc import Mapping

#: How deep structs and sub-arrays may nest.
MAX_DEPTH = 64

_VOID = 20
_STRING_DTYPE = "T"
_FIRST_USER_DEFINED = 256
#: Type numbers of the built-in dtypes of fixed size: all but object (17), void being judged by what is in it.
_PLAIN = frozenset(range(24)) - {17, _VOID}
_MAX_ITEMSIZE = 2**31 - 1  # NumPy keeps it in a C int here and there, and does not always notice an overflow
_PLAIN_TEXT = re.compile(
    r"[<>|](?:[biufc]\d{1,2}|[SUV]\d{1,10}|[mM]8(?:\[\d{0,10}(?:Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?|[bBhHiIlLqQpPgGc])",
    re.ASCII,
)
_ALIGNED, _ALIGNED_ANYWHERE = 1, 2

EncodedDType = str | list[Any] | dict[str, Any]


def check_dtype(dtype: np.dtype[Any]) -> None:
    """Raise `DTypeError`, with the path of the offending field and the remedy, if this dtype cannot be shared.

    Shared memory holds bytes: no Python objects (`object`, `StringDType`), no types that only another package knows.
    The error carries `dtype` (as text, which always pickles) and `field` (its path with dots, "" for the dtype itself).

    >>> check_dtype(np.dtype([("a", "f8"), ("b", "S5", 3)]))
    """
    if not is_plain(dtype):
        _check(dtype, "", 0)


def is_plain(dtype: np.dtype[Any]) -> bool:
    """Say whether this is one of the dtypes that hold one number or text, which can all be shared."""
    return dtype.num in _PLAIN and dtype.names is None and dtype.itemsize >= 0


def encode_dtype(dtype: np.dtype[Any]) -> EncodedDType:
    """Write a dtype as a JSON value from which `decode_dtype` makes an identical one.

    All of it is kept but `dtype.metadata`, which NumPy itself drops on most operations. Plain dtypes take less than a
    microsecond. Raises `DTypeError` for a dtype that cannot be shared.

    >>> encode_dtype(np.dtype(">u2")), encode_dtype(np.dtype(("f4", (2, 3))))
    ('>u2', ['<f4', [2, 3]])
    """
    if dtype.num in _PLAIN and dtype.names is None and dtype.itemsize >= 0:  # nearly always, so it is kept short
        return _spelling(dtype.str, dtype.char)
    _check(dtype, "", 0)
    return _encode(dtype)


def decode_dtype(encoded: object) -> np.dtype[Any]:
    """Make the dtype that `encode_dtype` wrote; raise `ValueError` for anything that it did not write.

    Never makes a dtype that holds Python objects. A dtype with fields is a fresh object each time, because its names
    can be assigned to.

    >>> decode_dtype([">u2", [7]])
    dtype(('>u2', (7,)))
    """
    if type(encoded) is str:
        return _COMMON.get(encoded) or _decode_plain(encoded)
    return _decode(encoded, 0)


def identical(a: np.dtype[Any], b: np.dtype[Any]) -> bool:
    """Whether two dtypes are the same in all that NumPy lets one see, metadata aside.

    Stricter than `==`, which takes `long` for `long long`, an aligned struct for one that is not, a record for a
    struct, and a number with fields for one without.
    """
    if a != b or _facts(a) != _facts(b):
        return False
    if a.subdtype is not None:
        return identical(a.base, b.base)
    pairs = zip(_fields(a), _fields(b), strict=True)
    return all(x.at == y.at and identical(x.dtype, y.dtype) for x, y in pairs)


class _Field(NamedTuple):
    name: str
    dtype: np.dtype[Any]
    offset: int
    title: Any

    @property
    def at(self) -> tuple[Any, ...]:
        """All but the dtype."""
        return self.name, self.offset, self.title


def _fields(dtype: np.dtype[Any]) -> list[_Field]:
    """Fields in order; NumPy's own mapping has each titled field twice, and leaves out titles that are None."""
    found: Mapping[str, tuple[Any, ...]] = dtype.fields or {}
    return [_Field(*(name, *found[name], None)[:4]) for name in dtype.names or ()]


def _facts(dtype: np.dtype[Any]) -> tuple[Any, ...]:
    kind = (dtype.type, dtype.num, dtype.char, dtype.str, dtype.itemsize, dtype.shape, dtype.names)
    return *kind, dtype.alignment, dtype.isalignedstruct


def _check(dtype: np.dtype[Any], field: str, depth: int) -> None:
    """Walk a dtype; `field` is the path walked so far."""
    if depth > MAX_DEPTH:
        raise _refusal(dtype, field, f"nests deeper than {MAX_DEPTH} levels", "Flatten the struct.")
    if dtype.subdtype is not None:
        _check(dtype.base, field, depth + 1)
    elif dtype.num not in _PLAIN and (dtype.num != _VOID or dtype.type not in (np.void, np.record)):
        raise _refusal(dtype, field, *_objection(dtype))
    elif dtype.itemsize < 0:
        raise _refusal(dtype, field, "has a negative item size (an overflow in NumPy)", "Make its offsets smaller.")
    elif dtype.names is not None:
        for name, inner, _, title in _fields(dtype):
            path = f"{field}.{name}" if field else name
            if title is not None and not isinstance(title, str):
                raise _refusal(inner, path, f"has a title that is not a string ({title!r})", "Use str titles.")
            _check(inner, path, depth + 1)


def _objection(dtype: np.dtype[Any]) -> tuple[str, str]:
    """Say what is wrong with a dtype of no plain type, and what to do."""
    if dtype.char == _STRING_DTYPE:
        return (
            "keeps its strings outside the array, in the memory of this process",
            "Use a fixed width: a.astype('U<n>') with n = np.strings.str_len(a).max().",
        )
    if dtype.hasobject:
        return (
            "holds references to Python objects, which mean nothing in another process",
            "Store text as 'U<n>' or 'S<n>' and numbers as numbers, or pickle the objects through a Queue.",
        )
    if dtype.num == _VOID:
        return (
            f"has the scalar type {dtype.type.__qualname__}, which only this program knows",
            "Share a.view(np.dtype((np.void, a.dtype))), and view it back where it is used.",
        )
    bits = f"np.uint{8 * dtype.itemsize}" if dtype.itemsize in (1, 2, 4, 8) else f"'V{dtype.itemsize}'"
    return (
        "is not one of NumPy's own: another package defines it",
        f"Share its bytes, a.view({bits}), and view them back where they are used.",
    )


def _refusal(dtype: np.dtype[Any], field: str, problem: str, remedy: str) -> DTypeError:
    what = f"the dtype of field {field!r}" if field else f"dtype {_brief(dtype)}"
    return DTypeError(f"{what} {problem}", dtype=_brief(dtype), field=field, remedy=remedy)


def _brief(dtype: np.dtype[Any]) -> str:
    """Show a dtype; one that is too deep to show, or too long, in part."""
    try:
        text = str(dtype)
    except RecursionError:
        text = dtype.str
    return text if len(text) <= 200 else text[:200] + "..."  # noqa: PLR2004  a line or two


@functools.lru_cache(maxsize=1024)
def _spelling(text: str, char: str) -> str:
    """Give the text of a plain dtype, by its `str` and `char`.

    No cache may have a dtype itself as its key: dtypes that differ can be equal and have one hash, as long and long long,
    or units of time so large that NumPy's comparison overflows (m8[2145339s], m8[2147483646ms]).
    """
    return text if np.dtype(text).char == char else text[0] + char


def _encode(dtype: np.dtype[Any]) -> EncodedDType:
    """Encode any dtype that `check_dtype` lets pass."""
    if dtype.subdtype is not None:
        return [_encode(dtype.base), list(dtype.shape)]
    if dtype.names is None:
        return {"s": dtype.itemsize, "r": 1} if dtype.type is np.record else _spelling(dtype.str, dtype.char)
    fields = _fields(dtype)
    result: dict[str, Any] = {
        "n": [encode_text(field.name) for field in fields],
        "f": [_encode(field.dtype) for field in fields],
        "o": [field.offset for field in fields],
        "s": dtype.itemsize,
    }
    if any(field.title is not None for field in fields):
        result["t"] = [None if field.title is None else encode_text(field.title) for field in fields]
    if dtype.num != _VOID:
        result["b"] = _spelling(dtype.str, dtype.char)
    elif dtype.type is np.record:
        result["r"] = 1
    if dtype.isalignedstruct:
        natural = max((field.dtype.alignment for field in fields), default=1)
        result["a"] = _ALIGNED if dtype.alignment == natural else _ALIGNED_ANYWHERE
    return result


#: Numbers, ready: a process's first attach waits for this. None of these can be changed in place.
_COMMON = {
    dtype.str: dtype for dtype in map(np.dtype, "?bBhHiIlLefdFD") if _spelling(dtype.str, dtype.char) == dtype.str
}


@functools.lru_cache(maxsize=1024)
def _decode_plain(text: str) -> np.dtype[Any]:
    if not _PLAIN_TEXT.fullmatch(text):
        raise ValueError(f"not a dtype: {_excerpt(text)}")
    try:
        dtype = np.dtype(text)
        spelling = encode_dtype(dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"not a dtype: {_excerpt(text)}") from error
    # Each dtype has one spelling, so that equal texts mean identical dtypes.
    if spelling != text:
        raise ValueError(f"not the way a dtype is written: {_excerpt(text)}")
    return dtype


def _decode(encoded: object, depth: int) -> np.dtype[Any]:
    if depth > MAX_DEPTH:
        raise ValueError(f"a dtype nests deeper than {MAX_DEPTH} levels")
    match encoded:
        case str(text):
            return _decode_plain(text)
        case [base, [*shape]] if shape and _are_sizes(shape):
            inner = _decode(base, depth + 1)
            return _build((inner, tuple(shape)))
        case {"s": itemsize, "r": 1, **rest} if not rest and _are_sizes([itemsize]):
            return _build((np.record, itemsize))
        case {"n": [*names], "f": [*formats], "o": [*offsets], "s": itemsize, **rest}:
            return _decode_fields(names, [_decode(item, depth + 1) for item in formats], offsets, itemsize, rest)
        case _:
            raise ValueError(f"not a dtype: {_excerpt(encoded)}")


def _decode_fields(
    names: list[Any], formats: list[np.dtype[Any]], offsets: list[Any], itemsize: Any, rest: dict[Any, Any]
) -> np.dtype[Any]:
    titles, aligned, record = rest.pop("t", [None] * len(names)), rest.pop("a", 0), rest.pop("r", 0)
    base = _decode_plain(rest.pop("b")) if type(rest.get("b")) is str else None
    meaningful = not rest and type(titles) is list and type(aligned) is type(record) is int
    if not meaningful or aligned not in (0, _ALIGNED, _ALIGNED_ANYWHERE) or record not in (0, 1):
        raise ValueError("a dtype with fields has keys that mean nothing")
    if not len(names) == len(formats) == len(offsets) == len(titles) or not _are_sizes([*offsets, itemsize]):
        raise ValueError("a dtype with fields whose names, formats, offsets and item size do not go together")
    # NumPy checks this too, but its sum can overflow.
    if any(offset + inner.itemsize > itemsize for offset, inner in zip(offsets, formats, strict=True)):
        raise ValueError("a dtype has a field beyond its end")
    spec: dict[str, Any] = {
        "names": [decode_text(name) for name in names],
        "formats": formats,
        "offsets": offsets,
        "itemsize": itemsize,
        "titles": [None if title is None else decode_text(title) for title in titles],
    }
    dtype = _build(spec, align=aligned != 0)
    if base is not None:
        return _build((base, dtype))
    if record:
        return _build((np.record, dtype))
    # NumPy gives this form the alignment 1 and keeps the flag.
    return _build((np.void, dtype)) if aligned == _ALIGNED_ANYWHERE else dtype


def _build(spec: Any, *, align: bool = False) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = np.dtype(spec, align=align)
    except (TypeError, ValueError, OverflowError, MemoryError) as error:
        raise ValueError(f"NumPy refuses a dtype: {error}") from error
    return dtype


def _are_sizes(values: list[Any]) -> bool:
    return all(type(value) is int and 0 <= value <= _MAX_ITEMSIZE for value in values)


def _excerpt(value: object) -> str:
    """Show a bit of a value; a nested value only by its type, since it may be deep."""
    return repr(value[:60]) if type(value) is str else type(value).__name__
