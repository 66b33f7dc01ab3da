"""Something happens while processes stand at every line of an operation; then they go on, and find what is promised.

What a race does now and then, a pause does each time: for each line of the operation there is one process that stands before it.
"""

from __future__ import annotations

import os
import signal

import pytest

from tests.faults import witnesses
from tests.faults.pauses import PausePlay
from tests.faults.stage import Stage, files_of
from tests.helpers.processes import wait_until

_SOON = 10.0
ANY = [
    "create anonymous",
    "create named",
    "publish",
    "load an anonymous handle",
    "load a named handle",
    "pickle a handle",
    "attach by name",
    "unlink an anonymous array",
    "delete by name",
    "join",
    "check and fix",
    "write under the guard",
    "read under the guard",
]


@pytest.fixture
def deep(request: pytest.FixtureRequest) -> bool:
    """Whether to pause at every line of the package."""
    return bool(request.config.getoption("--deep"))


def end_while_they_pause(play: PausePlay, *, kill: bool) -> None:
    """End the store, let those who pause go on, and see that nothing comes back."""
    if kill:
        play.owner.kill()
        assert play.stage.status(play.owner.pid) == -signal.SIGKILL
    else:
        play.owner.do(witnesses.close)
        play.leave(play.owner)

    def left() -> str:
        return f"left: {sorted(files_of(play.store))}"

    wait_until(lambda: files_of(play.store) <= {"ctl"}, _SOON, left)
    # Nobody sweeps after them: what they publish now they have to take back themselves.
    os.kill(play.guardian, signal.SIGSTOP)
    play.go_on()
    assert files_of(play.store) <= {"ctl"}, left()
    assert play.guest.do(witnesses.work_is_refused)
    play.leave(play.guest)
    os.kill(play.guardian, signal.SIGCONT)
    wait_until(lambda: not files_of(play.store), _SOON, left)
    assert play.stage.status(play.guardian) == 0
    assert not play.stage.said(), play.stage.said()


def close_in_the_end(play: PausePlay) -> None:
    """See that the store is sound, and close it."""
    play.guest.do(witnesses.go_on)
    play.owner.do(witnesses.mend)
    play.leave(play.guest)
    play.owner.do(witnesses.release)
    play.owner.do(witnesses.close)
    assert not files_of(play.store)
    play.leave(play.owner)
    assert play.stage.status(play.guardian) == 0
    assert not play.stage.said(), play.stage.said()


@pytest.mark.parametrize("end", ["killed", "closed"])
@pytest.mark.parametrize("operation", ANY)
def test_what_was_begun_before_the_store_ended_is_refused_or_of_no_consequence(
    operation: str, end: str, *, deep: bool
) -> None:
    """It raises `StoreClosedError`; nothing is published after the sweep that is not taken back at once."""
    with Stage() as stage:
        play = PausePlay(stage, operation, deep=deep)
        play.pause(8)
        end_while_they_pause(play, kill=end == "killed")


@pytest.mark.parametrize("operation", ["create anonymous", "create named", "publish"])
def test_what_was_begun_in_a_store_with_capacity_is_refused_as_well(operation: str, *, deep: bool) -> None:
    """There a block in the making has a name from the first, which is swept under its maker."""
    with Stage() as stage:
        play = PausePlay(stage, operation, deep=deep, capacity=1 << 20)
        play.pause(8)
        end_while_they_pause(play, kill=True)


@pytest.mark.parametrize("place", ["memory", "directory"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_reader_at_any_line_finds_the_old_or_the_new_array(
    place: str, times: int, store_dir: str, *, deep: bool
) -> None:
    """However often the name moves on while it looks, it is never told that there is no such array."""
    with Stage() as stage:
        play = PausePlay(
            stage, "attach what changes", deep=deep, **({} if place == "memory" else {"directory": store_dir})
        )
        play.pause(16)
        play.owner.do(witnesses.change, times)
        play.go_on()
        close_in_the_end(play)


def test_a_handle_that_is_being_loaded_keeps_its_array_through_every_sweep(*, deep: bool) -> None:
    """Its sender has let go; between the handle's link and the receiver's mapping there is no gap for a sweep to fall into."""
    with Stage() as stage:
        play = PausePlay(stage, "load an anonymous handle", deep=deep)
        play.pause(16)
        play.owner.do(witnesses.mend)
        play.guest.do(witnesses.check_and_fix)
        play.go_on()
        close_in_the_end(play)


@pytest.mark.parametrize("operation", ["create anonymous", "create named", "put a tree", "pickle a handle"])
def test_an_array_in_the_making_is_kept_through_every_sweep(operation: str, *, deep: bool) -> None:
    """Its maker lives, though it stands still: nobody takes it for dead."""
    with Stage() as stage:
        play = PausePlay(stage, operation, deep=deep)
        play.pause(16)
        play.guest.do(witnesses.check_and_fix)
        play.go_on()
        close_in_the_end(play)


def test_the_last_to_let_go_removes_the_array_whoever_it_is(*, deep: bool) -> None:
    """Others let go of it while one stands at any line of letting go."""
    with Stage() as stage:
        play = PausePlay(stage, "drop what another holds", deep=deep)
        play.pause(16)
        play.owner.do(witnesses.drop_all)
        play.go_on()
        assert play.owner.do(witnesses.check) == []
        close_in_the_end(play)


def test_a_handle_loaded_by_many_at_once_serves_them_all(*, deep: bool) -> None:
    """One claims the link in flight, the others come by the block's own name."""
    with Stage() as stage:
        play = PausePlay(stage, "load what others load", deep=deep)
        play.pause(16)
        play.go_on()
        play.owner.do(witnesses.drop_all)
        close_in_the_end(play)


def test_unlinking_an_array_that_is_being_replaced_never_removes_the_new_one(*, deep: bool) -> None:
    """Whichever comes first at whatever line, the name leads to the new array in the end."""
    with Stage() as stage:
        play = PausePlay(stage, "unlink what changes", deep=deep)
        play.pause(16)
        lines = list(play.paused.values())
        play.owner.tell(witnesses.replace_many, lines)  # may have to wait for one that pauses
        play.go_on()
        play.owner.answer()
        play.owner.do(witnesses.delete_many, lines)
        close_in_the_end(play)
