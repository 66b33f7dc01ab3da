"""A module that runs what it is told to: `python -m tests.project.executed SOURCE`."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    exec(sys.argv[1])  # noqa: S102
