"""For tests of small arrays: a store for one test, and how many of the lines of a deed are died at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import shmarray as sa

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def store() -> Iterator[sa.Store]:
    """A store."""
    with sa.Store() as opened:
        yield opened


@pytest.fixture
def step(request: pytest.FixtureRequest) -> int:
    """At every how many-th line to die."""
    return 1 if request.config.getoption("--deep") else 11
