"""`ls`: all stores of this user, what is in them, and who holds it.

Owns: how a survey is shown.
Must not know: how it is made.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from shmarray import inspection
from shmarray.cli import table
from shmarray.cli.answers import Answer, UsageError, as_json, near
from shmarray.cli.table import Column, Screen, count
from shmarray.exhaustion import size_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from shmarray.inspection import Block, Process, Store, Survey

SUMMARY = "list the stores of this user, their arrays, and who holds them"
_SHOWN = 20  # blocks of one store without --all
_PIDS = 3
_SHORTEST_ID = 4
_COLUMNS = (
    Column("NAME", least=10),
    Column("KIND", least=7, drop=4),
    Column("SHAPE", least=9, drop=2),
    Column("DTYPE", least=7, drop=1),
    Column("SIZE", right=True),
    Column("MADE BY", right=True, drop=5),
    Column("HELD BY", least=12),
    Column("AGE", right=True, drop=3),
    Column("STATE"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say which arguments `ls` takes."""
    parser.add_argument(
        "store", nargs="?", metavar="STORE", help="show this store alone: its name or the start of its id"
    )
    parser.add_argument(
        "--all", action="store_true", help=f"show every block, not only the {_SHOWN} biggest of a store"
    )
    parser.add_argument("--json", action="store_true", help="write JSON for programs")


def run(options: argparse.Namespace, where: Screen) -> Answer:
    """List. Raises `UsageError` for a store that is not there."""
    found = inspection.survey()
    stores = found.stores if options.store is None else _select(found.stores, options.store)
    if options.json:
        return Answer(as_json("ls", _facts(found, stores, whole=options.store is None)))
    text = [_store(store, found, where, most=None if options.all else _SHOWN) for store in stores]
    if not stores:
        text.append(f"user {found.uid} has no stores\n")
    if options.store is None and found.strays:
        foreign = [table.wrap(f"{stray.file}: {stray.reason}", where, "foreign  ", " " * 9) for stray in found.strays]
        text.append("".join(foreign))
    return Answer("\n".join(text))


def _select(stores: Sequence[Store], wanted: str) -> list[Store]:
    chosen = [store for store in stores if wanted in (store.name, store.id)]
    if not chosen and len(wanted) >= _SHORTEST_ID:
        chosen = [store for store in stores if store.id.startswith(wanted)]
    if chosen:
        return chosen
    known = [word for store in stores for word in (store.name, store.id) if word]
    message = f"there is no store {wanted!r}{near(wanted, known)}"
    raise UsageError(message)


def _facts(found: Survey, stores: Sequence[Store], *, whole: bool) -> dict[str, Any]:
    return {
        "uid": found.uid,
        "stores": [asdict(store) for store in stores],
        "strays": [asdict(stray) for stray in found.strays] if whole else [],
        "others": found.others,
        "commands": {str(pid): command for pid, command in found.commands.items()},
    }


def label(name: str | None, store: str | None) -> str:
    """Call a store by its name and id."""
    return f"store {name!r} ({store})" if name is not None else f"store {store}"


def party(process: Process | None, commands: dict[int, str]) -> str:
    """Say who a process is, and whether it lives."""
    if process is None:
        return "unknown"
    life = {True: "alive", False: "dead", None: "of another pid namespace"}[process.alive]
    command = commands.get(process.pid, "") if process.alive else ""
    return f"{process.pid} {life}{f': {command}' if command else ''}"


def _line(title: str, text: str, where: Screen) -> str:
    text = table.clean(f"  {title:<10}{text}", where.encoding)
    return (text if where.width is None else table.shorten(text, where.width, where.encoding)) + "\n"


def _store(store: Store, found: Survey, where: Screen, most: int | None) -> str:
    text = [table.wrap(f"{label(store.name, store.id)}: {store.state}", where)]
    if store.reason:
        text.append(table.wrap(store.reason, where, "  ! ", "    "))
    if store.owner is not None:
        text.append(_line("owner", party(store.owner, found.commands), where))
        text.append(_line("guardian", party(store.guardian, {}) if store.guardian else "none", where))
        text.append(_line("used by", _pids(store.participants, len(store.participants)), where))
    counted = count(sum(block.kind != "handle" for block in store.blocks), "block")
    size = size_text(store.bytes) + ("" if store.capacity is None else f" of {size_text(store.capacity)}")
    text.append(_line("holds", f"{counted}, {size}, in {store.directory}", where))
    if store.age is not None:
        text.append(_line("opened", f"{table.age(store.age)} ago", where))
    blocks = store.blocks[:most]
    if blocks:
        text.append(table.render(_COLUMNS, [_row(block) for block in blocks], where, indent=2))
    damaged = [block for block in store.blocks if block.state == "damaged"]
    text += [table.wrap(f"{block.file}: {block.reason}", where, "  ! ", "    ") for block in damaged[:most]]
    if len(blocks) < len(store.blocks):
        text.append(f"  and {len(store.blocks) - len(blocks):,} more, all smaller; --all shows them\n")
    return "".join(text)


def _row(block: Block) -> list[str]:
    alive = block.creator is not None and block.creator.alive is not False
    return [
        _name(block),
        block.kind,
        _shape(block),
        block.dtype or "-",
        size_text(block.bytes),
        "-" if block.creator is None else f"{block.creator.pid}{'' if alive else ' dead'}",
        _pids(block.holders, _PIDS),
        table.age(block.age),
        f"{block.state} ({block.unclaimed})" if block.unclaimed else block.state,
    ]


def _name(block: Block) -> str:
    if block.name is not None:
        # What could be taken for something else is quoted.
        odd = block.name != block.name.strip() or block.name.startswith("(") or '"' in block.name or "'" in block.name
        return repr(block.name) if odd else block.name
    if block.kind == "unknown":
        return block.file.rpartition("/")[2].split(".", 3)[-1]
    return {"draft": "(draft)", "handle": "(handle)"}.get(block.kind, "(anonymous)")


def _shape(block: Block) -> str:
    if block.kind == "tree":
        return count(block.arrays, "array")
    if block.shape is None:
        return "-"
    return "(" + ", ".join(map(str, block.shape)) + ("," if len(block.shape) == 1 else "") + ")"


def _pids(pids: Sequence[int], most: int) -> str:
    if not pids:
        return "nobody"
    return ", ".join(map(str, pids[:most])) + (f" +{len(pids) - most}" if len(pids) > most else "")
