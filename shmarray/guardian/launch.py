"""Starting a guardian, and telling whether it lives.

Owns: the one place where a user's process starts a process.
Must not know: what the guardian does.

The guardian is a fresh interpreter: nothing of the user's process is forked, no `__main__` is imported again, no
descriptor or mapping is inherited, a session of its own keeps Ctrl-C and a kill of the process group away from it.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import TYPE_CHECKING

from shmarray import reaper
from shmarray._format import control as layout
from shmarray._os import flocks, late, processes, segments, words
from shmarray.errors import GuardianWarning

if TYPE_CHECKING:
    from shmarray.membership import Membership

_SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "__main__.py")
_PATIENCE = 30.0


def command(member: Membership) -> list[str]:
    """Command line of the guardian of a store."""
    pid, start, _ = member.control.owner
    path = reaper.control_path(member.key)
    return [sys.executable, "-I", "-S", _SCRIPT, path, str(member.key.uid), str(pid), str(start)]


def launch(member: Membership) -> None:
    """Start the guardian of a store; a `GuardianWarning` where it cannot be started."""
    subprocess = late.load("subprocess")
    try:
        done = subprocess.run(
            command(member),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            check=True,
            timeout=_PATIENCE,
        )
        pid = int(done.stdout)
        member.note_guardian(pid)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        warnings.warn(
            f"the guardian of {member.label} could not be started ({error}); should this process be killed, what it leaves is "
            "removed by the next store or by `python -m shmarray gc`",
            GuardianWarning,
            stacklevel=4,
        )


def guardian_of(member: Membership) -> int | None:
    """Pid of the store's guardian if it is alive: the kernel knows by the mark it holds, or by its command line."""
    path = reaper.control_path(member.key)
    try:
        fd = segments.open_existing(path, write=False)
    except OSError:
        return None  # the store has ended; or there is no descriptor to ask with
    try:
        marked = flocks.is_marked(fd, layout.GUARDIAN_MARK)
        page = segments.read(fd, layout.SIZE, 0)
    finally:
        fd.close()
    pid = int.from_bytes(page[layout.GUARDIAN_AT : layout.GUARDIAN_AT + words.WORD], "little")
    # In its first milliseconds it holds no mark yet.
    return (pid or None) if marked or (pid and path in processes.command(pid)) else None
