"""Who may remove which name: nothing goes without the kernel's proof, and what is proven dead goes whole."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

import shmarray as sa
from shmarray import reaper
from shmarray._format import control as layout
from shmarray._format import names
from shmarray._os import flocks, processes, segments
from tests.helpers import leaks
from tests.helpers.tracing import fail_at

if TYPE_CHECKING:
    from collections.abc import Iterator

UID = os.geteuid()
SHM = segments.SHM_DIRECTORY


class Made:
    """Files of a store that no process of the library made: each as one could be found."""

    def __init__(self, directory: str = SHM) -> None:
        """Choose a store that nobody has."""
        self.key = names.StoreKey(UID, int.from_bytes(os.urandom(8), "little"))
        self.directory = directory
        self.held: list[segments.Segment] = []

    def path(self, kind: str) -> str:
        """Where a file of the store lies."""
        return os.path.join(self.directory, self.key.prefix + kind)

    def file(self, kind: str, *, held: bool = False, size: int = 4096) -> str:
        """Make one file of the store; `held`: as if a process mapped it."""
        fd, _ = segments.create_leased(self.directory, lambda: "unused")
        segments.resize(fd, size)
        segments.publish(fd, self.path(kind))
        if held:
            self.held.append(segments.map_shared(fd, size))
        fd.close()
        return self.path(kind)

    def control(self, *, name: str | None = None, held: bool = False) -> str:
        """Make the control file."""
        record = layout.Control(
            self.key.store, name, self.directory, None, processes.me(), processes.boot_id(), 0, "00" * 16
        )
        path = reaper.control_path(self.key)
        fd, _ = segments.create_leased(SHM, lambda: "unused")
        segments.write(fd, layout.pack(record), 0)
        segments.publish(fd, path)
        if held:
            self.held.append(segments.map_shared(fd, layout.SIZE))
        fd.close()
        if name is not None:
            segments.link(path, reaper.name_path(UID, name))
        return path

    def left(self) -> set[str]:
        """What is still there, without the prefix."""
        entries = leaks.shm_entries(self.key.prefix, self.directory) | leaks.shm_entries(self.key.prefix)
        return {entry.removeprefix(self.key.prefix) for entry in entries}


@pytest.fixture
def made() -> Iterator[Made]:
    """A store's files, removed at the end whatever is left."""
    files = Made()
    yield files
    files.held.clear()
    for link in leaks.shm_entries(names.store_link(UID, "test-reaper")):
        os.unlink(os.path.join(SHM, link))
    for kind in files.left():
        os.unlink(files.path(kind))


# one block


def test_an_anonymous_block_that_somebody_maps_is_never_removed(made: Made) -> None:
    """As long as a mapping exists anywhere the file stays; after the last it goes."""
    path = made.file("a.1", held=True)
    assert not reaper.remove_if_unheld(path, UID)
    reaper.last_one_out(path, UID)
    assert made.left() == {"a.1"}
    made.held.clear()
    assert reaper.remove_if_unheld(path, UID)
    assert made.left() == set()
    assert not reaper.remove_if_unheld(path, UID)


def test_an_anonymous_block_with_a_handle_in_flight_is_never_removed(made: Made) -> None:
    """A second link is a handle on its way; when it is gone the block may go."""
    path = made.file("a.1")
    segments.link(path, made.path("h.1.x"))
    assert not reaper.remove_if_unheld(path, UID)
    segments.unlink(made.path("h.1.x"))
    reaper.last_one_out(path, UID)
    assert made.left() == set()


def test_the_name_of_a_draft_goes_when_its_maker_is_gone_and_is_no_handle(made: Made) -> None:
    """A draft's name may be the second name of a block that was just published: it goes, the block stays."""
    path = made.file("t.1", held=True)
    assert not reaper.remove_if_unheld(path, UID, draft=True)
    made.held.clear()
    segments.link(path, made.path("n.x"))
    assert reaper.remove_if_unheld(path, UID, draft=True)
    assert made.left() == {"n.x"}


def test_looking_at_a_block_takes_nothing_from_its_holder(made: Made) -> None:
    """After a look that removed nothing the lease is still there, and a new one can be taken."""
    path = made.file("a.1", held=True)
    assert not reaper.remove_if_unheld(path, UID)
    fd = segments.open_existing(path)
    assert not flocks.try_exclusive(fd)
    flocks.share(fd)
    fd.close()


def test_another_users_file_is_left_alone(made: Made) -> None:
    """A file that belongs to somebody else, whatever its name, is not looked into and not removed."""
    path = made.file("a.1")
    assert not reaper.remove_if_unheld(path, UID + 1)
    assert reaper.finish(made.control(), UID + 1).blocks == 0
    assert made.left() == {"a.1", "ctl"}


@pytest.mark.parametrize("kind", ["directory", "symbolic link", "fifo"])
def test_what_is_no_file_is_left_alone(made: Made, kind: str) -> None:
    """Things planted under our names are neither removed as blocks nor do they stop a sweep."""
    strange = made.path("a.1")
    good = made.file("a.2")
    if kind == "directory":
        os.mkdir(strange)
    elif kind == "fifo":
        os.mkfifo(strange)
    else:
        os.symlink(good, strange)
    try:
        assert not reaper.remove_if_unheld(strange, UID)
        reaper.last_one_out(strange, UID)
        assert reaper.remove_unheld(SHM, made.key) == 1
        assert os.path.lexists(strange)
    finally:
        (os.rmdir if kind == "directory" else os.unlink)(strange)


def test_a_sweep_of_a_living_store_takes_what_nobody_can_reach_and_nothing_else(made: Made) -> None:
    """Unheld anonymous blocks and deserted drafts go; named blocks, held blocks, handles and the control file stay."""
    made.control()
    made.file("n.x")
    made.file("a.1")
    made.file("a.2", held=True)
    made.file("a.3")
    segments.link(made.path("a.3"), made.path("h.3.r"))
    made.file("t.4")
    made.file("t.5", held=True)
    assert reaper.remove_unheld(SHM, made.key) == 2
    assert made.left() == {"ctl", "n.x", "a.2", "a.3", "h.3.r", "t.5"}


def test_without_a_descriptor_the_look_is_owed_and_made_later(made: Made) -> None:
    """EMFILE while letting go loses nothing: `settle` asks again; other errors are left to the sweeps."""
    for number in (errno.EMFILE, errno.ENFILE):
        path = made.file("a.1")
        with fail_at(1, number):
            reaper.last_one_out(path, UID)
        assert made.left() == {"a.1"}
        with fail_at(1, number):
            reaper.settle()
        assert made.left() == {"a.1"}
        reaper.settle()
        assert made.left() == set()
        reaper.settle()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOMEM, errno.EMFILE, errno.EACCES, errno.EINTR])
def test_letting_go_never_raises_and_leaks_no_descriptor(made: Made, number: int) -> None:
    """Each system call of the last look failed once: silence, nothing open, and the block is there or gone."""
    before = leaks.descriptors()
    n = 1
    while True:
        path = made.path("a.1") if made.left() else made.file("a.1")
        with fail_at(n, number) as calls:
            reaper.last_one_out(path, UID)
        assert leaks.descriptors() == before
        if len(calls) < n:
            break
        n += 1
    assert n > 4
    reaper.settle()
    assert reaper.remove_if_unheld(path, UID) or not made.left()


# a whole store


def test_a_store_in_which_somebody_takes_part_is_left_alone(made: Made) -> None:
    """One lease on the control file, and nothing of the store is touched, whoever asks; the reason is said."""
    path = made.control(name="test-reaper", held=True)
    made.file("n.x")
    outcome = reaper.finish(path, UID)
    assert (outcome.removed, outcome.blocks, outcome.reason) == (False, 0, "a process takes part in it")
    assert made.left() == {"ctl", "n.x"}
    made.held.clear()
    outcome = reaper.finish(reaper.name_path(UID, "test-reaper"), UID)
    assert (outcome.removed, outcome.blocks, outcome.bytes, outcome.key) == (True, 1, 4096, made.key)
    assert made.left() == set()
    assert not segments.exists(reaper.name_path(UID, "test-reaper"))


def test_finishing_removes_every_block_and_the_control_file_last(made: Made) -> None:
    """Blocks of every kind go, also those with live mappings, whose memory stays; twice is harmless."""
    path = made.control()
    for kind in ("n.x", "a.1", "t.2"):
        made.file(kind)
    made.file("a.3", held=True)
    segments.link(made.path("a.1"), made.path("h.1.r"))
    made.held[0][0] = 42
    outcome = reaper.finish(path, UID)
    assert (outcome.removed, outcome.blocks, outcome.bytes) == (True, 4, 4 * 4096)
    assert made.left() == set()
    assert made.held[0][0] == 42
    assert reaper.finish(path, UID).removed


@pytest.mark.parametrize("content", [b"", b"x" * layout.SIZE, bytes(layout.SIZE)])
def test_a_damaged_control_file_is_never_taken_as_proof(made: Made, content: bytes) -> None:
    """What does not say that it is the control file of a store stays, with everything of that store."""
    path = made.path("ctl")
    with open(path, "wb") as file:
        file.write(content)
    made.file("n.x")
    outcome = reaper.finish(path, UID)
    assert not outcome.removed
    assert "control file" in outcome.reason
    assert made.left() == {"ctl", "n.x"}


def test_the_lock_of_a_copy_proves_nothing_about_the_store() -> None:
    """A living store's control file, copied under another name of ours: neither opening a store nor `finish` removes anything."""
    copy = names.StoreKey(UID, int.from_bytes(os.urandom(8), "little"))
    with sa.Store() as store:
        store["x"] = np.ones(3)
        key = names.StoreKey(UID, int(store.id, 16))
        with open(reaper.control_path(key), "rb") as source, open(reaper.control_path(copy), "wb") as target:
            target.write(source.read())
        try:
            assert not reaper.finish(reaper.control_path(copy), UID).removed
            sa.Store().close()
            assert store["x"].sum() == 3
            assert segments.exists(reaper.control_path(key))
        finally:
            os.unlink(reaper.control_path(copy))


@pytest.mark.core
def test_collecting_takes_the_dead_and_leaves_the_living(made: Made) -> None:
    """Of all stores of the user only those go in which nobody takes part; each is reported."""
    with sa.Store() as store:
        store["y"] = np.ones(1)
        made.control()
        made.file("n.x")
        outcomes = {outcome.key: outcome for outcome in reaper.collect(UID)}
        assert outcomes[made.key].removed
        assert outcomes[made.key].blocks == 1
        living = outcomes[names.StoreKey(UID, int(store.id, 16))]
        assert (living.removed, living.reason) == (False, "a process takes part in it")
        assert store["y"][0] == 1
    assert made.left() == set()


def test_opening_a_store_collects_the_dead(made: Made) -> None:
    """The next store of that user removes what was left, before anything else."""
    made.control()
    made.file("a.1")
    made.file("n.x", size=1 << 20)
    sa.Store().close()
    assert made.left() == set()


def test_blocks_without_a_control_file_are_nobodys_to_remove(made: Made) -> None:
    """Without a control file there is no proof: collecting leaves such files alone."""
    made.file("n.x")
    reaper.collect(UID)
    assert made.left() == {"n.x"}


def test_the_name_of_a_store_is_released_only_where_it_leads_to_that_store(made: Made) -> None:
    """Another store that took the name over keeps it."""
    path = made.control(name="test-reaper-name")
    link = reaper.name_path(UID, "test-reaper-name")
    os.unlink(link)
    other = Made()
    segments.link(other.control(), link)
    assert reaper.finish(path, UID).removed
    assert segments.exists(link)
    os.unlink(link)
    assert reaper.finish(reaper.control_path(other.key), UID).removed


def test_two_who_finish_do_not_cross(made: Made) -> None:
    """While one holds the exclusive lock the other finds it taken and leaves everything to the first."""
    path = made.control()
    made.file("n.x")
    first = segments.open_existing(path)
    assert flocks.try_exclusive(first)
    assert not reaper.finish(path, UID).removed
    assert made.left() == {"ctl", "n.x"}
    first.close()
    assert reaper.finish(path, UID).removed


def test_a_store_on_disk_needs_both_locks(store_dir: str) -> None:
    """A lease on the claim alone keeps everything too; after it, blocks, claim and control file go."""
    made = Made(store_dir)
    path = made.control()
    made.file("dir", held=True)
    made.file("n.x")
    outcome = reaper.finish(path, UID)
    assert (outcome.removed, outcome.reason) == (False, "a process holds its claim on the directory")
    assert made.left() == {"ctl", "dir", "n.x"}
    made.held.clear()
    assert reaper.finish(path, UID).removed
    assert made.left() == set()


def test_claims_of_an_earlier_boot_are_collected_on_the_directorys_next_use(store_dir: str) -> None:
    """Control files go with the memory at a reboot: a claim without one that nobody holds is removed with its blocks."""
    dead, living, foreign = Made(store_dir), Made(store_dir), Made(store_dir)
    dead.file("dir")
    dead.file("n.x")
    living.file("dir", held=True)
    living.file("n.y")
    foreign.file("n.z")
    sa.Store(directory=store_dir).close()
    assert dead.left() == set()
    assert living.left() == {"dir", "n.y"}
    assert foreign.left() == {"n.z"}
    os.unlink(foreign.path("n.z"))
    living.held.clear()
    assert [outcome.removed for outcome in reaper.collect(UID, store_dir) if outcome.key == living.key] == [True]
    assert living.left() == set()


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE])
def test_finishing_survives_each_failing_call_and_can_be_repeated(made: Made, number: int) -> None:
    """Whatever fails in between, nothing stays open, and the next try removes all that is left."""
    before = leaks.descriptors()
    n = 1
    while True:
        path = made.path("ctl") if "ctl" in made.left() else made.control(name="test-reaper-fail")
        made.file("n.x") if "n.x" not in made.left() else None
        with fail_at(n, number) as calls:
            try:
                reaper.finish(path, UID)
            except OSError as error:
                assert error.errno == number  # noqa: PT017  what is caught is looked at only if it is raised
        assert leaks.descriptors() == before
        if len(calls) < n:
            break
        n += 1
    assert n > 10
    assert reaper.finish(path, UID).removed
    assert made.left() == set()
    assert not segments.exists(reaper.name_path(UID, "test-reaper-fail"))
