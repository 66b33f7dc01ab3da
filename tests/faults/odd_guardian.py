"""A guardian in a world that is not as usual: `python -I -S odd_guardian.py TWIST MAIN ARGUMENTS...`.

Owns: running the guardian's main script with its clock or its patience changed.
Must not know: what is expected of it then.
"""

from __future__ import annotations

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


if __name__ == "__main__":
    twist, script = sys.argv[1:3]
    package = types.ModuleType("shmarray")  # as the script itself does it
    package.__path__ = [os.path.dirname(os.path.dirname(script))]
    sys.modules["shmarray"] = package
    {"held up": held_up, "never looks": never_looks}[twist]()
    sys.argv = sys.argv[2:]
    runpy.run_path(script, run_name="__main__")
