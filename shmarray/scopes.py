"""What gives something to a `with` block only, and is easily taken for it: `a.read().sum()`.

Owns: what is said to whom uses the manager of such a block as if it were the array, or the tree, that the block is given.
Must not know: what the blocks are.

By descriptors for the names of arrays and trees, and not by `__getattr__`, which in Python 3.11 makes every access to an attribute of
the class slower, also those on the way into a block and out of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable


class _Given:
    """A name that the manager has not, and what its block is given may have."""

    __slots__ = ("_name", "_used")

    def __init__(self, name: str, used: str) -> None:
        """`used` is how one writes its use."""
        self._name = name
        self._used = used

    def __get__(self, scope: Scope | None, kind: type[Scope]) -> NoReturn:
        """Raises `AttributeError`."""
        if scope is None:
            message = f"type object {kind.__name__!r} has no attribute {self._name!r}"
            raise AttributeError(message)
        raise AttributeError(scope._objection(f"has no attribute {self._name!r}", self._used))

    def __set__(self, scope: Scope, value: object) -> NoReturn:
        """Raises `AttributeError`."""
        raise AttributeError(scope._objection(f"has no attribute {self._name!r}", f".{self._name} = ..."))


class Scope:
    """The manager of a `with` block; who uses it as what the block is given is told how to begin the block."""

    __slots__ = ()
    _opening: ClassVar[str]
    """How its block begins, to the name of what it is given."""

    def _objection(self, problem: str, used: str) -> str:
        use = f"{self._opening.rpartition(' ')[2]}{used}" if used else "..."
        return f"{type(self).__name__} {problem}: it begins a block, which is given the data\nWrite `{self._opening}: {use}`."

    def __dir__(self) -> Iterable[str]:
        """The names that it has itself."""
        return [name for name in super().__dir__() if type(vars(Scope).get(name)) is not _Given]

    if not TYPE_CHECKING:  # which finds fault with these where they are not there, as it shall

        def __getitem__(self, index: object) -> NoReturn:
            """Raises `TypeError`; so do `for` and `in`."""
            raise TypeError(self._objection("has no elements", "[...]"))

        def __setitem__(self, index: object, value: object) -> NoReturn:
            """Raises `TypeError`."""
            raise TypeError(self._objection("has no elements", "[...] = ..."))

        def __array__(self, dtype: Any = None, copy: Any = None) -> NoReturn:
            """Raises `TypeError`: NumPy would make an array with one object in it, the manager."""
            raise TypeError(self._objection("is no array", ".sum()"))


for _kind in (np.ndarray, Mapping, Sequence):
    for _name in dir(_kind):
        if not _name.startswith("_"):
            setattr(Scope, _name, _Given(_name, f".{_name}()" if callable(getattr(_kind, _name)) else f".{_name}"))
