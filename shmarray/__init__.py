"""Named NumPy arrays that several processes share without copying, freed exactly once whoever is killed.

    import numpy as np, shmarray as sa
    with sa.Store() as store:
        frames = store.put(np.zeros((100, 480, 640)), name="frames")   # pass it to any process: it travels as a handle

The floors, top down; a module imports only from floors below it (`docs/design.md`):

    cli, demo       python -m shmarray
    inspection      what all stores of a user hold, who holds it
    store, settings   Store, connect; what a user may say of a new store
    census          names, statistics and self-check of a store
    hosting         custom types, pools and managers in a process of their own
    guardian        the process that cleans up after a killed owner
    vocabulary, filing, streaming, constructors   multiprocessing's names, files, channels, NumPy's constructors as methods of a store
    loading, saving, rawdata   NumPy's files and raw ones; loaded when first used
    progress, streams   a bar in a terminal; reading exactly so many bytes
    references      names for shared objects
    managed         dicts, lists, namespaces
    channels, queues   streams of arrays; queues and pipes
    memory, sync, values   what else multiprocessing has; all of these are loaded when first used
    keepers         shared objects that keep others
    objects         shared objects that are not arrays: their base
    trees, making, arrays, wholes, computing   SharedTree, SharedArray, their handles, what is computed from them
    locks, cellguards, guards, guardwords   exclusive and shared access that survives its holder
    contents, smalls   what a block holds, in NumPy's terms; small arrays
    deletion, stocks, cells   ends on request; small arrays in cells of larger blocks
    cellviews, slabs, sightings, slabmaps   those blocks, and who sees what in them
    drafts, resting, slabwords   a block in the making; one that waits for its next array; the words of a slab
    blocks, attachments   one block from birth to unlink; what this process has attached
    idling          mappings that stay where nobody looks at them
    recycling, shortage   memory that others than the owner keep; what is done before there is said to be no more
    warm            memory of freed blocks that is used again
    keeping, copying, blockfiles   handles; large copies; the file of a block
    founding, seats, joining   opening a store; seats in slabs; coming to take part in one
    membership, absences   taking part; having left, and coming back
    leasing, reserves   its lease; what is kept to be used again
    controls, memories   reading any control file; a file that may be used again
    exhaustion      what to say when there is no more
    shields, scopes   keeping the cycle collector from a mapping; managers of blocks that are taken for what they give
    reaper, slabfiles   who may remove which name, on what proof
    reclaim, roots  memory of what was removed; what all views stand on
    _format         bytes and records, pure
    _os             the kernel
    errors          every error
"""

from __future__ import annotations

import sys
from threading import BrokenBarrierError

if sys.platform != "linux":
    _MESSAGE = f"shmarray runs on Linux, and this is {sys.platform}: its promises rest on Linux's kernel (flock, O_TMPFILE, pidfd)"
    raise ImportError(_MESSAGE)

from shmarray.arrays import SharedArray
from shmarray.errors import (
    ArrayExistsError,
    ArrayNameError,
    ArrayNotFoundError,
    ChannelClosedError,
    CorruptBlockError,
    DTypeError,
    FileFormatError,
    GuardError,
    GuardianWarning,
    GuardTimeoutError,
    HostError,
    LostTaskError,
    PoisonedError,
    ShapeError,
    ShmArrayError,
    StoreClosedError,
    StoreExistsError,
    StoreFullError,
    StoreNotFoundError,
)
from shmarray.store import Store, connect
from shmarray.trees import SharedTree

__version__ = "0.1.0"

__all__ = [
    "ArrayExistsError",
    "ArrayNameError",
    "ArrayNotFoundError",
    "BrokenBarrierError",
    "ChannelClosedError",
    "CorruptBlockError",
    "DTypeError",
    "FileFormatError",
    "GuardError",
    "GuardTimeoutError",
    "GuardianWarning",
    "HostError",
    "LostTaskError",
    "PoisonedError",
    "ShapeError",
    "SharedArray",
    "SharedTree",
    "ShmArrayError",
    "Store",
    "StoreClosedError",
    "StoreExistsError",
    "StoreFullError",
    "StoreNotFoundError",
    "__version__",
    "connect",
]
