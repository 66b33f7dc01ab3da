"""SharedArray: an ndarray whose memory is a block.

Owns: making arrays in blocks, finding the block behind any view, and pickling a view as a handle.
Must not know: how a block lives and dies (`blocks`), how stores are opened.

The base of every view is, at the end of the chain, the `Segment` itself: C code unmaps it when the last view dies. The
chain runs through NumPy arrays, which the cycle collector does not look into, so the collector can never take a
mapping for garbage while a view is reachable from a finalizer.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast

import numpy as np

from shmarray import blocks, membership
from shmarray._format import layouts, names
from shmarray._format.dtypes import check_dtype, decode_dtype, encode_dtype
from shmarray._format.handle import BlockKey, ViewSpec
from shmarray._os import segments
from shmarray.errors import CorruptBlockError, ShmArrayError
from shmarray.guards import guard_of
from shmarray.locks import Lock, ReadAccess, WriteAccess

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from shmarray.blocks import Block
    from shmarray.membership import Membership

_PIECE = 1 << 30


class Description(NamedTuple):
    """What a block holds: arrays one behind the other.

    If they are the leaves of a tree, `tree` is its description; if the block is the state of another shared object, `kind` says
    of which.
    """

    name: str | None
    leaves: list[tuple[np.dtype[Any], layouts.Layout]]
    tree: Any
    kind: str | None = None


class SharedArray(np.ndarray[Any, np.dtype[Any]]):
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

    # NumPy then wraps results as it does for ndarray itself, in C.
    __array_wrap__ = None  # type: ignore[assignment]  # documented by NumPy as the way to opt out of wrapping

    @property
    def name(self) -> str | None:
        """Name of the array in its store; None for an anonymous array and for private memory."""
        block = block_of(self)
        return None if block is None else block.key.name

    @property
    def block_name(self) -> str | None:
        """File name of the block, for `multiprocessing.shared_memory.SharedMemory` or `shm_open`; None if private."""
        block = block_of(self)
        return None if block is None else block.path.rpartition("/")[2]

    @property
    def is_shared(self) -> bool:
        """Whether the memory is a block of a store. A copy made by indexing with an array or a mask is private."""
        return segment_of(self) is not None

    @property
    def lock(self) -> Lock:
        """The array's exclusive guard as a `multiprocessing.Lock`; one for all views of it. Survives its holder's death."""
        segment = self._shared("no lock")
        return Lock(root_of(segment), guard_of(segment))

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
        return WriteAccess(guard_of(self._shared("no guard")), self, timeout, heal=heal)

    def read(self, timeout: float | None = None) -> ReadAccess[SharedArray]:
        """Begin shared access: `with a.read() as x:`, x cannot be written to. Readers run together, no writer beside them.

        Waits and raises as `write` does.
        """
        view = self.view()
        view.flags.writeable = False
        return ReadAccess(guard_of(self._shared("no guard")), view, timeout)

    def _shared(self, lack: str) -> segments.Segment:
        segment = segment_of(self)
        if segment is None:
            message = f"this array is private memory, a copy: it has {lack}"
            raise ValueError(message)
        return segment

    def unlink(self) -> None:
        """Delete the array for everyone: no new attach, by name or handle. Views stay valid. May be repeated.

        Raises `ValueError` for private memory.
        """
        blocks.delete(self._shared("no block to unlink"))

    def __enter__(self) -> Self:
        """Begin a scope that frees the array at its end."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Delete the array for everyone."""
        self.unlink()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle as a handle; private memory pickles as NumPy does, by value."""
        segment = segment_of(self)
        if segment is None:
            return self.view(np.ndarray).__reduce_ex__(protocol)
        return _attach, (tuple(blocks.offer(segment)), tuple(_spec(self, segment)))

    def __reduce__(self) -> Any:
        """Pickle as a handle."""
        return self.__reduce_ex__(2)

    def __copy__(self) -> np.ndarray[Any, Any]:  # type: ignore[override]  # private memory, as promised
        """Copy into private memory."""
        return self.view(np.ndarray).copy(order="K")

    def __deepcopy__(self, memo: Any) -> np.ndarray[Any, Any]:  # type: ignore[override]  # private memory, as promised
        """Copy into private memory."""
        return self.view(np.ndarray).copy(order="K")

    def copy(self, order: Any = "C") -> np.ndarray[Any, Any]:  # type: ignore[override]  # private memory, as promised
        """Copy into private memory, as a plain ndarray."""
        return self.view(np.ndarray).copy(order)

    def astype(self, dtype: Any, *args: Any, **kwargs: Any) -> np.ndarray[Any, Any]:
        """Convert; the result is a plain ndarray, as from `numpy.asarray(self).astype`."""
        return self.view(np.ndarray).astype(dtype, *args, **kwargs)

    def flatten(self, order: Any = "C") -> np.ndarray[Any, Any]:
        """Copy into one dimension, in private memory."""
        return self.view(np.ndarray).flatten(order)

    def take(self, *args: Any, **kwargs: Any) -> Any:
        """Copy elements by index, into private memory."""
        return self.view(np.ndarray).take(*args, **kwargs)

    def repeat(self, *args: Any, **kwargs: Any) -> Any:
        """Repeat elements, in private memory."""
        return self.view(np.ndarray).repeat(*args, **kwargs)

    def compress(self, *args: Any, **kwargs: Any) -> Any:
        """Copy selected slices, into private memory."""
        return self.view(np.ndarray).compress(*args, **kwargs)

    def argsort(self, *args: Any, **kwargs: Any) -> Any:
        """Find the indices that would sort the array."""
        return self.view(np.ndarray).argsort(*args, **kwargs)

    def argpartition(self, *args: Any, **kwargs: Any) -> Any:
        """Find the indices that would partition the array."""
        return self.view(np.ndarray).argpartition(*args, **kwargs)

    def dot(self, *args: Any, **kwargs: Any) -> Any:
        """Multiply as `numpy.dot` does."""
        return self.view(np.ndarray).dot(*args, **kwargs)

    def __repr__(self) -> str:
        """Show the values; the word SharedArray stands only where the memory is shared."""
        text = repr(self.view(np.ndarray))
        return "SharedArray" + text.removeprefix("array") if self.is_shared else text


def segment_of(array: np.ndarray[Any, Any]) -> segments.Segment | None:
    """Find the block behind a view, of whatever array type; None if it is private memory."""
    base: Any = array.base
    while type(base) is not memoryview:
        # Arrays, and what stride tricks of NumPy put between them.
        base = getattr(base, "base", None)
        if base is None:
            return None
    return base.obj if type(base.obj) is segments.Segment else None


def block_of(array: np.ndarray[Any, Any]) -> Block | None:
    """Tell which block a view is in; None if it is private memory."""
    segment = segment_of(array)
    return None if segment is None else cast("Block", segment.tag)


def root_of(segment: segments.Segment) -> np.ndarray[Any, Any]:
    """All data of a block as bytes; holds an export, so the mapping cannot end before it does."""
    block: Block = segment.tag
    return np.frombuffer(segment, np.uint8, block.nbytes) if block.nbytes else np.frombuffer(segment, np.uint8)[:0]


def _place(segment: segments.Segment, dtype: np.dtype[Any], layout: layouts.Layout) -> SharedArray:
    return SharedArray.__new__(SharedArray, layout.shape, dtype, root_of(segment), layout.offset, layout.strides)


def describe(segment: segments.Segment) -> Description:
    """Decode what a block holds; kept with the block. Raises `CorruptBlockError`."""
    block: Block = segment.tag
    known = block.cache.get("description")
    if known is None:
        try:
            known = decode(block.meta)
            if known.name != block.key.name:
                message = f"its header says that it is {known.name!r}"
                raise ValueError(message)
        except (ValueError, TypeError, KeyError, IndexError, ShmArrayError) as error:
            raise undescribed(block, error) from None
        block.cache["description"] = known
    return cast("Description", known)


def decode(meta: bytes) -> Description:
    """Decode the description of a block; raises `ValueError` or one of its kin when it is none."""
    fields = json.loads(meta)
    leaves = []
    for dtype, shape, strides, offset in fields["leaves"]:
        kind = decode_dtype(dtype)
        lengths = layouts.check_shape(shape)
        size = layouts.nbytes(lengths, kind.itemsize)
        steps = None if strides is None else tuple(int(step) for step in strides)
        leaves.append((kind, layouts.Layout(lengths, steps, size, int(offset))))
    name = fields["name"]
    if name is not None:
        names.check(name)
    return Description(name, leaves, fields["tree"], fields.get("kind"))


def undescribed(block: Block, error: Exception) -> CorruptBlockError:
    """Describe a block whose checksum is right and whose description still makes no sense."""
    return CorruptBlockError(
        f"{block.path} cannot be attached: its description is not one ({error})",
        remedy="It was written by another version or by something else; delete the array.",
        path=block.path,
        reason=str(error),
    )


def leaf(segment: segments.Segment, index: int) -> SharedArray:
    """View one array of a block. Raises `CorruptBlockError` if it would reach beyond the block's data."""
    dtype, layout = describe(segment).leaves[index]
    try:
        return _place(segment, dtype, layout)
    except (ValueError, TypeError) as error:
        raise undescribed(segment.tag, error) from None


def _spec(view: np.ndarray[Any, Any], segment: segments.Segment) -> ViewSpec:
    block: Block = segment.tag
    address = block.cache.get("address")
    if not isinstance(address, int):
        address = block.cache["address"] = segments.address_of(segment)
    start = view.__array_interface__["data"][0] - address if view.size else 0
    own = describe(segment).leaves[0][0]
    dtype = None if own is view.dtype or _same(own, view.dtype) else encode_dtype(view.dtype)
    strides = None if view.flags.c_contiguous else view.strides
    return ViewSpec(start, view.shape, strides, dtype, view.flags.writeable)


def _same(one: np.dtype[Any], other: np.dtype[Any]) -> bool:
    return bool(encode_dtype(one) == encode_dtype(other))


def _attach(key: tuple[Any, ...], spec: tuple[Any, ...]) -> SharedArray:
    """Load a handle: what a pickled view becomes. Raises as `blocks.attach` does."""
    block_key, view = BlockKey(*key), ViewSpec(*spec)
    segment = blocks.attach(membership.join(block_key.store_key), block_key)
    if view.dtype is None:
        dtype = describe(segment).leaves[0][0]
    else:
        dtype = decode_dtype(view.dtype)
    try:
        array = SharedArray.__new__(SharedArray, view.shape, dtype, root_of(segment), view.offset, view.strides)
    except (ValueError, TypeError) as error:
        raise undescribed(segment.tag, error) from None
    if not view.writeable:
        array.flags.writeable = False
    return array


def element(dtype: np.dtype[Any]) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Read a dtype as NumPy's constructors do: a sub-array lengthens the shape, a text of no length gets one character."""
    inner: tuple[int, ...] = ()
    while dtype.subdtype is not None:
        dtype, more = dtype.subdtype
        inner += more
    if dtype.itemsize == 0 and dtype.kind in "SU":
        dtype = np.dtype(f"{dtype.str[0]}{dtype.kind}1")
    return dtype, inner


def layout_of(dtype: np.dtype[Any], shape: object, axes: Sequence[int] | None = None) -> layouts.Layout:
    """Lay out a new array; `axes` is its axis order in memory, None for C order. Raises `DTypeError`, `ShapeError`."""
    check_dtype(dtype)
    lengths = layouts.check_shape(shape)
    size = layouts.nbytes(lengths, dtype.itemsize)
    strides = None if axes is None else layouts.strides(lengths, dtype.itemsize, axes)
    return layouts.Layout(lengths, strides, size)


def layout_like(array: np.ndarray[Any, Any]) -> layouts.Layout:
    """Lay out a copy of an array with its axis order in memory kept. Raises `DTypeError`."""
    axes = None if array.flags.c_contiguous else layouts.axes_of(array.shape, array.strides)
    return layout_of(array.dtype, array.shape, axes)


def create(
    member: Membership,
    name: str | None,
    contents: list[tuple[np.dtype[Any], layouts.Layout]],
    *,
    fill: Callable[[np.ndarray[Any, Any]], None] | None = None,
    sources: list[np.ndarray[Any, Any]] | None = None,
    tree: Any = None,
    kind: str | None = None,
    replace: bool = False,
) -> segments.Segment:
    """Make a block with these arrays, filled before anyone can see it: by `fill`, or copied from `sources`.

    Raises as `blocks.Draft` and its `publish` do.
    """
    placed, size = layouts.place(layout for _, layout in contents)
    leaves = [
        [encode_dtype(dtype), layout.shape, layout.strides, layout.offset]
        for (dtype, _), layout in zip(contents, placed, strict=True)
    ]
    description = {"name": name, "leaves": leaves, "tree": tree} | ({} if kind is None else {"kind": kind})
    meta = json.dumps(description, separators=(",", ":")).encode()
    total = size if len(placed) != 1 else placed[0].nbytes
    # Dense sources are written by system call: that reserves as it goes and takes no page fault.
    written = sources is not None and all(source.flags.forc for source in sources)
    with blocks.Draft(member, total, meta, reserve=not written) as draft:
        if written and sources is not None:
            for source, layout in zip(sources, placed, strict=True):
                draft.write(_bytes_of(source), layout.offset)
        segment = draft.map(name)
        if not written:
            for index, ((dtype, _), layout) in enumerate(zip(contents, placed, strict=True)):
                view = _place(segment, dtype, layout).view(np.ndarray)
                if sources is not None:
                    np.copyto(view, sources[index], casting="no")
                elif fill is not None:
                    fill(view)
        draft.publish(segment, replace=replace)
    return segment


def _bytes_of(array: np.ndarray[Any, Any]) -> memoryview:
    """View the memory of a dense array as bytes, in the order in which it lies there."""
    flat = array.reshape(-1) if array.flags.c_contiguous else array.T.reshape(-1)
    return flat.view(np.uint8).data if array.nbytes else memoryview(b"")


def plain(value: Any) -> np.ndarray[Any, Any]:
    """Make an ndarray of what a user gave; raises `TypeError` for a masked array, whose mask would be lost."""
    masked = sys.modules.get("numpy.ma")  # NumPy loads it late; without it nobody has a masked array
    if masked is not None and isinstance(value, masked.MaskedArray):
        message = (
            "a masked array cannot be put whole: its mask would be lost\n"
            'Put both: store.put({"data": a.data, "mask": numpy.ma.getmaskarray(a)}).'
        )
        raise TypeError(message)
    return np.asarray(value)


def put(member: Membership, value: Any, name: str | None, *, replace: bool = False) -> SharedArray:
    """Copy an array into a new block; layout (C, Fortran or any other axis order) is kept."""
    array = plain(value)
    segment = create(member, name, [(array.dtype, layout_like(array))], sources=[array], replace=replace)
    return leaf(segment, 0)
