"""Emptying a list of what has ended: nothing is lost when an exception comes between."""

from __future__ import annotations

import threading
from collections import deque

import pytest

from shmarray._os import endings


def test_all_are_seen_to_in_order_also_those_that_end_meanwhile() -> None:
    """All is seen to, in the order of its end, and what ends in the middle of it too."""
    ended = deque([1, 2])
    seen: list[int] = []

    def see_to(one: int) -> None:
        seen.append(one)
        if one == 1:
            ended.append(3)

    endings.drain(ended, see_to)
    assert seen == [1, 2, 3]
    assert not ended


def test_what_an_exception_came_before_is_seen_to_the_next_time() -> None:
    """An exception in the middle leaves what it came before for the next time."""
    ended = deque(range(5))
    seen: list[int] = []
    left = [2]

    def see_to(one: int) -> None:
        if one == 2 and left.pop() == 2:
            left.append(0)
            raise KeyboardInterrupt
        seen.append(one)

    with pytest.raises(KeyboardInterrupt):
        endings.drain(ended, see_to)
    endings.drain(ended, see_to)
    assert sorted(seen) == [0, 1, 2, 3, 4]


def test_an_index_error_of_who_sees_to_it_is_not_swallowed() -> None:
    """That the list is empty is no error; an error of the same kind from elsewhere is one."""

    def see_to(one: int) -> None:
        raise IndexError(one)

    with pytest.raises(IndexError):
        endings.drain(deque([7]), see_to)


def test_threads_see_to_each_once() -> None:
    """Several threads at once see to each once."""
    ended = deque(range(20_000))
    seen: list[int] = []
    threads = [threading.Thread(target=endings.drain, args=(ended, seen.append)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == list(range(20_000))
