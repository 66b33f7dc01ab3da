"""A Ctrl-C that Python notices only where an array ends is not lost: it comes a moment later, out of the program's own code."""

from __future__ import annotations

import textwrap

import pytest

from tests.helpers.processes import run_script

# PyErr_SetInterrupt does what the C part of Python's signal handler does: as the callback of a weak reference it is called from C, between
# two looks for signals. A list lets go of what is last in it first; so the next look is where the array ends.
_SCRIPT = """
import ctypes, pickle, signal, sys, time, weakref
import numpy as np
import shmarray as sa
from tests.helpers.leaks import shm_entries

interrupt = ctypes.pythonapi.PyErr_SetInterrupt
interrupt.argtypes, interrupt.restype = [ctypes.py_object], None

class Trigger:
    pass

def is_told(things):
    trigger = Trigger()
    watch = weakref.ref(trigger, interrupt)
    things.append(trigger)
    del trigger
    end = time.monotonic() + 10
    try:
        things.clear()
        while time.monotonic() < end:
            time.sleep(SLEEP)
    except KeyboardInterrupt:
        return True
    return False

def attached(store, size):
    return pickle.loads(pickle.dumps(store.put(np.ones(size))))

def main():
    with sa.Store() as store, sa.Store(small=0) as plain:
        made = {
            "small": lambda: store.zeros(10), "resting": lambda: store.zeros(1 << 18), "block": lambda: plain.zeros(10),
            "named": lambda: store.zeros(1 << 18, name="named"), "attached": lambda: attached(store, 10),
            "large": lambda: attached(store, 1 << 18), "view": lambda: store.zeros((4, 4))[1:].T,
            "tree": lambda: store.put({"a": np.ones(3)}), "lock": store.Lock, "queue": store.Queue,
        }
        for name, make in made.items():
            for _ in range(3):
                assert is_told([make()]), name
                store.pop("named", None)
        entries = [entry for entry in shm_entries() if f".{plain.id}." in entry and not entry.endswith(".ctl")]
        assert entries == [], entries
    print("told")

if __name__ == "__main__":
    START
    main()
"""


@pytest.mark.core
def test_an_interrupt_that_is_noticed_where_an_array_ends_is_handed_on() -> None:
    """It ends a system call as well; nothing is written to standard error, and what has ended is seen to."""
    script = _SCRIPT.replace("SLEEP", "end - time.monotonic()").replace("START", "pass")
    assert run_script(textwrap.dedent(script), timeout=60).expect() == "told\n"


def test_a_handler_of_the_programs_own_is_called_once_for_each_signal() -> None:
    """What it has raised is raised again, where the program can catch it."""
    start = """    calls = []
    def handler(number, frame):
        calls.append(number)
        raise KeyboardInterrupt
    signal.signal(signal.SIGINT, handler)
"""
    script = (
        _SCRIPT.replace("SLEEP", "0.01")
        .replace("    START\n", start)
        .replace('print("told")', 'print("told", len(calls))')
    )
    assert run_script(textwrap.dedent(script), timeout=60).expect() == "told 30\n"


def test_in_another_thread_an_array_ends_without_a_look_for_signals() -> None:
    """Python looks for them in the main thread alone; so many threads can drop arrays while that one is interrupted."""
    script = """
    import os, signal, sys, threading
    import shmarray as sa

    def toil(store, done):
        while not done.is_set():
            arrays = [store.zeros(10), store.zeros(20_000), store.zeros(1 << 18)]
            del arrays

    def main():
        told = 0
        with sa.Store() as store:
            done = threading.Event()
            threads = [threading.Thread(target=toil, args=(store, done)) for _ in range(3)]
            for thread in threads:
                thread.start()
            for _ in range(40):
                try:
                    for _ in range(20):
                        a = store.zeros(1000)
                        del a
                    os.kill(os.getpid(), signal.SIGINT)
                    threading.Event().wait(10)
                except KeyboardInterrupt:
                    told += 1
            done.set()
            for thread in threads:
                thread.join()
        print(told)

    main()
    """
    assert run_script(textwrap.dedent(script), timeout=60).expect() == "40\n"
