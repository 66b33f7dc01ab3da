"""Command line of the soak: `python -m tests.soak --kills 2000`."""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import signal
import sys
import time
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

# One thread a process is enough, and a fork of a process with more of them is warned of. NumPy reads it when it is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from tests.helpers import leaks
from tests.soak.lane import Lane
from tests.soak.tally import Tally

_SEMAPHORES = "sem.mp-"


def main(words: list[str]) -> int:
    """Run lanes until enough was killed; returns 0 if all was sound, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description="Kill processes at random, and see what is left."
    )
    parser.add_argument("--kills", type=int, default=200, help="how many processes to kill (default 200)")
    parser.add_argument(
        "--minutes", type=float, default=30.0, help="end after that time whatever was killed (default 30)"
    )
    parser.add_argument("--seed", type=int, help="for the same choices again (not the same timing)")
    parser.add_argument(
        "--lanes", type=int, default=os.cpu_count() or 1, help="how many stores at a time (default: one a core)"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the counts there")
    given = parser.parse_args(words)
    seed = random.SystemRandom().randrange(1 << 32) if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)
    began = time.monotonic()
    before = leaks.shm_entries(_SEMAPHORES)
    tally = _run(seed, given.kills, began + 60 * given.minutes, max(1, given.lanes))
    seconds = time.monotonic() - began
    _remove_semaphores(before)
    print(tally.text(seed, seconds))
    if given.json:
        with open(given.json, "w", encoding="utf-8") as file:
            json.dump(tally.as_dict(seed, seconds), file, indent=1)
    return 0 if tally.sound else 1


def _run(seed: int, kills: int, until: float, lanes: int) -> Tally:
    """Run lanes side by side, each in a process of its own, and add up."""
    total = Tally()
    pipes: dict[Connection, int] = {}
    for number in range(lanes):
        ours, theirs = multiprocessing.Pipe()
        share = kills // lanes + (number < kills % lanes)
        pid = os.fork()
        if not pid:
            _lane(theirs, seed + number, share, until)
        theirs.close()
        pipes[ours] = pid
    killed = dict.fromkeys(pipes, 0)
    # Ctrl-C is for the lanes, which clear up and report.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while pipes:
        for pipe in multiprocessing.connection.wait(list(pipes)):
            assert isinstance(pipe, multiprocessing.connection.Connection)
            try:
                told = pipe.recv()
            except EOFError:
                told = Tally()
                told.fault("errors", "a lane ended without a report")
            if isinstance(told, int):
                killed[pipe] = told
                if sys.stderr.isatty():
                    print(f"\r{sum(killed.values())}/{kills} killed ", end="", file=sys.stderr, flush=True)
                continue
            total.add(told)
            os.waitpid(pipes.pop(pipe), 0)
            pipe.close()
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return total


def _remove_semaphores(before: set[str]) -> None:
    """Remove those of multiprocessing's queues that a kill fell between making and unlinking, and nobody uses."""
    used = {os.path.basename(found.path) for pid in leaks.pids() for found in leaks.mappings(pid, _SEMAPHORES)}
    for name in leaks.shm_entries(_SEMAPHORES) - before - used:
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(leaks.SHM, name))


def _lane(pipe: Connection, seed: int, kills: int, until: float) -> None:
    """Be a lane, and report."""
    lane = Lane(seed, kills, until, pipe.send)
    try:
        lane.run()
    except KeyboardInterrupt:
        lane.stop()
    except BaseException:  # noqa: BLE001  it is part of the verdict
        lane.tally.fault("errors", f"the lane itself: {traceback.format_exc()}")
        lane.stop()
    pipe.send(lane.tally)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
