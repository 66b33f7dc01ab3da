"""Who has access to a block, as its guard says it in the file, and as the kernel confirms it.

Owns: reading a guard without mapping it (a file that is cut off meanwhile would be SIGBUS), which of its readers live, and what proves
that a holder is gone.
Must not know: who waits (`holders`).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from shmarray._format import control as layout
from shmarray._format import guard as form
from shmarray._format import header
from shmarray._os import flocks, processes, segments
from shmarray.inspection.records import Guard, Poison, Process

if TYPE_CHECKING:
    from collections.abc import Collection

_KINDS = {form.ROBUST: "robust", form.PLAIN: "multiprocessing"}
_DIED = 0x4000_0000  # what the kernel writes into the word of a robust mutex whose holder ended: FUTEX_OWNER_DIED
_MOST_PIDS = 1 << 22
_TRIES = 3


class _Words(NamedTuple):
    """The words of a guard, as they were read."""

    kind: int
    died: bool
    holder: int
    since: int
    poison: int
    poisoned_at: int
    table: bytes


class Accesses:
    """Reads the guards of one store."""

    def __init__(self, control: str | None, *, elsewhere: bool) -> None:
        """Ask the control file, if there is one, who reads; `elsewhere`: pids are those of another pid namespace."""
        self._control = control
        self._elsewhere = elsewhere

    def of(
        self, fd: segments.Descriptor, size: int, holders: Collection[int], waiters: tuple[int, ...] | None
    ) -> Guard | None:
        """Describe the guard of an open block of `size` bytes, which the processes `holders` map; None if it has no guard."""
        words = _read(fd, size)
        if words is None:
            return None
        holder = self._holder(words, holders) if _is_pid(words.holder) else None
        return Guard(
            kind=_KINDS[words.kind],
            holder=holder,
            since=words.since / 1e9 if holder else None,
            readers=self._readers(words.table),
            waiters=waiters,
            poisoned=Poison(words.poison, words.poisoned_at / 1e9) if _is_pid(words.poison) else None,
        )

    def _holder(self, words: _Words, holders: Collection[int]) -> Process:
        """Judge whether the holder lives: dead by the kernel's word, alive if it maps the block; else nobody knows."""
        pid = words.holder
        if words.died:
            return Process(pid, alive=False)
        if pid in holders:
            return Process(pid, alive=True)
        # A semaphore does not know its holder, so its process has to be asked for. When it started was not written down:
        # one that has the pid now may be another, and proves nothing.
        now = processes.Identity(pid, processes.start_time(pid), processes.pid_namespace())
        gone = words.kind == form.PLAIN and not self._elsewhere and processes.is_provably_gone(now)
        return Process(pid, alive=False if gone else None)

    def _readers(self, table: bytes) -> int | None:
        """Count the entries whose process the kernel vouches for; None if it cannot be asked."""
        entries = {slot: entry for slot, entry in enumerate(struct.unpack(f"<{form.SLOTS}H", table)) if entry}
        if not entries:
            return 0
        if self._control is None:
            return None
        try:
            fd = segments.open_existing(self._control, write=False)
        except OSError:
            return None
        try:
            epochs = struct.unpack_from(f"<{layout.SLOTS}Q", segments.read(fd, layout.SIZE, 0), layout.EPOCHS_AT)
            alive = [slot for slot in entries if flocks.is_marked(fd, layout.SLOT_MARK + slot)]
            return sum(bool(form.epoch_word(epochs[slot]) == entries[slot]) for slot in alive)
        except (OSError, struct.error):
            return None  # it was damaged meanwhile
        finally:
            fd.close()


def _is_pid(number: int) -> bool:
    return 0 < number <= _MOST_PIDS


def _read(fd: segments.Descriptor, size: int) -> _Words | None:
    """Read the words; a death is believed if two readings tell it, for one is not of one moment."""
    before = None
    for _ in range(_TRIES):
        room = segments.read(fd, header.GUARD_SIZE, size - header.SIZE + header.GUARD_AT)
        if len(room) != header.GUARD_SIZE:
            return None
        words = _unpack(room)
        if words.kind not in _KINDS:
            return None
        if not words.died or (before is not None and before.holder == words.holder):
            return words
        before = words
    return words._replace(died=False)


def _unpack(room: bytes) -> _Words:
    kind, word = struct.unpack_from("<Q", room, form.KIND)[0], struct.unpack_from("<I", room, form.LOCK)[0]
    holder, since, poison, poisoned_at = struct.unpack_from("<4Q", room, form.HOLDER)
    died = kind == form.ROBUST and bool(word & _DIED)
    return _Words(kind, died, holder, since, poison, poisoned_at, room[form.TABLE :])
