"""An interpreter that stands by runs a module as a fresh one does."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

import pytest

from tests.helpers.processes import Child, is_running, run_command, run_script, wait_until
from tests.helpers.standby import ReadyChild, Standby

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
    with Standby("json", MODULE) as ready:
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


SCRIPT = """
import multiprocessing, os, sys

def name():
    return os.path.basename(sys.modules["__main__"].__file__), __name__

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.apply(name), name(), name is sys.modules["__main__"].name)
"""


def test_a_script_is_run_as_by_a_fresh_interpreter(standby: Standby) -> None:
    """It is the main module, which children that are spawned import again, and is found by them and by exit handlers."""
    for source in (LOOK.replace("sys.argv", "sys.argv[1:]"), SCRIPT):
        done, fresh = standby.run_script(source, "a", "b"), run_script(source, "a", "b")
        assert done.stdout
        assert done == fresh


CHILD = """
import os, sys
from tests.helpers.processes import report
report("up", [os.getsid(0) == os.getpid(), os.listdir("."), __name__])
report(input())
print("out", flush=True)
print("err", file=sys.stderr)
sys.exit(int(input()))
"""


def test_a_child_reports_is_told_and_ends_as_a_fresh_interpreter_does(standby: Standby) -> None:
    """Two at a time, beside a run; one ends by itself, one is killed, and of each its own status is told."""
    with ReadyChild(standby, CHILD) as one, ReadyChild(standby, CHILD) as other, Child(CHILD) as fresh:
        assert one.pid != other.pid
        said = fresh.wait_for("up")
        for child in (one, other):
            assert child.wait_for("up") == said == [True, [], "__main__"]
        assert standby.run("print(5)").expect() == "5\n"
        for each in (one, fresh):
            each.tell("on")
            each.wait_for("on")
            each.tell("3")
        assert one.finish() == fresh.finish() == (3, "out\n", "err\n")
        assert other.kill().returncode == -signal.SIGKILL
    with ReadyChild(standby, CHILD) as left:
        left.wait_for("up")
    assert not is_running(left.pid)


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
