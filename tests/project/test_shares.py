"""Runs that share the work leave nothing out, do nothing twice, and each is a whole run."""

from __future__ import annotations

import os
import re
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tests.helpers import shares
from tests.helpers.processes import run_command

if TYPE_CHECKING:
    from pathlib import Path

CONFTEST = """
import pytest
from tests.conftest import pytest_addoption, pytest_runtestloop

@pytest.fixture(scope="session", autouse=True)
def whole():
    print("begun", flush=True)
    yield
    print("ended", flush=True)

@pytest.fixture(scope="module", autouse=True)
def part(request):
    yield
    print("left", request.node.name, flush=True)
"""
TESTS = """
def test_first():
    print("first of", __name__)

def test_second():
    assert __name__ != "test_b"
"""


def _items(*files: str) -> Any:
    return [SimpleNamespace(path=file, number=number) for file in files for number in range(3)]


def test_every_test_is_one_runs(tmp_path: Path) -> None:
    """Two runs take turns; a file that one has begun is none of the other's, and no file is left."""
    items = _items("a", "b", "c", "d", "e")
    one, other = shares.taken(items, str(tmp_path)), shares.taken(items, str(tmp_path))
    found: tuple[list[Any], list[Any]] = ([], [])
    found[0].append(next(one))
    for run, turns in ((1, 4), (0, 3), (1, 3), (0, 3), (1, 3)):
        for _ in range(turns):
            found[run].extend([each] if (each := next((one, other)[run], None)) else [])
    assert {each.path for each in found[0]}.isdisjoint(each.path for each in found[1])
    assert sorted(map(items.index, [*found[0], *found[1]])) == list(range(len(items)))
    assert found[0]
    assert found[1]


def test_what_is_taken_is_run_as_ever(tmp_path: Path) -> None:
    """Fixtures end where they should, a failure is one, and what another run has taken is left to it."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    for name in "abcd":
        (tmp_path / f"test_{name}.py").write_text(TESTS)
    share = tmp_path / "share"
    share.mkdir()
    (share / "2").touch()
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", f"--share={share}", str(tmp_path)]
    done = run_command(command, cwd=tmp_path, timeout=60)
    assert done.returncode == 1, done.describe()
    assert "1 failed, 5 passed" in done.stdout, done.describe()
    said = re.findall(r"begun|left \S+|ended", done.stdout)
    assert said == ["begun", "left test_a.py", "left test_b.py", "left test_d.py", "ended"]
    assert sorted(os.listdir(share)) == ["0", "1", "2", "3"]
    assert run_command([*command, "-x"], cwd=tmp_path, timeout=60).returncode == 0, "all is taken: nothing failed"


def test_a_run_ends_with_its_first_failure_where_that_was_asked_for(tmp_path: Path) -> None:
    """`-x` holds for what is taken; what comes after it in another file is not run."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    for name in "bcd":
        (tmp_path / f"test_{name}.py").write_text(TESTS)
    share = tmp_path / "share"
    share.mkdir()
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"--share={share}", str(tmp_path)]
    done = run_command(command, cwd=tmp_path, timeout=60)
    assert done.returncode != 0
    assert "1 failed, 1 passed" in done.stdout, done.describe()
    assert "stopping after 1 failures" in done.stdout, done.describe()
