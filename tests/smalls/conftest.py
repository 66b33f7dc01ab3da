"""For tests of small arrays: a store for one test, an interpreter that stands by, and how many of the lines of a deed are died at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import shmarray as sa
from tests.helpers.standby import Standby
from tests.smalls import things

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session", autouse=True)
def _standby() -> Iterator[None]:
    """Serve `things.Partner` for the whole run."""
    with Standby("tests.smalls.things") as things.standby:
        yield
    things.standby = None


@pytest.fixture
def store() -> Iterator[sa.Store]:
    """A store."""
    with sa.Store() as opened:
        yield opened


@pytest.fixture
def step(request: pytest.FixtureRequest) -> int:
    """At every how many-th line to die."""
    return 1 if request.config.getoption("--deep") else 11
