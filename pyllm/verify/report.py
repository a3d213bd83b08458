"""What a comparison found: rows, checks and the whole, as text and as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .measure import Difference

PASS, FAIL, SKIPPED = "pass", "fail", "skipped"
SHOWN = 8  # failed rows of one check in the table


@dataclass(frozen=True)
class Row:
    """One comparison. detail: what differs, "" when nothing does. difference: of arrays."""

    label: str
    verdict: str
    detail: str = ""
    difference: Difference | None = None


@dataclass(frozen=True)
class Check:
    """Comparisons of one sort. note: the worst of their numbers in words, or why there are none."""

    name: str
    rows: Sequence[Row] = ()
    note: str = ""

    @property
    def verdict(self) -> str:
        """fail if any row does; skipped without any that is judged."""
        verdicts = {row.verdict for row in self.rows}
        return FAIL if FAIL in verdicts else PASS if PASS in verdicts else SKIPPED

    @property
    def agreed(self) -> int:
        """Rows that agree."""
        return sum(row.verdict == PASS for row in self.rows)

    @property
    def share(self) -> str:
        """Rows that agree, of how many."""
        return f"{self.agreed}/{len(self.rows)}" if self.rows else "-"


@dataclass(frozen=True)
class Report:
    """A model beside a reference. tolerance: see `verify`."""

    model: str
    family: str
    kind: str
    runs_as: str
    reference: str
    version: str
    tolerance: float
    checks: Sequence[Check] = field(default=())

    @property
    def agrees(self) -> bool:
        """Whether something was compared, and nothing failed."""
        verdicts = [check.verdict for check in self.checks]
        return PASS in verdicts and FAIL not in verdicts

    @property
    def verdict(self) -> str:
        """In words."""
        failed = [check.name for check in self.checks if check.verdict == FAIL]
        if failed:
            return f"DIFFERS in {', '.join(failed)}"
        return "agrees" if self.agrees else "nothing was compared"

    def to_dict(self) -> dict[str, Any]:
        """For JSON: numbers that are none become null."""
        about = {name: value for name, value in asdict(self).items() if name != "checks"}
        checks = [
            {
                "name": check.name,
                "verdict": check.verdict,
                "compared": len(check.rows),
                "agreed": check.agreed,
                "note": check.note,
                "rows": [asdict(row) for row in check.rows],
            }
            for check in self.checks
        ]
        found: dict[str, Any] = _plain({**about, "verdict": self.verdict, "agrees": self.agrees, "checks": checks})
        return found

    def table(self) -> str:
        """A verdict for each check, then the first rows that failed."""
        lines = [
            f"model      {self.model}: {self.family}, {self.kind}, {self.runs_as}",
            f"reference  {self.reference}",
            "",
        ]
        width = max((len(check.name) for check in self.checks), default=5)
        lines += [
            f"{check.name:<{width}}  {check.verdict:<7}  {check.share:>7}  {check.note}".rstrip()
            for check in self.checks
        ]
        for check in self.checks:
            failed = [row for row in check.rows if row.verdict == FAIL]
            lines += ["", *(f"{check.name}, {row.label}: {row.detail}" for row in failed[:SHOWN])] if failed else []
            lines += [f"{check.name}: {len(failed) - SHOWN} more"] if len(failed) > SHOWN else []
        return "\n".join([*lines, "", f"verdict    {self.verdict}"])


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
