"""A store on the network: its types for plain managers of `multiprocessing`, at an address that has to be asked for."""

from __future__ import annotations

import os
import signal
import socket
import textwrap
from multiprocessing import AuthenticationError
from multiprocessing.managers import BaseManager
from typing import Any

import pytest

import shmarray as sa
from tests.helpers import leaks
from tests.helpers.processes import run_script, wait_until
from tests.hosting.things import Things

KEY = b"a key for tests"
HERE = ("127.0.0.1", 0)


class Remote(BaseManager):
    """What a client elsewhere has: a plain manager that knows the type by its name alone."""

    Thing: Any


Remote.register("Thing")


def remote(address: tuple[str, int] | None, key: bytes = KEY) -> Remote:
    """Connect as a client elsewhere does."""
    manager = Remote(address, key)
    manager.connect()
    return manager


def refuses(address: Any) -> bool:
    """Say whether nobody listens there."""
    with socket.socket() as client:
        return client.connect_ex(address) != 0


@pytest.mark.core
def test_a_plain_manager_elsewhere_makes_and_uses_registered_types() -> None:
    """Without shmarray, a client connects with the key, makes a registered type and calls it; port 0 gives a free port."""
    source = """
    import sys
    from multiprocessing.managers import BaseManager
    class Remote(BaseManager): pass
    Remote.register("Thing")
    manager = Remote(("127.0.0.1", int(sys.argv[1])), b"a key for tests")
    manager.connect()
    thing = manager.Thing(5)
    thing.set(thing.get() + 1)
    print(thing.get(), "shmarray" in sys.modules)
    """
    with Things(address=HERE, authkey=KEY) as store:
        assert store.address is not None
        host, port = store.address
        assert host == "127.0.0.1"
        assert port > 0
        assert run_script(textwrap.dedent(source), str(port)).expect() == "6 False\n"
        assert store.Thing(1).get() == 1
        where = store.address
    wait_until(lambda: refuses(where), message="the address is open after the store was closed")


def test_a_wrong_key_is_refused() -> None:
    """Who does not know the key gets nothing, and the store goes on; the store's own key is another."""
    with Things(address=HERE, authkey=KEY) as store:
        with pytest.raises(AuthenticationError):
            remote(store.address, b"another key")
        with pytest.raises(AuthenticationError):
            remote(store.address, bytes.fromhex(store._member.control.key))
        thing = remote(store.address).Thing(3)
        assert thing.get() == 3
        del thing


def test_a_store_is_not_on_the_network_unless_asked() -> None:
    """By default nothing listens and `address` is None; wrong arguments are refused before anything is made."""
    before = leaks.shm_entries()
    with Things() as store:
        assert store.address is None
    wait_until(lambda: leaks.shm_entries() == before)
    wrong: Any = None
    for address, key, error in (
        (HERE, None, ValueError), (None, KEY, ValueError), (HERE, b"", ValueError), (HERE, "text", TypeError),
        ("127.0.0.1", KEY, TypeError), (("127.0.0.1", "80"), KEY, TypeError),
    ):  # fmt: skip
        wrong = address, key
        with pytest.raises(error):
            Things(address=wrong[0], authkey=wrong[1])
    assert leaks.shm_entries() == before


def test_an_address_that_is_taken_is_an_error() -> None:
    """The store is not opened, and nothing is left of it."""
    before = leaks.shm_entries()
    with socket.create_server(HERE) as taken, pytest.raises(sa.HostError, match="in use"):
        Things("hosting-taken", address=taken.getsockname(), authkey=KEY)
    wait_until(lambda: leaks.shm_entries() == before)
    Things("hosting-taken").close()


def test_after_a_hosts_death_the_same_address_is_served_again() -> None:
    """The next object made starts a host that listens at the port which the first was given, and knows the types."""
    with Things(address=HERE, authkey=KEY) as store:
        thing = store.Thing()
        os.kill(thing.where()[0], signal.SIGKILL)
        assert store.Thing(2).get() == 2
        elsewhere = remote(store.address).Thing(4)
        assert elsewhere.get() == 4
        del elsewhere
