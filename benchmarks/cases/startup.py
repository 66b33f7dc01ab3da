"""What it costs to begin: the import, and opening a store."""

from __future__ import annotations

import os
import subprocess
import sys
from time import perf_counter
from typing import TYPE_CHECKING, ClassVar

from benchmarks.cases.case import Case, Samples
from benchmarks.measure import Aim, Measure
from benchmarks.rivals.interface import Adapter

if TYPE_CHECKING:
    from benchmarks.measure import Scale

_PROGRAM = """
from time import perf_counter
start = perf_counter()
import numpy
middle = perf_counter()
{}
end = perf_counter()
print(middle - start, end - start)
"""


class Importing(Case):
    """Import in a fresh interpreter, timed inside of it; files are in the page cache, and compiled, as those of a wheel are."""

    name: ClassVar[str] = "import"
    question: ClassVar[str] = "import it, in a fresh interpreter"
    rivals: ClassVar[tuple[str, ...]] = ("shmarray", "SharedMemory", "SharedMemoryManager", "joblib", "numpy alone")
    aims: ClassVar[tuple[Aim, ...]] = (Aim("with", "shmarray", "beyond", 25e-3, "numpy alone"),)

    @staticmethod
    def measures(scale: Scale) -> list[Measure]:
        """Give the import with numpy's, and without."""
        del scale
        return [Measure("with", "numpy included"), Measure("after", "numpy imported before")]

    def set_up(self) -> None:
        """Nothing is needed: a round that is not counted brings the files into the page cache."""

    def round(self) -> Samples:
        """Start one interpreter, or two."""
        found: Samples = {"with": [], "after": []}
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        for _ in range(1 if self.scale.quick else 2):
            command = [sys.executable, "-c", _PROGRAM.format(self.adapter.imports)]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            middle, end = (float(word) for word in done.stdout.split())
            found["with"].append(end)
            if self.adapter.imports:
                found["after"].append(end - middle)
        return found


class Opening(Case):
    """Open, close; each begins when what the one before started in the background has ended."""

    name: ClassVar[str] = "open"
    question: ClassVar[str] = "open a store, or start a manager"
    rivals: ClassVar[tuple[str, ...]] = ("shmarray", "SharedMemoryManager", "a bare Python process")
    aims: ClassVar[tuple[Aim, ...]] = (Aim("open", "shmarray", "median", 80e-3),)

    @staticmethod
    def measures(scale: Scale) -> list[Measure]:
        """Give opening and closing."""
        del scale
        return [Measure("open", "open"), Measure("close", "close")]

    def set_up(self) -> None:
        """Nothing is open between rounds."""

    def round(self) -> Samples:
        """Open and close some times."""
        found: Samples = {"open": [], "close": []}
        for _ in self.scale.samples(most=10):
            start = perf_counter()
            self.adapter.open()
            found["open"].append(perf_counter() - start)
            self.adapter.settle()
            start = perf_counter()
            self.adapter.close()
            closed = perf_counter() - start
            if type(self.adapter).close is not Adapter.close:  # there is something to close
                found["close"].append(closed)
            self.adapter.settle()
        return found
