#!/usr/bin/env python3
"""Everything a developer or a machine does with this project, on nothing but Python: `python3 dev.py --help`.

    python3 dev.py demo      see what shmarray is for
    python3 dev.py test      run the whole suite here and its core on every other Python found

Each command makes the virtual environment that it needs (`.venv`, and `.venv-X.Y` for other Pythons) and uses it again until
`pyproject.toml` changes. Owns: environments and the commands of the project. Must not know: what is in the package.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import fcntl
import hashlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import IO, TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

ITSELF = os.path.abspath(__file__)
ROOT = os.path.dirname(ITSELF)
OLDEST = (3, 11)
STAMP = "made-by-dev.py"
SHM = "/dev/shm"  # noqa: S108  all that the tests make is there
UNSHARE = ["unshare", "--mount"]
MOUNT = ["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", SHM]
OUTSIDE = "SHMARRAY_DEV_OUTSIDE"
DEADLINE = 15  # seconds that a guardian has to end after the last of its store
PROBE = """
import json, platform, sys, sysconfig
free = "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
base = getattr(sys, "_base_executable", None) or sys.executable  # of a virtual environment: what it was made from
print(json.dumps([sys.implementation.name, list(sys.version_info[:3]), "%d.%d" % sys.version_info[:2] + free, base]))
"""


class Stop(Exception):  # noqa: N818  it is how this program ends, not an error class of a library
    """Ends the program with a message for a person."""


def say(text: str) -> None:
    """Show progress."""
    print(f"\033[1m[dev] {text}\033[0m" if sys.stdout.isatty() else f"[dev] {text}", flush=True)


@contextlib.contextmanager
def attended(*processes: subprocess.Popen[bytes]) -> Iterator[None]:
    """Wait for processes in here: Ctrl-C reaches them too, and they are waited for; where this program is to end, so are they."""
    try:
        yield
    except KeyboardInterrupt:
        for process in processes:
            try:
                process.wait(timeout=20)
            except (KeyboardInterrupt, subprocess.TimeoutExpired):
                process.kill()
        raise
    except SystemExit:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
        raise


def run(command: list[str], cwd: str = ROOT, env: dict[str, str] | None = None) -> int:
    """Run a program to its end and return its status, as a shell does."""
    with subprocess.Popen(command, cwd=cwd, env=env) as process, attended(process):
        return shell_status(process.wait())


def shell_status(status: int) -> int:
    """Say how a process ended as a shell does."""
    return status if status >= 0 else 128 - status


def must(command: list[str], cwd: str = ROOT, env: dict[str, str] | None = None) -> None:
    """Run a program that has to succeed."""
    status = run(command, cwd, env)
    if status:
        message = f"this ended with status {status}: {' '.join(command)}"
        raise Stop(message)


# Pythons


class Python(NamedTuple):
    """An interpreter that was seen to run; `name` is what its environment is called after ("3.13", "3.13t")."""

    path: str
    version: tuple[int, ...]
    name: str

    def __str__(self) -> str:
        """As in a list of results."""
        return f"Python {'.'.join(map(str, self.version))}{'t' * self.name.endswith('t')} ({self.path})"


def probe(path: str) -> Python | None:
    """Run an interpreter and ask what it is; None unless it is a CPython that can be used."""
    try:
        done = subprocess.run(
            [path, "-I", "-c", PROBE], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=True, text=True
        )
        implementation, version, name, executable = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    if implementation != "cpython" or tuple(version[:2]) < OLDEST:
        return None
    return Python(os.path.realpath(executable), tuple(version), name)


def other_pythons(but: str) -> list[Python]:
    """Every other CPython of this machine that is new enough: the newest of each X.Y, in order."""
    candidates = []
    for place in os.get_exec_path():
        with contextlib.suppress(OSError):
            names = [name for name in sorted(os.listdir(place)) if re.fullmatch(r"python(3(\.\d+t?)?)?", name)]
            candidates += [os.path.join(place, name) for name in names]
    pyenv = os.path.join(os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv"), "versions")
    if os.path.isdir(pyenv):
        candidates += [os.path.join(pyenv, name, "bin", "python") for name in sorted(os.listdir(pyenv))]
    found: dict[str, Python] = {}
    for path in dict.fromkeys(os.path.realpath(path) if "/shims/" not in path else path for path in candidates):
        python = probe(path)
        if python and python.name != but and (python.name not in found or python.version > found[python.name].version):
            found[python.name] = python
    return sorted(found.values(), key=lambda python: (python.version, python.name))


def this_python() -> Python:
    """The interpreter that runs this file."""
    if sys.version_info < OLDEST:
        newer = (
            "".join(f"\n    {python.path} {sys.argv[0]}" for python in other_pythons("")) or " (none was found here)"
        )
        message = f"shmarray needs Python 3.11 or newer, and this is {sys.version.split()[0]}. Run it with a newer one:{newer}"
        raise Stop(message)
    python = probe(sys.executable)
    if python is None:
        message = f"{sys.executable} is no CPython that can be used: shmarray is tested on CPython alone"
        raise Stop(message)
    return python


# Environments


def environment(extras: set[str], python: Python | None = None) -> str:
    """Make, or use again, a virtual environment with this project and these extras in it; returns its interpreter."""
    folder = os.path.join(ROOT, f".venv-{python.name}" if python else ".venv")
    python = python or this_python()
    inside = os.path.join(folder, "bin", "python")
    created = not os.path.exists(folder)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, STAMP), "a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # of two commands at once the second waits, and finds it made
        stamp = Stamp(file, created=created)
        works = probe(inside) is not None
        base = f"{python.path} {python.version}"
        if stamp.facts["created"] and not (works and stamp.facts.get("base") == base):
            make(python, folder)
            stamp.write(base=base)
        elif not works:
            message = f"{folder} was not made by dev.py and has no usable Python in it: move it away and try again"
            raise Stop(message)
        fresh = stamp.facts.get("project") == digest()
        have = set(stamp.facts.get("extras", [])) if fresh else set()
        if not fresh or not extras <= have:
            want = sorted(extras | have)
            say(
                f"installing the project into {os.path.basename(folder)}" + (f" with {', '.join(want)}" if want else "")
            )
            install(python, inside, ["--editable", f".[{','.join(want)}]" if want else "."])
            stamp.write(project=digest(), extras=want)
    return inside


class Stamp:
    """What is known of an environment, in a file inside it: who created it, with which Python, and what was installed."""

    def __init__(self, file: IO[str], *, created: bool) -> None:
        """Read an open file; an empty one begins with `created`: an environment of the user's own is never rebuilt."""
        self._file = file
        file.seek(0)
        text = file.read()
        self.facts: dict[str, Any] = json.loads(text) if text else {}
        if not text:
            self.write(created=created)

    def write(self, **facts: object) -> None:
        """Change some facts; a new `base` means that nothing is installed any more."""
        if "base" in facts:
            self.facts = {"created": self.facts["created"]}
        self.facts.update(facts)
        self._file.truncate(0)
        json.dump(self.facts, self._file)
        self._file.flush()


def digest() -> str:
    """What an environment depends on."""
    with open(os.path.join(ROOT, "pyproject.toml"), "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def has(path: str, module: str) -> bool:
    """Say whether an interpreter can import a module."""
    command = [path, "-I", "-c", f"import {module}"]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0


def make(python: Python, folder: str) -> None:
    """Make an empty virtual environment; what a former one left in that folder is replaced."""
    say(f"making {os.path.relpath(folder, ROOT)} with {python}")
    package = f"python{python.name}-venv"
    if not has(python.path, "venv"):
        message = f"{python} has no module `venv`; install it (on Debian and Ubuntu: apt install {package})"
        raise Stop(message)
    options = [] if has(python.path, "ensurepip") else ["--without-pip"]
    if options and not has(python.path, "pip"):
        message = (
            f"{python} has neither `ensurepip` nor `pip`; install one (on Debian and Ubuntu: apt install {package})"
        )
        raise Stop(message)
    for part in ("bin", "include", "lib"):  # not --clear, which would remove the stamp that is locked
        shutil.rmtree(os.path.join(folder, part), ignore_errors=True)
    must([python.path, "-m", "venv", *options, folder])


def pip(python: Python, inside: str) -> list[str]:
    """Command of an environment's own pip, or of the interpreter's where the environment has none."""
    return [inside, "-m", "pip"] if has(inside, "pip") else [python.path, "-m", "pip", "--python", inside]


def install(python: Python, inside: str, what: list[str]) -> None:
    """Install into an environment."""
    options = ["--disable-pip-version-check", "--no-input", "--progress-bar=off", "--only-binary=numpy"]
    must([*pip(python, inside), "install", *options, *what])


# Commands


def demo(arguments: list[str]) -> int:
    """Run the demo: `python -m shmarray demo`."""
    return run([environment(set()), "-m", "shmarray", "demo", *arguments])


def test(arguments: list[str]) -> int:
    """Run the suite here, then its core on every other Python found; with pytest's arguments, those here and no more."""
    here = this_python()
    if arguments:
        return run([environment({"test"}), "-m", "pytest", *arguments])
    others = other_pythons(here.name)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        made = [pool.submit(environment, {"test"}, python) for python in (None, *others)]
    most, inside = at_once(), made[0].result()
    results = [(here, "the whole suite", *timed([[inside, "-m", "pytest"]])[0])]
    skipped, cores = [], []
    for python, its in zip(others, made[1:], strict=True):
        try:
            inside = its.result()
        except Stop as reason:
            say(f"skipped: {reason}")
            skipped.append(f"{python}: the core SKIPPED, no environment could be made")
            continue
        cores.append((python, [inside, "-m", "pytest", "-p", "no:cacheprovider", "-m", "core"]))
    most = at_once()
    for some in (cores[first : first + most] for first in range(0, len(cores), most)):
        say(f"the core of the suite on {' and on '.join(str(python) for python, _ in some)}")
        ends = timed([command for _, command in some])
        results += [(python, "the core", *end) for (python, _), end in zip(some, ends, strict=True)]
    say("results")
    for line in [*(f"{python}: {what} {result}" for python, what, result, _ in results), *skipped]:
        say(f"  {line}")
    return max(status for *_, status in results)


def at_once() -> int:
    """Say how many runs of the tests may go on at once: one for each core, where each can have shared memory of its own.

    Stores are found by their names, and what the dead left is removed by whoever comes next.
    """
    try:
        done = subprocess.run([*UNSHARE, *MOUNT], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError:  # there is no such program
        return 1
    return 1 if done.returncode else len(os.sched_getaffinity(0))


def timed(commands: list[list[str]]) -> list[tuple[str, int]]:
    """Run tests, several at once apart; returns what became of each in words, and the exit status.

    What the first says is shown as it comes, what the others say at the end.
    """
    if len(commands) > 1:
        commands = [[sys.executable, ITSELF, "apart", *command] for command in commands]
    start = time.monotonic()
    results: dict[int, tuple[str, int]] = {}
    with contextlib.ExitStack() as stack:
        outputs = [None, *(stack.enter_context(tempfile.TemporaryFile()) for _ in commands[1:])]
        processes = [
            stack.enter_context(subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output))
            for command, output in zip(commands, outputs, strict=True)
        ]
        with attended(*processes):
            watched = {os.pidfd_open(process.pid): place for place, process in enumerate(processes)}
            while watched:
                for watch in select.select(list(watched), [], [])[0]:
                    place = watched.pop(watch)
                    os.close(watch)
                    status = shell_status(processes[place].wait())
                    took = time.monotonic() - start
                    results[place] = (f"{'FAILED' if status else 'passed'} in {took:.0f} s", status)
        for output in filter(None, outputs):
            output.seek(0)
            sys.stdout.write(output.read().decode(errors="replace"))
    return [results[place] for place in range(len(commands))]


def apart(arguments: list[str]) -> int:
    """Run a command with a /dev/shm of its own, which takes root; fails as well if a name stays there."""
    outside, here = os.environ.pop(OUTSIDE, None), os.readlink("/proc/self/ns/mnt")
    if outside is None:
        return run([*UNSHARE, sys.executable, ITSELF, "apart", *arguments], env=os.environ | {OUTSIDE: here})
    if outside == here:
        message = "this is still the /dev/shm of all"
        raise Stop(message)
    must(MOUNT)
    status = run(arguments)
    until = time.monotonic() + DEADLINE
    while (left := os.listdir(SHM)) and time.monotonic() < until:
        time.sleep(0.2)
    for name in left:
        say(f"left behind: {SHM}/{name}")
    return status or bool(left)


def lint(arguments: list[str]) -> int:
    """Check style and format with ruff; `--fix` mends what can be mended."""
    ruff = [environment({"lint"}), "-m", "ruff"]
    fix = "--fix" in arguments
    found = run([*ruff, "check", *arguments])
    return found or run([*ruff, "format", *([] if fix else ["--diff"])])


def types(arguments: list[str]) -> int:
    """Check types with mypy, strictly: package, tests, benchmarks."""
    inside = environment({"lint", "test"})
    with open(os.path.join(ROOT, "pyproject.toml"), encoding="utf-8") as file:
        listed = re.search(r"^files = (\[.*\])$", file.read(), re.MULTILINE)
    there = [name for name in json.loads(listed[1]) if os.path.exists(os.path.join(ROOT, name))] if listed else []
    return run([inside, "-m", "mypy", *(arguments or there)])


def bench(arguments: list[str]) -> int:
    """Run the benchmarks: `python -m benchmarks`."""
    return run([environment({"bench"}), "-m", "benchmarks", *arguments])


def wheel(arguments: list[str]) -> int:
    """Build the wheel and test it in a clean environment, from an empty directory, with no source in reach."""
    python = this_python()
    with tempfile.TemporaryDirectory(prefix="shmarray-wheel-") as scratch:
        say("building the wheel")
        dist, venv, tests, empty = (os.path.join(scratch, name) for name in ("dist", "venv", "tests", "empty"))
        wheel_command = ["wheel", "--no-deps", "--no-input", "--disable-pip-version-check", "--wheel-dir", dist, ROOT]
        must([*pip(python, environment(set())), *wheel_command], cwd=scratch)
        (built,) = os.listdir(dist)
        say(
            f"{built}: {os.path.getsize(os.path.join(dist, built)) >> 10} KiB; installing it alone into a clean environment"
        )
        make(python, venv)
        inside = os.path.join(venv, "bin", "python")
        target = os.path.join(dist, built)
        install(python, inside, [target])
        os.mkdir(empty)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        say("using it from an empty directory")
        must([inside, "-c", SEEN, venv], empty, clean)
        must([os.path.join(venv, "bin", "shmarray"), "ls"], empty, clean)
        must([inside, "-m", "shmarray", "ls", "--json"], empty, clean)
        say("the core of the suite against it")
        install(python, inside, [f"{target}[test]"])
        for name in ("tests", "benchmarks", "examples", "docs"):  # all but the package
            if os.path.isdir(os.path.join(ROOT, name)):
                shutil.copytree(os.path.join(ROOT, name), os.path.join(tests, name))
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(os.path.join(ROOT, name), tests)
        command = [inside, "-m", "pytest", "-m", "core", "-p", "no:cacheprovider", f"--rootdir={tests}"]
        command += ["--config-file", os.path.join(tests, "pyproject.toml"), os.path.join(tests, "tests")]
        return run([*command, *arguments], empty, clean)


SEEN = """
import os, sys
import numpy as np
import shmarray as sa
assert sa.__file__.startswith(os.path.realpath(sys.argv[1]) + os.sep), sa.__file__
assert os.path.exists(os.path.join(os.path.dirname(sa.__file__), "py.typed"))
with sa.Store() as store:
    array = store.put(np.arange(5.0))
    assert array.sum() == 10
print(sa.__file__)
"""


COMMANDS = {"demo": demo, "test": test, "lint": lint, "types": types, "wheel": wheel, "bench": bench, "apart": apart}


def terminated(number: int, _frame: object) -> None:
    """End in order on SIGTERM."""
    sys.exit(128 + number)


def main() -> int:
    """Choose the command; returns its exit status."""
    for standard in (
        0,
        1,
        2,
    ):  # a machine may start us with these closed, and then the next open file would take their place
        try:
            os.fstat(standard)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    signal.signal(signal.SIGTERM, terminated)
    lines = "".join(f"  {name:6} {(function.__doc__ or '').splitlines()[0]}\n" for name, function in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="dev.py",
        usage="python3 dev.py COMMAND [argument ...]",
        description=f"commands:\n{lines}",
        epilog="Arguments go to what the command runs: pytest, ruff, mypy, the demo, the benchmarks.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of the above")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="passed on")
    chosen = parser.parse_args()
    try:
        return COMMANDS[chosen.command](chosen.arguments)
    except Stop as reason:
        print(f"dev.py: {reason}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("dev.py: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
