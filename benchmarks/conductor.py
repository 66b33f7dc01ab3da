"""Rounds over contenders, each in a process of its own.

Owns: starting a fresh process for each contender of a case, letting them do their rounds in turn (A B C, A B C, ...) while all
others sleep, ending them in order however the run ends, and looking whether they left anything in shared memory.
Must not know: what a round measures.

A contender gets a session of its own, so Ctrl-C reaches the conductor alone, and a directory of its own for temporary files,
which is removed after it: servers of rivals leave sockets and logs. It ends when its socket is closed; one that does
not is killed with all that it started, and what these had mapped is removed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any, Self

from benchmarks.measure import judge, ratio, summary
from benchmarks.rivals import RIVALS

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.cases.case import Case, Samples
    from benchmarks.measure import Measure, Scale, Summary

SHM = "/dev/shm"  # noqa: S108  what is measured lies there
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_ROUND = 300.0
_ENDING = 30.0


@dataclasses.dataclass(slots=True)
class Outcome:
    """What became of a contender in a case: samples by round, why it took no part, how it failed, what it complained of."""

    rounds: list[Samples] = dataclasses.field(default_factory=list)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    skipped: str | None = None
    failed: str | None = None
    stderr: str = ""

    @property
    def takes_part(self) -> bool:
        """Whether it is to be asked for more."""
        return self.skipped is None and self.failed is None


def without_places(text: str) -> str:
    """Take out of a text where things lie on this machine: a result is for others."""
    places = {_ROOT, sys.prefix, sys.base_prefix, os.path.expanduser("~"), tempfile.gettempdir()}
    for place in sorted(places - {"/"}, key=len, reverse=True):
        text = text.replace(place, "...")
    return text


class Contender:
    """One contender's process, for one session of one case. A context manager: leaving it ends the process."""

    def __init__(self, case: str, rival: str, tag: str, outcome: Outcome, *, quick: bool) -> None:
        """Start it; what it says is entered into `outcome`."""
        self.outcome = outcome
        self._ended = False
        self._place = tempfile.mkdtemp(prefix="shmb-")  # short, for the paths of sockets that lie in it
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed by `end`
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(_ROUND)
        self._line = self._socket.makefile("rw", encoding="utf-8")
        before = [path for path in [os.environ.get("PYTHONPATH")] if path]
        with theirs:
            scale, descriptor = "quick" if quick else "full", theirs.fileno()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.contender", case, rival, tag, scale, str(descriptor), self._place],
                stdin=subprocess.DEVNULL,
                stdout=self._errors,
                stderr=self._errors,
                pass_fds=[descriptor],
                env={**os.environ, "PYTHONPATH": os.pathsep.join([_ROOT, *before])},
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Wait until it has set up, or has said why it has not."""
        self._listen()

    def round(self, *, counted: bool) -> None:
        """Let it do a round, if it takes part."""
        if not self.outcome.takes_part:
            return
        with contextlib.suppress(BrokenPipeError):  # then there is nothing to hear either
            self._line.write("round\n")
            self._line.flush()
        heard = self._listen()
        if counted and "samples" in heard:
            self.outcome.rounds.append(heard["samples"])
            self.outcome.facts |= heard["facts"]

    def _listen(self) -> dict[str, Any]:
        try:
            text = self._line.readline()
        except TimeoutError:
            heard: dict[str, Any] = {"failed": f"it has not answered for {_ROUND:.0f} s"}
        except ConnectionError as error:
            heard = {"failed": f"its process has ended ({error})"}
        else:
            heard = json.loads(text) if text else {"failed": "its process has ended"}
        self.outcome.skipped = heard.get("skipped")
        self.outcome.failed = heard.get("failed")
        return heard

    def let_go(self) -> None:
        """Close its socket: it cleans up and ends."""
        for close in (self._line.close, self._socket.close):
            with contextlib.suppress(OSError):
                close()

    def end(self) -> None:
        """Wait for its end. One that does not end is killed with all that it started. May be repeated."""
        self.let_go()
        if self._ended:
            return
        try:
            status = self._process.wait(_ENDING)
        except subprocess.TimeoutExpired:
            self._kill()
            self.outcome.failed = self.outcome.failed or f"it did not end within {_ENDING:.0f} s"
        else:
            if status and not self.outcome.failed:
                self.outcome.failed = f"its process ended with status {status}"
        self._ended = True
        _remove(self._place)
        with self._errors:
            self._errors.seek(0)
            self.outcome.stderr += without_places(self._errors.read().decode(errors="replace"))

    def _kill(self) -> None:
        mapped = _mapped_by_session(self._process.pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for path in mapped:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def __enter__(self) -> Self:
        """Nothing more to do: it runs already."""
        return self

    def __exit__(self, *exc: object) -> None:
        """End it."""
        self.end()


def _remove(place: str) -> None:
    """Remove a directory, also when a server that has been told to end still writes there."""
    deadline = time.monotonic() + _ENDING
    while os.path.exists(place) and time.monotonic() < deadline:
        shutil.rmtree(place, ignore_errors=True)
        if os.path.exists(place):
            time.sleep(0.05)


def _mapped_by_session(session: int) -> set[str]:
    """Files in shared memory that the processes of a session map."""
    found = set()
    for pid in (name for name in os.listdir("/proc") if name.isdigit()):
        with contextlib.suppress(OSError):
            if os.getsid(int(pid)) != session:
                continue
            with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as file:
                found |= {line.split(maxsplit=5)[5].strip() for line in file if f" {SHM}/" in line}
    return {path for path in found if not path.endswith(" (deleted)")}


def run_case(case: type[Case], scale: Scale, tag: str, progress: Callable[[str], None]) -> dict[str, Any]:
    """Measure a case; returns its part of the result."""
    sessions, _ = case.rounds(scale)
    outcomes = {name: Outcome() for name in case.rivals}
    for session in range(sessions):
        _run_session(case, scale, tag, outcomes, f"session {session + 1}/{sessions}", progress)
    return {
        "name": case.name,
        "question": case.question,
        "reference": case.rivals[0],
        "contenders": {name: _described(name, outcome) for name, outcome in outcomes.items()},
        "measures": [_measured(case, measure, outcomes) for measure in case.measures(scale)],
    }


def _run_session(
    case: type[Case],
    scale: Scale,
    tag: str,
    outcomes: dict[str, Outcome],
    label: str,
    progress: Callable[[str], None],
) -> None:
    """Start all contenders that still take part, let them do their rounds in turn, end them."""
    _, rounds = case.rounds(scale)
    contenders: list[Contender] = []

    def let_go() -> None:
        for contender in contenders:
            contender.let_go()

    with contextlib.ExitStack() as stack:
        progress(f"{label}, starting")
        for name, outcome in outcomes.items():
            if outcome.takes_part:
                contender = Contender(case.name, name, f"{tag}-{len(contenders)}", outcome, quick=scale.quick)
                contenders.append(stack.enter_context(contender))
        stack.callback(let_go)  # runs first: all are told to end before one is waited for
        for contender in contenders:
            contender.wait_until_ready()
        for number in range(rounds + 1):
            progress(f"{label}, round {number}/{rounds}" if number else f"{label}, warming up")
            for contender in contenders:
                contender.round(counted=number > 0)


def _described(name: str, outcome: Outcome) -> dict[str, Any]:
    return {
        "kind": RIVALS[name].kind,
        "skipped": outcome.skipped,
        "failed": outcome.failed,
        "facts": outcome.facts,
        "stderr": outcome.stderr,
    }


def _measured(case: type[Case], measure: Measure, outcomes: dict[str, Outcome]) -> dict[str, Any]:
    """Summarise one measure: a row for each contender that has samples, and the verdict on each aim."""
    summaries = _summaries(measure.key, outcomes)
    reference = summaries.get(case.rivals[0])
    rows = []
    for name, found in summaries.items():
        row = {"contender": name, measure.unit: dataclasses.asdict(found), "times_reference": None}
        if reference is not None and found is not reference:
            row["times_reference"] = dataclasses.asdict(ratio(found, reference))
        rows.append(row)
    verdicts = [
        judge(aim, summaries, _summaries(aim.than_measure, outcomes) if aim.than_measure else None)
        for aim in case.aims
        if aim.measure == measure.key
    ]
    aims = [{**dataclasses.asdict(verdict), "text": verdict.text} for verdict in verdicts if verdict is not None]
    return {**dataclasses.asdict(measure), "rows": rows, "aims": aims}


def _summaries(measure: str, outcomes: dict[str, Outcome]) -> dict[str, Summary]:
    """Summarise what each contender has samples of."""
    taken = {name: [one.get(measure, []) for one in outcome.rounds] for name, outcome in outcomes.items()}
    return {name: summary(rounds) for name, rounds in taken.items() if any(rounds)}


def leftovers(tag: str) -> list[str]:
    """Names of this run that are still in shared memory."""
    return sorted(name for name in os.listdir(SHM) if name.startswith(tag))
