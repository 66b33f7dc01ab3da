"""A machine with little shared memory: a private mount namespace with a small tmpfs over /dev/shm, seen by one program alone."""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
import textwrap

import pytest

from tests.helpers.processes import FORKS, Finished, run_command

_MOUNT = 'mount -t tmpfs -o "$1" none /dev/shm && shift && exec "$@"'


@functools.cache
def _unshare() -> list[str]:
    """How to get a mount namespace here: as root, or as root of a user namespace; empty if neither may be."""
    for options in (["-m"], ["-m", "-r"]):
        command = ["unshare", *options, "sh", "-c", _MOUNT, "sh", "size=1m", "true"]
        try:
            if subprocess.run(command, capture_output=True, check=False, timeout=30).returncode == 0:
                return command[:-2]
        except (OSError, subprocess.SubprocessError):
            continue
    return []


def run_in_small_memory(source: str, options: str = "size=64m", *, timeout: float = 60) -> Finished:
    """Run a script where /dev/shm is a tmpfs mounted with these options; skips the test where that is not permitted."""
    command = _unshare()
    if not command:
        pytest.skip("no mount namespace may be made here")
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        script.write(textwrap.dedent(source))
        script.flush()
        return run_command(
            [*command, options, sys.executable, "-W", "error", "-W", FORKS, script.name], timeout=timeout
        )
