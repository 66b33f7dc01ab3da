"""Finding the host of a store.

Owns: asking the guardian for it, which starts one if none runs; what a host has to know of the process that asks first.
Must not know: what is done with a host.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from multiprocessing import spawn
from multiprocessing.connection import Client, Connection, answer_challenge, deliver_challenge
from typing import TYPE_CHECKING, Any, NamedTuple

from shmarray.errors import HostError
from shmarray.guardian import launch, server
from shmarray.hosting import standard

if TYPE_CHECKING:
    from shmarray._format.names import StoreKey
    from shmarray.membership import Membership

_PATIENCE = 30.0
_REMEDY = (
    "Arrays go on without it. Was the guardian killed (`python -m shmarray ls`)? Then managed objects need a new store."
)


class Place(NamedTuple):
    """Where a host is: its address, and the one at which the network reaches it, if it does."""

    address: str
    network: tuple[str, int] | None


def connect(address: Any, key: bytes) -> Connection:
    """Connect to a server of `multiprocessing.managers`. Raises `OSError` where none is, or none that answers in time."""
    connection: Connection = Client(address)
    try:
        # A process that is stopped accepts connections all the same, and says nothing.
        if not connection.poll(_PATIENCE):
            message = f"it has not answered for {_PATIENCE:.0f} s; is it stopped?"
            raise TimeoutError(message)
        answer_challenge(connection, key)
        deliver_challenge(connection, key)
    except BaseException:
        connection.close()
        raise
    return connection


def ask(address: Any, key: bytes, verb: str, *args: Any) -> Any:
    """Ask a server of `multiprocessing.managers` something, over a connection of its own, however long it takes."""
    with connect(address, key) as connection:
        connection.send((None, verb, args, {}))
        return answer(connection)


def answer(connection: Connection) -> Any:
    """Wait for the answer to a request."""
    kind, result = connection.recv()
    if kind == "#RETURN":
        return result
    try:
        raise standard.convert_to_error(kind, result)
    finally:
        del result  # no cycle of an error and this frame


def have_host(
    member: Membership, network: tuple[Any, bytes] | None = None, served: bytes = b"", lost: str | None = None
) -> Place:
    """Have the guardian start a host unless one runs. Raises `HostError` when there is none to be had.

    `network` is an address to be reached at as well, and its key; `served` are types to be served from the start, pickled; `lost` is
    the address of a host that does not answer any more.
    """
    prepared = _preparation(member.key)
    prepared["lost"] = lost
    if network is not None:
        prepared.update(network=network, served=served)
    good, found = _ask_guardian(member, prepared)
    if good:
        return Place(**found)
    remedy = _REMEDY if network is None else f"Is address={network[0]!r} of this machine, and the port free? {_REMEDY}"
    raise HostError(f"the host of {member.label} could not be started: {found}", remedy=remedy, store=_name(member))


def _name(member: Membership) -> str:
    return member.control.name or f"{member.key.store:016x}"


def _ask_guardian(member: Membership, prepared: dict[str, Any]) -> tuple[bool, Any]:
    deadline = time.monotonic() + _PATIENCE
    while True:
        with contextlib.ExitStack() as stack:
            try:
                key = bytes.fromhex(member.control.key)
                connection = stack.enter_context(connect(server.address(member.key), key))
                connection.send((None, "host", (prepared,), {}))
                while not connection.poll(min(0.5, _PATIENCE)):  # in slices, for it may die
                    if time.monotonic() > deadline or launch.guardian_of(member) is None:
                        return False, "the guardian does not answer"
                good, found = answer(connection)
            except (ConnectionError, FileNotFoundError, EOFError) as error:
                # It opens its door some tens of milliseconds after it was started; there is nothing to wait on but itself.
                if time.monotonic() < deadline and launch.guardian_of(member) is not None:
                    time.sleep(2e-3)
                    continue
                member.require_open()
                return False, f"the guardian does not answer ({error})"
            except TimeoutError as error:
                return False, f"the guardian does not answer ({error})"
            else:
                return good, found


def _preparation(key: StoreKey) -> dict[str, Any]:
    """What a spawned process is told by `multiprocessing`, and how to start it; plain types, for the guardian passes it on."""
    told = spawn.get_preparation_data("shmarray-host")
    del told["dir"]  # it may be gone before the host is; the host stays in the root directory
    told["sys_path"] = [os.fspath(place) for place in told["sys_path"] if isinstance(place, (str, os.PathLike))]
    told["authkey"] = bytes(told["authkey"])
    told["executable"] = os.fsdecode(spawn.get_executable())
    told["flags"] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    told["store"] = (key.uid, key.store)
    return told
