"""One who enters and leaves a guard; importable without what tests import, which takes a spawned process longer than all else.

Owns: doing what comes over a pipe.
Must not know: who else does, and what must come of it.
"""

from __future__ import annotations

from typing import Any

import shmarray as sa


def act(array: sa.SharedArray, line: Any) -> None:
    """Do what comes over the pipe: enter and leave the guard, without waiting longer than told."""
    inside: list[Any] = []
    lock = array.lock
    while True:
        verb, argument = line.recv()
        try:
            if verb == "leave":
                access = inside.pop()
                access.release() if access is lock else access.__exit__(None, None, None)
                answer: Any = True
            elif verb == "lock":
                answer = lock.acquire(timeout=argument)
                inside += [lock] if answer else []
            else:
                access = array.read(timeout=argument) if verb == "read" else array.write(argument, heal=verb == "heal")
                access.__enter__()
                inside.append(access)
                answer = True
        except sa.GuardTimeoutError:
            answer = False
        except sa.PoisonedError as error:
            answer = ("poisoned", error.pid)
        except sa.GuardError:
            answer = "refused"
        line.send(answer)
