"""The command line: `python -m shmarray`, and the script `shmarray`.

Owns: which commands there are, arguments, exit codes, and that no error and no closed pipe ends in a traceback.
Must not know: what a command does.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from typing import TYPE_CHECKING, NoReturn

import shmarray
from shmarray.cli import doctor, gc, ls, table, top
from shmarray.cli.answers import FINE, FOUND, INTERRUPTED, WRONG, Answer, UsageError, near
from shmarray.demo import run as demo
from shmarray.errors import ShmArrayError

if TYPE_CHECKING:
    from collections.abc import Sequence

_PROGRAM = "python -m shmarray"
_MODULES = {"ls": ls, "top": top, "gc": gc, "doctor": doctor}
_DEMO = "shade an elevation model in parallel, by pickling and in shared memory, and compare"
_FLAGS = ("--json", "--all", "--dry-run", "--directory", "--interval", "--once", "--help", "--version")
_COMMANDS = (*_MODULES, "demo")
_EPILOG = """exit codes:
  0    all is well
  1    something was found: leftovers that had to stay, a problem, a failure
  2    the command was asked wrongly
  130  interrupted by Ctrl-C
"""


class _Parser(argparse.ArgumentParser):
    """Hands its complaints to `main` instead of ending the process."""

    commands: dict[str, _Parser]

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (that of this process by default) and return its exit code. Raises no error."""
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        return INTERRUPTED
    except UsageError as error:
        return _complain(f"{error}\n`{_PROGRAM} --help` shows what there is.", WRONG)
    except (ShmArrayError, OSError) as error:
        return _complain(str(error), FOUND)
    except Exception as error:  # noqa: BLE001  a person at a terminal is owed a sentence, not a traceback
        fault = f"unexpected {type(error).__name__}: {error}"
        return _complain(f"{fault}\nThis is a defect of shmarray; please report it.", FOUND)


def _run(arguments: list[str]) -> int:
    if arguments[:1] == ["demo"]:
        return _call_demo(arguments[1:])
    parser = _parser()
    if not arguments:
        return _show(Answer(parser.format_help(), WRONG))
    word = arguments[0]
    if not word.startswith("-") and word not in _COMMANDS:
        message = f"there is no command {word!r}{near(word, _COMMANDS)}"
        raise UsageError(message)
    try:
        options, unknown = parser.parse_known_args(arguments)
    except SystemExit as end:  # after --help and --version, which argparse has written
        return _show(Answer("", end.code if isinstance(end.code, int) else FINE))
    if unknown or options.module is None:
        message = "which command?"
        if unknown:
            message = f"unknown argument {unknown[0]!r}{_meant(parser, word, unknown[0])}"
        raise UsageError(message)
    answer: Answer = options.module.run(options, table.screen(sys.stdout))
    return _show(answer)


def _meant(parser: _Parser, command: str, argument: str) -> str:
    """Say what may have been meant by an argument: an option that this command has, or that a command must come first."""
    if command not in _MODULES:
        return (
            "; options of a command come behind it" if argument in _FLAGS else near(argument, ("--help", "--version"))
        )
    known = parser.commands[command].format_help()
    return near(
        argument, [flag for flag in _FLAGS if flag in known], 0.7
    )  # all of them begin with the same two letters


def _parser() -> _Parser:
    parser = _Parser(
        prog=_PROGRAM,
        description="See, clean and check the shared memory of shmarray's stores.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"shmarray {shmarray.__version__}")
    parser.set_defaults(module=None)
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=_Parser)
    for name, module in _MODULES.items():
        command = commands.add_parser(name, help=module.SUMMARY, description=module.SUMMARY, allow_abbrev=False)
        module.add_arguments(command)
        command.set_defaults(module=module)
    parser.commands = commands.choices
    commands.add_parser("demo", help=_DEMO)
    return parser


def _call_demo(arguments: list[str]) -> int:
    try:
        code = demo.main(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else FINE
    except BrokenPipeError:
        _drop_output()
        return FINE
    return _show(Answer("", code))


def _show(answer: Answer) -> int:
    """Write an answer; a reader that has had enough (`ls | head`) is no failure."""
    stream = sys.stdout
    if stream is None:  # closed by who started us
        return answer.code
    try:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        stream.write(answer.text)
        stream.flush()
    except BrokenPipeError:
        _drop_output()
    except OSError as error:
        _drop_output()
        return _complain(f"the answer cannot be written: {error.strerror}", FOUND)
    return answer.code


def _drop_output() -> None:
    """Let what is still in the buffers go nowhere: the interpreter would complain when it flushes them at its end."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def _complain(message: str, code: int) -> int:
    lines = [table.clean(line) for line in message.split("\n")]
    with contextlib.suppress(OSError, AttributeError):
        sys.stderr.write(f"shmarray: {lines[0]}\n" + "".join(f"{line}\n" for line in lines[1:]))
        sys.stderr.flush()
    return code
