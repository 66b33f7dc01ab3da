"""Whole numbers, as a user gives them.

Owns: which values can be a number of something, and what is said of those that cannot.
Must not know: what is counted.
"""

from __future__ import annotations

import operator

_MOST = (1 << 63) - 1  # what a word holds


def check(number: object, what: str) -> int:
    """Give a whole number; `what` is the argument's name. Raises `TypeError` for other types, bool too, `OverflowError` beyond 64 bits."""
    try:
        checked = operator.index(number)  # type: ignore[arg-type]  # that is the question
    except TypeError:
        checked = None
    if checked is None or isinstance(number, bool):
        message = f"{what} must be a whole number, not {number!r}"
        raise TypeError(message)
    if not -_MOST <= checked <= _MOST:
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
