"""For tests that look at the files of blocks: every array has one of its own."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _files(each_in_a_file: None) -> None:
    """Small anonymous arrays too; those in slabs are the subject of `tests/smalls`."""
