"""What the record of a cell says is true of the array that is there, also where the last one looked the same."""

from __future__ import annotations

import json
import pickle
import time
from typing import TYPE_CHECKING, Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shmarray as sa
from shmarray import cells, slabs
from shmarray._format import header
from shmarray._format import slab as form
from shmarray._format.dtypes import encode_dtype
from tests.smalls.things import Partner, ask, files, loading, place_of

if TYPE_CHECKING:
    from shmarray.slabwords import Slab

LOOKS: list[tuple[Any, Any, Literal["C", "F"]]] = [
    ((64,), "f8", "C"), (64, "f8", "C"), ((8, 8), "f8", "C"), ((8, 8), "f8", "F"),
    ((64,), "<i8", "C"), ((64,), ">i8", "C"), ((512,), "u1", "C"),
]  # fmt: skip
"""Arrays that lie in cells of one size, so that they follow each other in the same ones."""


def record_of(array: Any) -> form.Cell:
    """Read the record of an array's cell as another process does: from the file."""
    view = cells.view_of(array)
    assert view is not None
    slab: Slab = view.slab
    with open(slab.path, "rb") as file:
        data = file.read()
    places = form.layout_from(header.unpack(data, len(data)).meta, slab.layout.nbytes)
    at = places.records + form.RECORD * view.cell
    return form.unpack(data[at : at + form.RECORD])


def described(array: Any) -> list[Any]:
    """Say what its record is to say of an array."""
    strides = None if array.flags.c_contiguous else list(array.strides)
    return [encode_dtype(array.dtype), list(array.shape), strides]


@pytest.mark.core
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # what is there when an example begins is part of the game
@given(
    steps=st.lists(st.tuples(st.integers(0, len(LOOKS) - 1), st.sampled_from(["keep", "drop", "drop all", "offer"])))
)
def test_a_record_says_what_is_in_its_cell(store: sa.Store, steps: list[tuple[int, str]]) -> None:
    """Whatever was there before, and whoever else had seen that."""
    kept: list[tuple[int, Any]] = []
    for look, then in steps:
        shape, dtype, order = LOOKS[look]
        began = time.time_ns()
        array = store.empty(shape, dtype, order)
        record = record_of(array)
        assert json.loads(record.meta) == described(array)
        assert record.nbytes == array.nbytes == 512
        assert record.state == form.LIVE
        assert began <= record.born <= time.time_ns()
        kept.append((record.number, array))
        if then == "offer":
            array.lock.acquire()  # a guard, which is a file of its own
            array.lock.release()
        if then.startswith("drop"):
            del array
            kept = [] if then == "drop all" else kept[:-1]
    assert len({number for number, _ in kept}) == len(kept)
    for number, array in kept:
        assert record_of(array).number == number
        assert json.loads(record_of(array).meta) == described(array)


def test_a_slab_that_was_lost_as_soon_as_it_was_made_is_found_and_used(
    store: sa.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal handler raised just after it was there."""
    real = slabs.make

    def make_and_fail(*args: Any) -> None:
        real(*args)
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(slabs, "make", make_and_fail)
        with pytest.raises(ZeroDivisionError):
            store.zeros(64)
    ask(store)
    arrays = [store.full(64, value) for value in range(3)]
    assert [array[0] for array in arrays] == [0, 1, 2]
    assert len(files(store, "s.")) == 1


@pytest.mark.core
def test_what_looks_like_the_array_before_is_another_array(store: sa.Store) -> None:
    """In the same cell, made again and again, whether or not another process saw it: each has a number of its own."""
    first = store.full(64, 1.0)
    place, numbers = place_of(first), [record_of(first).number]
    with Partner() as partner:
        partner.do(f"array = {loading(pickle.dumps(first))}; seen = array.sum(); del array")
        del first
        ask(store)
        for value in (2.0, 3.0):
            array = store.full(64, value)
            assert place_of(array) == place
            numbers.append(record_of(array).number)
            partner.do(f"array = {loading(pickle.dumps(array))}")
            assert partner.do("said = float(array.sum()); del array") == 64 * value
            del array
            ask(store)
        partner.finish().expect()
    assert len(set(numbers)) == len(numbers)
