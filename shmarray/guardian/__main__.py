"""First lines of the guardian process: `python -I -S __main__.py CONTROL-FILE UID PID START`.

Owns: getting away from the process that started it, without importing the package's door, which would bring in NumPy.
Must not know: what a guardian does.

Runs as a script. It forks at once and the first process ends, so that the guardian is no child of the user's: nobody has
to wait for it, and `os.wait` in the user's program never sees it.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` adds enums, whose import takes half as long as all that is before it
import os
import sys
import types

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _detach() -> None:
    """Fork; the first process says the guardian's pid on standard output and ends.

    What is meant for the owner's whole group must not end the guardian, not even while it starts; so signals are ignored
    before anyone waits for it.
    """
    for number in (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP):
        _signal.signal(number, _signal.SIG_IGN)
    pid = os.fork()
    if pid:
        os.write(1, b"%d\n" % pid)
        os._exit(0)
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)


def _find_package() -> None:
    """Make the modules of shmarray importable without running its `__init__`."""
    door = types.ModuleType("shmarray")
    door.__path__ = [_PACKAGE]
    sys.modules["shmarray"] = door


if __name__ == "__main__":
    _detach()
    _find_package()
    from shmarray.guardian import watch

    watch.main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
