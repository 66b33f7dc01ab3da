"""Putting into a channel and taking from it.

Owns: the steps of `slots`, each under its lock and with a deadline; giving back what was got when an exception comes out of the midst.
Must not know: how anyone waits (`waits`), NumPy, what is in a slot.

An exception may come out of a signal handler anywhere. So what a thread gets is in a list before it is its own, and is taken out of the
list when it is not any more, both with the lock held: whoever catches the exception gives back what the list says.
"""

from __future__ import annotations

import time
from queue import Empty, Full
from typing import TYPE_CHECKING, Protocol, TypeVar

from shmarray._format import channel as form
from shmarray.channels.waits import Waits

if TYPE_CHECKING:
    from collections.abc import Callable

R = TypeVar("R")


class Side(Protocol):
    """Those who take: the consumers of a queue, or one subscription."""

    def take(self, got: list[int]) -> bool:
        """With the get lock held: take the next item, its slot into `got`; false if there is none."""

    def give_back(self, slot: int) -> None:
        """With the get lock held: be done with an item. May be repeated."""

    def lay_down(self, slot: int) -> None:
        """Without the lock, which is not to be had: be done with an item, in one store. May be repeated."""

    def untake(self, slot: int) -> None:
        """With the get lock held: leave an item, that nobody has seen, to the next. May be repeated."""

    def depth(self) -> int:
        """How many items can be taken."""

    def is_done(self) -> bool:
        """Whether, once nothing more is put, nothing more can be taken."""

    def newly_missed(self) -> int:
        """How many items were dropped, for those who take by this, just before the one that was taken last."""


class Flow(Waits):
    """A channel, as those see it who put and take. One for each mapping, valid as long as that is; keeps it for nobody."""

    __slots__ = ()

    # -- putting -------------------------------------------------------------------------------------------------------

    def claim(self, me: int, deadline: float | None, got: list[int]) -> bool:
        """Claim a slot into `got`; false where the policy is to drop the item.

        Raises `queue.Full`, `ChannelClosedError`, `StoreClosedError`.
        """

        def work(slot: int) -> None:
            try:
                got.append(slot)
                self.slots.claim(slot, me)
            except BaseException:
                self.slots.discard(slot, me)
                got.clear()
                raise

        try:
            return self.claim_and(deadline, work)
        except BaseException:
            if got:
                self.discard(got, me)
            raise

    def claim_and(self, deadline: float | None, work: Callable[[int], object]) -> bool:
        """Find a free slot, and do something with it while the lock is held. Else as `claim`."""
        ticket = [0]
        try:
            while True:
                seen = self.words[form.FREED]
                before = ticket[0]
                if self.within(self.slots.put_latch, deadline, self._try_claim, work, ticket, deadline):
                    return True
                if self._policy == form.DROP_NEW:
                    self.look_now_and_then()  # else what the dead have would be reason to drop for ever
                    return False
                if not ticket[0]:
                    self.look_now_and_then()
                    raise Full
                # Once more when counted: who freed a slot before then did not see that anybody waits.
                if before == ticket[0] and seen == self.words[form.FREED]:
                    self.rest(form.FREED, seen, deadline)
        except BaseException:
            self.count_out(form.PUTTERS, ticket)
            raise

    def _try_claim(self, work: Callable[[int], object], ticket: list[int], deadline: float | None) -> bool:
        """With the put lock held: do it if there is a slot, else be counted among those who wait. Says which of the two."""
        words, slots = self.words, self.slots
        if words[form.ENDED]:
            raise self.over()
        slot = slots.find()
        if slot < 0 and words[form.MODE] and slots.subscribers.are_untidy():
            self._tidy()
            slot = slots.find()
        if slot >= 0:
            self._count_out(form.PUTTERS, ticket)
            work(slot)
            return True
        if self._policy == form.DROP_NEW:
            words[form.REFUSED] += 1
            return False
        if words[form.CONSUMED] and not self._stays and slots.parties.nobody_in(form.CONSUMERS):
            raise self.over()
        self.line_up(form.PUTTERS, deadline, ticket)
        return False

    def _tidy(self) -> None:
        if self.slots.get_latch is self.slots.put_latch:
            self.slots.subscribers.bury({form.GONE})
        else:
            self.briefly(self.slots.get_latch, self.slots.subscribers.bury, {form.GONE})

    def publish(self, got: list[int], me: int, deadline: float | None) -> None:
        """Publish the slot in `got`, and wake whoever waits for it. Raises `TimeoutError` as `within`, with nothing done.

        That filling the slot has taken longer than until the deadline does not matter.
        """
        if deadline is not None:
            deadline = max(deadline, time.monotonic())
        self.within(self.slots.put_latch, deadline, self._publish, got, me)
        if self.words[form.GETTERS]:
            self.wake_takers()

    def _publish(self, got: list[int], me: int) -> None:
        try:
            self.slots.publish(got[0])
        except BaseException:
            self.slots.discard(got[0], me)
            raise
        finally:
            got.clear()

    def discard(self, got: list[int], me: int) -> None:
        """Give back the slot in `got`, which shall not be published."""
        if not self.briefly(self.slots.put_latch, self._discard, got, me):
            self._discard(got, me)  # one store, that none who has the lock can have in mind
        if self.words[form.PUTTERS]:
            self.wake_putters()

    def _discard(self, got: list[int], me: int) -> bool:
        if got:
            self.slots.discard(got[0], me)
            got.clear()
        return True

    # -- taking --------------------------------------------------------------------------------------------------------

    def take(self, side: Side, deadline: float | None, got: list[int]) -> None:
        """Take the next item into `got`. Raises `queue.Empty`, `ChannelClosedError` at the end of the stream, `StoreClosedError`."""
        self.take_and(side, deadline, got, len)

    def take_and(self, side: Side, deadline: float | None, got: list[int], work: Callable[[list[int]], R]) -> R:
        """Take the next item, and do something while the lock is held; what then is in `got` is still to be given back."""
        ticket = [0]
        try:
            self.pay(deadline)
            while True:
                seen = self.words[form.TAIL]
                done = self.within(self.slots.get_latch, deadline, self._try_take, side, got, work, ticket, deadline)
                if done is not None:
                    if self.words[form.GETTERS] and self.words[form.MODE] == form.QUEUE:
                        self.pass_on()
                    result: R = done[0]
                    return result
                if self.is_over() and side.is_done():
                    raise self.over()
                if not ticket[0]:
                    self.look_now_and_then()
                    raise Empty
                if self._spin:
                    self._poll(seen, deadline)
                if seen == self.words[form.TAIL]:
                    self.rest(form.TAIL, seen, deadline)
        except BaseException:
            self.untake(side, got)
            self.count_out(form.GETTERS, ticket)
            raise

    def _try_take(
        self,
        side: Side,
        got: list[int],
        work: Callable[[list[int]], R],
        ticket: list[int],
        deadline: float | None,
    ) -> tuple[R] | None:
        """With the get lock held: take an item if there is one, and do something with it, else be counted. Gives what was done."""
        try:
            if side.take(got):
                self._count_out(form.GETTERS, ticket)
                return (work(got),)
        except BaseException:
            self._untake(side, got)
            raise
        self.line_up(form.GETTERS, deadline, ticket)
        return None

    def untake(self, side: Side, got: list[int], keep: object = None) -> None:
        """Leave the item in `got`, that nobody has seen, to the next; as `see_to`, which then keeps `keep`."""
        if got:
            self.see_to(got, time.monotonic(), self._untake, side, got, keep)
            self.stir(form.TAIL)

    # No loop in what follows: between the step and the clearing there is no point at which a handler could raise, and the step be repeated.

    @staticmethod
    def _untake(side: Side, got: list[int], keep: object = None) -> None:
        del keep
        if got:
            side.untake(got[0])
            got.clear()

    def give_back(self, side: Side, got: list[int]) -> None:
        """Be done with the item in `got`, and wake whoever waits for its slot or for the end of all work."""
        if not self.briefly(self.slots.get_latch, self._give_back, side, got):
            self._lay_down(side, got)
        self.after_giving_back()

    @staticmethod
    def _give_back(side: Side, got: list[int]) -> bool:
        if got:
            side.give_back(got[0])
            got.clear()
        return True

    @staticmethod
    def _lay_down(side: Side, got: list[int]) -> None:
        if got:
            side.lay_down(got[0])
            got.clear()

    def let_go(self, got: list[int]) -> None:
        """Give back the slot in `got`, to be filled or an item of a queue, of a block that was left without its end (`holds`)."""
        me = self.slots.parties.me()
        if not self.briefly(self.slots.get_latch, self.slots.let_go, got, me):
            self.slots.let_go(got, me)
        self.after_giving_back()

    def after_giving_back(self) -> None:
        """Wake those who wait for a slot, or for all to be done."""
        if self.words[form.PUTTERS]:
            self.wake_putters()
        if self.words[form.JOINERS]:
            self.wake_joiners()

    def end(self) -> None:
        """Let nothing more be put, by anyone."""
        self.words[form.ENDED] = 1
        self.wake_all()
