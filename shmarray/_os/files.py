"""Files of the user's own, which arrays are loaded from and saved to.

Owns: every system call on such a file: opening it, its length, mapping it and copying out of the mapping, and writing one so
that it appears whole: without a name (`O_TMPFILE`) or under a name of its own, on the disk (`fsync`), then in one step under
the name that was asked for.
Must not know: what is in a file; blocks, stores.

A process that is killed while it writes leaves the old file, or none. Only between giving a new file its passing name and moving
it over an old one, two calls that follow each other, does a death leave a second name, `.RANDOM.part`, beside it; where the file
system has no unnamed files, a death at any time does.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import mmap
import os
import stat
from typing import TYPE_CHECKING

from shmarray._os import segments

if TYPE_CHECKING:
    from collections.abc import Iterator

_MODE = 0o666  # less the umask, as any file that is opened to be written
_CANNOT_POUR = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EOVERFLOW)
_NO_UNNAMED = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)

_libc = ctypes.CDLL(None, use_errno=True)


class _Range(ctypes.Structure):
    """The kernel's `struct iovec`: an address and a number of bytes."""

    _fields_ = (("address", ctypes.c_void_p), ("size", ctypes.c_size_t))


def open_source(path: str) -> io.FileIO:
    """Open a file to be read, without a buffer of our own; raises as `open` does, also for a directory."""
    return open(path, "rb", buffering=0)


def length(file: io.IOBase) -> int | None:
    """Bytes in an ordinary file; None for a device, a pipe or anything else that does not tell."""
    try:
        info = os.fstat(file.fileno())
    except io.UnsupportedOperation:
        return None
    return info.st_size if stat.S_ISREG(info.st_mode) else None


def map_source(file: io.FileIO) -> mmap.mmap | None:
    """Map a file to be read, as long as it is now; None where the file system maps none, or there is nothing to map."""
    try:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:  # it is empty
        return None
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.EACCES, errno.EINVAL):
            return None
        raise
    mapping.madvise(mmap.MADV_SEQUENTIAL)
    return mapping


def pour(source: io.FileIO, position: int, target: segments.Descriptor, offset: int, size: int) -> int | None:
    """Have the kernel copy `size` bytes of an ordinary file into one of ours; returns how many: none where the source ends.

    No memory of this process is touched by it. A full file system is ENOSPC. None where the source is of a file system that cannot.
    """
    os.lseek(target.fileno(), offset, os.SEEK_SET)
    try:
        return os.sendfile(target.fileno(), source.fileno(), position, size)
    except OSError as error:
        if error.errno in _CANNOT_POUR:
            return None
        raise


def copy_memory(source: int, target: int, size: int) -> int | None:
    """Have the kernel copy `size` bytes of this process's memory from one address to another; returns how many it copied.

    Where the file behind a mapping has become shorter it stops: touched by us, that memory would be a SIGBUS. None where the
    system does not permit such copies.
    """
    here, there = _Range(target, size), _Range(source, size)
    count: int = _libc.process_vm_readv(os.getpid(), ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
    if count >= 0:
        return count
    number = ctypes.get_errno()
    if number in (errno.EPERM, errno.ENOSYS):
        return None
    if number == errno.EFAULT:
        return 0
    raise OSError(number, os.strerror(number))


def forget(mapping: mmap.mmap) -> None:
    """Unmap the pages of a mapping that have been touched; they stay where the file system keeps them, and come again on demand."""
    mapping.madvise(mmap.MADV_DONTNEED)


@contextlib.contextmanager
def replacing(path: str) -> Iterator[io.BufferedWriter]:
    """Give a file to write to; at the end of the block it takes the name `path`, whole, and is on the disk.

    An error in the block leaves what was there. A symbolic link is followed, and the mode of an old file is kept. What is no
    ordinary file (a device, a pipe) is written to as it stands. Raises as `open` does.
    """
    target = os.path.realpath(path)
    old = _status(target)
    if old is not None and stat.S_ISDIR(old.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if old is not None and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    if old is not None and not stat.S_ISREG(old.st_mode):
        with open(target, "wb") as file:
            yield file
        return
    folder = os.path.dirname(target)
    passing = os.path.join(folder, f".{os.urandom(8).hex()}.part")
    named = False
    try:
        try:
            file = _unnamed(folder)
        except OSError as error:
            if error.errno not in _NO_UNNAMED:
                raise
            named = True
            file = open(passing, "xb")  # noqa: SIM115  closed below
        with file:
            yield file
            file.flush()
            if old is not None:
                os.chmod(file.fileno(), stat.S_IMODE(old.st_mode))
            os.fsync(file.fileno())
            if not named:
                named = True  # perhaps, from here on
                named = _give_name(file.fileno(), target if old is None else passing, passing)
        if named:
            os.rename(passing, target)
            named = False
    finally:
        if named:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(passing)
    _sync_names(folder)


def _status(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _unnamed(folder: str) -> io.BufferedWriter:
    """Make a file without a name."""
    # Iterators in C: between opening and owning there is no bytecode, and so no moment for a signal handler.
    flags = os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC
    return next(map(io.BufferedWriter, map(io.FileIO, map(os.open, (folder,), (flags,), (_MODE,)), ("wb",))))


def _give_name(fd: int, path: str, passing: str) -> bool:
    """Give an unnamed file the name `path`, or `passing` if that is taken by now; says whether it has the latter."""
    for name in dict.fromkeys((path, passing)):
        try:
            # AT_SYMLINK_FOLLOW through /proc names an O_TMPFILE; src_dir_fd makes CPython call linkat and not link.
            os.link(f"/proc/self/fd/{fd}", name, src_dir_fd=fd, follow_symlinks=True)
        except FileExistsError:
            if name == passing:
                raise
        else:
            return name == passing
    return False


def _sync_names(folder: str) -> None:
    """Have the new name on the disk as well, where a directory may be read and can be brought there."""
    try:
        opened = segments.open_existing(folder, write=False)
        try:
            os.fsync(opened.fileno())
        finally:
            opened.close()
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EINVAL, errno.EOPNOTSUPP):
            raise
