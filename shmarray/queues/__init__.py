"""Queues and pipes, as in `multiprocessing` and `queue`.

Owns: the objects by which processes hand each other values.
Must not know: how blocks live, how a guard survives a death.
"""

from shmarray.queues.kinds import JoinableQueue, LifoQueue, PriorityQueue, Queue, SimpleQueue
from shmarray.queues.pipes import Connection, pipe

__all__ = ["Connection", "JoinableQueue", "LifoQueue", "PriorityQueue", "Queue", "SimpleQueue", "pipe"]
