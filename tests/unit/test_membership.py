"""Taking part in a store: locked = alive, for each process by itself, through fork, failure and SIGKILL."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from shmarray import absences, controls, founding, joining, membership, reaper
from shmarray._format import control as layout
from shmarray._format import names
from shmarray._format.header import DamagedError
from shmarray._os import flocks, processes, segments
from shmarray.errors import CorruptBlockError, ShmArrayError, StoreClosedError, StoreExistsError, StoreNotFoundError
from tests.helpers import leaks
from tests.helpers.processes import Child, kill_and_reap, reap, run_script, wait_until
from tests.helpers.tracing import fail_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SHM = segments.SHM_DIRECTORY
NAME = f"test-membership-{os.getpid()}"

FOUNDER = """
import sys
from shmarray import founding, membership
from tests.helpers.processes import report
member = founding.found(sys.argv[1] or None, "/dev/shm", None)
report("open", [member.key.uid, member.key.store])
if input() == "close":
    member.close()
    report("closed")
    input()
"""


class Founder(Child):
    """A process that opened a store, without a guardian."""

    def __init__(self, name: str = "") -> None:
        """Start it and wait until the store is open."""
        super().__init__(FOUNDER, name)
        self.key = names.StoreKey(*self.wait_for("open"))

    def __exit__(self, *exc: object) -> None:
        """Kill it if it runs, and tidy up behind it as a guardian would."""
        super().__exit__(*exc)
        reaper.finish(reaper.control_path(self.key), self.key.uid)


@pytest.fixture
def member() -> Iterator[membership.Membership]:
    """A store that this process opened, without a guardian."""
    mine = founding.found(None, SHM, None)
    yield mine
    mine.close()


def _left(key: names.StoreKey) -> set[str]:
    return {entry.removeprefix(key.prefix) for entry in leaks.shm_entries(key.prefix)}


def _mine() -> set[str]:
    """What this process's stores have in shared memory: other runs of these tests may be at work there too."""
    found = set()
    for entry in leaks.shm_entries():
        key = names.control_file(entry)
        if key is not None:
            try:
                with open(reaper.control_path(key), "rb") as file:
                    owner = layout.unpack(file.read())[0].owner[0]
            except (OSError, DamagedError):  # gone meanwhile, or no control file: other tests make such
                continue
            if owner == os.getpid():
                found |= leaks.shm_entries(key.prefix)
    return found


def _in_child(function: Callable[[], object]) -> int:
    """Call in a forked child that ends without any clean-up; 0 if the result was true."""
    pid = os.fork()
    if pid == 0:
        good = False
        try:
            good = bool(function())
        finally:
            os._exit(0 if good else 1)
    return reap(pid)


# opening and joining


@pytest.mark.core
def test_opening_makes_one_file_whole_and_closing_removes_it() -> None:
    """One control file, private, with one link; after the close nothing, and the mapping is gone."""
    before = leaks.descriptors()
    member = founding.found(None, SHM, 1 << 20)
    path = reaper.control_path(member.key)
    info = os.stat(path)
    assert (info.st_mode & 0o777, info.st_nlink, info.st_size) == (0o600, 1, layout.SIZE)
    assert member.is_owner
    assert member.is_open()
    assert (member.control.owner, member.control.capacity) == (processes.me(), 1 << 20)
    assert leaks.descriptors() == before
    member.close()
    assert _left(member.key) == set()
    assert not any(mapping.inode == info.st_ino for mapping in leaks.mappings())
    member.close()


def test_a_name_is_a_second_link_and_goes_with_the_store() -> None:
    """Found by its name while it is open, not after."""
    member = founding.found(NAME, SHM, None)
    assert os.stat(reaper.control_path(member.key)).st_nlink == 2
    assert controls.find(NAME) == member.key
    member.close()
    assert not segments.exists(reaper.name_path(os.geteuid(), NAME))
    with pytest.raises(StoreNotFoundError):
        controls.find(NAME)


def test_a_process_takes_part_once_however_often_it_joins(member: membership.Membership) -> None:
    """Joining again gives the same membership: one mapping, one lease."""
    assert joining.join(member.key) is member
    inode = os.stat(reaper.control_path(member.key)).st_ino
    assert sum(mapping.inode == inode for mapping in leaks.mappings()) == 1


def test_joining_from_another_process_is_a_lease_of_its_own() -> None:
    """Joined, the store outlives its owner's control until the last has left, who removes the file."""
    with Founder() as founder:
        member = joining.join(founder.key)
        assert not member.is_owner
        assert member.control.owner[0] == founder.pid
        founder.tell("close")
        founder.wait_for("closed")
        assert member.state() == layout.CLOSED
        assert _left(founder.key) == {"ctl"}
        with pytest.raises(StoreClosedError):
            member.require_open()
        with pytest.raises(StoreClosedError):
            joining.join(founder.key)
        founder.tell()
        founder.finish().expect()
        assert _left(founder.key) == {"ctl"}
        del member
        assert _left(founder.key) == set()


def test_many_threads_join_at_once_and_share_one_membership() -> None:
    """Threads that race end up with one membership."""
    with Founder() as founder:
        start = threading.Barrier(8)
        found: list[membership.Membership] = []

        def join() -> None:
            start.wait()
            found.append(joining.join(founder.key))

        threads = [threading.Thread(target=join) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(map(id, found))) == 1
        inode = os.stat(reaper.control_path(founder.key)).st_ino
        absences.drop_all()  # by which those might come back who were slower
        assert sum(mapping.inode == inode for mapping in leaks.mappings()) == 1
        found.clear()
        absences.drop_all()
        assert not any(mapping.inode == inode for mapping in leaks.mappings())


def test_a_store_that_never_was_and_another_users_store_cannot_be_joined() -> None:
    """Typed errors that say which."""
    with pytest.raises(StoreClosedError):
        joining.join(names.StoreKey(os.geteuid(), 1))
    with pytest.raises(CorruptBlockError, match="belongs to user"):
        joining.join(names.StoreKey(os.geteuid() + 1, 1))


def test_a_store_whose_owner_was_killed_cannot_be_joined_even_without_a_guardian() -> None:
    """The mark that the owner's mapping kept is gone, whatever the file says."""
    with Founder(NAME) as founder:
        member = joining.join(founder.key)
        founder.kill()
        assert member.is_open()
        with pytest.raises(StoreNotFoundError):
            controls.find(NAME)
        del member
    with pytest.raises(StoreClosedError):
        joining.join(founder.key)
    assert reaper.finish(reaper.control_path(founder.key), founder.key.uid).removed
    assert _left(founder.key) == set()


# names


def test_a_living_stores_name_cannot_be_taken() -> None:
    """`StoreExistsError` names the owner; while the error is still held nothing of the failed store is left."""
    with Founder(NAME) as founder:
        with pytest.raises(StoreExistsError, match=f"open in process {founder.pid}") as caught:
            founding.found(NAME, SHM, None)
        assert (caught.value.name, caught.value.owner) == (NAME, founder.pid)
        assert _mine() == set()
        assert controls.find(NAME) == founder.key
        founder.tell()
        founder.finish().expect()


def test_the_name_of_a_dead_store_is_taken_over() -> None:
    """After a SIGKILL the next store gets the name, and the dead one is removed."""
    with Founder(NAME) as founder:
        founder.kill()
    member = founding.found(NAME, SHM, None)
    assert controls.find(NAME) == member.key
    assert _left(founder.key) == set()
    member.close()


def test_the_name_of_a_dead_store_with_survivors_is_taken_over_too() -> None:
    """Processes that still take part keep their views, not the name."""
    with Founder(NAME) as founder:
        survivor = joining.join(founder.key)
        founder.kill()
        member = founding.found(NAME, SHM, None)
        assert controls.find(NAME) == member.key
        assert _left(founder.key) == {"ctl"}
        del survivor
        assert _left(founder.key) == set()
        assert controls.find(NAME) == member.key
        member.close()


def test_of_many_who_open_one_name_at_once_exactly_one_gets_it() -> None:
    """Rounds of racing processes: one winner, the others `StoreExistsError`, nothing left."""
    source = """
import sys
from shmarray import founding, membership
from shmarray.errors import StoreExistsError
from tests.helpers.processes import report
report("up")
input()
try:
    member = founding.found(sys.argv[1], "/dev/shm", None)
except StoreExistsError:
    member = None
report("done", member is not None)
input()
if member is not None:
    member.close()
"""
    with Child(source, NAME) as one, Child(source, NAME) as two, Child(source, NAME) as three:
        children = (one, two, three)
        for child in children:
            child.wait_for("up")
        for child in children:
            child.tell()
        won = [child.wait_for("done") for child in children]
        assert sum(won) == 1
        for child in children:
            child.tell()
        for child in children:
            child.finish().expect()
    assert not segments.exists(reaper.name_path(os.geteuid(), NAME))


# fork


@pytest.mark.core
def test_a_forked_child_is_a_participant_of_its_own_and_no_owner() -> None:
    """After the owner has closed and ended, the child still takes part; its end removes the rest."""
    source = """
import os
from shmarray import founding, membership
member = founding.found(None, "/dev/shm", None)
reader, writer = os.pipe()
ready, go = os.pipe()
pid = os.fork()
if pid == 0:
    os.close(writer)
    member.close()
    assert not member.is_owner and member.is_open()
    os.write(go, b"x")
    os.read(reader, 1)
    assert not member.is_open()
    print(sorted(n.rpartition(".")[2] for n in os.listdir("/dev/shm") if n.startswith(member.key.prefix)), flush=True)
    prefix = member.key.prefix
    del member
    print([n for n in os.listdir("/dev/shm") if n.startswith(prefix)], flush=True)
    os._exit(0)
os.read(ready, 1)
member.close()
os.close(writer)
assert os.waitpid(pid, 0)[1] == 0
print([n for n in os.listdir("/dev/shm") if n.startswith(member.key.prefix)])
"""
    assert run_script(source, flags=("-W", "ignore")).expect() == "['ctl']\n[]\n[]\n"


def test_a_forked_child_does_not_keep_its_dead_parent_an_owner() -> None:
    """The mark of the owner ends with the owner, not with the children that inherited its mapping."""
    source = """
import os, signal
from shmarray import founding, membership
from tests.helpers.processes import report
member = founding.found(None, "/dev/shm", None)
pid = os.fork()
if pid == 0:
    member.require_open()
    report("child", os.getpid())
    signal.pause()
report("owner", [member.key.uid, member.key.store])
input()
"""
    with Child(source) as owner:
        said = dict([_next(owner), _next(owner)])
        key = names.StoreKey(*said["owner"])
        fd = segments.open_existing(reaper.control_path(key), write=False)
        assert flocks.is_marked(fd, layout.OWNER_MARK)
        owner.kill()
        wait_until(lambda: not flocks.is_marked(fd, layout.OWNER_MARK))
        fd.close()
        assert not reaper.finish(reaper.control_path(key), key.uid).removed
        os.kill(said["child"], signal.SIGKILL)
        wait_until(lambda: reaper.finish(reaper.control_path(key), key.uid).removed)


def _next(child: Child) -> tuple[str, Any]:
    line = child._line(time.monotonic() + 30)
    assert line is not None
    said: list[Any] = json.loads(line)
    return said[0], said[1]


def test_a_forked_child_without_descriptors_still_takes_part(member: membership.Membership) -> None:
    """Where it cannot open the control file it keeps the inherited lease: alive for longer, never for shorter."""
    with fail_at(1, errno.EMFILE):
        pid = os.fork()
        if pid == 0:
            signal.pause()
    inode = os.stat(reaper.control_path(member.key)).st_ino
    assert any(mapping.inode == inode for mapping in leaks.mappings(pid))
    kill_and_reap(pid)
    assert member.is_open()


def test_closing_in_a_forked_child_ends_nothing(member: membership.Membership) -> None:
    """Only the process that opened the store ends it."""

    def child() -> bool:
        member.close()
        member.leave()
        return not member.is_owner

    assert _in_child(child) == 0
    assert member.is_open()
    assert _left(member.key) == {"ctl"}


# critical sections


def test_a_critical_section_excludes_and_is_left_by_death(member: membership.Membership) -> None:
    """Another process waits, and gets in when the one inside is killed."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        inside = member.exclusively(layout.CHANGE_MARK)
        os.write(writer, b"x")
        signal.pause()
        inside.close()
    assert os.read(reader, 1) == b"x"
    entered = threading.Event()

    def enter() -> None:
        member.exclusively(layout.CHANGE_MARK).close()
        entered.set()

    waiter = threading.Thread(target=enter)
    waiter.start()
    assert not entered.wait(0.05)
    member.exclusively(layout.CAPACITY_MARK).close()
    kill_and_reap(pid)
    assert entered.wait(20)
    waiter.join()
    os.close(reader)
    os.close(writer)


def test_the_slots_of_readers_are_each_processs_own_and_end_with_it() -> None:
    """Two processes have different slots; one that was killed gives its slot back."""
    member = founding.found(None, SHM, None)
    mine = member.reader_slot()
    assert mine is not None
    assert member.reader_slot() == mine
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, json.dumps(member.reader_slot()).encode())
        signal.pause()
    slot, epoch = json.loads(os.read(reader, 100))
    assert slot != mine[0]
    assert member.slots_alive([slot, mine[0]]) in ({slot: epoch}, {slot: epoch, mine[0]: mine[1]})
    kill_and_reap(pid)
    assert slot not in member.slots_alive([slot])
    member.close()
    assert not any(mapping.path.endswith(member.key.prefix + "ctl") for mapping in leaks.mappings())
    os.close(reader)
    os.close(writer)


# leaving


def test_a_membership_that_only_the_cycle_collector_finds_leaves_as_well() -> None:
    """A participant in a reference cycle is the last to go: the store's control file goes with it."""
    with Founder() as founder:
        box: dict[str, Any] = {"member": joining.join(founder.key)}
        box["self"] = box
        founder.tell("close")
        founder.wait_for("closed")
        founder.tell()
        founder.finish().expect()
        assert _left(founder.key) == {"ctl"}
        del box
        gc.collect()
        assert _left(founder.key) == set()


# failure


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOSPC, errno.EIO, errno.ENOMEM, errno.EINTR])
def test_opening_survives_each_failing_call_and_leaves_nothing(number: int) -> None:
    """Each system call of opening a named store failed once: an error or success, and afterwards nothing is left."""
    before = leaks.descriptors()
    n = 1
    while True:
        with fail_at(n, number) as calls, contextlib.suppress(OSError, ShmArrayError):
            founding.found(NAME, SHM, None).close()
        assert leaks.descriptors() == before, calls[-1]
        assert _mine() == set(), calls[n - 1]
        founding.found(NAME, SHM, None).close()
        if len(calls) < n:
            break
        n += 1
    assert n > 20


@pytest.mark.parametrize("back", [False, True], ids=["anew", "back"])
@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ENOMEM, errno.ENOENT])
def test_joining_survives_each_failing_call_and_leaves_nothing(number: int, back: bool) -> None:  # noqa: FBT001  a parameter of a test
    """The same for joining, and for coming back: nothing stays open or mapped, and joining works afterwards."""
    with Founder() as founder:
        before = leaks.descriptors()
        inode = os.stat(reaper.control_path(founder.key)).st_ino
        n = 1
        while True:
            with fail_at(n, number) as calls, contextlib.suppress(OSError, ShmArrayError):
                joining.join(founder.key)
            absences.drop_all()
            assert leaks.descriptors() == before, calls[-1]
            assert not any(mapping.inode == inode for mapping in leaks.mappings())
            assert joining.join(founder.key).is_open()
            if not back:
                absences.drop_all()
            if len(calls) < n:
                break
            n += 1
        absences.drop_all()
        assert n > (4 if back else 8)


def test_a_handler_in_the_midst_of_taking_a_slot_gets_the_one_that_stays(
    member: membership.Membership, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finalizer or signal handler asks for the slot while its own thread takes it: nobody waits, and there is one slot."""
    real = membership.Membership.take_place
    inner: list[Any] = []

    def take_place(self: membership.Membership, places: membership.Places) -> Any:
        if not inner:
            inner.append(None)
            inner[0] = self.reader_slot()
        return real(self, places)

    monkeypatch.setattr(membership.Membership, "take_place", take_place)
    slot = member.reader_slot()
    assert slot is not None
    assert inner == [slot] == [member.reader_slot()]
    assert member.slots_alive(list(range(layout.SLOTS))) == dict([slot])
