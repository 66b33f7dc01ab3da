"""Copies shared by threads, however small they are."""

from __future__ import annotations

import _thread
import contextlib
from typing import TYPE_CHECKING, Any
from unittest import mock

from shmarray import copying
from shmarray._os import parallel

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest


@contextlib.contextmanager
def all_shared(threads: int = 3, piece: int = 1024) -> Iterator[None]:
    """Have `threads` threads of this process share every copy, in pieces of `piece` bytes."""
    with (
        mock.patch.multiple(copying, LEAST=1, _LEAST_FRESH=1, _PIECE=piece, _PIECE_FRESH=piece),
        mock.patch.object(parallel, "cores", return_value=threads),
    ):
        yield


def record_starts(patch: pytest.MonkeyPatch) -> list[int]:
    """Give the list of threads, by their identities, that are started to share copies in this process from now on."""
    found: list[int] = []
    usual = parallel._start_thread

    def start(*args: Any) -> int:
        found.append(usual(*args))
        return found[-1]

    patch.setattr(parallel, "_start_thread", start)
    return found


def none_is_left() -> bool:
    """Say whether this process has one thread alone."""
    return _thread._count() == 0
