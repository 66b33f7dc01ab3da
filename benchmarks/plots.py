"""A result as pictures, one for each case.

Owns: what the pictures look like, and their names. It needs matplotlib, so it is imported only when pictures are asked for.
Must not know: how anything was measured; it reads the result as it stands in its JSON file.

A panel shows one measure: a dot at the median of each contender on a logarithmic scale, the best on top, a line from the 10th to the
90th percentile, and in words the value and how it compares with the reference, which a line across marks.
"""

from __future__ import annotations

import math
import os
import textwrap
from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.measure import count_text, size_text, time_text

if TYPE_CHECKING:
    from collections.abc import Callable

_COLOURS = {"ours": "#0b6e8a", "rival": "#5c5c5c", "limit": "#b0762a"}
_WORDS = {"ours": "shmarray", "rival": "others", "limit": "a limit of the machine, which keeps no promise"}
_WIDTH, _ROW, _HEAD, _FOOT = (
    7.8,
    0.27,
    1.0,
    0.9,
)  # inches: a panel, a contender in it, what is around that, what is below all
_TITLE = 74  # characters


def write(result: dict[str, Any], directory: str) -> list[str]:
    """Write a PNG for each case that has samples into a directory, which is made; returns their paths. Raises `OSError`."""
    os.makedirs(directory, exist_ok=True)
    paths = []
    for case in result["cases"]:
        measures = [measure for measure in case["measures"] if measure["rows"]]
        if measures:
            paths.append(os.path.join(directory, f"{case['name']}.png"))
            FigureCanvasAgg(_figure(result, case, measures)).print_png(paths[-1])
    return paths


def _figure(result: dict[str, Any], case: dict[str, Any], measures: list[dict[str, Any]]) -> Figure:
    columns = 1 if len(measures) == 1 else 2
    lines = [measures[start : start + columns] for start in range(0, len(measures), columns)]
    heights = [max(len(measure["rows"]) for measure in line) * _ROW + _HEAD for line in lines]
    figure = Figure(figsize=(_WIDTH * columns, sum(heights) + _FOOT + 0.5), dpi=100, layout="constrained")
    foot = _FOOT / figure.get_figheight()
    figure.set_layout_engine("constrained", rect=(0, foot, 1, 1 - foot))
    grid = figure.add_gridspec(len(lines), columns, height_ratios=heights)
    for number, line in enumerate(lines):
        for column, measure in enumerate(line):
            _panel(figure.add_subplot(grid[number, column]), case, measure)
    figure.suptitle(f"{case['name']}: {case['question']}", fontsize=13, fontweight="bold", x=0.01, ha="left")
    _foot(figure, result, case)
    return figure


def _foot(figure: Figure, result: dict[str, Any], case: dict[str, Any]) -> None:
    """Say what the marks mean, and what was measured on."""
    kinds = {contender["kind"] for contender in case["contenders"].values() if not contender["skipped"]}
    handles = [
        Line2D([], [], marker="o", linestyle="", color=_COLOURS[kind], fillstyle=_fill(kind), label=word)
        for kind, word in _WORDS.items()
        if kind in kinds
    ]
    handles.append(Line2D([], [], color="#5c5c5c", linewidth=2, label="10th to 90th percentile"))
    handles.append(
        Line2D(
            [],
            [],
            color=_COLOURS["ours"],
            linewidth=1,
            alpha=0.5,
            label=f"{case['reference']}: what others are compared with",
        )
    )
    high = figure.get_figheight()
    figure.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0, 0.25 / high),
        ncols=len(handles) if figure.get_figwidth() > _WIDTH else 2,
        frameon=False,
        fontsize=9,
    )
    host = result["host"]
    said = f"{host['cpu']}, {host['cores']} cores, {host['kernel']}, shmarray {result['versions']['shmarray']}"
    if result["quick"]:
        said += "; a quick run, no result"
    figure.text(0.01, 0.1 / high, said, fontsize=8, color="#5c5c5c")


def _fill(kind: str) -> str:
    return "none" if kind == "limit" else "full"


def _terms(measure: dict[str, Any]) -> tuple[Callable[[float], float], Callable[[float], str], str]:
    """Tell how a sample becomes what is shown, how that is written, and what it is."""
    if measure.get("unit") == "bytes":
        return float, size_text, "memory; left is better"
    if measure["nbytes"]:
        nbytes: int = measure["nbytes"]
        return lambda seconds: nbytes / seconds / 1e9, lambda rate: f"{rate:.3g} GB/s", "rate; right is better"
    if measure.get("items"):
        return lambda seconds: 1 / seconds, count_text, f"{measure['items']} a second; right is better"
    return float, time_text, "time; left is better"


def _panel(axes: Any, case: dict[str, Any], measure: dict[str, Any]) -> None:
    """Draw one measure."""
    shown, text, what = _terms(measure)
    unit = measure.get("unit", "seconds")
    rows = sorted(measure["rows"], key=lambda row: row[unit]["median"])
    places = range(len(rows), 0, -1)
    values = [shown(row[unit]["median"]) for row in rows]
    for place, value, row in zip(places, values, rows, strict=True):
        kind = case["contenders"][row["contender"]]["kind"]
        colour = _COLOURS[kind]
        ends = [shown(row[unit][key]) for key in ("p10", "p90")]
        axes.plot(ends, [place, place], color=colour, linewidth=2, alpha=0.5, solid_capstyle="butt")
        axes.plot([value], [place], marker="o", markersize=7, color=colour, fillstyle=_fill(kind))
    _reference(axes, shown, measure, case["reference"], unit)
    axes.set_xscale("log")
    ends = [shown(row[unit][key]) for row in rows for key in ("median", "p10", "p90")]
    low, high = (10 ** math.floor(math.log10(min(ends))), 10 ** math.ceil(math.log10(max(ends))))
    axes.set_xlim(low, high if high > low else 10 * low)
    axes.xaxis.set_major_locator(LogLocator(10, numticks=9))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(0.3, len(rows) + 0.7)
    axes.set_yticks(list(places), [row["contender"] for row in rows])
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        kind = case["contenders"][row["contender"]]["kind"]
        label.set(color=_COLOURS[kind], fontweight="bold" if kind == "ours" else "normal")
    axes.set_title("\n".join(textwrap.wrap(measure["title"], _TITLE)), fontsize=10, loc="left")
    axes.set_xlabel(f"{what} (logarithmic)", fontsize=8, color="#5c5c5c")
    axes.tick_params(axis="both", labelsize=9, length=0)
    axes.grid(axis="x", color="#e4e4e4")
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    words = axes.twinx()
    words.set_ylim(axes.get_ylim())
    said = [_words(text(value), row, unit) for value, row in zip(values, rows, strict=True)]
    words.set_yticks(list(places), said, fontsize=9, color="#2f2f2f")
    words.tick_params(length=0)
    words.spines[:].set_visible(False)


def _words(value: str, row: dict[str, Any], unit: str) -> str:
    """Say the value of a row, and how it compares with the reference."""
    times = row["times_reference"]
    if times is None:
        return value
    worse, better = ("more", "less") if unit == "bytes" else ("slower", "faster")
    more = times["median"] >= 1
    factor = times["median"] if more else 1 / times["median"]
    said = f"{factor:,.0f}" if factor >= 9.95 else f"{factor:.1f}" if factor >= 1.95 else f"{factor:.2f}"
    return f"{value}, {said} × {worse if more else better}"  # noqa: RUF001  it is meant


def _reference(axes: Any, shown: Callable[[float], float], measure: dict[str, Any], name: str, unit: str) -> None:
    """Draw a line where the reference is: who is on its better side is better."""
    for row in measure["rows"]:
        if row["contender"] == name:
            axes.axvline(shown(row[unit]["median"]), color=_COLOURS["ours"], linewidth=1, alpha=0.5, zorder=0)
