"""Every test of channels runs on both kinds of guards: each store that it opens has robust mutexes, and then plain semaphores.

But for those that ask for the fixture `any_guard`, because locks have nothing to do with what they claim, or they are long.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import shmarray as sa
from shmarray._os import mutexes

if TYPE_CHECKING:
    from collections.abc import Iterator

ROBUST, PLAIN = "robust", "multiprocessing"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test on both kinds, or on that which stores have by themselves."""
    if "guard_kind" in metafunc.fixturenames:
        kinds = [None] if "any_guard" in metafunc.fixturenames else [ROBUST, PLAIN]
        metafunc.parametrize("guard_kind", kinds, indirect=True, ids=lambda kind: kind or "any")


@pytest.fixture(autouse=True)
def guard_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """The kind of guard that a store gets in this test unless it asks for one."""
    wanted: str | None = request.param
    if wanted == ROBUST and mutexes.NOT_ROBUST:
        pytest.skip(f"no robust mutexes here: {mutexes.NOT_ROBUST}")
    if wanted is not None:
        monkeypatch.setitem(sa.Store.__init__.__kwdefaults__ or {}, "guard", wanted)
    return wanted


@pytest.fixture
def any_guard() -> None:
    """Ask for one run, on whatever guard a store has by itself."""


@pytest.fixture
def store() -> Iterator[sa.Store]:
    """An open store."""
    with sa.Store() as opened:
        yield opened
