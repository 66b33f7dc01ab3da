"""What tests of the project may ask for: an interpreter that stands by for scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.helpers.standby import Standby

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def standby() -> Iterator[Standby]:
    """For scripts that use shmarray and whose start is no part of what is claimed."""
    with Standby("shmarray") as ready:
        yield ready
