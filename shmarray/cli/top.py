"""`top`: all stores of this user and what goes through their channels, live.

Owns: what changed between two looks, how that is shown, and a table in a terminal that is drawn again and again.
Must not know: how a look is made. Each is aloof: nobody waits for it, and nothing is kept alive by it.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import shutil
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from shmarray import inspection
from shmarray.channels import statistics
from shmarray.cli import ls, table
from shmarray.cli.answers import Answer, UsageError, as_json
from shmarray.cli.table import Column, Screen, count
from shmarray.exhaustion import size_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Generator, Iterable, Iterator, Sequence

    from shmarray.inspection import Block, Channel, Store, Survey

SUMMARY = "watch what goes through the channels of this user's stores, and who waits"
_INTERVAL = 1.0
_LEAST, _MOST = 0.05, 3600.0  # seconds between two looks
_PIDS = 3
_MANY, _LITTLE = 10, 0.1  # from here on a number is shown without decimals; below, with more
_HANDS = {"loan": "fills", "receive": "reads"}
_COLUMNS = (
    Column("CHANNEL", least=10),
    Column("MODE", drop=7),
    Column("ITEM", least=9, drop=8),
    Column("DEPTH", right=True),
    Column("SENT/S", right=True),
    Column("TAKEN/S", right=True),
    Column("MB/S", right=True, drop=2),
    Column("DROPPED/S", right=True, drop=5),
    Column("WAITING", right=True, drop=4),
    Column("P50", right=True, drop=1),
    Column("P99", right=True, drop=3),
)


@dataclass(frozen=True, slots=True)
class Rates:
    """What changed from one look at a channel to the next, `seconds` later: items for each second, and bytes of those sent.

    `bytes` is what they take at most, where lengths vary. `latency` is of what was taken in between; None if nothing was measured.
    """

    seconds: float
    sent: float
    received: float
    bytes: float
    dropped: float
    missed: float
    lost: float
    latency: dict[str, float] | None


class _Look(NamedTuple):
    """All stores at one moment, and how each channel has changed since the look before, by its block's file."""

    found: Survey
    rates: dict[str, Rates]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say which arguments `top` takes."""
    parser.add_argument(
        "--interval", metavar="S", type=float, default=_INTERVAL, help="seconds from one look to the next (1)"
    )
    parser.add_argument(
        "--once", action="store_true", help="look twice, show that, and end; so it is without a terminal"
    )
    parser.add_argument("--json", action="store_true", help="look twice, and write JSON for programs")
    parser.add_argument("--directory", metavar="DIR", help="look in this Store(directory=...) too")


def run(options: argparse.Namespace, where: Screen) -> Answer:
    """Look until Ctrl-C in a terminal, else twice. Raises `UsageError` for an interval or a directory that is none."""
    if not _LEAST <= options.interval <= _MOST:
        message = f"--interval lies between {_LEAST} and {_MOST:.0f} seconds"
        raise UsageError(message)
    if options.directory is not None and not os.path.isdir(options.directory):
        message = f"--directory {options.directory!r} is not a directory"
        raise UsageError(message)
    looks = _looks([] if options.directory is None else [options.directory], options.interval)
    if not (options.once or options.json) and _is_live():
        with contextlib.suppress(KeyboardInterrupt):  # it is how this is ended
            _watch(looks, options.interval)
        return Answer("\r\x1b[K")
    next(looks)
    look = next(looks)
    if options.json:
        return Answer(as_json("top", _facts(look, options.interval)))
    return Answer("\n".join(_text(look, where)) + "\n")


def _looks(directories: Sequence[str], interval: float) -> Generator[_Look, None, None]:
    """Look again and again, an interval apart."""
    before: dict[str, Channel] = {}
    due = time.monotonic()
    while True:
        found = inspection.survey(directories, aloof=True)
        channels = {block.file: block.channel for _, block in _blocks(found) if block.channel is not None}
        rates = {
            file: change
            for file, channel in channels.items()
            if file in before and (change := _change(before[file], channel)) is not None
        }
        yield _Look(found, rates)
        before = channels
        due = max(due + interval, time.monotonic() + _LEAST)  # a look may take longer than the interval
        time.sleep(due - time.monotonic())


def _blocks(found: Survey) -> Iterator[tuple[Store, Block]]:
    return ((store, block) for store in found.stores for block in store.blocks)


def _change(before: Channel, now: Channel) -> Rates | None:
    """Say what changed from one look to the next; None if it is another channel by now, or the clock was set."""
    seconds = now.read_at - before.read_at
    old, new = before.stats, now.stats
    if seconds <= 0 or new.sent < old.sent or before.items != now.items:
        return None

    def rate(old: int, new: int) -> float:
        return max(0, new - old) / seconds  # what a killed consumer had counts as received no more

    took = Counter(dict(now.latencies))
    took.subtract(dict(before.latencies))
    sent = rate(old.sent, new.sent)
    return Rates(
        seconds=seconds,
        sent=sent,
        received=rate(old.received, new.received),
        bytes=sent * now.item_bytes,
        dropped=rate(old.dropped, new.dropped),
        missed=rate(old.missed, new.missed),
        lost=rate(old.lost, new.lost),
        latency=statistics.percentiles({limit: number for limit, number in sorted(took.items()) if number > 0}),
    )


# -- for programs ------------------------------------------------------------------------------------------------------


def _facts(look: _Look, interval: float) -> dict[str, Any]:
    found = look.found
    return {
        "uid": found.uid,
        "interval": interval,
        "stores": [_store_facts(store, look) for store in found.stores],
        "commands": {str(pid): command for pid, command in found.commands.items()},
    }


def _store_facts(store: Store, look: _Look) -> dict[str, Any]:
    facts = asdict(replace(store, blocks=())) | {"blocks": len(store.blocks)}
    facts["channels"] = [
        {"file": block.file, "name": block.name, "holders": block.holders}
        | asdict(block.channel)
        | {"rates": asdict(rates) if (rates := look.rates.get(block.file)) is not None else None}
        for block in _in_order(store)
        if block.channel is not None
    ]
    return facts


def _in_order(store: Store) -> list[Block]:
    """Channels by name; they stay where they are from one look to the next."""
    there = [block for block in store.blocks if block.channel is not None]
    return sorted(there, key=lambda block: (block.name is None, block.name or "", block.file))


# -- for people --------------------------------------------------------------------------------------------------------


def _text(look: _Look, where: Screen) -> list[str]:
    """Write what was seen, line by line."""
    found = look.found
    if not found.stores:
        return [f"user {found.uid} has no stores"]
    rows = [(store, block) for store in found.stores for block in _in_order(store)]
    cells = [_cells(block, look.rates.get(block.file)) for _, block in rows]
    head, *drawn = table.render(_COLUMNS, cells, where, indent=2).splitlines()
    lines: list[str] = []
    for store in found.stores:
        lines += [*([""] if lines else []), *table.wrap(_summary(store), where).splitlines()]
        mine = [(block, line) for (other, block), line in zip(rows, drawn, strict=True) if other is store]
        lines += [head] if mine else []
        for block, line in mine:
            lines += [line, *table.wrap(_parties(block), where, "    ", "      ").splitlines()]
        for block in store.blocks:
            if block.state == "damaged":
                lines += table.wrap(f"{block.file}: {block.reason}", where, "  ! ", "    ").splitlines()
    return lines


def _summary(store: Store) -> str:
    """Say in one line how a store stands."""
    if store.state == "damaged":
        return f"{ls.label(store.name, store.id)}: damaged, {store.reason}"
    size = size_text(store.bytes) + ("" if store.capacity is None else f" of {size_text(store.capacity)}")
    blocks = count(sum(block.kind != "handle" for block in store.blocks), "block")
    who = f"{len(store.participants)} process{'' if len(store.participants) == 1 else 'es'}"
    return f"{ls.label(store.name, store.id)}: {store.state}, {who}, {blocks}, {size}"


def _cells(block: Block, rates: Rates | None) -> list[str]:
    channel = block.channel
    if channel is None:
        return [""] * len(_COLUMNS)
    stats = channel.stats
    rated = [_number(value) for value in (rates.sent, rates.received, rates.bytes / 1e6)] if rates else ["-"] * 3
    latency = (rates.latency if rates else None) or {}
    return [
        ls.title(block),
        stats.mode,
        f"{ls.items(channel)} {', '.join(dict.fromkeys(item.dtype for item in channel.items))}",
        f"{stats.depth}/{stats.slots}",
        *rated,
        _number(rates.dropped) if rates else "-",
        f"{stats.waiting_to_send}+{stats.waiting_to_receive}",
        _duration(latency.get("p50")),
        _duration(latency.get("p99")),
    ]


def _parties(block: Block) -> str:
    """Say who puts into a channel, who takes from it, and who has slots in hand."""
    channel = block.channel
    if channel is None:
        return ""
    stats = channel.stats
    parts = [f"from {_pids(stats.producers)}"]
    if stats.mode == "broadcast":
        parts.append(f"to {_few([_subscriber(each) for each in stats.subscribers])}")
    else:
        parts.append(f"to {_pids(stats.consumers)}")
    held = Counter((pid, hand) for _, hand, pid in stats.held)
    parts += [f"{pid} {_HANDS[hand]} {count(number, 'slot')}" for (pid, hand), number in held.most_common(_PIDS)]
    if len(held) > _PIDS:
        parts.append(f"and {len(held) - _PIDS} more hold slots")
    if channel.gone:
        parts.append(f"dead: {_pids(channel.gone)}")
    if stats.lost:
        parts.append(f"{stats.lost:,} lost")
    if stats.ended:
        parts.append("ended")
    return "; ".join(parts)


def _subscriber(each: statistics.SubscriberStats) -> str:
    facts = ([f"{each.depth:,} to come"] if each.depth else []) + ([f"{each.missed:,} missed"] if each.missed else [])
    who = str(each.pid) if each.pid else "one that was dropped"
    return f"{who} ({', '.join(facts)})" if facts else who


def _pids(pids: Iterable[int]) -> str:
    return _few([str(pid) for pid in pids])


def _few(words: Sequence[str]) -> str:
    if not words:
        return "nobody"
    return ", ".join(words[:_PIDS]) + (f" +{len(words) - _PIDS}" if len(words) > _PIDS else "")


def _number(value: float) -> str:
    """Write a rate: with decimals where it is small.

    >>> _number(0), _number(0.0281), _number(3.14), _number(12345.6)
    ('0', '0.028', '3.1', '12,346')
    """
    return f"{value:,.0f}" if not value or value >= _MANY else f"{value:.{1 if value >= _LITTLE else 3}f}"


def _duration(seconds: float | None) -> str:
    """Write a short time.

    >>> _duration(0.00001234), _duration(0.0031), _duration(2), _duration(None)
    ('12 µs', '3.1 ms', '2.0 s', '-')
    """
    if seconds is None:
        return "-"
    power = min(2, max(0, -math.floor(math.log10(seconds)) + 2) // 3) if seconds > 0 else 2
    amount = seconds * 1000**power
    return f"{amount:.{0 if amount >= _MANY else 1}f} {('s', 'ms', 'µs')[power]}"


# -- in a terminal -----------------------------------------------------------------------------------------------------


def _is_live() -> bool:
    return sys.stdout is not None and sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def _watch(looks: Iterator[_Look], interval: float) -> None:
    """Draw each look over the one before. No mode of the terminal is changed: whatever ends this leaves it in order."""
    stream = sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    stream.write("\n" * shutil.get_terminal_size().lines)  # what stood there goes up, and is not drawn over
    for look in looks:
        where = table.screen(stream)  # it may be another size by now
        clock = time.strftime("%H:%M:%S")
        title = f"{clock}  {count(len(look.found.stores), 'store')}; every {interval:g} s, until Ctrl-C"
        lines = [table.shorten(title, where.width or len(title), where.encoding), "", *_text(look, where)]
        room = max(2, shutil.get_terminal_size().lines - 1)
        if len(lines) > room:
            lines = [*lines[: room - 1], f"and {len(lines) - room + 1} lines more; --once shows them"]
        stream.write("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
        stream.flush()
