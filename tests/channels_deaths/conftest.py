"""For tests of deaths: a store for one test, and how many of the lines of a deed are died at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import shmarray as sa

if TYPE_CHECKING:
    from collections.abc import Iterator


def begin(store: sa.Store) -> None:
    """Take a place among the processes of a store, which is kept as long as that, so that no test is thought to leave it behind."""
    with store.channel(1, "i8") as first:
        first.put([0])


@pytest.fixture(scope="module")
def store() -> Iterator[sa.Store]:
    """A store for all tests of a module, which keeps nothing of what they have dropped."""
    with sa.Store(warm=0) as opened:
        begin(opened)
        yield opened


@pytest.fixture(params=["robust", "multiprocessing"], scope="module")
def either_store(request: pytest.FixtureRequest) -> Iterator[sa.Store]:
    """A store with each kind of locks."""
    with sa.Store(guard=request.param, warm=0) as opened:
        begin(opened)
        yield opened


@pytest.fixture
def step(request: pytest.FixtureRequest) -> int:
    """At every how many-th line to die."""
    return 1 if request.config.getoption("--deep") else 26


@pytest.fixture
def stride(request: pytest.FixtureRequest) -> int:
    """At every how many-th point to be interrupted, in what takes long."""
    return 1 if request.config.getoption("--deep") else 7
