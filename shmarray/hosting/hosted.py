"""Custom types, pools and managers, as methods of a store.

Owns: registering types with a class of stores, and the methods that this gives; `Pool`, `manager`, the address on the network.
Must not know: how objects are made, where they live.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from shmarray import exhaustion
from shmarray._format import flags

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shmarray.hosting.manager import HostManager, Registered
    from shmarray.membership import Membership

_BY_REGISTER = "_made_by_register"
_LAST_PORT = 65535


class Hosted:
    """The part of `Store` that has objects in a host: a process of the store, apart from its guardian."""

    _types: ClassVar[dict[str, Registered]] = {}
    _address: tuple[str, int] | None = None

    def _open(self) -> Membership:
        """Give the membership of an open store."""
        raise NotImplementedError

    @classmethod
    def register(
        cls,
        typeid: str,
        callable: Callable[..., Any] | None = None,  # noqa: A002  as in multiprocessing
        proxytype: type | None = None,
        exposed: Sequence[str] | None = None,
        method_to_typeid: Mapping[str, str] | None = None,
        create_method: bool = True,  # noqa: FBT001, FBT002  as in multiprocessing
    ) -> None:
        """Give all stores of this class a method `typeid`, which calls `callable` in the host and returns a proxy of what it makes.

        The arguments are those of `BaseManager.register`: `exposed` names the methods that the proxy has (all public ones),
        `method_to_typeid` the types of what methods return if that is to stay in the host, `proxytype` is a subclass of `BaseProxy`
        to be used for the proxy. The callable stands at the top level of a module; each call of a method runs in a thread of its
        client in the host. Raises `ValueError` for a name that a store uses otherwise, `TypeError` for a wrong argument.

        >>> import collections, shmarray as sa
        >>> class Tallies(sa.Store): pass
        >>> Tallies.register("Tally", collections.Counter, exposed=["update", "most_common"])
        >>> with Tallies() as store:
        ...     tally = store.Tally()
        ...     tally.update("abracadabra")
        ...     tally.most_common(1)
        [('a', 5)]
        """
        _check(typeid, callable, proxytype)
        exposed = exposed or getattr(proxytype, "_exposed_", None)
        method_to_typeid = method_to_typeid or getattr(proxytype, "_method_to_typeid_", None)
        if isinstance(exposed, str) or not isinstance(exposed or (), Iterable):
            message = f"exposed of {typeid!r} must be a list of names of methods, not {exposed!r}"
            raise TypeError(message)
        if not isinstance(method_to_typeid or {}, Mapping):
            message = f"method_to_typeid of {typeid!r} must be a dict of names, not {method_to_typeid!r}"
            raise TypeError(message)
        names = [*(exposed or ()), *(method_to_typeid or {}), *(method_to_typeid or {}).values()]
        if not all(isinstance(name, str) for name in names):
            message = f"names of methods and types are strings; given for {typeid!r} were {names!r}"
            raise TypeError(message)
        if flags.check_block(create_method, f"create_method of {typeid!r}"):
            method = _method(typeid)
            before = getattr(cls, typeid, None)
            if typeid.startswith("_") or (before is not None and not hasattr(before, _BY_REGISTER)):
                message = f"a type cannot be called {typeid!r}: a store has an attribute of that name; choose another"
                raise ValueError(message)
            setattr(cls, typeid, method)
        if "_types" not in vars(cls):
            cls._types = {}
        cls._types[typeid] = (
            callable,
            None if exposed is None else tuple(exposed),
            None if method_to_typeid is None else dict(method_to_typeid),
            proxytype,
        )

    @classmethod
    def _registered(cls) -> dict[str, Registered]:
        """All types registered with this class and those it inherits from."""
        found: dict[str, Registered] = {}
        for kind in reversed(cls.__mro__):
            found.update(vars(kind).get("_types", {}))
        return found

    @exhaustion.explaining
    def _make_hosted(self, typeid: str, args: Any, kwds: Any) -> Any:
        return _manager().create(self._open(), typeid, _needed(typeid, self._registered()), args, kwds)

    def Pool(  # noqa: N802  as in multiprocessing
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
    ) -> Any:
        """Start a pool of worker processes in the host, as `multiprocessing.Manager().Pool` does; returns a proxy of it.

        Arrays of the store pass as handles, to the workers and back. The workers are spawned, so a main module needs its
        `if __name__ == "__main__":`; they end with the pool, with the last proxy of it, or with the store. Raises `HostError`.

        >>> import math, shmarray as sa
        >>> with sa.Store() as store, store.Pool(1) as pool:
        ...     pool.map(math.factorial, [1, 2, 3])
        [1, 2, 6]
        """
        return self._make_hosted("Pool", (processes, initializer, tuple(initargs), maxtasksperchild), {})

    @exhaustion.explaining
    def manager(self) -> HostManager:
        """Give the manager of the store's host, a `SharedMemoryManager` and `SyncManager`: `dict`, `list`, `Namespace`, ...

        What it makes are proxies of objects in another process: slower than what lies in shared memory, and gone with the host.
        Arrays and objects of any importable class may be put into them. Raises `StoreClosedError`, `HostError`.

        >>> import numpy as np, shmarray as sa
        >>> with sa.Store() as store:
        ...     shared = store.manager().dict(a=np.arange(3))
        ...     print(shared["a"].sum())
        3
        """
        manager: HostManager = _manager().HostManager(self._open())
        return manager

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port at which the store serves the network; None where it does not, and where the store was not opened."""
        return self._address

    def _serve_network(self, address: Any, authkey: Any) -> None:
        self._address = _manager().open_network(self._open(), address, bytes(authkey), self._registered())


def check_network(address: Any, authkey: Any) -> None:
    """Check the arguments for the network. Raises `ValueError` or `TypeError`."""
    if address is None and authkey is None:
        return
    if address is None or authkey is None:
        message = "address and authkey are given together: without a key anyone who reaches the address could run code as this user"
        raise ValueError(message)
    if not (isinstance(address, tuple) and [type(part) for part in address] == [str, int]):
        message = f"address is a tuple (host, port), not {address!r}"
        raise TypeError(message)
    if not 0 <= address[1] <= _LAST_PORT:
        message = f"the port in address lies between 0, for a free one, and {_LAST_PORT}, and {address[1]} does not"
        raise ValueError(message)
    if not isinstance(authkey, bytes):
        message = f"authkey is bytes, not {type(authkey).__name__}"
        raise TypeError(message)
    if not authkey:
        raise ValueError("authkey is empty; give some bytes that nobody can guess, as secrets.token_bytes(32)")


def _manager() -> Any:
    return importlib.import_module("shmarray.hosting.manager")


def _check(typeid: Any, function: Any, proxytype: Any) -> None:
    if not isinstance(typeid, str):
        message = f"a typeid is a string, not {typeid!r}"
        raise TypeError(message)
    if function is not None and not hasattr(function, "__call__"):  # noqa: B004  the name `callable` is taken here
        message = f"what makes {typeid!r} objects must be callable, not {function!r}"
        raise TypeError(message)
    if proxytype is not None and not (isinstance(proxytype, type) and hasattr(proxytype, "_callmethod")):
        message = f"proxytype of {typeid!r} must be a subclass of multiprocessing.managers.BaseProxy, not {proxytype!r}"
        raise TypeError(message)


def _method(typeid: str) -> Callable[..., Any]:
    def make(self: Hosted, /, *args: Any, **kwds: Any) -> Any:
        return self._make_hosted(typeid, args, kwds)

    make.__name__ = make.__qualname__ = typeid
    make.__doc__ = f"Make a {typeid} in the host; returns a proxy. Raises what its callable raises, `HostError`."
    setattr(make, _BY_REGISTER, True)
    return make


def _needed(typeid: str, registered: Mapping[str, Registered]) -> dict[str, Registered]:
    """Give that type and those that its methods return, and theirs."""
    found: dict[str, Registered] = {}
    waiting = [typeid]
    while waiting:
        name = waiting.pop()
        if name in registered and name not in found:
            found[name] = registered[name]
            waiting += (found[name][2] or {}).values()
    return found
