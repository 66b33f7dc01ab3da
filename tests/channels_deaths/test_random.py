"""Who puts and who takes is killed at random; what comes out is what went in, but for what is counted.

`python -m tests.soak.streams` is the same for as long as one likes.
"""

from __future__ import annotations

import sys

import pytest

from tests.helpers.processes import run_command

_SEED = 20240301


def _soak(kills: int, minutes: float, *more: str) -> str:
    command = [sys.executable, "-m", "tests.soak.streams", "--kills", str(kills), "--minutes", str(minutes), *more]
    done = run_command(command, timeout=60 * minutes + 120)
    assert done.returncode == 0, done.describe()
    assert done.stderr == ""
    assert "verdict: sound" in done.stdout
    return done.stdout


def test_a_hundred_random_deaths_lose_nothing_that_is_not_counted() -> None:
    """No torn item, none twice, no slot gone, nobody hangs; the books balance."""
    said = _soak(100, 1, "--seed", str(_SEED), "--methods", "fork")
    assert "killed 100:" in said, said


def test_a_few_random_deaths_of_processes_that_are_started_afresh(request: pytest.FixtureRequest) -> None:
    """The same where the channel travels by pickling."""
    kills = 200 if request.config.getoption("--deep") else 12
    _soak(kills, 5, "--seed", str(_SEED), "--methods", "spawn,forkserver")


@pytest.mark.soak
def test_ten_thousand_random_deaths_lose_nothing_that_is_not_counted() -> None:
    """The same, other choices each time; a failure says the seed."""
    assert "killed 10000:" in _soak(10_000, 60)
