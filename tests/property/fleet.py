"""Worker processes that do to a store what they are told over a pipe; importable, so that every start method finds them."""

from __future__ import annotations

import os
import pickle
from typing import Any

import numpy as np

import shmarray as sa
from tests.helpers import leaks


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
        case "zeros", (slot, length):
            held[slot] = store.zeros(length, np.int64)
        case "guarded write", (slot, value):
            with held[slot].write(timeout=30) as inside:
                inside[...] = value
        case "heal", (slot,):
            with held[slot].write(timeout=30, heal=True):
                pass
        case "stay inside", (slot,):
            access = held[slot].write(timeout=30)
            access.__enter__()
            held[-1 - slot] = access
        case "trim", ():
            return store.trim()
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


class Worker:
    """One worker process and what the model says it holds."""

    def __init__(self, context: Any, store: sa.Store) -> None:
        """Start it, and wait until it is there."""
        # What this process happens to map, of earlier runs too, a forked child maps as well; the control file it leases anew.
        control = os.stat(f"/dev/shm/shmarray.{os.geteuid()}.{store.id}.ctl").st_ino
        self.inherited = {mapping.inode for mapping in leaks.mappings()} - {control}
        self.line, its = context.Pipe()
        self.process = context.Process(target=serve, args=(store, its))
        self.process.start()
        its.close()
        self.held: dict[int, Any] = {}
        self.do("names")

    def ask(self, verb: str, *arguments: Any) -> tuple[str, Any]:
        """Have a command carried out."""
        self.line.send((verb, arguments))
        assert self.line.poll(30), f"no answer to {verb} {arguments}"
        answer: tuple[str, Any] = self.line.recv()
        return answer

    def do(self, verb: str, *arguments: Any) -> Any:
        """Have a command carried out that must succeed."""
        outcome, answer = self.ask(verb, *arguments)
        assert outcome == "ok", f"{verb} {arguments}: {answer}"
        return answer
