"""For tests of warm memory: a store that keeps some, and small arrays that are worth keeping."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import shmarray as sa
from shmarray import warm

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def small_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep files from one page on, in this process and its forked children."""
    monkeypatch.setattr(warm, "SMALLEST", 4096)


@pytest.fixture
def store() -> Iterator[sa.Store]:
    """A store that keeps some memory warm."""
    with sa.Store(warm=1 << 24) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _files(each_in_a_file: None) -> None:
    """Every array has a file of its own, which is what is looked at here."""
