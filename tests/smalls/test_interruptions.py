"""A handler raises at every point at which it can, and the process goes on: no cell is lost, nobody waits, nothing is seen that is gone."""

from __future__ import annotations

import gc
import pickle
import sys
from typing import TYPE_CHECKING, Any

import pytest

import shmarray as sa
from shmarray import cells
from tests.helpers.tracing import Interrupted
from tests.smalls import deaths
from tests.smalls.stands import DEEDS, Stand, make_many, put_question, trim
from tests.smalls.things import Partner, ask, loading, made, next_serial

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
