"""The public face: which names there are, that they are all there is, and that they stay."""

from __future__ import annotations

import inspect
import os
import pickle
import re
import sys
import types

import pytest

import shmarray
from tests.helpers.processes import run_script

FROZEN = [
    "ArrayExistsError",
    "ArrayNameError",
    "ArrayNotFoundError",
    "BrokenBarrierError",
    "ChannelClosedError",
    "CorruptBlockError",
    "DTypeError",
    "FileFormatError",
    "GuardError",
    "GuardTimeoutError",
    "GuardianWarning",
    "HostError",
    "LostTaskError",
    "PoisonedError",
    "ShapeError",
    "SharedArray",
    "SharedTree",
    "ShmArrayError",
    "Store",
    "StoreClosedError",
    "StoreExistsError",
    "StoreFullError",
    "StoreNotFoundError",
    "__version__",
    "connect",
]
"""What `from shmarray import *` gives. A change here is a change of the public face: say so in CHANGELOG.md."""

TAKEN_OVER = {"BrokenBarrierError": "the one of `threading`, which a user of barriers already catches"}
"""Exported names that are not the package's own, each with the reason."""

ERRORS = {
    "ArrayExistsError": (FileExistsError,),
    "ArrayNameError": (ValueError,),
    "ArrayNotFoundError": (KeyError, FileNotFoundError),
    "CorruptBlockError": (OSError,),
    "DTypeError": (TypeError,),
    "FileFormatError": (ValueError,),
    "GuardTimeoutError": (TimeoutError,),
    "HostError": (ConnectionError,),
    "LostTaskError": (RuntimeError,),
    "PoisonedError": (RuntimeError,),
    "ShapeError": (ValueError,),
    "StoreClosedError": (ValueError,),
    "StoreExistsError": (FileExistsError,),
    "StoreFullError": (MemoryError,),
    "StoreNotFoundError": (FileNotFoundError,),
}


@pytest.mark.core
def test_the_exported_names_are_these_and_sorted() -> None:
    """`__all__` is the frozen list, in order."""
    assert shmarray.__all__ == FROZEN
    assert sorted(FROZEN) == FROZEN


@pytest.mark.core
def test_every_exported_name_is_there_and_no_other_is_public() -> None:
    """Whatever is exported exists; whatever else the door holds is a module of the package, or private."""
    assert [name for name in shmarray.__all__ if not hasattr(shmarray, name)] == []
    others = {
        name: value
        for name, value in vars(shmarray).items()
        if not name.startswith("_") and name not in shmarray.__all__ and name not in ("annotations", "sys")
    }
    assert [name for name, value in others.items() if not isinstance(value, types.ModuleType)] == []


def test_exported_classes_and_functions_say_that_they_are_of_the_package() -> None:
    """A name's module is one of shmarray's, so that a traceback and a pickle name what the user can import."""
    for name in sorted(set(shmarray.__all__) - set(TAKEN_OVER)):
        value = getattr(shmarray, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__module__.split(".")[0] == "shmarray", name
            assert getattr(sys.modules[value.__module__], value.__name__) is value, name
            assert pickle.loads(pickle.dumps(value)) is value, name


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_is_also_the_builtin_that_a_caller_expects(name: str) -> None:
    """Each error is a `ShmArrayError` and the builtin error of that state of the world."""
    error = getattr(shmarray, name)
    assert issubclass(error, (shmarray.ShmArrayError, *ERRORS[name]))
    assert [parent for parent in (shmarray.ShmArrayError, *ERRORS[name]) if not issubclass(error, parent)] == []


@pytest.mark.core
def test_the_version_is_the_one_that_was_built() -> None:
    """`__version__` is that of pyproject.toml."""
    place = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    with open(os.path.join(place, "pyproject.toml"), encoding="utf-8") as file:
        found = re.search(r'^version = "(.*)"$', file.read(), re.MULTILINE)
    assert found is not None
    assert shmarray.__version__ == found[1]


@pytest.mark.core
def test_importing_the_package_says_and_leaves_nothing() -> None:
    """`import shmarray` writes nothing, starts no thread or process, and opens no file of shared memory."""
    source = """
import os, sys, threading
import numpy
from tests.helpers import leaks
before = leaks.Look.now(), threading.active_count(), set(sys.modules)
import shmarray
assert leaks.Look.now().leaked_since(before[0]) == []
assert threading.active_count() == before[1]
assert not {"multiprocessing.managers", "asyncio", "hypothesis", "pytest"} & (set(sys.modules) - before[2])
"""
    assert run_script(source).expect() == ""


def test_elsewhere_than_on_linux_the_import_says_so() -> None:
    """On another system the import fails with an `ImportError` that names it."""
    source = (
        "import sys; sys.platform = 'darwin'\ntry:\n    import shmarray\nexcept ImportError as error:\n    print(error)"
    )
    assert "darwin" in run_script(source).expect()
