"""What a user gives, as NumPy's array.

Owns: asking a tensor of another library for its memory; what to say where NumPy makes no array, or takes half of what is there.
Must not know: which libraries there are.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from shmarray.errors import DTypeError


def is_tensor(kind: type) -> bool:
    """Say whether a class is another library's array: memory with shape and dtype, and nothing else that NumPy would leave out."""
    return hasattr(kind, "__array_interface__") or (hasattr(kind, "__array__") and hasattr(kind, "__dlpack__"))


def array_of(value: Any) -> np.ndarray[Any, Any]:
    """Give what `numpy.asarray` gives; of a tensor whose gradient is recorded, its values. Raises `TypeError` with what to do instead."""
    if not is_tensor(type(value)):
        return np.asarray(value)
    try:
        # What a parameter of a model is made of is what it is put for; its history stays where it is.
        detach = getattr(value, "detach", None)
        return np.asarray(value if detach is None else detach())
    except (TypeError, RuntimeError) as error:  # memory of another device, or elements that NumPy has not
        kind, first = type(value), (str(error).splitlines() or [""])[0]
        message = f"of a {kind.__module__}.{kind.__qualname__} NumPy makes no array: {first}\n{_remedy(first)}"
        raise TypeError(message) from None


def _remedy(first: str) -> str:
    if "BFloat16" in first or "Float8" in first:
        return "Put its bytes, t.view(torch.uint16) or t.view(torch.uint8), and view them back where they are used."
    return "Put it as an array in main memory, as t.cpu() of a tensor."


def plain(value: Any) -> np.ndarray[Any, Any]:
    """Make an ndarray of what a user gave.

    Raises `TypeError` for a masked array, whose mask would be lost, `DTypeError` for what NumPy makes no array of.
    """
    masked = sys.modules.get("numpy.ma")  # NumPy loads it late; without it nobody has a masked array
    if masked is not None and isinstance(value, masked.MaskedArray):
        message = (
            "a masked array cannot be put whole: its mask would be lost\n"
            'Put both: store.put({"data": a.data, "mask": numpy.ma.getmaskarray(a)}).'
        )
        raise TypeError(message)
    # Of a mapping NumPy would take the keys, and lose the values.
    if not isinstance(value, np.ndarray) and (isinstance(value, Mapping) or _has_keys(type(value))):
        raise _no_array(value)
    array = array_of(value)
    if array.dtype == object and not array.shape and not isinstance(value, (np.ndarray, np.generic)):
        raise _no_array(value)
    return array


def _has_keys(kind: type) -> bool:
    """Say whether a class is a mapping in all but name, and gives no array itself."""
    return all(hasattr(kind, name) for name in ("keys", "__getitem__", "__len__")) and not hasattr(kind, "__array__")


def _no_array(value: object) -> DTypeError:
    """Describe what NumPy can only keep as a Python object."""
    kind = type(value).__name__
    managers = sys.modules.get("multiprocessing.managers")
    if managers is not None and isinstance(value, managers.BaseProxy):
        summary = f"a proxy ({kind}) cannot be put into a store: what it stands for lives in another process, not in shared memory"
        remedy = (
            "Pass it as an argument or through a queue; a name can be given to arrays and to what a store makes: locks, queues, "
            "dicts, ..."
        )
    elif isinstance(value, Mapping) or _has_keys(type(value)):
        summary = f"a {kind} cannot be put into a store: only dict and OrderedDict come back as what they were"
        remedy = "Convert it with dict(...)."
    else:
        summary = f"an object of type {kind} cannot be put into a store"
        remedy = (
            "Put arrays or what NumPy makes one of; dicts, lists, tuples, dataclasses of these; or what a store makes: locks, queues, "
            "dicts, ... Other objects go through a store's Queue or dict, pickled."
        )
    return DTypeError(summary, remedy=remedy, dtype="object", field="")
