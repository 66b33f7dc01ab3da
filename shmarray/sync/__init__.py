"""Semaphores, events, conditions and barriers, as in `multiprocessing`.

Owns: the objects by which processes wait for each other. Each is a few words in a block.
Must not know: how blocks live, how a guard survives a death.
"""

from shmarray.sync.barriers import Barrier
from shmarray.sync.conditions import Condition
from shmarray.sync.events import Event
from shmarray.sync.semaphores import BoundedSemaphore, Semaphore

__all__ = ["Barrier", "BoundedSemaphore", "Condition", "Event", "Semaphore"]
