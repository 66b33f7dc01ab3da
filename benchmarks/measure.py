"""Samples and what they say: percentiles, ratios by round, aims.

Owns: how long to go on sampling, the summary of a contender's samples, the comparison of two contenders, the judgement
whether an aim is reached.
Must not know: what was measured, or how. All times are in seconds.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Comparison = Literal["rate", "time", "size", "median", "most", "beyond"]
Unit = Literal["seconds", "bytes"]
_TIMES = "\N{MULTIPLICATION SIGN}"
_SIGNS = {"rate": "≥", "time": "≤", "size": "≤", "median": "≤", "most": "≤", "beyond": "≤"}


@dataclasses.dataclass(frozen=True, slots=True)
class Scale:
    """How much to do: `quick` for a look, else for a result; each measure gets `seconds` of samples in each round."""

    quick: bool
    sessions: int
    rounds: int
    seconds: float

    @classmethod
    def of(cls, *, quick: bool) -> Scale:
        """Give the scale of a quick or a full run."""
        return cls(quick=True, sessions=1, rounds=2, seconds=0.02) if quick else cls(False, 3, 8, 0.15)

    def samples(self, least: int = 1, most: int = 500) -> Iterator[int]:
        """Count samples until the time is spent: at least `least`, at most `most` of them."""
        end = time.perf_counter() + self.seconds
        for number in range(most):
            yield number
            if number + 1 >= least and time.perf_counter() > end:
                return


@dataclasses.dataclass(frozen=True, slots=True)
class Measure:
    """One quantity of a case.

    `nbytes`, if given, is what is moved in that time, and `items` what happens once in it, so that a rate can be shown. `unit` is
    what samples are in: "seconds" or "bytes".
    """

    key: str
    title: str
    nbytes: int | None = None
    items: str | None = None
    unit: Unit = "seconds"


@dataclasses.dataclass(frozen=True, slots=True)
class Aim:
    """What is to be reached: contender `of` against contender `than` in one measure.

    `how` is "rate" (at least `bound` times the rate of `than`), "time" or "size" (at most `bound` times the time, or bytes, of
    `than`), "median" (a median of at most `bound` seconds; no `than`), "most" (at most `bound` seconds each time; no `than`), or
    "beyond" (at most `bound` seconds more than `than`). `than_measure` is the measure of `than`, if it is not the same one.
    """

    measure: str
    of: str
    how: Comparison
    bound: float
    than: str | None = None
    than_measure: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Spread:
    """A median over rounds, and its quartiles."""

    median: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, slots=True)
class Summary:
    """What the samples of one contender say; `rounds` has the median of each round."""

    count: int
    median: float
    p10: float
    p90: float
    p99: float
    least: float
    most: float
    rounds: list[float]


def summary(rounds: Sequence[Sequence[float]]) -> Summary:
    """Summarise samples that were taken in rounds; a round without samples is left out.

    >>> summary([[1.0, 2.0, 3.0], [5.0]]).rounds
    [2.0, 5.0]
    """
    taken = [np.asarray(samples) for samples in rounds if samples]
    together = np.concatenate(taken)
    p10, median, p90, p99 = (float(value) for value in np.percentile(together, (10, 50, 90, 99)))
    medians = [float(np.median(samples)) for samples in taken]
    return Summary(len(together), median, p10, p90, p99, float(together.min()), float(together.max()), medians)


def spread(values: Sequence[float]) -> Spread:
    """Give median and quartiles.

    >>> spread([3.0, 1.0, 2.0])
    Spread(median=2.0, low=1.5, high=2.5)
    """
    low, median, high = (float(value) for value in np.percentile(np.asarray(values), (25, 50, 75)))
    return Spread(median, low, high)


def ratio(of: Summary, than: Summary) -> Spread:
    """Compare times round by round, so that what disturbs both alike cancels: how many times as long `of` takes as `than`."""
    return spread([one / other for one, other in zip(of.rounds, than.rounds, strict=False)])


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """How an aim came out: the value with its spread over rounds, and whether it is reached."""

    aim: Aim
    value: Spread
    reached: bool

    @property
    def text(self) -> str:
        """Say the aim and what became of it."""
        aim = self.aim
        sign = _SIGNS[aim.how]
        if aim.how in ("rate", "time", "size"):
            where = f' in "{aim.than_measure}"' if aim.than_measure else ""
            what = f"aim: {sign} {aim.bound:g} {_TIMES} the {aim.how} of {aim.than}{where}"
            value = ratio_text(self.value.median, self.value.low, self.value.high)
        elif aim.how == "most":
            what = f"aim: {sign} {time_text(aim.bound)} each time"
            value = f"{time_text(self.value.median)} at most"
        else:
            what = f"aim: {sign} {time_text(aim.bound)}" + (f" beyond {aim.than}" if aim.than else "")
            value = f"{time_text(self.value.median)} [{time_text(self.value.low)}, {time_text(self.value.high)}]"
        return f"{what}: {value}{',' if aim.how == 'most' else ''} {'reached' if self.reached else 'MISSED'}"


def judge(aim: Aim, summaries: dict[str, Summary], others: dict[str, Summary] | None = None) -> Verdict | None:
    """Judge an aim; None when one of the two was not measured. `others` are the summaries of `than_measure`, if there is one."""
    of = summaries.get(aim.of)
    than = (summaries if others is None else others).get(aim.than) if aim.than is not None else None
    if of is None or (aim.than is not None and than is None):
        return None
    if aim.how == "most":
        return Verdict(aim, Spread(of.most, of.most, of.most), of.most <= aim.bound)
    if than is None:
        value = spread(of.rounds)
        return Verdict(aim, Spread(of.median, value.low, value.high), of.median <= aim.bound)
    if aim.how == "beyond":
        value = spread([one - other for one, other in zip(of.rounds, than.rounds, strict=False)])
        return Verdict(aim, value, value.median <= aim.bound)
    if aim.how == "rate":
        value = ratio(than, of)
        return Verdict(aim, value, value.median >= aim.bound)
    value = ratio(of, than)
    return Verdict(aim, value, value.median <= aim.bound)


def time_text(seconds: float) -> str:
    """Write a time for people, in three digits.

    >>> time_text(0.0123), time_text(4.56e-06)
    ('12.3 ms', '4.56 µs')
    """
    size = abs(seconds)
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if size >= factor:
            return f"{seconds / factor:.3g} {unit}" if size < 999.5 * factor else f"{seconds / factor:.0f} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def ratio_text(median: float, low: float, high: float) -> str:
    """Write a ratio with its quartiles for people.

    >>> print(ratio_text(1.234, 0.00321, 1234.5).encode("ascii", "replace").decode())
    1.23 ? [0.0032, 1234]
    """
    texts = [_ratio(value) for value in (median, low, high)]
    return f"{texts[0]} {_TIMES} [{texts[1]}, {texts[2]}]"


def _ratio(value: float) -> str:
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def size_text(nbytes: float) -> str:
    """Write an amount of memory for people.

    >>> size_text(1.5 * 2**30), size_text(-300 * 2**10)
    ('1.5 GiB', '-300 KiB')
    """
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if abs(nbytes) >= 1 << power:
            return f"{nbytes / (1 << power):.3g} {unit}"
    return f"{nbytes:.0f} bytes"


def count_text(number: float) -> str:
    """Write how many for people, in three digits.

    >>> count_text(46.04), count_text(1_234.5), count_text(954_321), count_text(1_300_000)
    ('46', '1,230', '954,000', '1,300,000')
    """
    return f"{float(f'{number:.3g}'):,.{0 if number >= 99.95 else 1}f}".removesuffix(".0")


def rate_text(bytes_per_second: float) -> str:
    """Write a rate for people.

    >>> rate_text(2.8e9)
    '2.8 GB/s'
    """
    return f"{bytes_per_second / 1e9:.2g} GB/s" if bytes_per_second < 9.95e9 else f"{bytes_per_second / 1e9:.1f} GB/s"
