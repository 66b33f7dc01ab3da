"""The header of a block: what it keeps, and that no byte of it can change unnoticed but the guard's."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shmarray as sa
from shmarray._format import header as form

WORD = st.integers(0, (1 << 64) - 1)
META = b'{"name":"frames","leaves":[["<f8",[2,3],null,0]],"tree":null}'
EXAMPLE = form.Header(form.file_size(48, len(META)), 48, 1, 2, 3, 4, 5, form.LIVE, META)
#: Bytes from the end of the file: the guard's room, whose bytes change while the array is in use.
GUARD = range(form.GUARD_AT, form.SIZE)


def _tail(header: form.Header) -> bytes:
    return form.pack(header)[1]


@st.composite
def headers(draw: st.DrawFn) -> form.Header:
    """Any header that a block could have."""
    nbytes = draw(st.integers(0, 1 << 50))
    meta = draw(st.binary(max_size=3000))
    size = form.file_size(nbytes, len(meta)) + form.PAGE * draw(st.integers(0, 3))
    state = draw(st.sampled_from([form.LIVE, form.DELETED]))
    store, block, pid, start, born = (draw(WORD) for _ in range(5))
    return form.Header(size, nbytes, store, block, pid, start, born, state, meta)


@pytest.mark.core
@given(headers(), st.binary(max_size=form.GUARD_SIZE))
def test_a_header_is_read_back_whole_whatever_the_guard_says(header: form.Header, guard: bytes) -> None:
    """Every field and the description come back; the guard's bytes have no say in it."""
    offset, tail = form.pack(header, guard)
    assert offset + len(tail) == header.file_size
    assert form.unpack(tail, header.file_size) == header
    assert form.meta_size(tail[-form.SIZE :]) == len(header.meta)
    assert tail[-form.GUARD_SIZE :] == guard.ljust(form.GUARD_SIZE, b"\0")


@given(headers(), st.binary(max_size=100))
def test_more_of_the_file_than_the_description_may_be_given(header: form.Header, before: bytes) -> None:
    """One read of a fixed size is enough: what lies before the description is ignored."""
    assert form.unpack(before + _tail(header), header.file_size) == header


@given(st.integers(0, 1 << 50), st.integers(0, 100_000))
def test_the_file_has_room_for_data_description_and_header_in_whole_pages(nbytes: int, meta: int) -> None:
    """Data never reach into the description; less than a page and an alignment is wasted."""
    size = form.file_size(nbytes, meta)
    assert size % form.PAGE == 0
    assert 0 <= size - (nbytes + meta + form.SIZE) < form.PAGE + form.ALIGN


def test_the_words_that_change_are_aligned_and_apart() -> None:
    """State word and guard are at multiples of their size in the file, and the guard has cache lines of its own."""
    for size in (form.PAGE, 3 * form.PAGE):
        assert form.state_offset(size) % 8 == 0
        assert (size - form.SIZE + form.GUARD_AT) % form.ALIGN == 0
    assert form.STATE_AT + 8 <= form.GUARD_AT


def test_every_flipped_bit_outside_the_guard_is_noticed() -> None:
    """Each single bit of description and header, turned over, makes the block refused; those of the guard do not."""
    tail = _tail(EXAMPLE)
    start = len(tail) - form.SIZE
    for position in range(len(tail)):
        for bit in range(8):
            damaged = bytearray(tail)
            damaged[position] ^= 1 << bit
            if position - start in GUARD:
                assert form.unpack(bytes(damaged), EXAMPLE.file_size) == EXAMPLE
            else:
                with pytest.raises(form.DamagedError):
                    form.unpack(bytes(damaged), EXAMPLE.file_size)


def test_the_time_of_an_array_made_again_is_told_and_its_words_are_checked_together() -> None:
    """Only while the block rests, which is when they are written one after the other, they may differ."""
    made = bytearray(_tail(EXAMPLE))
    at = len(made) - form.SIZE + form.AGAIN_AT
    made[at : at + 16] = b"".join(word.to_bytes(8, "little") for word in form.again(12345))
    assert form.unpack(bytes(made), EXAMPLE.file_size) == EXAMPLE._replace(born=12345)
    made[at + 3] ^= 1
    with pytest.raises(form.TornError):
        form.unpack(bytes(made), EXAMPLE.file_size)
    state = len(made) - form.SIZE + form.STATE_AT
    made[state : state + 8] = form.RESTING.to_bytes(8, "little")
    assert form.unpack(bytes(made), EXAMPLE.file_size).state == form.RESTING


@pytest.mark.core
@given(st.integers(0, len(_tail(EXAMPLE)) - 1), st.integers(1, 255))
def test_every_changed_byte_outside_the_guard_is_noticed(position: int, change: int) -> None:
    """The same for whole bytes."""
    damaged = bytearray(_tail(EXAMPLE))
    damaged[position] ^= change
    if position - (len(damaged) - form.SIZE) not in GUARD:
        with pytest.raises(form.DamagedError):
            form.unpack(bytes(damaged), EXAMPLE.file_size)


@given(st.binary(max_size=1200), WORD)
def test_no_bytes_make_it_fail_otherwise(junk: bytes, size: int) -> None:
    """Any bytes at all are a header or a `DamagedError`, never another exception."""
    for tail in (
        junk,
        form.MAGIC.ljust(form.SIZE, b"\0"),
        junk + form.MAGIC + junk[: form.SIZE - 8].ljust(form.SIZE - 8, b"\1"),
    ):
        with pytest.raises(form.DamagedError):
            form.unpack(tail, size)


@given(st.integers(0, len(_tail(EXAMPLE))))
def test_a_truncated_description_is_noticed(cut: int) -> None:
    """Fewer bytes than the description needs are refused, however few."""
    tail = _tail(EXAMPLE)[cut:]
    if cut:
        with pytest.raises(form.DamagedError):
            form.unpack(tail, EXAMPLE.file_size)


@pytest.mark.parametrize("change", [-form.PAGE, form.PAGE, 1 << 40])
def test_a_file_that_is_shorter_or_longer_than_it_was_is_noticed(change: int) -> None:
    """The header names the size of its file."""
    with pytest.raises(form.DamagedError, match="bytes long and its header says"):
        form.unpack(_tail(EXAMPLE), EXAMPLE.file_size + change)


@pytest.mark.core
def test_another_version_is_refused_by_its_number() -> None:
    """A later layout is said to be one, not called damaged; the check comes before the checksum, which may move."""
    later = bytearray(_tail(EXAMPLE))
    at = len(later) - form.SIZE + 8
    later[at : at + 2] = (form.VERSION + 1).to_bytes(2, "little")
    with pytest.raises(
        form.DamagedError, match=f"version {form.VERSION + 1}, this shmarray reads version {form.VERSION}"
    ):
        form.unpack(bytes(later), EXAMPLE.file_size)


@pytest.mark.parametrize("nbytes", [EXAMPLE.file_size - form.SIZE, 1 << 63])
def test_data_that_would_reach_into_the_description_are_refused(nbytes: int) -> None:
    """A header whose checksum is right and whose fields contradict each other is refused as well."""
    with pytest.raises(form.DamagedError, match="contradict"):
        form.unpack(_tail(EXAMPLE._replace(nbytes=nbytes)), EXAMPLE.file_size)


def test_the_two_states_are_far_apart() -> None:
    """No single flipped byte turns a live block into a deleted one."""
    differing = [
        a != b for a, b in zip(form.LIVE.to_bytes(8, "little"), form.DELETED.to_bytes(8, "little"), strict=True)
    ]
    assert sum(differing) >= 4


def test_attaching_refuses_a_block_with_any_byte_of_its_header_changed() -> None:
    """The same with real files: each byte of description and header changed in place; nothing is unlinked, nothing crashes."""
    with sa.Store() as store:
        store["x"] = np.arange(6.0)
        prefix = f"shmarray.{os.geteuid()}.{store.id}."
        path = f"/dev/shm/{prefix}n.x"
        assert store["x"].sum() == 15
        size = os.path.getsize(path)
        fd = os.open(path, os.O_RDWR)
        try:
            start = size - form.SIZE - form.meta_size(os.pread(fd, form.SIZE, size - form.SIZE))
            for position in range(start, size):
                (old,) = os.pread(fd, 1, position)
                os.pwrite(fd, bytes([old ^ 0x5A]), position)
                if position - (size - form.SIZE) in GUARD:
                    assert store["x"].sum() == 15
                else:
                    with pytest.raises(sa.CorruptBlockError):
                        store["x"]
                    assert len(store.check()) == 1
                os.pwrite(fd, bytes([old]), position)
        finally:
            os.close(fd)
        assert store["x"].sum() == 15
        assert store.check() == []


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 8191, 8192 + 512, 3 * 4096])
def test_attaching_refuses_a_truncated_or_grown_block(size: int) -> None:
    """A file of another size than its header says is refused, reported and left alone; its name can be deleted."""
    with sa.Store() as store:
        store["x"] = np.ones(1000)
        path = f"/dev/shm/shmarray.{os.geteuid()}.{store.id}.n.x"
        assert os.path.getsize(path) == 3 * 4096 or size != 3 * 4096
        whole = os.path.getsize(path)
        if size == whole:
            size += 4096
        os.truncate(path, size)
        with pytest.raises(sa.CorruptBlockError) as caught:
            store["x"]
        assert caught.value.path == path
        assert [problem.path for problem in store.check(fix=True)] == [path]
        assert os.path.exists(path)
        del store["x"]
        assert not os.path.exists(path)


@pytest.mark.parametrize(
    "kind", ["empty", "noise", "directory", "fifo", "symbolic link", "another store's", "another array's"]
)
def test_attaching_refuses_what_is_no_block_of_the_store(kind: str, tmp_path: os.PathLike[str]) -> None:
    """Foreign things under a name of ours are refused with a typed error and stay where they are."""
    with sa.Store() as store, sa.Store() as other:
        store["y"] = np.ones(3)
        other["x"] = np.ones(3)
        place = f"/dev/shm/shmarray.{os.geteuid()}.{store.id}.n."
        path = place + "x"
        if kind == "empty":
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        elif kind == "noise":
            with open(path, "wb") as file:
                file.write(os.urandom(8192))
        elif kind == "directory":
            os.mkdir(path)
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "symbolic link":
            os.symlink(place + "y", path)
        elif kind == "another store's":
            os.link(f"/dev/shm/shmarray.{os.geteuid()}.{other.id}.n.x", path)
        else:
            os.link(place + "y", path)
        try:
            with pytest.raises(sa.CorruptBlockError):
                store["x"]
            assert path in [problem.path for problem in store.check(fix=True)]
            assert os.path.lexists(path)
            assert store["y"].sum() == other["x"].sum() == 3
        finally:
            (os.rmdir if kind == "directory" else os.unlink)(path)
