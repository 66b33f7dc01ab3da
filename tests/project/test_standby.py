"""An interpreter that stands by runs a module as a fresh one does."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests.helpers.processes import is_running, run_command, wait_until
from tests.helpers.standby import Standby

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MODULE = "tests.project.executed"
LOOK = """
import atexit, os, sys
atexit.register(print, "at exit")
print(os.environ.get("X"), os.listdir("."), sys.stdin.read(), os.getsid(0) == os.getpid(), sys.stdout.isatty(), sys.argv)
print("to standard error", file=sys.stderr)
sys.exit(3)
"""


@pytest.fixture
def standby() -> Iterator[Standby]:
    """One for runs of a module that does what it is told."""
    with Standby(MODULE, "json") as ready:
        yield ready


def test_a_run_is_as_that_of_a_fresh_interpreter(standby: Standby, tmp_path: Path) -> None:
    """Arguments, environment, an empty directory, no input, a session of its own, exit handlers and status; each time anew."""
    for value in ("x", "y"):
        done = standby.run(LOOK, env={"X": value})
        fresh = run_command([sys.executable, "-m", MODULE, LOOK], env={"X": value}, cwd=tmp_path)
        assert done == fresh
        assert done.returncode == 3
        assert done.stdout.startswith(f"{value} []  True False [")
        assert done.stdout.endswith("at exit\n")
        assert done.stderr == "to standard error\n"


def test_a_run_past_its_deadline_fails_with_its_output_and_stacks_and_leaves_nothing(standby: Standby) -> None:
    """As a script does; and the next run goes well."""
    source = "import os, time\ndef stuck():\n    time.sleep(1000)\nprint(os.getpid(), flush=True)\nstuck()"
    with pytest.raises(AssertionError, match="did not end within") as caught:
        standby.run(source, timeout=0.5)
    text = str(caught.value)
    assert "in stuck" in text
    pid = int(text.partition("--- stdout\n")[2].splitlines()[0])
    wait_until(lambda: not is_running(pid), 10, "it survived")
    assert standby.run("print(5)").expect() == "5\n"
