"""Text for people: tables that fit the terminal, sizes, ages, and names that cannot break it.

Owns: how wide a text is on a terminal, what of it may be sent there, columns and how they give way.
Must not know: what is shown.
"""

from __future__ import annotations

import os
import shlex
import shutil
import unicodedata
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

GAP = 2
_WIDE = ("W", "F")
_RIGHT_TO_LEFT = ("R", "AL", "AN")
_ISOLATE, _POP = "\u2068", "\u2069"  # what lies between them is laid out by itself, whatever its direction
_LEAST = 20  # columns; a terminal that claims fewer is not believed
_AGES = ((60, "s"), (60, "min"), (24, "h"), (0, "d"))


class Screen(NamedTuple):
    """Where text goes: columns (None: as wide as it wants to be, as in a pipe) and encoding."""

    width: int | None
    encoding: str


class Column(NamedTuple):
    """A column: `least` is how narrow it may become (0: not at all), `drop` when it goes if that is not enough (0: never)."""

    title: str
    right: bool = False
    least: int = 0
    drop: int = 0


def screen(stream: TextIO | None) -> Screen:
    """Find out where text goes. `COLUMNS` in the environment decides, then the terminal."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    if stream is not None and stream.isatty():
        return Screen(max(_LEAST, shutil.get_terminal_size().columns), encoding)
    columns = os.environ.get("COLUMNS", "")
    return Screen(max(_LEAST, int(columns)) if columns.isdecimal() and int(columns) else None, encoding)


def clean(text: str, encoding: str = "utf-8") -> str:
    r"""Make text harmless: control and formatting characters, and what the encoding has not, become escapes.

    >>> clean("a\x1b[2Jb\nc\u202ed")
    'a\\x1b[2Jb\\nc\\u202ed'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(letter if _is_harmless(letter, encoding) else _escape(letter) for letter in text)


def _is_harmless(letter: str, encoding: str) -> bool:
    if not letter.isprintable():
        return False
    try:
        letter.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _escape(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":  # a byte of a file name that is no UTF-8
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode("ascii")


def quote(path: str) -> str:
    r"""Spell a path so that a shell takes it for one word, and that shows as it is.

    >>> quote("a b"), quote("a\x1bb")
    ("'a b'", "$'a\\x1bb'")
    """
    if clean(path) == path:
        return shlex.quote(path)
    raw = path.encode("utf-8", "surrogateescape")
    plain = frozenset(range(32, 127)) - {ord("'"), ord("\\")}
    return "$'" + "".join(chr(byte) if byte in plain else f"\\x{byte:02x}" for byte in raw) + "'"


def width(text: str) -> int:
    """Count the columns that text takes on a terminal.

    >>> width("ab"), width("数"), width("e\u0301")
    (2, 2, 1)
    """
    return len(text) if text.isascii() else sum(map(_width, text))


def _width(letter: str) -> int:
    if unicodedata.category(letter) in ("Mn", "Me", "Cf") or "\u1160" <= letter <= "\u11ff":
        return 0
    return 2 if unicodedata.east_asian_width(letter) in _WIDE else 1


def shorten(text: str, limit: int, encoding: str = "utf-8") -> str:
    """Cut text that is wider than `limit` columns, and show that it was cut."""
    if width(text) <= limit:
        return text
    mark = clean("…", encoding)
    mark = mark if len(mark) == 1 else "~"
    kept, taken = [], 0
    for letter in text:
        taken += _width(letter)
        if taken > limit - 1:
            break
        kept.append(letter)
    return "".join(kept) + mark


def _cell(text: str, size: int, encoding: str, *, right: bool) -> str:
    padding = " " * (size - width(text))
    if not text.isascii() and any(unicodedata.bidirectional(letter) in _RIGHT_TO_LEFT for letter in text):
        # Else the terminal would turn round its neighbours, numbers above all, together with it.
        isolated = f"{_ISOLATE}{text}{_POP}"
        text = isolated if _is_encodable(isolated, encoding) else text
    return padding + text if right else text + padding


def _is_encodable(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def render(columns: Sequence[Column], rows: Sequence[Sequence[str]], where: Screen, indent: int = 0) -> str:
    """Lay out a table. On a terminal, columns give way until it fits: first those that may shrink, then those that may go."""
    lines = [[column.title for column in columns]] + [[clean(cell, where.encoding) for cell in row] for row in rows]
    sizes = [max(width(line[index]) for line in lines) for index in range(len(columns))]
    shown = _fit(columns, sizes, None if where.width is None else where.width - indent)
    text = []
    for line in lines:
        cells = [
            _cell(
                shorten(line[index], sizes[index], where.encoding),
                sizes[index],
                where.encoding,
                right=columns[index].right,
            )
            for index in shown
        ]
        text.append((" " * indent + (" " * GAP).join(cells)).rstrip(" ") + "\n")
    return "".join(text)


def _fit(columns: Sequence[Column], sizes: list[int], limit: int | None) -> list[int]:
    """Narrow `sizes` in place until they fit into `limit`; returns which columns are shown."""
    shown, wanted = list(range(len(columns))), list(sizes)
    while limit is not None:
        sizes[:] = wanted  # what the column had that has just gone is there for the others
        surplus = sum(sizes[index] for index in shown) + GAP * (len(shown) - 1) - limit
        slack = {index: sizes[index] - columns[index].least for index in shown if columns[index].least}
        while surplus > 0 and slack and max(slack.values()) > 0:
            widest = max(slack, key=slack.__getitem__)
            sizes[widest] -= 1
            slack[widest] -= 1
            surplus -= 1
        droppable = [index for index in shown if columns[index].drop]
        if surplus <= 0 or not droppable:
            break
        shown.remove(max(droppable, key=lambda index: columns[index].drop))
    return shown


def wrap(text: str, where: Screen, first: str = "", rest: str = "") -> str:
    """Break a paragraph between words into lines that fit; `first` and `rest` stand before its lines."""
    words = clean(text, where.encoding).split(" ")
    lines, line = [], first + words[0]
    for word in words[1:]:
        if where.width is None or width(line) + 1 + width(word) <= where.width:
            line += " " + word
        else:
            lines.append(line)
            line = rest + word
    return "".join(f"{line}\n" for line in [*lines, line])


def age(seconds: float | None) -> str:
    """Write an age for people: one number, one unit.

    >>> age(7), age(200), age(90_000)
    ('7 s', '3 min', '25 h')
    """
    if seconds is None:
        return "-"
    amount = seconds
    for size, unit in _AGES:
        if not size or amount < size * (2 if unit == "h" else 1):
            return f"{amount:.0f} {unit}"
        amount /= size
    return f"{amount:.0f} d"


def count(number: int, noun: str) -> str:
    """Write how many there are.

    >>> count(1, "block"), count(2, "block")
    ('1 block', '2 blocks')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
