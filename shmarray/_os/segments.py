"""Files that are memory: create, reserve, publish, map, list, unlink.

Owns: every system call on a block's or control file's bytes and names. Files are made without a name (`O_TMPFILE`), become
visible in one step (`linkat`), are reserved before they are touched (`posix_fallocate`: a full file system is ENOSPC and
never SIGBUS), and are mapped without keeping a descriptor.
Must not know: headers, stores, or who may remove what.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import select
import stat
import sys
import threading
from typing import TYPE_CHECKING, Any

from shmarray._os import flocks

if TYPE_CHECKING:
    from collections.abc import Callable

SHM_DIRECTORY = "/dev/shm"  # noqa: S108  the kernel's own place for shared memory
PAGE = mmap.PAGESIZE
LARGE_PAGE = 512 * PAGE
"""Bytes of what the processor can also map as one page, where a page has room for 512 entries of its tables."""
_COLLAPSE = 25  # MADV_COLLAPSE, since Linux 6.1; the module `mmap` has no name for it
_POPULATE = 23  # MADV_POPULATE_WRITE, since Linux 5.14
_MODE = 0o600
_RESERVE_PIECE = 16 << 20  # one call is interrupted and undone by a signal on old kernels: short calls make progress
_WRITE_PIECE = 64 << 20
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000  # `mmap` has the name from 3.13 on
_EXISTING = os.O_NOFOLLOW | os.O_NONBLOCK
_SIGNATURE = os.O_NOATIME | os.O_NONBLOCK  # without effect on files of our own that are memory

_libc = ctypes.CDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_madvise = _libc.madvise
_madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_fallocate = _libc.fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
_PUNCH_HOLE = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE, which goes with FALLOC_FL_KEEP_SIZE
_Mapping = mmap.mmap  # the type, whatever may stand in for its constructor
_addressof, _first_byte = ctypes.addressof, ctypes.c_char.from_buffer
_ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
_PROTECTION = mmap.PROT_READ | mmap.PROT_WRITE
_OVER = mmap.MAP_SHARED | _MAP_FIXED


Descriptor = select.epoll
"""An open file of ours. Not for polling: of the standard library's types it is the one whose C destructor closes any
descriptor, silently; so no exception out of a signal handler, at whatever moment, leaves a descriptor open with the locks that
hang on it. Its own `close()` is a call into C, which no handler can come before."""

_NO_MORE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_reliefs: list[Callable[[], bool]] = []
# Which thread last opened a descriptor of that number, after how many forks. Entries stay when it is closed: the next is written over it.
_opener: dict[int, tuple[int, int]] = {}
_forks = [0]
_STANDING = -1  # in place of a thread: kept open on purpose, by whom it is closed in a child too
# Whether there are other threads, just before a fork.
_threaded = [False]


def relieved_by(let_go: Callable[[], bool]) -> None:
    """Have this called where there is no descriptor or no room for a mapping; if it says that it has let go of some, it is tried again."""
    _reliefs.append(let_go)


def _is_relieved(error: OSError) -> bool:
    return error.errno in _NO_MORE and any(let_go() for let_go in _reliefs)


def _opened(path: str, flags: int) -> Descriptor:
    forks = _forks[0]
    try:
        fd = _open(path, flags)
    except OSError as error:
        if not _is_relieved(error):
            raise
        fd = _open(path, flags)
    _opener[fd.fileno()] = threading.get_ident(), forks
    return fd


def _open(path: str, flags: int) -> Descriptor:
    # Two iterators in C: between opening and owning there is no bytecode, and so no moment for a signal handler.
    return next(map(Descriptor.fromfd, map(os.open, (path,), (flags | os.O_CLOEXEC,), (_MODE,))))


def keep_open(fd: Descriptor) -> None:
    """Say that this descriptor stays open; who keeps it closes it in a forked child."""
    _opener[fd.fileno()] = _STANDING, _forks[0]


def has_forked_since(fd: Descriptor) -> bool:
    """Whether a child may have the same open file description, locks and all, for a fork came since it was opened."""
    return _opener.get(fd.fileno(), (0, -1))[1] != _forks[0]


def _note_threads() -> None:
    _forks[0] += 1
    _threaded[0] = len(sys._current_frames()) > 1


def _close_of_other_threads() -> None:
    """In a forked child: close what other threads of the parent had open for a moment.

    They do not go on here, and the locks that hang on the descriptors would live as long as the child. The thread that forked
    does go on, perhaps out of the midst of our code.
    """
    if _threaded[0]:
        me = threading.get_ident()
        for fd in map(int, os.listdir("/proc/self/fd")):
            if _opener.get(fd, (0, 0))[0] not in (me, _STANDING) and _is_ours(fd):
                os.close(fd)


def _is_ours(fd: int) -> bool:
    try:
        name = os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))
        # A file without a name is told by the flags it was opened with, which the kernel keeps.
        unnamed = name.startswith("#") and fcntl.fcntl(fd, fcntl.F_GETFL) & _SIGNATURE == _SIGNATURE
    except OSError:
        return False  # the descriptor of the listing itself
    return unnamed or name.startswith("shmarray.")


os.register_at_fork(before=_note_threads, after_in_child=_close_of_other_threads)


def is_foreign_mapping(thing: object) -> bool:
    """Say whether that is a mapping which is not one of ours: of any file, which others may cut off."""
    return isinstance(thing, _Mapping) and not isinstance(thing, Segment)


class Segment(mmap.mmap):
    """A shared mapping that holds no descriptor; `tag` is its user's. C code unmaps it when the last reference dies.

    There is no `close()` to call: the object exports its buffer to the views that need it, and the last of them ends it.
    """

    tag: Any


class SlabSegment(Segment):
    """A mapping of many arrays, of which none owns it."""


def create_leased(directory: str, fallback: Callable[[], str]) -> tuple[Descriptor, str | None]:
    """Make an empty file with no name in `directory`, and take its lease; returns its descriptor and None.

    On a file system without `O_TMPFILE` the file gets the name `fallback()` there, whose path is returned instead of None.
    """
    while True:
        fd, path = _create(directory, fallback)
        try:
            flocks.share(fd)
            # A file with a name may have been swept as dead before it was locked: then once more.
            if path is None or status(fd).st_nlink:
                return fd, path
        except BaseException:
            fd.close()
            if path is not None:
                unlink(path)
            raise
        fd.close()


def _create(directory: str, fallback: Callable[[], str]) -> tuple[Descriptor, str | None]:
    try:
        return _opened(directory, os.O_TMPFILE | os.O_RDWR | _SIGNATURE), None
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
    path = os.path.join(directory, fallback())
    return _opened(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW), path


def open_existing(path: str, *, write: bool = True) -> Descriptor:
    """Open a file for reading and writing, or only for reading, never through a symbolic link."""
    return _opened(path, _EXISTING | (os.O_RDWR if write else os.O_RDONLY))


def duplicate(fd: Descriptor) -> Descriptor:
    """Have a second descriptor of the same open file description, with the locks that hang on it."""
    again = next(map(Descriptor.fromfd, map(os.dup, (fd.fileno(),))))
    _opener[again.fileno()] = threading.get_ident(), _opener.get(fd.fileno(), (0, -1))[1]
    return again


def status(fd: Descriptor) -> os.stat_result:
    """Size, link count, owner and identity of an open file."""
    return os.fstat(fd.fileno())


def status_of(path: str) -> os.stat_result:
    """Size, link count, owner and identity of the file of that name itself (a link is not followed)."""
    return os.lstat(path)


def is_regular(info: os.stat_result) -> bool:
    """Say whether that is an ordinary file."""
    return stat.S_ISREG(info.st_mode)


def exists(path: str) -> bool:
    """Say whether a file of that name is there now."""
    return os.path.lexists(path)


def resize(fd: Descriptor, size: int) -> None:
    """Set the length of a file without reserving anything."""
    os.ftruncate(fd.fileno(), size)


def reserve(fd: Descriptor, offset: int, size: int) -> None:
    """Give the bytes `offset` to `offset + size` real memory now, as zeros; ENOSPC when there is not enough."""
    end = offset + size
    while offset < end:
        piece = min(_RESERVE_PIECE, end - offset)
        os.posix_fallocate(fd.fileno(), offset, piece)
        offset += piece


def discard(fd: Descriptor, size: int) -> None:
    """Give back the memory of a file now, if it has no name, whoever maps it still: they see zeros. Not every file system does so."""
    if status(fd).st_nlink == 0:
        _fallocate(fd.fileno(), _PUNCH_HOLE, 0, size)


def write(fd: Descriptor, data: memoryview | bytes, offset: int) -> None:
    """Write all of `data` at `offset`; reserves as it goes, so a full file system is ENOSPC."""
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += os.pwrite(fd.fileno(), view[done : done + _WRITE_PIECE], offset + done)


def read(fd: Descriptor, size: int, offset: int) -> bytes:
    """Read up to `size` bytes at `offset`."""
    return os.pread(fd.fileno(), size, offset)


pread = os.pread
"""For those who cannot afford a call: `read` by number."""


def publish(fd: Descriptor, path: str, temporary: str | None = None) -> None:
    """Give an unnamed file its name, complete from the first moment; `FileExistsError` if the name is taken."""
    if temporary is None:
        # AT_SYMLINK_FOLLOW through /proc names an O_TMPFILE; src_dir_fd makes CPython call linkat and not link.
        os.link(f"/proc/self/fd/{fd.fileno()}", path, src_dir_fd=fd.fileno(), follow_symlinks=True)
    else:
        os.link(temporary, path)
        unlink(temporary)


def link(source: str, path: str) -> None:
    """Give the file `source` a second name."""
    os.link(source, path, follow_symlinks=False)


def replace(source: str, path: str) -> None:
    """Move the name `source` over the name `path` in one step."""
    os.rename(source, path)


def unlink(path: str) -> bool:
    """Remove a name; false if it was not there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def entries(directory: str, prefix: str) -> list[str]:
    """List the names in `directory` that start with `prefix`, unsorted."""
    return [name for name in os.listdir(directory) if name.startswith(prefix)]


def inodes(directory: str, prefix: str) -> set[int]:
    """Give the inodes of all files in `directory` whose names start with `prefix`; the directory itself tells them."""
    with os.scandir(directory) as found:
        return {entry.inode() for entry in found if entry.name.startswith(prefix)}


def map_shared(fd: Descriptor, size: int, *, populate: bool = False, kind: type[Segment] = Segment) -> Segment:
    """Map the first `size` bytes, readable and writable by all who map the file; the descriptor may be closed after.

    With `populate` all pages are mapped at once, so that none is missed later.
    """
    try:
        return _mapped(fd, size, populate, kind)
    except OSError as error:
        if not _is_relieved(error):
            raise
        return _mapped(fd, size, populate, kind)


def _mapped(fd: Descriptor, size: int, populate: bool, kind: type[Segment]) -> Segment:  # noqa: FBT001  as `map_shared`
    if sys.version_info >= (3, 13) and size < LARGE_PAGE:
        return kind(fd.fileno(), size, flags=mmap.MAP_SHARED | (mmap.MAP_POPULATE if populate else 0), trackfd=False)
    # Before 3.13 an mmap object keeps a duplicate of the descriptor. So take an anonymous one, which keeps none, and lay
    # the file's pages over it in place: its C destructor unmaps them like its own.
    # No memory is set aside for it, so that a file larger than all memory can be mapped. The kernel lays anonymous memory that is as long
    # as some large pages where one of them could begin, which it does not do for files; what is behind the file's end is never touched.
    length = size if size < LARGE_PAGE else -(-size // LARGE_PAGE) * LARGE_PAGE
    segment = kind(-1, length, flags=_ANONYMOUS)
    address = _addressof(_first_byte(segment))
    placed = _mmap(address, size, _PROTECTION, _OVER | (mmap.MAP_POPULATE if populate else 0), fd.fileno(), 0)
    if placed != address:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return segment


def merge(segment: Segment, offset: int, size: int) -> int:
    """Put `size` bytes from `offset` on, which are all there, into large pages; 0, or the kernel's error where it does not.

    Whoever maps the file where a large page can begin needs one fault then, and one entry of the processor's tables, instead of 512.
    Waits while the bytes are copied; what others do with them meanwhile waits as well.
    """
    address = address_of(segment) + offset
    if address % LARGE_PAGE:
        return errno.EINVAL
    return 0 if _madvise(address, size, _COLLAPSE) == 0 else ctypes.get_errno()


def populate(segment: Segment, offset: int, size: int) -> bool:
    """Have the pages of so many bytes from `offset` on be there and mapped: what is missing is reserved, as zeros.

    False where there is not enough memory for all of them, or where the kernel cannot do it (Linux before 5.14); no signal comes of that.
    """
    first = offset // PAGE * PAGE
    return bool(_madvise(address_of(segment) + first, offset + size - first, _POPULATE) == 0)


def address_of(segment: mmap.mmap) -> int:
    """Tell where a mapping begins in this process."""
    return _addressof(_first_byte(segment))
