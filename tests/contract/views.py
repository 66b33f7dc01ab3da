"""What a user may make of a shared array: models of arrays, and views of each.

Imported by test modules and by worker processes, so it knows neither pytest nor a store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib import stride_tricks

if TYPE_CHECKING:
    from collections.abc import Callable

RECORD = np.dtype(
    {"names": ["a", "b", "c"], "formats": ["<i4", ("<f4", (2, 2)), "S3"], "offsets": [4, 8, 24], "itemsize": 32}
)


def models() -> dict[str, np.ndarray[Any, Any]]:
    """Arrays as a user puts them: each kind of layout, with contents that differ in every element."""
    records = np.zeros((3, 4), RECORD)
    records["a"] = np.arange(12).reshape(3, 4)
    records["b"] = np.arange(48).reshape(3, 4, 2, 2)
    records["c"] = np.array([str(number) for number in range(12)], "S3").reshape(3, 4)
    return {
        "C order": np.arange(2 * 3 * 4, dtype="<f8").reshape(2, 3, 4),
        "Fortran order": np.arange(2 * 3 * 4, dtype=">i2").reshape((2, 3, 4), order="F"),
        "other order": np.arange(2 * 3 * 4, dtype="<c8").reshape(3, 2, 4).transpose(1, 0, 2),
        "records": records,
        "0-d": np.array(7.5),
        "empty": np.zeros((2, 0, 3), "u2"),
        "one element": np.ones((1, 1, 1), "?"),
    }


def _strided(array: Any) -> Any:
    if array.size < 2:
        message = "it would reach beyond the array, which NumPy does not notice"
        raise ValueError(message)
    return stride_tricks.as_strided(array, (2,), (array.dtype.itemsize,), subok=True)


VIEWS: dict[str, Callable[[Any], Any]] = {
    "itself": lambda a: a,
    "ellipsis": lambda a: a[...],
    "slice": lambda a: a[1:],
    "steps": lambda a: a[::2, 1:],
    "reversed": lambda a: a[::-1, ::-1],
    "reversed steps": lambda a: a[::-2, ..., ::-1],
    "one row": lambda a: a[-1],
    "one element, 0-d": lambda a: a[(0,) * a.ndim + (...,)],
    "nothing": lambda a: a[5:5],
    "transposed": lambda a: a.T,
    "axes moved": lambda a: np.moveaxis(a, 0, -1),
    "new axis": lambda a: a[:, np.newaxis, ..., np.newaxis],
    "reshaped": lambda a: a.reshape(-1),
    "flattened in Fortran order": lambda a: a.T.reshape(-1),
    "diagonal": lambda a: a.diagonal(0, 0, 1),
    "squeezed": lambda a: a[:1].squeeze(0),
    "squeezed everywhere": lambda a: a.squeeze(),
    "as bytes": lambda a: a.reshape(-1).view("V1"),
    "as unsigned": lambda a: a.view(f"u{a.dtype.itemsize}"),
    "in the other byte order": lambda a: a.view(a.dtype.newbyteorder()),
    "field": lambda a: a["a"],
    "field with a shape": lambda a: a["b"][..., 0],
    "fields": lambda a: a[["a", "c"]],
    "real part": lambda a: a.real,
    "imaginary part": lambda a: a.imag,
    "broadcast": lambda a: np.broadcast_to(a, (2, *a.shape), subok=True),
    "windows": lambda a: stride_tricks.sliding_window_view(a, 2, axis=-1, subok=True),
    "strided": _strided,
    "ndarray and back": lambda a: a.view(np.ndarray)[...].view(type(a)),
}


def views_of(array: Any) -> dict[str, Any]:
    """All views that this array has; those that NumPy refuses, or makes by copying, are left out.

    Which are views is decided on the plain array, so that it does not depend on what is being tested.
    """
    plain = array.view(np.ndarray)
    found = {}
    for name, view in VIEWS.items():
        try:
            model = view(plain)
        except (ValueError, TypeError, IndexError):
            continue
        if model.base is not None and (array.size == 0 or model.size == 0 or np.may_share_memory(model, plain)):
            found[name] = view(array)
    found["read-only"] = array[...]
    found["read-only"].flags.writeable = False
    return found


def facts(array: Any) -> tuple[Any, ...]:
    """All that one can see of an array but its contents; strides only where they mean anything."""
    strides = tuple(step for step, length in zip(array.strides, array.shape, strict=True) if length > 1)
    flags = (array.flags.c_contiguous, array.flags.f_contiguous, array.flags.writeable, array.flags.aligned)
    return array.shape, strides if array.size else None, dtype_facts(array.dtype), flags


def dtype_facts(dtype: np.dtype[Any]) -> tuple[Any, ...]:
    """All that one can see of a dtype; equality alone overlooks offsets' padding, titles and alignment."""
    fields: Any = dtype.fields or {}
    inner = tuple((name, dtype_facts(field[0]), *field[1:]) for name, field in fields.items())
    base = None if dtype.subdtype is None else dtype_facts(dtype.subdtype[0])
    return (
        dtype.str,
        dtype.char,
        dtype.itemsize,
        dtype.shape,
        dtype.isalignedstruct,
        dtype.names,
        inner,
        base,
        dtype.type,
    )
