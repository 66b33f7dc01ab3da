"""Whole numbers, as a user gives them.

Owns: which values can be a number of something, or a position, and what is said of those that cannot.
Must not know: what is counted.
"""

from __future__ import annotations

import operator

MOST = (1 << 63) - 1
"""What a word holds."""


def check(number: object, what: str) -> int:
    """Give a whole number; `what` is the argument's name. Raises `TypeError` for other types, bool too, `OverflowError` beyond 64 bits."""
    if isinstance(number, bool):
        raise _no_number(number, what)
    checked = position(number, what)
    if not -MOST <= checked <= MOST:
        message = f"{what} must be a number of at most 64 bits, and {checked} is not"
        raise OverflowError(message)
    return checked


def between(number: object, what: str, least: int, most: int) -> int:
    """Give a whole number in this range. Raises `TypeError`, `ValueError`."""
    try:
        checked = check(number, what)
    except OverflowError:
        checked = most + 1
    if not least <= checked <= most:
        message = f"{what} lies between {least} and {most}, and {number} does not"
        raise ValueError(message)
    return checked


def position(number: object, what: str) -> int:
    """Give a position in a sequence, for which False and True will do as well. Raises `TypeError`."""
    try:
        return operator.index(number)  # type: ignore[arg-type]  # that is the question
    except TypeError:
        raise _no_number(number, what) from None


def _no_number(value: object, what: str) -> TypeError:
    return TypeError(f"{what} must be a whole number, not {value!r}")
