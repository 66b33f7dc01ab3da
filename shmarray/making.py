"""Making arrays.

Owns: what is known of a new array beforehand, whether it lies in a cell, in a block that rested or in one of its own, and what it is
filled with.
Must not know: NumPy's constructors (`constructors`), how memory is had.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from shmarray import contents, copying, resting, smalls, stocks
from shmarray._format import foreign
from shmarray.arrays import SharedArray, leaf

if TYPE_CHECKING:
    from shmarray._format import layouts
    from shmarray._os import segments
    from shmarray.membership import Membership


class Plan(NamedTuple):
    """A new array: its dtype and layout, and how it lies in a cell if it is small enough for one."""

    dtype: np.dtype[Any]
    layout: layouts.Layout
    form: stocks.Form | None


def plan(dtype: np.dtype[Any], layout: layouts.Layout) -> Plan:
    """Plan an array. Raises `DTypeError`."""
    return Plan(dtype, layout, smalls.form_of(dtype, layout))


def put(member: Membership, value: Any, name: str | None, *, replace: bool = False) -> SharedArray:
    """Copy an array; layout (C, Fortran or any other axis order) is kept. Raises as `contents.create` does, and `foreign.plain`."""
    array = foreign.plain(value)
    layout = contents.layout_like(array)
    if name is None:
        form = smalls.form_of(array.dtype, layout)
        small = smalls.make(SharedArray, member, array.dtype, layout, form, clear=False)
        if small is not None:
            np.copyto(small.view(np.ndarray), array, casting="no")
            return small
        # What lies in a file may be cut off: it is not copied in memory, see there.
        if form is not None and not contents.is_in_file(array) and (rest := resting.take(member, form)) is not None:
            again = _over(rest, array.dtype, layout)
            copying.copy(again.view(np.ndarray), array, member.control.copy_threads)
            return again
        plan = Plan(array.dtype, layout, form)
    segment = contents.create(member, name, [(array.dtype, layout)], sources=[array], replace=replace)
    return leaf(segment, 0) if name is not None else _first(segment, plan)


def _over(rest: resting.Rest, dtype: np.dtype[Any], layout: layouts.Layout, *, clear: bool = False) -> SharedArray:
    """Make the array of a block that may rest when it ends; of zeros if it is to be `clear`."""
    root = resting.root_of(rest)
    if clear:
        root[:] = 0
    return np.ndarray.__new__(SharedArray, layout.shape, dtype, root, 0, layout.strides)


def _first(segment: segments.Segment, plan: Plan) -> SharedArray:
    """View the array of a new anonymous block, and let that rest afterwards, if it can."""
    rest = None if plan.form is None else resting.begin(segment, plan.form)
    return leaf(segment, 0) if rest is None else _over(rest, plan.dtype, plan.layout)


def make(member: Membership, name: str | None, plan: Plan, value: Any, *, clear: bool) -> SharedArray:
    """Make an array filled with `value`; with zeros if that is None; without `clear` with anything. Raises as `contents.create` does."""
    dtype, layout, form = plan
    if name is None:
        small = smalls.make(SharedArray, member, dtype, layout, form, clear=clear and value is None)
        if small is not None:
            if value is not None:
                np.copyto(small.view(np.ndarray), value, casting="unsafe")
            return small
        if form is not None and (rest := resting.take(member, form)) is not None:
            again = _over(rest, dtype, layout, clear=clear and value is None)
            if value is not None:
                np.copyto(again.view(np.ndarray), value, casting="unsafe")
            return again

    def fill(view: np.ndarray[Any, Any]) -> None:
        np.copyto(view, value, casting="unsafe")

    segment = contents.create(member, name, [(dtype, layout)], fill=None if value is None else fill, clear=clear)
    return leaf(segment, 0) if name is not None else _first(segment, plan)
