"""CPython's own tests of `multiprocessing`, with what a store makes in the places of the standard objects.

Owns: for each class of tests in `test._test_multiprocessing` a class of the same methods whose `Queue`, `Lock`, `dict`... are those of a
store; what stands for names that those tests take from the modules directly; running one method in a process of its own.
Must not know: which methods pass.

Nothing of CPython is copied: the module is imported, and changed only in the process that runs one method.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import multiprocessing
import os
import pickle
import re
import signal
import sys
import types
import unittest
import warnings
import weakref
from multiprocessing import forkserver, resource_tracker, shared_memory
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, cast

import shmarray as sa
from shmarray import memory, queues

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkContext

theirs: Any = importlib.import_module("test._test_multiprocessing")
"""CPython's tests. Raises `ImportError` where Python comes without them."""

_FACTORIES = (
    *("Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition", "Event", "Barrier"),
    *("Value", "Array", "Queue", "JoinableQueue", "SimpleQueue", "Pipe"),
)
_store: sa.Store
"""The store of the one method that this process runs."""


# -- what stands in the places of standard classes and modules -----------------------------------------------------------


class _Module:
    """A module some of whose names mean something else."""

    def __init__(self, module: types.ModuleType, **names: Any) -> None:
        self._module = module
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class _StoreAsManager:
    """A store with the three words of a manager that it needs not: start, shutdown, join."""

    @property
    def _made_by(self) -> Any:
        return _store

    def start(self) -> None:
        """Nothing: it runs."""

    shutdown = join = start

    def __getattr__(self, name: str) -> Any:
        return getattr(self._made_by, name)


class _HostAsManager(_StoreAsManager):
    """The manager of the store's host."""

    @property
    def _made_by(self) -> Any:
        return _store.manager()


class _Custom(sa.Store):
    """A store with the types of the tests' own manager."""


for _typeid, (_callable, _exposed, _returned, _proxytype) in theirs.MyManager._registry.items():
    _Custom.register(_typeid, _callable, _proxytype if isinstance(_proxytype, type) else None, _exposed, _returned)


class _CustomManager(_StoreAsManager):
    """Such a store in the place of that manager."""

    def __init__(self, shutdown_timeout: float | None = None) -> None:  # noqa: ARG002  a manager's
        self._process = types.SimpleNamespace(exitcode=0)
        self._custom = _Custom()

    @property
    def _made_by(self) -> Any:
        return self._custom

    def shutdown(self) -> None:
        self._custom.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()


class _Kind(type):
    """A class that stands for one of ours, whose objects are its instances."""

    _ours: type

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, cls._ours)


_called: dict[str, str] = {}
_lists: weakref.WeakValueDictionary[str, memory.ShareableList] = weakref.WeakValueDictionary()


class _SharedMemory(metaclass=_Kind):
    """Bare memory by the constructor of the standard class; who attaches by name does so from outside, as the guide says."""

    _ours = memory.SharedMemory

    def __new__(cls, name: str | None = None, create: bool = False, size: int = 0) -> Any:  # noqa: FBT001, FBT002  as there
        if create:
            return _store.SharedMemory(size)
        if sys.version_info >= (3, 13):
            return shared_memory.SharedMemory(name, track=False)
        attached = shared_memory.SharedMemory(name)
        resource_tracker.unregister(cast("Any", attached)._name, "shared_memory")
        return attached


class _ShareableList(metaclass=_Kind):
    """Lists by the constructor of the standard class: a name is one that the store does not choose, so it is noted here."""

    _ours = memory.ShareableList

    def __new__(cls, sequence: Any = None, *, name: str | None = None) -> Any:
        if sequence is None and name is not None:
            return pickle.loads(pickle.dumps(_lists[name]))
        made = _store.ShareableList(() if sequence is None else sequence)
        if name is not None:
            _called[made.shm.name] = name
        _lists[made.shm.name] = made
        return made


def _name_of(bare: memory.SharedMemory) -> str:
    own = str(bare._array.block_name)
    return _called.get(own, own)


def _packing_format(row: memory.ShareableList, position: int) -> str:
    return str(re.findall(r"\d+s|x*[?]x*|[qd]", row.format)[position])


def _put_ours_in_place() -> None:
    """Let the tests find what a store makes where they take names from modules. In this process alone."""
    made = {name: getattr(_store, name) for name in _FACTORIES}
    theirs.multiprocessing = _Module(
        multiprocessing,
        Manager=_StoreAsManager,
        queues=_Module(cast("Any", multiprocessing).queues, Queue=queues.Queue),
        **made,
    )
    theirs.shared_memory = _Module(shared_memory, SharedMemory=_SharedMemory, ShareableList=_ShareableList)
    theirs.Value = _store.Value
    theirs.MyManager = _CustomManager
    ours: Any = memory
    ours.SharedMemory.name = property(_name_of)
    ours.ShareableList._get_packing_format = _packing_format


# -- the classes of tests ------------------------------------------------------------------------------------------------


class _AsProcesses(theirs.ProcessesMixin):  # type: ignore[misc]
    """What is named like something of `multiprocessing` is made by the store."""

    manager: Any
    locals().update({name: property(attrgetter(f"manager.{name}")) for name in _FACTORIES})

    @classmethod
    def setUpClass(cls) -> None:
        """Use the store of this process."""
        cls.manager = _store

    @classmethod
    def tearDownClass(cls) -> None:
        """Leave nothing."""

    def check_invariant(self, condition: Any) -> None:
        """Of conditions: nobody is waiting (CPython's own looks into its semaphores)."""
        words = condition._words
        assert (words[condition._waiters], words[condition._tokens]) == (0, 0)


class _AsManager(theirs.ManagerMixin):  # type: ignore[misc]
    """What is named like something of a manager is made by the store."""

    manager: Any
    _manager: ClassVar[type] = _StoreAsManager

    @classmethod
    def setUpClass(cls) -> None:
        """Use the store of this process."""
        cls.manager = cls._manager()

    @classmethod
    def tearDownClass(cls) -> None:
        """Leave nothing."""


class _AsHost(_AsManager):
    """What is named like something of a manager is made by the manager of the store's host."""

    _manager = _HostAsManager


class _Plain:
    """The names are taken from modules."""

    manager_class = _StoreAsManager


class _PlainHost:
    manager_class = _HostAsManager


_WAYS: dict[str, type] = {
    "": _AsProcesses,
    "Managed": _AsManager,
    "Hosted": _AsHost,
    "Plain": _Plain,
    "PlainHosted": _PlainHost,
}
_OF_POOLS = "(?!test_(enter|resource_warning|context|traceback)|.*handle_iterable)"
_SUBJECTS: dict[str, dict[str, str]] = {
    "": {
        "_TestQueue": "(?!.*import_lock)",  # which makes a queue of its own
        **dict.fromkeys(("_TestLock", "_TestSemaphore", "_TestCondition", "_TestEvent", "_TestBarrier"), ""),
        **dict.fromkeys(("_TestValue", "_TestArray"), "(?!test_raw)"),
        **dict.fromkeys(("_TestConnection", "_TestPoll"), ""),
        "_TestPicklingConnections": "test_access",
        "_TestSharedCTypes": "(?!test_copy)",
        "_TestSharedMemory": ".*(ShareableList|pickle_unpickle|across_processes|invalid_shared)",
        "_TestProcess": "test_(process|args_argument|sentinel|close|recursion|lose_target_ref|parent_process)$",
        "_TestSubclassingProcess": "test_subclassing",
        "_TestFinalize": "test_finalize",
    },
    # Of pools there are also tests that are none for those of managers: they skip themselves, or test nothing.
    "Managed": {"_TestContainers": "", "_TestPool": _OF_POOLS, "_TestMyManager": ""},
    "Hosted": {
        "_TestQueue": "test_(fork|get|put|qsize|task_done)",
        **dict.fromkeys(("_TestLock", "_TestCondition", "_TestEvent", "_TestContainers"), ""),
        "_TestSemaphore": "(?!test_timeout)",
        "_TestBarrier": "(?!test_thousand)",
        "_TestPool": _OF_POOLS,
    },
    "Plain": {
        "TestSimpleQueue": "",
        "TestSyncManagerTypes": "",
        "TestManagerExceptions": "test_queue_get",
        "TestStartMethod": "test_nested_startmethod",
        "TestIgnoreEINTR": "test_ignore$",
        "TestInitializers": "test_pool_initializer",
        "TestStdinBadfiledescriptor": "test_queue_in_process",
    },
    "PlainHosted": {"TestSyncManagerTypes": ""},
}
"""Which methods of which classes are about something that ours claim, for each way to put ours in place."""


CASES: dict[str, type[unittest.TestCase]] = {}
"""The classes of tests, by name."""
_PATTERNS: dict[str, str] = {}


def _derive() -> None:
    """Make the classes, of those that this version of CPython has; attributes of this module, so that a spawned process finds them."""
    for way, subjects in _SUBJECTS.items():
        for name, pattern in subjects.items():
            mixin, base = _WAYS[way], getattr(theirs, name, None)
            if base is not None:
                title = f"{way}{name.lstrip('_').removeprefix('Test')}"
                bases = (base, mixin) if issubclass(mixin, _AsManager) else (mixin, base)
                CASES[title] = type(title, (*bases, unittest.TestCase), {"__module__": __name__, "__qualname__": title})
                _PATTERNS[title] = pattern
    globals().update(CASES)


_derive()


def methods(case: str) -> list[str]:
    """Tests of a class that are about ours."""
    names = unittest.defaultTestLoader.getTestCaseNames(CASES[case])
    return [name for name in names if re.match(_PATTERNS[case], name)]


# -- running one of them -------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """How a method ended: `passed`, `skipped`, `failed` or `hung`, and what it said."""

    how: str
    said: str


def run(name: str, start_method: str, timeout: float, prepare: Callable[[], object] | None = None) -> Outcome:
    """Run one test of CPython, `CASE.METHOD`, in a process of its own, and all that it starts in a process group of its own."""
    context: ForkContext = multiprocessing.get_context("fork")
    ear, mouth = context.Pipe(duplex=False)
    process = context.Process(target=_run_here, args=(name, start_method, mouth, prepare))
    process.start()
    mouth.close()
    try:
        if not ear.poll(timeout):
            return Outcome("hung", f"no answer within {timeout:g} s")
        try:
            outcome: Outcome = ear.recv()
        except EOFError:
            process.join()
            return Outcome("failed", f"the process ended with {process.exitcode}")
        process.join(timeout)
        if process.exitcode != 0:
            return Outcome("failed", f"the process ended with {process.exitcode} after: {outcome}")
        return outcome
    finally:
        ear.close()
        for number in (signal.SIGABRT, signal.SIGKILL):
            if process.exitcode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(cast("int", process.pid), number)
                process.join(5)
        process.close()


def _run_here(name: str, start_method: str, mouth: Connection, prepare: Callable[[], object] | None) -> None:
    global _store
    os.setpgid(0, 0)
    faulthandler.enable(2)  # of a process that hangs every stack is seen
    warnings.resetwarnings()
    warnings.simplefilter("ignore", DeprecationWarning)
    sys.modules["__main__"] = types.ModuleType("__main__")  # nothing that a spawned process has to run first
    server: Any = cast("Any", forkserver)._forkserver
    server._forkserver_pid = server._forkserver_address = None  # it is the parent's child
    multiprocessing.set_start_method(start_method, force=True)
    result = unittest.TestResult()
    case, method = name.split(".")
    with sa.Store() as _store:
        _put_ours_in_place()
        if prepare is not None:
            prepare()
        unittest.TestSuite([CASES[case](method)]).run(result)
    bad = [text for _, text in result.errors + result.failures]
    skipped = [text for _, text in result.skipped]
    mouth.send(Outcome("failed" if bad else "skipped" if skipped else "passed", "\n".join(bad or skipped)))
    mouth.close()
