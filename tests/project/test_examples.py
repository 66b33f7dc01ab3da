"""The examples and the code in the documentation are run, as a user would run them."""

from __future__ import annotations

import ast
import multiprocessing
import os
import re
import sys
from multiprocessing import managers, shared_memory
from typing import TYPE_CHECKING

import pytest

import shmarray as sa
from shmarray import vocabulary
from shmarray.hosting import hosted
from tests.helpers import leaks
from tests.helpers.processes import run_command, wait_until
from tests.project.test_readme import NOT_RUN, ROOT, Block, blocks

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.standby import Standby

EXAMPLES = os.path.join(ROOT, "examples")
DOCS = os.path.join(ROOT, "docs")
GUIDE = os.path.join(DOCS, "from-multiprocessing.md")
LONGEST = 60  # lines of an example; it is to be read in a minute
LONGER = {"pipeline.py": 190}
"""Examples that may be longer: a whole program, and the same in another way for comparison."""
SHORTENED = {("pipeline.py", "spawn"): ("--frames", "60")}
"""Arguments for what takes long, in one of the ways to start; in the other it is run as it is."""
ELSEWHERE = {"hillshade.py": "tests/cli/test_demo.py runs it"}
"""Examples that are not run here, each with the reason."""

STAYS = {
    *("AuthenticationError", "BufferTooShort", "ProcessError", "TimeoutError"),
    *("active_children", "current_process", "parent_process", "cpu_count", "freeze_support", "reducer"),
    *("get_all_start_methods", "get_context", "get_start_method", "set_start_method", "set_executable"),
    *("set_forkserver_preload", "allow_connection_pickling", "get_logger", "log_to_stderr"),
    *("BaseProxy", "Token"),
}
"""What is used as ever beside a store, so that the guide need not name it."""

_DEFINES = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
RUN = """
import multiprocessing, runpy, sys

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def _text(*place: str) -> str:
    with open(os.path.join(*place), encoding="utf-8") as file:
        return file.read()


def examples() -> list[str]:
    """All examples that are to be run here."""
    return sorted(name for name in os.listdir(EXAMPLES) if name.endswith(".py") and name not in ELSEWHERE)


def _scripts() -> list[tuple[str, Block]]:
    return [
        (name, block)
        for name in sorted(os.listdir(DOCS))
        if name.endswith(".md")
        for block in blocks(_text(DOCS, name))
        if block.language == "python" and not block.above.startswith(NOT_RUN)
    ]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("name", examples())
def test_an_example_runs(name: str, method: str, standby: Standby, request: pytest.FixtureRequest) -> None:
    """Each example ends well by itself, says something, nothing on standard error, and leaves no name in shared memory."""
    if method == "forkserver" and not request.config.getoption("--deep"):
        pytest.skip("only with --deep: it starts a process as spawn does")
    before = leaks.shm_entries("")
    done = standby.run_script(RUN, method, os.path.join(EXAMPLES, name), *SHORTENED.get((name, method), ()), timeout=60)
    assert done.expect().strip()

    def left() -> set[str]:
        found = leaks.shm_entries("") - before
        return found - leaks.foreign_stores(found)

    # A host that the example started takes part in the store until it has seen that this has ended, and may be the last.
    wait_until(lambda: not left(), message="a name stays")


def test_the_pipeline_keeps_pictures_and_both_ways_see_the_same(tmp_path: Path) -> None:
    """With more workers than processors every picture that is to be kept is there, and channels and queues gave the same."""
    arguments = ("--frames", "60", "--workers", "3", "--pictures", str(tmp_path))
    done = run_command([sys.executable, os.path.join(EXAMPLES, "pipeline.py"), *arguments], cwd=tmp_path, timeout=60)
    said = done.expect()
    assert "both saw the same\n" in said
    assert said.endswith("left in shared memory: 0 entries\n")
    rows = [line.split() for line in said.splitlines() if line.startswith(("channels", "multiprocessing"))]
    assert [row[1] for row in rows] == ["60", "60"]
    pictures = sorted(os.listdir(tmp_path))
    assert pictures == ["frame0000.png", "frame0050.png"]
    assert (tmp_path / "frame0050.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("name", examples())
def test_an_example_is_short_and_can_be_spawned(name: str) -> None:
    """Each example has a sentence at its head, is short, and when it is imported does nothing but define and register."""
    text = _text(EXAMPLES, name)
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    assert text.count("\n") <= LONGER.get(name, LONGEST)
    *rest, last = tree.body
    assert ast.unparse(last).startswith("if __name__ == '__main__':")
    done = [statement for statement in rest[1:] if not isinstance(statement, _DEFINES)]
    assert [text for text in map(ast.unparse, done) if ".register(" not in text] == []


@pytest.mark.parametrize(("name", "block"), _scripts(), ids=lambda part: getattr(part, "line", part))
def test_a_block_of_the_documentation_runs(name: str, block: Block, standby: Standby) -> None:
    """Each Python block is a script that ends well in an empty directory, says nothing on standard error, and leaves nothing."""
    before = leaks.shm_entries("")
    standby.run_script(block.text, timeout=60).expect()
    left = leaks.shm_entries("") - before
    assert left - leaks.foreign_stores(left) == set()


def test_every_example_is_named_in_the_guide() -> None:
    """The guide leads to each example, and to none that is not there."""
    named = set(re.findall(r"examples/(\w+\.py)", _text(GUIDE)))
    assert named == set(examples())


def test_everything_that_multiprocessing_has_is_in_the_guide() -> None:
    """What the standard library makes is made by a store, or the guide has a word on it; the guide names what a store makes."""
    guide = set(re.findall(r"\w+", _text(GUIDE)))
    theirs = {*multiprocessing.__all__, *shared_memory.__all__, *managers.__all__}
    silent = {name for name in theirs - guide if not hasattr(sa.Store, name)}
    assert silent <= STAYS
    ours = {name for part in (vocabulary.Vocabulary, hosted.Hosted) for name in vars(part) if not name.startswith("_")}
    assert ours - guide == set()
