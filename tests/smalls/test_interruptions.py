"""A handler raises at every point at which it can, and the process goes on: no cell is lost, nobody waits, nothing is seen that is gone."""

from __future__ import annotations

import gc
import os
import pickle
import sys
from typing import TYPE_CHECKING, Any

import pytest

import shmarray as sa
from shmarray import cells
from tests.helpers.tracing import Interrupted
from tests.smalls import deaths
from tests.smalls.stands import DEEDS, Stand, make_many, put_question, trim
from tests.smalls.things import Partner, ask, files, is_whole, loading, made, next_serial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Say nothing of an interruption in a finalizer, where no exception can come out; and have none of the collector's come in between."""

    def hook(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, Interrupted):
            sys.__unraisablehook__(unraisable)

    monkeypatch.setattr(sys, "unraisablehook", hook)
    monkeypatch.setattr(cells, "_PATIENCE", 1.0)
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("deed", DEEDS)
def test_who_is_interrupted_at_any_point_goes_on_and_no_cell_is_lost(
    deed: Callable[[Stand], None], store: sa.Store, request: pytest.FixtureRequest
) -> None:
    """All is given back when all is dropped, whatever the interrupted call had done."""
    stand = Stand(store)
    step = (
        1
        if request.config.getoption("--deep")
        else 83
        if deed is make_many
        else 5
        if deed in (put_question, trim)
        else 1
    )
    assert deaths.interrupt_everywhere(stand.ready, lambda: deed(stand), stand.verify, step) > 3


@pytest.mark.parametrize("deed", [put_question, trim])
def test_nobody_waits_for_a_maker_that_was_interrupted_asking(deed: Callable[[Stand], None], store: sa.Store) -> None:
    """Whoever loads a handle that is in flight gets the array."""
    with Partner() as other:
        other.do("from shmarray import cells; cells._PATIENCE = 1.0")
        stand = Stand(store)
        sent: list[tuple[int, bytes]] = []

        def ready() -> None:
            sent.clear()
            for _ in range(4):
                serial = next_serial()
                sent.append((serial, pickle.dumps(made(store, serial))))

        def verify(where: str) -> None:
            for serial, handle in sent:
                assert other.do(f"said = is_whole({loading(handle)}, {serial})"), where
            ask(store)

        assert deaths.interrupt_everywhere(ready, lambda: deed(stand), verify, 3) > 5
        other.finish().expect()


def test_what_is_made_after_an_interrupted_trim_can_be_sent(store: sa.Store) -> None:
    """No array is made in a slab that has lost its name."""
    with Partner() as other:

        def verify(where: str) -> None:
            array = made(store, serial := next_serial())
            assert other.do(f"a = {loading(pickle.dumps(array))}; said = is_whole(a, {serial}); del a"), where
            del array
            store.trim()
            assert files(store) == set(), where

        assert deaths.interrupt_everywhere(lambda: made(store, next_serial()), store.trim, verify) > 5
        other.finish().expect()


def test_a_child_that_a_handler_forked_while_an_end_was_seen_to_sees_to_each_once(
    store: sa.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sees to what it drops in the handler, and then goes on where its parent was."""
    array, other = made(store, next_serial()), made(store, serial := next_serial())
    dropped = cells._dropped
    pids: list[int] = []

    def forking(view: Any) -> None:
        nonlocal other
        dropped(view)
        if not pids:
            pids.append(os.fork())
            if not pids[0]:
                del other

    monkeypatch.setattr(cells, "_dropped", forking)
    monkeypatch.setattr(sys, "unraisablehook", lambda _: os._exit(1))
    del array
    if not pids[0]:
        os._exit(len(cells.ended))
    assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 0
    assert is_whole(other, serial)
