"""A guardian that is killed at a chosen line: `python -I -S traced_guardian.py N FUNCTION MAIN ARGUMENTS...`.

Owns: running the guardian's main script under a trace, and SIGKILL at the N-th line of the package after FUNCTION was first entered.
Must not know: anything but the standard library, as the guardian does not either.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType


class Trace:
    """Counts lines from the moment a function is entered."""

    def __init__(self, at: int, function: str, place: str) -> None:
        """Count lines of files below `place`."""
        self.left = at
        self.function = function
        self.place = place
        self.counting = False

    def enter(self, frame: FrameType, _event: str, _arg: object) -> Any:
        """Follow a function of the package."""
        if not frame.f_code.co_filename.startswith(self.place):
            return None
        self.counting = self.counting or frame.f_code.co_name == self.function
        return self.step

    def step(self, _frame: FrameType, event: str, _arg: object) -> Any:
        """Count a line."""
        if event == "line" and self.counting:
            self.left -= 1
            if not self.left:
                os.kill(os.getpid(), signal.SIGKILL)
        return self.step


if __name__ == "__main__":
    number, wanted, script = sys.argv[1:4]
    sys.argv = sys.argv[3:]
    sys.settrace(Trace(int(number), wanted, os.path.dirname(os.path.dirname(script)) + os.sep).enter)
    runpy.run_path(script, run_name="__main__")
