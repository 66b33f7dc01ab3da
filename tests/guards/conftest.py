"""Every test of guards runs on both kinds: each store that it opens has robust mutexes, and then plain semaphores.

But for those that ask for the fixture `survival`: a guard that survives its holder is what the plain kind does not promise.
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
    """Run a test on the kinds that it is about."""
    if "guard_kind" in metafunc.fixturenames:
        kinds = [ROBUST] if "survival" in metafunc.fixturenames else [ROBUST, PLAIN]
        metafunc.parametrize("guard_kind", kinds, indirect=True)


@pytest.fixture(autouse=True)
def guard_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kind of guard that a store gets in this test unless it asks for one."""
    wanted: str = request.param
    if wanted == ROBUST and mutexes.NOT_ROBUST:
        pytest.skip(f"no robust mutexes here: {mutexes.NOT_ROBUST}")
    monkeypatch.setitem(sa.Store.__init__.__kwdefaults__ or {}, "guard", wanted)
    return wanted


@pytest.fixture
def survival() -> None:
    """Ask for a guard that survives its holder."""


@pytest.fixture
def array() -> Iterator[sa.SharedArray]:
    """An array with a name, in a store of either kind of guard."""
    with sa.Store() as store:
        yield store.zeros(4, dtype="i8", name="a")


@pytest.fixture
def robust(survival: None, array: sa.SharedArray) -> sa.SharedArray:
    """An array whose guard survives its holder."""
    return array
