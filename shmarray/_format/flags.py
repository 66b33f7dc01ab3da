"""Yes or no, as a user says it.

Owns: which values can be the one or the other, and what is said of those that cannot.
Must not know: what is asked.
"""

from __future__ import annotations

import numpy as np


def check(value: object, what: str, besides: str = "") -> bool:
    """Give True or False; `what` is the argument's name. Raises `TypeError` for all else, such as "no", which is true in an `if`."""
    if not isinstance(value, (bool, np.bool_)):
        message = f"{what} must be True or False{besides}, not {value!r}"
        raise TypeError(message)
    return bool(value)


def check_if_said(value: object, what: str) -> bool | None:
    """Give True or False, or None, for which this library decides. Raises `TypeError`."""
    return None if value is None else check(value, what, ", or None for what is usual")


def check_block(block: object, what: str = "block") -> bool:
    """Give True or False, for which 1 and 0 will do as well, as in `multiprocessing`. Raises `TypeError`, also for seconds to wait."""
    if isinstance(block, (bool, np.bool_)) or (isinstance(block, int) and block in (0, 1)):
        return bool(block)
    message = f"{what} must be True or False, not {block!r}"
    if what == "block" and isinstance(block, (int, float, np.number)):
        message += f"; seconds to wait are given by name, timeout={block!r}"
    raise TypeError(message)
