"""`python -m shmarray top`: what it shows, that it disturbs nobody, and how it stands in a terminal."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import signal
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shmarray as sa
from shmarray import channels, inspection
from shmarray._format import channel as form
from shmarray._os import flocks, segments
from shmarray.cli import table, top
from tests.cli.places import dead_store, facts, file, inodes, kill, owner, shmarray, store_facts
from tests.helpers.processes import Child, run_script, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

WIDE = table.Screen(None, "utf-8")
QUICK = ("--interval", "0.05")

STREAM = """
import sys
import shmarray as sa
from tests.helpers.processes import report

store = sa.connect("top")
channel = store.open_channel(sys.argv[1])
report("ready")
for number in range(10**9):          # until it is killed
    with channel.loan() as frame:
        frame[0] = number % 100
    with channel.receive() as frame:
        frame.sum()
"""

HOLD = """
import sys
import shmarray as sa
from tests.helpers.processes import report

channel = sa.connect("top").open_channel("camera")
loan = channel.loan()
frame = loan.__enter__()
report("ready")
input()
"""


@pytest.fixture
def store() -> Iterator[sa.Store]:
    """An open store of this process."""
    with sa.Store("top") as opened:
        yield opened


def channels_of(store: str) -> dict[str | None, Any]:
    """What `top --json` says of the channels of a store, by their names."""
    found = next(entry for entry in facts("top", *QUICK)["stores"] if store in (entry["name"], entry["id"]))
    return {channel["name"]: channel for channel in found["channels"]}


def look() -> inspection.Survey:
    """One look, as `top` does it."""
    return inspection.survey(aloof=True)


def text(found: inspection.Survey) -> str:
    """What `top` shows of a look."""
    return "\n".join(top._text(top._Look(found, {}), WIDE))


def seen(store: sa.Store) -> inspection.Channel:
    """The only channel of a store, as a look finds it."""
    (found,) = (entry for entry in look().stores if entry.id == store.id)
    (channel,) = (block.channel for block in found.blocks if block.channel is not None)
    return channel


# -- what it shows -----------------------------------------------------------------------------------------------------


@pytest.mark.core
def test_a_channel_is_shown_as_its_own_statistics_say(store: sa.Store) -> None:
    """What is read from the file, field by field, is what `stats()` says in a process that has the channel."""
    queue = store.channel((4, 5), "f4", slots=5, name="queue", redeliver=True)
    broadcast = store.channel(7, slots=3, mode="broadcast", full="drop-oldest", name="broadcast")
    first, second = broadcast.subscribe(), broadcast.subscribe()
    for number in range(5):
        broadcast.put(np.full(7, number))
    for _ in range(3):
        queue.put(np.zeros((4, 5), "f4"))
    queue.get()
    with queue.loan(), queue.receive(), second.receive():
        found = channels_of("top")
        for name, channel in (("queue", queue), ("broadcast", broadcast)):
            assert found[name]["stats"] == json.loads(json.dumps(dataclasses.asdict(channel.stats())))
            assert found[name]["gone"] == []
            assert found[name]["rates"]["sent"] == 0
        shown = shmarray("top", *QUICK).expect()
    pid = os.getpid()
    assert f"from {pid}; to {pid}; {pid} fills 1 slot; {pid} reads 1 slot\n" in shown
    assert f"to {pid} (3 to come, 2 missed), {pid} (2 to come, 2 missed); {pid} reads 1 slot\n" in shown
    assert first.qsize() == 3


@pytest.mark.core
def test_rates_are_what_changed_between_two_looks(store: sa.Store) -> None:
    """What is sent and taken in between, and how long that waited, is told for each second; what was before is not."""
    channel = store.channel((10, 100), "u1", slots=2, full="drop-new", name="camera")
    for _ in range(3):
        channel.put(np.zeros((10, 100), "u1"))
    before = seen(store)
    for _ in range(2):
        channel.get()
    for _ in range(64):
        channel.put(np.zeros((10, 100), "u1"))
        channel.get()
    now = seen(store)
    change = top._change(before, now)
    assert change is not None
    assert change.seconds == now.read_at - before.read_at
    rated = {name: round(getattr(change, name) * change.seconds) for name in ("sent", "received", "bytes", "dropped")}
    assert rated == {"sent": 64, "received": 66, "bytes": 64 * 1000, "dropped": 0}
    measured = change.latency
    assert measured is not None
    assert 0 < measured["p50"] <= measured["p99"] <= measured["max"]
    (still,) = {top._change(now, dataclasses.replace(now, read_at=now.read_at + 2))}
    assert still is not None
    assert (still.sent, still.latency) == (0, None)


def test_another_channel_of_that_name_has_no_rates(store: sa.Store) -> None:
    """When a channel was replaced, or the clock was set back, nothing is made up."""
    channel = store.channel(3, name="camera")
    channel.put([1, 2, 3])
    before = seen(store)
    del channel, store["camera"]
    store.channel(3, name="camera")
    assert top._change(before, seen(store)) is None
    assert top._change(before, dataclasses.replace(before, read_at=before.read_at - 1)) is None


def test_a_stream_that_runs_has_rates_and_latencies(store: sa.Store) -> None:
    """Of a stream between other processes the table has numbers, and the JSON the same kind of them."""
    channel = store.channel((100, 100), "u1", name="camera")
    with Child(STREAM, "camera") as child:
        child.wait_for("ready")
        wait_until(lambda: channel.stats().received > 32)
        rates = wait_until(lambda: _running(channels_of("top")["camera"]["rates"]))
        assert rates["bytes"] == pytest.approx(rates["sent"] * 10_000)
        assert str(child.pid) in shmarray("top", "--once", *QUICK).expect()


def _running(rates: Any) -> Any:
    """Rates of a stream that was seen to run: a slow machine may have stood still between two looks."""
    return rates if rates["sent"] > 0 and rates["received"] > 0 and rates["latency"] else None


def test_a_process_that_died_with_a_slot_is_called_dead(store: sa.Store) -> None:
    """A killed producer is shown with the slot it had, and as dead, until someone takes notice."""
    channel = store.channel(3, slots=2, name="camera")
    with Child(HOLD) as child:
        child.wait_for("ready")
        assert channels_of("top")["camera"]["gone"] == []
        child.kill()
        found = channels_of("top")["camera"]
        assert found["gone"] == [child.pid]
        assert found["stats"]["held"] == [[0, "loan", child.pid]]
        assert f"{child.pid} fills 1 slot; dead: {child.pid}" in shmarray("top", *QUICK).expect()
        assert channel.stats().held


def test_stores_without_channels_and_no_stores_have_their_line(store: sa.Store) -> None:
    """A store without channels is one line, and no store at all is a sentence."""
    store.zeros(1000, name="array")
    assert f"store 'top' ({store.id}): open, 1 process, 1 block, " in text(look())
    assert "CHANNEL" not in text(look())
    assert "has no stores" in text(dataclasses.replace(look(), stores=()))


def test_a_store_in_a_directory_is_watched_too(store_dir: str) -> None:
    """Channels of `Store(directory=...)` are found without being told where, and with `--directory`."""
    with sa.Store("top", directory=store_dir) as store:
        channel = store.channel(3, name="camera")
        channel.put([1, 2, 3])
        for arguments in ((), ("--directory", store_dir)):
            assert "  camera" in shmarray("top", *QUICK, *arguments).expect()
        assert channels_of("top")["camera"]["stats"]["depth"] == 1


def test_channels_of_a_dead_store_are_shown() -> None:
    """When owner and guardian were killed, a look is as good as before: the files are there."""
    with dead_store("top-dead") as left:
        assert f"store 'top-dead' ({left.id}): dead, 0 processes, 4 blocks" in shmarray("top", *QUICK).expect()
        assert store_facts("top-dead")["state"] == "leftover"


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 200])
def test_the_table_fits_the_terminal(store: sa.Store, columns: int) -> None:
    """No line of the table is wider than the terminal, and depth and rates are there on every one."""
    kept = [store.channel((3, 4), name=f"{'name' * 5}{index}", mode="broadcast") for index in range(3)]
    shown = shmarray("top", *QUICK, env={"COLUMNS": str(columns)}).expect()
    rows = [line for line in shown.splitlines() if line.startswith("  ") and not line.startswith("    ")]
    assert [line for line in rows if table.width(line) > columns] == []
    assert all(word in shown for word in ("CHANNEL", "DEPTH", "SENT/S"))
    assert len(kept) == 3


# -- that it disturbs nobody -------------------------------------------------------------------------------------------


def test_a_look_asks_for_no_lock_and_maps_nothing(store: sa.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither lease, nor exclusive lock, nor mark is asked for, whatever stands there; no file is opened for writing or mapped."""
    kept = [store.channel(3, name="camera"), store.channel(3, mode="broadcast"), store.zeros(3), store.dict(a=1)]
    store.zeros(3, name="named")
    asked = []
    with dead_store("top-dead"), file("shmarray.0.strange"):
        opened = segments.open_existing

        def read_only(path: str, *, write: bool = True) -> segments.Descriptor:
            asked.extend([path] if write else [])
            return opened(path, write=write)

        for module, names in (
            (flocks, ("share", "try_share", "try_exclusive", "mark", "wait_mark")),
            (segments, ("map_shared", "create_leased", "write", "link", "replace", "unlink")),
        ):
            for name in names:
                monkeypatch.setattr(module, name, lambda *args, name=name, **_: asked.append(name))
        monkeypatch.setattr(segments, "open_existing", read_only)
        found = look()
        monkeypatch.undo()
    assert asked == []
    assert {entry.name for entry in found.stores} >= {"top", "top-dead"}
    assert sum(block.channel is not None for entry in found.stores for block in entry.blocks) == 2
    assert len(kept) == 4


def test_who_watches_takes_no_part_and_keeps_nothing_alive() -> None:
    """While `top` runs it maps no file of ours; a store whose owner is killed meanwhile goes as ever, and `top` goes on."""
    with owner("top-owner") as (child, left, _guardian), Child(WATCH) as watcher:
        watcher.wait_for("looked")
        assert inodes(watcher.pid) == set()
        assert watcher.pid not in store_facts("top-owner")["participants"]
        child.kill()
        wait_until(lambda: not left.files() and not os.path.exists(left.control))
        watcher.tell()
        assert left.id not in watcher.wait_for("shown")


WATCH = """
from shmarray.cli import top
from shmarray.cli.table import Screen
from tests.helpers.processes import report

looks = top._looks([], 0.05)
for _ in range(3):
    next(looks)
report("looked")
input()
report("shown", "\\n".join(top._text(next(looks), Screen(None, "utf-8"))))
"""


def test_a_mark_of_the_owner_is_asked_about_and_not_taken(store: sa.Store) -> None:
    """Between looks the owner's mark and leases are what they were: others may join, and the owner may close."""
    looks = top._looks([], 0.05)
    for _ in range(3):
        assert store.id in {entry.id for entry in next(looks).found.stores}
    looks.close()
    assert sa.connect("top").id == store.id


# -- damage ------------------------------------------------------------------------------------------------------------


def _spoil(path: str, offset: int, data: bytes) -> None:
    with open(path, "r+b") as opened:
        opened.seek(offset)
        opened.write(data)


def _path_of(store: sa.Store) -> str:
    (found,) = (entry for entry in look().stores if entry.id == store.id)
    (path,) = (block.file for block in found.blocks if block.kind == "Channel")
    return path


@pytest.mark.parametrize(
    ("word", "value"),
    [(form.MODE, 7), (form.FULL, -1), (form.SLOTS, 0), (form.SLOTS, 1 << 40), (form.RECORD_WORDS, 0), (form.STRIDE, 8)],
)
def test_a_damaged_channel_is_a_sentence(store: sa.Store, word: int, value: int) -> None:
    """Words that no channel has are told as damage, by `top` and by `ls`; both end with 0, and other channels are shown."""
    store.channel(3, name="sound")
    spoilt = store.channel(5, name="spoilt")
    path = next(block.file for entry in look().stores for block in entry.blocks if block.name == "spoilt")
    sound = words_of(path)
    try:
        _spoil(path, 8 * word, value.to_bytes(8, "little", signed=True))
        shown = shmarray("top", *QUICK).expect()
        assert f"! {path}: its words are not those of a channel that this version knows" in shown
        assert "  sound" in shown
        assert "its words are not those of a channel" in shmarray("ls").expect()
        assert [channel["name"] for channel in channels_of("top").values()] == ["sound"]
    finally:
        _spoil(path, 0, sound)
    assert spoilt.slots == 8


def words_of(path: str) -> bytes:
    """The words of a channel that never change."""
    with open(path, "rb") as opened:
        return opened.read(64)


@pytest.mark.parametrize("seed", range(4))
def test_random_words_never_end_in_a_traceback(store: sa.Store, seed: int) -> None:
    """Whatever bytes lie where a channel's words were, a look finds a channel or damage, and both can be shown and written as JSON."""
    chance = random.Random(seed)  # noqa: S311  the same every time
    store.channel((3, 4), mode=chance.choice(["queue", "broadcast"]), name="spoilt")
    path = _path_of(store)
    with open(path, "rb") as opened:
        size = 8 * (form.RECORDS + 8)
        sound = opened.read(size)
    for _ in range(25):
        first = chance.choice([0, 64, 64, 64])
        count = chance.choice([8, 64, size - first])
        at = chance.randrange(first, size - count + 1)
        _spoil(path, 0, sound)
        _spoil(path, at, chance.randbytes(count))
        now = look()
        blocks = [block for entry in now.stores for block in entry.blocks if block.file == path]
        assert [block.state in ("live", "damaged") for block in blocks] == [True]
        assert "store 'top'" in text(now)
        for block in blocks:
            if block.channel is not None:
                later = dataclasses.replace(block.channel, read_at=block.channel.read_at + 1)
                assert top._change(block.channel, later) is not None
        json.dumps(top._facts(top._Look(now, {}), 1.0))
    _spoil(path, 0, sound)


def test_a_channel_that_is_cut_off_is_a_sentence() -> None:
    """A file that ends in the midst of its words is damage."""
    with sa.Store("top") as store:
        store.channel(3, name="camera")
        path = _path_of(store)
        with open(path, "rb") as opened:
            content = opened.read()
        copy = path.replace("n.camera", "n.copy")
        with file(os.path.basename(copy), content[:4096]):
            assert "copy: " in text(look())


def test_many_slots_are_read_word_by_word(store: sa.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where records are too many to be read whole, the state of each slot is read by itself, and says the same."""
    channel = store.channel(3, slots=300, meta_bytes=100, name="camera")
    for _ in range(7):
        channel.put([1, 2, 3])
    with channel.receive():
        whole = seen(store)
        monkeypatch.setattr("shmarray.inspection.channels._AT_ONCE", 0)
        assert seen(store).stats == whole.stats == channel.stats()
        assert whole.stats.held == ((0, "receive", os.getpid()),)


# -- in a terminal -----------------------------------------------------------------------------------------------------

TERMINAL = """
import fcntl, os, pty, re, select, struct, sys, termios, time
import numpy as np
import shmarray as sa

lines, columns, stop, *arguments = sys.argv[1:]
store = sa.Store("top-live")
kept = [store.channel(3, name=f"channel{index:02}") for index in range(12)]
pid, terminal = pty.fork()
if pid == 0:
    program = "input(); import sys; from shmarray.cli import main; sys.exit(main(sys.argv[1:]))"
    os.execv(sys.executable, [sys.executable, "-c", program, "top", "--interval", "0.05", *arguments])
fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", int(lines), int(columns), 0, 0))
before = termios.tcgetattr(terminal)
os.write(terminal, b"\\n")
said, stopped, deadline = b"", False, time.monotonic() + 25
while time.monotonic() < deadline:
    if not select.select([terminal], [], [], 0.1)[0]:
        continue
    try:
        piece = os.read(terminal, 65536)
    except OSError:
        break
    if not piece:
        break
    said += piece
    if stop != "no" and not stopped and said.count(b"\\x1b[H") >= 4:  # the fourth may be cut short
        stopped = True
        os.write(terminal, b"\\x03")
_, status = os.waitpid(pid, 0)
print(os.waitstatus_to_exitcode(status), termios.tcgetattr(terminal) == before)
sys.stdout.write(said.decode().replace("\\r\\n", "\\n"))
store.close()
"""


def in_terminal(lines: int, columns: int, *arguments: str, stop: bool = True, term: str = "xterm") -> tuple[str, str]:
    """Run `top` on a pseudo-terminal, with Ctrl-C during the fourth picture; how it ended, and all that it wrote."""
    env = {"COLUMNS": "", "LINES": "", "TERM": term}
    stopped = "yes" if stop else "no"
    ended, _, said = (
        run_script(TERMINAL, str(lines), str(columns), stopped, *arguments, env=env).expect().partition("\n")
    )
    return ended, said


@pytest.mark.parametrize(("lines", "columns"), [(50, 120), (10, 60)])
def test_in_a_terminal_it_is_drawn_in_place_until_ctrl_c(lines: int, columns: int) -> None:
    """Each picture is drawn over the one before, fits, and ends with 0 and without a word on Ctrl-C; modes stay as they were."""
    ended, said = in_terminal(lines, columns)
    assert ended == "0 True"
    pictures = said.split("\x1b[H")[1:]
    assert len(pictures) >= 4
    assert "Traceback" not in said
    for picture in pictures[:3]:
        drawn = picture.split("\x1b[J")[0].replace("\x1b[K", "").splitlines()
        assert len(drawn) < lines
        assert [line for line in drawn if table.width(line) > columns] == []
        assert "every 0.05 s, until Ctrl-C" in drawn[0]
        assert any("channel00" in line for line in drawn) == (lines == 50 or len(drawn) > 5)
        assert ("--once shows them" in drawn[-1]) == (lines == 10)
    assert "\x1b[?" not in said
    assert said.endswith("\r\x1b[K")


@pytest.mark.parametrize(("arguments", "term"), [(("--once",), "xterm"), ((), "dumb")])
def test_once_in_a_terminal_is_one_table(arguments: tuple[str, ...], term: str) -> None:
    """With `--once`, and on a terminal that cannot be drawn on, there is one table without any escapes."""
    ended, said = in_terminal(50, 120, *arguments, stop=False, term=term)
    assert ended == "0 True"
    assert "\x1b" not in said
    assert said.count("CHANNEL") == 1


def test_a_terminal_that_is_gone_ends_it() -> None:
    """When the terminal hangs up, `top` ends as every program does."""
    with Child(HANGS_UP) as child:
        pid = child.wait_for("drawn")
        child.tell()
        assert child.wait_for("ended") in (-signal.SIGHUP, 1)
        with contextlib.suppress(ProcessLookupError):
            kill(pid)


HANGS_UP = """
import os, pty, sys
from tests.helpers.processes import report

os.environ["TERM"] = "xterm"
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.executable, [sys.executable, "-m", "shmarray", "top", "--interval", "0.05"])
said = b""
while said.count(b"\\x1b[H") < 2:
    said += os.read(terminal, 65536)
report("drawn", pid)
input()
os.close(terminal)
report("ended", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_the_statistics_of_a_copy_need_no_channel(store: sa.Store) -> None:
    """`statistics.of` works on plain numbers, so nothing of a channel is touched by who only reads."""
    channel = store.channel(3, slots=2)
    channel.put([1, 2, 3])
    words = tuple(channel._words)
    states = channel._flow.slots.states()
    assert channels.statistics.of(words, states) == channel.stats()
