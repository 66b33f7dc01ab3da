"""What NumPy's methods compute from an array: plain ndarrays.

Owns: the methods whose result NumPy would give the class of the array, though its memory is private. (Operators and functions are plain
already, see `arrays`.)
Must not know: where the memory of an array is.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np


class Computing(np.ndarray[Any, np.dtype[Any]]):
    """An ndarray of which methods that compute or copy give plain ones."""

    __slots__ = ()

    def __iadd__(self, other: Any) -> Self:  # type: ignore[misc]  # of whatever NumPy adds in place
        """Add in place. Raises `TypeError` for what will not be added to an array of NumPy's, as a tensor.

        NumPy says so by `NotImplemented`, and Python, which takes an array for a sequence here, would bind that to the name.
        """
        result = super().__iadd__(other)
        if result is NotImplemented:
            kind = type(other).__name__
            remedy = "Give NumPy's array: a += numpy.asarray(b), or b.numpy() of a tensor."
            message = f"a {kind} cannot be added to a shared array in place\n{remedy}"
            raise TypeError(message)
        return result

    def astype(self, dtype: Any, *args: Any, **kwargs: Any) -> np.ndarray[Any, Any]:
        """Convert; the result is a plain ndarray, as from `numpy.asarray(self).astype`."""
        return self.view(np.ndarray).astype(dtype, *args, **kwargs)

    def flatten(self, order: Any = "C") -> np.ndarray[Any, Any]:
        """Copy into one dimension, in private memory."""
        return self.view(np.ndarray).flatten(order)

    def byteswap(self, inplace: bool = False) -> np.ndarray[Any, Any]:  # type: ignore[override]  # noqa: FBT001, FBT002  as NumPy has it
        """Swap the bytes of each element: in place, or in a plain copy."""
        return super().byteswap(inplace=True) if inplace else self.view(np.ndarray).byteswap()

    def take(self, *args: Any, **kwargs: Any) -> Any:
        """Copy elements by index, into private memory."""
        return self.view(np.ndarray).take(*args, **kwargs)

    def repeat(self, *args: Any, **kwargs: Any) -> Any:
        """Repeat elements, in private memory."""
        return self.view(np.ndarray).repeat(*args, **kwargs)

    def compress(self, *args: Any, **kwargs: Any) -> Any:
        """Copy selected slices, into private memory."""
        return self.view(np.ndarray).compress(*args, **kwargs)

    def argsort(self, *args: Any, **kwargs: Any) -> Any:
        """Find the indices that would sort the array."""
        return self.view(np.ndarray).argsort(*args, **kwargs)

    def argmax(self, *args: Any, **kwargs: Any) -> Any:
        """Find the index of the greatest element."""
        return self.view(np.ndarray).argmax(*args, **kwargs)

    def argmin(self, *args: Any, **kwargs: Any) -> Any:
        """Find the index of the smallest element."""
        return self.view(np.ndarray).argmin(*args, **kwargs)

    def argpartition(self, *args: Any, **kwargs: Any) -> Any:
        """Find the indices that would partition the array."""
        return self.view(np.ndarray).argpartition(*args, **kwargs)

    def dot(self, *args: Any, **kwargs: Any) -> Any:
        """Multiply as `numpy.dot` does."""
        return self.view(np.ndarray).dot(*args, **kwargs)
