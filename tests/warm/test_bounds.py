"""How much memory is kept warm, who gives it back, and when."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import numpy as np
import pytest

import shmarray as sa
from shmarray import inspection, warm
from tests.helpers import leaks
from tests.helpers.processes import Child, run_script, wait_until
from tests.limits.small import run_in_small_memory

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20
FILE = MIB + 4096
"""Bytes of the file of an array of one MiB."""


def free(store: sa.Store, count: int, size: int = MIB) -> None:
    """Make arrays of `size` bytes and drop them all at once."""
    arrays = [store.zeros(size, "u1") for _ in range(count)]
    del arrays


def test_small_arrays_are_not_kept() -> None:
    """What costs few pages costs no descriptor either."""
    with sa.Store() as store:
        free(store, 3, MIB // 2)
        assert store.stats().warm == store.stats().nbytes == 0


def test_no_more_is_kept_than_the_bound() -> None:
    """What was freed first goes first; `warm=0` keeps nothing; statistics tell, and so do the files."""
    with sa.Store(warm=3 * FILE) as store:
        free(store, 5)
        assert store.stats().warm == store.stats().nbytes == 3 * FILE
        assert store.stats().anonymous == store.stats().drafts == 0
        free(store, 1, 4 * MIB)
        assert store.stats().warm == 3 * FILE
    with sa.Store(warm=0) as store:
        free(store, 2)
        assert store.stats().warm == store.stats().nbytes == 0


def test_trimming_gives_all_of_it_back() -> None:
    """It says how much; a second time there is nothing; afterwards memory is kept again."""
    with sa.Store() as store:
        free(store, 2)
        assert store.trim() == 2 * FILE
        assert store.trim() == store.stats().nbytes == 0
        free(store, 1)
        assert store.stats().warm == FILE
    with pytest.raises(sa.StoreClosedError):
        store.trim()


@pytest.mark.parametrize(
    ("value", "error"), [(-1, ValueError), (True, TypeError), (1.5, TypeError), ("1 GiB", TypeError)]
)
def test_a_bound_that_is_none_is_refused(value: object, error: type[Exception]) -> None:
    """Before anything is made."""
    before = leaks.shm_entries()
    with pytest.raises(error, match="warm must be"):
        sa.Store(warm=value)  # type: ignore[arg-type]  # that is the point
    assert leaks.shm_entries() == before


def test_by_default_a_share_of_the_memory_or_of_the_capacity_is_kept() -> None:
    """An eighth of the file system, a fourth of the capacity."""
    info = os.statvfs(leaks.SHM)
    with sa.Store() as store:
        pool = store._open().pool
        assert pool.limit == min(info.f_blocks * info.f_frsize // 8, 2 << 30)
    with sa.Store(capacity=40 * MIB) as store:
        pool = store._open().pool
        assert pool.limit == 10 * MIB


@pytest.mark.core
@pytest.mark.parametrize("make", ["zeros", "put"])
def test_a_full_store_is_one_without_warm_memory(make: str) -> None:
    """Before `StoreFullError`, all that is kept is given back; what does not fit then is refused, and all is as before."""
    with sa.Store(capacity=10 * MIB, warm=8 * MIB) as store:
        free(store, 6)
        large = np.ones(9 * MIB, "u1")
        array = store.zeros(9 * MIB, "u1") if make == "zeros" else store.put(large)
        assert store.stats().warm == 0
        with pytest.raises(sa.StoreFullError):
            store.zeros(2 * MIB, "u1")
        del array
        free(store, 9)


FULL = """
import numpy as np
import shmarray as sa
MIB = 1 << 20
with sa.Store(warm=48 * MIB) as store:
    arrays = [store.zeros(MIB, "u1") for _ in range(40)]
    del arrays
    assert store.stats().warm > 39 * MIB, store.stats()
    kind = "KIND"
    big = store.zeros(50 * MIB, "u1") if kind == "zeros" else store.put(np.ones(50 * MIB, "u1"))
    assert store.stats().warm == 0
    try:
        store.zeros(20 * MIB, "u1")
    except sa.StoreFullError:
        print("full", big.nbytes // MIB)
"""


@pytest.mark.parametrize("kind", ["zeros", "put"])
def test_a_full_shared_memory_takes_the_warm_memory_first(kind: str) -> None:
    """On 64 MiB, as in a default container."""
    assert run_in_small_memory(FULL.replace("KIND", kind)).expect() == "full 50\n"


def test_descriptors_of_warm_memory_are_few() -> None:
    """A hundred arrays that could be kept hold no more than `MOST` descriptors, and give them back."""
    before = len(os.listdir("/proc/self/fd"))
    with sa.Store() as store:
        arrays = [store.zeros(MIB, "u1") for _ in range(100)]
        assert len(os.listdir("/proc/self/fd")) - before <= warm.MOST + 2
        del arrays
        assert len(os.listdir("/proc/self/fd")) - before <= warm.MOST + 2
        store.trim()
        assert len(os.listdir("/proc/self/fd")) - before <= 2


def test_what_is_free_is_used_also_when_there_is_no_room_for_more() -> None:
    """As many are free as may be kept: the next array is made of one of them, and one of another size takes the place of one."""
    with sa.Store(warm=4 * warm.MOST * MIB) as store:
        free(store, warm.MOST)
        full = store.stats().warm
        assert full == warm.MOST * FILE
        array = store.zeros(MIB, "u1")
        assert store.stats().warm == full - FILE
        del array
        free(store, 1, 2 * MIB)
        assert store.stats().warm == full + MIB


def test_what_a_worker_keeps_counts_and_goes_with_it() -> None:
    """It gives it back itself as well."""
    with sa.Store("warm-worker") as store:
        source = (
            "import shmarray as sa\nstore = sa.connect('warm-worker')\na = store.zeros(1 << 20, 'u1')\ndel a\n"
            "print(store.stats().warm, store.stats().nbytes, store.trim(), store.stats().warm)\n"
            "a = store.zeros(1 << 20, 'u1')\ndel a\n"
        )
        assert run_script(source).expect() == f"{FILE} {FILE} {FILE} 0\n"
        wait_until(lambda: store.stats().nbytes == 0, 10, "it stays")


def test_a_survey_shows_what_is_kept() -> None:
    """As memory that is warm, with its size and its keeper; of the capacity it is a part."""
    with sa.Store("warm-survey", capacity=32 * MIB) as store:
        free(store, 2)
        array = store.zeros(MIB, "u1")
        (shown,) = [found for found in inspection.survey().stores if found.name == "warm-survey"]
        blocks = {block.state: block for block in shown.blocks}
        assert set(blocks) == {"warm", "live"}
        assert (blocks["warm"].kind, blocks["warm"].file_bytes) == ("memory", FILE)
        assert blocks["warm"].reason is None
        assert shown.bytes == store.stats().nbytes == 2 * FILE
        del array


def test_who_closes_all_descriptors_loses_the_warm_memory_and_nothing_else() -> None:
    """As a program does that makes a daemon of itself: files that get the numbers next are neither locked, written nor closed."""
    assert run_script(CLOSING).expect() == "untouched\n"


CLOSING = """
import os
import numpy as np
import shmarray as sa
with sa.Store() as store:
    free = [store.ones(1 << 18) for _ in range(3)]
    kept = store.ones(1 << 18)
    del free
    os.closerange(3, 100)
    names = ["mine%d" % n for n in range(8)]
    mine = [open(name, "w+b") for name in names]
    for file in mine:
        file.truncate(4 << 20)
    for n in range(4):
        array = store.full(1 << 18, float(n))
        assert (array == n).all()
        del array
    assert (kept == 1).all()
    del kept
    store.trim()
    assert store.check() == [] or store.check(fix=True)
for file in mine:
    file.seek(0)
    assert not file.read().strip(b"\\0")
print("untouched")
"""


def _killed(child: Child) -> None:
    child.kill()


def _ends(child: Child) -> None:
    child.tell()
    child.finish().expect()


@pytest.mark.parametrize("end", [_killed, _ends])
def test_warm_memory_goes_with_the_owner(end: Callable[[Child], None]) -> None:
    """At the end of the process, and on its death by the guardian; descriptors and mappings are gone with it."""
    source = """
import shmarray as sa
from tests.helpers.processes import report
store = sa.Store()
array = store.zeros(1 << 20, "u1")
del array
report("warm", [store.id, store.stats().warm])
input()
"""
    with Child(source) as owner:
        identity, size = owner.wait_for("warm")
        assert size == FILE
        end(owner)
        wait_until(lambda: not [entry for entry in leaks.shm_entries() if identity in entry], message="it stays")


@pytest.mark.core
def test_a_forked_child_holds_nothing_of_what_is_kept() -> None:
    """Neither descriptor nor mapping of it; so giving it back frees it though the child lives on."""
    with sa.Store() as store:
        free(store, 3)
        again = store.zeros(MIB, "u1")  # has a window now
        del again
        said, go = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            found = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_file(fd)]
            with open("/proc/self/maps", encoding="utf-8") as maps:
                found += maps.read().splitlines()
            os.write(said[1], bytes([sum(".w." in text for text in found)]))
            os.read(go[0], 1)
            os._exit(0)
        try:
            assert os.read(said[0], 1) == b"\0"
            assert store.stats().warm == 3 * FILE
            assert store.trim() == 3 * FILE
        finally:
            os.write(go[1], b"!")
            os.waitpid(pid, 0)
            for end in (*said, *go):
                os.close(end)


def _is_file(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}") and os.path.exists(f"/proc/self/fd/{fd}")


def test_no_fork_in_a_storm_of_threads_gives_memory_in_use_away() -> None:
    """Threads make and free arrays while another forks: no child holds memory that is used again, no error, nothing left."""
    done = run_script(STORM, timeout=60)
    assert done.expect() == "calm\n"


STORM = """
import os, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # from 3.12 on, of forks in a program with threads: they are what this is about
import numpy as np
import shmarray as sa
stop = threading.Event()
bad = []
def churn(store, number):
    while not stop.is_set():
        a = store.full(1 << 17, float(number))
        b = store.put(np.full(1 << 17, number + 0.5))
        if not ((a == number).all() and (b == number + 0.5).all()):
            bad.append(number)
if __name__ == "__main__":
    with sa.Store() as store:
        threads = [threading.Thread(target=churn, args=(store, n)) for n in range(3)]
        for thread in threads:
            thread.start()
        mine = store.full(1 << 17, 9.0)
        for n in range(40):
            pid = os.fork()
            if pid == 0:
                os._exit(0 if (mine == 9.0).all() else 1)
            assert os.waitpid(pid, 0)[1] == 0
            mine = store.full(1 << 17, 9.0)
        stop.set()
        for thread in threads:
            thread.join()
        assert not bad, bad
        assert store.check() == []
    print("calm")
"""


def test_interruptions_in_the_midst_of_freeing_leave_nothing() -> None:
    """Ctrl-C, again and again, while arrays are made and freed: what was half-done is removed at the end of the store."""
    with Child(INTERRUPTED) as owner:
        identity = owner.wait_for("ready")
        for _ in range(40):
            owner.wait_for("running")
            os.kill(owner.pid, signal.SIGINT)
            owner.wait_for("interrupted")
        owner.kill(signal.SIGTERM)
        wait_until(lambda: not [entry for entry in leaks.shm_entries() if identity in entry], message="it stays")


INTERRUPTED = """
import sys
import shmarray as sa
from tests.helpers.processes import report
lost = []
sys.unraisablehook = lost.append  # in a callback of the interpreter an interruption is said there, and nowhere else
store = sa.Store()
report("ready", store.id)
while True:
    try:
        report("running")
        while not lost:
            array = store.zeros(1 << 20, "u1")
            del array
    except KeyboardInterrupt:
        pass
    lost.clear()
    store.check(fix=True)
    assert store.check() == []
    report("interrupted")
"""
