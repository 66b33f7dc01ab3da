"""Values and arrays of them, as in `multiprocessing.sharedctypes`.

Owns: `Value`, `Array`: how type codes, ctypes types and dtypes become one, and what a user sees of an element.
Must not know: how blocks live.
"""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import numpy as np

from shmarray import objects
from shmarray._format import counts
from shmarray.locks import Lock, RLock

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from shmarray.arrays import SharedArray
    from shmarray.membership import Membership

_CHARACTER = np.dtype("S1")
_SPECIAL: dict[Any, np.dtype[Any]] = {
    "c": _CHARACTER,
    "u": np.dtype("U1"),
    ctypes.c_char: _CHARACTER,
    ctypes.c_wchar: np.dtype("U1"),
}
_WORD = 8


def dtype_of(kind: Any) -> np.dtype[Any]:
    """Read a type code of `array`, a ctypes type, or anything `numpy.dtype` takes. Raises `TypeError`."""
    if isinstance(kind, (str, type)) and kind in _SPECIAL:
        return _SPECIAL[kind]
    dtype: np.dtype[Any] = np.dtype(kind)
    return dtype


def _fitting(dtype: np.dtype[Any], value: Any) -> Any:
    """Give a value as NumPy is to store it in one element; of texts, which NumPy would cut or make of anything, only what fits.

    Raises `TypeError` for what is no text, `ValueError` for one that is too long.
    """
    if dtype == _CHARACTER:
        return _character(value)
    if dtype.kind not in "SU":
        return value
    if not isinstance(value, (bytes, bytearray, str)):
        message = f"{dtype} takes text, not {type(value).__name__}"
        raise TypeError(message)
    room = dtype.itemsize // (4 if dtype.kind == "U" else 1)
    if len(value) > room:
        message = f"a text of {len(value)} characters does not fit into {room}"
        raise ValueError(message)
    return bytes(value) if isinstance(value, bytearray) else value


def _elements(dtype: np.dtype[Any], values: Iterable[Any]) -> Any:
    """Give several values as NumPy is to store them; see `_fitting`."""
    if dtype.kind in "SU":
        return [_fitting(dtype, value) for value in values]
    return values if isinstance(values, np.ndarray) else list(values)


def _character(value: Any) -> bytes:
    """Read a character as `ctypes.c_char` does."""
    if isinstance(value, (bytes, bytearray)) and len(value) == 1:
        return bytes(value)
    if not isinstance(value, (bytes, bytearray, str)):
        number = operator.index(value)
        if 0 <= number <= 0xFF:  # noqa: PLR2004  what a byte can be
            return bytes([number])
    message = f"one byte, as bytes, bytearray or number, is expected, not {value!r}"
    raise TypeError(message)


def _place(index: Any) -> Any:
    """Read where in an array: to NumPy True and None would be all of it, and a list several elements. Raises `TypeError`."""
    return index if isinstance(index, slice) else counts.position(index, "the position in an Array")


class _Synchronized(objects.SharedObject):
    """What `Value` and `Array` have in common: a typed block, and its guard as a re-entrant lock."""

    __slots__ = ("_lock",)
    _lock: Lock

    def _attached(self) -> None:
        self._lock = RLock(self._array, self._guard)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a handle, with that of a lock of its own choice."""
        attach, arguments = super().__reduce__()
        own = self._lock._guard is self._guard
        return (attach, arguments) if own else (_attach_locked, (attach, arguments, self._lock))

    def get_lock(self) -> Lock:
        """The lock that goes with it: `with v.get_lock(): v.value += 1`."""
        return self._lock

    def get_obj(self) -> SharedArray:
        """The `SharedArray` itself."""
        return self._array

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:  # noqa: FBT001, FBT002  as in multiprocessing
        """Take the lock."""
        return self._lock.acquire(block, timeout)

    def release(self) -> None:
        """Let the lock go."""
        self._lock.release()

    def __enter__(self) -> bool:
        """Take the lock."""
        return self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the lock go."""
        self._lock.release()


def _attach_locked(attach: Callable[..., _Synchronized], arguments: tuple[Any, ...], lock: Lock) -> _Synchronized:
    synchronized = attach(*arguments)
    synchronized._lock = lock
    return synchronized


class Value(_Synchronized):
    """A `multiprocessing.Value` of any dtype that travels through any queue.

    Reading or writing a value of up to eight bytes is one instruction; a wider one is read and written under the lock.

    >>> import shmarray as sa
    >>> with sa.Store() as store:
    ...     counter = store.Value("i", 5)
    ...     print(counter.add(2), counter.value)
    7 7
    """

    __slots__ = ()
    _kind = "Value"

    @classmethod
    def make(
        cls, member: Membership, kind: Any, init: Any = 0, lock: Lock | None = None, name: str | None = None
    ) -> Self:
        """Make a value of a type code, ctypes type or dtype.

        Raises `TypeError`, `ValueError`, `OverflowError` as NumPy does; `ValueError` also for a text that NumPy would cut.
        """
        dtype = dtype_of(kind)
        none = dtype.kind in "SU" and dtype != _CHARACTER and type(init) is int and init == 0
        first = _fitting(dtype, "" if none else init)

        def fill(memory: np.ndarray[Any, Any]) -> None:
            memory[...] = first

        value = cls._create(member, (), name, fill, dtype)
        if lock is not None:
            value._lock = lock
        return value

    @property
    def value(self) -> Any:
        """The value as a Python object; `numpy.void` for a structure."""
        if self._array.itemsize > _WORD:
            with self._lock:
                return _plain(self._array[()])
        return _plain(self._array[()]) if self._array.dtype != _CHARACTER else self._array.tobytes()

    @value.setter
    def value(self, value: Any) -> None:
        fitting = _fitting(self._array.dtype, value)
        if self._array.itemsize > _WORD:
            with self._lock:
                self._array[...] = fitting
        else:
            self._array[...] = fitting

    def get(self) -> Any:
        """`value`, as a manager's `Value` has it."""
        return self.value

    def set(self, value: Any) -> None:
        """Set `value`, as a manager's `Value` has it."""
        self.value = value

    def add(self, amount: Any = 1) -> Any:
        """Add to the value, as one step that no other `add` comes between; returns the sum."""
        with self._lock:
            self._array[...] += amount
            return _plain(self._array[()])

    def __repr__(self) -> str:
        """Show the value."""
        return f"<Value({self._array.dtype}, {self.value!r})>"


def _plain(element: Any) -> Any:
    """Turn a NumPy scalar into what Python calls it, where Python has it."""
    return element if element.dtype.names is not None else element.item()


class Array(_Synchronized):
    """A `multiprocessing.Array` of any dtype that travels through any queue; `get_obj()` is the `SharedArray` in it.

    Elements are Python objects, a slice is a list; of characters ("c"), a slice is bytes, `value` the text up to the first NUL,
    `raw` all of it.

    >>> import shmarray as sa
    >>> with sa.Store() as store:
    ...     squares = store.Array("i", [0, 1, 4, 9])
    ...     squares[3] = 10
    ...     print(squares[1:], len(squares))
    [1, 4, 10] 4
    """

    __slots__ = ()
    _kind = "Array"
    _characters: ClassVar[np.dtype[Any]] = _CHARACTER

    @classmethod
    def make(
        cls, member: Membership, kind: Any, size_or_init: Any, lock: Lock | None = None, name: str | None = None
    ) -> Self:
        """Make an array of that many zeros, or of what an iterable gives. Raises as `Value.make` does."""
        dtype = dtype_of(kind)
        fill: Callable[[np.ndarray[Any, Any]], None] | None = None
        if isinstance(size_or_init, (int, np.integer)):
            size = int(size_or_init)
            if size < 0:
                message = f"an array cannot have {size} elements"
                raise ValueError(message)
        else:
            if not isinstance(size_or_init, Sized):
                size_or_init = list(size_or_init)
            size = len(size_or_init)
            source = size_or_init

            def fill(memory: np.ndarray[Any, Any]) -> None:
                if isinstance(source, (bytes, bytearray)) and dtype == _CHARACTER:
                    memory.view(np.uint8)[:] = np.frombuffer(source, np.uint8)
                else:
                    memory[:] = _elements(dtype, source) if dtype.names is None else source

        array = cls._create(member, (size,), name, fill, dtype)
        if lock is not None:
            array._lock = lock
        return array

    def _is_text(self) -> bool:
        return self._array.dtype == _CHARACTER

    def __len__(self) -> int:
        """How many elements there are."""
        return len(self._array)

    def __getitem__(self, index: Any) -> Any:
        """Read an element, or a slice as a list."""
        if type(index) is not int:
            index = _place(index)
        with self._lock:
            if self._is_text():
                found = self._array.view(np.uint8)[index]
                return found.tobytes() if isinstance(index, slice) else bytes([int(found)])
            found = self._array[index]
            return found.tolist() if isinstance(index, slice) else _plain(found)

    def __setitem__(self, index: Any, value: Any) -> None:
        """Write an element or a slice."""
        dtype = self._array.dtype
        if type(index) is not int:
            index = _place(index)
        with self._lock:
            if not isinstance(index, slice):
                self._array[index] = _fitting(dtype, value)
                return
            room = len(range(*index.indices(len(self._array))))
            if room != len(value):
                message = f"{len(value)} values do not fit into {room} elements"
                raise ValueError(message)
            if self._is_text() and isinstance(value, (bytes, bytearray)):
                self._array.view(np.uint8)[index] = np.frombuffer(value, np.uint8)
            else:
                self._array[index] = _elements(dtype, value)

    def __iter__(self) -> Iterator[Any]:
        """Go through the elements as they are when reached."""
        return (self[index] for index in range(len(self)))

    @property
    def raw(self) -> bytes:
        """All bytes of an array of characters; of any other `AttributeError`."""
        return cast("bytes", self[:])

    @raw.setter
    def raw(self, text: bytes) -> None:
        self[: len(text)] = text

    @property
    def value(self) -> bytes:
        """The text of an array of characters, up to the first NUL; of any other array `AttributeError`."""
        return self.raw.split(b"\0", 1)[0]

    @value.setter
    def value(self, text: bytes) -> None:
        if len(text) > len(self):
            message = f"{len(text)} bytes do not fit into {len(self)}"
            raise ValueError(message)
        self[: len(text)] = text
        if len(text) < len(self):
            self[len(text) : len(text) + 1] = b"\0"

    def __getattribute__(self, name: str) -> Any:
        """Have `value` and `raw` only where the elements are characters, as multiprocessing does."""
        if name in ("value", "raw") and not object.__getattribute__(self, "_is_text")():
            message = f"an Array of {object.__getattribute__(self, '_array').dtype} has no {name!r}; use a slice"
            raise AttributeError(message)
        return object.__getattribute__(self, name)

    def __repr__(self) -> str:
        """Show the elements."""
        return f"<Array({self._array.dtype}, {self[:]!r})>"
