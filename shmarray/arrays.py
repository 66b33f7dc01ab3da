"""SharedArray: an ndarray whose memory is a block.

Owns: the array type, and pickling any view of it as a handle.
Must not know: how a block lives and dies (`blocks`), what a description looks like (`contents`), how stores are opened.

The base of every view is, at the end of the chain, the `Segment` itself: C code unmaps it when the last view dies. The
chain runs through NumPy arrays, which the cycle collector does not look into, so the collector can never take a
mapping for garbage while a view is reachable from a finalizer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from shmarray import (
    blockfiles,
    blocks,
    cellguards,
    cells,
    cellviews,
    contents,
    deletion,
    idling,
    joining,
    smalls,
    wholes,
)
from shmarray._format import control, header
from shmarray._format.dtypes import decode_dtype
from shmarray._format.handle import BlockKey, ViewSpec
from shmarray._os import segments, words
from shmarray.attachments import Block, known
from shmarray.computing import Computing
from shmarray.guards import guard_of
from shmarray.locks import Lock, ReadAccess, WriteAccess

if TYPE_CHECKING:
    from types import TracebackType

    from shmarray.guards import Guard

_frombuffer, _ndarray, _Segment, _Block = np.frombuffer, np.ndarray, segments.Segment, Block
_load, _find_whole, _WHOLE = words.WORD_FORMAT.unpack_from, wholes.find, wholes.CACHE
_BYTE, _again, _root_of, _KEPT = np.dtype(np.uint8), idling.again, idling.root_of, idling.KEPT
_STORE_AT, _OPEN, _LIVE = control.STATE_AT, control.OPEN, header.LIVE


class SharedArray(Computing):
    """An ndarray in shared memory; every view of it pickles as a handle of some hundred bytes to the same memory.

    Made by a store (`store.zeros`, `store.put`, ...), never by its own constructor. Shape and dtype are any that NumPy has,
    but for dtypes that hold Python objects. What NumPy computes from it is a plain, private ndarray; so are `copy()`,
    `astype()`, `copy.copy` and `copy.deepcopy`. The memory lives as long as any view of it in any process, the name as the
    store says (see `Store`).

    >>> import shmarray as sa, pickle
    >>> with sa.Store() as store:
    ...     a = store.zeros((2, 3), name="a")
    ...     b = pickle.loads(pickle.dumps(a[1]))   # as another process would
    ...     b[:] = 7
    ...     print(a.sum(), type(a + 1).__name__)
    21.0 ndarray
    """

    __slots__ = ()

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Raises `TypeError`: a store makes arrays, and views are views of those."""
        message = (
            f"a {cls.__name__} is not made by its constructor, which would give private memory\n"
            "Let a store make it: store.empty(shape, dtype), store.zeros(shape), store.put(array), ..."
        )
        raise TypeError(message)

    # Results of ufuncs and of methods that reduce are then wrapped as those of ndarray itself are, in C.
    __array_wrap__ = None  # type: ignore[assignment]  # read by NumPy's C code; its Python code sees only plain arrays, see below

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Answer NumPy's functions: what lies in this memory comes back shared, all else as a plain ndarray."""
        positional, named = _all_plain(args), {key: _plain(value) for key, value in kwargs.items()}
        result = func(*positional, **named)
        if type(result) is np.ndarray:
            # What was given for the result is the result: the very object.
            for given, plain in (*zip(args, positional, strict=True), *((kwargs[key], named[key]) for key in named)):
                if plain is result:
                    return given
        return _shared(result)

    @property
    def name(self) -> str | None:
        """Name of the array in its store; None for an anonymous array and for private memory."""
        block = contents.block_of(self)
        return None if block is None else block.key.name

    @property
    def block_name(self) -> str | None:
        """File name of the block, for `multiprocessing.shared_memory.SharedMemory` or `shm_open`; None if private.

        None also for a small anonymous array, which shares a file with others (`Store(small=...)`).
        Whoever maps the file by that name has no lease on it, so once it was asked for, the memory is not used again for another array.
        """
        segment = contents.segment_of(self)
        return None if segment is None else blockfiles.expose(segment)

    @property
    def is_shared(self) -> bool:
        """Whether the memory is a block of a store. A copy made by indexing with an array or a mask is private."""
        return contents.segment_of(self) is not None or cellviews.view_of(self) is not None

    @property
    def lock(self) -> Lock:
        """The array's exclusive guard as a `multiprocessing.Lock`; one for all views of it. Survives its holder's death."""
        return Lock(*self._guarded("no lock"))

    def write(self, timeout: float | None = None, *, heal: bool = False) -> WriteAccess[SharedArray]:
        """Begin exclusive access: `with a.write() as x:`, x is the array. Waits at most `timeout` seconds.

        If the process inside is killed, the others go on, and find the array *poisoned*: `heal=True` enters all the same, and
        a clean exit then declares the data sound. Entering raises `GuardTimeoutError`, `PoisonedError`, and `GuardError` when
        this thread is inside already.

        >>> import shmarray as sa
        >>> with sa.Store() as store:
        ...     a = store.zeros(3)
        ...     with a.write() as x:
        ...         x += 1
        ...     with a.read(timeout=1) as x:
        ...         print(x.sum())
        3.0
        """
        return WriteAccess(self._guarded("no guard")[1], self, timeout, heal=heal)

    def read(self, timeout: float | None = None) -> ReadAccess[SharedArray]:
        """Begin shared access: `with a.read() as x:`, x cannot be written to. Readers run together, no writer beside them.

        Waits and raises as `write` does.
        """
        view = self.view()
        view.flags.writeable = False
        return ReadAccess(self._guarded("no guard")[1], view, timeout)

    def _guarded(self, lack: str) -> tuple[Any, Guard]:
        """Give the guard, and what keeps it."""
        segment = contents.segment_of(self)
        if segment is not None:
            return contents.root_of(segment), guard_of(segment)
        view = self._view(lack)
        return view(), cellguards.guard_of(view)

    def _view(self, lack: str) -> cellviews.View:
        view = cellviews.view_of(self)
        if view is None:
            message = f"this array is private memory, a copy: it has {lack}"
            raise ValueError(message)
        return view

    def unlink(self) -> None:
        """Delete the array for everyone: no new attach, by name or handle. Views stay valid. May be repeated.

        Raises `ValueError` for private memory.
        """
        segment = contents.segment_of(self)
        if segment is not None:
            deletion.delete(segment)
        else:
            cells.delete(self._view("no block to unlink"))

    def __enter__(self) -> Self:
        """Begin a scope that frees the array at its end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Delete the array for everyone."""
        self.unlink()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle as a handle; private memory pickles as NumPy does, by value."""
        # Written out, without calls into Python: this is what handing an array on costs.
        base: Any = self.base
        if type(base) is _ndarray:
            base = base.base
        segment = base.obj if type(base) is memoryview else None
        if type(segment) is not _Segment:
            segment = contents.segment_of(self)
            if segment is None:
                view = cellviews.view_of(self)
                if view is None:
                    return self.view(np.ndarray).__reduce_ex__(protocol)
                return _attach_small, (tuple(cells.offer(view)), tuple(smalls.spec_of(self, view)))
        leases = segment.tag.member.leases
        whole = segment.tag.cache.get(_WHOLE) or _note_whole(segment)
        if (
            whole is not None
            and self.dtype is whole.dtype
            and self.shape == whole.shape
            and self.strides == whole.strides
            and self.flags.writeable
            and leases
            and _load(leases[0], _STORE_AT)[0] == _OPEN
            and _load(segment, whole.state_at)[0] == _LIVE
        ):
            return _attach_whole, whole.arguments
        return _attach, (tuple(blocks.offer(segment)), tuple(contents.spec_in(segment, self)))

    def __reduce__(self) -> Any:
        """Pickle as a handle."""
        return self.__reduce_ex__(2)

    def __copy__(self) -> np.ndarray[Any, Any]:  # type: ignore[override]  # private memory, as promised
        """Copy into private memory."""
        return contents.private(self, "K")

    def __deepcopy__(self, memo: Any) -> np.ndarray[Any, Any]:  # type: ignore[override]  # private memory, as promised
        """Copy into private memory."""
        return contents.private(self, "K")

    def copy(self, order: Any = "C") -> np.ndarray[Any, Any]:  # type: ignore[override]  # private memory, as promised
        """Copy into private memory, as a plain ndarray; a large one by several threads (`Store(copy_threads=...)`)."""
        return contents.private(self, order)

    def squeeze(self, *args: Any, **kwargs: Any) -> Any:
        """View without axes of length one: the only method of a view whose result NumPy would make a plain ndarray."""
        return _shared(self.view(np.ndarray).squeeze(*args, **kwargs))

    def __repr__(self) -> str:
        """Show the values; the word SharedArray stands only where the memory is shared."""
        text = repr(self.view(np.ndarray))
        return "SharedArray" + text.removeprefix("array") if self.is_shared else text


_new = np.ndarray.__new__


def _plain(value: Any) -> Any:
    """Take the shared type off an argument, in lists and tuples too; the memory stays the same."""
    if isinstance(value, SharedArray):
        return value.view(np.ndarray)
    return _all_plain(value) if type(value) in (list, tuple) else value


def _all_plain(values: Any) -> Any:
    return type(values)([_plain(value) for value in values])


def _shared(result: Any) -> Any:
    """Give the shared type back to what lies in a block, so that it travels as a handle."""
    if type(result) is np.ndarray:
        private = contents.segment_of(result) is None and cellviews.view_of(result) is None
        return result if private else result.view(SharedArray)
    return type(result)([_shared(part) for part in result]) if type(result) in (list, tuple) else result


def leaf(segment: segments.Segment, index: int) -> SharedArray:
    """View one array of a block. Raises `CorruptBlockError` if it would reach beyond the block's data."""
    try:
        dtype, layout = contents.describe(segment).leaves[index]
        root = contents.root_of(segment)
        array = _new(SharedArray, layout.shape, contents.own(dtype), root, layout.offset, layout.strides)
    except (ValueError, TypeError, IndexError) as error:
        raise contents.undescribed(segment.tag, error) from None
    return array


def _note_whole(segment: segments.Segment) -> wholes.Whole | None:
    """Note a named block that is one array, so that it is handed on the short way."""
    if segment.tag.key.name is None or len(contents.describe(segment).leaves) != 1:
        return None
    return wholes.note(segment, leaf(segment, 0))


def _attach(key: tuple[Any, ...], spec: tuple[Any, ...]) -> SharedArray:
    """Load a handle: what a pickled view becomes. Raises as `blocks.attach` does."""
    block_key = BlockKey(*key)
    _, store, number, name, claim = key
    segment = known(store, number, name)
    if segment is None:
        segment = blocks.attach(joining.join(block_key.store_key), block_key)
    elif claim is not None:
        blocks.claim_link(segment.tag.member, block_key)
    offset, shape, strides, encoded, writeable = spec
    dtype = contents.own(contents.describe(segment).leaves[0][0]) if encoded is None else decode_dtype(encoded)
    try:
        if offset < 0:  # NumPy looks only at the other end
            raise ValueError("a view begins before its block")
        array = _new(SharedArray, shape, dtype, contents.root_of(segment), offset, strides)
    except (ValueError, TypeError) as error:
        raise contents.undescribed(segment.tag, error) from None
    if not writeable:
        array.flags.writeable = False
    return array


def _attach_small(key: tuple[Any, ...], spec: tuple[Any, ...]) -> SharedArray:
    """Load the handle of an array in a cell. Raises as `cells.attach` does."""
    return smalls.attach(SharedArray, BlockKey(*key), ViewSpec(*spec))


def of_whole(segment: segments.Segment, whole: wholes.Whole) -> SharedArray:
    """View all of a block of which it was noted what it looks like."""
    return _new(SharedArray, whole.shape, whole.dtype, contents.root_of(segment), 0, whole.strides)


def _attach_whole(token: bytes, code: str, shape: tuple[int, ...], strides: tuple[int, ...] | None) -> SharedArray:
    """Load the handle of a whole named array. Raises as `blocks.attach` does."""
    # Written out, without calls into Python: this is what receiving an array costs.
    whole = _find_whole(token)
    if whole is not None:
        segment = whole()
        if segment is not None:
            tag, root = segment.tag, None
            leases = tag.member.leases if type(tag) is _Block else None
            if not leases:
                root = _again(segment)
            elif _load(leases[0], _STORE_AT)[0] == _OPEN and _load(segment, whole.state_at)[0] == _LIVE:
                kept = tag.cache.get(_KEPT)
                root = _frombuffer(segment, _BYTE) if kept is None else _root_of(segment, kept)
            if root is not None:
                return _new(SharedArray, whole.shape, whole.dtype, root, 0, whole.strides)
    return _attach_anew(token, code, shape, strides)


def _attach_anew(token: bytes, code: str, shape: tuple[int, ...], strides: tuple[int, ...] | None) -> SharedArray:
    """Load the handle of a whole named array of which nothing has been noted here."""
    key = wholes.key_of(token)
    segment = blocks.attach(joining.join(key.store_key), key)
    try:
        array = _new(SharedArray, shape, decode_dtype(code), contents.root_of(segment), 0, strides)
    except (ValueError, TypeError) as error:
        raise contents.undescribed(segment.tag, error) from None
    if wholes.is_shown_again(segment):
        wholes.note(segment, array)  # for the next time: it stays attached here
    return array
