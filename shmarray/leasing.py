"""The lease: how the kernel knows that a process takes part in a store.

Owns: mapping a control file, or the claim of a store elsewhere, with the lease taken; and looking, when such a mapping has ended, whether
it was the last. *Locked = alive*: the kernel ends a lease with the process that has it.
Must not know: what a process does in the store.
"""

from __future__ import annotations

import weakref
from typing import Self

from shmarray import memories, reaper
from shmarray._format import control as layout
from shmarray._format import names
from shmarray._os import flocks, segments

CLAIM_SIZE = 4096
_pins: dict[int, _Lease] = {}


class _Lease(weakref.ref[segments.Segment]):
    """A weak reference to a mapped control file or claim; when the mapping has gone, it looks whether it was the last."""

    __slots__ = ("path", "uid")

    def __new__(cls, segment: segments.Segment, path: str, uid: int) -> Self:  # noqa: ARG004  as __init__
        """Watch `segment`."""
        return super().__new__(cls, segment, _left)

    def __init__(self, segment: segments.Segment, path: str, uid: int) -> None:
        """Keep what the look needs, for then the segment is gone."""
        super().__init__(segment, _left)  # type: ignore[call-arg]  # the callback goes to both, see weakref.KeyedRef
        self.path = path
        self.uid = uid
        _pins[id(self)] = self


def _left(lease: weakref.ref[segments.Segment]) -> None:
    """Run by the interpreter when a control file was unmapped, at any moment: removes the store if nobody is left in it."""
    _pins.pop(id(lease), None)
    if isinstance(lease, _Lease):
        try:
            reaper.finish(lease.path, lease.uid)
        except OSError:
            return  # the guardian, the next store or `shmarray gc` does it: nothing here may raise


def lease(fd: segments.Descriptor, size: int, path: str, uid: int) -> segments.Segment:
    """Map a file whose lease `fd` has taken, and watch the mapping's end."""
    segment = segments.map_shared(fd, size)
    _Lease(segment, path, uid)
    return segment


def take_all(key: names.StoreKey, control: layout.Control) -> tuple[segments.Segment, ...]:
    """Take the leases of a process that joins: that of the control file, then that of the claim, if any.

    Raises `FileNotFoundError` when the store has ended.
    """
    return tuple(_take_lease(path, size, key.uid)[0] for path, size in _files(key, control))


def take_kept(key: names.StoreKey, control: layout.Control) -> list[tuple[segments.Segment, memories.Memory]]:
    """The same, each with a descriptor by which it can be let go of and taken again. Raises `OSError` besides."""
    taken = [_take_lease(path, size, key.uid, keeps=True) for path, size in _files(key, control)]
    return [(mapping, memory) for mapping, memory in taken if memory is not None]


def _files(key: names.StoreKey, control: layout.Control) -> list[tuple[str, int]]:
    files = [(reaper.control_path(key), layout.SIZE)]
    if control.directory != segments.SHM_DIRECTORY:
        files.append((reaper.claim_path(control.directory, key), CLAIM_SIZE))
    return files


def _take_lease(
    path: str, size: int, uid: int, *, keeps: bool = False
) -> tuple[segments.Segment, memories.Memory | None]:
    fd = segments.open_existing(path)
    try:
        flocks.share(fd)
        info = segments.status(fd)
        if info.st_nlink == 0:
            raise FileNotFoundError(path)
        memory = memories.Memory(segments.duplicate(fd), size, info) if keeps else None
        # The mapping ends with this process; the control file is what a last look has to be taken at.
        mapping = lease(fd, size, path if path.endswith(names.CONTROL) else "", uid)
        if memory is not None:
            memory.state = "live"
        return mapping, memory
    finally:
        fd.close()
