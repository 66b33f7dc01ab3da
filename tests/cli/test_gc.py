"""`python -m shmarray gc`: the provably dead goes, everything else stays, and both are said."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shmarray as sa
from shmarray import cli
from shmarray.cli import gc
from tests.cli.places import (
    BLOCKS,
    UID,
    WHOLE,
    Dead,
    dead_store,
    elsewhere,
    facts,
    file,
    hasty_gc,
    kill,
    member,
    name_link,
    needs_namespaces,
    owner,
    shmarray,
    store_facts,
)
from tests.helpers.leaks import SHM, shm_entries
from tests.helpers.processes import Child, environment, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

WORKER = """
import sys
import shmarray as sa
from tests.helpers.processes import report

store = sa.connect(sys.argv[1])
kept = store.ones(1000, name=sys.argv[2] if len(sys.argv) > 2 else None)
report("ready", kept.block_name)
input()
"""


def about(found: list[dict[str, Any]], store: str) -> list[dict[str, Any]]:
    """Those entries of an answer that are about one store."""
    return [entry for entry in found if entry["store"] == store]


@pytest.mark.core
def test_what_a_killed_owner_left_is_removed_and_told() -> None:
    """Blocks, control file and name of a store of the dead go; the answer has their number and bytes, and the code is 0."""
    with dead_store("gc-dead") as left:
        size = left.bytes()
        answer = facts("gc")
        gone = about(answer["removed"], left.id)
        assert gone == [{"what": "leftover", "store": left.id, "name": "gc-dead", "blocks": BLOCKS, "bytes": size}]
        assert (answer["removed_blocks"], answer["removed_bytes"]) == (BLOCKS, size)
        assert shm_entries(left.prefix) == set()
        assert not os.path.lexists(name_link("gc-dead"))
        assert about(facts("gc")["removed"], left.id) == []


def test_a_person_is_told_in_a_sentence() -> None:
    """Without `--json` the store, its blocks and bytes are named."""
    with dead_store("gc-told") as left:
        text = shmarray("gc").expect()
        assert f"removed store 'gc-told' ({left.id}): {BLOCKS} blocks, " in text
        assert f"{BLOCKS} blocks, " in text.splitlines()[-1]
        assert "freed" in text.splitlines()[-1]


def test_a_dry_run_foretells_and_removes_nothing() -> None:
    """`gc --dry-run` leaves every file, and says what `gc` then does."""
    with dead_store("gc-dry") as left:
        before = shm_entries(left.prefix)
        foretold = facts("gc", "--dry-run")
        assert shm_entries(left.prefix) == before
        assert "would remove" in shmarray("gc", "--dry-run").expect()
        done = facts("gc")
        assert about(foretold["removed"], left.id) == about(done["removed"], left.id) != []
        assert (foretold["dry_run"], done["dry_run"]) == (True, False)


@pytest.mark.core
def test_living_stores_are_not_touched() -> None:
    """Of a store whose owner lives nothing goes: not what is held, not what is named, not what is in flight."""
    with owner("gc-alive") as (child, left, _), member("gc-alive", "array/1"):
        before = shm_entries(left.prefix)
        answer = facts("gc")
        assert shm_entries(left.prefix) == before
        assert about(answer["removed"], left.id) == about(answer["left"], left.id) == []
        assert answer["alive"] >= 1
        child.tell()
        child.finish().expect()


@needs_namespaces
def test_what_processes_hold_that_cannot_be_seen_is_not_touched() -> None:
    """From another pid namespace nobody is seen; the kernel's locks still say who lives, of owner, worker and holder."""
    with owner("gc-unseen") as (child, left, guardian), member("gc-unseen", "array/0"):
        before = left.files()
        (store,) = [
            entry for entry in json.loads(elsewhere("ls", "--json").expect())["stores"] if entry["id"] == left.id
        ]
        assert (store["state"], store["participants"], store["owner"]["alive"]) == ("open", [], True)
        assert {block["state"] for block in store["blocks"]} == {"live"}
        assert about(json.loads(elsewhere("gc", "--json").stdout)["removed"], left.id) == []
        kill(guardian)
        child.kill()
        answer = json.loads(elsewhere("gc", "--json", hasty=True).expect(1))
        assert about(answer["removed"], left.id) == []
        assert "cannot be seen from here" in about(answer["left"], left.id)[0]["reason"]
        anonymous = {path for path in before if ".a." in path}
        assert before - anonymous <= left.files()


def test_a_dead_store_on_disk_is_removed_there_too(store_dir: str) -> None:
    """The control file of a dead store in a directory is enough: blocks and claim go, without `--directory`."""
    with dead_store("gc-disk", store_dir) as left:
        size = left.bytes()
        gone = about(facts("gc")["removed"], left.id)
        assert [(entry["blocks"], entry["bytes"]) for entry in gone] == [(BLOCKS, size)]
        assert os.listdir(store_dir) == []
        assert shm_entries(left.prefix) == set()


def test_after_a_reboot_a_directory_can_be_named(store_dir: str) -> None:
    """When the control file went with the memory, `gc --directory` finds the claim, and what lies beside it goes."""
    with dead_store(directory=store_dir) as left:
        os.unlink(left.control)
        size = left.bytes()
        facts("gc")
        assert len(left.files()) == BLOCKS
        assert len(about(facts("gc", "--directory", store_dir, "--dry-run")["removed"], left.id)) == 1
        assert len(left.files()) == BLOCKS
        gone = about(facts("gc", "--directory", store_dir)["removed"], left.id)
        assert [(entry["blocks"], entry["bytes"]) for entry in gone] == [(BLOCKS, size)]
        assert os.listdir(store_dir) == []


def test_what_nobody_can_reach_in_a_living_store_is_removed() -> None:
    """An anonymous array whose holder and whose guardian were killed goes; the store lives on."""
    with owner("gc-swept") as (child, left, guardian):
        kill(guardian)
        with Child(WORKER, "gc-swept") as worker:
            path = f"{SHM}/{worker.wait_for('ready')}"
            size = os.stat(path).st_size
            worker.kill()
        assert os.path.exists(path)
        assert about(facts("gc", "--dry-run")["removed"], left.id)[0]["what"] == "unreachable"
        gone = about(facts("gc")["removed"], left.id)
        assert gone == [{"what": "unreachable", "store": left.id, "name": "gc-swept", "blocks": 1, "bytes": size}]
        assert not os.path.exists(path)
        assert len(left.files()) == BLOCKS
        child.tell()
        child.finish().expect()


def test_a_store_that_a_worker_still_uses_stays_and_the_worker_is_named() -> None:
    """With the owner dead and a worker alive all files stay, the code is 1; with the worker gone they go."""
    with owner("gc-used") as (child, left, guardian):
        with member("gc-used", "array/0") as worker:
            kill(guardian)
            child.kill()
            answer = facts("gc", returncode=1)
            (kept,) = about(answer["left"], left.id)
            assert kept["what"] == "dead"
            assert str(worker.pid) in kept["reason"]
            assert kept["remedy"]
            assert about(answer["removed"], left.id) == []
            assert len(left.files()) == BLOCKS
        assert len(about(facts("gc")["removed"], left.id)) == 1
        assert shm_entries(left.prefix) == set()


@contextlib.contextmanager
def _orphaned(name: str) -> Any:
    with dead_store(name) as left:
        os.unlink(left.control)
        os.unlink(name_link(name))
        yield left


def test_blocks_without_a_control_file_are_removed() -> None:
    """Blocks whose control file somebody removed go when all who made and held them are dead."""
    with _orphaned("gc-orphan") as left:
        size = left.bytes()
        assert store_facts(left.id)["state"] == "orphan"
        gone = about(facts("gc")["removed"], left.id)
        assert gone == [{"what": "orphan", "store": left.id, "name": None, "blocks": BLOCKS, "bytes": size}]
        assert left.files() == set()


def test_a_name_without_a_control_file_leads_gc_to_the_blocks() -> None:
    """When only the link of the store's name is left of the control file, the whole store goes with it."""
    with dead_store("gc-link") as left:
        os.unlink(left.control)
        assert len(about(facts("gc")["removed"], left.id)) == 1
        assert left.files() == set()
        assert not os.path.lexists(name_link("gc-link"))


def _is_mapped(left: Dead) -> Any:
    """Somebody looks at a block: an unrelated process that maps the file, as C code might."""
    path = min(left.files())
    source = f"""
import mmap
from tests.helpers.processes import report
with open({path!r}, "r+b") as opened:
    view = mmap.mmap(opened.fileno(), 0)
report("ready")
input()
"""
    return Child(source)


def test_blocks_without_a_control_file_stay_while_one_is_mapped() -> None:
    """One mapping of one block keeps all blocks of that store, and its process is named."""
    with _orphaned("gc-mapped") as left:
        with _is_mapped(left) as child:
            child.wait_for("ready")
            answer = facts("gc", returncode=1)
            assert f"process {child.pid} maps one of its blocks" in about(answer["left"], left.id)[0]["reason"]
            assert len(left.files()) == BLOCKS
        assert len(about(facts("gc")["removed"], left.id)) == 1


def test_a_living_store_whose_control_file_was_removed_by_hand_stays() -> None:
    """Whoever made a block of it lives, so nothing of it is removed, mapped or not; closing it removes all."""
    with owner() as (child, left, _):
        os.unlink(left.control)
        reason = about(facts("gc", returncode=1)["left"], left.id)[0]["reason"]
        assert str(left.owner) in reason
        assert len(left.files()) == BLOCKS
        child.tell()
        child.finish().expect()
        assert left.files() == set()


def test_a_store_stays_whose_owner_lives_and_whose_blocks_others_made() -> None:
    """Its control file is mapped without a name, which is doubt enough: a store with an unmapped block of a dead worker."""
    source = "import shmarray as sa\nfrom tests.helpers.processes import report\n"
    source += "store = sa.Store('gc-doubt')\nreport('ready', [store.id, store.guardian_pid])\ninput()\n"
    with Child(source) as child:
        store, guardian = child.wait_for("ready")
        left = Dead(store, "gc-doubt", child.pid, SHM)
        with Child(WORKER, "gc-doubt", "made/by/a/worker") as worker:
            worker.wait_for("ready")
            worker.kill()
        os.unlink(left.control)
        os.unlink(name_link("gc-doubt"))
        kill(guardian)
        assert len(left.files()) == 1
        reason = about(hasty_gc(1)["left"], store)[0]["reason"]
        assert f"process {child.pid} maps shared memory that has no name" in reason
        assert len(left.files()) == 1
        child.kill()
        assert len(about(facts("gc")["removed"], store)) == 1
        assert left.files() == set()


def test_a_damaged_block_without_a_control_file_stays() -> None:
    """What is not proven to be ours is not removed: the damaged block stays, its sound neighbours go."""
    with _orphaned("gc-damaged") as left:
        bad = min(left.files())
        os.truncate(bad, 100)
        answer = facts("gc", returncode=1)
        assert about(answer["removed"], left.id)[0]["blocks"] == BLOCKS - 1
        assert left.files() == {bad}
        assert bad in shmarray("gc").stdout
        os.unlink(bad)


def test_a_draft_of_a_dead_process_is_removed() -> None:
    """A block that was never finished, and whose store never came about, goes."""
    with file(f"shmarray.{UID}.00000000deadbeef.t.0123456789abcdef", b"x" * 4096) as path:
        (gone,) = about(facts("gc")["removed"], "00000000deadbeef")
        assert (gone["blocks"], gone["bytes"]) == (1, 4096)
        assert not os.path.exists(path)


def _text(path: str) -> None:
    with open(path, "w", encoding="ascii") as opened:
        opened.write("mine")


FOREIGN: dict[str, tuple[str, Callable[[str], None]]] = {
    "file": (f"shmarray.{UID}.mine", _text),
    "name": (f"shmarray.{UID}.name.mine", _text),
    "control": (f"shmarray.{UID}.00000000deadbeef.ctl", _text),
    "block": (f"shmarray.{UID}.00000000deadbeef.n.mine", _text),
    "directory": (f"shmarray.{UID}.00000000deadbeef.a.0123456789abcdef", os.mkdir),
    "control directory": (f"shmarray.{UID}.00000000deadbeef.ctl", os.mkdir),
    "link": (f"shmarray.{UID}.00000000deadbeef.ctl", lambda path: os.symlink("/etc/hostname", path)),
    "fifo": (f"shmarray.{UID}.00000000deadbeef.a.0123456789abcdef", os.mkfifo),
    "prefix": ("shmarray.", _text),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files_stay_and_are_named(kind: str) -> None:
    """What only has a name like ours is not removed, whatever it is; the answer names it, why, and what to do; code 1."""
    name, make = FOREIGN[kind]
    path = os.path.join(SHM, name)
    make(path)
    try:
        answer = facts("gc", returncode=1)
        assert os.path.lexists(path)
        assert answer["removed"] == []
        entry = next(entry for entry in answer["left"] if entry["file"] == path or entry["store"] == "00000000deadbeef")
        assert entry["reason"]
        assert entry["remedy"]
        text = shmarray("gc")
        assert (text.returncode, text.stderr) == (1, "")
        assert entry["reason"] in text.stdout
    finally:
        os.rmdir(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)


def test_a_copy_of_a_control_file_harms_no_living_store() -> None:
    """A copied control file is left alone, and so is the living store that it speaks of."""
    with owner("gc-copied") as (_, left, _guardian):
        with open(left.control, "rb") as opened:
            page = opened.read()
        with file(f"shmarray.{UID}.00000000deadbeef.ctl", page) as copy:
            answer = facts("gc", returncode=1)
            assert os.path.exists(copy)
            assert "copy" in about(answer["left"], "00000000deadbeef")[0]["reason"]
        assert os.path.exists(left.control)
        assert len(left.files()) == BLOCKS


def test_a_directory_that_is_none_is_an_error_of_use() -> None:
    """`--directory` of a file, or of nothing, ends with 2 and a sentence; so does that of a variable that was not set."""
    for place in ("/no/such/place", "/etc/hostname", ""):
        found = shmarray("gc", "--directory", place)
        assert (found.returncode, found.stdout) == (2, "")
        assert f"{place!r} is not a directory" in found.stderr


def test_two_at_once_remove_everything_once() -> None:
    """Two collectors side by side both end well, nothing stays, and together they count each block once."""
    with dead_store("gc-twice") as left:
        command = [sys.executable, "-m", "shmarray", "gc", "--json"]
        both = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(WHOLE))
            for _ in range(2)
        ]
        said = [process.communicate(timeout=60) for process in both]
        assert [error for _, error in said] == [b"", b""]
        assert [process.returncode for process in both] == [0, 0]
        counts = [entry["blocks"] for out, _ in said for entry in about(json.loads(out)["removed"], left.id)]
        assert sum(counts) == BLOCKS
        assert shm_entries(left.prefix) == set()


@pytest.mark.parametrize("arguments", [(), ("--dry-run",)], ids=" ".join)
def test_a_store_that_someone_looks_at_is_waited_for(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lock that a survey or another collector has for a moment is no participant: gc asks again, and the store goes."""
    with dead_store("gc-looked-at") as left, open(left.control, "rb") as looked_at:
        fcntl.flock(looked_at, fcntl.LOCK_EX)
        pauses = []

        def pause(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 3:
                looked_at.close()

        monkeypatch.setattr(gc, "time", SimpleNamespace(monotonic=time.monotonic, sleep=pause))
        assert cli.main(["gc", "--json", *arguments]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert len(pauses) == 3
        assert answer["left"] == []
        assert [entry["blocks"] for entry in about(answer["removed"], left.id)] == [BLOCKS]
        assert os.path.exists(left.control) == bool(arguments)


def test_a_store_that_someone_does_not_let_go_of_is_not_waited_for_without_end() -> None:
    """A lock that stays makes gc end with code 1 and say that somebody it cannot see is there."""
    with dead_store("gc-held") as left, open(left.control, "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "cannot be seen from here" in about(facts("gc", returncode=1)["left"], left.id)[0]["reason"]
        assert len(left.files()) == BLOCKS


def test_the_next_store_finds_nothing_left_to_do() -> None:
    """After `gc` the name of the dead store is free, and the guardian of the next store of that name has its own."""
    with dead_store("gc-next"):
        facts("gc")
        with sa.Store("gc-next") as store:
            store["x"] = np.arange(3)
            wait_until(lambda: store_facts("gc-next")["guardian"]["alive"])
            assert store_facts("gc-next")["owner"]["pid"] == os.getpid()
