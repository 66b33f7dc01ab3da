"""The command line as a whole: arguments, exit codes, pipes, interrupts; and the tables it draws."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shmarray as sa
from shmarray import channels, inspection
from shmarray.cli import answers, doctor, gc, table, top
from shmarray.cli.table import Column, Screen
from tests.cli.places import WHOLE, facts, shmarray
from tests.helpers.processes import environment, run_script

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


@pytest.fixture
def many() -> Iterator[sa.Store]:
    """A store with more arrays than a pipe's buffer has room for their rows."""
    with sa.Store("cli-many") as store:
        for index in range(1200):
            store.put(np.zeros(1), name=f"{'long' * 20}/{index}")
        yield store


@pytest.mark.core
def test_without_arguments_there_is_help_and_an_exit_code_of_2() -> None:
    """Help goes to standard output and names every command and exit code."""
    text = shmarray(fresh=True).expect(2)
    for word in ("usage:", "ls", "top", "gc", "doctor", "demo", "--version", "exit codes:"):
        assert word in text


def test_help_and_version_end_well() -> None:
    """`--help` of all and of each command, and `--version`, end with 0."""
    assert shmarray("--version", fresh=True).expect() == f"shmarray {sa.__version__}\n"
    for command in ((), ("ls",), ("top",), ("gc",), ("doctor",), ("demo",)):
        assert "usage: python -m shmarray" in shmarray(*command, "--help").expect()


WRONG = {
    ("lss",): "there is no command 'lss'; did you mean ls?",
    ("docter",): "there is no command 'docter'; did you mean doctor?",
    ("\x1b[31mred",): "there is no command '\\x1b[31mred'",
    ("ls", "--jsn"): "unknown argument '--jsn'; did you mean --json?",
    ("gc", "--dryrun"): "unknown argument '--dryrun'; did you mean --dry-run?",
    ("gc", "--directory"): "expected one argument",
    ("top", "--interval", "often"): "invalid float value: 'often'",
    ("top", "--interval", "0"): "--interval lies between 0.05 and 3600 seconds",
    ("top", "--interval", "nan"): "--interval lies between 0.05 and 3600 seconds",
    ("top", "--directory", "/no/such/place"): "--directory '/no/such/place' is not a directory",
    ("top", "--onec"): "unknown argument '--onec'; did you mean --once?",
    ("doctor", "everything"): "unknown argument 'everything'",
    ("--json",): "unknown argument '--json'; options of a command come behind it",
    ("--json", "ls"): "unknown argument '--json'; options of a command come behind it",
    ("ls", "--interval"): "unknown argument '--interval'\n",  # which another command has
    ("ls", "one", "two"): "unknown argument 'two'",
}


@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_wrong_arguments_end_with_2_and_a_sentence(arguments: tuple[str, ...]) -> None:
    """Nothing on standard output; on standard error what is wrong, what may have been meant, and where help is."""
    found = shmarray(*arguments)
    assert (found.returncode, found.stdout) == (2, "")
    assert WRONG[arguments] in found.stderr
    assert "--help" in found.stderr
    assert "Traceback" not in found.stderr


def test_demo_gets_its_own_arguments() -> None:
    """What follows `demo` is the demo's: its own help, its own complaints."""
    assert "--tiles" in shmarray("demo", "--help").expect()
    found = shmarray("demo", "--nonsense", fresh=True)
    assert found.returncode == 2
    assert "--nonsense" in found.stderr


def test_a_reader_that_has_had_enough_is_no_failure(many: sa.Store) -> None:
    """`ls | head`: the pipe closes in the middle of the answer; the exit code is 0 and standard error is empty."""
    command = [sys.executable, "-m", "shmarray", "ls", "--all"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(WHOLE), text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("store 'cli-many'")
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(30) == 0


def test_an_answer_that_cannot_be_written_is_a_failure_with_a_sentence(many: sa.Store) -> None:
    """On a full device the exit code is 1 and standard error has one line."""
    command = [sys.executable, "-m", "shmarray", "ls", "--all"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, env=environment(WHOLE), timeout=30, check=False
        )
    assert (done.returncode, done.stderr) == (1, b"shmarray: the answer cannot be written: No space left on device\n")


def test_a_closed_standard_output_is_no_failure() -> None:
    """`ls >&-`: there is nobody to tell, and nothing to complain about."""
    command = ["sh", "-c", 'exec "$0" -m shmarray ls >&-', sys.executable]
    done = subprocess.run(command, stderr=subprocess.PIPE, env=environment(WHOLE), timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


IN_THE_MIDDLE = """
import signal, sys
from shmarray import inspection
from shmarray.cli import main

def survey(*args, **options):
    {action}

inspection.survey = survey
sys.exit(main([{command!r}]))
"""


@pytest.mark.parametrize("command", ["ls", "top", "gc", "doctor"])
def test_ctrl_c_ends_with_130_and_without_a_word(command: str) -> None:
    """SIGINT in the middle of a command ends it quietly."""
    source = IN_THE_MIDDLE.format(action="signal.raise_signal(signal.SIGINT)", command=command)
    found = run_script(source)
    assert (found.returncode, found.stdout, found.stderr) == (130, "", "")


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ("raise PermissionError(13, 'Permission denied', '/dev/shm')", "Permission denied: '/dev/shm'"),
        ("import shmarray; raise shmarray.StoreFullError('full', remedy='Make room.')", "full\nMake room."),
        ("1 / 0", "unexpected ZeroDivisionError: division by zero\nThis is a defect of shmarray"),
    ],
)
def test_no_failure_ends_in_a_traceback(action: str, message: str) -> None:
    """Whatever goes wrong is a sentence on standard error and an exit code of 1."""
    found = run_script(IN_THE_MIDDLE.format(action=action, command="ls"))
    assert (found.returncode, found.stdout) == (1, "")
    assert message in found.stderr
    assert "Traceback" not in found.stderr


def test_the_json_has_the_fields_that_are_documented() -> None:
    """Every field of every record that `--json` writes stands in `docs/cli.md`, and every answer has its schema."""
    with open(os.path.join(ROOT, "docs", "cli.md"), encoding="utf-8") as file:
        text = file.read()
    for command in ("ls", "top", "gc", "doctor"):
        answer = facts(command)
        assert (answer["schema"], answer["command"]) == (answers.SCHEMA, command)
        assert [field for field in answer if f"`{field}`" not in text] == []
    records: list[Any] = [inspection.Store, inspection.Block, inspection.Guard, inspection.Poison, inspection.Process]
    records += [inspection.Channel, inspection.Item, channels.ChannelStats, channels.SubscriberStats, top.Rates]
    for record in (*records, inspection.Stray, gc.Removed, gc.Left, doctor.Finding):
        fields = [field.name for field in dataclasses.fields(record)]
        assert [field for field in fields if f"`{field}`" not in text] == [], record


# Tables

ANY = st.text(st.characters(codec=None), max_size=30)


@given(ANY, st.sampled_from(["utf-8", "ascii", "latin-1", "cp437"]))
def test_cleaned_text_is_harmless(text: str, encoding: str) -> None:
    """Of any text at all only what can be seen is left, in what the encoding has."""
    cleaned = table.clean(text, encoding)
    assert cleaned.isprintable()
    cleaned.encode(encoding)
    assert table.clean(cleaned, encoding) == cleaned


@given(ANY, st.integers(1, 40))
def test_shortened_text_is_no_wider_than_asked(text: str, limit: int) -> None:
    """Text that fits is kept as it is, other text is cut, never in the middle of a wide letter."""
    cleaned = table.clean(text)
    short = table.shorten(cleaned, limit)
    assert table.width(short) <= limit
    assert (short == cleaned) == (table.width(cleaned) <= limit)


@given(st.lists(st.lists(ANY, min_size=3, max_size=3), max_size=5), st.integers(24, 120))
def test_a_table_that_can_give_way_fits(rows: list[list[str]], limit: int) -> None:
    """With columns that may shrink or go no line is wider than the terminal, and there is one line for each row."""
    columns = [Column("NAME", least=6), Column("VALUE", right=True, least=4), Column("MORE", least=4, drop=1)]
    lines = table.render(columns, rows, Screen(limit, "utf-8")).split("\n")
    assert len(lines) == len(rows) + 2
    assert [line for line in lines if table.width(line) > limit] == []


def test_what_a_dropped_column_had_goes_to_the_others() -> None:
    """Columns are no narrower than they must be: when one goes, those that had shrunk for it have their width again."""
    columns = [Column("NAME", least=4), Column("SIZE"), Column("AGE", drop=1)]
    rows = [["training/images", "1.0 KiB", "12 hours and more"]]
    assert table.render(columns, rows, Screen(30, "utf-8")).splitlines()[1] == "training/images  1.0 KiB"
    assert table.render(columns, rows, Screen(20, "utf-8")).splitlines()[1] == "training/i…  1.0 KiB"


@given(st.lists(st.text("abc def", max_size=12), min_size=1, max_size=30), st.integers(30, 100))
def test_wrapped_text_fits_and_loses_nothing(words: list[str], limit: int) -> None:
    """Lines are broken between words only, and fit when the words do."""
    text = " ".join(words)
    lines = table.wrap(text, Screen(limit, "utf-8"), "  ! ", "    ").splitlines()
    assert " ".join(line[4:] for line in lines) == text
    assert [line for line in lines if table.width(line) > limit] == []


def test_numbers_stand_to_the_right_and_text_to_the_left() -> None:
    """A right column ends at one place, a left one begins at one."""
    text = table.render([Column("N", right=True), Column("NAME")], [["1", "a"], ["1000", "bb"]], Screen(None, "utf-8"))
    assert text == "   N  NAME\n   1  a\n1000  bb\n"


def test_the_width_of_the_terminal_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """`COLUMNS` counts also in a pipe; without it a pipe is as wide as need be."""
    with open(os.devnull, encoding="utf-8") as pipe:
        monkeypatch.setenv("COLUMNS", "77")
        assert table.screen(pipe) == Screen(77, "utf-8")
        monkeypatch.setenv("COLUMNS", "x")
        assert table.screen(pipe) == Screen(None, "utf-8")


def test_a_real_terminal_is_asked_for_its_width() -> None:
    """On a pseudo-terminal of 50 columns no line of `ls` is wider."""
    source = """
import fcntl, os, pty, struct, sys, termios
import shmarray as sa
store = sa.Store()
for index in range(5):
    store.zeros((1, 2, 3, 4), [("a" * 30, "f8"), ("b", "i4")], name="name" * 20 + str(index))
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.executable, [sys.executable, "-c", "input(); import sys; from shmarray.cli import main; sys.exit(main(['ls']))"])
fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 50, 0, 0))
os.write(terminal, b"\\n")
said = b""
while True:
    try:
        piece = os.read(terminal, 65536)
    except OSError:
        break
    if not piece:
        break
    said += piece
_, status = os.waitpid(pid, 0)
store.close()
print(os.waitstatus_to_exitcode(status))
print(said.decode().replace("\\r\\n", "\\n"))
"""
    env = {"COLUMNS": "", "TERM": "xterm"}
    code, *lines = run_script(source, env=env).expect().splitlines()
    assert code == "0"
    rows = [line for line in lines if "name" in line]
    assert len(rows) >= 5
    assert [line for line in lines if table.width(line) > 50] == []
