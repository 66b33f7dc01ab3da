"""shmarray's channels.

Must not know: anything of shmarray that is not public.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks.rivals.ours import Named
from benchmarks.rivals.streaming import Form, Streams

if TYPE_CHECKING:
    from collections.abc import Callable


class Channel(Named, Streams):
    """`store.channel`: loan and receive where items lie in place, put and get where they are copied."""

    spin: ClassVar[float] = 0.0
    in_place: ClassVar[bool] = True

    def lay(self, form: Form, senders: int, receivers: int) -> Any:
        """Make a channel; it travels by itself."""
        del senders, receivers
        mode = "broadcast" if form.broadcast else "queue"
        store: Any = self.store
        return store.channel(
            form.shape, form.dtype, slots=form.slots, mode=mode, spin=self.spin, name=self.fresh_name()
        )

    def sender(self, line: Any, form: Form, number: int) -> Callable[[Any], None]:
        """Loan, or put."""
        del number
        if not form.in_place:
            return line.put  # type: ignore[no-any-return]  # it is one

        def fill(value: int) -> None:
            with line.loan() as frame:
                frame.fill(value)

        return fill

    def receiver(self, line: Any, form: Form, number: int) -> Callable[[Any], Any]:
        """Receive, or get."""
        del number
        end = line.subscribe() if form.broadcast else line
        if not form.in_place:
            return lambda check: check(end.get())

        def take(check: Any) -> Any:
            with end.receive() as frame:
                return check(frame)

        return take


class Spinning(Channel):
    """The same, polling for a while before it sleeps."""

    spin: ClassVar[float] = 1e-3
