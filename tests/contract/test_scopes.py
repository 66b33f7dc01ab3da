"""What begins a `with` block, taken for what the block is given: an error that says how to write it, and nothing else is disturbed."""

from __future__ import annotations

import asyncio
import copy
import pickle
import types
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    import shmarray as sa

MAKERS: dict[str, tuple[Callable[[Any, Any, Any], Any], str, str]] = {
    "write": (lambda array, _, __: array.write(), "with a.write() as view", "view"),
    "read": (lambda array, _, __: array.read(timeout=1), "with a.read() as view", "view"),
    "tree": (lambda _, tree, __: tree.read(), "with a.read() as view", "view"),
    "loan": (lambda _, __, channel: channel.loan(), "with channel.loan() as frame", "frame"),
    "receive": (lambda _, __, channel: channel.receive(), "with channel.receive() as frame", "frame"),
    "aloan": (lambda _, __, channel: channel.aloan(), "async with channel.aloan() as frame", "frame"),
    "areceive": (lambda _, __, channel: channel.areceive(), "async with channel.areceive() as frame", "frame"),
}


@pytest.fixture
def made(store: sa.Store, request: pytest.FixtureRequest) -> Any:
    """The manager that the test is about."""
    make = MAKERS[request.param][0]
    return make(store.ones(3), store.put({"w": np.ones(3)}), store.channel(3))


def said(kind: type[Exception], act: Callable[[], object], remedy: str) -> None:
    """Run what must be refused with this remedy."""
    with pytest.raises(kind) as caught:
        act()
    assert type(caught.value) is kind
    assert f"Write `{remedy}" in str(caught.value), str(caught.value)


@pytest.mark.parametrize(("made", "what"), [(what, what) for what in MAKERS], indirect=["made"])
def test_a_manager_that_is_used_as_the_array_says_how_its_block_begins(made: Any, what: str) -> None:
    """Methods, properties, elements, `for`, and NumPy's functions; nothing was acquired by that."""
    _, opening, name = MAKERS[what]
    said(AttributeError, lambda: made.sum, f"{opening}: {name}.sum()`")
    said(AttributeError, lambda: made.shape, f"{opening}: {name}.shape`")
    said(AttributeError, lambda: made.items, f"{opening}: {name}.items()`")
    said(AttributeError, lambda: setattr(made, "flat", 0), f"{opening}: {name}.flat = ...`")
    said(TypeError, lambda: made[0], f"{opening}: {name}[...]`")
    said(TypeError, lambda: made.__setitem__(0, 1), f"{opening}: {name}[...] = ...`")
    said(TypeError, lambda: list(made), opening)
    said(TypeError, lambda: 1 in made, opening)
    for act in (np.asarray, np.sum, lambda value: np.ones(3) + value):
        said(TypeError, lambda act=act: act(made), opening)  # type: ignore[misc]  # the default is the variable of the loop


@pytest.mark.parametrize("made", MAKERS, indirect=True)
def test_what_a_manager_has_not_it_does_not_seem_to_have(made: Any) -> None:
    """`hasattr`, `dir`, the truth value, protocols looked up on the class, `copy` and `pickle` find what they found without this."""
    kind = type(made)
    for name in ("sum", "shape", "keys", "__array_interface__", "__len__", "_ipython_display_", "nothing"):
        assert not hasattr(made, name)
        assert not hasattr(kind, name)
    assert getattr(made, "sum", 5) == 5
    assert "sum" not in dir(made)
    assert "_opening" in dir(made)
    assert made
    with pytest.raises(AttributeError, match="nothing"):
        made.nothing  # noqa: B018  the look-up is what is refused
    for act in (copy.copy, copy.deepcopy, pickle.dumps):
        try:
            act(made)
        except (AttributeError, TypeError) as error:
            assert "Write" not in str(error)  # noqa: PT017  it may fail or not, as any object that is not meant for it


def test_the_block_of_a_manager_begins_as_before(store: sa.Store) -> None:
    """With what it has itself: `meta`, `published`, `frame`; an item in hand says where its data are."""
    array, channel = store.ones(3), store.channel(3)
    with array.write() as view:
        view[0] = 5
    with channel.loan(meta="m") as frame:
        frame[:] = array
    item = channel.receive()
    with item as frame:
        assert (frame.sum(), item.frame.sum(), item.meta, item.sequence) == (7, 7, "m", 0)
        said(AttributeError, lambda: item.sum, "item.frame.sum()`")  # type: ignore[attr-defined]
        said(TypeError, lambda: item[0], "item.frame[...]`")  # type: ignore[index]

    async def run() -> tuple[Any, Any]:
        with pytest.raises(TypeError, match=r"Write `async with channel.aloan"):
            await channel.aloan()  # type: ignore[misc]
        with pytest.raises(TypeError, match=r"Write `async with channel.areceive"):
            await asyncio.wait_for(channel.areceive(), 10)  # type: ignore[arg-type]
        async with channel.aloan() as lent:
            lent[:] = 2
        received = channel.areceive()
        async with received as got:
            return got.sum(), received.item.sequence

    assert asyncio.run(run()) == (6, 1)


@pytest.mark.parametrize("made", MAKERS, indirect=True)
def test_attributes_on_the_way_into_a_block_are_reached_as_fast_as_can_be(made: Any) -> None:
    """No class has a `__getattr__`, with which Python 3.11 looks up every attribute the slow way."""
    assert [
        kind
        for kind in type(made).__mro__
        if {"__getattr__", "__getattribute__"} & vars(kind).keys() and kind is not object
    ] == []
    own = [name for kind in type(made).__mro__ for name in vars(kind).get("__slots__", ())]
    assert all(isinstance(getattr(type(made), name), types.MemberDescriptorType) for name in own)
