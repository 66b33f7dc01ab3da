"""What is done before there is said to be no more.

Owns: giving back what is kept for the next arrays; removing at once what the guardian would remove a little later; waiting for whoever is
just removing something.
Must not know: how a block is made, what is full.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from shmarray import reaper, reclaim, warm
from shmarray._format import names
from shmarray._os import flocks, segments

if TYPE_CHECKING:
    from shmarray.membership import Membership


def relieve(member: Membership) -> None:
    """Make room in a store for what did not fit; whether that is enough, the next try tells.

    Whoever looks whether a block is held has its exclusive lock for a moment. Its last holder, letting go just then, takes itself for not
    the last, and that one removes it: so what a program has dropped may be there a moment longer.
    """
    warm.trim_all()
    try:
        reaper.remove_unheld(member.control.directory, member.key)
        for entry in segments.entries(member.control.directory, member.key.prefix + names.ANONYMOUS):
            _see_off(os.path.join(member.control.directory, entry), member.key.uid)
    except OSError:
        return  # no descriptor for a look, or a stopped process is at it: what is there counts


def _see_off(path: str, uid: int) -> None:
    """Wait until a block has gone that somebody has exclusively locked."""
    fd = reclaim.open_own(path, uid)
    if fd is not None:
        try:
            if not flocks.try_share(fd):
                flocks.share(fd)
        finally:
            fd.close()
        reaper.last_one_out(path, uid)
