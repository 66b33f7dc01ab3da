"""What this process looks at in cells.

Owns: what is known of a cell that this process looks at; the table in which that is found by an array over it.
Must not know: how it comes to be there, and what its end means (`cells`).
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from shmarray._format.handle import BlockKey

if TYPE_CHECKING:
    from shmarray.membership import Membership
    from shmarray.slabwords import Slab

Root = np.ndarray[Any, np.dtype[Any]]
_BYTE, _frombuffer = np.dtype(np.uint8), np.frombuffer


class View(weakref.ref[Root]):
    """A cell that this process looks at: the end of its root is noted by a call into C, and then seen to.

    `offered`: others may know the array, by a handle or by a fork.
    """

    __slots__ = ("cell", "guard", "ident", "member", "number", "offered", "slab", "then")

    ident: int
    slab: Slab
    cell: int
    number: int
    member: Membership
    offered: bool
    guard: Any
    then: weakref.ref[Root]

    @property
    def key(self) -> BlockKey:
        """The array's identity, as handles have it."""
        return BlockKey(self.member.key.uid, self.member.key.store, self.number, None, None)


known: dict[int, View] = {}
"""By the address of its root, each cell that is looked at."""


def view_of(array: Any) -> View | None:
    """Find the cell that an array lies in; None if in none."""
    root, base = array, getattr(array, "base", None)
    while base is not None and type(base) is not memoryview:
        root, base = base, getattr(base, "base", None)
    below: Any = None if base is None else base.obj
    view = None if base is None else known.get(id(below)) or known.get(id(root))
    # An entry stays for a moment after its root has ended, in whose place another object may be by then.
    return view if view is not None and (view() is below or view() is root) else None


def over(root: Root) -> Root:
    """Give what arrays over a cell are made of: an array over a memoryview of its root."""
    return _frombuffer(root.data, _BYTE)


def count(store: int) -> int:
    """How many cells of that store this process looks at."""
    return sum(view.member.key.store == store for view in list(known.values()))
