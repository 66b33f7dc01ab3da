"""Several runs of the tests that share the work: each takes the next file of tests that none has begun.

Owns: who takes which file.
Must not know: what is in it.
"""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest


def taken(items: list[pytest.Item], directory: str) -> Iterator[pytest.Item]:
    """Give the tests of each file that is this run's, by making a file in a directory that all runs know."""
    for number, (_, tests) in enumerate(itertools.groupby(items, lambda item: item.path)):
        try:
            os.close(os.open(os.path.join(directory, str(number)), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        yield from tests


def run(session: pytest.Session, directory: str) -> None:
    """Run what is this one's, as pytest's own loop runs everything."""
    mine = taken(session.items, directory)
    item = next(mine, None)
    while item is not None:
        following = next(mine, None)
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)
        item = following
