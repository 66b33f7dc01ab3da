"""Stores and looks from outside for the tests of lifetimes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

import shmarray as sa
from tests.helpers.leaks import SHM
from tests.helpers.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def store() -> Iterator[sa.Store]:
    """An open store in shared memory."""
    with sa.Store() as opened:
        yield opened


@pytest.fixture
def blocks(store: sa.Store) -> Callable[[], list[str]]:
    """Give the kinds of file the store has now but its control file: "a" anonymous, "h" in flight, "n" named, "t" draft."""

    def look() -> list[str]:
        kinds = (
            name.partition(f".{store.id}.")[2].partition(".")[0] for name in os.listdir(SHM) if f".{store.id}." in name
        )
        return sorted(kind for kind in kinds if kind != "ctl")

    return look


@pytest.fixture
def soon(blocks: Callable[[], list[str]]) -> Callable[[list[str]], None]:
    """Wait until the store has these kinds of file: what another process or the guardian does takes its moment."""

    def wait(expected: list[str]) -> None:
        wait_until(lambda: blocks() == expected, 10, lambda: f"there is {blocks()}, and not {expected}")

    return wait


@pytest.fixture(autouse=True)
def _files(each_in_a_file: None) -> None:
    """Every array has a file of its own, which is what is looked at here."""
