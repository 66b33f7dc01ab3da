"""What a soak counted.

Owns: the numbers, adding those of several lanes, the verdict, and the text.
Must not know: how anything is counted.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

#: What must be zero, and what it is called.
FAULTS = {
    "leaked": "names leaked",
    "hangs": "hangs",
    "crashes": "crashes of survivors",
    "vanished": "blocks removed under a live user",
    "torn": "arrays torn or changed",
    "refused": "refusals in a living store",
    "errors": "undocumented errors",
    "processes": "processes left",
    "slow": "owners' deaths not cleared up within 1 s",
    "stderr": "lines on standard error",
}


@dataclasses.dataclass
class Tally:
    """Counts of one lane, or of all."""

    kills: Counter[str] = dataclasses.field(default_factory=Counter)
    methods: Counter[str] = dataclasses.field(default_factory=Counter)
    endings: Counter[str] = dataclasses.field(default_factory=Counter)
    faults: Counter[str] = dataclasses.field(default_factory=Counter)
    details: list[str] = dataclasses.field(default_factory=list)
    clearing: list[float] = dataclasses.field(default_factory=list)
    troupes: int = 0
    steps: int = 0
    loaded: int = 0
    poisoned: int = 0
    left_for_the_next: int = 0

    @property
    def killed(self) -> int:
        """Processes that were killed."""
        return sum(self.kills.values())

    @property
    def sound(self) -> bool:
        """Whether nothing went wrong."""
        return not any(self.faults.values())

    def fault(self, kind: str, detail: str) -> None:
        """Count something that went wrong."""
        self.faults[kind] += 1
        if len(self.details) < 50:
            self.details.append(f"{kind}: {detail}")

    def add(self, other: Tally) -> None:
        """Add the counts of another lane."""
        for field in dataclasses.fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if isinstance(mine, Counter):
                mine.update(theirs)
            else:
                setattr(self, field.name, mine + theirs)

    def as_dict(self, seed: int, seconds: float) -> dict[str, Any]:
        """Everything, for a program."""
        return {
            "seed": seed,
            "seconds": round(seconds, 1),
            "killed": self.killed,
            "kills": dict(self.kills),
            "methods": dict(self.methods),
            "endings": dict(self.endings),
            "troupes": self.troupes,
            "steps": self.steps,
            "handles_loaded": self.loaded,
            "guards_recovered": self.poisoned,
            "left_for_the_next": self.left_for_the_next,
            "clearing_seconds": {"median": _quantile(self.clearing, 0.5), "max": _quantile(self.clearing, 1)},
            "faults": {kind: self.faults[kind] for kind in FAULTS},
            "sound": self.sound,
            "details": self.details,
        }

    def text(self, seed: int, seconds: float) -> str:
        """Everything, for a person."""
        lines = [
            (
                f"seed {seed}, {seconds:.0f} s, {self.troupes} stores, {self.steps} steps of work, "
                f"{self.loaded} arrays handed over, {self.poisoned} guards of the dead recovered"
            ),
            f"killed {self.killed}: {_list(self.kills)}",
            f"start methods: {_list(self.methods)}; ends of stores: {_list(self.endings)}",
            (
                f"after an owner's death the guardian had unlinked everything in {_quantile(self.clearing, 0.5) * 1e3:.0f} ms (median), "
                f"{_quantile(self.clearing, 1) * 1e3:.0f} ms (longest of {len(self.clearing)}); "
                f"{self.left_for_the_next} stores were left to the next one, their guardians being dead"
            ),
            *self.details,
            f"verdict: {'sound' if self.sound else 'NOT SOUND'}: {self.killed} kills, "
            + ", ".join(f"{self.faults[kind]} {what}" for kind, what in FAULTS.items()),
        ]
        return "\n".join(lines)


def _list(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(counts.items(), key=lambda item: -item[1]))


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0
