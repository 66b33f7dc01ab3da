"""Small anonymous arrays, which lie in cells, in NumPy's terms.

Owns: which array is made in a cell, what its slab says of it, and the words of a handle to one.
Must not know: `SharedArray`; how cells are given out (`stocks`).
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from shmarray import blockfiles, cells, cellviews, contents, joining, membership, stocks
from shmarray._format import names, slab
from shmarray._format.dtypes import decode_dtype, encode_dtype

if TYPE_CHECKING:
    from shmarray._format import layouts
    from shmarray._format.handle import BlockKey, ViewSpec
    from shmarray.membership import Membership

Array = TypeVar("Array", bound=np.ndarray[Any, Any])
_BYTE, _new = np.dtype(np.uint8), np.ndarray.__new__


def form_of(dtype: np.dtype[Any], layout: layouts.Layout) -> stocks.Form | None:
    """Tell what an array looks like that can lie in a cell; None if it cannot, in any store. Raises `DTypeError`."""
    if not layout.nbytes or dtype.names is not None:
        return None  # the description of a structure is long
    code = encode_dtype(dtype)
    return _form_of(code, layout.shape, layout.strides, layout.nbytes) if isinstance(code, str) else None


@functools.lru_cache(maxsize=256)
def _form_of(code: str, shape: tuple[int, ...], strides: tuple[int, ...] | None, nbytes: int) -> stocks.Form | None:
    """Describe an array as its slab does; arrays that look the same are described once."""
    meta = json.dumps([code, shape, strides], separators=(",", ":")).encode()
    return stocks.Form(nbytes, slab.size_class(nbytes), meta) if len(meta) <= slab.MOST_META else None


def make(
    kind: type[Array],
    member: Membership,
    dtype: np.dtype[Any],
    layout: layouts.Layout,
    form: stocks.Form | None,
    *,
    clear: bool,
) -> Array | None:
    """Make an array in a cell, of zeros if it is to be `clear`; None if it is to be a block of its own. Raises `StoreClosedError`."""
    if form is None or form.nbytes > member.control.small:
        return None
    fresh = stocks.allocate(member, form)
    if fresh is None:
        return None
    root, is_clear = fresh
    if clear and not is_clear:
        root[:] = 0
    return _new(kind, layout.shape, dtype, cellviews.over(root), 0, layout.strides)


def spec_of(array: np.ndarray[Any, Any], view: cellviews.View) -> ViewSpec:
    """Say what part of a cell's array this view of it is."""
    root: Any = view()
    return contents.spec_of(array, root.nbytes, None, functools.partial(contents.address_of, root))


def attach(kind: type[Array], key: BlockKey, spec: ViewSpec) -> Array:
    """Load the handle of an array in a cell, or of a view of it. Raises as `cells.attach` does."""
    member = membership.near(key.store)
    if member is None or not member.is_open():
        member = joining.join(key.store_key)
    root = cells.attach(member, key)
    try:
        if spec.offset < 0:  # NumPy looks only at the other end
            raise ValueError("a view begins before its array")
        array = _new(kind, spec.shape, decode_dtype(spec.dtype), cellviews.over(root), spec.offset, spec.strides)
    except (ValueError, TypeError) as error:
        raise blockfiles.corrupt(f"{member.block_prefix}{names.slab(key.block)}", str(error)) from None
    if not spec.writeable:
        array.flags.writeable = False
    return array
