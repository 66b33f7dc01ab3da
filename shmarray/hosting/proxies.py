"""Proxies that travel.

Owns: what is added to every type of proxy of `multiprocessing.managers`, the standard ones and a user's own: it pickles through
any queue or argument to any process of the user, its methods may return proxies wherever it is, and it holds its object by the
line of its process (`lines`).
Must not know: how a proxy came about.
"""

from __future__ import annotations

import weakref
from multiprocessing.managers import BaseProxy, Token
from typing import TYPE_CHECKING, Any

from shmarray._format.names import StoreKey
from shmarray.hosting import lines, standard

if TYPE_CHECKING:
    from shmarray.hosting.lines import Line

_travelling: dict[type, type] = {}


class TravellingProxy(BaseProxy):
    """Mixed in over a type of proxy; see the head of this module."""

    _id: str
    _line: Line
    _made_of: tuple[str, tuple[str, ...], type | None]

    def _begin(self, token: Token, authkey: bytes) -> None:
        """What the base class's constructor does, but for its books of connections, which these proxies do not use.

        They are kept under a lock of Python's own making, which an exception out of a signal handler can leave taken for ever.
        """
        self._token, self._id = token, str(token.id)
        self._authkey, self._serializer, self._manager = standard.AuthenticationString(authkey), "pickle", None

    def _incref(self) -> None:
        """Do nothing: the line counts, also in a forked child, where the base class calls this."""

    def _callmethod(self, methodname: str, args: Any = (), kwds: Any = {}) -> Any:  # noqa: B006  as in the base class
        """Call a method of the referent; returns a copy of the result, or a proxy. Raises `HostError`."""
        plain, result = self._line.call(self._id, methodname, args, kwds)
        if plain:
            return result
        (exposed, proxytype), token = result
        return build(self._line, token.id, (token.typeid, exposed, proxytype))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle with a reference of its own, which the first who loads it takes over."""
        key = self._line.key
        where = key.uid, key.store, self._line.address
        return load, (*where, self._id, self._line.lend(self._id), self._made_of)


def build(line: Line, ident: str, made_of: tuple[str, tuple[str, ...], type | None]) -> Any:
    """Make a proxy to an object; a reference to it has been taken for this.

    `made_of` is the object's typeid, its exposed methods and the type of proxy, None for one with just these methods.
    """
    typeid, exposed, proxytype = made_of
    kind: Any = travelling(standard.MakeProxyType(f"AutoProxy[{typeid}]", exposed) if proxytype is None else proxytype)
    proxy = kind.__new__(kind)
    # Before the constructor, which may be the user's own and fail, or call a method.
    weakref.finalize(proxy, line.drop, ident).atexit = False  # the end of the process drops everything by itself
    object.__setattr__(proxy, "_line", line)
    object.__setattr__(proxy, "_made_of", made_of)
    token = Token(typeid, line.address, ident)
    if kind.__init__ is BaseProxy.__init__:
        proxy._begin(token, line.authkey)
    else:  # the user's own
        proxy.__init__(token, "pickle", authkey=line.authkey, exposed=exposed, incref=False)
    return proxy


def load(uid: int, store: int, address: str, ident: str, ticket: str, made_of: Any) -> Any:
    """Load a pickled proxy. Raises `HostError` when object or host is gone, `StoreClosedError` when the store has ended."""
    line = lines.reach(StoreKey(uid, store), address)
    line.take(ident, ticket)
    return build(line, ident, made_of)


def travelling(kind: type) -> type:
    """Give the type of proxy that is `kind` and travels."""
    if kind not in _travelling:
        _travelling[kind] = type(
            kind.__name__, (TravellingProxy, kind), {"__module__": kind.__module__, "__doc__": kind.__doc__}
        )
    return _travelling[kind]
