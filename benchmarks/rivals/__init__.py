"""The contenders: one adapter for each way to share arrays between processes.

Owns: the list of them. An adapter's module is imported only in the process that runs it, so that what is not installed is
skipped, and no rival's import weighs on another.
Must not know: what is measured.

To add one: write a module with a class that derives from `Adapter` and from those of `interface`'s abilities that it has,
enter it here, and name it in the cases that should measure it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

if TYPE_CHECKING:
    from benchmarks.rivals.interface import Adapter

Kind = Literal["ours", "rival", "limit"]


class Rival(NamedTuple):
    """A contender: `name` is what tables call it; `requires` are the distributions it needs beyond the standard library and NumPy.

    A *limit* keeps no promise: it is what the machine can do from Python.
    """

    name: str
    kind: Kind
    module: str
    adapter: str
    requires: tuple[str, ...] = ()


RIVALS = {
    rival.name: rival
    for rival in (
        Rival("shmarray", "ours", "ours", "Named"),
        Rival("shmarray, looked up by name", "ours", "ours", "LookedUp"),
        Rival("shmarray, anonymous", "ours", "ours", "Anonymous"),
        Rival("shmarray, attached each time", "ours", "ours", "AttachedEachTime"),
        Rival("10 arrays held", "ours", "ours_crowded", "Crowded"),
        Rival("1,000 arrays held", "ours", "ours_crowded", "Thousand"),
        Rival("10,000 arrays held", "ours", "ours_crowded", "TenThousand"),
        Rival("SharedMemory", "rival", "stdlib", "ByHand"),
        Rival("SharedMemory, mapping kept", "rival", "stdlib", "MappingKept"),
        Rival("SharedMemoryManager", "rival", "manager", "Managed"),
        Rival("pickle over a Pipe", "rival", "pickling", "Pickled"),
        Rival("joblib", "rival", "joblib_memmap", "Joblib", ("joblib",)),
        Rival("SharedArray", "rival", "sharedarray_module", "SharedArrays", ("SharedArray",)),
        Rival("shared-ndarray2", "rival", "shared_ndarray2_module", "SharedNDArrays", ("shared-ndarray2",)),
        Rival("pyarrow", "rival", "pyarrow_files", "Tensors", ("pyarrow",)),
        Rival("torch", "rival", "torch_tensors", "Tensors", ("torch",)),
        Rival("ray", "rival", "ray_objects", "Objects", ("ray",)),
        Rival("vineyard", "rival", "vineyard_objects", "Objects", ("vineyard",)),
        Rival("dask", "rival", "dask_cluster", "Scattered", ("distributed",)),
        Rival("lock of an array", "ours", "locking", "Ours"),
        Rival("write() of an array", "ours", "locking", "Write"),
        Rival("read() of an array, a writer waits", "ours", "locking", "Read"),
        Rival("multiprocessing.Lock", "rival", "locking", "OfMultiprocessing"),
        Rival("Manager().Lock", "rival", "locking", "OfManager"),
        Rival("portalocker", "rival", "portalocker_file", "PortaLocker", ("portalocker",)),
        Rival("filelock", "rival", "filelock_file", "FileLock", ("filelock",)),
        Rival("UltraDict", "rival", "ultradict_lock", "Ultra", ("UltraDict", "atomics")),
        Rival("a channel", "ours", "ours_channel", "Channel"),
        Rival("a channel, spin=1e-3", "ours", "ours_channel", "Spinning"),
        Rival("multiprocessing.Queue", "rival", "queues", "Queue"),
        Rival("Pipe, bytes into a buffer", "rival", "queues", "Pipe"),
        Rival("faster-fifo", "rival", "faster_fifo_queue", "FasterFifo", ("faster-fifo",)),
        Rival("pyzmq", "rival", "pyzmq_sockets", "Sockets", ("pyzmq",)),
        Rival("iceoryx2, polling", "rival", "iceoryx2_services", "Polling", ("iceoryx2",)),
        Rival("iceoryx2, event", "rival", "iceoryx2_services", "Event", ("iceoryx2",)),
        Rival("slots and two semaphores", "limit", "queues", "Semaphores"),
        Rival("filling one slot, nobody reads", "limit", "queues", "OverOne"),
        Rival("filling two slots, nobody reads", "limit", "queues", "OverTwo"),
        Rival("filling all slots, nobody reads", "limit", "queues", "OverAll"),
        Rival("open + mmap by hand", "limit", "files", "OpenAndMap"),
        Rival("np.copyto into faulted memory", "limit", "copying", "CopyTo"),
        Rival("np.copyto in two threads", "limit", "copying", "CopyInTwoThreads"),
        Rival("sum of faulted memory", "limit", "copying", "Summed"),
        Rival("200 bytes over the same Pipe", "limit", "messages", "Message"),
        Rival("200 bytes by send_bytes", "limit", "messages", "Bare"),
        Rival("one array, nobody else reads it", "limit", "pickling", "Unread"),
        Rival("a plain ndarray", "limit", "copying", "CopyTo"),
        Rival("numpy alone", "limit", "bare", "NumPyAlone"),
        Rival("a bare Python process", "limit", "bare", "BarePython"),
    )
}


def load(rival: Rival) -> type[Adapter]:
    """Import the adapter of a contender; raises `ImportError` where something it needs is not there."""
    module = importlib.import_module(f"{__name__}.{rival.module}")
    return cast("type[Adapter]", getattr(module, rival.adapter))
