"""What a command answers, and what it refuses.

Owns: the exit codes, the text and code a command hands back, the error that means "this was asked wrongly", near matches.
Must not know: any command.
"""

from __future__ import annotations

import difflib
import json
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

FINE = 0
FOUND = 1
WRONG = 2
INTERRUPTED = 130

SCHEMA = 1
"""Version of the JSON that commands write: raised when a field is removed or changes its meaning, not for a new one."""


class Answer(NamedTuple):
    """What a command says, and its exit code."""

    text: str
    code: int = FINE


class UsageError(Exception):
    """The command was asked for something that cannot be."""


def as_json(command: str, facts: dict[str, Any]) -> str:
    """Write an answer for programs: ASCII, so that it passes through every pipe whatever names are in it."""
    return json.dumps({"schema": SCHEMA, "command": command, **facts}, indent=2) + "\n"


def near(word: str, known: Iterable[str], alike: float = 0.5) -> str:
    """Say what may have been meant, as the end of a message; empty if nothing is `alike`, from 0 to 1.

    >>> near("lss", ["ls", "gc"])
    '; did you mean ls?'
    """
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=alike)
    return f"; did you mean {matches[0]}?" if matches else ""
