"""NumPy's constructors, as methods of a store.

Owns: `empty`, `zeros`, `ones`, `full`, their `_like` family, and `put`: what they accept, as NumPy's accept it.
Must not know: how a store is opened, how a block is made.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from shmarray import contents, making, references, trees
from shmarray._format import layouts, names
from shmarray._format.dtypes import is_plain

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike

    from shmarray.arrays import SharedArray
    from shmarray.membership import Membership

    Order = Literal["C", "F"]
    LikeOrder = Literal["C", "F", "A", "K"]


class _Axes(list[int]):
    """Axes from the outermost to the innermost, in place of an `order`."""


class Constructors:
    """The part of `Store` that makes arrays."""

    def _open(self) -> Membership:
        """Give the membership of an open store."""
        raise NotImplementedError

    def empty(
        self, shape: Any, dtype: DTypeLike = float, order: Order = "C", *, name: str | None = None
    ) -> SharedArray:
        """Make an array without setting its elements; like `numpy.empty`. They may be those of an array that was freed before.

        Raises `ShapeError`, `DTypeError`, `ArrayNameError`, `ArrayExistsError`, `StoreFullError`, `StoreClosedError`.

        >>> import shmarray as sa
        >>> with sa.Store() as store:
        ...     store.empty((2, 3), "f4").shape
        (2, 3)
        """
        return self._make(shape, dtype, order, name, clear=False)

    def zeros(
        self, shape: Any, dtype: DTypeLike = float, order: Order = "C", *, name: str | None = None
    ) -> SharedArray:
        """Make an array of zeros; like `numpy.zeros`. Raises as `empty` does."""
        return self._make(shape, dtype, order, name)

    def ones(self, shape: Any, dtype: DTypeLike = float, order: Order = "C", *, name: str | None = None) -> SharedArray:
        """Make an array of ones; like `numpy.ones`. Raises as `empty` does."""
        return self._make(shape, dtype, order, name, 1)

    def full(
        self,
        shape: Any,
        fill_value: Any,
        dtype: DTypeLike | None = None,
        order: Order = "C",
        *,
        name: str | None = None,
    ) -> SharedArray:
        """Make an array filled with a value; like `numpy.full`. Raises as `empty` does."""
        kind = np.asarray(fill_value).dtype if dtype is None else dtype
        return self._make(shape, kind, order, name, fill_value)

    def empty_like(
        self,
        prototype: ArrayLike,
        dtype: DTypeLike | None = None,
        order: LikeOrder = "K",
        *,
        shape: Any = None,
        name: str | None = None,
    ) -> SharedArray:
        """Make an array with the shape, dtype and layout of another; like `numpy.empty_like`. Raises as `empty` does."""
        return self._make_like(prototype, dtype, order, shape, name, clear=False)

    def zeros_like(
        self,
        a: ArrayLike,
        dtype: DTypeLike | None = None,
        order: LikeOrder = "K",
        *,
        shape: Any = None,
        name: str | None = None,
    ) -> SharedArray:
        """Make an array of zeros like another; like `numpy.zeros_like`. Raises as `empty` does."""
        return self._make_like(a, dtype, order, shape, name)

    def ones_like(
        self,
        a: ArrayLike,
        dtype: DTypeLike | None = None,
        order: LikeOrder = "K",
        *,
        shape: Any = None,
        name: str | None = None,
    ) -> SharedArray:
        """Make an array of ones like another; like `numpy.ones_like`. Raises as `empty` does."""
        return self._make_like(a, dtype, order, shape, name, 1)

    def full_like(
        self,
        a: ArrayLike,
        fill_value: Any,
        dtype: DTypeLike | None = None,
        order: LikeOrder = "K",
        *,
        shape: Any = None,
        name: str | None = None,
    ) -> SharedArray:
        """Make an array like another, filled with a value; like `numpy.full_like`. Raises as `empty` does."""
        return self._make_like(a, dtype, order, shape, name, fill_value)

    def _make_like(
        self,
        prototype: ArrayLike,
        dtype: DTypeLike | None,
        order: LikeOrder,
        shape: Any,
        name: str | None,
        value: Any = None,
        *,
        clear: bool = True,
    ) -> SharedArray:
        model = np.asarray(prototype)
        lengths = layouts.check_shape(model.shape if shape is None else shape)
        letter = _letter(order, "CFAK", "K")
        if letter == "A":
            letter = "F" if model.flags.fnc else "C"
        if letter == "K" and len(lengths) == model.ndim:
            axes: _Axes | str = _Axes(layouts.axes_of(model.shape, model.strides))
        else:
            axes = "F" if letter == "F" else "C"
        return self._make(lengths, model.dtype if dtype is None else dtype, axes, name, value, clear=clear)

    def _make(
        self,
        shape: Any,
        dtype: Any,
        order: Any,
        name: str | None,
        value: Any = None,
        *,
        clear: bool = True,
    ) -> SharedArray:
        member = self._open()
        if name is not None:
            names.check(name)
        plan = None
        try:
            if type(shape) is int:
                plan = _known(dtype, order, shape)
            elif type(shape) is tuple:
                plan = _known(dtype, order, *shape)
        except TypeError:
            plan = None  # a list, say, which cannot be looked up; or what is no dtype: the other way tells
        return making.make(member, name, plan or _plan(shape, dtype, order), value, clear=clear)

    def put(self, value: Any, *, name: str | None = None) -> Any:
        """Copy an array into shared memory, or a nested dict, list, tuple, namedtuple or dataclass of arrays into one block.

        An array (or anything `numpy.asarray` takes that is no such container) gives a `SharedArray` of the same dtype and
        layout; a nested structure, with numbers, strings and None between the arrays, gives a `SharedTree`. Arrays of other
        libraries in main memory (tensors of torch and jax, pictures of Pillow) come back as NumPy's. Raises as `empty` does, and
        `TypeError` for what cannot be shared.

        >>> import numpy as np, shmarray as sa
        >>> with sa.Store() as store:
        ...     tree = store.put({"w": np.ones(3), "steps": 7})
        ...     print(tree["w"].sum(), tree["steps"])
        3.0 7
        """
        if name is not None:
            names.check(name)
        return self._put(value, name, replace=False)

    def _put(self, value: Any, name: str | None, *, replace: bool) -> Any:
        member = self._open()
        if references.is_shared_object(value):
            return references.put(member, value, name, replace=replace)
        if trees.is_tree(value):
            return trees.put(member, value, name, replace=replace)
        return making.put(member, value, name, replace=replace)


def _plan(shape: Any, dtype: DTypeLike, order: _Axes | str | None) -> making.Plan:
    """Read what a constructor of NumPy's was given. Raises as they do, with the errors of this library."""
    kind, inner = contents.element(np.dtype(dtype))
    lengths = (*layouts.check_shape(shape), *inner)
    if not isinstance(order, _Axes):
        axes = None if _letter(order, "CF", "C") == "C" else list(reversed(range(len(lengths))))
    else:
        axes = order + list(range(len(order), len(lengths)))
    return making.plan(kind, contents.layout_of(kind, lengths, axes))


@functools.lru_cache(maxsize=256, typed=True)
def _known(dtype: Any, order: Any, *shape: int) -> making.Plan | None:
    """Read it once for all arrays of one kind; None for what is read each time: dtypes that can be changed in place.

    `typed`: a length of 3.0 is none, and `long` and `long long` are equal and not the same.
    """
    plan = _plan(shape, dtype, order)
    return plan if is_plain(plan.dtype) and plan.dtype.metadata is None else None


def _letter(order: str | None, allowed: str, default: str) -> str:
    """Read an `order` argument as NumPy does: any case, None for the default."""
    letter = default if order is None else str(order).upper()
    if letter not in allowed or len(letter) != 1:
        message = f"order must be one of {', '.join(allowed)}, not {order!r}"
        raise ValueError(message)
    return letter
