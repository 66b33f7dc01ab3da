"""The README is run: its Python blocks as scripts, its commands as far as that they exist."""

from __future__ import annotations

import os
import re
import sys
from typing import NamedTuple

import pytest

from tests.helpers.processes import run_command, run_script

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
NOT_RUN = "<!-- not run:"
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"^(?:\$ )?((?:python3? |shmarray |\.ci/run|pip |\.venv/).*)$", re.MULTILINE)


class Block(NamedTuple):
    """One fenced block: its language, its text, its first line's number, and what stands above it."""

    language: str
    text: str
    line: int
    above: str


def blocks(text: str) -> list[Block]:
    """Every fenced block of a Markdown text."""
    found = []
    for match in _BLOCK.finditer(text):
        above = text[: match.start()].rstrip().rpartition("\n")[2]
        found.append(Block(match[1], match[2], text.count("\n", 0, match.start()) + 2, above))
    return found


def commands(text: str) -> list[str]:
    """Every command line in the shell blocks of a Markdown text, and every `python3 dev.py ...` in its prose."""
    found = [
        command
        for block in blocks(text)
        if block.language in ("", "sh", "bash", "console", "shell")
        for command in _COMMAND.findall(block.text)
    ]
    found += re.findall(r"`((?:python3? (?:dev\.py|-m \w+)|shmarray) [^`\n]*)`", text)
    return [command.partition("#")[0].strip() for command in found]


def readme() -> str:
    """Text of the README."""
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        return file.read()


def _scripts() -> list[Block]:
    if not os.path.exists(os.path.join(ROOT, "README.md")):
        return []
    return [block for block in blocks(readme()) if block.language == "python" and not block.above.startswith(NOT_RUN)]


@pytest.mark.parametrize("block", _scripts(), ids=lambda block: f"line-{block.line}")
def test_a_block_of_the_readme_runs(block: Block) -> None:
    """Each Python block is a script that ends well in an empty directory and says nothing on standard error."""
    run_script(block.text, timeout=60).expect()


def test_the_readme_has_blocks_that_run() -> None:
    """The README shows Python code, and few blocks of it are excused from running."""
    shown = [block for block in blocks(readme()) if block.language == "python"]
    assert _scripts()
    assert len(_scripts()) * 2 >= len(shown)


def command_help(command: str) -> list[str] | None:
    """Turn a command of the README into one that asks for help, followed by what must be found there; None if not ours."""
    words = command.split()
    if words[0] in ("python", "python3"):
        words[0] = sys.executable
    if words[0] == "shmarray":
        words[:1] = [sys.executable, "-m", "shmarray"]
    if words[1:2] == ["dev.py"]:
        return [words[0], os.path.join(ROOT, "dev.py"), "--help", *words[2:3]]
    if words[1:3] == ["-m", "shmarray"] or words[1:3] == ["-m", "benchmarks"]:
        options = [word.partition("=")[0] for word in words[3:] if word.startswith("--")]
        name = [word for word in words[3:4] if not word.startswith("-")]
        return [*words[:3], *name, "--help", *options]
    return None


def test_the_commands_of_the_readme_exist() -> None:
    """Each command that the README names is there: its help can be had, and its help names the options shown."""
    missing = []
    named = sorted(set(commands(readme())))
    for command in named:
        asked = command_help(command)
        if asked is None:
            continue
        end = asked.index("--help") + 1
        done = run_command(asked[:end], cwd=ROOT, timeout=60)
        missing += [f"{command}: {done.describe()}"] if done.returncode else []
        missing += [f"{command}: its help does not know {word}" for word in asked[end:] if word not in done.stdout]
    assert missing == []
    assert any("dev.py demo" in command for command in named)
    assert any("dev.py test" in command for command in named)


def test_files_that_the_readme_links_to_exist() -> None:
    """Each relative link of the README leads to a file of the project."""
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", readme())
    assert [link for link in links if not os.path.exists(os.path.join(ROOT, link))] == []


TEXT = """# T

`python3 dev.py lint` is prose.

```python
print(1)
```

<!-- not run: it needs two machines -->
```python
print(2)
```

```console
$ python3 dev.py demo   # ten seconds
shown output
$ shmarray ls --json
```
"""


def test_blocks_and_commands_of_a_text_are_found() -> None:
    """Blocks are found with their language, line and excuse; commands with and without a prompt, and in prose."""
    found = [(block.language, block.line, block.above.startswith(NOT_RUN)) for block in blocks(TEXT)]
    assert found == [("python", 6, False), ("python", 11, True), ("console", 15, False)]
    assert commands(TEXT) == ["python3 dev.py demo", "shmarray ls --json", "python3 dev.py lint"]


def test_a_command_is_asked_for_its_help_and_options() -> None:
    """A command of ours becomes a question for its help; its options follow to be looked up there."""
    assert command_help("shmarray ls --json=x") == [sys.executable, "-m", "shmarray", "ls", "--help", "--json"]
    assert command_help("python3 dev.py") == [sys.executable, os.path.join(ROOT, "dev.py"), "--help"]
    assert command_help("python3 dev.py test -x") == [sys.executable, os.path.join(ROOT, "dev.py"), "--help", "test"]
    assert command_help("pip install shmarray") is None
