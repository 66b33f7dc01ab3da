"""Errors: typed, also the builtin a caller expects, facts as attributes, whole after pickling, last line the remedy."""

from __future__ import annotations

import copy
import errno
import pickle

import pytest

import shmarray
from shmarray import errors
from shmarray.errors import ShmArrayError

ALSO = {
    "ArrayNotFoundError": (KeyError, FileNotFoundError, LookupError, OSError),
    "ArrayExistsError": (FileExistsError, OSError),
    "StoreExistsError": (FileExistsError, OSError),
    "StoreNotFoundError": (FileNotFoundError, OSError),
    "StoreClosedError": (ValueError,),
    "GuardTimeoutError": (TimeoutError, OSError),
    "GuardError": (RuntimeError, ValueError, AssertionError),
    "HostError": (ConnectionError, OSError),
    "LostTaskError": (RuntimeError,),
    "ChannelClosedError": (EOFError, ValueError),
    "PoisonedError": (RuntimeError,),
    "StoreFullError": (MemoryError,),
    "DTypeError": (TypeError,),
    "FileFormatError": (ValueError,),
    "ArrayNameError": (ValueError,),
    "ShapeError": (ValueError,),
    "CorruptBlockError": (OSError,),
}
NUMBER = {
    "ArrayNotFoundError": errno.ENOENT,
    "StoreNotFoundError": errno.ENOENT,
    "ArrayExistsError": errno.EEXIST,
    "StoreExistsError": errno.EEXIST,
    "CorruptBlockError": errno.EIO,
    "GuardTimeoutError": errno.ETIMEDOUT,
}
KINDS = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, ShmArrayError)]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


@pytest.mark.core
def test_the_list_of_errors_is_complete() -> None:
    """Every error is in the table above, in `__all__` and at the package's door."""
    public = {kind.__name__ for kind in KINDS}
    assert public == {*ALSO, "ShmArrayError"}
    assert public < set(errors.__all__)
    assert set(errors.__all__) <= set(shmarray.__all__)


@every_kind
def test_an_error_is_also_the_builtin_that_callers_catch(kind: type[ShmArrayError]) -> None:
    """`except KeyError`, `except MemoryError`, ... work."""
    assert issubclass(kind, ALSO.get(kind.__name__, ()) or (Exception,))
    for builtin in ALSO.get(kind.__name__, ()):
        with pytest.raises(builtin):
            raise kind("it is so", remedy="Do that.")


@every_kind
def test_an_error_says_what_is_so_and_last_what_to_do(kind: type[ShmArrayError]) -> None:
    """`str` gives summary and remedy, also where the builtin's own `__str__` would give a quoted or numbered text."""
    error = kind("it is so", remedy="Do that.", path="/x")
    assert str(error) == "it is so\nDo that."
    assert (error.summary, error.remedy) == ("it is so", "Do that.")
    assert str(kind("it is so")) == "it is so"


@every_kind
def test_facts_are_attributes(kind: type[ShmArrayError]) -> None:
    """Each fact is an attribute; a fact that the error does not carry is an `AttributeError` like any other."""
    error = kind("it is so", name="n", asked=7)
    assert (error.name, error.asked, error.facts) == ("n", 7, {"name": "n", "asked": 7})
    with pytest.raises(AttributeError, match="carries no 'absent'"):
        _ = error.absent
    assert not hasattr(error, "absent")


@every_kind
def test_an_error_of_the_kernels_kind_has_its_number(kind: type[ShmArrayError]) -> None:
    """What is an `OSError` can be told by `errno`."""
    error = kind("it is so")
    assert getattr(error, "errno", None) == NUMBER.get(kind.__name__)


@every_kind
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_crosses_a_process_boundary_whole(kind: type[ShmArrayError], protocol: int) -> None:
    """Type, text, facts and number are the same after pickling and copying."""
    error = kind("it is so", remedy="Do that.", name="n", biggest=[("a", 1)])
    for again in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is kind
        assert str(again) == str(error)
        assert again.facts == error.facts
        assert again.name == "n"
        assert getattr(again, "errno", None) == getattr(error, "errno", None)


@every_kind
def test_an_error_keeps_its_notes_and_can_be_printed(kind: type[ShmArrayError]) -> None:
    """`repr` names the type; `add_note` works as for any exception."""
    error = kind("it is so")
    error.add_note("and that")
    assert repr(error).startswith(kind.__name__)
    assert error.__notes__ == ["and that"]


def test_the_warning_is_a_runtime_warning() -> None:
    """`GuardianWarning` can be turned into an error, or silenced, by the usual filters."""
    assert issubclass(errors.GuardianWarning, RuntimeWarning)
