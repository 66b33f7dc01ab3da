"""`python -m shmarray doctor`: what it finds on this machine, and on machines that are made up."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import shmarray as sa
from shmarray._os import flocks, mutexes, segments, watches
from shmarray.cli import doctor, machine, probes
from tests.cli.places import (
    BLOCKS,
    IS_ROOT,
    NOBODY,
    UID,
    WHOLE,
    dead_store,
    facts,
    file,
    kill,
    name_link,
    needs_namespaces,
    owner,
    shmarray,
)
from tests.helpers.leaks import SHM, shm_entries
from tests.helpers.processes import environment, run_command

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ALWAYS = {
    "shared-memory",
    "memory-limit",
    "descriptors",
    "mappings",
    "inotify-limit",
    "remove-ipc",
    "kernel",
    "interpreter",
    "stores",
}
LEVELS = ["ok", "note", "warning", "problem"]


def examine(returncode: int | None = None) -> dict[str, list[dict[str, Any]]]:
    """Findings of the doctor by their id; the exit code must be as expected, or fit the worst of them."""
    said = shmarray("doctor", "--json")
    answer = json.loads(said.stdout)
    worst = max((finding["level"] for finding in answer["findings"]), key=LEVELS.index)
    assert answer["worst"] == worst
    assert said.stderr == ""
    assert said.returncode == (worst == "problem" if returncode is None else returncode)
    found: dict[str, list[dict[str, Any]]] = {}
    for finding in answer["findings"]:
        found.setdefault(finding["id"], []).append(finding)
    return found


def test_every_question_is_answered_and_every_trouble_has_a_remedy() -> None:
    """Each thing to be looked at has a finding with a level; what is not ok says what to do; people see the same."""
    found = examine()
    assert set(found) >= ALWAYS
    every = [finding for findings in found.values() for finding in findings]
    assert all(finding["level"] in LEVELS and finding["text"] for finding in every)
    assert [finding for finding in every if finding["level"] in ("warning", "problem") and not finding["remedy"]] == []
    text = shmarray("doctor").stdout
    for name in ("descriptors", "mappings", "remove-ipc", "kernel", "interpreter"):
        assert found[name][0]["text"] in text


def test_facts_are_those_of_the_kernel() -> None:
    """Sizes and limits are what the kernel says when it is asked in another way."""
    found = {name: findings[0]["facts"] for name, findings in examine().items()}
    space = shutil.disk_usage(SHM)
    assert found["shared-memory"]["total"] == space.total
    assert found["shared-memory"]["file_system"] == "tmpfs"
    with open("/proc/sys/vm/max_map_count", encoding="ascii") as opened:
        assert found["mappings"]["limit"] == int(opened.read())
    with open("/proc/sys/fs/inotify/max_user_instances", encoding="ascii") as opened:
        assert found["inotify-limit"]["limit"] == int(opened.read())


def test_few_descriptors_are_a_warning() -> None:
    """Under a small `ulimit -n` the doctor still works, says how many there are, and how to get more."""
    script = 'ulimit -n 64; exec "$@"'
    command = ["sh", "-c", script, "sh", sys.executable, "-m", "shmarray", "doctor", "--json"]
    answer = json.loads(run_command(command, env=WHOLE).stdout)
    found = next(finding for finding in answer["findings"] if finding["id"] == "descriptors")
    assert (found["level"], found["facts"]["soft"]) == ("warning", 64)
    assert "ulimit -n" in found["remedy"]


def _in_small_memory(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script where `/dev/shm` has 1 MiB, seen by nobody else."""
    mount = "mount -t tmpfs -o size=1m tmpfs /dev/shm"
    command = ["unshare", "--mount", "sh", "-c", f"{mount} || exit 99; {script}", "sh", sys.executable]
    return subprocess.run(command, capture_output=True, text=True, env=environment(WHOLE), timeout=60, check=False)


@needs_namespaces
def test_small_and_full_shared_memory_are_told_with_the_remedy() -> None:
    """1 MiB is small; 1 MiB of which nothing is left is a problem; both name `--shm-size`."""
    for fill, level in (("true", "warning"), ("head -c 1044480 /dev/zero > /dev/shm/filler", "problem")):
        said = _in_small_memory(f'{fill}; "$1" -m shmarray doctor --json')
        assert said.stderr == ""
        found = {finding["id"]: finding for finding in json.loads(said.stdout)["findings"]}
        memory = found["shared-memory"]
        assert (memory["level"], memory["facts"]["total"]) == (level, 1 << 20)
        assert "--shm-size" in memory["remedy"]
        assert said.returncode == (level == "problem")


def test_what_a_dead_store_left_is_a_problem_with_gc_as_its_remedy() -> None:
    """Leftovers are found with their bytes; `gc` is the remedy, and after it they are found no more."""
    with dead_store("doctor-dead") as left:
        found = [finding for finding in examine(1)["leftover"] if finding["facts"]["store"] == left.id]
        assert (found[0]["level"], found[0]["facts"]["bytes"]) == ("problem", left.bytes())
        assert found[0]["remedy"] == "python -m shmarray gc"
        assert len(left.files()) == BLOCKS
        facts("gc")
        assert "leftover" not in examine()


def test_orphan_blocks_are_a_problem() -> None:
    """Blocks without a control file are found, and `gc` is the remedy."""
    with dead_store("doctor-orphan") as left:
        os.unlink(left.control)
        os.unlink(name_link("doctor-orphan"))
        found = [finding for finding in examine(1)["leftover"] if finding["facts"]["store"] == left.id]
        assert [finding["level"] for finding in found] == ["problem"]
        facts("gc")


def test_a_damaged_block_is_a_problem_and_a_foreign_file_a_warning() -> None:
    """Both are named with the reason; the one hurts a living store, the other only has a name like ours."""
    with sa.Store("doctor-damaged") as store, file(f"shmarray.{UID}.{store.id}.n.bad", b"x" * 100) as bad:
        found = examine(1)["block"]
        assert [(finding["level"], finding["facts"]["file"]) for finding in found] == [("problem", bad)]
    with file(f"shmarray.{UID}.mine", b"x") as mine:
        found = [finding for finding in examine()["file"] if finding["facts"]["file"] == mine]
        assert [finding["level"] for finding in found] == ["warning"]
        assert mine in found[0]["remedy"]


def test_a_store_without_a_guardian_is_a_warning() -> None:
    """When the guardian was killed and the owner lives, the doctor says what that means."""
    with owner("doctor-guardian") as (child, left, guardian):
        assert "no-guardian" not in examine()
        kill(guardian)
        found = examine()["no-guardian"]
        assert [(finding["level"], finding["facts"]["store"]) for finding in found] == [("warning", left.id)]
        child.tell()
        child.finish().expect()


@pytest.mark.skipif(not IS_ROOT, reason="only root can make files of another user")
def test_files_of_other_users_are_counted_and_not_touched() -> None:
    """Another user's files are one number, whatever they are called."""
    before = examine().get("other-users", [{"facts": {"files": 0}}])[0]["facts"]["files"]
    with file(f"shmarray.{NOBODY}.mine", b"x") as path:
        os.chown(path, NOBODY, NOBODY)
        assert examine()["other-users"][0]["facts"]["files"] == before + 1
        assert "file" not in examine()
        assert os.path.exists(path)


def test_the_kernel_is_tried_out_and_nothing_stays() -> None:
    """Every experiment succeeds on a kernel that can do it all, and leaves no file and no descriptor."""
    before = shm_entries()
    outcomes = probes.run()
    assert [outcome for outcome in outcomes if outcome.missing] == []
    assert len(outcomes) == 7
    assert shm_entries() <= before


def test_experiments_work_in_a_directory_on_disk(store_dir: str) -> None:
    """The same experiments succeed on an ordinary file system."""
    assert [outcome for outcome in probes.run(store_dir) if outcome.missing] == []


BROKEN: dict[str, tuple[str, Any, str, Callable[..., Any]]] = {
    "locks that no mapping keeps": ("flock kept by a mapping", flocks, "try_exclusive", lambda _fd: True),
    "locks that nothing frees": ("flock kept by a mapping", flocks, "try_exclusive", lambda _fd: False),
    "no marks": ("flock kept by a mapping", flocks, "mark", lambda _fd, _number: False),
    "no inotify": ("inotify", watches, "letting_go", lambda _path: None),
    "nothing reserved": ("posix_fallocate", segments, "reserve", lambda _fd, _offset, _size: None),
    "no pidfd": ("pidfd", watches, "death_of", lambda _pid, _start: None),
    "no links": ("linkat", segments, "publish", lambda *_: None),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_a_kernel_cannot_do_is_found_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one function of the kernel broken the experiment on it fails, the finding names it, and nothing stays."""
    feature, module, function, broken = BROKEN[name]
    before = shm_entries()
    monkeypatch.setattr(module, function, broken)
    missing = [outcome.feature for outcome in probes.run() if outcome.missing]
    assert feature in missing
    assert shm_entries() <= before
    found = [finding for finding in doctor.examine() if finding.id == "kernel-missing"]
    assert feature in [finding.facts["feature"] for finding in found]
    assert all(finding.remedy and finding.level in ("warning", "problem") for finding in found)


@pytest.mark.parametrize(
    ("function", "broken"), [("mutex_trylock", lambda _address: 0), ("mutex_wait", lambda _address, _seconds: 110)]
)
def test_a_kernel_that_does_not_tell_of_a_death_is_found_out(
    function: str, broken: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The C library makes robust mutexes, and none is handed on when its holder ends: locks are not what they seem, and it is told."""
    monkeypatch.setattr(mutexes, function, broken)
    found = {finding.id: finding for finding in doctor.examine()}
    finding = found["no-robust-mutexes"]
    assert (finding.level, bool(finding.remedy)) == ("warning", True)
    assert "a killed holder is not survived" in finding.text
    assert "robust mutex" not in found["kernel"].facts["works"]


def test_a_place_where_no_file_can_be_made_is_told() -> None:
    """Where not even a file can be made the experiments end with that, and raise nothing."""
    (outcome,) = probes.run("/proc")
    assert "no file can be made in /proc" in outcome.missing


def logind(root: Path, **files: str) -> str:
    """Make a root directory in which systemd-logind runs with these files, `__` standing for a slash."""
    (root / "proc/12").mkdir(parents=True, exist_ok=True)
    (root / "proc/12/comm").write_text("systemd-logind\n")
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("_conf_d", ".conf.d").replace("_conf", ".conf")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return str(root)


ON, OFF = "[Login]\nRemoveIPC=yes\n", "[Login]\n# RemoveIPC=yes\nRemoveIPC = no\nOther=%h\n"
MACHINES = {
    "nothing is set": ({}, True),
    "off in the main file": ({"etc__systemd__logind_conf": OFF}, False),
    "on in the main file": ({"etc__systemd__logind_conf": ON}, True),
    "commented out": ({"etc__systemd__logind_conf": "[Login]\n#RemoveIPC=no\n"}, True),
    "off in a drop-in": ({"etc__systemd__logind_conf": ON, "etc__systemd__logind_conf_d__a_conf": OFF}, False),
    "the last drop-in counts": (
        {"etc__systemd__logind_conf_d__a_conf": OFF, "usr__lib__systemd__logind_conf_d__b_conf": ON},
        True,
    ),
    "a drop-in of /etc hides one of the same name": (
        {"etc__systemd__logind_conf_d__a_conf": OFF, "usr__lib__systemd__logind_conf_d__a_conf": ON},
        False,
    ),
    "the vendor's main file": ({"usr__lib__systemd__logind_conf": OFF}, False),
    "the administrator's main file hides the vendor's": (
        {"usr__lib__systemd__logind_conf": OFF, "etc__systemd__logind_conf": "[Login]\n"},
        True,
    ),
    "a file that is none": ({"etc__systemd__logind_conf": "RemoveIPC=no, I hope"}, True),
}


@pytest.mark.parametrize("name", MACHINES)
def test_remove_ipc_is_read_as_logind_reads_it(name: str, tmp_path: Path) -> None:
    """Main file, drop-ins and their precedence decide; the default is on."""
    files, expected = MACHINES[name]
    found = machine.remove_ipc(1000, "someone", logind(tmp_path, **files))
    assert (found.enabled, found.is_risk) == (expected, expected)


def test_remove_ipc_is_no_risk_for_system_users_and_those_who_linger(tmp_path: Path) -> None:
    """Logind spares system users and those who linger, and does nothing where it does not run."""
    (tmp_path / "proc/1").mkdir(parents=True)
    (tmp_path / "proc/1/comm").write_text("init\n")
    assert not machine.remove_ipc(1000, "someone", str(tmp_path)).is_risk
    root = logind(tmp_path)
    assert machine.remove_ipc(1000, "someone", root).is_risk
    assert not machine.remove_ipc(999, "daemon", root).is_risk
    (tmp_path / "var/lib/systemd/linger").mkdir(parents=True)
    (tmp_path / "var/lib/systemd/linger/someone").touch()
    assert not machine.remove_ipc(1000, "someone", root).is_risk
    assert machine.remove_ipc(1001, "other", root).is_risk


def test_inotify_instances_in_use_are_counted(tmp_path: Path) -> None:
    """One more instance of this user is one more in the count; a machine that does not say its limit has none."""
    proc = tmp_path / "proc"  # of this process alone: others, such as guardians, come and go
    proc.mkdir()
    (proc / str(os.getpid())).symlink_to(f"/proc/{os.getpid()}")
    before = machine.inotify_used(UID, str(proc))
    watch = watches.letting_go(str(tmp_path))
    assert watch is not None
    try:
        assert machine.inotify_used(UID, str(proc)) == before + 1
    finally:
        os.close(watch)
    assert machine.inotify_used(UID, str(proc)) == before
    assert machine.inotify_used(UID) >= before
    assert machine.inotify_limit(str(tmp_path)) is None
