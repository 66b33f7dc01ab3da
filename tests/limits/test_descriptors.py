"""No free descriptor, no address space: a clear error, nothing lost, and everything is caught up with afterwards."""

from __future__ import annotations

import pytest

from tests.helpers.processes import run_script

PRELUDE = """
import gc, os, pickle, resource, sys
import numpy as np, shmarray as sa

def use_up():
    taken = []
    while True:
        try:
            taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            return taken

def give_back(taken):
    while taken:
        os.close(taken.pop())

def files(store):
    return sorted(name.partition(f".{store.id}.")[2] for name in os.listdir("/dev/shm") if f".{store.id}." in name)
"""


@pytest.mark.core
def test_without_a_descriptor_every_operation_says_so() -> None:
    """What needs one raises StoreFullError with limit and remedy; what needs none works; nothing is half-done."""
    script = (
        PRELUDE
        + """
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
store = sa.Store("limits descriptors")
a, b, c, t = store.zeros(3, name="a"), store.zeros(3), store.zeros(3, name="c"), store.put({"x": [np.ones(3)]}, name="t")
store["d"] = np.ones(3)
handles = [pickle.dumps(each) for each in (a, store["d"], b, t, t["x"][0], store)]
before = files(store)
need = {
    "zeros": lambda: store.zeros(3), "named": lambda: store.zeros(3, name="n"), "put": lambda: store.put(np.ones(3)),
    "tree": lambda: store.put([1, np.ones(2)]), "set": lambda: store.__setitem__("a", np.ones(3)), "get": lambda: store["d"],
    "get missing": lambda: store["nothing"], "del": lambda: store.__delitem__("d"), "pop": lambda: store.pop("d"),
    "len": lambda: len(store), "list": lambda: list(store), "items": lambda: dict(store), "stats": store.stats,
    "check": store.check, "fix": lambda: store.check(fix=True), "release": store.release_unclaimed, "clear": store.clear,
    "unlink": c.unlink, "unlink anonymous": b.unlink, "scope": lambda: c.__exit__(None, None, None), "tree unlink": t.unlink,
    "load": lambda: pickle.loads(handles[1]), "Store": sa.Store, "named Store": lambda: sa.Store("limits other"),
    "connect": lambda: sa.connect("limits descriptors"), "setdefault": lambda: store.setdefault("d", np.ones(1)),
}
free = {
    "in": lambda: "a" in store, "repr": lambda: repr(store), "closed": lambda: store.closed, "dumps": lambda: pickle.dumps(a),
    "dumps anonymous": lambda: pickle.loads(pickle.dumps(b)), "load attached": lambda: pickle.loads(handles[0]),
    "load tree": lambda: pickle.loads(handles[3]), "load store": lambda: pickle.loads(handles[5]), "store": lambda: store.name,
    "read": lambda: a.sum(), "slice": lambda: a[1:] + 1, "leaf": lambda: t["x"][0].sum(), "guardian": lambda: store.guardian_pid,
}
taken = use_up()
said = {}
for name, act in need.items():
    try:
        act()
    except sa.StoreFullError as error:
        said[name] = (error.limit, error.free, "ulimit -n" in error.remedy, isinstance(error, MemoryError))
    except BaseException as error:
        said[name] = repr(error)
    else:
        said[name] = "no error"
worked = {}
for name, act in free.items():
    try:
        act()
    except BaseException as error:
        worked[name] = repr(error)
give_back(taken)
wrong = {name: what for name, what in said.items() if what != (64, 0, True, True)}
assert not wrong, wrong
assert not worked, worked
assert files(store) == before, (before, files(store))
assert store["d"].sum() == 3 and len(store) == 4 and store.check() == []
c.unlink(); b.unlink()
del store["d"]
store.close()
assert files(store) == []
print("done")
"""
    )
    assert run_script(script).expect() == "done\n"


def test_arrays_dropped_without_a_descriptor_are_freed_later() -> None:
    """Dropping never fails: what could not be looked at then is removed by the next creation, or by the guardian."""
    script = (
        PRELUDE
        + """
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
with sa.Store() as store:
    arrays = [store.zeros(1000) for _ in range(50)]
    taken = use_up()
    arrays.clear()
    gc.collect()
    give_back(taken)
    kept = store.ones(3)
    assert store.stats().anonymous == 1, store.stats()
    assert store.check() == []
print("done")
"""
    )
    assert run_script(script).expect() == "done\n"


def test_a_store_can_be_closed_without_a_descriptor() -> None:
    """`close()` ends the store or says StoreFullError, and a second one finishes it; its end is never lost."""
    script = (
        PRELUDE
        + """
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
for name in (None, "limits closing"):
    store = sa.Store(name)
    held, named = store.ones(3), store.ones(3, name="n")
    taken = use_up()
    try:
        store.close()
    except sa.StoreFullError as error:
        assert error.remedy
        del error
    assert store.closed
    try:
        store.zeros(3)
    except sa.StoreClosedError:
        pass
    give_back(taken)
    store.close()
    assert held.sum() == named.sum() == 3
    assert files(store) == [], files(store)
    with sa.Store("limits closing") as again:
        again["x"] = held

store = sa.Store()
left = store.ones(3, name="left")
taken = use_up()                  # and the process ends like that
print("done")
"""
    )
    assert run_script(script).expect() == "done\n"


def test_a_worker_without_a_descriptor_gets_a_clear_error() -> None:
    """Loading a handle in a process that has not joined the store: StoreFullError, and the handle is not lost by it."""
    script = (
        PRELUDE
        + """
import subprocess
with sa.Store() as store:
    array = store.put(np.arange(3))
    handles = pickle.dumps([pickle.dumps(each) for each in (array, store, store.put([array]))])
    assert store.stats().in_flight == 2
    worker = '''
import os, pickle, resource, sys
import numpy as np, shmarray as sa
handles = pickle.load(sys.stdin.buffer)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
taken = []
try:
    while True: taken.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
for handle in handles:
    try:
        pickle.loads(handle)
    except sa.StoreFullError as error:
        assert "descriptor" in str(error)
    else:
        raise AssertionError("loaded without a descriptor")
for fd in taken:
    os.close(fd)
loaded = [pickle.loads(handle) for handle in handles]
assert loaded[0].sum() == 3 and loaded[2][0].sum() == 3
'''
    subprocess.run([sys.executable, "-c", worker], input=handles, check=True)
    assert store.stats().in_flight == 0
print("done")
"""
    )
    assert run_script(script).expect() == "done\n"


def test_no_address_space_is_a_clear_error() -> None:
    """Under RLIMIT_AS: making and attaching say StoreFullError, nothing is left, and what is held goes on."""
    script = (
        PRELUDE
        + """
with sa.Store() as store:
    kept, anonymous = store.ones(10, name="kept"), store.ones(10)
    store["big"] = np.zeros(20 << 20, "u1")
    handle = pickle.dumps(store["big"])
    gc.collect()
    store.trim()  # else it is mapped, and attaching it takes no room
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    size = int(lines["VmSize"].split()[0]) << 10
    before = files(store)
    resource.setrlimit(resource.RLIMIT_AS, (size + (8 << 20), resource.RLIM_INFINITY))
    source = np.lib.stride_tricks.as_strided(np.zeros(1, "u1"), (20 << 20,), (0,))
    acts = [
        lambda: store.zeros(20 << 20, "u1"), lambda: store.zeros(20 << 20, "u1", name="n"), lambda: store["big"],
        lambda: pickle.loads(handle), lambda: store.full(3 << 20, 1.5), lambda: store.put(source),
        lambda: store.__setitem__("kept", source),
    ]
    for act in acts:
        try:
            act()
        except sa.StoreFullError as error:
            assert "map" in str(error) and error.remedy, str(error)
        else:
            raise AssertionError("there was room")
        gc.collect()
        assert files(store) == before, files(store)
    assert kept.sum() == anonymous.sum() == 10 and store["kept"].sum() == 10
    assert store.full(100, 2).sum() == 200
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert store["big"].sum() == 0 and store.zeros(20 << 20, "u1").sum() == 0
    assert store.check() == []
print("done")
"""
    )
    assert run_script(script, env={"OPENBLAS_NUM_THREADS": "1"}).expect() == "done\n"


def test_no_more_mappings_is_a_clear_error() -> None:
    """When the kernel's limit of mappings is reached: StoreFullError that names it, nothing lost, and room again when some go."""
    script = (
        PRELUDE
        + """
import ctypes, mmap
limit = int(open("/proc/sys/vm/max_map_count").read())
if limit > 70000:
    print("done")
    raise SystemExit
with sa.Store() as store:
    kept = store.ones(3)
    page = mmap.mmap(-1, 2 * limit * mmap.PAGESIZE)
    libc = ctypes.CDLL(None)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    address = np.frombuffer(page, "u1").__array_interface__["data"][0]
    at = 0
    while libc.mprotect(address + at, mmap.PAGESIZE, 1) == 0:
        at += 2 * mmap.PAGESIZE
    before = files(store)
    failed, held = 0, []
    for number in range(20):
        try:
            held.append(store.zeros(3, name=f"n{number}"))
        except sa.StoreFullError as error:
            assert str(limit) in str(error) and "max_map_count" in error.remedy, str(error)
            failed += 1
    assert failed
    assert kept.sum() == 3
    libc.mprotect(address, 2 * limit * mmap.PAGESIZE, 3)
    store["after"] = kept
    assert store.check() == []
print("done")
"""
    )
    assert run_script(script).expect() == "done\n"
