"""What workers do with small arrays; importable, so that every start method finds them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from shmarray import cells
from tests.helpers import leaks
from tests.smalls.things import is_whole, made, pattern

if TYPE_CHECKING:
    import shmarray as sa


def mirror(job: tuple[Any, int]) -> tuple[Any, bool]:
    """Look at an array, write the next number's into it, and give it back."""
    array, serial = job
    good = is_whole(array, serial) and cells.view_of(array) is not None
    array[:] = pattern(serial + 1, len(array))
    return array[:], good


def make(job: tuple[sa.Store, int]) -> Any:
    """Make an array."""
    return made(*job)


def make_and_end(store: sa.Store, answers: Any, serial: int) -> None:
    """Make an array, send it, and end."""
    answers.send(made(store, serial))
    answers.close()


def echo(tasks: Any, answers: Any) -> None:
    """Send on what comes until None does."""
    while (item := tasks.get(timeout=60)) is not None:
        answers.put(item)


def check_all(arrays: list[Any], first: int) -> tuple[int, int]:
    """Look at all; how many are whole, and how many descriptors lead to files of ours."""
    whole = sum(is_whole(array, first + number) for number, array in enumerate(arrays))
    return whole, len([path for path in leaks.descriptors(os.getpid()).values() if "shmarray." in path])
