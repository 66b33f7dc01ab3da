"""The soak, run as anyone would run it."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.processes import run_command

if TYPE_CHECKING:
    from pathlib import Path

_SEED = "20240229"


def _soak(place: Path, kills: int, minutes: float) -> dict[str, Any]:
    report = place / "report.json"
    command = [sys.executable, "-m", "tests.soak", "--seed", _SEED, "--kills", str(kills), "--minutes", str(minutes)]
    done = run_command([*command, "--json", str(report)], timeout=60 * minutes + 120)
    assert done.returncode == 0, done.describe()
    assert done.stderr == ""
    assert "verdict: sound" in done.stdout
    counts: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    assert counts["sound"]
    assert not any(counts["faults"].values()), counts
    assert counts["steps"] > counts["killed"]
    return counts


def test_forty_random_deaths_leave_nothing_and_harm_nobody(tmp_path: Path) -> None:
    """No name stays, nobody hangs, nobody crashes, nobody loses an array, and nothing is said."""
    assert _soak(tmp_path, 40, 1.5)["killed"] >= 40


@pytest.mark.soak
def test_two_thousand_random_deaths_leave_nothing_and_harm_nobody(tmp_path: Path) -> None:
    """The same for every role, every start method and every way a store can end."""
    counts = _soak(tmp_path, 2000, 30)
    assert counts["killed"] >= 2000
    assert set(counts["kills"]) >= {"worker", "owner", "guardian", "group"}
    assert set(counts["methods"]) == {"fork", "spawn", "forkserver"}
    assert counts["handles_loaded"] > 1000
    assert counts["guards_recovered"] > 0
