"""What has no name in a store, because it does not lie in shared memory."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

import shmarray as sa

if TYPE_CHECKING:
    from tests.hosting.things import Things


def test_a_proxy_is_refused_as_the_value_of_a_name_and_the_message_says_what_to_do(common: Things) -> None:
    """`store["x"] = proxy` and `put` raise DTypeError, which names the type of proxy, what can be stored, and the other ways."""
    proxy: Any = common.Thing(3)
    with pytest.raises(sa.DTypeError, match="proxy") as caught:
        common["x"] = proxy
    assert type(proxy).__name__ in caught.value.summary
    for word in ("argument", "queue", "arrays", "locks"):
        assert word in caught.value.remedy
    with pytest.raises(sa.DTypeError, match="proxy"):
        common.put(proxy)
    assert "x" not in common
    assert proxy.get() == 3


@pytest.mark.parametrize("value", [object(), threading.Lock(), {1, 2}, None, len])
def test_what_is_no_array_is_refused_with_its_type_and_with_what_can_be_put(value: Any) -> None:
    """Any other object: the message names its type and not a dtype that nobody asked for."""
    with sa.Store() as store:
        with pytest.raises(sa.DTypeError) as caught:
            store["x"] = value
        assert type(value).__name__ in caught.value.summary
        assert "queues" in caught.value.remedy
        assert caught.value.dtype == "object"
        assert len(store) == 0
