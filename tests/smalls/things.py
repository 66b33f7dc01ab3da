"""What the tests of small arrays share.

Owns: values that tell which array they are of, another process that does what it is told, the files of a store as seen from outside.
Must not know: how cells are given out.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from shmarray import cells, stocks
from shmarray._format import names
from tests.helpers import leaks
from tests.helpers.standby import ReadyChild, Standby

if TYPE_CHECKING:
    import shmarray as sa

WORDS = 512
"""Words in an array of 4 KiB, which is what most of these tests make."""
_RAMP = np.arange(1 << 12, dtype=np.uint64) * np.uint64(0x9E37_79B9_7F4A_7C15)
_serials = itertools.count(1)


def pattern(serial: int, words: int = WORDS) -> np.ndarray[Any, Any]:
    """Values of which each tells the serial number of its array, and its place there."""
    return _RAMP[:words] ^ np.uint64(serial * 0xD1B5_4A32_D192_ED03 & 0xFFFF_FFFF_FFFF_FFFF)


def next_serial() -> int:
    """Number of an array that no other one of this run has, in this process."""
    return next(_serials)


def made(store: sa.Store, serial: int, words: int = WORDS) -> Any:
    """Make the array of that number."""
    return store.put(pattern(serial, words))


def is_whole(array: Any, serial: int) -> bool:
    """Say whether an array is the one of that number, to the last byte."""
    return bool((array.view(np.ndarray) == pattern(serial, len(array))).all())


def place_of(array: Any) -> tuple[int, int]:
    """Tell the slab and the cell of an array of this process."""
    view = cells.view_of(array)
    assert view is not None, "it lies in no cell"
    return view.slab.number, view.cell


def ask(store: sa.Store) -> None:
    """Have this process ask, as the maker, who sees the arrays that it has dropped."""
    member = store._open()
    with cells.Here.lock:
        for key, stock in list(stocks._stocks.items()):
            if key[0] == member.key.store:
                stock.ask(member)


def files(store: sa.Store, kind: str = "") -> set[str]:
    """Files of a store but for its control file, as seen from outside; those whose kind that is."""
    prefix = f".{store.id}.{kind}"
    return {entry for entry in leaks.shm_entries() if prefix in entry and not entry.endswith(".ctl")}


def handles(store: sa.Store) -> set[str]:
    """Handles in flight to small arrays, as seen from outside."""
    return {entry for entry in files(store, "h.") if (names.number_of(entry[entry.index(".h.") + 1 :]) or 0) >> 63}


def loading(handle: bytes) -> str:
    """Spell an expression that loads a handle."""
    return f"pickle.loads(bytes.fromhex({handle.hex()!r}))"


_SOURCE = """
import os, pickle, sys
import numpy as np
import shmarray as sa
from tests.helpers.processes import report
from tests.smalls.things import is_whole, made, pattern, place_of
names = dict(globals())
for line in sys.stdin:
    names["said"] = None
    try:
        exec(bytes.fromhex(line).decode(), names)
    except (sa.ShmArrayError, TimeoutError) as error:
        report("error", type(error).__name__)
    else:
        report("done", names["said"])
"""


standby: Standby | None = None
"""The interpreter that stands by, where `conftest.py` has started one."""


class Partner(ReadyChild):
    """Another process that does what it is told, a line of Python at a time; what it binds to `said` is the answer.

    It is no fork of this one.
    """

    def __init__(self) -> None:
        """Start it."""
        assert standby is not None
        super().__init__(standby, _SOURCE)

    def begin(self, text: str) -> None:
        """Tell it what to do, and do not wait."""
        self.tell(text.encode().hex())

    def do(self, text: str) -> Any:
        """Have it do something that must succeed, and give what it said."""
        self.begin(text)
        return self.wait_for("done")

    def fails(self, text: str) -> Any:
        """Have it do something that must fail, and give the name of the error."""
        self.begin(text)
        return self.wait_for("error")
