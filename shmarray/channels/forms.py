"""What an item of a channel looks like: one array, or several by name.

Owns: shapes, dtypes and places of the arrays in a slot; viewing a slot's memory as they say; what may be put in.
Must not know: which slot is whose.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from shmarray import contents
from shmarray._format import foreign, layouts
from shmarray._format.dtypes import check_dtype, decode_dtype, encode_dtype
from shmarray.errors import DTypeError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Sequence

_MOST_FIELDS = 256


class Field(NamedTuple):
    """One array of an item: `lengths` has None where a length varies, `bounds` the most that it may be."""

    name: str | None
    dtype: np.dtype[Any]
    lengths: tuple[int | None, ...]
    bounds: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes it takes at most."""
        return layouts.nbytes(self.bounds, self.dtype.itemsize)


class Form:
    """The arrays of an item."""

    __slots__ = ("_loose", "fields", "is_single", "nbytes", "varying")

    def __init__(self, fields: Sequence[Field]) -> None:
        """Items have these fields; one without a name is all there is."""
        self.fields = tuple(fields)
        self.is_single = fields[0].name is None
        self.varying = sum(length is None for field in fields for length in field.lengths)
        self._loose = self.varying > 0
        last = self.fields[-1]
        self.nbytes = last.offset + last.nbytes

    @classmethod
    def of(cls, shape: Any, dtype: Any, max_shape: Any) -> Self:
        """Read what a user gave: a shape and a dtype, or a mapping of names to both. Raises `ShapeError`, `DTypeError`, `TypeError`."""
        if not isinstance(shape, Mapping):
            return cls([_field(None, shape, float if dtype is None else dtype, max_shape, 0)])
        if dtype is not None:
            message = "each field of a channel has a dtype of its own: shape={name: (shape, dtype), ...}, and no dtype"
            raise TypeError(message)
        if not 0 < len(shape) <= _MOST_FIELDS or any(not isinstance(name, str) for name in shape):
            message = f"a channel has 1 to {_MOST_FIELDS} fields, whose names are texts"
            raise ValueError(message)
        bounds = {} if max_shape is None else max_shape
        if not isinstance(bounds, Mapping) or not set(bounds) <= set(shape):
            message = "max_shape of fields is a mapping of their names to shapes"
            raise TypeError(message)
        fields, offset = [], 0
        for name, given in shape.items():
            if not isinstance(given, tuple) or len(given) != 2:  # noqa: PLR2004  a pair
                message = f"field {name!r} is given as (shape, dtype), not as {given!r}"
                raise TypeError(message)
            field = _field(name, *given, bounds.get(name), offset)
            fields.append(field)
            offset = -(-(offset + field.nbytes) // layouts.ALIGN) * layouts.ALIGN
        return cls(fields)

    def describe(self) -> list[Any]:
        """What a block's description says of it, for JSON."""
        return [
            [field.name, encode_dtype(field.dtype), field.lengths, field.bounds, field.offset] for field in self.fields
        ]

    @classmethod
    def described(cls, description: Any) -> Self:
        """Read what `describe` wrote. Raises `ValueError` or one of its kin."""
        return cls(
            [
                Field(name, decode_dtype(dtype), tuple(lengths), tuple(bounds), int(offset))
                for name, dtype, lengths, bounds, offset in description
            ]
        )

    # -- viewing a slot ------------------------------------------------------------------------------------------------

    def lengths(self, shape: Any) -> tuple[int, ...]:
        """Find the lengths that vary for an item of that shape (of fields: a mapping); None is the largest. Raises `ShapeError`."""
        if not self._loose and shape is None:
            return ()
        if not self.is_single and shape is not None:
            names = {field.name for field in self.fields}
            if not isinstance(shape, Mapping) or not set(shape) <= names:
                message = f"the shape of an item of this channel is a mapping of fields to shapes, not {shape!r}"
                raise TypeError(message)
        found: list[int] = []
        for field in self.fields:
            wanted = shape if self.is_single or shape is None else shape.get(field.name)
            lengths = field.bounds if wanted is None else layouts.check_shape(wanted)
            if not _fits(field, lengths):
                raise _unfit(field, lengths)
            found += [length for length, fixed in zip(lengths, field.lengths, strict=True) if fixed is None]
        return tuple(found)

    def view(self, memory: np.ndarray[Any, Any], lengths: Sequence[int] = (), *, write: bool) -> Any:
        """View the bytes of a slot as an item with those lengths: an ndarray, or a dict of them."""
        varying = iter(lengths)
        arrays = {}
        for field in self.fields:
            shape = tuple(next(varying) if length is None else length for length in field.lengths)
            if not _fits(field, shape):
                raise _unfit(field, shape)
            array = np.ndarray(shape, field.dtype, memory, field.offset)
            array.flags.writeable = write
            arrays[field.name] = array
        return arrays[None] if self.is_single else arrays

    def check(self, value: Any) -> tuple[Any, tuple[int, ...]]:
        """Make of what a user puts an array, or a dict of them, that fits; and the lengths that vary. Raises as `put` does."""
        if value is None or (self.is_single and isinstance(value, Mapping)):
            raise _no_item(value)
        if self.is_single:
            array = self._checked(self.fields[0], value)
            return array, self.lengths(array.shape) if self._loose else ()
        if not isinstance(value, Mapping) or set(value) != {field.name for field in self.fields}:
            names = ", ".join(repr(field.name) for field in self.fields)
            message = f"an item of this channel is a dict with the fields {names}"
            raise TypeError(message)
        arrays = {field.name: self._checked(field, value[field.name]) for field in self.fields}
        return arrays, self.lengths({name: array.shape for name, array in arrays.items()}) if self._loose else ()

    @staticmethod
    def _checked(field: Field, value: Any) -> np.ndarray[Any, Any]:
        array = foreign.plain(value)
        if not _fits(field, array.shape):
            raise _unfit(field, array.shape)
        if array.dtype != field.dtype and not np.can_cast(array.dtype, field.dtype, "same_kind"):
            message = f"{_what(field)} is of dtype {field.dtype}, and {array.dtype} is of another kind: convert it with astype()"
            raise TypeError(message)
        return array

    def fill(self, target: Any, source: Any) -> None:
        """Copy an item that was checked into one that was viewed."""
        if self.is_single:
            target[...] = source
        else:
            for name, array in source.items():
                target[name][...] = array

    def copy(self, item: Any) -> Any:
        """Copy a viewed item into private memory."""
        return item.copy() if self.is_single else {name: array.copy() for name, array in item.items()}


def _field(name: str | None, shape: Any, dtype: Any, max_shape: Any, offset: int) -> Field:
    kind, inner = contents.element(np.dtype(dtype))
    check_dtype(kind)
    given = shape if isinstance(shape, (tuple, list)) else (shape,)
    most = None if max_shape is None else layouts.check_shape(max_shape)
    if most is None and any(length is None for length in given):
        raise ShapeError(
            f"a length of {shape!r} varies, and nothing says how large it can be",
            remedy="Give max_shape, with a number in place of each None.",
            shape=shape,
        )
    bounds = most if most is not None else layouts.check_shape(given)
    fixed = tuple(bound if length is None else length for length, bound in zip(given, bounds, strict=False))
    if len(given) != len(bounds) or layouts.check_shape(fixed) != bounds:
        raise ShapeError(
            f"max_shape {max_shape!r} does not go with shape {shape!r}",
            remedy="They have as many lengths, and differ where shape has None alone.",
            shape=max_shape,
        )
    lengths = (*(None if length is None else bound for length, bound in zip(given, bounds, strict=True)), *inner)
    field = Field(name, kind, lengths, bounds + inner, offset)
    if not field.nbytes:
        raise ShapeError(f"an item of shape {shape!r} has no bytes", remedy="Give lengths above zero.", shape=shape)
    return field


def _fits(field: Field, shape: tuple[int, ...]) -> bool:
    """Whether a shape is one that this field can have."""
    return len(shape) == len(field.lengths) and all(
        0 <= length <= bound if fixed is None else length == fixed
        for length, fixed, bound in zip(shape, field.lengths, field.bounds, strict=True)
    )


def _what(field: Field) -> str:
    return "an item of this channel" if field.name is None else f"the field {field.name!r} of an item of this channel"


def _no_item(value: object) -> DTypeError:
    if value is None:
        summary = "None is no item of a channel"
        remedy = (
            "Nobody needs to send a sentinel: close() of the last producer ends the stream, and end() does so at once."
        )
    else:
        summary = f"an item of this channel is one array, not a {type(value).__name__}"
        remedy = "Make the channel with fields, store.channel({name: (shape, dtype), ...}), or give what is no array as meta=."
    return DTypeError(summary, remedy=remedy, dtype="object", field="")


def _unfit(field: Field, shape: tuple[int, ...]) -> ShapeError:
    most = f", at most {field.bounds}" if None in field.lengths else ""
    return ShapeError(
        f"{_what(field)} has the shape {field.lengths}{most}, not {shape}",
        remedy="Put what has that shape, or make the channel with a larger max_shape.",
        shape=shape,
    )
