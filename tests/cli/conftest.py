"""What every test of the command line gets: an interpreter that stands by for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cli import places
from tests.helpers.standby import Standby

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session", autouse=True)
def _standby() -> Iterator[None]:
    """Serve `places.shmarray` for the whole run."""
    with Standby("shmarray.cli", "shmarray") as places.standby:
        yield
    places.standby = None


@pytest.fixture(autouse=True)
def _files(each_in_a_file: None) -> None:
    """Every array has a file of its own: small anonymous ones too. Those in slabs are the subject of `tests/smalls`."""
