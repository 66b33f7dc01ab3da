"""Handles of small arrays: loaded twice, late, when their array has gone; changed by hand; and slabs whose bytes were changed."""

from __future__ import annotations

import io
import os
import pickle
import random
from typing import TYPE_CHECKING, Any

import pytest

import shmarray as sa
from shmarray import arrays, cells, inspection
from shmarray._format import names
from shmarray._format import slab as form
from tests.helpers.leaks import SHM
from tests.smalls.things import Partner, ask, files, is_whole, loading, made, next_serial

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.core
def test_a_handle_loaded_twice_is_harmless_while_its_array_is_there(store: sa.Store) -> None:
    """Here or in another process; whoever else has it, or another handle to it, keeps it there."""
    serial = next_serial()
    array = made(store, serial)
    first, second = pickle.dumps(array), pickle.dumps(array)
    again = [pickle.loads(first) for _ in range(3)]
    assert all(is_whole(each, serial) for each in again)
    with Partner() as other:
        assert other.do(f"said = [is_whole({loading(first)}, {serial}) for _ in range(3)]") == [True] * 3
        del array, again
        # Nobody has it; the other handle keeps it.
        assert other.do(f"said = [is_whole({loading(first)}, {serial}) for _ in range(3)]") == [True] * 3
        late = pickle.loads(first)
        assert is_whole(late, serial)
        del late
        assert other.do(f"said = [is_whole({loading(second)}, {serial})]") == [True]
        for handle in (first, second):
            assert other.fails(loading(handle)) == "ArrayNotFoundError"
            with pytest.raises(sa.ArrayNotFoundError):
                pickle.loads(handle)
        other.finish().expect()


@pytest.mark.core
@pytest.mark.parametrize("end", ["dropped", "used again", "deleted", "slab given back", "maker killed"])
def test_a_stale_handle_is_refused(end: str, store: sa.Store) -> None:
    """By whoever loads it, and whether the slab is mapped there; it shows nothing of what is in the cell by then."""
    with Partner() as maker, Partner() as reader:
        maker.do(f"store = {loading(pickle.dumps(store))}; array = made(store, 1); other = made(store, 2)")
        handle, link = (
            bytes.fromhex(text) for text in maker.do("said = [pickle.dumps(x).hex() for x in (array, other)]")
        )
        other = pickle.loads(link)  # keeps the slab
        reader.do(f"array = {loading(handle)}; del array")
        if end == "slab given back":
            del other
            maker.do("del other")
        if end == "deleted":
            maker.do("array.unlink()")
        else:
            maker.do("del array")
        if end == "used again":
            maker.do(
                "from tests.smalls.things import ask\nask(store); more = [made(store, n) for n in range(100, 140)]"
            )
        elif end == "slab given back":
            maker.do("store.trim()")
            assert not files(store, "s.")
        elif end == "maker killed":
            maker.kill()
        with pytest.raises(sa.ArrayNotFoundError):
            pickle.loads(handle)
        assert reader.fails(loading(handle)) == "ArrayNotFoundError"
        with Partner() as stranger:
            assert stranger.fails(loading(handle)) == "ArrayNotFoundError"
            stranger.finish().expect()
        if end != "maker killed":
            maker.finish().expect()
        reader.finish().expect()


def number_of(array: Any) -> int:
    """Give the number of an array."""
    view = cells.view_of(array)
    assert view is not None
    return view.number


CHANGES: dict[str, Callable[[int], int]] = {
    "cell beyond the last": lambda number: number | (form.MOST_CELLS - 1),
    "another generation": lambda number: number + form.MOST_CELLS,
    "generation before the first": lambda number: number - form.MOST_CELLS,
    "another slab": lambda number: number ^ 1 << 40,
    "a free cell": lambda number: number + 20,
    "the slab itself": form.slab_of,
    "another array": lambda number: number + 1,
}


@pytest.mark.core
@pytest.mark.parametrize("change", CHANGES)
def test_a_handle_whose_number_was_changed_is_an_error_and_shows_no_other_array(change: str, store: sa.Store) -> None:
    """Unless the number is that of an array that is there, which anyone of that user may attach."""
    both = [made(store, next_serial()) for _ in range(2)]
    both.sort(key=number_of)
    function, (key, spec) = both[0].__reduce_ex__(4)
    changed = (*key[:2], CHANGES[change](key[2]), *key[3:])
    for claim in (key[4], None, "0" * 12):
        if change == "another array":
            assert (function((*changed[:4], claim), spec) == both[1]).all()
        else:
            with pytest.raises(sa.ArrayNotFoundError):
                function((*changed[:4], claim), spec)
    with Partner() as other:
        other.do("from shmarray import arrays")
        text = f"found = arrays._attach_small({changed!r}, {tuple(spec)!r})"
        if change == "another array":
            other.do(text)
        else:
            assert other.fails(text) == "ArrayNotFoundError"
        other.finish().expect()


@pytest.mark.parametrize(
    "spec",
    [
        (-8, (1,), None, "<u8", True),
        (0, (513,), None, "<u8", True),
        (4096, (1,), None, "<u8", True),
        (0, (2,), (8192,), "<u8", True),
        (0, (2,), (-8,), "<u8", True),
        (1 << 70, (1,), None, "<u8", True),
        (0, (1 << 70,), None, "<u8", True),
        (0, (4,), None, "no such thing", True),
    ],
)
def test_a_handle_that_reaches_beyond_its_array_is_an_error(spec: tuple[Any, ...], store: sa.Store) -> None:
    """Neither the next cell is seen nor anything else."""
    array = made(store, next_serial())
    _, (key, _) = array.__reduce_ex__(4)
    with pytest.raises((sa.CorruptBlockError, OverflowError)):
        arrays._attach_small((*key[:4], None), spec)
    del array
    ask(store)


@pytest.mark.core
@pytest.mark.parametrize("word", [2, 1 << 63])
def test_a_maker_that_asks_in_no_way_it_can_is_a_damaged_slab(word: int, store: sa.Store) -> None:
    """Nobody waits for its answer."""
    with Partner() as maker:
        maker.do(f"store = {loading(pickle.dumps(store))}; array = made(store, 1)")
        (handle,) = maker.do("said = [pickle.dumps(array).hex()]")
        (entry,) = files(store, "s.")
        with open(os.path.join(SHM, entry), "r+b", buffering=0) as file:
            file.seek(form.Layout(4096, 32).records + form.ASKED)
            file.write(word.to_bytes(8, "little"))
        with pytest.raises(sa.CorruptBlockError, match="asks"):
            pickle.loads(bytes.fromhex(handle))
        maker.finish().expect()


def read_all(handles: list[bytes]) -> None:
    """Load what can be loaded: what is wrong is an error that says so, or looks as if the maker were asking, and were stopped."""
    for handle in handles:
        try:
            pickle.loads(handle).sum()
        except (sa.CorruptBlockError, sa.ArrayNotFoundError, TimeoutError):
            continue


@pytest.mark.parametrize("part", ["header", "description", "records", "seats"])
def test_a_damaged_slab_is_an_error_and_never_a_crash(
    part: str, store: sa.Store, request: pytest.FixtureRequest
) -> None:
    """To who loads a handle, counts, checks, lists, and to the maker that goes on giving out; bytes are flipped one after the other."""
    dice = random.Random(3)  # noqa: S311  the same each time
    for _ in range(300 if request.config.getoption("--deep") else 4):
        with Partner() as maker:
            maker.do(f"store = {loading(pickle.dumps(store))}; arrays = [made(store, n) for n in range(8)]")
            texts = maker.do("said = [pickle.dumps(array).hex() for array in arrays[:4]]")
            handles = [bytes.fromhex(text) for text in texts]
            (entry,) = files(store, "s.")
            path = os.path.join(SHM, entry)
            size = os.stat(path).st_size
            places = form.Layout(4096, 32)
            begin, end = {
                "header": (size - 512, size),
                "description": (size - 768, size - 512),
                "records": (places.records, places.seats),
                "seats": (places.seats, places.nbytes),
            }[part]
            with open(path, "r+b", buffering=0) as file:
                for _ in range(dice.choice((1, 1, 8))):
                    at = dice.randrange(begin, end)
                    file.seek(at)
                    byte = file.read(1)[0]
                    file.seek(at)
                    file.write(bytes([byte ^ 1 << dice.randrange(8)]))
            read_all(handles)
            store.stats()
            store.check()
            inspection.survey()
            if part != "header":  # which nobody looks at who has it mapped
                maker.begin(
                    "del arrays\nfor n in range(3):\n  new = [made(store, n) for n in range(40)]\n  del new\n  store.trim()"
                )
                maker.finish().expect()
            maker.kill()
        store.release_unclaimed()
        store.trim()
        for entry in files(store):
            os.unlink(os.path.join(SHM, entry))


def test_a_slab_of_another_store_is_none(store: sa.Store) -> None:
    """Nor one under the number of another one, nor a block that is an array, nor a directory."""
    with Partner() as maker:
        maker.do(f"store = {loading(pickle.dumps(store))}; array = made(store, 1)")
        handle = bytes.fromhex(maker.do("said = pickle.dumps(array).hex()"))
        (entry,) = files(store, "s.")
        path, (claim,) = os.path.join(SHM, entry), files(store, "h.")
        os.unlink(os.path.join(SHM, claim))
        os.rename(path, path + "x")
        with sa.Store() as another, sa.Store(small=0) as large:
            array, block = made(another, 2), made(large, 3)
            for source in (next(iter(files(another, "s."))), next(iter(files(large, "a.")))):
                os.link(os.path.join(SHM, source), path)
                with pytest.raises(sa.CorruptBlockError):
                    pickle.loads(handle)
                os.unlink(path)
            del array, block
        os.mkdir(path)
        with pytest.raises(sa.CorruptBlockError):
            pickle.loads(handle)
        os.rmdir(path)
        with pytest.raises(sa.ArrayNotFoundError):
            pickle.loads(handle)
        other = names.slab(form.slab_number(5))
        os.rename(path + "x", os.path.join(SHM, entry.partition(".s.")[0] + "." + other))
        _, (key, spec) = _parts(handle)
        with pytest.raises(sa.CorruptBlockError):
            arrays._attach_small((*key[:2], form.number_of(form.slab_number(5), 0, 1), *key[3:]), spec)
        maker.finish()
        for left in files(store):
            os.unlink(os.path.join(SHM, left))


def _parts(handle: bytes) -> tuple[Any, tuple[Any, Any]]:
    """Take a handle apart."""
    found: list[Any] = []

    class Unpickler(pickle.Unpickler):
        def find_class(self, _: str, name: str) -> Any:
            return lambda *args: found.append((name, args))

    Unpickler(io.BytesIO(handle)).load()
    return found[0][0], found[0][1]
