"""Worker processes that do to a store what they are told over a pipe; importable, so that every start method finds them."""

from __future__ import annotations

import os
import pickle
from typing import Any

import numpy as np

import shmarray as sa


def serve(store: sa.Store, line: Any) -> None:
    """Carry out commands until the pipe closes: (verb, arguments) in, ("ok", answer) or ("error", class name) out."""
    held: dict[int, Any] = {}
    while True:
        try:
            verb, arguments = line.recv()
        except EOFError:
            return
        if verb == "stop":
            held.clear()
            line.send(("ok", None))
            return
        line.send(_answer(store, held, verb, arguments))


def _answer(store: sa.Store, held: dict[int, Any], verb: str, arguments: tuple[Any, ...]) -> tuple[str, Any]:
    """Carry out a command. An error's traceback holds what the frames held: it is gone before the answer is sent."""
    try:
        return "ok", _do(store, held, verb, arguments)
    except sa.ShmArrayError as error:
        return "error", type(error).__name__


def _fork(held: dict[int, Any]) -> int:
    """Let a child read all that is held, drop it, and end with all exit handlers; gives its exit status."""
    child = os.fork()
    if not child:
        status = 1
        try:
            for array in held.values():
                array.sum()
            held.clear()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _do(store: sa.Store, held: dict[int, Any], verb: str, arguments: tuple[Any, ...]) -> Any:
    match verb, arguments:
        case "create", (slot, name, values):
            held[slot] = store.put(np.array(values, np.int64), name=name)
        case "create tree", (slot, values):
            tree = store.put({"first": np.array(values, np.int64), "rest": [np.zeros(2), (np.ones(1),)]})
            held[slot] = tree["first"]
        case "fork", ():
            return _fork(held)
        case "replace", (name, values):
            store[name] = np.array(values, np.int64)
        case "attach", (slot, name):
            held[slot] = store[name]
        case "send", (slot,):
            return pickle.dumps(held[slot])
        case "receive", (slot, handle):
            held[slot] = pickle.loads(handle)
        case "write", (slot, value):
            held[slot][...] = value
        case "read", (slot,):
            return held[slot].tolist()
        case "look up", (name,):
            return store[name].tolist()
        case "drop", (slot,):
            del held[slot]
        case "unlink", (slot,):
            held[slot].unlink()
        case "delete", (name,):
            del store[name]
        case "names", ():
            return sorted(store)
        case _:
            raise ValueError(verb)
    return None
