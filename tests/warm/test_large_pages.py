"""Memory that is used again and again goes into large pages, where the kernel can, and nothing else changes."""

from __future__ import annotations

import errno
import re

import numpy as np
import pytest

import shmarray as sa
from shmarray import contents, memories
from shmarray._os import segments

SIZE = 2 * segments.LARGE_PAGE
USES = memories._SEASONED + memories._MERGED_IN + 2

pytestmark = pytest.mark.core


def large_pages_at(address: int) -> int:
    """Bytes that are mapped by large pages in the mapping of this process that begins there, by the kernel's word."""
    with open("/proc/self/smaps", encoding="ascii") as file:
        for part in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", file.read()):
            if part.startswith(f"{address:x}-"):
                found = re.search(r"ShmemPmdMapped:\s+(\d+) kB", part)
                return int(found[1]) << 10 if found else 0
    raise AssertionError(f"nothing is mapped at {address:x}")


def used_again(store: sa.Store, source: np.ndarray, times: int) -> sa.SharedArray:
    """Put and drop an array so many times, and give the last one; it lies where the first one did."""
    array: sa.SharedArray = store.put(source)
    file = contents.inode_of(array)
    for _ in range(times):
        del array
        array = store.put(source)
    assert contents.inode_of(array) == file
    return array


@pytest.fixture
def merges() -> None:
    """Skip where this kernel does not make large pages of shared memory."""
    fd, _ = segments.create_leased(segments.SHM_DIRECTORY, lambda: "shmarray.unused")
    try:
        segments.resize(fd, segments.LARGE_PAGE)
        segments.reserve(fd, 0, segments.LARGE_PAGE)
        segment = segments.map_shared(fd, segments.LARGE_PAGE, populate=True)
        refused = segments.merge(segment, 0, segments.LARGE_PAGE)
    finally:
        fd.close()
    if refused:
        pytest.skip(f"no large pages of shared memory here: {errno.errorcode.get(refused, refused)}")


@pytest.mark.usefixtures("merges")
def test_memory_that_is_used_again_and_again_lies_in_large_pages_and_holds_what_was_put() -> None:
    """Contents and large pages, by the kernel's word."""
    source = np.random.default_rng(5).integers(0, 1 << 60, SIZE // 8)
    with sa.Store() as store:
        array = used_again(store, source, USES)
        np.testing.assert_array_equal(array, source)
        segment = contents.segment_of(array)
        assert segment is not None
        assert large_pages_at(segments.address_of(segment)) == SIZE
        array[:] = 0
        assert not array.any()


def test_memory_that_was_used_a_few_times_stays_as_it_is() -> None:
    """Few uses are not worth it."""
    with sa.Store() as store:
        array = used_again(store, np.ones(SIZE // 8), 5)
        segment = contents.segment_of(array)
        assert segment is not None
        assert array.sum() == SIZE // 8
        assert large_pages_at(segments.address_of(segment)) == 0


@pytest.mark.parametrize(("answer", "asked"), [(errno.EINVAL, 1), (errno.EAGAIN, 2)])
def test_a_kernel_that_refuses_is_not_asked_again_and_one_that_cannot_just_now_is_for_the_rest(
    monkeypatch: pytest.MonkeyPatch, answer: int, asked: int
) -> None:
    """`EINVAL` is for good; anything else is about that part."""
    calls: list[tuple[int, int]] = []

    def refuse(segment: segments.Segment, offset: int, size: int) -> int:
        del segment
        calls.append((offset, size))
        return answer

    monkeypatch.setattr(segments, "merge", refuse)
    with sa.Store() as store:
        array = used_again(store, np.ones(SIZE // 8), USES)
        assert array.sum() == SIZE // 8
    assert len(calls) == asked
    assert [offset for offset, _ in calls] == [number * segments.LARGE_PAGE for number in range(asked)]


def test_a_mapping_of_some_large_pages_begins_where_one_can() -> None:
    """Nothing is laid out by us: the kernel does it."""
    with sa.Store() as store:
        array = store.zeros(SIZE // 8 + 100)  # the file is not a whole number of large pages
        segment = contents.segment_of(array)
        assert segment is not None
        if segments.address_of(segment) % segments.LARGE_PAGE:
            pytest.skip("this kernel does not lay anonymous memory there")
        array[:] = 7
        assert array.sum() == 7 * array.size
