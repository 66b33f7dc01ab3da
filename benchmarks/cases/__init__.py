"""The questions: what is measured of whom, and what is to be reached.

Owns: the list of cases.
Must not know: rounds, processes of contenders, tables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.cases.attach import Attach
from benchmarks.cases.broadcast import Broadcast
from benchmarks.cases.deaths import Deaths
from benchmarks.cases.get import Get
from benchmarks.cases.handoff import HandOff
from benchmarks.cases.latency import Latency
from benchmarks.cases.lifecycle import Lifecycle
from benchmarks.cases.locks import Locking
from benchmarks.cases.many import Many
from benchmarks.cases.memory import Memory
from benchmarks.cases.put import Put
from benchmarks.cases.results import Results
from benchmarks.cases.scale import Scaling
from benchmarks.cases.startup import Importing, Opening
from benchmarks.cases.stream import Stream
from benchmarks.cases.use import Use

if TYPE_CHECKING:
    from benchmarks.cases.case import Case

CASES: dict[str, type[Case]] = {
    case.name: case
    for case in (
        Lifecycle,
        Put,
        Attach,
        Get,
        Results,
        HandOff,
        Locking,
        Deaths,
        Opening,
        Importing,
        Many,
        Scaling,
        Memory,
        Use,
        Stream,
        Latency,
        Broadcast,
    )
}
