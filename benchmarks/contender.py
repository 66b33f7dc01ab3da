"""What the process of one contender does: one case, with one adapter, round after round.

Owns: the dialogue with the conductor over a socket, a line of JSON each way, and cleaning up however the dialogue ends.
Must not know: other contenders.

    python -m benchmarks.contender CASE CONTENDER TAG quick|full DESCRIPTOR DIRECTORY

It says {"ready": true}, or {"skipped": why}, or {"failed": traceback}; then answers every line with {"samples": ..., "facts": ...}.
It ends, having cleaned up, when the conductor closes the socket, however that comes about. The directory is for temporary files, its
own and those of all that it starts; it is removed in the end.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import socket
import sys
import tempfile
import traceback
from typing import TYPE_CHECKING, Any

from benchmarks import rivals
from benchmarks.cases import CASES
from benchmarks.cases.case import UnableError
from benchmarks.measure import Scale

if TYPE_CHECKING:
    from typing import IO

    from benchmarks.cases.case import Case


def main(case_name: str, rival_name: str, tag: str, scale: str, descriptor: str, place: str) -> int:
    """Be the contender."""
    os.environ["TMPDIR"] = tempfile.tempdir = place
    try:
        return _take_part(case_name, rival_name, tag, scale, int(descriptor))
    finally:
        # Here too, and not only by the conductor, which may have been killed.
        shutil.rmtree(place, ignore_errors=True)


def _take_part(case_name: str, rival_name: str, tag: str, scale: str, descriptor: int) -> int:
    """Set up, do rounds, clean up; returns the exit status."""
    with socket.socket(fileno=descriptor) as connection, connection.makefile("rw", encoding="utf-8") as line:
        try:
            adapter = rivals.load(rivals.RIVALS[rival_name])
        except ModuleNotFoundError as error:
            _say(line, {"skipped": f"{error.name} is not installed"})
            return 0
        except ImportError as error:
            _say(line, {"skipped": f"it cannot be imported here: {error}"})
            return 0
        case = CASES[case_name](adapter(tag), Scale.of(quick=scale == "quick"))
        try:
            with case.cleanup:
                case.set_up()
                _say(line, {"ready": True})
                _rounds(case, line)
        except UnableError as error:
            _say(line, {"skipped": str(error)})
        except Exception:  # noqa: BLE001  whatever it is, the conductor shows it
            _say(line, {"failed": traceback.format_exc()})
            return 1
    return 0


def _rounds(case: Case, line: IO[str]) -> None:
    """Do a round for every line, until there is no more."""
    while line.readline():
        gc.collect()
        samples = case.round()
        _say(line, {"samples": samples, "facts": case.facts})


def _say(line: IO[str], words: dict[str, Any]) -> None:
    try:
        line.write(json.dumps(words) + "\n")
        line.flush()
    except BrokenPipeError:
        return  # the conductor was killed; what it does not hear it will not miss


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
