"""ray: objects in the shared memory of a node, given to actors by reference."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import tempfile
from typing import Any, ClassVar

import numpy as np
import ray

from benchmarks.rivals.interface import WORD, Adapter, Array, HandsOff, Puts, Reaches, UnableError

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# A secret for this node alone, which its processes and the peers inherit; else ray makes one and keeps it in the home directory.
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
_STORE = 3 << 30
_CONNECTING = 1 << 17  # more than what ray sends along with a reference
_QUIET = {"log_to_driver": False, "logging_level": logging.ERROR}


class Objects(Adapter, HandsOff, Reaches, Puts):
    """`ray.put`, `ray.get`, and an actor as the worker. A block is a reference; what it stands for is not writable."""

    imports: ClassVar[str] = "import ray"

    def open(self) -> None:
        """Start a node of one's own, on this machine alone; something is put into it, for the first time takes longer."""
        free = os.statvfs("/dev/shm")  # noqa: S108  where it keeps its objects
        if free.f_bavail * free.f_frsize < _STORE:
            raise UnableError(f"there are less than {_STORE >> 30} GiB of shared memory for its store")
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=_STORE,
            _temp_dir=tempfile.gettempdir(),
            _node_ip_address="127.0.0.1",
            **_QUIET,
        )
        ray.put(np.zeros(_CONNECTING, np.int64))

    def close(self) -> None:
        """End the node."""
        ray.shutdown()

    def invitation(self) -> Any:
        """Give the address of the node."""
        return ray.get_runtime_context().gcs_address

    def join(self, invitation: Any) -> None:
        """Connect to the node, once in a process."""
        ray.init(address=invitation, ignore_reinit_error=True, **_QUIET)

    def leave(self) -> None:
        """Disconnect."""
        ray.shutdown()

    def put(self, array: Array) -> Any:
        """Put it."""
        return ray.put(array)

    def cool(self) -> None:
        """Start the node anew: it keeps what was freed."""
        self.close()
        self.open()

    def filled(self, nbytes: int, value: int) -> Any:
        """Put such an array."""
        return ray.put(np.full(nbytes // WORD, value, np.int64))

    def view(self, block: Any) -> Array:
        """Get a reference; an array is an array."""
        array: Array = ray.get(block) if isinstance(block, ray.ObjectRef) else block
        return array

    def free(self, block: Any) -> None:
        """The last reference frees it, some time later."""

    def handle(self, block: Any) -> Any:
        """Pickle the reference."""
        return ray.cloudpickle.dumps(block)

    def attach(self, handle: Any) -> Any:
        """Load the reference, and get it."""
        return ray.get(ray.cloudpickle.loads(handle))

    def drop(self, block: Any) -> None:
        """The last reference lets go."""

    def begin(self, nbytes: int) -> None:
        """Start the actor."""
        self._array: Array = np.ones(nbytes // WORD, np.int64)
        self._worker = ray.remote(_Worker).remote()
        self.mark(0)
        self.trip()

    def mark(self, number: int) -> None:
        """Put another array, untimed: what has been put cannot be changed."""
        self._array[0] = number
        self._block = ray.put(self._array)

    def trip(self) -> int:
        """Let the actor read the first element."""
        return int(ray.get(self._worker.first.remote(self._block)))

    def trip_and_back(self) -> int:
        """Let the actor read it and give the reference back."""
        (block,) = ray.get(self._worker.same.remote([self._block]))
        return int(ray.get(block)[0])

    def end(self) -> None:
        """End the actor."""
        with contextlib.suppress(AttributeError):
            del self._worker
            del self._block


class _Worker:
    def first(self, array: Array) -> int:
        """Read the first element."""
        return int(array[0])

    def same(self, blocks: list[Any]) -> list[Any]:
        """Read the first element of what a reference in a list stands for; give the reference back."""
        ray.get(blocks[0])[0]
        return blocks
