"""A block is a file of shared memory like any other: who knows its name can read its data without this library."""

from __future__ import annotations

import os
import sys
import textwrap
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.helpers.processes import run_command, run_script

pytestmark = pytest.mark.usefixtures("each_in_a_file")

if TYPE_CHECKING:
    import shmarray as sa

ATTACH = """
import sys
from multiprocessing import resource_tracker, shared_memory

untracked = sys.version_info >= (3, 13)
memory = shared_memory.SharedMemory(sys.argv[1], **({"track": False} if untracked else {}))
if not untracked:
    resource_tracker.unregister(memory._name, "shared_memory")   # else its tracker unlinks what is not its own
values = memory.buf[:24].cast("q")
assert values.tolist() == [1, 2, 3], values.tolist()
values[1] = 20
values.release()
memory.close()
"""


@pytest.mark.core
def test_the_standard_librarys_shared_memory_attaches_a_block(memory_store: sa.Store) -> None:
    """`SharedMemory(array.block_name)` finds the data at offset 0, named or anonymous, and what it writes is ours."""
    for name in (None, "named"):
        array = memory_store.put(np.array([1, 2, 3], "i8"), name=name)
        assert array.block_name is not None
        run_script(ATTACH, array.block_name).expect()
        assert array.tolist() == [1, 20, 3]
        assert memory_store.check() == []
    assert memory_store["named"].sum() == 24


def test_any_program_can_read_the_data_at_the_start_of_the_file(store: sa.Store) -> None:
    """`np.memmap`, or `head -c`, of the file gives the array in its own order, whatever its size."""
    model = np.asfortranarray(np.arange(5000, dtype=">i4").reshape(50, 100))
    array = store.put(model)
    path = os.path.join(store.stats().directory, str(array.block_name))
    mapped = np.memmap(path, ">i4", "r+", shape=model.shape, order="F")
    np.testing.assert_array_equal(mapped, model)
    mapped[7, 9] = -1
    mapped.flush()
    assert array[7, 9] == -1
    del mapped
    done = run_command([sys.executable, "-c", f"import sys; sys.stdout.write(open({path!r}, 'rb').read(8).hex())"])
    assert done.expect() == array.T.ravel()[:2].tobytes().hex()


def test_a_block_belongs_to_its_user_alone(store: sa.Store) -> None:
    """No other user may read or write any file of a store."""
    anonymous, named = store.zeros(3), store.zeros(3, name="x")
    directory = store.stats().directory
    entries = [name for name in os.listdir(directory) if store.id in name]
    assert {anonymous.block_name, named.block_name} < set(entries)
    for entry in entries:
        info = os.lstat(os.path.join(directory, entry))
        assert (info.st_mode & 0o777, info.st_uid) == (0o600, os.geteuid())


@pytest.mark.core
def test_the_resource_tracker_of_multiprocessing_is_not_involved() -> None:
    """Neither creating nor attaching starts a tracker or tells one: nobody else unlinks, nobody warns of leaks."""
    script = """
    import os, pickle
    import numpy as np, shmarray as sa
    from multiprocessing import resource_tracker
    with sa.Store() as store:
        store["x"] = np.ones(3)
        pickle.loads(pickle.dumps(store.zeros(3)))
        assert resource_tracker._resource_tracker._pid is None
        children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
        assert children == [], children        # the guardian is nobody's child
    """
    run_script(textwrap.dedent(script)).expect()
