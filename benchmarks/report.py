"""A result as a table, for people: text for a terminal, Markdown for a page.

Owns: what the tables look like.
Must not know: how anything was measured; it reads the result as it stands in its JSON file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.measure import count_text, rate_text, ratio_text, size_text, time_text

if TYPE_CHECKING:
    from collections.abc import Iterator

_COLUMNS = ("median", "p10", "p90", "p99")
_MARKS = {"ours": "", "rival": "", "limit": "limit: "}


def text(result: dict[str, Any]) -> str:
    """Write the whole result for a terminal."""
    lines = [*_head(result), ""]
    for case in result["cases"]:
        lines += [f"{case['name']}: {case['question']}", ""]
        for measure in case["measures"]:
            lines += _aligned([_header(case, measure), *_rows(case, measure)])
            lines += [f"  {aim['text']}" for aim in _aims(measure)]
            lines.append("")
        lines += [f"  {note}" for note in _notes(case)]
        if _notes(case):
            lines.append("")
    return "\n".join([*lines, *_tail(result)])


def markdown(result: dict[str, Any]) -> str:
    """Write the whole result for a page."""
    lines = []
    for case in result["cases"]:
        lines += [f"### {case['name']}: {case['question']}", ""]
        for measure in case["measures"]:
            header, *rows = [_header(case, measure), *_rows(case, measure)]
            lines += [_piped(header), "|" + " --- |" * len(header), *map(_piped, rows), ""]
            lines += [f"- {aim['text']}" for aim in _aims(measure)] + ([""] if measure["aims"] else [])
        lines += [f"- {note}" for note in _notes(case)] + ([""] if _notes(case) else [])
    return "\n".join([*(f"{line}  " for line in _head(result)), "", *lines, *_tail(result)])


def _head(result: dict[str, Any]) -> list[str]:
    host, versions = result["host"], result["versions"]
    memory = f"{host['memory'] / 2**30:.0f} GiB"
    named = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    head = [
        f"{host['cpu']}, {host['cores']} cores, {memory}, {host['kernel']}",
        f"{named}; revision {result['revision'] or 'unknown'}; {result['started']}, {result['elapsed']:.0f} s",
    ]
    if host["load"] > host["cores"] / 4:
        head.append(f"The machine was busy with other work (load {host['load']:g}): at most the ratios can be trusted.")
    if result["quick"]:
        head.append("A quick run: enough to see that all works, too few samples for a result.")
    return head


def _header(case: dict[str, Any], measure: dict[str, Any]) -> list[str]:
    last = "rate" if measure["nbytes"] else f"{measure['items']}/s" if measure.get("items") else "samples"
    what = "memory" if _unit(measure) == "bytes" else "time"
    return [measure["title"], *_COLUMNS, last, f"{what} ÷ {case['reference']}"]


def _unit(measure: dict[str, Any]) -> str:
    """Tell what samples are in; older results have seconds only, and do not say it."""
    unit: str = measure.get("unit", "seconds")
    return unit


def _rows(case: dict[str, Any], measure: dict[str, Any]) -> Iterator[list[str]]:
    unit = _unit(measure)
    write = size_text if unit == "bytes" else time_text
    for row in measure["rows"]:
        found, times = row[unit], row["times_reference"]
        name = row["contender"]
        label = _MARKS[case["contenders"][name]["kind"]] + name
        if measure["nbytes"]:
            last = rate_text(measure["nbytes"] / found["median"])
        else:
            last = count_text(1 / found["median"]) if measure.get("items") else str(found["count"])
        compared = ratio_text(times["median"], times["low"], times["high"]) if times else ""
        yield [label, *(write(found[column]) for column in _COLUMNS), last, compared]


def _aims(measure: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for aim in measure["aims"]:
        yield {**aim, "text": f"{aim['aim']['of']}: {aim['text']}"}


def _notes(case: dict[str, Any]) -> list[str]:
    notes = []
    for name, contender in case["contenders"].items():
        if contender["skipped"]:
            notes.append(f"{name}: skipped, {contender['skipped']}")
        if contender["failed"]:
            lines = [line for line in contender["failed"].splitlines() if line.strip("-")]
            notes.append(f"{name}: FAILED, {lines[-1]}")
        if contender["facts"]:
            facts = ", ".join(f"{key} {value:,}" for key, value in contender["facts"].items())
            notes.append(f"{name}: {facts}")
    return notes


def _tail(result: dict[str, Any]) -> list[str]:
    aims = [aim for case in result["cases"] for measure in case["measures"] for aim in measure["aims"]]
    lines = [f"{sum(aim['reached'] for aim in aims)} of {len(aims)} aims reached"] if aims else []
    if result["left"]:
        lines.append(f"LEFT in shared memory: {', '.join(result['left'])}")
    return lines


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return lines


def _piped(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
