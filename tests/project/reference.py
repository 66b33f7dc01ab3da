"""Makes `docs/reference.md` of the signatures and docstrings of the package: `python -m tests.project.reference`.

Owns: how an entry is found and written; `contents` has their order, and the sentence that begins each group.
Must not know: what any name means; that stands in its docstring, and nowhere else.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import os
import re
from typing import Any

import shmarray
from shmarray import cli, scopes
from tests.project.contents import COMMAND_LINE, GROUPS
from tests.project.test_architecture import sources
from tests.project.test_public_api import TAKEN_OVER

PAGE = os.path.join(
    os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "docs", "reference.md"
)
COMMAND = "python -m tests.project.reference"
HEAD = f"""# Reference

Every public name with its signature and its contract. This page is made of the code by `{COMMAND}`; a test fails
when they differ. To change a text, change the docstring.
"""
OPERATORS = (
    *("__enter__", "__exit__", "__aenter__", "__aexit__", "__getitem__", "__setitem__", "__delitem__"),
    *("__contains__", "__len__", "__iter__", "__reversed__", "__aiter__"),
)
"""Special methods that have a place on the page: what `with`, `[]`, `in`, `len` and `for` do."""
INTERNAL = {
    **dict.fromkeys(("make", "make_of"), "how the methods of a store make an object"),
    **dict.fromkeys(("arena_number", "mend", "me", "entry_of", "dead"), "how an object survives its users"),
    "side": "which end of a channel a subscription is",
}
"""Members without an underscore, of objects that only a store makes, which are not for users; each with the reason."""
_ALIASES = re.compile(r"\b(?!np\.|os\.)(?:[A-Za-z_]\w*\.)+(?=\w)")
_BY_REGISTER = "_made_by_register"


def members(kind: type) -> dict[str, Any]:
    """What a class adds to those of its parents that are on the page, and to what is not of the package."""
    found: dict[str, Any] = {}
    for parent in kind.__mro__:
        if (parent in CLASSES and parent is not kind) or parent.__module__.split(".")[0] != "shmarray":
            continue
        if parent is scopes.Scope:
            continue  # what all of its kind refuse
        if any(issubclass(known, parent) for known in CLASSES if known is not kind and issubclass(kind, known)):
            continue  # what it has from there, the parent on the page has shown
        for name, value in vars(parent).items():
            public = not name.startswith("_") or name in OPERATORS
            if public and name not in INTERNAL and not hasattr(value, _BY_REGISTER) and not is_nested(value):
                found.setdefault(name, value)
    return found


def is_nested(value: Any) -> bool:
    """Say whether a member is a class or a constant and no method, property or field."""
    return not (is_field(value) or inspect.isroutine(value) or isinstance(value, classmethod | staticmethod | property))


def is_field(value: Any) -> bool:
    """Say whether a member is an attribute with a slot or a place in a tuple."""
    return inspect.ismemberdescriptor(value) or type(value).__name__ == "_tuplegetter"


ELSEWHERE = {entry for group in GROUPS for entry in group.entries if isinstance(entry, str)}
CLASSES = [entry for group in GROUPS for entry in group.entries if isinstance(entry, type)]


def _fields() -> dict[str, tuple[str, str]]:
    """Type and docstring of every field of a class on the page, from its body."""
    found = {}
    texts = sources()
    for shown in CLASSES:
        tree = ast.parse(texts.get(shown.__module__.removeprefix("shmarray."), ""))
        for kind in (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == shown.__name__):
            for node, after in zip(kind.body, [*kind.body[1:], None], strict=True):
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    said = after.value if isinstance(after, ast.Expr) else None
                    told = said.value if isinstance(said, ast.Constant) and isinstance(said.value, str) else ""
                    found[f"{kind.name}.{node.target.id}"] = annotation(ast.unparse(node.annotation)), told
    return found


def entries() -> dict[str, Any]:
    """Everything that is on the page, by the name in its heading, and in order."""
    found: dict[str, Any] = {}
    for entry in (entry for group in GROUPS for entry in group.entries):
        if isinstance(entry, str):
            place, _, name = entry.rpartition(".")
            found[entry] = inspect.getattr_static(shmarray.Store if place else shmarray, name)
            continue
        found[entry.__name__] = entry
        if not issubclass(entry, BaseException):
            inner = {f"{entry.__name__}.{name}": value for name, value in members(entry).items()}
            found.update({name: value for name, value in inner.items() if name not in ELSEWHERE})
    return found


def annotation(value: Any) -> str:
    """A type as a reader wants it: without the modules it is from."""
    return _ALIASES.sub("", value if isinstance(value, str) else getattr(value, "__name__", str(value)))


def _parameter(given: inspect.Parameter) -> str:
    star = "*" if given.kind is given.VAR_POSITIONAL else "**" if given.kind is given.VAR_KEYWORD else ""
    typed = "" if given.annotation is given.empty else f": {annotation(given.annotation)}"
    if given.default is given.empty:
        return f"{star}{given.name}{typed}"
    plain = given.default is None or isinstance(given.default, bool | int | float | str | bytes | tuple)
    shown = repr(given.default) if plain else getattr(given.default, "__name__", "...")
    return f"{given.name}{typed} = {shown}" if typed else f"{given.name}={shown}"


def signature(name: str, value: Any) -> str:
    """How a function or method is called and what it returns; for a property or field, its type."""
    if is_field(value):
        return f"{name}: {FIELDS[name][0]}"
    if isinstance(value, property):
        return f"{name}: {annotation((value.fget.__annotations__ if value.fget else {}).get('return', 'Any'))}"
    function = inspect.unwrap(getattr(value, "__func__", value))
    told = inspect.signature(function)
    given = list(told.parameters.values())
    if "." in name and not isinstance(value, staticmethod):
        given = given[1:]
    shown: list[str] = []
    for index, each in enumerate(given):
        before = given[index - 1].kind if index else each.POSITIONAL_ONLY
        if index and before is each.POSITIONAL_ONLY and each.kind is not each.POSITIONAL_ONLY:
            shown.append("/")
        if each.kind is each.KEYWORD_ONLY and before not in (each.KEYWORD_ONLY, each.VAR_POSITIONAL):
            shown.append("*")
        shown.append(_parameter(each))
    if given and given[-1].kind is inspect.Parameter.POSITIONAL_ONLY:
        shown.append("/")
    returns = "" if told.return_annotation is told.empty else f" -> {annotation(told.return_annotation)}"
    kind = "async " if inspect.iscoroutinefunction(function) else ""
    kind += "classmethod " if isinstance(value, classmethod) else ""
    line = f"{kind}{name}({', '.join(shown)}){returns}"
    return line if len(line) <= 100 else f"{kind}{name}(\n    " + ",\n    ".join(shown) + f",\n){returns}"


def text_of(value: Any) -> str:
    """The docstring that was written for this object itself."""
    own = vars(value).get("__doc__") if isinstance(value, type) else getattr(value, "__doc__", None)
    return inspect.cleandoc(own or "")


def prose(text: str) -> str:
    """A docstring as Markdown: examples become blocks."""
    parts = text.split("\n\n")
    return "\n\n".join(f"```pycon\n{part}\n```" if part.startswith(">>> ") else part for part in parts)


def facts() -> dict[str, list[str]]:
    """Names of the facts with which each error is raised somewhere in the package."""
    found: dict[str, set[str]] = {}
    for call in (
        node for text in sources().values() for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)
    ):
        name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
        found.setdefault(name, set()).update(given.arg for given in call.keywords if given.arg)
    return {name: sorted(names - {"remedy"}) for name, names in found.items()}


def _error(kind: type, known: dict[str, list[str]]) -> str:
    if kind.__name__ in TAKEN_OVER:
        return f"Taken over: {TAKEN_OVER[kind.__name__]}."
    also = ", ".join(f"`{parent.__name__}`" for parent in kind.__bases__)
    carried = ", ".join(f"`{name}`" for name in known.get(kind.__name__, []))
    lines = [prose(text_of(kind)), f"Is also: {also}.", f"May carry, as attributes: {carried}." if carried else ""]
    return "\n\n".join(line for line in lines if line)


def command_line() -> str:
    """Every command with its arguments."""
    lines = []
    for name, command in cli._parser().commands.items():
        lines += [f"### `shmarray {name}`", f"{command.description or cli._DEMO}.".capitalize()]
        given = [action for action in command._actions if action.dest != "help"]
        lines.append(
            "\n".join(
                f"- `{', '.join(each.option_strings) or each.dest}`: {(each.help or '') % vars(each)}" for each in given
            )
        )
    return "\n\n".join(line for line in lines if line)


def page() -> str:
    """The whole page."""
    known, there = facts(), entries()
    parts = [HEAD.strip()]
    for group in GROUPS:
        parts += [f"## {group.title}", group.sentence]
        if group.title == COMMAND_LINE:
            parts.append(command_line())
        for entry in group.entries:
            name = entry if isinstance(entry, str) else entry.__name__
            within = [key for key in there if key.startswith(f"{name}.") and key not in ELSEWHERE]
            parts += [_written(key, there[key], known) for key in (name, *within)]
    return re.sub(r"(?m)(^- .*)\n\n(?=- )", r"\1\n", "\n\n".join(parts)) + "\n"


def _parents(kind: type) -> str:
    """What a class is besides, and where the rest of its methods is told of: nearest parents on the page or of others."""
    others = ("collections", "numpy", "multiprocessing")
    known = [each for each in kind.__mro__[1:] if each in CLASSES or each.__module__.split(".")[0] in others]
    near = [each for each in known if not any(issubclass(other, each) for other in known if other is not each)]
    return " and ".join(f"`{each.__name__}`" for each in near)


def _written(name: str, value: Any, known: dict[str, list[str]]) -> str:
    if is_field(value):
        kind, told = FIELDS[name]
        return f"- `{name}: {kind}`" + (f" {told}" if told else "")
    if isinstance(value, str):
        return f"### `{name}`\n\nThe version of the package, a string."
    if isinstance(value, type) and issubclass(value, BaseException):
        return f"### `{name}`\n\n{_error(value, known)}"
    if isinstance(value, type):
        above = f"Also a {_parents(value)}, with what that has.\n\n" if _parents(value) else ""
        called = ""
        if value is shmarray.Store:
            called = (
                f"```text\n{signature('x.Store', value.__init__).removeprefix('x.').removesuffix(' -> None')}\n```\n\n"
            )
        return f"### `{name}`\n\n{called}{above}{prose(text_of(value))}"
    level = "####" if "." in name else "###"
    return f"{level} `{name}`\n\n```text\n{signature(name, value)}\n```\n\n{prose(text_of(value))}"


FIELDS = _fields()


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None).parse_args()
    made = page()
    with open(PAGE, "w", encoding="utf-8") as file:
        file.write(made)
