"""What every test of hosts gets: a look at the processes that descend from a guardian, which is no child of the tests."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.helpers import leaks
from tests.helpers.processes import wait_until
from tests.hosting.things import Things

if TYPE_CHECKING:
    from collections.abc import Iterator


def marked() -> dict[int, list[str]]:
    """All programs that this run of the tests started, however far away they are, and that have not ended."""
    mark = f"{leaks.RUN}={os.environ[leaks.RUN]}".encode()
    found = {}
    for pid in leaks.pids():
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if mark in file.read().split(b"\0"):
                    found[pid] = leaks.command_line(pid)
        except OSError:  # it ended
            continue
    return {pid: words for pid, words in found.items() if words}


@pytest.fixture(autouse=True)
def _no_host_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test after which a host, a worker of its pool or a guardian runs on, or a segment of a manager is left."""
    before, segments = marked(), leaks.shm_entries("psm_") | leaks.shm_entries("sem.")
    yield
    wait_until(
        lambda: (
            not marked().keys() - before.keys()
            and not (leaks.shm_entries("psm_") | leaks.shm_entries("sem.")) - segments
        ),
        message=lambda: f"left: {[words for pid, words in marked().items() if pid not in before]}",
    )


@pytest.fixture(scope="module")
def common() -> Iterator[Things]:
    """An open store whose host runs, for all tests of a module that do it no harm; none of them leaves a slab in it."""
    with Things(small=0) as opened:
        opened.manager()
        yield opened


@pytest.fixture
def store() -> Iterator[Things]:
    """An open store with the types of `things`."""
    with Things() as opened:
        yield opened
