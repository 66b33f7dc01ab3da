"""Saving arrays and trees as NumPy's own files.

Owns: what goes into a `.npy` and what into a `.npz` file, and writing it without a second copy in memory.
Must not know: how a file appears whole, what stands in a header.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from shmarray import contents
from shmarray._format import foreign, npy
from shmarray._format.dtypes import check_dtype
from shmarray._os import files
from shmarray.errors import DTypeError
from shmarray.progress import Progress, for_file
from shmarray.trees import SharedTree

if TYPE_CHECKING:
    from collections.abc import Iterator

_PIECE = 16 << 20
_SHOWN = 80
_LONGEST = 65_000  # bytes of a member's name; the format counts them in 16 bits
_SUFFIXES = {".npy": ".npz", ".npz": ".npy"}


def save(file: Any, value: Any, *, compressed: bool, progress: bool | None) -> None:
    """Save to a path or an open file. See `filing.Filing.save`."""
    check_target(file)
    parts = _Parts(value, compressed=compressed)
    if isinstance(file, (str, bytes, os.PathLike)):
        path = os.fsdecode(file)
        _check_suffix(path, ".npz" if parts.is_archive else ".npy")
        with for_file("saving", path, shown=progress) as bar, files.replacing(path) as opened:
            parts.write(opened, bar)
        return
    with for_file("saving", getattr(file, "name", None), shown=progress) as bar:
        if isinstance(file, io.RawIOBase):
            whole = io.BufferedWriter(file)  # which goes on where a raw file takes a part
            parts.write(whole, bar)
            whole.detach()
        else:
            parts.write(file, bar)


def check_target(file: Any) -> None:
    """Raise `TypeError` for what is neither a path nor a file that takes bytes."""
    if isinstance(file, (str, bytes, os.PathLike)):
        return
    if not hasattr(file, "write") or isinstance(file, (io.TextIOBase, np.ndarray)):
        message = f"nothing can be saved to {type(file).__name__}: give a path, or a file opened with mode 'wb'"
        raise TypeError(message)


class _Parts:
    """What is to be written: one array, or the members of an archive; all of it is checked before a byte is written."""

    def __init__(self, value: Any, *, compressed: bool) -> None:
        self.is_archive = isinstance(value, Mapping)
        if compressed and not self.is_archive:
            message = "compressed=True is for .npz files: save a dict of arrays"
            raise ValueError(message)
        self._arrays = _members(value) if self.is_archive else {"": _array(value, "the array")}
        self._headers = {key: npy.write_header(array) for key, array in self._arrays.items()}
        self._method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
        self._total = sum(array.nbytes for array in self._arrays.values())
        self._done = 0

    def write(self, file: Any, bar: Progress) -> None:
        """Write all of it to an open file."""
        if not self.is_archive:
            self._write("", file, bar)
            return
        with zipfile.ZipFile(file, "w", self._method) as archive:
            for key in self._arrays:
                with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                    self._write(key, member, bar)

    def _write(self, key: str, file: Any, bar: Progress) -> None:
        file.write(self._headers[key])
        for piece in _pieces(self._arrays[key]):
            file.write(piece)
            self._done += len(piece)
            bar(self._done, self._total)


def _pieces(array: np.ndarray[Any, Any]) -> Iterator[memoryview]:
    """Give the bytes of an array in the order in which a file has them, a piece at a time; those of a dense one are not copied."""
    if not array.nbytes:
        return
    if array.flags.forc:
        data = contents.bytes_of(array)
        for start in range(0, len(data), _PIECE):
            yield data[start : start + _PIECE]
        return
    opaque = array.view(f"V{array.itemsize}")  # so that the bytes between fields are copied too
    count = max(_PIECE // array.itemsize, 1)
    each: Any = ["readonly", "contig"]
    for chunk in np.nditer(opaque, ["external_loop", "buffered"], each, order="C", buffersize=count):
        yield np.ascontiguousarray(chunk).view(np.uint8).data


def _check_suffix(path: str, right: str) -> None:
    if path.endswith(_SUFFIXES[right]):
        what = "one array makes a .npy file" if right == ".npy" else "several arrays make a .npz file"
        message = f"{what}, and {path!r} says otherwise: call it {path[:-4] + right!r}"
        raise ValueError(message)


def _array(value: Any, what: str) -> np.ndarray[Any, Any]:
    """Take an array, or what NumPy makes one of without a loss. Raises `TypeError`, `DTypeError`."""
    if not isinstance(value, (np.ndarray, np.generic, bool, int, float, complex, str, bytes)):
        known = isinstance(value, (SharedTree, Sequence))
        hint = "save a dict of arrays, or numpy.asarray(...) of it" if known else "save an array or a dict of arrays"
        message = f"{what} is no array but of type {type(value).__name__}: {hint}"
        raise TypeError(message)
    array = foreign.plain(value)
    try:
        check_dtype(array.dtype)
    except DTypeError as error:
        raise DTypeError(f"{what}: {error.summary}", **error.facts, remedy=error.remedy) from None
    return array


def _members(tree: Mapping[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Take the arrays of a flat mapping. Raises `TypeError`, `ValueError`, `DTypeError`."""
    found = {}
    for key, value in tree.items():
        if not isinstance(key, str):
            message = f"the members of a .npz file have names, and {key!r} is of type {type(key).__name__}"
            raise TypeError(message)
        if "\0" in key or not _fits(key):
            message = f"{key[:_SHOWN]!r} cannot name a member of a .npz file"
            raise ValueError(message)
        found[key] = _array(value, f"[{key!r}]")
    return found


def _fits(key: str) -> bool:
    try:
        return len(key.encode()) <= _LONGEST
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
