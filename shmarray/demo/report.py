"""Report: what people read and what programs read.

Owns: the table, the JSON object.
Must not know: how anything was measured.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from shmarray.demo.ways import Cost, Task

_KIB = 1024


class Picture(NamedTuple):
    """A written picture: every `stride`-th cell, each way, of the top left `rows` x `columns` of the grid."""

    path: str
    rows: int
    columns: int
    stride: int

    @property
    def pixels(self) -> tuple[int, int]:
        """Width and height."""
        return -(-self.columns // self.stride), -(-self.rows // self.stride)


class Outcome(NamedTuple):
    """All that came of a run; `left` lists what remained of the store in shared memory under names like `files`."""

    source: str
    path: str
    key: str | None
    is_map: bool
    task: Task
    pickled: Cost
    shared: Cost
    identical: bool
    picture: Picture
    files: str
    left: list[str]
    note: str


def clean(text: str) -> str:
    r"""Spell out what a terminal would take for a command or could not show; a file may be called anything.

    >>> print(clean("a\tb"))
    a\tb
    """
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def show(text: str) -> None:
    """Print, in whatever letters standard output has."""
    letters = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(letters, "backslashreplace").decode(letters))  # noqa: T201  the output of a program


def complain(text: str) -> None:
    """Write one line to standard error, if it is open."""
    if sys.stderr is not None:
        sys.stderr.write(f"{clean(text)}\n")
        sys.stderr.flush()


def size(count: int | None) -> str:
    """Spell a number of bytes for people.

    >>> size(1536), size(70_000_000), size(12)
    ('1.5 KiB', '66.8 MiB', '12 bytes')
    """
    if count is None:
        return "not told"
    if abs(count) < _KIB:
        return f"{count} bytes"
    value, unit = count / _KIB, "KiB"
    for bigger in ("MiB", "GiB", "TiB"):
        if abs(value) < _KIB:
            break
        value, unit = value / _KIB, bigger
    return f"{value:.1f} {unit}"


def for_people(outcome: Outcome) -> str:
    """Lay the outcome out as text."""
    task, pickled, shared = outcome.task, outcome.pickled, outcome.shared
    rows, columns = task.shape
    model = " x ".join(map(str, task.model.shape))
    mirrored = f", mirrored {task.tiles} x {task.tiles} times" if task.tiles > 1 else ""
    lines = [
        f"{clean(outcome.source)}: {model} {task.model.dtype}{mirrored} = {rows} x {columns} cells, {size(task.nbytes)}",
        *([outcome.note] if outcome.note else []),
        *([] if outcome.is_map else ["It does not say how large a cell is, so the relief is scaled to look well."]),
        f"Hillshade by {_count(task.workers, 'worker')} in {_count(len(task.bands), 'band')} of rows, done twice:",
        "",
        *_table(pickled, shared),
        "",
        "Both results are identical." if outcome.identical else "THE RESULTS DIFFER.",
        f"Picture: {_picture(outcome)}",
        _closing(outcome),
    ]
    return "\n".join(lines)


def _table(pickled: Cost, shared: Cost) -> list[str]:
    faster = f"  {pickled.seconds / shared.seconds:.1f} x as fast" if shared.seconds else ""
    saved = 1 - shared.added / pickled.added if pickled.added and shared.added is not None else 0.0
    less = f"  {abs(saved):.0%} {'less' if saved > 0 else 'more'}" if saved else ""
    cells = [
        ("", "pickled", "shared", ""),
        ("make the grid", f"{pickled.made:.2f} s", f"{shared.made:.2f} s", ""),
        ("shade it", f"{pickled.shaded:.2f} s", f"{shared.shaded:.2f} s", ""),
        ("in all", f"{pickled.seconds:.2f} s", f"{shared.seconds:.2f} s", faster),
        ("copied to the workers", size(pickled.sent), size(shared.sent), ""),
        ("copied back", size(pickled.returned), size(shared.returned), ""),
        ("memory, all processes", size(pickled.added), size(shared.added), less),
    ]
    return [f"  {label:<24}{one:>12}{other:>12}{remark}".rstrip() for label, one, other, remark in cells]


def _picture(outcome: Outcome) -> str:
    picture = outcome.picture
    wide, high = picture.pixels
    shown = (picture.rows, picture.columns)
    part = "the whole grid" if shown == outcome.task.shape else f"the top left {shown[0]} x {shown[1]} cells"
    sparse = f", one cell in {picture.stride} each way" if picture.stride > 1 else ""
    return f"{clean(picture.path)}, {wide} x {high} pixels: {part}{sparse}"


def _closing(outcome: Outcome) -> str:
    if outcome.left:
        return f"LEFT after the store was closed: {', '.join(outcome.left)}"
    return f"Left after the store was closed: nothing (0 entries {outcome.files}*)"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def for_programs(outcome: Outcome) -> dict[str, Any]:
    """Lay the outcome out as an object for JSON: seconds, bytes, and None where the kernel does not tell."""
    task, picture = outcome.task, outcome.picture
    width, height = picture.pixels
    return {
        "source": {
            "path": outcome.path,
            "key": outcome.key,
            "shape": list(task.model.shape),
            "dtype": task.model.dtype.str,
            "is_map": outcome.is_map,
        },
        "grid": {"tiles": task.tiles, "shape": list(task.shape), "nbytes": task.nbytes, "cell": list(task.cell)},
        "workers": task.workers,
        "bands": len(task.bands),
        "pickled": _cost(outcome.pickled),
        "shared": _cost(outcome.shared),
        "identical": outcome.identical,
        "picture": {
            "path": picture.path,
            "width": width,
            "height": height,
            "rows": picture.rows,
            "columns": picture.columns,
            "stride": picture.stride,
        },
        "left": outcome.left,
    }


def _cost(cost: Cost) -> dict[str, Any]:
    return {
        "seconds": cost.seconds,
        "seconds_made": cost.made,
        "seconds_shaded": cost.shaded,
        "bytes_sent": cost.sent,
        "bytes_returned": cost.returned,
        "memory_added": cost.added,
        "memory_peak": cost.peak,
    }
