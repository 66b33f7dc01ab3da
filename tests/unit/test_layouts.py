"""Layouts: shapes, sizes and strides say the same as NumPy does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmarray._format import layouts
from shmarray.errors import ShapeError

SHAPES = st.lists(st.integers(0, 5), max_size=5).map(tuple)
MOST = (1 << 63) - 1


class _Length:
    """An integer to whoever asks for an index."""

    def __index__(self) -> int:
        return 3


@pytest.mark.parametrize(
    ("shape", "expected"),
    [(3, (3,)), ((), ()), ([2, 0], (2, 0)), (np.int64(4), (4,)), ((np.uint8(1), 2), (1, 2)), (_Length(), (3,)), (range(3), (0, 1, 2)),
     (np.array([2, 3]), (2, 3)), (True, (1,)), (iter([1, 2]), (1, 2))],
)  # fmt: skip
def test_a_shape_becomes_a_tuple_of_integers(shape: object, expected: tuple[int, ...]) -> None:
    """Whatever NumPy takes for a shape is taken, and comes out as plain integers."""
    got = layouts.check_shape(shape)
    assert got == expected
    assert all(type(length) is int for length in got)


@pytest.mark.parametrize(
    "shape", [-1, (2, -1), 1.5, (1.0,), "ab", b"ab", None, (None,), [[1]], {1: (2,)}.items(), (1,) * 65, object()]
)
def test_what_is_no_shape_is_refused(shape: object) -> None:
    """`ShapeError`, which is a `ValueError`, carries the shape and ends with the remedy."""
    with pytest.raises(ShapeError) as caught:
        layouts.check_shape(shape)
    assert isinstance(caught.value, ValueError)
    assert caught.value.shape is shape
    assert str(caught.value).endswith("Give a non-negative integer or a tuple of them.")


def test_a_refused_shape_is_quoted_but_not_at_any_length() -> None:
    """The message of a shape of a million lengths is still a message."""
    with pytest.raises(ShapeError) as caught:
        layouts.check_shape([-1] * 1_000_000)
    assert len(str(caught.value)) < 500


@pytest.mark.core
@given(SHAPES, st.sampled_from(["u1", "<i2", "f8", "c16", "V3", "S0"]))
def test_an_array_takes_as_many_bytes_as_numpy_says(shape: tuple[int, ...], dtype: str) -> None:
    """Size is what NumPy's own array of that shape and dtype has."""
    model = np.empty(shape, dtype)
    assert layouts.nbytes(shape, model.dtype.itemsize) == model.nbytes


@pytest.mark.parametrize("shape", [(1 << 63,), (1 << 62, 8), (1 << 40, 1 << 40), (0, 1 << 63), (1 << 62, 0, 4)])
def test_a_shape_that_no_address_can_reach_is_refused(shape: tuple[int, ...]) -> None:
    """Also where one length is zero, as NumPy refuses it; nothing is computed in 64 bits."""
    with pytest.raises(ShapeError, match="more than any address"):
        layouts.nbytes(shape, 8)
    with pytest.raises(ValueError, match=r"array is too big|Maximum allowed"):
        np.empty(shape, "f8")


@given(st.integers(1, 8), st.integers(0, MOST))
def test_the_border_of_what_can_be_addressed_is_exact(itemsize: int, length: int) -> None:
    """2**63 - 1 bytes can be expressed, one more cannot."""
    if itemsize * length <= MOST:
        assert layouts.nbytes((length,), itemsize) == itemsize * length
    else:
        with pytest.raises(ShapeError):
            layouts.nbytes((length,), itemsize)


@given(SHAPES, st.randoms(use_true_random=False), st.sampled_from(["u1", "f8", "V3"]))
def test_any_order_of_axes_in_memory_is_dense_and_kept(shape: tuple[int, ...], random: Any, dtype: str) -> None:
    """Strides for an axis order are those NumPy gives a transposed copy, and the order is read back from them."""
    axes = list(range(len(shape)))
    random.shuffle(axes)
    kind = np.dtype(dtype)
    model = np.empty([shape[axis] for axis in axes], kind).transpose(np.argsort(axes))
    assert model.shape == shape
    steps = layouts.strides(shape, kind.itemsize, axes)
    if steps is None:
        assert axes == sorted(axes)
        steps = np.empty(shape, kind).strides
    if model.size:
        assert steps == model.strides
        again = layouts.strides(shape, kind.itemsize, layouts.axes_of(shape, steps))
        view = np.ndarray(shape, kind, bytearray(model.nbytes), 0, again)
        assert view.flags.forc == model.flags.forc
        assert np.lib.array_utils.byte_bounds(view)[1] - np.lib.array_utils.byte_bounds(view)[0] == model.nbytes


@pytest.mark.core
@given(SHAPES, st.randoms(use_true_random=False))
def test_the_axis_order_of_an_array_is_what_numpy_calls_k(shape: tuple[int, ...], random: Any) -> None:
    """`axes_of` lays out a copy as `numpy.empty_like` does, also of a reversed array."""
    axes = list(range(len(shape)))
    random.shuffle(axes)
    array = np.empty(shape).transpose(axes)[tuple(slice(None, None, random.choice([1, -1])) for _ in shape)]
    if array.size:
        steps = layouts.strides(array.shape, 8, layouts.axes_of(array.shape, array.strides))
        ours = np.empty(array.shape).strides if steps is None else steps
        # Where an axis has one element its stride says nothing.
        told = [
            (mine, numpys)
            for mine, numpys, n in zip(ours, np.empty_like(array).strides, array.shape, strict=True)
            if n > 1
        ]
        assert [mine for mine, _ in told] == [numpys for _, numpys in told]


@given(st.lists(st.integers(0, 1000), max_size=20))
def test_arrays_are_placed_without_overlap_at_multiples_of_64(sizes: list[int]) -> None:
    """Each array begins at a cache line, behind the one before it and before the end of all."""
    placed, total = layouts.place(layouts.Layout((size,), None, size) for size in sizes)
    end = 0
    for layout, size in zip(placed, sizes, strict=True):
        assert layout.nbytes == size
        assert layout.offset % layouts.ALIGN == 0
        assert end <= layout.offset < end + layouts.ALIGN
        end = layout.offset + size
    assert end <= total < end + layouts.ALIGN


def test_the_largest_number_of_dimensions_is_numpys() -> None:
    """64 dimensions are allowed by both, 65 by neither."""
    assert layouts.check_shape((1,) * 64) == np.empty((1,) * 64).shape
    with pytest.raises(ValueError, match="maximum"):
        np.empty((1,) * 65)
