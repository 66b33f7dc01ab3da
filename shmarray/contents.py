"""What a block holds, in NumPy's terms.

Owns: describing arrays so that a block tells what it holds, laying new ones out, filling a block with them, and finding the
block behind any view.
Must not know: `SharedArray`, handles.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from shmarray import copying, drafts, idling
from shmarray._format import layouts, names
from shmarray._format.dtypes import check_dtype, decode_dtype, encode_dtype
from shmarray._format.handle import ViewSpec
from shmarray._os import segments
from shmarray.errors import CorruptBlockError, ShmArrayError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shmarray.attachments import Block
    from shmarray.membership import Membership


_write = json.JSONEncoder(separators=(",", ":")).encode
_SMALL = 1024  # bytes of a description that is kept for the next block that has the same


class Description(NamedTuple):
    """What a block holds: arrays one behind the other.

    If they are the leaves of a tree, `tree` is its description; if the block is the state of another shared object, `kind` says
    of which.
    """

    name: str | None
    leaves: list[tuple[np.dtype[Any], layouts.Layout]]
    tree: Any
    kind: str | None = None


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


def inode_of(array: np.ndarray[Any, Any]) -> int:
    """Inode of the file of the block that a view is in; raises `ValueError` for private memory."""
    block = block_of(array)
    if block is None:
        message = "this array is in no block"
        raise ValueError(message)
    return block.identity[1]


def root_of(segment: segments.Segment) -> np.ndarray[Any, Any]:
    """All data of a block as bytes; holds an export, so the mapping cannot end before it does."""
    block: Block = segment.tag
    if (kept := cast("idling.Kept | None", block.cache.get(idling.KEPT))) is not None:
        return idling.root_of(segment, kept)
    return np.frombuffer(segment, np.uint8, block.nbytes) if block.nbytes else np.frombuffer(segment, np.uint8)[:0]


def is_described(segment: segments.Segment) -> bool:
    """Say whether the description of a mapped block was decoded before."""
    return "description" in segment.tag.cache


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
    return _decode_small(meta) if len(meta) <= _SMALL else _decode(meta)


def _decode(meta: bytes) -> Description:
    fields = json.loads(meta)
    leaves = []
    for dtype, shape, strides, offset in fields["leaves"]:
        kind = decode_dtype(dtype)
        lengths = layouts.check_shape(shape)
        size = layouts.nbytes(lengths, kind.itemsize)
        steps = None if strides is None else tuple(int(step) for step in strides)
        if int(offset) < 0:  # NumPy looks only at the other end
            raise ValueError("an array begins before its block")
        leaves.append((kind, layouts.Layout(lengths, steps, size, int(offset))))
    name = fields["name"]
    if name is not None:
        names.check(name)
    return Description(name, leaves, fields["tree"], fields.get("kind"))


_decode_small = functools.lru_cache(maxsize=256)(_decode)


def own(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Give a dtype that may be handed out: the names of fields can be changed in place, so a structure's is a copy."""
    return dtype if dtype.names is None else np.dtype(dtype, copy=True)


def undescribed(block: Block, error: Exception) -> CorruptBlockError:
    """Describe a block whose checksum is right and whose description still makes no sense."""
    return CorruptBlockError(
        f"{block.path} cannot be attached: its description is not one ({error})",
        remedy="It was written by another version or by something else; delete the array.",
        path=block.path,
        reason=str(error),
    )


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
    pour: Callable[[drafts.Draft], bool] | None = None,
    tree: Any = None,
    kind: str | None = None,
    replace: bool = False,
    keeps: bool = False,
    clear: bool = True,
) -> segments.Segment:
    """Make a block with these arrays, filled before anyone can see it: by `fill`, or copied from `sources`, or else with zeros.

    Into fresh memory `pour` writes by system call what `fill` would; if it says that it cannot, `fill` does.
    Without `clear`, what is not filled may be what was in the store's memory before. With `keeps`, `fill` puts handles into it, which lie
    in the file from then on.
    Raises as `drafts.Draft` and its `publish` do.
    """
    placed, size = layouts.place(layout for _, layout in contents)
    leaves = [
        [encode_dtype(dtype), layout.shape, layout.strides, layout.offset]
        for (dtype, _), layout in zip(contents, placed, strict=True)
    ]
    description = {"name": name, "leaves": leaves, "tree": tree} | ({} if kind is None else {"kind": kind})
    meta = _write(description).encode()
    total = size if len(placed) != 1 else placed[0].nbytes
    # Dense sources are written by system call: that reserves as it goes and takes no page fault.
    dense = sources is not None and all(source.flags.forc for source in sources)
    with drafts.Draft(member, total, meta, reserve=not dense and pour is None, again=kind is None) as draft:
        if keeps:
            draft.appear()
        if pour is not None and draft.window is None:
            if pour(draft):
                fill = None
            else:
                draft.reserve()
        segment = draft.map(name)
        laid_out = [(dtype, layout) for (dtype, _), layout in zip(contents, placed, strict=True)]
        segment.tag.cache["description"] = Description(name, laid_out, tree, kind)
        if sources is not None:
            _copy_in(draft, segment, sources, placed, dense=dense)
        elif fill is not None or (clear and draft.window is not None):
            base = _base_of(draft, segment)
            if fill is None:
                base[:total] = 0
            else:
                for dtype, layout in laid_out:
                    fill(np.ndarray(layout.shape, dtype, base, layout.offset, layout.strides))
        draft.publish(segment, replace=replace)
    return segment


def _base_of(draft: drafts.Draft, segment: segments.Segment) -> np.ndarray[Any, Any]:
    """Through which the block in the making is filled: memory that was used before has a mapping for that, in which all of it is there."""
    return root_of(segment) if draft.window is None else np.frombuffer(draft.window, np.uint8)


def _copy_in(
    draft: drafts.Draft,
    segment: segments.Segment,
    sources: list[np.ndarray[Any, Any]],
    placed: list[layouts.Layout],
    *,
    dense: bool,
) -> None:
    """Copy arrays into a block in the making. Nothing of it is reserved yet if they are `dense` and its memory is fresh."""
    control = draft.member.control
    shared = control.directory == segments.SHM_DIRECTORY
    for source, layout in zip(sources, placed, strict=True):
        by_threads = shared and copying.is_worth_sharing(layout.nbytes, control.copy_threads)
        # What lies in a file is always written by system call, which says so when the file was cut off; a copy would be a SIGBUS.
        if dense and ((draft.window is None and not by_threads) or is_in_file(source)):
            draft.write(bytes_of(source), layout.offset)
        elif dense and draft.window is None:
            copying.fill_fresh(segment, layout.offset, bytes_of(source), draft.write, control.copy_threads)
        else:
            base = _base_of(draft, segment)
            view = np.ndarray(layout.shape, source.dtype, base, layout.offset, layout.strides)
            copying.copy(view, source, control.copy_threads)


def private(array: np.ndarray[Any, Any], order: Any) -> np.ndarray[Any, Any]:
    """Copy a view into private memory, as a plain ndarray, in the given order."""
    plain = array.view(np.ndarray)
    block = block_of(plain) if plain.nbytes >= copying.LEAST else None
    return plain.copy(order) if block is None else copying.duplicate(plain, order, block.member.control.copy_threads)


def is_in_file(array: np.ndarray[Any, Any]) -> bool:
    """Say whether an array's memory is a mapping that is not ours: of a file, perhaps, which others can cut off."""
    owner: Any = array
    while owner is not None and not segments.is_foreign_mapping(owner):
        # Arrays, views of their bytes, and what stride tricks of NumPy put between them.
        owner = owner.obj if isinstance(owner, memoryview) else getattr(owner, "base", None)
    return owner is not None


def spec_in(segment: segments.Segment, view: np.ndarray[Any, Any]) -> ViewSpec:
    """Say what part a view is of a block; what a handle of all of it says is kept with the block."""
    block: Block = segment.tag
    known: Any = block.cache.get("spec")
    if known is not None:
        dtype, strides, spec = known
        if view.dtype is dtype and view.shape == spec.shape and view.strides == strides and view.flags.writeable:
            return cast("ViewSpec", spec)
    spec = spec_of(view, block.nbytes, describe(segment).leaves[0][0], functools.partial(segments.address_of, segment))
    # What is dense and has as many bytes as the block begins where it does, each time.
    if view.nbytes == block.nbytes and view.flags.forc and spec.writeable and view.dtype.names is None:
        block.cache["spec"] = view.dtype, view.strides, spec
    return spec


def spec_of(view: np.ndarray[Any, Any], nbytes: int, own: np.dtype[Any] | None, address: Callable[[], int]) -> ViewSpec:
    """Say what part a view is of an array of `nbytes` bytes, of the dtype `own` if that is known, which begins at `address`."""
    # What has as many bytes begins where it does; asking NumPy for the address is what costs.
    whole = view.nbytes == nbytes and view.flags.forc
    start = 0 if whole or not view.size else address_of(view) - address()
    same = own is view.dtype or (own is not None and encode_dtype(own) == encode_dtype(view.dtype))
    dtype = None if same else encode_dtype(view.dtype)
    strides = None if view.flags.c_contiguous else view.strides
    return ViewSpec(start, view.shape, strides, dtype, view.flags.writeable)


def address_of(array: np.ndarray[Any, Any]) -> int:
    """Tell where an array's first element is in this process."""
    address: int = array.__array_interface__["data"][0]
    return address


def bytes_of(array: np.ndarray[Any, Any]) -> memoryview:
    """View the memory of a dense array as bytes, in the order in which it lies there."""
    flat = array.reshape(-1) if array.flags.c_contiguous else array.T.reshape(-1)
    return flat.view(np.uint8).data if array.nbytes else memoryview(b"")
