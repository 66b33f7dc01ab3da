"""Stores for the contract: it is one promise, wherever the blocks are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import shmarray as sa

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=["shared memory", "directory"])
def place(request: pytest.FixtureRequest, store_dir: str) -> str | None:
    """Where blocks are: what to give as `directory=`."""
    return store_dir if request.param == "directory" else None


@pytest.fixture
def store(place: str | None) -> Iterator[sa.Store]:
    """An open store; once in shared memory, once in an ordinary directory."""
    with sa.Store(directory=place) as opened:
        yield opened


@pytest.fixture
def memory_store() -> Iterator[sa.Store]:
    """An open store in shared memory."""
    with sa.Store() as opened:
        yield opened
