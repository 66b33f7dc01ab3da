"""The benchmarks are code too: that they run, say what they found and leave nothing. No test here looks at a time."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from benchmarks import report
from benchmarks.__main__ import main
from benchmarks.cases import CASES
from benchmarks.cases.crowd import answers, ask_all, look
from benchmarks.cases.stream import _consume
from benchmarks.conductor import Contender, Outcome, without_places
from benchmarks.measure import Aim, Measure, Scale, judge, ratio, summary
from benchmarks.peer import Peer, PeerError
from benchmarks.rivals import RIVALS
from benchmarks.rivals.streaming import Form
from tests.helpers import leaks
from tests.helpers.processes import Child, run_command, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.cases.crowd import End

_QUICK, _FULL = Scale.of(quick=True), Scale.of(quick=False)
_COMMAND = [sys.executable, "-m", "benchmarks"]
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_PAGE = os.path.join(_ROOT, "docs", "performance.md")
_RESULTS = os.path.join(_ROOT, "benchmarks", "results")
_FEW = "import sys; from benchmarks.__main__ import main; sys.exit(main(['--quick', '--only', 'get']))"
"""A run with few contenders, of both kinds; each has a process beside it, and an array with a name."""
_LONG = ("attach", "broadcast", "handoff", "import", "many", "memory", "put", "scale")
_SUMMARY = {"count", "median", "p10", "p90", "p99", "least", "most", "rounds"}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.timeout(300)
def test_a_quick_run_measures_a_case_and_writes_down_what_it_found(
    name: str, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """`python -m benchmarks --quick --json FILE` runs to its end, silent on standard error, and FILE has every field."""
    if name in _LONG and not request.config.getoption("--deep"):
        pytest.skip("only with --deep: it starts many processes")
    file = tmp_path / "result.json"
    shown = run_command([*_COMMAND, "--quick", "--only", name, "--json", str(file)], timeout=250).expect()
    result = json.loads(file.read_text())
    assert {"schema", "quick", "started", "elapsed", "host", "versions", "revision", "cases", "left"} == set(result)
    assert result["quick"] is True
    assert result["left"] == []
    assert result["host"]["cores"] > 0
    assert {"python", "numpy", "shmarray"} <= set(result["versions"])
    (case,) = result["cases"]
    assert case["name"] == name
    _check_case(case)
    assert shown == report.text(result) + "\n"
    assert main(["--show", str(file), "--markdown"]) == 0
    assert capsys.readouterr() == (report.markdown(result) + "\n", "")


def _check_case(case: dict[str, Any]) -> None:
    made = CASES[case["name"]]
    assert list(case["contenders"]) == list(made.rivals)
    assert [measure["key"] for measure in case["measures"]] == [measure.key for measure in made.measures(_QUICK)]
    measured = {row["contender"] for measure in case["measures"] for row in measure["rows"]}
    for name, contender in case["contenders"].items():
        assert contender["failed"] is None
        assert (name in measured) != bool(contender["skipped"]), name
        assert contender["stderr"] == "" or contender["kind"] != "ours", name
    for measure in case["measures"]:
        for row in measure["rows"]:
            seconds = row[measure["unit"]]
            assert set(seconds) == _SUMMARY
            most = made.rounds(_QUICK)[0] * made.rounds(_QUICK)[1]
            assert len(seconds["rounds"]) == (1 if measure["key"] in made.once else most)
            assert (
                0
                < seconds["least"]
                <= seconds["p10"]
                <= seconds["median"]
                <= seconds["p90"]
                <= seconds["p99"]
                <= seconds["most"]
            )
            times = row["times_reference"]
            assert (times is None) == (row["contender"] == case["reference"])
            assert times is None or 0 < times["low"] <= times["median"] <= times["high"]
        here = {row["contender"] for row in measure["rows"]}
        wanted = {
            (aim.of, aim.how, aim.than)
            for aim in made.aims
            if aim.measure == measure["key"] and {aim.of, aim.than} - {None} <= here
        }
        assert {(aim["aim"]["of"], aim["aim"]["how"], aim["aim"]["than"]) for aim in measure["aims"]} == wanted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_its_contenders_and_leaves_nothing(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C or SIGTERM in the middle of a round ends the run with 130: no name, no process, no file and no other word is left."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with Child(_FEW) as child:
        tag = f"shmarray-bench-{child.pid}"
        wait_until(lambda: leaks.shm_entries(tag), 60, "no contender has made its array")
        done = child.kill(number)
        assert done == (130, "", "interrupted; every contender has ended\n")
        assert not leaks.shm_entries(tag)
        assert not list(tmp_path.iterdir())


@pytest.mark.timeout(180)
def test_contenders_end_by_themselves_when_the_conductor_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL of the benchmark alone: every contender cleans up, and then nothing is in shared memory, nor among temporary files."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with Child(_FEW) as child:
        tag = f"shmarray-bench-{child.pid}"
        wait_until(lambda: leaks.shm_entries(tag), 60, "no contender has made its array")
        assert child.kill(signal.SIGKILL).returncode == -signal.SIGKILL
        wait_until(lambda: not leaks.shm_entries(tag), 60, lambda: f"left: {leaks.shm_entries(tag)}")
        wait_until(lambda: not list(tmp_path.iterdir()), 60, lambda: f"left: {list(tmp_path.iterdir())}")


def test_an_unknown_case_is_refused_with_the_names_of_those_there_are() -> None:
    """`--only` with a wrong name ends with status 2 and lists the right ones."""
    done = run_command([*_COMMAND, "--only", "nothing"])
    assert done.returncode == 2
    assert all(name in done.stderr for name in CASES)


@pytest.mark.parametrize(
    "arguments",
    [["--json", "{}/no/result.json"], ["--json", "{}"], ["--show", "{}/no.json"], ["--plot", "/dev/null"]],
)
def test_a_file_that_cannot_be_used_is_refused_before_anything_is_measured(
    arguments: list[str], tmp_path: Path
) -> None:
    """A result that could not be written, or is none, ends the run at once with status 2 and names the file."""
    given = [argument.format(tmp_path) for argument in arguments]
    done = run_command([*_COMMAND, *given])
    assert (done.returncode, done.stdout) == (2, "")
    assert given[-1] in done.stderr


def test_a_contender_whose_process_dies_has_failed() -> None:
    """A contender that cannot even start is reported as failed, with what it wrote to standard error."""
    outcome = Outcome()
    with Contender("put", "no such contender", "tag", outcome, quick=True) as contender:
        contender.wait_until_ready()
        contender.round(counted=True)
    assert outcome.failed == "its process has ended"
    assert "KeyError: 'no such contender'" in outcome.stderr
    assert not outcome.rounds


@pytest.mark.parametrize("name", CASES)
def test_cases_name_contenders_and_measures_that_exist(name: str) -> None:
    """A misspelt contender or measure in a case or an aim is found here and not after minutes."""
    case = CASES[name]
    keys = {measure.key for scale in (_QUICK, _FULL) for measure in case.measures(scale)}
    assert set(case.rivals) <= set(RIVALS)
    assert RIVALS[case.rivals[0]].kind == "ours"
    assert {aim.measure for aim in case.aims} | {aim.than_measure for aim in case.aims if aim.than_measure} <= keys
    assert {aim.of for aim in case.aims} | {aim.than for aim in case.aims if aim.than} <= set(case.rivals)


def test_a_summary_has_percentiles_over_all_samples_and_a_median_for_each_round() -> None:
    """Percentiles are of all samples together; a round without samples is left out."""
    found = summary([[1.0, 2.0, 3.0], [], [11.0]])
    assert (found.count, found.median, found.least, found.most) == (4, 2.5, 1.0, 11.0)
    assert found.rounds == [2.0, 11.0]
    assert summary([[float(number) for number in range(101)]]).p90 == 90.0


def test_a_ratio_is_taken_round_by_round() -> None:
    """What slows one round down for all does not change a ratio; only a change within a round does."""
    calm = summary([[2.0], [2.0], [2.0]])
    noisy = summary([[1.0], [1.0], [1.0]])
    assert ratio(calm, noisy).median == 2.0
    slow = ratio(summary([[2.0], [20.0], [200.0]]), summary([[1.0], [10.0], [100.0]]))
    assert (slow.low, slow.median, slow.high) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("aim", "reached"),
    [
        (Aim("m", "a", "rate", 2.0, "b"), True),
        (Aim("m", "a", "rate", 2.1, "b"), False),
        (Aim("m", "b", "time", 2.0, "a"), True),
        (Aim("m", "b", "time", 1.9, "a"), False),
        (Aim("m", "a", "median", 1.0), True),
        (Aim("m", "a", "median", 0.9), False),
        (Aim("m", "a", "most", 1.0), True),
        (Aim("m", "a", "most", 0.9), False),
        (Aim("m", "b", "beyond", 1.0, "a"), True),
        (Aim("m", "b", "beyond", 0.9, "a"), False),
    ],
)
def test_an_aim_is_judged_on_the_right_side(aim: Aim, *, reached: bool) -> None:
    """With a taking 1 s and b taking 2 s, each kind of aim is reached at its bound and missed just beyond it."""
    verdict = judge(aim, {"a": summary([[1.0]]), "b": summary([[2.0]])})
    assert verdict is not None
    assert verdict.reached is reached
    assert verdict.text.endswith("reached" if reached else "MISSED")


def test_an_aim_for_each_time_is_missed_by_one_sample() -> None:
    """What is to hold each time is judged by the longest sample, not by the median, and the text says so."""
    samples = {"a": summary([[1.0, 1.0], [1.0, 3.0]])}
    late, in_time = judge(Aim("m", "a", "most", 2.9), samples), judge(Aim("m", "a", "most", 3.0), samples)
    assert late is not None
    assert in_time is not None
    assert (late.reached, in_time.reached) == (False, True)
    assert in_time.text == "aim: \N{LESS-THAN OR EQUAL TO} 3 s each time: 3 s at most, reached"


def test_an_aim_can_compare_with_another_measure_and_says_so() -> None:
    """What is to stay flat is compared with the first of a row of measures, of the same contender."""
    aim = Aim("8", "a", "time", 1.5, "a", than_measure="1")
    verdict = judge(aim, {"a": summary([[4.0]])}, {"a": summary([[2.0]])})
    assert verdict is not None
    assert (verdict.reached, verdict.value.median) == (False, 2.0)
    assert 'the time of a in "1"' in verdict.text


def _result() -> dict[str, Any]:
    """A small result: one measure of memory, one of items, and a contender that is skipped."""
    with open(os.path.join(_RESULTS, "0.1.0-2core-epyc.json"), encoding="utf-8") as file:
        result: dict[str, Any] = json.load(file)
    described: dict[str, Any] = {"skipped": None, "failed": None, "facts": {}, "stderr": ""}

    def row(name: str, unit: str, value: float, times: float | None) -> dict[str, Any]:
        spread = None if times is None else {"median": times, "low": times, "high": times}
        return {"contender": name, unit: dataclasses.asdict(summary([[value, value]])), "times_reference": spread}

    measures = [
        {**dataclasses.asdict(Measure("m", "memory", unit="bytes")), "aims": []},
        {**dataclasses.asdict(Measure("s", "rate", items="frames")), "aims": []},
    ]
    measures[0]["rows"] = [row("a", "bytes", 3 << 30, None), row("b", "bytes", 6 << 30, 2.0)]
    measures[1]["rows"] = [row("a", "seconds", 1e-6, None), row("b", "seconds", 2.5e-2, 25_000.0)]
    contenders = {
        "a": {"kind": "ours", **described},
        "b": {"kind": "rival", **described},
        "c": {"kind": "limit", **described, "skipped": "it is not installed"},
    }
    case = {"name": "both", "question": "q", "reference": "a", "contenders": contenders, "measures": measures}
    return {**result, "cases": [case]}


def test_tables_show_memory_in_bytes_and_streams_in_items_a_second() -> None:
    """A measure says what its samples are in, and what is counted; both are written so that one can read them."""
    lines = [" ".join(line.split()) for line in report.text(_result()).splitlines()]
    assert "memory median p10 p90 p99 samples memory \N{DIVISION SIGN} a" in lines
    assert any(line.startswith("b 6 GiB 6 GiB") for line in lines)
    assert "rate median p10 p90 p99 frames/s time \N{DIVISION SIGN} a" in lines
    assert any(line.startswith("b 25 ms") and " 40 " in line for line in lines)
    assert any(line.startswith("a 1 ") and " 1,000,000" in line for line in lines)


def test_a_picture_is_drawn_of_each_case_of_a_result(tmp_path: Path) -> None:
    """`--show FILE --plot DIR` writes a PNG for each case, of a committed result and of each kind of measure there is."""
    pytest.importorskip("matplotlib")
    file = tmp_path / "result.json"
    file.write_text(json.dumps(_result()))
    for shown in (str(file), os.path.join(_RESULTS, "0.1.0-2core-epyc.json")):
        with open(shown, encoding="utf-8") as opened:
            names = {f"{case['name']}.png" for case in json.load(opened)["cases"]}
        there = tmp_path / os.path.basename(shown).removesuffix(".json") / "deeper"
        said = run_command([*_COMMAND, "--show", shown, "--plot", str(there)], timeout=100).expect()
        assert {picture.name for picture in there.iterdir()} == names
        for picture in there.iterdir():
            assert picture.read_bytes().startswith(b"\x89PNG")
            assert str(picture) in said


def test_without_matplotlib_there_are_no_pictures_and_a_sentence_says_so(tmp_path: Path) -> None:
    """The tables are printed all the same, and nothing has failed."""
    file = tmp_path / "result.json"
    file.write_text(json.dumps(_result()))
    source = (
        "import sys; sys.modules['matplotlib'] = None; from benchmarks.__main__ import main; "
        f"sys.exit(main(['--show', {str(file)!r}, '--plot', {str(tmp_path / 'there')!r}]))"
    )
    done = run_command([sys.executable, "-c", source])
    assert done.returncode == 0
    assert done.stdout == report.text(_result()) + "\n"
    assert "matplotlib is not installed" in done.stderr


def test_a_rival_that_does_not_work_here_is_skipped_with_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package that is there and cannot be imported takes no part, as one that is not there."""
    (tmp_path / "zmq.py").write_text("raise ImportError('its library is too old')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    outcome = Outcome()
    with Contender("latency", "pyzmq", "tag", outcome, quick=True) as contender:
        contender.wait_until_ready()
    assert outcome.skipped == "it cannot be imported here: its library is too old"
    assert outcome.failed is None


class _Idle:
    """An adapter that has nothing."""

    def __init__(self, tag: str) -> None:
        self.tag = tag

    def leave(self) -> None:
        """Nothing to let go of."""


def _wait_in_vain(adapter: _Idle) -> None:
    threading.Event().wait(600)


def _fail(adapter: _Idle) -> None:
    raise ValueError("an item is torn")


def test_what_fails_at_one_end_of_a_stream_is_raised_while_the_other_end_still_waits() -> None:
    """Nobody waits for a process that waits for one that has failed; the failure ends both."""
    with pytest.raises(PeerError, match="an item is torn"):
        _stream_that_fails()


def _stream_that_fails() -> None:
    with Peer(_Idle, "a") as one, Peer(_Idle, "b") as other:
        ask_all([one], _wait_in_vain)
        ask_all([other], _fail)
        answers([one], [other])


def test_items_of_a_stream_are_looked_at() -> None:
    """An item whose ends differ, or that is not the next, is found by who receives it."""
    assert look(np.array([3.0, 0.0, 3.0])) == 3.0
    with pytest.raises(RuntimeError, match="torn"):
        look(np.array([3.0, 0.0, 4.0]))
    form = Form((2,), "<f4", 4)
    for values, arrived in (([0, 1, 2, -1], 3), ([0, 2, -1], None), ([0, 0, -1], None)):
        items = iter([np.full(2, value, "<f4") for value in values])
        end = SimpleNamespace(form=lambda key: form, ends={"s": lambda check, items=items: check(next(items))})
        if arrived is None:
            with pytest.raises(RuntimeError, match="was next"):
                _consume(cast("End", end), "s", 1)
        else:
            assert _consume(cast("End", end), "s", 1)[0] == arrived


def test_locks_that_are_lost_with_their_holder_are_not_waited_for() -> None:
    """A contender whose next holder would wait for ever says so and takes no part."""
    for rival in ("multiprocessing.Lock", "Manager().Lock"):
        outcome = Outcome()
        with Contender("deaths", rival, "tag", outcome, quick=True) as contender:
            contender.wait_until_ready()
            contender.round(counted=True)
        assert "wait for ever" in str(outcome.skipped)
        assert outcome.failed is None


def test_an_aim_against_what_was_not_measured_has_no_verdict() -> None:
    """A skipped contender leaves no verdict, neither reached nor missed."""
    assert judge(Aim("m", "a", "rate", 2.0, "b"), {"a": summary([[1.0]])}) is None


def test_samples_are_taken_until_the_time_is_up_but_never_too_few_or_too_many() -> None:
    """The least number is taken when the time is up at once, the most when it never is."""
    hasty = Scale(quick=True, sessions=1, rounds=1, seconds=0.0)
    patient = Scale(quick=True, sessions=1, rounds=1, seconds=1e9)
    assert len(list(hasty.samples(least=3))) == 3
    assert len(list(patient.samples(most=7))) == 7
    assert Measure("key", "title").nbytes is None


def test_the_page_shows_the_committed_results_as_they_are() -> None:
    """The tables in `docs/performance.md` are those that `--show` makes of the result files in `benchmarks/results`."""
    with open(_PAGE, encoding="utf-8") as file:
        page = file.read()
    for name in sorted(os.listdir(_RESULTS)):
        if name.endswith(".json"):
            with open(os.path.join(_RESULTS, name), encoding="utf-8") as file:
                result = json.load(file)
            assert f"benchmarks/results/{name}" in page
            assert report.markdown(result) in page


def test_what_a_contender_complains_of_names_no_place_of_the_machine() -> None:
    """A result file is read elsewhere: paths of the interpreter, the project and the home directory are taken out."""
    text = f'File "{sys.prefix}/lib/site.py", line 1; {_ROOT}/benchmarks/x.py; {os.path.expanduser("~")}/y'
    assert without_places(text) == 'File ".../lib/site.py", line 1; .../benchmarks/x.py; .../y'
