"""The two ways to take from a channel.

Owns: what `flow` asks of those who take: the consumers of a queue, who share what there is, and a subscription, which gets all of it.
Must not know: waiting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shmarray._format import channel as form
from shmarray.errors import ChannelClosedError, GuardError

if TYPE_CHECKING:
    from shmarray.channels.flow import Flow
    from shmarray.channels.slots import Slots


class QueueSide:
    """The consumers of a queue, in this process."""

    __slots__ = ("_slots",)

    def __init__(self, slots: Slots) -> None:
        """Take from these slots."""
        self._slots = slots

    def take(self, got: list[int]) -> bool:
        """See `flow.Side`."""
        slots = self._slots
        if not slots.take(slots.parties.me(), got):
            return False
        if not slots.number(got[0]) % form.EACH:
            slots.note_latency(got[0])
        return True

    def give_back(self, slot: int) -> None:
        """See `flow.Side`."""
        self._slots.give_back(slot, self._slots.parties.me())

    lay_down = give_back  # a taken slot is nobody's business but its taker's, with or without the lock

    def untake(self, slot: int) -> None:
        """See `flow.Side`."""
        self._slots.untake(slot, self._slots.parties.me())

    def depth(self) -> int:
        """See `flow.Side`."""
        return self._slots.depth()

    def is_done(self) -> bool:
        """See `flow.Side`. What is to be redelivered when its consumer dies may still come."""
        return self._slots.has_all_back()

    def newly_missed(self) -> int:
        """Nothing: what a queue drops was nobody's."""
        return 0


class SubscriptionSide:
    """One subscription to a broadcast."""

    __slots__ = ("_entry", "_newly_missed", "_slots", "_token", "ahead")

    def __init__(self, slots: Slots, entry: int, token: int, ahead: int) -> None:
        """Take what the subscription at that entry gets; its next item is `ahead`, or it has missed that."""
        self._slots = slots
        self._entry = entry
        self._token = token
        self.ahead = ahead
        self._newly_missed = 0

    @property
    def key(self) -> tuple[int, int]:
        """Entry and token: what other processes know it by."""
        return self._entry, self._token

    def require_there(self) -> None:
        """Look whether it has ended. Raises `ChannelClosedError`."""
        if not self._slots.subscribers.is_there(self._entry, self._token):
            raise self.ended()

    def adopt(self, flow: Flow) -> bool:
        """Be this process's, when it first takes at the latest; false if it has ended."""
        me = flow.slots.parties.me()
        if self._slots.word(self._entry) == me and self._slots.subscribers.is_there(self._entry, self._token):
            return True
        adopted = flow.briefly(flow.slots.get_latch, self._slots.subscribers.adopt, self._entry, self._token, me)
        return adopted is not False  # None: the lock was not to be had

    def desert(self, flow: Flow, *, to_children: bool) -> None:
        """Leave it to be buried, or to children that may use it, if it is still this process's. Runs in finalizers."""
        if flow.slots.parties.is_me(self._slots.word(self._entry)):
            subscribers = self._slots.subscribers
            (subscribers.leave_to_children if to_children else subscribers.desert)(self._entry, self._token)
            flow.wake_all()

    @staticmethod
    def ended() -> ChannelClosedError:
        """Describe that it has ended."""
        return ChannelClosedError(
            "this subscription has ended: it was closed, or whoever had it dropped it or died",
            remedy="Subscribe again; items that were published meanwhile are not seen.",
            name=None,
        )

    def take(self, got: list[int]) -> bool:
        """See `flow.Side`. Raises `GuardError` while another item is held, `ChannelClosedError` if it has ended."""
        slots = self._slots
        held = slots.word(self._entry + form.HELD)
        if held < 0:
            slots.subscribers.settle()
        if not slots.subscribers.adopt(self._entry, self._token, slots.parties.me()):
            raise self.ended()
        if held > 0:
            raise GuardError(
                "this subscription has an item in hand already",
                remedy="Leave the `with` block of the item before, or subscribe once for each thread.",
            )
        if not slots.subscribers.take(self._entry, got):
            return False
        number = slots.number(got[0])
        self._newly_missed, self.ahead = number - self.ahead, number + 1
        if not number % form.EACH:
            slots.note_latency(got[0])
        return True

    def give_back(self, slot: int) -> None:
        """See `flow.Side`."""
        self._slots.subscribers.give_back(self._entry, self._token, slot)

    def lay_down(self, slot: int) -> None:
        """See `flow.Side`. What it counts for is settled by whoever needs the slot, or takes by this next."""
        self._slots.subscribers.lay_down(self._entry, self._token, slot)

    def untake(self, slot: int) -> None:
        """See `flow.Side`."""
        number = self._slots.number(slot)
        self._slots.subscribers.untake(self._entry, self._token, slot)
        if self.ahead == number + 1:
            self.ahead = number - self._newly_missed

    def depth(self) -> int:
        """See `flow.Side`."""
        return self._slots.subscribers.depth(self._entry)

    def is_done(self) -> bool:
        """See `flow.Side`."""
        return not self.depth()

    def missed(self) -> int:
        """How many items it missed so far."""
        return self._slots.word(self._entry + form.MISSED)

    def newly_missed(self) -> int:
        """How many items it missed just before the one that was taken last."""
        return self._newly_missed
