"""Names for shared objects that were made without one: `store["name"] = queue`.

Owns: the block that has the name and in which a handle to the object lies.
Must not know: what the object is.

The handle hangs on a link that goes with that block (`keeping`), so the name keeps the object, and deleting or replacing it lets go.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import numpy as np

from shmarray import contents, keepers, keeping, locks, objects
from shmarray._format import kinds, layouts
from shmarray._os import segments
from shmarray.errors import CorruptBlockError

if TYPE_CHECKING:
    from shmarray.membership import Membership

_ROOM = 2048  # a handle has some hundred bytes
_BYTES = np.dtype(np.uint8)


def is_shared_object(value: object) -> bool:
    """Say whether a value is one that gets a name by a reference."""
    return isinstance(value, (objects.Shareable, locks.Lock))


def put(member: Membership, value: Any, name: str | None, *, replace: bool) -> Any:
    """Give a shared object a name, and return it. Raises as `drafts.Draft.publish` does."""
    if name is None:
        return value
    made: list[str] = []

    def fill(memory: np.ndarray[Any, Any]) -> None:
        with keeping.kept_in(contents.inode_of(memory)) as links:
            data = keepers.dumps(value)
            if len(data) > _ROOM:
                message = f"the handle has {len(data)} bytes, and there is room for {_ROOM}: a barrier's action must be small to pickle"
                raise ValueError(message)
            made.extend(links)
            memory[: len(data)] = np.frombuffer(data, np.uint8)

    leaf = (_BYTES, layouts.Layout((_ROOM,), None, _ROOM))
    try:
        contents.create(member, name, [leaf], fill=fill, kind=kinds.REFERENCE, replace=replace, keeps=True)
    except BaseException:
        for link in made:
            segments.unlink(link)
        raise
    return value


def _open(segment: segments.Segment) -> Any:
    """Load the object; its handle stays where it is."""
    with keeping.lent():
        try:
            return pickle.loads(contents.root_of(segment))  # type: ignore[arg-type]  # noqa: S301  of this user's processes
        except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError) as error:
            raise CorruptBlockError(
                f"{segment.tag.path} holds a handle that cannot be loaded: {error}",
                remedy="Let both processes use the same version of shmarray, or delete the name.",
                path=segment.tag.path,
                reason=str(error),
            ) from None


objects.add_kind(kinds.REFERENCE, _open)
