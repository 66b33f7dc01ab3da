"""The locks of a channel, those who wait, and the dead.

Owns: doing a step under a lock, or later where its holder was stopped; who is counted as waiting, sleeping and waking; when a stream is
over; finding the dead.
Must not know: what the steps are (`flow`), NumPy, what is in a slot.

Whoever finds nothing is counted, with the lock held; looks once more; and sleeps on a word that changes with what it waits for. Whoever
changes that word looks, after it has let the lock go, whether anybody is counted. Between the two looks lies the lock, so one of the two
sees the other. Sleep is in slices, after each of which deaths are looked for; who is killed while it waits stays counted: then others are
woken for nothing.
"""

from __future__ import annotations

import ctypes
import time
from typing import TYPE_CHECKING, Any, TypeVar

from shmarray import guards, objects
from shmarray._format import channel as form
from shmarray._os import futexes
from shmarray.channels import holds
from shmarray.channels.slots import Slots
from shmarray.channels.subscribers import Subscribers
from shmarray.errors import ChannelClosedError
from shmarray.guards import SLICE

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmarray.channels.latches import Latch
    from shmarray.membership import Membership

R = TypeVar("R")
_clock = time.monotonic
_GRACE = 2.0
"""Seconds beyond the deadline for which a lock is waited for: it is held for microseconds, unless its holder was stopped."""
_SELDOM = 1.0
_BRIEF = 0.25
"""Seconds for which it is waited for where others will do what is to be done, or nothing hangs on it."""


class Waits:
    """A channel's words, with all that waits. One for each mapping, valid as long as that is; keeps it for nobody."""

    __slots__ = (
        *("_looked", "_policy", "_spin", "_stays", "_woken"),
        *("member", "name", "owed", "slots", "waiters", "words"),
    )

    def __init__(self, words: Any, member: Membership, name: str | None) -> None:
        """Use these words, a ctypes array, of a channel of that name."""
        self.words = words
        self.member = member
        self.name = name
        self.slots = Slots(words, member)
        self.slots.subscribers = Subscribers(words, self.slots.geometry, self.slots.change)
        self.waiters: dict[int, Any] = {}
        """Of this process: who waits in coroutines, by the word; see `aio`."""
        self.owed: dict[int, tuple[int, list[int], Callable[..., object], tuple[Any, ...]]] = {}
        """What is still to be done, by the identity of the list that says so; see `see_to`."""
        self._looked = _clock()
        self._woken = 0
        self._policy = words[form.FULL]
        self._stays = bool(words[form.FLAGS] & form.STAY)
        self._spin = words[form.SPIN] / 1e9

    # -- the locks -----------------------------------------------------------------------------------------------------

    def within(self, latch: Latch, deadline: float | None, work: Callable[..., R], *arguments: Any) -> R:
        """Do `work` with a lock held. Raises `TimeoutError` if that is not to be had until well after the deadline."""
        try:
            code = latch.take(latch.address)
            if code and not latch.enter(code, None if deadline is None else deadline + _GRACE):
                message = "the lock of the channel is held by a process that does not go on: was it stopped?"
                raise TimeoutError(message)
            result = work(*arguments)
            latch.let(latch.address)
        except BaseException as error:
            latch.abandon(error)
            raise
        return result

    def with_get(self, work: Callable[..., R], *arguments: Any) -> R:
        """Do `work` as those who take."""
        return self.within(self.slots.get_latch, None, work, *arguments)

    def with_both(self, work: Callable[..., R], *arguments: Any, deadline: float | None = None) -> R:
        """Do `work` with both locks held, in the order in which everyone takes them."""
        put_latch, get_latch = self.slots.put_latch, self.slots.get_latch
        if get_latch is put_latch:
            return self.within(put_latch, deadline, work, *arguments)
        result: R = self.within(put_latch, deadline, self.within, get_latch, deadline, work, *arguments)
        return result

    def briefly(self, latch: Latch, work: Callable[..., R], *arguments: Any) -> R | None:
        """Do what may as well be done later, with a lock held; None if that is not to be had soon: whoever has it was stopped."""
        return self._until(latch, _clock() + _BRIEF, work, *arguments)

    def _until(self, latch: Latch, moment: float | None, work: Callable[..., R], *arguments: Any) -> R | None:
        try:
            code = latch.take(latch.address)
            if code and not latch.enter(code, moment):
                return None
            result = work(*arguments)
            latch.let(latch.address)
        except BaseException as error:
            latch.abandon(error)
            raise
        return result

    def both_briefly(self, work: Callable[..., R], *arguments: Any) -> R | None:
        """The same with both locks held."""
        put_latch, get_latch = self.slots.put_latch, self.slots.get_latch
        if get_latch is put_latch:
            return self.briefly(put_latch, work, *arguments)
        result: R | None = self.briefly(put_latch, self.briefly, get_latch, work, *arguments)
        return result

    def see_to(self, what: list[int], deadline: float | None, work: Callable[..., object], *arguments: Any) -> None:
        """With the get lock held, do what empties `what`; where its holder was stopped, not now.

        Then it is done when this process next takes, waits, closes, or says that something is done, in whichever thread, unless something
        else is to be done to `what` by then. It may be repeated.
        """
        if what:
            self.owed[id(what)] = (guards.Process.generation, what, work, arguments)
            moment = None if deadline is None else max(deadline, _clock()) + _GRACE
            self._until(self.slots.get_latch, moment, self._pay)

    def pay(self, deadline: float | None) -> None:
        """Do what could not be done before. Raises `TimeoutError` as `within`."""
        if self.owed:
            self.within(self.slots.get_latch, deadline, self._pay)
            self.wake_all()

    def pay_soon(self) -> None:
        """The same, if the lock is to be had soon."""
        if not self.owed:
            return
        if self.briefly(self.slots.get_latch, self._pay):
            self.wake_all()

    def _pay(self) -> bool:
        for key, (generation, what, work, arguments) in list(self.owed.items()):
            if what and generation == guards.Process.generation:  # else a forked child would do it for its parent
                work(*arguments)
            self.owed.pop(key, None)
        return True

    # -- waiting -------------------------------------------------------------------------------------------------------

    def line_up(self, line: int, deadline: float | None, ticket: list[int]) -> None:
        """With the lock held: be counted among those who wait, once; be counted out at the deadline.

        `ticket` says [0] of one who is not counted, else a number of the era in which it was: when some have died, all are counted anew. It
        changes with the count, without a call in between, at which a handler could raise.
        """
        era = self.words[form.WAIT_ERA] + 1
        in_time = deadline is None or _clock() < deadline
        if in_time != (ticket[0] == era):
            self.words[line] += 1 if in_time else -1
        ticket[0] = era if in_time else 0

    def _count_out(self, line: int, ticket: list[int]) -> None:
        """With the lock held: be counted no more."""
        if ticket[0] == self.words[form.WAIT_ERA] + 1:
            self.words[line] -= 1
        ticket[0] = 0

    def count_in(self, line: int, ticket: list[int], deadline: float | None = None) -> None:
        """Be counted among those who wait at a line. Raises `TimeoutError` as `within`."""
        self.within(self._latch(line), deadline, self.line_up, line, None, ticket)

    def count_out(self, line: int, ticket: list[int]) -> None:
        """Be counted no more. Stays counted if the lock is not to be had: then others are woken for nothing."""
        if ticket[0]:
            self.briefly(self._latch(line), self._count_out, line, ticket)

    def _latch(self, line: int) -> Latch:
        return self.slots.put_latch if line == form.PUTTERS else self.slots.get_latch

    def _poll(self, seen: int, deadline: float | None) -> None:
        """Look for a new item without sleeping, for as long as was asked for."""
        words, until = self.words, _clock() + self._spin
        if deadline is not None:
            until = min(until, deadline)
        while words[form.TAIL] == seen and _clock() < until:
            pass

    def rest(self, index: int, seen: int, deadline: float | None) -> None:
        """Sleep until a word changes, a slice at most; now and then look for the dead."""
        if index == form.TAIL:
            self.words[form.ASLEEP] = seen + 1
        objects.wait_change(self.words, index, seen, deadline, self.member)
        # As long as items come there is little that the dead could keep from us, and a look takes long beside an item.
        self.look_now_and_then(SLICE if index == form.FREED or self.words[index] == seen else _SELDOM)

    def may_sleep(self, deadline: float | None) -> bool:
        """Whether one who waits for an item is to sleep a slice now: it is not time to give up, poll, pay, or see that all is over."""
        in_time = deadline is None or deadline - _clock() > SLICE
        return in_time and not self._spin and not self.owed and not self.is_over()

    def sleeper_for_item(self) -> Callable[[int], None]:
        """Make what sleeps, a slice at most, while the low half of the tail is as it is told."""
        return futexes.sleeper(ctypes.addressof(self.words) + 8 * form.TAIL, SLICE)

    def waker_of_takers(self) -> Callable[[], None]:
        """Make what wakes one who sleeps so; of a broadcast, all."""
        count = 1 if self.words[form.MODE] == form.QUEUE else futexes.EVERYONE
        return futexes.waker(ctypes.addressof(self.words) + 8 * form.TAIL, count)

    def served(self, ticket: list[int]) -> None:
        """With the get lock held: be counted no more among those who wait for an item."""
        self._count_out(form.GETTERS, ticket)

    def look_now_and_then(self, pause: float = SLICE) -> None:
        """Look for the dead, and for what this process itself has lost, if that was not done, by this process, for so many seconds."""
        now = _clock()
        if now - self._looked >= pause:
            self._looked = now
            holds.settle()
            self.pay_soon()
            self.look_for_deaths()

    # -- waking --------------------------------------------------------------------------------------------------------

    def _wake(self, index: int, count: int = futexes.EVERYONE) -> None:
        futexes.wake(ctypes.addressof(self.words) + 8 * index, count)

    def stir(self, index: int) -> None:
        """Wake all who sleep on a word, to look again."""
        self._wake(index)

    def wake_takers(self) -> None:
        """After publishing, wake one who waits for an item, unless one has been woken and is on its way; of a broadcast, all.

        Who goes to sleep says which tail it waits for, and those who publish never write that word: so none of them can undo what a
        sleeper says. For a tail for which this process has woken someone it wakes nobody again: who was woken sees to the others
        (`pass_on`), or says something new when it goes to sleep once more.
        """
        asleep = self.words[form.ASLEEP]
        if self.words[form.MODE] == form.BROADCAST:
            self._wake(form.TAIL)
        elif asleep != self._woken and asleep <= self.words[form.TAIL]:
            self._woken = asleep
            self._wake(form.TAIL, 1)

    def pass_on(self) -> None:
        """As one who has come for an item: let those who wait be woken for the next, at once if it is there."""
        self.words[form.ASLEEP] = self.words[form.TAIL] + 1
        if self.slots.depth():
            self._wake(form.TAIL, 1)

    def wake_putters(self) -> None:
        """Wake one who waits for a slot."""
        # A number that none has seen: so that who has looked and not yet slept does not sleep.
        self.words[form.FREED] = time.perf_counter_ns()
        self._wake(form.FREED, 1)

    def wake_joiners(self) -> None:
        """Wake those who wait until all is done."""
        self.words[form.DONE] = time.perf_counter_ns()
        self._wake(form.DONE)

    def wake_all(self) -> None:
        """Wake everyone, to look again."""
        for index in (form.FREED, form.DONE):
            self.words[index] = time.perf_counter_ns()
            self._wake(index)
        self._wake(form.TAIL)

    # -- the dead, and the end -----------------------------------------------------------------------------------------

    def look_for_deaths(self) -> bool:
        """Take from the dead what they have, and wake all; says whether that was anything. Raises `StoreClosedError`."""
        dead = self.slots.dead()
        changed = False
        if dead:
            changed = bool(self.both_briefly(self._bury, dead))  # if not now, they are found another time
            self.wake_all()
        return changed

    def _bury(self, dead: set[int]) -> bool:
        """With both locks held: take from the dead what they have, and count anew who waits: all are woken for that."""
        # First: who dies in this, and is not known to the channel, leaves nothing that would lead another to do it.
        self.count_anew()
        return self.slots.bury(dead)

    def count_anew(self) -> None:
        """With both locks held: forget who waits; wake all after it, so that they are counted again."""
        self.words[form.WAIT_ERA] += 1
        for line in (form.PUTTERS, form.GETTERS, form.JOINERS):
            self.words[line] = 0

    def is_over(self) -> bool:
        """Whether nothing more will be put: it was ended, or there were producers and none is left. What is there may still be taken."""
        words = self.words
        return bool(
            words[form.ENDED]
            or (words[form.PRODUCED] and not self._stays and self.slots.parties.nobody_in(form.PRODUCERS))
        )

    @property
    def label(self) -> str:
        """What messages call the channel."""
        return f"the channel {self.name!r}" if self.name is not None else "this channel"

    def over(self) -> ChannelClosedError:
        """Describe why nothing more can be put or taken."""
        if self.words[form.ENDED]:
            reason = "was ended"
        elif self.is_over():
            reason = "is at its end: all who put into it have closed it or died"
        else:
            reason = "has no consumer any more: all who took from it have closed it or died"
        return ChannelClosedError(
            f"{self.label} {reason}",
            remedy="Make it with stay=True if others shall join later; else this is where to stop.",
            name=self.name,
        )
