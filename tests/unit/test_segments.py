"""Files that are memory: whole from the first moment, reserved before they are touched, mapped without a descriptor."""

from __future__ import annotations

import errno
import gc
import os
import resource
import signal
import stat
import threading
from typing import TYPE_CHECKING

import pytest

from shmarray._os import flocks, segments
from tests.helpers import leaks
from tests.helpers.processes import reap, run_script
from tests.helpers.tracing import fail_at

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = segments.PAGE


@pytest.fixture(params=["shared memory", "disk"])
def place(request: pytest.FixtureRequest, store_dir: str) -> Iterator[str]:
    """A directory of each kind of file system, empty of files of these tests at the end."""
    directory = segments.SHM_DIRECTORY if request.param == "shared memory" else store_dir
    yield directory
    assert [entry for entry in os.listdir(directory) if entry.startswith("test-")] == []


@pytest.fixture
def path(place: str) -> Iterator[str]:
    """A name in that directory that is free, and freed at the end."""
    name = os.path.join(place, f"test-segments.{os.getpid()}")
    yield name
    segments.unlink(name)


def _made(place: str, size: int = PAGE) -> segments.Descriptor:
    fd, temporary = segments.create_leased(place, lambda: "test-fallback")
    assert temporary is None
    segments.reserve(fd, 0, size)
    return fd


def test_a_new_file_has_no_name_until_it_is_published(place: str, path: str) -> None:
    """What is in the making shows in no directory; published, it is whole, private to the user and has one link."""
    before = set(os.listdir(place))
    fd = _made(place)
    segments.write(fd, b"whole", 0)
    assert segments.status(fd).st_nlink == 0
    assert set(os.listdir(place)) == before
    segments.publish(fd, path)
    fd.close()
    info = segments.status_of(path)
    assert (info.st_nlink, stat.S_IMODE(info.st_mode), info.st_size, info.st_uid) == (1, 0o600, PAGE, os.geteuid())
    with open(path, "rb") as file:
        assert file.read(5) == b"whole"


def test_a_new_file_is_private_whatever_the_umask(place: str, path: str) -> None:
    """A generous umask opens it to nobody."""
    old = os.umask(0)
    try:
        fd = _made(place)
    finally:
        os.umask(old)
    segments.publish(fd, path)
    fd.close()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_publishing_under_a_taken_name_is_refused_and_changes_nothing(place: str, path: str) -> None:
    """Like O_EXCL: the first stays, the second is still unnamed."""
    one, other = _made(place), _made(place)
    segments.write(one, b"one", 0)
    segments.publish(one, path)
    with pytest.raises(FileExistsError):
        segments.publish(other, path)
    assert segments.status(other).st_nlink == 0
    with open(path, "rb") as file:
        assert file.read(3) == b"one"
    one.close()
    other.close()


def test_a_file_that_is_closed_unpublished_leaves_nothing(place: str) -> None:
    """Its memory goes back at the close."""
    free = os.statvfs(place).f_bavail
    _made(place, 8 << 20).close()
    assert free - os.statvfs(place).f_bavail < (4 << 20) // os.statvfs(place).f_frsize


def test_a_file_system_without_unnamed_files_gets_a_name_that_is_removed_on_publishing(place: str, path: str) -> None:
    """The first call of `create_leased` refused as such file systems do: the fallback name is used, and goes."""
    for number in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
        with fail_at(1, number):
            fd, temporary = segments.create_leased(place, lambda: "test-fallback")
        assert temporary == os.path.join(place, "test-fallback")
        assert stat.S_IMODE(os.stat(temporary).st_mode) == 0o600
        segments.publish(fd, path, temporary)
        assert not segments.exists(temporary)
        assert segments.status(fd).st_nlink == 1
        fd.close()
        assert segments.unlink(path)


def test_a_fallback_name_that_was_swept_before_it_was_locked_is_made_anew(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep between creating and locking takes the file for dead: the maker notices and tries again."""
    swept: list[str] = []
    real = flocks.share

    def share(fd: segments.Descriptor) -> None:
        if not swept:
            swept.append(os.path.join(place, "test-fallback"))
            os.unlink(swept[0])
        real(fd)

    monkeypatch.setattr(flocks, "share", share)
    monkeypatch.setattr(os, "O_TMPFILE", os.O_RDONLY | os.O_DIRECTORY)
    fd, temporary = segments.create_leased(place, lambda: "test-fallback")
    assert swept
    assert temporary is not None
    assert segments.status(fd).st_nlink == 1
    segments.unlink(temporary)
    fd.close()


def test_reserving_gives_zeros_and_real_memory(place: str) -> None:
    """Reserved bytes read as zeros and are taken from the file system at once, in pieces of any size."""
    size = (16 << 20) + 5 * PAGE
    fd = _made(place, size)
    info = segments.status(fd)
    assert info.st_size == size
    assert info.st_blocks * 512 >= size
    assert segments.read(fd, 100, size - 100) == bytes(100)
    segments.write(fd, b"x", 0)
    segments.reserve(fd, 0, size)
    assert segments.read(fd, 1, 0) == b"x"
    fd.close()


def test_a_write_is_whole_in_pieces_of_any_size(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the kernel writes less than it was asked."""
    monkeypatch.setattr(segments, "_WRITE_PIECE", 7)
    data = bytes(range(256)) * 3
    fd = _made(place)
    segments.write(fd, data, 11)
    segments.write(fd, memoryview(data)[:0], 4000)
    assert segments.read(fd, len(data), 11) == data
    assert segments.read(fd, 11, 0) == bytes(11)
    assert len(segments.read(fd, 5000, 4000)) == 96
    fd.close()


@pytest.mark.core
def test_a_mapping_holds_no_descriptor_and_is_shared(place: str, path: str) -> None:
    """Two mappings of a file see each other's bytes, with nothing open."""
    before = leaks.descriptors()
    fd = _made(place, 2 * PAGE)
    segments.publish(fd, path)
    one = segments.map_shared(fd, 2 * PAGE)
    fd.close()
    fd = segments.open_existing(path)
    other = segments.map_shared(fd, 2 * PAGE)
    fd.close()
    assert leaks.descriptors() == before
    one[PAGE] = 77
    assert other[PAGE] == 77
    assert len(one) == 2 * PAGE
    assert segments.address_of(one) % PAGE == 0


def test_a_descriptor_that_is_forgotten_is_closed_silently(place: str) -> None:
    """Thrown away with the frame that held it, it is closed, and its lock let go, without a word."""
    before = leaks.descriptors()
    fd = _made(place)
    assert leaks.descriptors() != before
    del fd
    assert leaks.descriptors() == before


def test_closing_twice_closes_no_others_file(place: str) -> None:
    """A second close does nothing, whoever has the number now."""
    fd = _made(place)
    number = fd.fileno()
    fd.close()
    other = os.open("/dev/null", os.O_RDONLY)
    assert other == number
    fd.close()
    del fd
    os.close(other)


@pytest.mark.core
def test_a_mapping_ends_with_its_last_view_and_not_before(place: str, path: str) -> None:
    """Views keep it; dropping the last unmaps, silently, without a call to close."""
    fd = _made(place)
    inode = segments.status(fd).st_ino
    memory = segments.map_shared(fd, PAGE)
    segments.publish(fd, path)
    fd.close()

    def mapped() -> int:
        return sum(mapping.inode == inode for mapping in leaks.mappings(prefix="test-segments"))

    view = memoryview(memory)
    del memory
    segments.unlink(path)
    gc.collect()
    assert mapped() == 1
    view[0] = 9
    assert view[0] == 9
    del view
    assert mapped() == 0


def test_a_mapping_cannot_be_closed_under_a_view(place: str) -> None:
    """Even who calls `close` gets `BufferError`, not a dangling view."""
    fd = _made(place)
    memory = segments.map_shared(fd, PAGE)
    fd.close()
    view = memoryview(memory)
    with pytest.raises(BufferError):
        memory.close()
    assert view[0] == 0
    view.release()


@pytest.mark.core
def test_a_file_larger_than_all_memory_can_be_mapped(place: str) -> None:
    """What is mapped is the file: nothing beside it is promised, so memory and swap set no limit."""
    size = 1 << 40
    fd = _made(place)
    segments.resize(fd, size)
    memory = segments.map_shared(fd, size)
    fd.close()
    assert len(memory) == size
    assert memory[0] == 0


@pytest.mark.core
@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EAGAIN])
def test_a_mapping_that_the_kernel_refuses_is_an_error_and_leaves_nothing(place: str, number: int) -> None:
    """Each call of `map_shared` refused once: the error's number comes through, and no mapping stays."""
    fd = _made(place)
    with fail_at(0, 0) as calls:
        del calls[:]
        memory = segments.map_shared(fd, PAGE)
        del memory
    assert calls
    before = leaks.mappings(prefix="test-segments")
    for n in range(1, len(calls) + 1):
        with fail_at(n, number), pytest.raises(OSError, match=os.strerror(number)):
            segments.map_shared(fd, PAGE)
    assert leaks.mappings(prefix="test-segments") == before
    fd.close()


def test_a_real_limit_on_address_space_is_an_error() -> None:
    """With RLIMIT_AS reached, mapping fails with ENOMEM and the process goes on."""
    source = """
import errno, os, resource
from shmarray._os import segments
fd, _ = segments.create_leased("/dev/shm", lambda: "unused")
segments.resize(fd, 1 << 30)
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 28), resource.RLIM_INFINITY))
try:
    segments.map_shared(fd, 1 << 30)
except OSError as error:
    print(error.errno == errno.ENOMEM)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(len(segments.map_shared(fd, 1 << 30)))
"""
    assert run_script(source).expect() == f"True\n{1 << 30}\n"


def test_no_symbolic_link_is_followed(place: str, path: str) -> None:
    """A link planted under one of our names is refused, whatever it leads to, also to nothing."""
    for target in ("/etc/hostname", "/nowhere"):
        os.symlink(target, path)
        for write in (True, False):
            with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
                segments.open_existing(path, write=write)
        assert segments.exists(path)
        assert stat.S_ISLNK(segments.status_of(path).st_mode)
        assert segments.unlink(path)


def test_opening_a_fifo_does_not_wait(place: str, path: str) -> None:
    """A pipe planted under one of our names cannot hang us."""
    os.mkfifo(path)
    fd = segments.open_existing(path)
    assert not segments.is_regular(segments.status(fd))
    fd.close()


def test_descriptors_are_not_inherited_by_programs(place: str) -> None:
    """Every descriptor of ours is closed on exec."""
    fd = _made(place)
    assert not os.get_inheritable(fd.fileno())
    fd.close()


def test_a_second_name_counts_and_a_rename_replaces_in_one_step(place: str, path: str) -> None:
    """`link` adds to the count, `replace` moves one name over another, `unlink` says whether there was one."""
    one, other = _made(place), _made(place)
    segments.publish(one, path)
    segments.publish(other, path + ".2")
    segments.link(path, path + ".3")
    assert segments.status(one).st_nlink == 2
    with pytest.raises(FileExistsError):
        segments.link(path, path + ".2")
    segments.replace(path + ".2", path)
    assert segments.status(one).st_nlink == 1
    assert segments.status_of(path).st_ino == segments.status(other).st_ino
    assert not segments.unlink(path + ".2")
    assert segments.unlink(path + ".3")
    assert segments.status(one).st_nlink == 0
    one.close()
    other.close()


def test_entries_are_those_with_the_prefix(place: str, path: str) -> None:
    """Only names that begin so, base names, nothing else."""
    fd = _made(place)
    segments.publish(fd, path)
    fd.close()
    assert segments.entries(place, os.path.basename(path)) == [os.path.basename(path)]
    assert segments.entries(place, "test-none") == []
    assert segments.exists(path)
    assert not segments.exists(path + "x")


def test_a_child_forked_while_another_thread_has_a_file_open_does_not_keep_it_open(place: str, path: str) -> None:
    """Else a lock that hangs on that description would live as long as the child."""
    opened, go_on = threading.Event(), threading.Event()
    before = leaks.descriptors()

    def hold() -> None:
        fd = _made(place)
        opened.set()
        go_on.wait(20)
        fd.close()

    thread = threading.Thread(target=hold)
    thread.start()
    assert opened.wait(20)
    mine = _made(place)
    pid = os.fork()
    if pid == 0:
        now = {fd for fd, target in leaks.descriptors().items() if before.get(fd) != target}
        os._exit(0 if now == {mine.fileno()} else 1)
    go_on.set()
    thread.join()
    mine.close()
    assert reap(pid) == 0


def test_forks_in_a_storm_of_opening_threads_carry_nothing_over(place: str) -> None:
    """Two threads open and close all the time, another forks: no child ever holds a file that the threads had open."""
    source = """
import os, sys, threading
from shmarray._os import segments
place = sys.argv[1]
stop = threading.Event()
def churn():
    while not stop.is_set():
        fd, _ = segments.create_leased(place, lambda: "unused")
        fd.close()
threads = [threading.Thread(target=churn) for _ in range(2)]
for thread in threads:
    thread.start()
bad = 0
for _ in range(100):
    pid = os.fork()
    if pid == 0:
        links = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")]
        os._exit(any(link.startswith(place + "/#") for link in links))
    bad += os.waitpid(pid, 0)[1] != 0
stop.set()
for thread in threads:
    thread.join()
print(bad)
"""
    assert run_script(source, place, flags=("-W", "ignore")).expect() == "0\n"


def test_a_file_size_limit_is_an_error_and_not_a_signal(place: str) -> None:
    """RLIMIT_FSIZE raises EFBIG: Python ignores SIGXFSZ, and so must the path through the reservation."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (PAGE, PAGE))
        fd, _ = segments.create_leased(place, lambda: "unused")
        try:
            segments.reserve(fd, 0, 2 * PAGE)
        except OSError as error:
            os._exit(0 if error.errno == errno.EFBIG else 1)
        os._exit(2)
    assert reap(pid) == 0
