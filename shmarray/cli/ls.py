"""`ls`: all stores of this user, what is in them, and who holds it.

Owns: how a survey is shown.
Must not know: how it is made.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from shmarray import inspection
from shmarray.cli import table
from shmarray.cli.answers import Answer, UsageError, as_json, near
from shmarray.cli.table import Column, Screen, count
from shmarray.exhaustion import size_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from shmarray.inspection import Block, Channel, Process, Store, Survey

SUMMARY = "list the stores of this user, their arrays, and who holds them"
_SHOWN = 20  # blocks of one store without --all
_PIDS = 3
_SHORTEST_ID = 4
_CALLED = {
    "draft": "(draft)",
    "handle": "(handle)",
    "memory": "(kept warm)",
    "slab": "(small arrays)",
    "guard": "(lock of a small array)",
}
_INSIDES = ("Arena", "Parcel")  # what queues and containers are made of; to people it is part of them
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
    rows, inner = _rows(store.blocks, whole=most is None)
    counted = count(sum(block.kind != "handle" for block in store.blocks) - inner, "block")
    inside = f" and {inner:,} inside them" if inner else ""
    size = size_text(store.bytes) + ("" if store.capacity is None else f" of {size_text(store.capacity)}")
    text.append(_line("holds", f"{counted}{inside}, {size}, in {store.directory}", where))
    if store.age is not None:
        text.append(_line("opened", f"{table.age(store.age)} ago", where))
    shown = rows[:most]
    if shown:
        text += _table(shown, {block.file: block for block in store.blocks}, where)
    damaged = [block for block in store.blocks if block.state == "damaged"]
    text += [table.wrap(f"{block.file}: {block.reason}", where, "  ! ", "    ") for block in damaged[:most]]
    if len(shown) < len(rows):
        text.append(f"  and {len(rows) - len(shown):,} more, all smaller; --all shows them\n")
    return "".join(text)


class _Row(NamedTuple):
    """One block of the table, how much it takes with what is inside it, and whether others are said to be in it."""

    block: Block
    bytes: int
    keeps: bool


def _rows(blocks: Sequence[Block], *, whole: bool) -> tuple[list[_Row], int]:
    """Choose what has a line of its own, biggest first, and count what is summed up with the object it is part of."""
    known = {block.file for block in blocks}
    inner: dict[str, int] = {}
    summed = set()
    for block in () if whole else blocks:
        if block.kind in _INSIDES and block.state == "live" and len(block.kept_in) == 1 and block.kept_in[0] in known:
            inner[block.kept_in[0]] = inner.get(block.kept_in[0], 0) + block.bytes
            summed.add(block.file)
    own = [block for block in blocks if block.file not in summed]
    keepers = {file for block in own for file in block.kept_in}
    rows = [_Row(block, block.bytes + inner.get(block.file, 0), block.file in keepers) for block in own]
    return sorted(rows, key=lambda row: -row.bytes), len(summed)


def _table(rows: Sequence[_Row], blocks: Mapping[str, Block], where: Screen) -> list[str]:
    """Lay out blocks, each followed by what there is to say about access to it."""
    lines = table.render(_COLUMNS, [_cells(row, blocks) for row in rows], where, indent=2).splitlines(keepends=True)
    text = lines[:1]
    now = time.time()
    for row, line in zip(rows, lines[1:], strict=True):
        text += [line, *(table.wrap(note, where, "    ", "      ") for note in _access(row.block, now))]
    return text


def _cells(row: _Row, blocks: Mapping[str, Block]) -> list[str]:
    block = row.block
    alive = block.creator is not None and block.creator.alive is not False
    return [
        _name(block, numbered=row.keeps),
        block.kind,
        _shape(block),
        _dtype(block),
        size_text(row.bytes),
        "-" if block.creator is None else f"{block.creator.pid}{'' if alive else ' dead'}",
        _held_by(block, blocks),
        table.age(block.age),
        f"{block.state} ({block.unclaimed})" if block.unclaimed else block.state,
    ]


def _access(block: Block, now: float) -> list[str]:
    """Say who has access to a block, who waits for it, and who died at work; nothing where there is nothing to say."""
    guard, said = block.guard, []
    if guard is None:
        return []
    if guard.holder is not None:
        if guard.holder.alive is False:
            said.append(f"process {guard.holder.pid} died inside, and nobody has entered since")
        else:
            said.append(f"held by {guard.holder.pid}{_since(guard.since, now, ' for ')}")
    if guard.readers:
        said.append("read by 1 process" if guard.readers == 1 else f"read by {guard.readers:,} processes")
    if guard.waiters:
        said.append(f"waiting: {_pids(guard.waiters, _PIDS)}")
    lines = ["; ".join(said)] if said else []
    if guard.poisoned is not None:
        what = "poisoned: " if block.kind in inspection.POISONABLE else ""
        entered = _since(guard.poisoned.since, now, ", which it entered ", " ago")
        lines.append(f"{what}process {guard.poisoned.pid} died inside{entered}")
    return lines


def _since(moment: float | None, now: float, before: str, after: str = "") -> str:
    return "" if moment is None else f"{before}{table.age(max(0.0, now - moment))}{after}"


def _held_by(block: Block, blocks: Mapping[str, Block]) -> str:
    """Name the processes that map a block, and the objects it is kept in."""
    places = [f"in {title(blocks[file])}" for file in block.kept_in if file in blocks]
    if not places:
        return _pids(block.holders, _PIDS)
    return ", ".join(([_pids(block.holders, _PIDS)] if block.holders else []) + places)


def title(block: Block) -> str:
    """Call a block by its name, or by its kind and the number in its file's name."""
    return _name(block) if block.name is not None else f"{block.kind} {_number(block)}"


def _number(block: Block) -> str:
    return block.file.rpartition(".")[2][:_SHORTEST_ID]


def _name(block: Block, *, numbered: bool = False) -> str:
    if block.name is not None:
        # What could be taken for something else is quoted.
        odd = block.name != block.name.strip() or block.name.startswith("(") or '"' in block.name or "'" in block.name
        return repr(block.name) if odd else block.name
    if block.kind == "unknown":
        return block.file.rpartition("/")[2].split(".", 3)[-1]
    number = f" {_number(block)}" if numbered else ""
    return _CALLED.get(block.kind, f"(anonymous{number})")


def _shape(block: Block) -> str:
    if block.kind in ("tree", "slab"):
        return count(block.arrays, "array")
    if block.channel is not None:
        return f"{block.channel.stats.depth}/{block.channel.stats.slots} x {items(block.channel)}"
    return "-" if block.shape is None else str(block.shape)


def items(channel: Channel) -> str:
    """Write the shapes of the arrays of an item, by their names if they have any."""
    return ", ".join(str(item.shape) if item.name is None else f"{item.name} {item.shape}" for item in channel.items)


def _dtype(block: Block) -> str:
    if block.channel is not None:
        return ", ".join(item.dtype for item in block.channel.items)
    return block.dtype or "-"


def _pids(pids: Sequence[int], most: int) -> str:
    if not pids:
        return "nobody"
    return ", ".join(map(str, pids[:most])) + (f" +{len(pids) - most}" if len(pids) > most else "")
