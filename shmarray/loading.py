"""Loading files and streams straight into a block.

Owns: telling `.npy`, `.npz` and raw data apart, what each must hold, and reading it in pieces into reserved memory that nobody
sees yet: no second copy, and nothing is left of what fails.
Must not know: how a block is made, system calls, what stands in a header.
"""

from __future__ import annotations

import io
import os
import zipfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from shmarray import arrays, blockfiles, contents, deletion, trees
from shmarray._format import layouts, names, npy
from shmarray._format import trees as form
from shmarray._format.dtypes import check_dtype
from shmarray._os import files
from shmarray.errors import ArrayExistsError, DTypeError, FileFormatError, ShapeError, ShmArrayError
from shmarray.progress import for_file
from shmarray.streams import Source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shmarray import drafts
    from shmarray.membership import Membership
    from shmarray.rawdata import Raw

_BUFFER = 1 << 18
_PIECE = 4 << 20


def load(
    member: Membership, file: Any, name: str | None, told: Raw | None, *, mmap: object, progress: bool | None
) -> Any:
    """Load a path or an open file. See `filing.Filing.load`."""
    member.require_open()
    if not isinstance(mmap, (bool, np.bool_)):
        message = f"mmap is True or False, not {mmap!r}: the result can be written to and is the store's, however the file was read"
        raise TypeError(message)
    if isinstance(file, (str, bytes, os.PathLike)):
        path = os.fsdecode(file)
        _require_free(member, name, path)
        with files.open_source(path) as opened:
            source = Source(opened, path, files.length(opened))
            return _Loading(member, source, name, progress=progress).run(told, opened if mmap else None)
    if not hasattr(file, "readinto"):
        is_text = isinstance(file, io.TextIOBase)
        hint = "open it with mode 'rb'" if is_text else "give a path, or an object with readinto()"
        message = f"nothing can be loaded from {type(file).__name__}: {hint}"
        raise TypeError(message)
    source = Source(file, _label_of(file))
    _require_free(member, name, source.label)
    return _Loading(member, source, name, progress=progress).run(told, None)


def _label_of(file: Any) -> str:
    name = getattr(file, "name", None)
    return name if isinstance(name, str) and name else f"<{type(file).__name__}>"


def _require_free(member: Membership, name: str | None, label: str) -> None:
    """Refuse a name that is taken before anything is read; publishing looks once more."""
    if name is not None and deletion.has_name(member, name):
        noun = blockfiles.noun_at(member.key, member.block_prefix + names.NAMED + names.encode(name))
        raise ArrayExistsError(
            f"the {noun} {name!r} is already in {member.label}; nothing of {label} was read",
            remedy=f"Delete it first, or choose another name; store[{name!r}] = store.load(...) replaces it.",
            name=name,
        )


class _Loading:
    """One call of `load`."""

    def __init__(self, member: Membership, source: Source, name: str | None, *, progress: bool | None) -> None:
        self._member = member
        self._source = source
        self._name = name
        self._bar = for_file("loading", source.label, shown=progress)
        self._done = self._total = 0

    def run(self, told: Raw | None, mappable: io.FileIO | None) -> Any:
        """Find out of which kind the file is, and load it; `mappable` is its file if it is to be mapped."""
        source = self._source
        with self._bar:
            if told is not None and told.offset:
                source.skip(told.offset)
                return self._data(told.header(source), mappable)
            start = source.peek(len(npy.MAGIC) if told is None else told.first(len(npy.MAGIC)))
            if start == npy.MAGIC:
                return self._npy(told, mappable)
            if npy.is_zip(start):
                if told is not None:
                    message = f"{source.label} is a .npz file, which says what is in it: leave dtype out"
                    raise TypeError(message)
                return self._npz()
            if told is not None:
                return self._data(told.header(source), mappable)
        what = "is neither a .npy nor a .npz file" if start else "has no bytes, or none that are left"
        raise FileFormatError(
            f"{source.label}: it {what}",
            remedy="Give dtype= (and shape=, offset=, order=) to load raw data; pickles are never loaded.",
            path=source.label,
        )

    def _npy(self, told: Raw | None, mappable: io.FileIO | None) -> arrays.SharedArray:
        source = self._source
        source.take(len(npy.MAGIC))
        with _damage(source.label):
            header = npy.read_header(source.take)
        if told is not None:
            self._agree(header, told)
        with _named(source.label):
            check_dtype(header.dtype)
        left = source.left()
        if left is not None and left < header.nbytes:
            raise source.too_short(header.nbytes, left)
        if source.is_whole and left is not None and left > header.nbytes:
            raise FileFormatError(
                f"{source.label}: {left - header.nbytes} bytes follow the array, which its header says has {header.nbytes}",
                remedy="If several arrays stand in the file, open it and load from the open file, once for each.",
                path=source.label,
                expected=header.nbytes,
                found=left,
            )
        return self._data(header, mappable)

    def _agree(self, header: npy.Header, told: Raw) -> None:
        """Refuse what a user says of a `.npy` file if the file itself says something else."""
        label = self._source.label
        if header.dtype != told.dtype:
            raise DTypeError(
                f"{label} is a .npy file of dtype {header.dtype}, not {told.dtype}",
                remedy="Leave dtype out; convert afterwards with astype, or view.",
                dtype=str(header.dtype),
                field="",
                path=label,
            )
        shape = told.shape
        same = len(shape) == len(header.shape) and all(a in (-1, b) for a, b in zip(shape, header.shape, strict=True))
        if not (same or shape == (-1,)):
            raise ShapeError(
                f"{label} is a .npy file of shape {header.shape}, not {shape}",
                remedy="Leave shape out; reshape afterwards.",
                shape=header.shape,
                path=label,
            )
        if told.fortran and not header.fortran and len(header.shape) > 1:
            message = f"{label} is a .npy file in C order, not F: leave order out"
            raise ValueError(message)

    def _data(self, what: npy.Header, mappable: io.FileIO | None) -> arrays.SharedArray:
        """Make the array of what comes next in the source."""
        dtype, layout = _laid_out(what)
        self._total = layout.nbytes

        def fill(view: np.ndarray[Any, Any]) -> None:
            if mappable is None or self._source.size is None or not self._copy(mappable, view):
                self._read(self._source, view)

        # What was opened for this alone is read from where the array begins, whatever was read of it before.
        pour = self._pour if mappable is None and self._source.size is not None else None
        return arrays.leaf(contents.create(self._member, self._name, [(dtype, layout)], fill=fill, pour=pour), 0)

    def _pour(self, draft: drafts.Draft) -> bool:
        """Have the kernel copy an array from the file into fresh memory; false if that cannot be."""
        while self._done < self._total:
            place, size = self._source.position + self._done, min(_PIECE, self._total - self._done)
            count = draft.pour(self._source.file, place, self._done, size)
            if count is None:
                self._done = 0
                return False
            if not count:
                raise self._source.too_short(self._total, self._done)
            self._done += count
            self._bar(self._done, self._total)
        return True

    def _copy(self, file: io.FileIO, view: np.ndarray[Any, Any]) -> bool:
        """Have the kernel copy an array out of a mapping of the file; false if that cannot be, and then nothing was copied."""
        mapping, start, size = files.map_source(file), self._source.position, view.nbytes
        if mapping is None:
            return False
        if len(mapping) < start + size:
            raise self._source.too_short(size, max(0, len(mapping) - start))
        source = _address(np.frombuffer(mapping, np.uint8)) + start
        target = _address(np.frombuffer(contents.bytes_of(view), np.uint8))
        while self._done < size:
            count = files.copy_memory(source + self._done, target + self._done, min(_PIECE, size - self._done))
            if count is None and not self._done:
                return False
            if not count:
                break
            self._done += count
            self._bar(self._done, size)
            files.forget(mapping)
        # Of the last page of a file that was cut off, the rest reads as zeros.
        found = min(self._done, max(0, (files.length(file) or 0) - start))
        if found < size:
            raise self._source.too_short(size, found)
        return True

    def _npz(self) -> Any:
        source = self._source
        if not source.rewind() or not hasattr(source.file, "read"):
            raise FileFormatError(
                f"{source.label}: a .npz file has its index at the end, and this stream cannot seek there",
                remedy="Give a path or a file that can seek, or io.BytesIO(stream.read()).",
                path=source.label,
            )
        file = io.BufferedReader(source.file, _BUFFER) if isinstance(source.file, io.RawIOBase) else source.file
        try:
            with _damage(source.label):
                archive = zipfile.ZipFile(file)
            with archive:  # which leaves open what it was given
                return self._members(archive)
        finally:
            if file is not source.file:
                file.detach()

    def _members(self, archive: zipfile.ZipFile) -> Any:
        """Make a tree of all arrays in an archive."""
        label = self._source.label
        with _damage(label):
            infos = [info for info in archive.infolist() if not info.is_dir()]
            headers = {}
            for info in infos:
                key = info.filename.removesuffix(".npy")
                if key in headers:
                    message = f"two members are called {key!r}"
                    raise ValueError(message)
                headers[key] = _member_header(archive, info)
        # Stand-ins without memory: of them only the description is made.
        stand_ins = {key: np.broadcast_to(np.empty((), head.dtype), head.shape) for key, head in headers.items()}
        with _named(label):
            description, _ = form.flatten(stand_ins)
        leaves = [_laid_out(header) for header in headers.values()]
        self._total = sum(layout.nbytes for _, layout in leaves)
        waiting = iter(infos)  # a block is filled leaf by leaf, in their order

        def fill(view: np.ndarray[Any, Any]) -> None:
            info = next(waiting)
            place = f"{label}[{info.filename.removesuffix('.npy')!r}]"
            with _damage(place), archive.open(info) as file:
                member = Source(file, place)
                member.take(len(npy.MAGIC))
                npy.read_header(member.take)
                self._read(member, view)
                member.expect_end()  # where `zipfile` compares the checksum

        return trees.open_segment(contents.create(self._member, self._name, leaves, fill=fill, tree=description))

    def _read(self, source: Source, view: np.ndarray[Any, Any]) -> None:
        """Read the next bytes into an array."""
        for count in source.into(contents.bytes_of(view)):
            self._done += count
            self._bar(self._done, self._total)


def _address(array: np.ndarray[Any, Any]) -> int:
    place: int = array.__array_interface__["data"][0]
    return place


def _laid_out(what: npy.Header) -> tuple[np.dtype[Any], layouts.Layout]:
    axes = list(reversed(range(len(what.shape)))) if what.fortran else None
    return what.dtype, contents.layout_of(what.dtype, what.shape, axes)


def _member_header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> npy.Header:
    with archive.open(info) as file:
        member = Source(file, info.filename)
        if member.peek(len(npy.MAGIC)) != npy.MAGIC:
            message = f"its member {info.filename!r} is no array"
            raise ValueError(message)
        member.take(len(npy.MAGIC))
        header = npy.read_header(member.take)
        if not header.dtype.hasobject and member.position + header.nbytes != info.file_size:
            message = (
                f"its member {info.filename!r} has {info.file_size} bytes, and its header makes them "
                f"{member.position + header.nbytes}"
            )
            raise ValueError(message)
        return header


@contextmanager
def _damage(label: str) -> Iterator[None]:
    """Say of which file it is that it is damaged; what says more, or is an error of the machine's, passes."""
    try:
        yield
    except ShmArrayError:
        raise
    except npy.DAMAGE as error:
        _refuse(label, error)


def _refuse(label: str, error: Exception) -> NoReturn:
    reason = " ".join(str(error).split()) or type(error).__name__
    raise FileFormatError(
        f"{label}: it is damaged or incomplete: {reason}",
        remedy="Write it anew, or fetch it again; numpy.load may say more.",
        path=label,
        reason=reason,
    ) from None


@contextmanager
def _named(label: str) -> Iterator[None]:
    """Say in which file a dtype is that cannot be shared."""
    try:
        yield
    except DTypeError as error:
        raise DTypeError(f"{label}: {error.summary}", **{**error.facts, "path": label}, remedy=error.remedy) from None
