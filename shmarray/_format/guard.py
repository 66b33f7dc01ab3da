"""The guard of a block: the room behind the state word of its header.

Owns: where mutex, holder, poison and the table of readers lie, as offsets from the guard's beginning.
Must not know: how a mutex works.

    0    kind: 1 robust mutex, 2 semaphore
    8    the mutex or semaphore, 64 bytes
    72   holder: pid of the process that has exclusive access now, 0 if nobody; written after the lock is taken and the
         readers have gone, cleared before it is let go: what is found here after a death was left half-done
    80   since: when that was, nanoseconds since the epoch
    88   poison: pid of a holder that died, 0 if the data are sound
    96   when that was found out
    104  turn (32 bits): changes whenever a reader leaves while a writer waits
    108  draining (32 bits): 1 while a writer waits for readers to leave
    112  table of readers, 16 bits for each slot: 0, or the epoch of the process that reads
"""

from __future__ import annotations

import struct

from shmarray._format.header import GUARD_SIZE

ROBUST, PLAIN = 1, 2
KIND, LOCK, HOLDER, SINCE, POISON, POISONED_AT, TURN, DRAINING, TABLE = 0, 8, 72, 80, 88, 96, 104, 108, 112
SLOTS = (GUARD_SIZE - TABLE) // 2
NO_READERS = bytes(2 * SLOTS)


def pack(kind: int, lock: bytes) -> bytes:
    """Lay out a guard that nobody holds, from the bytes of a fresh mutex or semaphore."""
    return (struct.pack("<Q", kind) + lock).ljust(GUARD_SIZE, b"\0")


def epoch_word(epoch: int) -> int:
    """What a reader writes into the table: its slot's epoch in 16 bits, never 0."""
    return epoch % 0xFFFF + 1
