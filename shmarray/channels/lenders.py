"""What loans, receipts and coroutines ask of a channel.

Owns: those questions, as protocols, so that they can be put without knowing who answers.
Must not know: any answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shmarray.channels.flow import Flow, Side
    from shmarray.channels.forms import Form
    from shmarray.channels.hands import Giving, Taking
    from shmarray.channels.holds import Hold


class Lender(Protocol):
    """A channel, as those see it who have a slot of it in hand."""

    _array: Any
    _flow: Flow
    _form: Form
    _generation: int
    _giving: Giving | None
    _lends: list[Hold]
    _reads: list[Any]
    _side: Side | None
    _soon: Callable[[Callable[[list[int]], Any], float | None], Any] | None
    _takes: list[Hold]
    _taking: Taking | None
    _words: Any
    _writes: list[Any]

    def put(self, obj: Any, block: bool = True, timeout: float | None = None, *, meta: Any = None) -> bool:  # noqa: FBT001, FBT002
        """Copy an item in."""

    def _get(self, side: Side, deadline: float | None) -> Any:
        """Copy an item out."""

    def _producing(self, deadline: float | None) -> int:
        """Be a producer."""

    def _consuming(self, deadline: float | None = None) -> Side:
        """Be a consumer."""

    def _new_hold(self, side: Side | None) -> Hold:
        """Make what has slots in hand, of a subscription if that is the side."""

    def _view(self, slot: int, lengths: Sequence[int], *, write: bool) -> Any:
        """View a slot."""

    def _spare(self, lengths: Sequence[int]) -> Any:
        """Give memory for an item that is dropped."""

    def _lengths(self, record: int) -> tuple[int, ...]:
        """Lengths of the item whose record that is."""

    def _describe(self, slot: int, lengths: Sequence[int], meta: Any) -> None:
        """Write beside an item what it is."""

    def _meta(self, record: int) -> Any:
        """Metadata of the item whose record that is."""


class Keeper(Protocol):
    """A subscription, as an item sees it that was taken by it."""

    _takes: list[Hold]


class Source(Protocol):
    """What can be received from: a channel, a subscription."""

    def receive(self) -> Any:
        """Take the next item."""

    def areceive(self) -> Any:
        """Take the next item in a coroutine."""
