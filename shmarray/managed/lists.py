"""Lists in shared memory.

Owns: `SharedList`.
Must not know: how changes lie in memory.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, MutableSequence, Sequence
from typing import TYPE_CHECKING, Any, Self

from shmarray.managed import journals
from shmarray.managed.journals import Change

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from shmarray.membership import Membership

_APPEND, _SET, _INSERT, _DELETE, _ORDER = range(5)


class SharedList(journals.Locked, MutableSequence[Any]):
    """A `multiprocessing.Manager().list()` in shared memory: no manager is asked, and it survives whoever uses it.

    Elements are whatever can be pickled; arrays of a store go in as handles, which keep them. What one gets is one's own copy, as
    from a manager: change it and put it back, with `get_lock()` held if others do so too. A slice is a plain list of one moment.
    Raises what `list` raises, `StoreFullError`, `StoreClosedError`.

    >>> import shmarray as sa
    >>> with sa.Store() as store:
    ...     tasks = store.list([3, 1])
    ...     tasks.append(store.ones(2))
    ...     tasks[0] = "three"
    ...     print(tasks[:], len(tasks))
    ['three', 1, SharedArray([1., 1.])] 3
    """

    __slots__ = ("_index",)
    _kind = "list"
    _renewal = _APPEND
    _removals = (_DELETE,)

    @classmethod
    def make_of(cls, member: Membership, elements: Iterable[Any] = (), name: str | None = None) -> Self:
        """Make one with these elements."""
        made = cls.make(member, name)
        made.extend(elements)
        return made

    def _forget(self) -> None:
        self._index: list[int] = []

    def _apply(self, record: journals.Record) -> list[int]:
        what, argument, at = record
        if what == _APPEND:
            self._index.append(at)
        elif what == _INSERT:
            self._index.insert(argument, at)
        elif what == _SET:
            before, self._index[argument] = self._index[argument], at
            return [before]
        elif what == _DELETE:
            where = slice(*argument)
            dropped = self._index[where]
            del self._index[where]
            return dropped
        else:
            self._index = [self._index[place] for place in argument]
        return []

    def _places(self) -> list[tuple[Any, int]]:
        return [(None, at) for at in self._index]

    # -- reading -------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """How many elements there are."""
        count: int = self._within(lambda: len(self._index))
        return count

    def __getitem__(self, index: Any) -> Any:
        """Load an element, or those of a slice as a plain list."""
        if isinstance(index, slice):
            return self._load_all(lambda: self._index[index])
        place = operator.index(index)
        return self._load(lambda: self._index[place])

    def __iter__(self) -> Iterator[Any]:
        """Go through the elements that are there now."""
        return iter(self[:])

    def __reversed__(self) -> Iterator[Any]:
        """Go through them backwards."""
        return iter(self[::-1])

    def __contains__(self, value: object) -> bool:
        """Whether an element is equal to `value`."""
        return value in self[:]

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        """Say where the first element equal to `value` is; `ValueError` if none is."""
        return self[:].index(value, start, *(() if stop is None else (stop,)))  # type: ignore[no-any-return]  # of a list

    def count(self, value: Any) -> int:
        """Say how many elements are equal to `value`."""
        return self[:].count(value)  # type: ignore[no-any-return]  # of a list

    def copy(self) -> list[Any]:
        """Give a plain list of what is there now."""
        found: list[Any] = self[:]
        return found

    def __add__(self, other: Iterable[Any]) -> list[Any]:
        """Give a plain list of both."""
        return [*self, *other]

    def __mul__(self, times: int) -> list[Any]:
        """Give a plain list of so many times what is there."""
        return self.copy() * times

    __rmul__ = __mul__

    def __eq__(self, other: object) -> bool:
        """Two are equal if their elements are; a plain list may be."""
        return self.copy() == list(other) if isinstance(other, (SharedList, list)) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as of every mutable sequence

    def __repr__(self) -> str:
        """Show what is there now."""
        return self._described("<SharedList [...]>", lambda: repr(self.copy())[1:-1])

    # -- changing ------------------------------------------------------------------------------------------------------

    def append(self, value: Any) -> None:
        """Put an element at the end."""
        self.extend((value,))

    def extend(self, values: Iterable[Any]) -> None:
        """Put elements at the end, in one step."""
        parcels = self._pack(list(values))
        self._change(lambda: [Change(_APPEND, None, parcel) for parcel in parcels], parcels)

    def insert(self, index: int, value: Any) -> None:
        """Put an element before that at `index`."""
        place = operator.index(index)
        parcels = self._pack((value,))
        self._change(lambda: [Change(_INSERT, place, parcels[0])], parcels)

    def __setitem__(self, index: Any, value: Any) -> None:
        """Replace an element, or those of a slice, in one step."""
        if isinstance(index, slice):
            self._set_slice(index, list(value))
            return
        place = operator.index(index)
        parcels = self._pack((value,))

        def decide() -> list[Change]:
            self._index[place] = self._index[place]  # raises `IndexError` as a list does
            return [Change(_SET, place, parcels[0])]

        self._change(decide, parcels)

    def _set_slice(self, where: slice, values: Sequence[Any]) -> None:
        parcels = self._pack(values)

        def decide() -> list[Change]:
            start, stop, step = where.indices(len(self._index))
            if step != 1:
                places = range(start, stop, step)
                if len(places) != len(parcels):
                    message = (
                        f"attempt to assign sequence of size {len(parcels)} to extended slice of size {len(places)}"
                    )
                    raise ValueError(message)
                return [Change(_SET, place, parcel) for place, parcel in zip(places, parcels, strict=True)]
            removal = [Change(_DELETE, (start, max(start, stop), 1))]
            return removal + [Change(_INSERT, start + number, parcel) for number, parcel in enumerate(parcels)]

        self._change(decide, parcels)

    def __delitem__(self, index: Any) -> None:
        """Remove an element, or those of a slice."""

        def decide() -> list[Change]:
            if isinstance(index, slice):
                index.indices(len(self._index))  # raises what a list does
                return [Change(_DELETE, (index.start, index.stop, index.step))]
            place = operator.index(index)
            length = len(self._index)
            if not -length <= place < length:
                message = "list assignment index out of range"
                raise IndexError(message)
            return [Change(_DELETE, (place % length, place % length + 1, 1))]

        self._change(decide)

    def clear(self) -> None:
        """Remove all elements, in one step."""
        self._change(lambda: [Change(_DELETE, (None, None, None))])

    def pop(self, index: int = -1) -> Any:
        """Remove an element and give it; of several who try, one gets it."""

        def take() -> Any:
            if not len(self):
                message = "pop from empty list"
                raise IndexError(message)
            try:
                value = self[index]
            except IndexError:
                message = "pop index out of range"
                raise IndexError(message) from None
            del self[index]
            return value

        return self._within(take, open_to_me=True)

    def remove(self, value: Any) -> None:
        """Remove the first element equal to `value`; `ValueError` if none is."""

        def take() -> None:
            del self[self.index(value)]

        self._within(take, open_to_me=True)

    def _reorder(self, order: Callable[[], list[int]]) -> None:
        def reorder() -> None:
            before = list(self._index)
            places = order()

            def decide() -> list[Change]:
                if self._index != before:
                    message = "list modified while it was being ordered"
                    raise ValueError(message)
                return [Change(_ORDER, places)]

            self._change(decide)

        self._within(reorder, open_to_me=True)

    def reverse(self) -> None:
        """Turn the order round."""
        self._reorder(lambda: list(range(len(self)))[::-1])

    def sort(self, *, key: Callable[[Any], Any] | None = None, reverse: bool = False) -> None:
        """Sort as `list.sort` does."""

        def order() -> list[int]:
            values = self.copy()
            return sorted(
                range(len(values)),
                key=lambda place: values[place] if key is None else key(values[place]),
                reverse=reverse,
            )

        self._reorder(order)

    def __iadd__(self, values: Iterable[Any]) -> Self:
        """`extend`."""
        self.extend(values)
        return self

    def __imul__(self, times: int) -> Self:
        """Repeat what is there so many times."""

        def repeat() -> None:
            if times <= 0:
                self.clear()
            else:
                self.extend(self.copy() * (times - 1))

        self._within(repeat, open_to_me=True)
        return self
