"""vineyard: immutable objects in the shared memory of a server."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import vineyard
from vineyard.deploy.utils import find_vineyardd_path

from benchmarks.rivals.interface import WORD, Array, PipeHandOff, Puts, Reaches, UnableError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

_SIZE = "3Gi"
_PATIENCE = 20.0


class Objects(PipeHandOff, Reaches, Puts):
    """`client.put`, `client.get`, `client.delete`. A block is what `put` gives, an id; what it stands for is not writable."""

    imports: ClassVar[str] = "import vineyard"

    def __init__(self, tag: str) -> None:
        """Begin without a connection."""
        super().__init__(tag)
        self._client: Any = None

    def open(self) -> None:
        """Start a server of one's own, without etcd and without a port, and connect."""
        self._place = tempfile.mkdtemp(prefix="v6d-")
        self._socket = os.path.join(self._place, "socket")
        options = [f"--socket={self._socket}", f"--size={_SIZE}", "--meta=local", "--rpc=false"]
        self._server = subprocess.Popen(
            [find_vineyardd_path() or "vineyardd", *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self._place,
        )
        deadline = time.monotonic() + _PATIENCE
        while True:
            with contextlib.suppress(Exception):  # it is not there yet
                self.join(self._socket)
                return
            if self._server.poll() is not None or time.monotonic() > deadline:
                self._end()
                raise UnableError("its server does not start here")
            time.sleep(0.01)

    def close(self) -> None:
        """Disconnect, end the server."""
        self.leave()
        self._end()

    def _end(self) -> None:
        self._server.terminate()
        try:
            self._server.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
        shutil.rmtree(self._place, ignore_errors=True)

    def invitation(self) -> Any:
        """Give the server's socket."""
        return self._socket

    def join(self, invitation: Any) -> None:
        """Connect."""
        self._client = vineyard.connect(invitation)

    def leave(self) -> None:
        """Disconnect."""
        if self._client is not None:
            self._client.close()

    def put(self, array: Array) -> Any:
        """Put it."""
        return self._client.put(array)

    def cool(self) -> None:
        """Start the server anew: it keeps what was freed."""
        self.close()
        self.open()

    def filled(self, nbytes: int, value: int) -> Any:
        """Put such an array."""
        return self.put(np.full(nbytes // WORD, value, np.int64))

    def view(self, block: Any) -> Array:
        """Get an id; an array is an array."""
        array: Array = self._client.get(block) if isinstance(block, vineyard.ObjectID) else block
        return array

    def free(self, block: Any) -> None:
        """Delete it."""
        self._client.delete(block)

    def handle(self, block: Any) -> Any:
        """Give the id."""
        return block

    def attach(self, handle: Any) -> Any:
        """Get it."""
        return self._client.get(handle)

    def drop(self, block: Any) -> None:
        """The last reference lets go."""

    def resident(self, nbytes: int) -> Any:
        """Make one that is filled; it is put again with each number."""
        self._array: Array = np.ones(nbytes // WORD, np.int64)
        return self.put(self._array)

    def mark(self, number: int) -> None:
        """Put another array, untimed: what has been put cannot be changed."""
        self.free(self._block)
        self._array[0] = number
        self._block = self.put(self._array)

    def element(self, block: Any) -> Array:
        """Get it, if that has not been done."""
        return self.view(block)

    def send(self, pipe: Connection, block: Any) -> None:
        """Send the id."""
        pipe.send(block)

    def receive(self, pipe: Connection) -> Any:
        """Receive an id; `element` gets what it stands for."""
        return pipe.recv()

    def remove(self, block: Any) -> None:
        """Delete it."""
        self.free(block)
