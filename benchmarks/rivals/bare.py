"""The limits of starting up: NumPy alone, and an interpreter that does nothing."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.rivals.interface import Adapter


class NumPyAlone(Adapter):
    """Import nothing besides numpy."""


class BarePython(Adapter):
    """Start an interpreter, as a guardian or a manager has to, and wait for its end."""

    def open(self) -> None:
        """Start, and wait."""
        subprocess.run([sys.executable, "-I", "-S", "-c", ""], check=True)
