"""What is done before there is said to be no more.

Owns: giving back what is kept for the next arrays; removing at once what the guardian would remove a little later; waiting for whoever is
just removing something.
Must not know: how a block is made, what is full.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from shmarray import exhaustion, reaper, reclaim, warm
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
    _remove_unheld(member, names.WARM, names.ANONYMOUS)


def relieve_of_kept(member: Membership) -> int:
    """Give back what other processes of a store keep, and nobody sees; returns how many bytes."""
    directory, kept = member.control.directory, member.key.prefix + names.WARM
    before = exhaustion.used(directory, kept)
    _remove_unheld(member, names.WARM)
    return max(0, before - exhaustion.used(directory, kept))


def _remove_unheld(member: Membership, *kinds: str) -> None:
    """Remove what nobody holds; of these kinds also what somebody has exclusively locked for a moment."""
    try:
        reaper.remove_unheld(member.control.directory, member.key, kept=True)
        for kind in kinds:
            _see_off(member, kind)
    except OSError:
        return  # no descriptor for a look, or a stopped process is at it: what is there counts


def _see_off(member: Membership, kind: str) -> None:
    """Remove the blocks of a kind that nobody holds, after whoever has one exclusively locked."""
    for entry in segments.entries(member.control.directory, member.key.prefix + kind):
        path = os.path.join(member.control.directory, entry)
        fd = reclaim.open_own(path, member.key.uid)
        if fd is not None:
            try:
                flocks.share(fd)
            finally:
                fd.close()
            reaper.remove_if_unheld(path, member.key.uid, kept=True)
