"""C libraries that have less than this machine's, for fresh interpreters: by what `ctypes` finds in them.

Owns: the environment under which every Python that is started, and every one that these start, sees such a library.
Must not know: what shmarray makes of it.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NamedTuple

from tests.helpers.processes import environment

if TYPE_CHECKING:
    from pathlib import Path

_SITE = """
import ctypes

missing, answers, found = {missing!r}, {answers!r}, ctypes.CDLL.__getattr__


def find(library, name):
    if name in missing:
        raise AttributeError(name)
    return (lambda *_: answers[name]) if name in answers else found(library, name)


ctypes.CDLL.__getattr__ = find
"""


class Library(NamedTuple):
    """What is missing, and which functions do nothing but answer with a code."""

    missing: tuple[str, ...] = ()
    answers: tuple[tuple[str, int], ...] = ()


NOT_ROBUST = {
    "no pthread_mutexattr_setrobust": Library(("pthread_mutexattr_setrobust",)),
    "no pthread_mutex_consistent": Library(("pthread_mutex_consistent",)),
    "pthread_mutexattr_setrobust answers ENOSYS": Library(answers=(("pthread_mutexattr_setrobust", errno.ENOSYS),)),
    "pthread_mutex_init answers ENOTSUP": Library(answers=(("pthread_mutex_init", errno.ENOTSUP),)),
    "pthread_mutex_trylock answers ENOSYS": Library(answers=(("pthread_mutex_trylock", errno.ENOSYS),)),
    "does not say who holds it": Library(answers=(("pthread_mutex_trylock", 0),)),
}
"""Libraries without robust mutexes, by what is said of each."""
NO_CLOCKS = Library(("pthread_mutex_clocklock", "sem_clockwait"))
"""glibc before 2.30, and musl."""


def seen(library: Library, place: Path) -> dict[str, str]:
    """Environment for interpreters that see that library; `place` is a directory of its own."""
    place.mkdir(exist_ok=True)
    site = _SITE.format(missing=library.missing, answers=dict(library.answers))
    (place / "sitecustomize.py").write_text(site, encoding="utf-8")
    return {"PYTHONPATH": os.pathsep.join([str(place), environment()["PYTHONPATH"]])}
