"""A guardian in a world that is not as usual: `python -I -S odd_guardian.py TWIST MAIN ARGUMENTS...`.

Owns: running the guardian's main script with its clock, its patience or its luck changed.
Must not know: what is expected of it then.
"""

from __future__ import annotations

import errno
import os
import runpy
import sys
import time
import types


def held_up() -> None:
    """Whatever it does between two looks at the clock has taken a thousand seconds, as on a machine that stood still."""
    from shmarray.guardian import watch

    hours = iter(range(0, sys.maxsize, 1000))
    vars(watch)["time"] = types.SimpleNamespace(monotonic=hours.__next__, thread_time=time.thread_time)


def never_looks() -> None:
    """When nothing is reported it waits for days."""
    from shmarray.guardian import watch

    watch._LOOK = 1e6


def always_rests() -> None:
    """After a report it waits for days, lest there be more to answer by one sweep."""
    from shmarray.guardian import watch

    watch._REST = 1e6


def has_no_door_at_first() -> None:
    """When it first opens its door there is no descriptor left."""
    from shmarray.guardian import server

    usual = server.GuardianServer

    def refuse(*_: object) -> None:
        vars(server)["GuardianServer"] = usual
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    vars(server)["GuardianServer"] = refuse


if __name__ == "__main__":
    twist, script = sys.argv[1:3]
    package = types.ModuleType("shmarray")  # as the script itself does it
    package.__path__ = [os.path.dirname(os.path.dirname(script))]
    sys.modules["shmarray"] = package
    globals()[twist.replace(" ", "_")]()
    sys.argv = sys.argv[2:]
    runpy.run_path(script, run_name="__main__")
