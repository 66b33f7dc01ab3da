"""The control file: what it keeps, and that no byte of it can change unnoticed but those that are meant to."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

import shmarray as sa
from shmarray import controls
from shmarray._format import control as layout
from shmarray._format.header import DamagedError

WORD = st.integers(0, (1 << 64) - 1)
EXAMPLE = layout.Control(7, "näme", "/dev/shm", 1 << 30, (10, 20, 30), "0f2b", 123, "ab" * 16, "robust")
#: Bytes that change while the store is in use and mean no more than a number: guardian's pid, account, epochs of the slots.
FREE = {
    *range(layout.GUARDIAN_AT, layout.GUARDIAN_AT + 8),
    *range(layout.USED_AT, layout.USED_AT + 8),
    *range(layout.CHANGES_AT, layout.CHANGES_AT + 8),
    *range(layout.EPOCHS_AT, layout.EPOCHS_AT + 8 * layout.SLOTS),
    *range(layout.SEAT_EPOCHS_AT, layout.SEAT_EPOCHS_AT + 8 * layout.SEATS),
}


@st.composite
def any_control(draw: st.DrawFn) -> layout.Control:
    """Any control file that a store could have; a directory may be bytes that are no text."""
    name = draw(st.none() | st.text(st.characters(codec="utf-8"), max_size=60))
    directory = os.fsdecode(draw(st.binary(max_size=300)))
    capacity = draw(st.none() | WORD)
    owner = (draw(WORD), draw(WORD), draw(WORD))
    return layout.Control(
        draw(WORD), name, directory, capacity, owner, "boot", draw(WORD), "00" * 16, "multiprocessing"
    )


@pytest.mark.core
@given(any_control())
def test_a_control_file_is_read_back_whole(control: layout.Control) -> None:
    """Everything that never changes comes back, and the store is open."""
    page = layout.pack(control)
    assert len(page) == layout.SIZE
    assert layout.unpack(page) == (control, layout.OPEN)


def test_the_state_is_what_the_word_says() -> None:
    """Open, closed and dead are told apart; anything else is damage."""
    page = bytearray(layout.pack(EXAMPLE))
    for state in layout.STATES:
        page[layout.STATE_AT : layout.STATE_AT + 8] = state.to_bytes(8, "little")
        assert layout.unpack(bytes(page)) == (EXAMPLE, state)
    page[layout.STATE_AT : layout.STATE_AT + 8] = bytes(8)
    with pytest.raises(DamagedError, match="state"):
        layout.unpack(bytes(page))


def test_no_flipped_byte_turns_one_state_into_another() -> None:
    """The three words differ in several bytes, pair by pair."""
    words = [state.to_bytes(8, "little") for state in layout.STATES]
    for one in words:
        for other in words:
            differing = sum(a != b for a, b in zip(one, other, strict=True))
            assert differing == 0 if one is other else differing >= 3


def test_every_changed_byte_is_noticed_but_those_that_are_meant_to_change() -> None:
    """Each byte of the page turned over: refused, unless it belongs to a word whose every value is legal."""
    page = layout.pack(EXAMPLE)
    unnoticed = set()
    for position in range(layout.SIZE):
        damaged = bytearray(page)
        damaged[position] ^= 0xFF
        try:
            layout.unpack(bytes(damaged))
        except DamagedError:
            continue
        unnoticed.add(position)
    assert unnoticed == FREE


@pytest.mark.core
@given(st.integers(0, layout.SIZE - 1), st.integers(0, 7))
def test_every_flipped_bit_is_noticed_where_a_byte_is(position: int, bit: int) -> None:
    """The same for single bits."""
    damaged = bytearray(layout.pack(EXAMPLE))
    damaged[position] ^= 1 << bit
    if position in FREE:
        assert layout.unpack(bytes(damaged)) == (EXAMPLE, layout.OPEN)
    else:
        with pytest.raises(DamagedError):
            layout.unpack(bytes(damaged))


@given(st.binary(max_size=200), st.integers(0, 1 << 16))
def test_no_bytes_make_it_fail_otherwise(junk: bytes, length: int) -> None:
    """Any bytes are a control file or a `DamagedError`."""
    whole = layout.pack(EXAMPLE)
    pages = [
        junk,
        junk.ljust(layout.SIZE, b"\0"),
        whole[:8] + junk.ljust(layout.SIZE - 8, b"\1"),
        whole + b"\0",
        whole[:-1],
    ]
    pages.append(whole[:24] + length.to_bytes(8, "little") + whole[32:])
    for page in pages:
        if page != whole:
            with pytest.raises(DamagedError):
                layout.unpack(page)


def test_another_version_is_refused_by_its_number() -> None:
    """A later layout is said to be one, before any checksum."""
    later = bytearray(layout.pack(EXAMPLE))
    later[8:10] = (layout.VERSION + 1).to_bytes(2, "little")
    with pytest.raises(
        DamagedError, match=f"version {layout.VERSION + 1}, this shmarray reads version {layout.VERSION}"
    ):
        layout.unpack(bytes(later))


def test_the_longest_name_and_directory_fit() -> None:
    """A name of 255 bytes that doubles when written down, and a path as long as the kernel takes, leave room."""
    control = EXAMPLE._replace(
        name='"' * 255, directory="/" + "x" * 4094, capacity=(1 << 64) - 1, owner=(1 << 22, 1 << 63, 1 << 32)
    )
    assert layout.unpack(layout.pack(control))[0] == control


def test_the_words_that_change_do_not_overlap() -> None:
    """State, guardian, account and epochs are aligned words of their own, between the fixed part and the description."""
    places = [layout.STATE_AT, layout.GUARDIAN_AT, layout.USED_AT]
    places += [layout.EPOCHS_AT + 8 * slot for slot in range(layout.SLOTS)]
    assert all(place % 8 == 0 for place in places)
    assert sorted(set(places)) == sorted(places)
    description = layout.pack(EXAMPLE).index(b"{")
    assert 32 <= min(places) <= max(places) + 8 <= description
    assert description + layout.pack(EXAMPLE).rindex(b"}") - description < layout.SIZE


def test_the_marks_are_different_bytes() -> None:
    """Owner, guardian, name, change, capacity and each reader's slot are separate locks."""
    marks = [layout.OWNER_MARK, layout.GUARDIAN_MARK, layout.NAME_MARK, layout.CHANGE_MARK, layout.CAPACITY_MARK]
    marks += range(layout.SLOT_MARK, layout.SLOT_MARK + layout.SLOTS)
    assert len(set(marks)) == len(marks)


def test_joining_refuses_a_control_file_with_a_byte_of_its_checked_parts_changed() -> None:
    """With the real file: connecting gives a typed error, never a crash, and the owner's own store goes on and is removed."""
    name = f"test-control-{os.getpid()}"
    with sa.Store(name) as store:
        path = f"/dev/shm/shmarray.{os.geteuid()}.{store.id}.ctl"
        fd = os.open(path, os.O_RDWR)
        try:
            page = os.pread(fd, layout.SIZE, 0)
            description = page.index(b"{")
            for position in [
                *range(32),
                *range(layout.STATE_AT, layout.STATE_AT + 8),
                *range(description, description + 40),
            ]:
                os.pwrite(fd, bytes([page[position] ^ 0x5A]), position)
                with pytest.raises(sa.CorruptBlockError) as caught:
                    controls.find(name)
                assert name in caught.value.path or caught.value.path == path
                os.pwrite(fd, page[position : position + 1], position)
        finally:
            os.close(fd)
        store["x"] = [1]
        assert sa.connect(name)["x"][0] == 1


@pytest.mark.parametrize(
    "content", [b"", b"x", bytes(layout.SIZE), layout.pack(EXAMPLE)[:-1], layout.pack(EXAMPLE) + b"\0"]
)
def test_a_foreign_file_under_the_name_of_a_store_is_refused_and_stays(content: bytes) -> None:
    """Neither `connect` nor opening a store of that name takes it for a control file, and nobody removes it."""
    name = f"test-foreign-{os.getpid()}"
    path = f"/dev/shm/shmarray.{os.geteuid()}.name.{name}"
    with open(path, "wb") as file:
        file.write(content)
    try:
        with pytest.raises(sa.CorruptBlockError):
            sa.connect(name)
        with pytest.raises(sa.CorruptBlockError):
            sa.Store(name)
        assert os.path.getsize(path) == len(content)
    finally:
        os.unlink(path)
