"""The manager of a store's host, and making objects there.

Owns: `HostManager`, a `SharedMemoryManager` and `SyncManager` in one that is connected from the start; what goes along when an
object of a registered type is made.
Must not know: how types are registered (`hosted`), where the host is.
"""

from __future__ import annotations

import functools
import pickle
from multiprocessing import resource_tracker
from multiprocessing.managers import BaseManager, SharedMemoryManager, SyncManager
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, NoReturn

from shmarray.errors import HostError
from shmarray.hosting import lines, proxies, reaching, standard

if TYPE_CHECKING:
    from collections.abc import Mapping
    from multiprocessing.shared_memory import ShareableList, SharedMemory

    from shmarray.membership import Membership

Registered = tuple[Any, Any, Any, Any]
"""Callable, exposed methods, types of what methods return, type of proxy (None: made of the exposed methods)."""

_METHODS = [name for name in standard.REGISTRY if hasattr(SyncManager, name)]


class HostManager(SharedMemoryManager, SyncManager):
    """Makes `dict`, `list`, `Namespace`, `Queue`, `Event`, `Barrier`... in the host of a store, and gives proxies.

    Connected when `Store.manager()` gives it; it ends with the store, so `shutdown` and the end of a `with` block do nothing.
    """

    def __init__(self, member: Membership) -> None:
        """Stand for the host of a store; it is started if none runs. Raises `HostError`."""
        self._member = member
        self._line = lines.reach_host(member)
        # SharedMemoryManager's own constructor would start a resource tracker, which unlinks what others still use.
        BaseManager.__init__(self, self._line.address, self._line.authkey)
        self._state.value = standard.STARTED  # type: ignore[attr-defined]

    def shutdown(self) -> None:  # type: ignore[override]  # a method and not a finalizer
        """Do nothing: the host ends with the store."""

    def __reduce__(self) -> NoReturn:
        """Refuse: the store pickles."""
        raise TypeError("a manager does not pickle; pass the store, or the proxies that the manager made")

    @classmethod
    def register(cls, *_: Any, **__: Any) -> NoReturn:
        """Refuse: types are registered with the store."""
        raise TypeError("register types with the store: Store.register(...), which takes the same arguments")

    def _create(self, typeid: str, /, *_: Any, **__: Any) -> NoReturn:
        message = f"{typeid!r} is made by its method"
        raise TypeError(message)

    def SharedMemory(self, size: int) -> SharedMemory:  # noqa: N802  as in SharedMemoryManager
        """Make a segment of the standard library; it is unlinked when the host ends."""
        block = super().SharedMemory(size)
        _leave_to_host(block)
        return block

    def ShareableList(self, sequence: Any) -> ShareableList[Any]:  # noqa: N802  as in SharedMemoryManager
        """Make a list of the standard library; its segment is unlinked when the host ends."""
        made = super().ShareableList(sequence)
        _leave_to_host(made.shm)
        return made


# A registry of our own: the base classes share theirs, and whoever registers a type with one would change ours.
HostManager._registry = dict(standard.REGISTRY)  # type: ignore[attr-defined]


def _leave_to_host(block: SharedMemory) -> None:
    """Keep this process's resource tracker from unlinking what the host's now looks after."""
    resource_tracker.unregister(block._name, "shared_memory")  # type: ignore[attr-defined]


def _method(typeid: str) -> Any:
    def make(self: HostManager, /, *args: Any, **kwds: Any) -> Any:
        return create(self._member, typeid, {}, args, kwds)

    functools.update_wrapper(make, getattr(SyncManager, typeid))
    make.__doc__ = (
        f"Make what `SyncManager.{typeid}` makes, in the host; returns a proxy. Raises `HostError`, `StoreClosedError`."
    )
    return make


for _typeid in _METHODS:
    setattr(HostManager, _typeid, _method(_typeid))


def create(member: Membership, typeid: str, types: Mapping[str, Registered], args: Any, kwds: Any) -> Any:
    """Make an object in the host, which is started if none runs; returns a proxy.

    Raises what the callable raises, `TypeError` for what cannot be pickled, `HostError` when the host dies meanwhile.
    """
    line = lines.reach_host(member)
    served = {name: _checked(name, registered) for name, registered in types.items()}
    with ForkingPickler.dumps((served, typeid, args, kwds)) as request:
        ident, exposed, proxytype = line.make(bytes(request))
    return proxies.build(line, ident, (typeid, exposed, proxytype))


def open_network(member: Membership, address: Any, authkey: bytes, types: Mapping[str, Registered]) -> tuple[str, int]:
    """Start the host with a door to the network; returns the address it is bound to. Raises `HostError`, `TypeError`."""
    served = {name: _checked(name, registered) for name, registered in types.items()}
    place = reaching.have_host(member, (address, authkey), pickle.dumps(served))
    if place.network is None:
        raise HostError(f"the host of {member.label} runs without a door to the network", remedy="Open a new store.")
    return place.network


def _checked(typeid: str, registered: Registered) -> Registered:
    """Give a registration as the host has it. Raises `TypeError` if it cannot be pickled."""
    function, exposed, method_to_typeid, proxytype = registered
    for what, value in (("callable", function), ("proxytype", proxytype)):
        try:
            pickle.dumps(value)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            message = (
                f"the {what} of the type {typeid!r}, {value!r}, cannot be sent to the host, a process of its own ({error})\n"
                "Register a class or function that stands at the top level of a module."
            )
            raise TypeError(message) from None
    return function, exposed, method_to_typeid, standard.AutoProxy if proxytype is None else proxytype
