"""`python -m shmarray ls`, seen from outside."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import re
import unicodedata
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shmarray as sa
from shmarray._os import processes
from shmarray.cli import table
from shmarray.inspection.holders import Holders
from tests.cli.places import (
    BLOCKS,
    IS_ROOT,
    NOBODY,
    UID,
    dead_store,
    facts,
    file,
    inodes,
    kill,
    member,
    owner,
    shmarray,
    store_facts,
)
from tests.helpers.leaks import SHM, shm_entries

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = ["plain", "数値データ", "שלום", "أرقام 12", "é́́combining", "🛰️ satellite", "tab/like this", " spaced ", "x" * 200]


def blocks_of(store: str) -> dict[str | None, Any]:
    """Blocks of a store by their names."""
    return {block["name"]: block for block in store_facts(store)["blocks"]}


@pytest.fixture
def store() -> Iterator[sa.Store]:
    """An open store of this process."""
    with sa.Store("ls-open") as opened:
        yield opened


@pytest.mark.core
def test_an_open_store_is_shown_with_its_processes(store: sa.Store) -> None:
    """`ls` tells name, id, state, owner, guardian and who takes part, as the kernel has it."""
    with member("ls-open") as child:
        found = store_facts("ls-open")
        assert (found["id"], found["state"], found["directory"]) == (store.id, "open", SHM)
        assert found["owner"] == {"pid": os.getpid(), "alive": True}
        assert found["guardian"] == {"pid": store.guardian_pid, "alive": True}
        assert found["participants"] == sorted([os.getpid(), child.pid])
        assert 0 <= found["age"] < 60
        text = shmarray("ls").expect()
    assert f"store 'ls-open' ({store.id}): open" in text
    assert f"{os.getpid()} alive" in text


@pytest.mark.core
def test_arrays_and_trees_are_described(store: sa.Store) -> None:
    """Kind, shape, dtype, bytes and creator of each block are those of the array that was made."""
    store.zeros((3, 4), "f4", name="plain")
    store.put({"a": np.ones(2), "b": [np.zeros(3), "text"]}, name="tree")
    store.zeros((), [("x", "i4"), ("y", "u1", (2,))], name="struct")
    found = blocks_of("ls-open")
    assert set(found) == {"plain", "tree", "struct"}
    plain, tree, struct = found["plain"], found["tree"], found["struct"]
    assert (plain["kind"], plain["shape"], plain["dtype"], plain["bytes"]) == ("array", [3, 4], "float32", 48)
    assert (tree["kind"], tree["shape"], tree["dtype"], tree["arrays"]) == ("tree", None, None, 2)
    assert (struct["shape"], struct["bytes"]) == ([], 6)
    assert np.dtype(eval(struct["dtype"])) == np.dtype([("x", "i4"), ("y", "u1", (2,))])  # noqa: S307  our own output
    for block in found.values():
        assert block["state"] == "live"
        assert block["creator"] == {"pid": os.getpid(), "alive": True}
        assert block["file_bytes"] == os.stat(block["file"]).st_size


def test_other_shared_objects_are_called_what_they_are(store: sa.Store) -> None:
    """Locks and the like are blocks too; their kind is the name of the method that made them."""
    kept = [store.Lock(name="l"), store.Event(name="e"), store.Semaphore(2, name="s")]
    found = blocks_of("ls-open")
    assert {name: found[name]["kind"] for name in "les"} == {"l": "Lock", "e": "Event", "s": "Semaphore"}
    assert {block["state"] for block in found.values()} == {"live"}
    del kept


def test_a_channel_shows_what_goes_through_it(store: sa.Store) -> None:
    """Shape, dtype, depth and slots of a channel stand where those of arrays do; `--json` has them, and what `stats()` says."""
    camera = store.channel((480, 640, 3), np.uint8, slots=4, name="camera")
    sizes = {"rgb": ((None, 3), "u1"), "depth": ((5,), "f4")}
    fields = store.channel(
        sizes, max_shape={"rgb": (9, 3)}, slots=2, mode="broadcast", full="drop-oldest", name="fields"
    )
    camera.put(np.zeros((480, 640, 3), np.uint8))
    text = shmarray("ls", "ls-open").expect()
    assert re.search(r"^  camera +Channel +1/4 x \(480, 640, 3\) +uint8 ", text, re.MULTILINE)
    assert re.search(r"^  fields +Channel +0/2 x rgb \(None, 3\), depth \(5,\) +uint8, float32 ", text, re.MULTILINE)
    found = {name: blocks_of("ls-open")[name]["channel"] for name in ("camera", "fields")}
    assert found["camera"]["items"] == [
        {"name": None, "shape": [480, 640, 3], "max_shape": [480, 640, 3], "dtype": "uint8"}
    ]
    assert found["camera"]["item_bytes"] == 480 * 640 * 3
    assert [(item["name"], item["shape"], item["max_shape"]) for item in found["fields"]["items"]] == [
        ("rgb", [None, 3], [9, 3]),
        ("depth", [5], [5]),
    ]
    for name, channel in (("camera", camera), ("fields", fields)):
        assert found[name]["stats"] == json.loads(json.dumps(dataclasses.asdict(channel.stats())))
    assert blocks_of("ls-open")["camera"]["shape"] is None


@pytest.mark.core
def test_holders_are_the_processes_that_map_a_block_now(store: sa.Store) -> None:
    """A block is held by those in whose maps the kernel has it, and by nobody when the last view is gone."""
    kept = store.zeros(10, name="kept")
    del kept
    assert blocks_of("ls-open")["kept"]["holders"] == []
    kept = store["kept"]
    with member("ls-open", "kept") as child:
        inode = os.stat(blocks_of("ls-open")["kept"]["file"]).st_ino
        assert inode in inodes(child.pid)
        assert inode in inodes(os.getpid())
        assert blocks_of("ls-open")["kept"]["holders"] == sorted([os.getpid(), child.pid])
    del kept
    found = blocks_of("ls-open")["kept"]
    assert (found["holders"], found["state"]) == ([], "live")


@pytest.mark.parametrize(("directory", "expected"), [(SHM, ()), ("/some/directory", (os.getpid(),))])
def test_a_container_with_shared_memory_of_its_own_holds_nothing_of_ours(
    monkeypatch: pytest.MonkeyPatch, directory: str, expected: tuple[int, ...]
) -> None:
    """The same path and inode on another device is another file in shared memory; on disk the device may be told wrongly."""
    info = os.stat(SHM)
    elsewhere = processes.MappedFile(info.st_dev + 1, info.st_ino, f"{directory}/#{info.st_ino}")
    monkeypatch.setattr(processes, "pids", lambda: [os.getpid()])
    monkeypatch.setattr(processes, "mapped_files", lambda _pid, _prefix: [elsewhere])
    assert Holders(UID).of(info, directory) == expected


def test_a_handle_in_flight_is_shown_as_unclaimed(store: sa.Store) -> None:
    """An anonymous array that only pickled handles keep is unclaimed, with their number, until one is loaded."""
    array = store.ones(5)
    handles = [pickle.dumps(array) for _ in range(3)]
    assert (blocks_of("ls-open")[None]["state"], blocks_of("ls-open")[None]["unclaimed"]) == ("live", 3)
    del array
    found = blocks_of("ls-open")[None]
    assert (found["state"], found["unclaimed"], found["holders"]) == ("unclaimed", 3, [])
    assert "unclaimed (3)" in shmarray("ls").expect()
    loaded = pickle.loads(handles[0])
    assert blocks_of("ls-open")[None]["state"] == "live"
    assert store.release_unclaimed() == 2
    del loaded
    assert blocks_of("ls-open") == {}


def test_a_store_on_disk_is_shown_too(store_dir: str) -> None:
    """The control file tells the directory of a store that is not in shared memory; its blocks are found there."""
    with sa.Store("ls-disk", directory=store_dir) as store:
        kept = store.put(np.arange(10), name="on/disk")
        found = store_facts("ls-disk")
        assert (found["directory"], found["state"]) == (os.path.realpath(store_dir), "open")
        assert [block["name"] for block in found["blocks"]] == ["on/disk"]
        assert found["blocks"][0]["holders"] == [os.getpid()]
        del kept


def test_a_store_of_the_dead_is_a_leftover() -> None:
    """After SIGKILL of owner and guardian the store is a leftover, its blocks are dead, and nobody holds them."""
    with dead_store("ls-dead") as left:
        found = store_facts("ls-dead")
        assert (found["id"], found["state"], found["removable"]) == (left.id, "leftover", True)
        assert found["owner"] == {"pid": left.owner, "alive": False}
        assert found["guardian"]["alive"] is False
        assert found["participants"] == []
        assert [block["state"] for block in found["blocks"]] == ["dead"] * BLOCKS
        assert found["bytes"] == left.bytes()
        text = shmarray("ls").expect()
        assert "store 'ls-dead'" in text
        assert f"{left.owner} dead" in text


def test_a_store_that_workers_still_use_is_dead_and_no_leftover() -> None:
    """When owner and guardian are killed and a worker lives, the store is dead, and the worker is named."""
    with owner("ls-orphaned") as (child, left, guardian), member("ls-orphaned", "array/0") as worker:
        kill(guardian)
        child.kill()
        found = store_facts("ls-orphaned")
        assert (found["state"], found["removable"], found["participants"]) == ("dead", False, [worker.pid])
        held = {block["name"]: block["holders"] for block in found["blocks"]}
        assert held["array/0"] == [worker.pid]
        assert held["array/1"] == []
        assert left.files()


def _truncated(path: str) -> None:
    os.truncate(path, 1000)


def _flipped(path: str) -> None:
    with open(path, "r+b") as opened:
        opened.seek(-500, os.SEEK_END)
        byte = opened.read(1)
        opened.seek(-500, os.SEEK_END)
        opened.write(bytes([byte[0] ^ 0x10]))


def _garbage(path: str) -> None:
    os.unlink(path)
    with open(path, "wb") as opened:
        opened.write(b"no block " * 1000)


def _empty(path: str) -> None:
    os.truncate(path, 0)


def _fifo(path: str) -> None:
    os.unlink(path)
    os.mkfifo(path)


def _link(path: str) -> None:
    os.unlink(path)
    os.symlink("/etc/hostname", path)


def _swapped(path: str) -> None:
    os.rename(path, path + "x")  # a name that is not the one in the header


DAMAGE = [_truncated, _flipped, _garbage, _empty, _fifo, _link, _swapped]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__[1:])
def test_a_damaged_block_is_shown_with_the_reason(store: sa.Store, damage: Any) -> None:
    """Whatever was done to a block, `ls` says that it is damaged and why, shows the others, and ends with 0."""
    store.put(np.arange(5), name="fine")
    path = f"{SHM}/{store.put(np.arange(9), name='bad').block_name}"
    damage(path)
    try:
        found = {block["file"]: block for block in store_facts("ls-open")["blocks"]}
        assert len(found) == 2
        bad = next(block for block in found.values() if block["name"] != "fine")
        assert bad["state"] == "damaged"
        assert bad["reason"]
        text = shmarray("ls", "ls-open").expect()
        assert f"{bad['file']}: {bad['reason']}" in text
        assert "fine" in text
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


@pytest.mark.parametrize("content", [b"", b"x" * 8192, b"SHMSTORE" + b"\0" * 8184, b"SHMSTORE" * 5000])
def test_a_damaged_control_file_is_shown_with_the_reason(content: bytes) -> None:
    """A control file that cannot be read is a damaged store, not a traceback."""
    with file(f"shmarray.{UID}.00000000deadbeef.ctl", content) as path:
        found = store_facts("00000000deadbeef")
        assert (found["state"], found["control"], found["owner"]) == ("damaged", path, None)
        assert found["reason"] in shmarray("ls").expect()


def test_a_copy_of_a_control_file_is_no_second_store() -> None:
    """A copied control file is damaged: what it says is of another store, which is shown once and as it is."""
    with owner("ls-copied") as (_, left, _guardian):
        with open(left.control, "rb") as opened:
            page = opened.read()
        with file(f"shmarray.{UID}.00000000deadbeef.ctl", page):
            stores = {entry["id"]: entry for entry in facts("ls")["stores"]}
        assert stores["00000000deadbeef"]["state"] == "damaged"
        assert left.id in stores["00000000deadbeef"]["reason"]
        assert (stores[left.id]["state"], stores[left.id]["name"]) == ("open", "ls-copied")


def test_a_store_is_found_by_the_link_of_its_name_alone() -> None:
    """When the control file has only the second link, that of the store's name, the store is still told as what it is."""
    with dead_store("ls-link") as left:
        os.unlink(left.control)
        found = store_facts("ls-link")
        assert (found["id"], found["state"], len(found["blocks"])) == (left.id, "leftover", BLOCKS)


def test_foreign_files_are_told_apart() -> None:
    """A file that only begins as ours do is no store: it is listed as foreign, with the reason."""
    with file(f"shmarray.{UID}.whatever", b"1234") as path:
        stray = next(entry for entry in facts("ls")["strays"] if entry["file"] == path)
        assert stray["bytes"] == 4
        assert f"foreign  {path}: {stray['reason']}" in shmarray("ls").expect()


@pytest.mark.skipif(not IS_ROOT, reason="only root can make files of another user")
def test_files_of_other_users_are_not_shown() -> None:
    """A file of another user is counted and not looked at, whatever its name."""
    before = facts("ls")["others"]
    with file(f"shmarray.{UID}.00000000deadbeef.ctl") as one, file(f"shmarray.{NOBODY}.00000000deadbeef.ctl") as two:
        for path in (one, two):
            os.chown(path, NOBODY, NOBODY)
        found = facts("ls")
        assert found["others"] == before + 2
        assert "00000000deadbeef" not in [entry["id"] for entry in found["stores"]]


def test_a_store_is_chosen_by_name_or_id(store: sa.Store) -> None:
    """`ls STORE` takes the name, the id or the start of the id, and shows that store alone."""
    with sa.Store("ls-other"):
        for word in ("ls-open", store.id, store.id[:6]):
            assert [entry["id"] for entry in facts("ls", word)["stores"]] == [store.id]
            assert "ls-other" not in shmarray("ls", word).expect()


def test_a_typo_of_a_store_name_gets_a_hint(store: sa.Store) -> None:
    """A store that is not there is an error of use, with the nearest name."""
    found = shmarray("ls", "ls-opne")
    assert (found.returncode, found.stdout) == (2, "")
    assert "there is no store 'ls-opne'; did you mean ls-open?" in found.stderr


def test_only_the_biggest_blocks_are_shown_without_all(store: sa.Store) -> None:
    """Of many blocks the biggest are shown and the others counted; `--all` and `--json` have every one."""
    for index in range(45):
        store.put(np.zeros(index), name=f"n{index:02}")
    shown = re.findall(r"^  (n\d\d) ", shmarray("ls", "ls-open").expect(), re.MULTILINE)
    assert shown == [f"n{index:02}" for index in range(44, 24, -1)]
    assert "and 25 more" in shmarray("ls", "ls-open").expect()
    assert len(re.findall(r"^  n\d\d ", shmarray("ls", "ls-open", "--all").expect(), re.MULTILINE)) == 45
    assert len(blocks_of("ls-open")) == 45


@pytest.mark.parametrize("columns", [40, 60, 80, 132])
def test_tables_fit_the_terminal(store: sa.Store, columns: int) -> None:
    """No line is wider than the terminal, whatever the names, shapes and dtypes."""
    for name in NAMES:
        store.zeros((1, 2, 3, 4, 5, 6), [("field" * 5, "f8"), ("other", "i4")], name=name)
    for index in range(6):
        store.zeros(index, name=f"a{index}")
    text = shmarray("ls", "ls-open", env={"COLUMNS": str(columns)}).expect()
    assert [line for line in text.splitlines() if table.width(line) > columns] == []
    assert "NAME" in text
    assert "SIZE" in text


def test_columns_stay_aligned_whatever_script_a_name_is_in(store: sa.Store) -> None:
    """Wide, combining and right-to-left letters shift no column; what runs from right to left is isolated."""
    for name in NAMES:
        store.zeros(1000, "u1", name=name)
    lines = shmarray("ls", "ls-open").expect().splitlines()
    rows = [line for line in lines if "1000 bytes" in line]
    assert len(rows) == len(NAMES)
    header = next(line for line in lines if "NAME" in line)
    end = header.index("SIZE") + len("SIZE")
    assert {table.width(row[: row.index("1000 bytes")]) + len("1000 bytes") for row in rows} == {end}
    for row in rows:
        turned = any(unicodedata.bidirectional(letter) in ("R", "AL", "AN") for letter in row)
        assert turned == ("\u2068" in row and "\u2069" in row)


def test_no_name_sends_control_characters_to_the_terminal() -> None:
    """Escape sequences, line feeds, bidirectional overrides and bytes that are no UTF-8 in foreign names become escapes."""
    name = os.fsdecode(f"shmarray.{UID}.\x1b[2J\n\r\u202e\u2066\x7f\x9b".encode() + b"\xff")
    with file(name):
        for command in ("ls", "gc", "doctor"):
            text = shmarray(command).stdout
            line = next(line for line in text.splitlines() if f"shmarray.{UID}." in line and "x1b" in line)
            assert line.isprintable()
            assert r"\x1b[2J\n\r\u202e\u2066\x7f\x9b\xff" in line
        assert facts("ls")["strays"][0]["file"].endswith("\udcff")


def test_a_terminal_without_unicode_gets_escapes(store: sa.Store) -> None:
    """What the encoding of the output cannot say is written as an escape; the table holds."""
    store.zeros(1000, "u1", name="数")
    text = shmarray("ls", "ls-open", env={"PYTHONIOENCODING": "ascii", "COLUMNS": "60"}).expect()
    assert text.isascii()
    assert r"\u6570" in text


def test_looking_changes_nothing() -> None:
    """`ls` takes part in nothing: no file comes or goes, and the state of a store does not move."""
    with owner("ls-watched") as (_, left, _guardian), member("ls-watched"):
        before = shm_entries(left.prefix), store_facts("ls-watched")
        for _ in range(3):
            shmarray("ls").expect()
        after = shm_entries(left.prefix), store_facts("ls-watched")
        for _, store in (before, after):
            del store["age"]
            for block in store["blocks"]:
                del block["age"]
        assert before == after


def test_without_stores_it_says_so() -> None:
    """When there is nothing there is a sentence, not an empty screen."""
    if not facts("ls")["stores"]:
        assert shmarray("ls").expect().startswith(f"user {UID} has no stores\n")
