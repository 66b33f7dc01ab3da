"""Dicts and namespaces in shared memory.

Owns: `SharedDict`, `Namespace`.
Must not know: how changes lie in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Self

from shmarray.managed import journals
from shmarray.managed.journals import Change

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shmarray.membership import Membership

_SET, _DELETE, _CLEAR = range(3)
_MISSING = object()


class _Keyed(journals.Container):
    """Values by key."""

    __slots__ = ("_index",)
    _renewal = _SET
    _removals = (_DELETE, _CLEAR)

    def _forget(self) -> None:
        self._index: dict[Any, int] = {}

    def _apply(self, record: journals.Record) -> list[int]:
        if record.what == _CLEAR:
            dropped = list(self._index.values())
            self._index = {}
            return dropped
        key = record.argument[0]
        before = self._index.get(key)
        if record.what == _SET:
            self._index[key] = record.at
        else:
            del self._index[key]
        return [] if before is None else [before]

    def _places(self) -> list[tuple[Any, int]]:
        return [((key,), at) for key, at in self._index.items()]

    def _place_of(self, key: Any) -> int:
        return self._index[key]

    def _set_all(self, items: Iterable[tuple[Any, Any]]) -> None:
        pairs = list(items)
        for key, _ in pairs:
            hash(key)
        parcels = self._pack(value for _, value in pairs)
        self._change(
            lambda: [Change(_SET, (key,), parcel) for (key, _), parcel in zip(pairs, parcels, strict=True)], parcels
        )

    def _delete(self, key: Any) -> None:
        def decide() -> list[Change]:
            self._place_of(key)
            return [Change(_DELETE, (key,))]

        self._change(decide)


class SharedDict(_Keyed, journals.Locked, MutableMapping[Any, Any]):
    """A `multiprocessing.Manager().dict()` in shared memory: no manager is asked, and it survives whoever uses it.

    Keys and values are whatever can be pickled; arrays of a store go in as handles, which keep them. What one gets is one's own copy,
    as from a manager: change it and put it back, with `get_lock()` held if others do so too. `keys`, `values` and `items` are lists
    of one moment. Raises `KeyError`, `StoreFullError`, `StoreClosedError`.

    >>> import shmarray as sa
    >>> with sa.Store() as store:
    ...     settings = store.dict({"a": 1}, b=store.ones(2))
    ...     settings["c"] = [1, 2]
    ...     print(sorted(settings), settings["b"], settings.pop("a"))
    ['a', 'b', 'c'] [1. 1.] 1
    """

    __slots__ = ()
    _kind = "dict"

    @classmethod
    def make_of(cls, member: Membership, *args: Any, **items: Any) -> Self:
        """Make one of what `dict` takes."""
        made = cls.make(member)
        made.update(*args, **items)
        return made

    def __getitem__(self, key: Any) -> Any:
        """Load the value of a key."""
        return self._load(lambda: self._place_of(key))

    def __setitem__(self, key: Any, value: Any) -> None:
        """Put a value under a key."""
        self._set_all([(key, value)])

    def __delitem__(self, key: Any) -> None:
        """Remove a key and its value."""
        self._delete(key)

    def __contains__(self, key: object) -> bool:
        """Whether there is such a key."""
        found: bool = self._within(lambda: key in self._index)
        return found

    def __len__(self) -> int:
        """How many keys there are."""
        count: int = self._within(lambda: len(self._index))
        return count

    def __iter__(self) -> Iterator[Any]:
        """Go through the keys that are there now."""
        return iter(self.keys())

    def keys(self) -> list[Any]:  # type: ignore[override]  # as a manager's proxy: a list of one moment
        """All keys."""
        found: list[Any] = self._within(lambda: list(self._index))
        return found

    def values(self) -> list[Any]:  # type: ignore[override]  # as keys
        """All values."""
        return self._load_all(lambda: list(self._index.values()))

    def items(self) -> list[tuple[Any, Any]]:  # type: ignore[override]  # as keys
        """All keys with their values."""
        keys: list[Any] = []

        def find() -> list[int]:
            keys.extend(self._index)
            return list(self._index.values())

        values = self._load_all(find)
        return list(zip(keys, values, strict=True))

    def copy(self) -> dict[Any, Any]:
        """Give a plain dict with what is there now."""
        return dict(self.items())

    def clear(self) -> None:
        """Remove everything, in one step."""
        self._change(lambda: [Change(_CLEAR)] if self._index else [])

    def update(self, *args: Any, **items: Any) -> None:
        """Put all that `dict` would make of these arguments, in one step."""
        self._set_all(dict(*args, **items).items())

    def pop(self, key: Any, default: Any = _MISSING) -> Any:
        """Remove a key and give its value; of several who try, one gets it."""

        def take() -> Any:
            if key not in self:
                if default is _MISSING:
                    raise KeyError(key)
                return default
            value = self[key]
            del self[key]
            return value

        return self._within(take, open_to_me=True)

    def popitem(self) -> tuple[Any, Any]:
        """Remove the key put last and give it with its value."""

        def take() -> tuple[Any, Any]:
            keys = self.keys()
            if not keys:
                message = "popitem(): dictionary is empty"
                raise KeyError(message)
            return keys[-1], self.pop(keys[-1])

        return self._within(take, open_to_me=True)

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """Give the value of a key; if there is none, put `default` there first. Of several who try, one puts."""

        def find() -> Any:
            if key not in self:
                self[key] = default
            return self[key]

        return self._within(find, open_to_me=True)

    def __or__(self, other: Mapping[Any, Any]) -> dict[Any, Any]:
        """Give a plain dict with what is in both."""
        return self.copy() | dict(other)

    def __ior__(self, other: Any) -> Self:  # type: ignore[misc]  # as dict: `|` makes a new one, `|=` changes this
        """`update`."""
        self.update(other)
        return self

    def __eq__(self, other: object) -> bool:
        """Two are equal if the same keys have equal values."""
        if isinstance(other, SharedDict):
            other = other.copy()
        return self.copy() == other if isinstance(other, Mapping) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as of every mutable mapping

    def __repr__(self) -> str:
        """Show what is there now."""
        return self._described("<SharedDict {...}>", lambda: repr(self.copy())[1:-1])


class Namespace(_Keyed):
    """A `multiprocessing.Manager().Namespace()` in shared memory: what one process sets as an attribute, all see.

    As with a manager's, an attribute whose name begins with an underscore belongs to this object alone, and does not travel. All other
    names are shared attributes, `name` and `unlink` too: it has no methods.

    >>> import shmarray as sa
    >>> with sa.Store() as store:
    ...     shared = store.Namespace(step=1)
    ...     shared.step += 1
    ...     print(shared)
    Namespace(step=2)
    """

    __slots__ = ("__dict__",)
    _kind = "Namespace"

    @classmethod
    def make_of(cls, member: Membership, items: dict[str, Any]) -> Self:
        """Make one with these attributes."""
        made = cls.make(member)
        made._set_all(items.items())
        return made

    def __getattribute__(self, name: str) -> Any:
        """Load a shared attribute; names that begin with an underscore are the object's own."""
        if name.startswith("_"):
            return object.__getattribute__(self, name)
        try:
            return self._load(lambda: self._place_of(name))
        except KeyError:
            message = f"the namespace has no attribute {name!r}"
            raise AttributeError(message) from None

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a shared attribute; names that begin with an underscore are the object's own."""
        if name.startswith("_"):
            object.__setattr__(self, name, value)
        else:
            self._set_all([(name, value)])

    def __delattr__(self, name: str) -> None:
        """Remove a shared attribute."""
        try:
            self._delete(name)
        except KeyError:
            message = f"the namespace has no attribute {name!r}"
            raise AttributeError(message) from None

    def __repr__(self) -> str:
        """Show the shared attributes."""
        names: list[str] = []

        def find() -> list[int]:
            names.extend(sorted(self._index))
            return [self._place_of(name) for name in names]

        def describe() -> str:
            values = self._load_all(find)
            return ", ".join(f"{name}={value!r}" for name, value in zip(names, values, strict=True))

        return self._described("Namespace(...)", describe)
