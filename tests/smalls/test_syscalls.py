"""Every system call made for small arrays made to fail once: it succeeds or says so, and nothing is lost or left."""

from __future__ import annotations

import contextlib
import errno
import gc
from typing import TYPE_CHECKING, Any

import pytest

import shmarray as sa
from shmarray.guardian import launch
from tests.helpers.tracing import count_calls, fail_at
from tests.smalls.stands import DEEDS, Stand, make_many

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def unguarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[sa.Store]:
    """A store without a guardian, so that nobody tidies up behind what is tested."""
    monkeypatch.setattr(launch, "launch", lambda _member: None)
    gc.disable()
    with sa.Store() as store:
        yield store
    gc.enable()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EMFILE, errno.ENOMEM])
@pytest.mark.parametrize("deed", [deed for deed in DEEDS if deed is not make_many])
def test_a_system_call_that_fails_loses_nothing(
    deed: Callable[[Stand], None], number: int, unguarded: sa.Store
) -> None:
    """The deed is done, or an error says why not; afterwards all goes on, and all comes back."""
    stand = Stand(unguarded)
    stand.ready()
    calls = count_calls(lambda: deed(stand))
    stand.verify("no failure")
    for n in range(1, len(calls) + 1):
        stand.ready()
        said: Any = None
        with fail_at(n, number) as seen, contextlib.suppress(sa.ShmArrayError, OSError):
            deed(stand)
        said = seen[n - 1] if len(seen) >= n else "nothing failed"
        unguarded.check(fix=True)
        stand.verify(f"call {n} of {len(calls)}: {said}")
