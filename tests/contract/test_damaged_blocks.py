"""A block that is damaged, truncated, foreign or no file at all is refused with a typed error, and nothing is removed."""

from __future__ import annotations

import os
import pickle
import shutil
import socket
import stat
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shmarray as sa
from shmarray._format import header as form
from tests.contract.test_errors import assert_sound
from tests.helpers.leaks import SHM
from tests.helpers.processes import run_script

if TYPE_CHECKING:
    from collections.abc import Callable

HEADER = 512
STATE_END = 136
FREE = range(192, HEADER)  # the guard's room: changes as long as the block lives

PLANTS = ["directory", "symlink", "dangling symlink", "symlink to itself", "fifo", "socket", "empty file", "noise"]
PLANTS += ["device", "another user's"] if os.geteuid() == 0 else []


def path_of(store: sa.Store, name: str) -> str:
    """Where the block of a named array is."""
    array = store[name]
    assert isinstance(array, sa.SharedArray)
    return os.path.join(store.stats().directory, str(array.block_name))


def plant(kind: str, path: str) -> None:
    """Put something else where a block belongs."""
    match kind:
        case "directory":
            os.mkdir(path)
        case "symlink":
            os.symlink("/etc/passwd", path)
        case "dangling symlink":
            os.symlink("/nonexistent/nowhere", path)
        case "symlink to itself":
            os.symlink(os.path.basename(path), path)
        case "fifo":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as door:
                door.bind(path)
        case "device":
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))
        case _:
            with open(path, "wb") as file:
                file.write(b"" if kind == "empty file" else os.urandom(8192))
            if kind == "another user's":
                os.chown(path, 65534, 65534)


def uproot(path: str) -> bool:
    """Remove what `plant` put there; false if it is gone already."""
    try:
        os.unlink(path)
    except IsADirectoryError:
        os.rmdir(path)
    except FileNotFoundError:
        return False
    return True


def refused(act: Callable[[], object], path: str) -> Any:
    """Run what must raise CorruptBlockError; the error names the file, and is sound."""
    with pytest.raises(sa.CorruptBlockError) as caught:
        act()
    assert_sound(caught.value, OSError)
    assert caught.value.path == path
    assert path in str(caught.value)


def test_every_changed_byte_of_header_and_description_is_noticed(store: sa.Store) -> None:
    """One byte changed in any way: CorruptBlockError by name and by handle, the file is left; the rest may change freely."""
    store["x"] = np.arange(700, dtype="f8")
    path, handle = path_of(store, "x"), pickle.dumps(store["x"][1:])
    with open(path, "rb") as file:
        whole = file.read()
    size = len(whole)
    meta = whole.rindex(b'"leaves"', 0, size - HEADER)
    first = whole.rindex(b"{", 0, meta)  # where the description begins
    assert 5600 < first < size - HEADER
    guarded = [*range(first, size - HEADER + STATE_END)]
    free = [*range(5600, first), *range(size - HEADER + FREE.start, size)]
    with open(path, "r+b", buffering=0) as file:
        for at in guarded:
            for change in (0x01, 0x80, 0xFF):
                os.pwrite(file.fileno(), bytes([whole[at] ^ change]), at)
                refused(lambda: store["x"], path)
            refused(lambda: pickle.loads(handle), path)
            os.pwrite(file.fileno(), whole[at : at + 1], at)
        for at in free[::7]:
            os.pwrite(file.fileno(), bytes([whole[at] ^ 0xFF]), at)
            assert store["x"][699] == 699
            os.pwrite(file.fileno(), whole[at : at + 1], at)
    assert store["x"].sum() == sum(range(700))
    with open(path, "rb") as file:
        assert file.read() == whole
    assert store.check() == []


def test_a_block_of_another_length_is_refused(store: sa.Store) -> None:
    """Truncated anywhere, emptied, or grown: CorruptBlockError, never a SIGBUS; restored, it works again."""
    store["x"] = np.arange(3000.0)
    path, handle = path_of(store, "x"), pickle.dumps(store["x"])
    with open(path, "rb") as file:
        whole = file.read()
    size = len(whole)
    for length in (
        0,
        1,
        511,
        512,
        4095,
        4096,
        4097,
        size - 4096,
        size - 512,
        size - 1,
        size + 1,
        size + 512,
        size + 4096,
        2 * size,
    ):
        with open(path, "r+b") as file:
            file.truncate(length)
        refused(lambda: store["x"], path)
        refused(lambda: pickle.loads(handle), path)
        assert [problem.path for problem in store.check(fix=True)] == [path]
        assert os.path.getsize(path) == length
        with open(path, "wb") as file:
            file.write(whole)
    assert store["x"][2999] == 2999


def test_a_block_of_another_place_is_refused(store: sa.Store) -> None:
    """A copy under another name, a block of another store, or of another version: whole, and yet not what was asked for."""
    store["x"], store["y"] = np.zeros(3), np.ones(3)
    x, y = path_of(store, "x"), path_of(store, "y")
    with sa.Store() as other:
        other["x"] = np.full(3, 2)
        shutil.copyfile(path_of(other, "x"), x)
        refused(lambda: store["x"], x)
    shutil.copyfile(y, x)
    refused(lambda: store["x"], x)
    store["x"] = np.full(3, 4)
    assert (store["x"].sum(), store["y"].sum()) == (12, 3)


def test_a_description_that_is_whole_and_wrong_is_refused(store: sa.Store) -> None:
    """A checksum only says that nothing changed: strides, offsets, dtypes beyond the data are refused all the same."""
    store["x"] = np.zeros(4)
    path = path_of(store, "x")
    with open(path, "rb") as file:
        whole = file.read()
    head = form.unpack(whole, len(whole))
    wrong = [
        b"", b"null", b"[]", b"{}", b"\xff", b'{"name":"x","tree":null}', b'{"name":"x","leaves":[],"tree":null}',
        *(b'{"name":"x","leaves":[%s],"tree":null}' % leaf for leaf in (
            b'["<f8",[5],null,0]', b'["<f8",[4],null,8]', b'["<f8",[4],null,-8]', b'["<f8",[4],[-8],0]',
            b'["<f8",[4],[1e9],0]', b'["O",[4],null,0]', b'["<f8",[4],[8,8],0]', b'["<f8",[-1],null,0]',
            b'["<f8",[4611686018427387904],[0],0]', b'["nonsense",[1],null,0]', b'"text"', b"[]",
        )),
        b'{"name":"y","leaves":[["<f8",[4],null,0]],"tree":null}', b'{"name":null,"leaves":[["<f8",[4],null,0]],"tree":null}',
        b'{"name":"x","leaves":[["<f8",[4],null,0]],"tree":{"tree":["a",7],"leaves":1,"classes":[]}}',
        b'{"name":"x","leaves":[["<f8",[4],null,0]],"tree":{"tree":["c",0,1],"leaves":1,"classes":[]}}',
        b'{"name":"x","leaves":[["<f8",[4],null,0]],"tree":5}',
    ]  # fmt: skip
    for meta in wrong:
        offset, data = form.pack(head._replace(meta=meta))
        with open(path, "r+b") as file:
            file.seek(offset)
            file.write(data)
        with pytest.raises(sa.CorruptBlockError) as caught:
            read_whole(store["x"])
        assert_sound(caught.value, OSError)
    assert os.path.exists(path)


def read_whole(found: Any) -> None:
    """Read all of what was attached; a tree is read leaf by leaf."""
    if isinstance(found, sa.SharedTree):
        found.unflatten()


@pytest.mark.core
def test_what_is_no_block_is_refused_and_left_where_it_is(store: sa.Store) -> None:
    """In place of a named array: attaching refuses, making says the name exists, the self-check reports; nothing is removed."""
    store["good"] = np.ones(3)
    path = path_of(store, "good").replace("n.good", "n.x")
    for kind in PLANTS:
        plant(kind, path)
        try:
            info = os.lstat(path)
            refused(lambda: store["x"], path)
            with pytest.raises(sa.ArrayExistsError):
                store.zeros(3, name="x")
            assert path in [problem.path for problem in store.check(fix=True)], kind
            assert "good" in list(store), kind
            assert os.lstat(path).st_ino == info.st_ino, kind
            replace(store, path)
            plant(kind, path)
            delete(store, path)
        finally:
            uproot(path)
        assert store["good"].sum() == 3


def replace(store: sa.Store, path: str) -> None:
    """Publish over what is no block: either the array is there afterwards, or a typed error says why not."""
    try:
        store["x"] = np.full(2, 5)
    except sa.CorruptBlockError as error:
        assert_sound(error, OSError)
        assert uproot(path)
    else:
        assert store["x"].sum() == 10
        del store["x"]
    assert store.stats().drafts == 0
    assert not os.path.lexists(path)


def delete(store: sa.Store, path: str) -> None:
    """Delete what is no block, as the message advises: it goes, never what it leads to, or a typed error says why not."""
    try:
        del store["x"]
    except sa.CorruptBlockError as error:
        assert_sound(error, OSError)
        assert os.path.lexists(path)
    else:
        assert not os.path.lexists(path)
    assert os.path.exists("/etc/passwd")


def test_a_store_closes_whatever_stands_between_its_blocks(place: str | None) -> None:
    """Foreign things under the store's own prefix do not keep one block, and the next store of the user opens."""
    for kind in PLANTS:
        store = sa.Store(directory=place)
        store["a"], store["z"] = np.ones(3), np.ones(3)
        anonymous = store.zeros(3)
        path = path_of(store, "a")
        planted = [path.replace("n.a", end) for end in ("n.m", "a.0123456789abcdef", "t.0123456789abcdef")]
        try:
            for each in planted:
                plant(kind, each)
            store.close()
            left = {entry for entry in os.listdir(os.path.dirname(path)) if store.id in entry}
            assert left <= {os.path.basename(each) for each in planted}, kind
            assert not [entry for entry in os.listdir(SHM) if store.id in entry and entry.endswith("ctl")], kind
            assert anonymous.sum() == 0
            with sa.Store(directory=place) as other:
                other["x"] = np.ones(3)
        finally:
            for each in planted:
                uproot(each)


def test_no_file_of_another_kind_keeps_a_store_from_opening() -> None:
    """Things called like a control file, a claim, a store's name or a block of no store are left alone; only a taken name refuses."""
    stranger = f"{SHM}/shmarray.{os.geteuid()}"
    names = [
        f"{stranger}.0123456789abcdef.{end}" for end in ("ctl", "dir", "n.x", "a.0123456789abcdef", "h.1.2", "t.3")
    ]
    names += [f"{stranger}.name.contract-blocked", f"{stranger}.nonsense", f"{stranger}."]
    for kind in PLANTS:
        try:
            for each in names:
                plant(kind, each)
            with sa.Store() as store:
                store["x"] = np.ones(3)
                assert store.check() == []
            for act in (sa.Store, sa.connect):
                with pytest.raises((sa.CorruptBlockError, sa.StoreNotFoundError)) as caught:
                    act("contract-blocked")
                assert_sound(caught.value, OSError)
            with sa.Store("contract-not-blocked") as store:
                store["x"] = np.ones(3)
        finally:
            left = [each for each in names if uproot(each)]
        assert left == names, kind


def test_a_users_store_is_safe_from_files_of_another_user() -> None:
    """In a directory with the sticky bit another user can plant files that we may neither open nor remove."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    script = """
    import encodings.ascii, json, os, sys, traceback, warnings
    import numpy as np, numpy.ma, shmarray as sa
    import multiprocessing.util

    warnings.simplefilter("ignore", sa.GuardianWarning)      # that user may not be able to start our interpreter
    reading, writing = os.pipe()
    ready, planted = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgid(65534), os.setuid(65534)
            store = sa.Store()
            store["good"] = np.ones(3)
            os.write(writing, store.id.encode())
            os.read(ready, 1)
            for act in (lambda: store["x"], lambda: store.__setitem__("x", np.ones(3)), lambda: store.__delitem__("x")):
                try:
                    act()
                except sa.CorruptBlockError as error:
                    assert error.remedy and error.path.endswith("n.x"), error
                else:
                    raise AssertionError("another user's file was taken for ours")
            assert len(store.check(fix=True)) == 2, store.check()
            assert store["good"].sum() == 3
            store.close()
            left = [name for name in os.listdir("/dev/shm") if store.id in name]
            assert sorted(name.rpartition(store.id)[2] for name in left) == [".a.0123456789abcdef", ".n.x"], left
            with sa.Store() as other:
                other["y"] = np.ones(3)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    prefix = f"/dev/shm/shmarray.65534.{os.read(reading, 16).decode()}."
    paths = [prefix + "n.x", prefix + "a.0123456789abcdef"]
    for path in paths:
        with open(path, "w") as file:
            file.write("root's")
        os.chmod(path, 0o600)
    os.write(planted, b"1")
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    for path in paths:
        os.unlink(path)
    sys.exit(status)
    """
    run_script(textwrap.dedent(script)).expect()
