"""Making arrays.

Owns: what is known of a new array beforehand, whether it lies in a cell or in a block of its own, and what it is filled with.
Must not know: NumPy's constructors (`constructors`), how memory is had.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from shmarray import contents, smalls, stocks
from shmarray.arrays import SharedArray, leaf

if TYPE_CHECKING:
    from shmarray._format import layouts
    from shmarray.membership import Membership


class Plan(NamedTuple):
    """A new array: its dtype and layout, and how it lies in a cell if it is small enough for one."""

    dtype: np.dtype[Any]
    layout: layouts.Layout
    small: stocks.Form | None


def plan(dtype: np.dtype[Any], layout: layouts.Layout) -> Plan:
    """Plan an array. Raises `DTypeError`."""
    return Plan(dtype, layout, smalls.form_of(dtype, layout))


def put(member: Membership, value: Any, name: str | None, *, replace: bool = False) -> SharedArray:
    """Copy an array; layout (C, Fortran or any other axis order) is kept. Raises as `contents.create` does, and `contents.plain`."""
    array = contents.plain(value)
    layout = contents.layout_like(array)
    if name is None:
        form = smalls.form_of(array.dtype, layout)
        small = smalls.make(SharedArray, member, array.dtype, layout, form, clear=False)
        if small is not None:
            np.copyto(small.view(np.ndarray), array, casting="no")
            return small
    segment = contents.create(member, name, [(array.dtype, layout)], sources=[array], replace=replace)
    return leaf(segment, 0)


def make(member: Membership, name: str | None, plan: Plan, value: Any, *, clear: bool) -> SharedArray:
    """Make an array filled with `value`; with zeros if that is None; without `clear` with anything. Raises as `contents.create` does."""
    dtype, layout, form = plan
    if name is None:
        small = smalls.make(SharedArray, member, dtype, layout, form, clear=clear and value is None)
        if small is not None:
            if value is not None:
                np.copyto(small.view(np.ndarray), value, casting="unsafe")
            return small

    def fill(view: np.ndarray[Any, Any]) -> None:
        np.copyto(view, value, casting="unsafe")

    segment = contents.create(member, name, [(dtype, layout)], fill=None if value is None else fill, clear=clear)
    return leaf(segment, 0)
