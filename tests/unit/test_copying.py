"""Copies cut into pieces are what NumPy copies at once."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as npst

from shmarray import copying
from tests.helpers.copies import all_shared, record_starts

DTYPES: st.SearchStrategy[Any] = st.sampled_from(
    ["u1", "<i2", ">f4", "f8", "c16", "S3", "V7", [("a", "u1"), ("b", ">f8", (2,))]]
)


@st.composite
def views(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    """Arrays of any dtype, shape and order: axes exchanged, in steps, backwards, repeated."""
    shape = draw(npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9))
    dtype = np.dtype(draw(DTYPES))
    count = int(np.prod(shape)) * dtype.itemsize
    array = np.resize(np.arange(251, dtype=np.uint8), count).view(dtype) if count else np.zeros(0, dtype)
    array = array.reshape(shape).transpose(draw(st.permutations(range(len(shape)))))
    if array.ndim and draw(st.booleans()):
        array = array[tuple(slice(None, None, draw(st.sampled_from([1, 2, -1]))) for _ in range(array.ndim))]
    if array.ndim and draw(st.booleans()):
        array = np.broadcast_to(array, (draw(st.integers(1, 3)), *array.shape))
    return array


@given(views(), st.sampled_from("CFKA"), st.integers(1, 4), st.sampled_from([1, 7, 64, 1000]))
def test_a_shared_copy_is_numpys(source: np.ndarray[Any, Any], order: Any, threads: int, piece: int) -> None:
    """Bytes, shape, dtype and order are those of `source.copy(order)`, for all kinds of arrays and pieces."""
    expected = source.copy(order)
    with all_shared(threads, piece):
        made = copying.duplicate(source, order, threads)
        target = np.empty_like(source, order=order, subok=False)
        copying.copy(target, source, threads)
    for array in (made, target):
        assert (array.shape, array.dtype) == (expected.shape, expected.dtype)
        assert array.flags.c_contiguous == expected.flags.c_contiguous
        assert array.flags.f_contiguous == expected.flags.f_contiguous
        assert array.tobytes("A") == expected.tobytes("A")
    assert made.flags.owndata


@pytest.mark.parametrize("nbytes", [copying.LEAST - 8, copying.LEAST])
def test_what_is_too_small_is_copied_by_the_calling_thread_alone(nbytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread is started from `LEAST` bytes on."""
    started = record_starts(monkeypatch)
    source = np.arange(nbytes // 8)
    assert (copying.duplicate(source, "C", 2) == source).all()
    assert len(started) == (nbytes >= copying.LEAST)
