"""What all stores of a user hold, and who holds it, seen from outside.

Owns: the records of a survey (`records`), making one (`survey`, `reading`), which process maps which file and who waits (`holders`),
who has access (`access`), what goes through a channel (`channels`), which handles lie where (`links`), and the one removal that
`reaper` leaves to us: blocks whose control file is gone (`orphans`).
Must not know: how anything is shown; how blocks are made.

A survey takes part in nothing and changes nothing: files are opened for reading, and a kernel lock is asked for, for a
moment, only where no process is seen to map the file.
"""

from __future__ import annotations

from shmarray.inspection.orphans import remove_orphan
from shmarray.inspection.records import POISONABLE, Block, Channel, Guard, Item, Poison, Process, Store, Stray, Survey
from shmarray.inspection.survey import survey

__all__ = [
    "POISONABLE",
    "Block",
    "Channel",
    "Guard",
    "Item",
    "Poison",
    "Process",
    "Store",
    "Stray",
    "Survey",
    "remove_orphan",
    "survey",
]
