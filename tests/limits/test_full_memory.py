"""Full shared memory: a clear error before a byte is touched, nothing half-made, no SIGBUS, and everything goes on afterwards."""

from __future__ import annotations

import pytest

from tests.limits.small import run_in_small_memory

PRELUDE = """
import gc, multiprocessing, os, pickle, sys, tempfile, time
import numpy as np, shmarray as sa

MiB = 1 << 20

def refused(act, least=0):
    try:
        act()
    except sa.StoreFullError as error:
        assert isinstance(error, MemoryError)
        assert str(error).splitlines()[-1] == error.remedy
        again = pickle.loads(pickle.dumps(error))
        assert (str(again), again.facts) == (str(error), error.facts)
        assert error.asked >= least, error.facts
        return error.with_traceback(None)
    raise AssertionError("there was room")

def fill(path):
    # take all that is left, by a file that is none of ours
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    try:
        while True:
            os.write(fd, b"x" * 4096)
    except OSError:
        os.close(fd)

def files():
    return sorted(name.split(".", 3)[3] for name in os.listdir("/dev/shm") if name.startswith("shmarray."))

def used():
    info = os.statvfs("/dev/shm")
    return (info.f_blocks - info.f_bfree) * info.f_frsize
"""


@pytest.mark.core
def test_asking_for_more_than_there_is_says_what_there_is_and_what_to_do() -> None:
    """On the 64 MiB of a default container: StoreFullError names asked, free, limit, the biggest arrays, and the remedies."""
    script = (
        PRELUDE
        + """
with sa.Store() as store:
    big, small = store.zeros(40 * MiB, "u1", name="models/big"), store.ones(5 * MiB, "u1", name="small")
    held = store.ones(3 * MiB, "u1")
    before = files(), used()
    makers = [
        lambda: store.zeros(30 * MiB, "u1"), lambda: store.zeros(30 * MiB, "u1", name="n"), lambda: store.empty(30 * MiB, "u1"),
        lambda: store.full(30 * MiB, 7, "u1"), lambda: store.put(np.zeros(30 * MiB, "u1")),
        lambda: store.put(np.zeros((8, 4 * MiB), "u1")[:, ::-1]),
        lambda: store.put({"a": np.zeros(15 * MiB, "u1"), "b": [np.zeros(15 * MiB, "u1")]}), lambda: store.zeros_like(big),
        lambda: store.__setitem__("small", np.zeros(30 * MiB, "u1")), lambda: store.__setitem__("new", np.zeros(30 * MiB, "u1")),
    ]
    for act in makers:
        error = refused(act, 30 * MiB)
        assert error.asked < 41 * MiB
        assert 15 * MiB < error.free <= 16 * MiB, error.free
        assert error.limit == 64 * MiB
        names = [name for name, size in error.biggest]
        assert names[:2] == ["models/big", "small"], error.biggest
        assert error.biggest[0][1] >= 40 * MiB
        for word in ("40.0 MiB", "64.0 MiB", "models/big"):
            assert word in str(error), str(error)
        for word in ("--shm-size", "capacity=", "directory="):
            assert word in error.remedy, error.remedy
        del error
        assert (files(), used()) == before, files()
    assert big.sum() == 0 and small.sum() == 5 * MiB and held.sum() == 3 * MiB
    assert store["small"].sum() == 5 * MiB
    assert store.check() == []
    del store["models/big"], big
    gc.collect()
    again = store.full(50 * MiB, 1, "u1", name="again")
    assert again.sum() == 50 * MiB
del again, small, held
gc.collect()
until = time.monotonic() + 10
while used() and time.monotonic() < until:      # the guardian maps the removed control file until it has ended
    time.sleep(0.01)
assert files() == [] and used() == 0, (files(), used())
print("done")
"""
    )
    assert run_in_small_memory(script).expect() == "done\n"


def test_full_to_the_last_page_nobody_gets_a_sigbus() -> None:
    """Filled by small arrays until it refuses, by this store and by others' files: every byte given out can be written."""
    script = (
        PRELUDE
        + """
with sa.Store() as store:
    arrays = []
    while True:
        try:
            arrays.append(store.zeros(1 * MiB - 8192, "u1"))
        except sa.StoreFullError:
            break
    while True:
        try:
            arrays.append(store.zeros(10, name=f"n{len(arrays)}"))
        except sa.StoreFullError:
            break
    assert len(arrays) > 60
    fill("/dev/shm/somebody else's")
    for array in arrays:
        array[...] = 1
    for act in (lambda: store.put(np.ones(5000)), lambda: store.put([np.ones(3)]), lambda: store.__setitem__("x", np.ones(5000))):
        assert refused(act).free <= 8192
    view = pickle.loads(pickle.dumps(arrays[0]))       # a handle takes no memory
    assert len(store) > 1 and store.stats().free <= 8192
    os.unlink("/dev/shm/somebody else's")
    for array in arrays:
        array[...] = 2
    arrays.clear()
    store.clear()
    del array, view
    gc.collect()
    assert store.ones(60 * MiB, "u1").sum() == 60 * MiB
    with multiprocessing.get_context("fork").Pool(2) as pool:
        array = store.ones(20 * MiB, "u1")
        assert pool.map(np.sum, [array, array[:5]]) == [20 * MiB, 5]
print("done")
"""
    )
    assert run_in_small_memory(script).expect() == "done\n"


def test_filling_up_while_others_fill_up_is_an_error_and_no_signal() -> None:
    """Four processes race for the last bytes: each gets an array that it can write, or StoreFullError; the sum is what there is."""
    script = (
        PRELUDE
        + """
def work(store, number):
    made, refusals = [], 0
    rng = np.random.default_rng(number)
    for step in range(150):
        size = int(rng.integers(1, 4 * MiB))
        try:
            array = store.full(size, number, "u1") if step % 3 else store.put(np.full(size, number, "u1"))
        except sa.StoreFullError as error:
            refusals += 1
            if made:
                made.pop(0)
            continue
        made.append(array)
        assert used() <= 64 * MiB
        for each in made[-2:]:
            assert each[0] == each[-1] == number
    assert refusals, "memory was never full"
    return refusals

with sa.Store() as store:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        print(len(pool.starmap(work, [(store, number) for number in range(1, 5)])))
        pool.close()
        pool.join()
    gc.collect()
    assert store.stats().drafts == 0 and len(store) == 0
    assert store.zeros(60 * MiB, "u1").nbytes == 60 * MiB
"""
    )
    assert run_in_small_memory(script).expect() == "4\n"


def test_no_room_for_another_file_is_said_to_be_that() -> None:
    """Where the file system has no inodes left, room for bytes is no help: the error says what is missing; no name stays."""
    script = (
        PRELUDE
        + """
with sa.Store() as store:
    arrays = []
    while True:
        try:
            arrays.append(store.full(3, len(arrays), name=f"n{len(arrays)}" if len(arrays) % 2 else None))
        except sa.StoreFullError as error:
            assert "file" in str(error) or "inode" in str(error), str(error)
            break
    assert 3 < len(arrays) < 20, len(arrays)
    before = files()
    acts = [lambda: store.put(np.ones(3)), lambda: store.put([np.ones(3)]), lambda: store.zeros(3, name="x"),
            lambda: store.__setitem__("n1", np.ones(3)), lambda: store.__setitem__("x", np.ones(3))]
    for act in acts:
        refused(act)
        assert files() == before, files()
    refused(lambda: pickle.dumps(arrays[0]))           # a handle of an anonymous array is a link, which takes an inode here
    refused(lambda: sa.Store())
    assert files() == before, files()
    assert pickle.loads(pickle.dumps(arrays[1]))[0] == 1
    assert [int(array[0]) for array in arrays] == list(range(len(arrays)))
    del store["n1"], arrays[1]
    store["n3"] = np.ones(3)
    assert store["n3"].sum() == 3 and store.check() == []
print(files())
"""
    )
    assert run_in_small_memory(script, "size=64m,nr_inodes=20").expect() == "[]\n"


def test_a_store_that_cannot_even_be_opened_leaves_nothing() -> None:
    """Shared memory full to the last page: `Store()` is StoreFullError, and works when there is room again.

    So is a store in a directory, of which a page is in shared memory: it is no disk that is full then.
    """
    script = (
        PRELUDE
        + """
import tempfile
fill("/dev/shm/filler")
place = tempfile.mkdtemp()
for act in (lambda: sa.Store(), lambda: sa.Store("named"), lambda: sa.Store(capacity=100), lambda: sa.Store(directory=place)):
    error = refused(act, 8192)
    assert error.limit == MiB and error.free < 8192, error.facts
    assert "shared memory is full: asked 8.0 KiB" in str(error) and error.directory == "/dev/shm", error.facts
    del error
    gc.collect()
    assert files() == [], files()
os.rmdir(place)
os.unlink("/dev/shm/filler")
with sa.Store("named") as store:
    store["x"] = np.ones(3)
    assert sa.connect("named")["x"].sum() == 3
print("done")
"""
    )
    assert run_in_small_memory(script, "size=1m").expect() == "done\n"


def test_a_directory_that_is_full_is_said_to_be_that() -> None:
    """A disk without room for the page that proves who uses it: the error names the directory, and nothing is left in shared memory."""
    script = (
        PRELUDE
        + """
import subprocess, tempfile
place = tempfile.mkdtemp()
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", place], check=True)
fill(place + "/filler")
error = refused(lambda: sa.Store(directory=place), 1)
assert str(error).startswith("the disk is full: asked ") and error.directory == place, error.facts
assert error.free < error.asked and error.limit == 64 << 10, error.facts
del error
gc.collect()
print(files(), os.listdir(place))
subprocess.run(["umount", place], check=True)
os.rmdir(place)
"""
    )
    assert run_in_small_memory(script).expect() == "[] ['filler']\n"


def test_the_users_other_directory_is_the_remedy() -> None:
    """What does not fit in 2 MiB of shared memory fits on disk, with `directory=`, as the message says."""
    script = (
        PRELUDE
        + """
import tempfile

def main(folder):
    with sa.Store() as store:
        assert "directory=" in refused(lambda: store.zeros(3 * MiB)).remedy
    with sa.Store(directory=folder) as store:
        array = store.full(3 * MiB, 2, name="x")
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(np.sum, (array[::2],)) == 3 * MiB
            pool.close()
            pool.join()
        assert len(os.listdir(folder)) == 2
    assert os.listdir(folder) == []

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder)
    print(files())
"""
    )
    assert run_in_small_memory(script, "size=2m").expect() == "[]\n"


@pytest.mark.core
def test_memory_that_fills_up_in_the_midst_is_an_error_and_no_signal() -> None:
    """Somebody takes all but some MiB after we have looked how much is free: StoreFullError, and all is given back.

    It is so while threads copy, and while the kernel copies out of a file.
    """
    script = (
        PRELUDE
        + """
import select
from shmarray import exhaustion

look = exhaustion.require

def look_too_early(directory, size):
    look(directory, size)
    info = os.statvfs("/dev/shm")
    fd = os.open("/dev/shm/another", os.O_CREAT | os.O_WRONLY)
    os.posix_fallocate(fd, 0, info.f_bavail * info.f_frsize - LEAVE * MiB)
    os.close(fd)

file = tempfile.NamedTemporaryFile(suffix=".npy")
np.save(file.name, np.ones(20 * MiB, "u1"))
for act, threads in (("put", 2), ("put", 4), ("load", 1)):
    make = (lambda: store.put(np.ones(20 * MiB, "u1"))) if act == "put" else (lambda: store.load(file.name))
    for LEAVE in (1, 10, 15):
        with sa.Store(copy_threads=threads) as store:
            held = store.ones(3 * MiB, "u1")
            before = files(), used()
            exhaustion.require = look_too_early
            try:
                make()
            except sa.StoreFullError as error:
                os.unlink("/dev/shm/another")
                # Its traceback holds all that there was, and the memory is free all the same.
                assert (files(), used()) == before, (files(), used(), before)
            else:
                raise AssertionError("there was room")
            exhaustion.require = look
            gc.collect()
            array = make()
            assert array.sum() == 20 * MiB and held.sum() == 3 * MiB and store.check() == []
            del array, held
            guardian = os.pidfd_open(store.guardian_pid)
        assert select.select([guardian], [], [], 30)[0]  # it maps a page of the store's until it ends
        os.close(guardian)
"""
    )
    run_in_small_memory(script).expect()
