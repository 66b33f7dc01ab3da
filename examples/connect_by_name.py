"""Processes that do not know each other meet by the names of a store and of what is in it."""

from __future__ import annotations

import subprocess
import sys

import shmarray as sa

OTHER = """
import sys
import shmarray as sa

store = sa.connect(sys.argv[1])     # any process of the same user
store["seen"].set()
store["answers"].put(store["positions"].sum())
"""

if __name__ == "__main__":
    with sa.Store() as store, sa.Store(f"robot-{store.id}") as robot:
        robot.full(10, 4.0, name="positions")
        seen = robot.Event(name="seen")
        answers = robot.Queue(name="answers")
        subprocess.run([sys.executable, "-c", OTHER, f"robot-{store.id}"], check=True)  # noqa: S603  this program
        print("seen:", seen.is_set(), "| sum of positions:", answers.get(timeout=10))
