"""Classes of records that can be imported by name, as those of a user's program."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple


class Point(NamedTuple):
    """A namedtuple."""

    x: Any
    y: Any


@dataclasses.dataclass
class Layer:
    """A dataclass with an array, a number and a nested record."""

    weight: Any
    bias: Any = None
    rate: float = 0.5
    origin: Point | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Fixed:
    """A dataclass that refuses assignment."""

    numbers: Any
    label: str
