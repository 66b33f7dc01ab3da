"""The command: `python -m benchmarks [--quick] [--only NAME] [--json FILE] [--plot DIR]`.

Owns: arguments, progress, the result as a whole, exit status: 0 all ran, 1 a contender failed or something was left, 2 wrong
arguments, 130 interrupted. Whether an aim is reached is no matter of exit status.
Must not know: any case or contender.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib
import json
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import shmarray
from benchmarks import host, report
from benchmarks.cases import CASES
from benchmarks.conductor import leftovers, run_case
from benchmarks.measure import Scale
from benchmarks.rivals import RIVALS

if TYPE_CHECKING:
    from collections.abc import Sequence

SCHEMA = 1
_WRONG, _INTERRUPTED = 2, 130


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure shmarray beside its rivals and the machine's limits, in one run.",
        epilog="cases: " + "; ".join(f"{case.name}: {case.question}" for case in CASES.values()),
    )
    parser.add_argument("--quick", action="store_true", help="a look: all works, few samples, less than a minute")
    parser.add_argument(
        "--only", metavar="NAME", action="append", choices=list(CASES), help="only this case; again for more"
    )
    parser.add_argument("--json", metavar="FILE", help="write the result there, for programs")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    parser.add_argument("--plot", metavar="DIR", help="draw a picture of each case there (PNG); with --show too")
    parser.add_argument("--show", metavar="FILE", help="measure nothing, print the tables of such a result")
    given = parser.parse_args(arguments)
    # Before minutes of measuring, not after.
    if given.json and (os.path.isdir(given.json) or not os.access(os.path.dirname(given.json) or ".", os.W_OK)):
        parser.error(f"--json {given.json}: no file can be written there")
    if given.plot:
        try:
            os.makedirs(given.plot, exist_ok=True)
        except OSError as error:
            parser.error(f"--plot {given.plot}: {error.strerror}")
    return given


class _Progress:
    """One line on standard error that is written over; nothing unless it is a terminal."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self.head = ""

    def __call__(self, text: str) -> None:
        if self._shown:
            sys.stderr.write(f"\r\033[K{self.head}{text}")
            sys.stderr.flush()

    def clear(self) -> None:
        self.head = ""
        self("")


def measure(names: Sequence[str], scale: Scale, progress: _Progress) -> dict[str, Any]:
    """Measure these cases; returns the result, ready for JSON. Raises `KeyboardInterrupt` after all contenders have ended."""
    tag = f"shmarray-bench-{os.getpid()}"
    begun, started = time.monotonic(), dt.datetime.now(dt.UTC)
    machine = host.host()
    distributions = sorted({name for rival in RIVALS.values() for name in rival.requires})
    cases = []
    try:
        for number, name in enumerate(names, 1):
            progress.head = f"[{number}/{len(names)}] {name}, "
            cases.append(run_case(CASES[name], scale, tag, progress))
    finally:
        progress.clear()
    return {
        "schema": SCHEMA,
        "quick": scale.quick,
        "started": started.isoformat(timespec="seconds"),
        "elapsed": time.monotonic() - begun,
        "host": machine,
        "versions": {**host.versions(["numpy", *distributions]), "shmarray": shmarray.__version__},
        "revision": host.revision(),
        "cases": cases,
        "left": leftovers(tag),
    }


def _plot(result: dict[str, Any], directory: str) -> None:
    """Draw the pictures, or say why not."""
    try:
        # Not with the others: matplotlib is there for this alone, and takes longer to import than a quick case to run.
        plots = importlib.import_module("benchmarks.plots")
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        print(f"no pictures: {missing} is not installed; pip install -e '.[bench]' brings it", file=sys.stderr)
        return
    for path in plots.write(result, directory):
        print(path)


def _failed(result: dict[str, Any]) -> list[str]:
    return [
        f"{case['name']}, {name}: {contender['failed']}\n{contender['stderr']}".rstrip()
        for case in result["cases"]
        for name, contender in case["contenders"].items()
        if contender["failed"]
    ]


def _terminated(number: int, frame: object) -> None:
    """End in order on SIGTERM, as on Ctrl-C."""
    del number, frame
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns the exit status."""
    given = _parse(arguments)
    if given.show:
        try:
            with open(given.show, encoding="utf-8") as file:
                result = json.load(file)
        except (OSError, ValueError) as error:
            print(f"{given.show} is not a result: {error}", file=sys.stderr)
            return _WRONG
    else:
        signal.signal(signal.SIGTERM, _terminated)
        names = [name for name in CASES if given.only is None or name in given.only]
        try:
            result = measure(names, Scale.of(quick=given.quick), _Progress())
        except KeyboardInterrupt:
            print("interrupted; every contender has ended", file=sys.stderr)
            return _INTERRUPTED
    if given.json:
        with open(given.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)
            file.write("\n")
    print(report.markdown(result) if given.markdown else report.text(result))
    if given.plot:
        _plot(result, given.plot)
    failed = _failed(result)
    for failure in failed:
        print(failure, file=sys.stderr)
    return 1 if failed or result["left"] else 0


if __name__ == "__main__":
    sys.exit(main())
