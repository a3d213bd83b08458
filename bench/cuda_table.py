"""The table of bench/gpu_check.sh: reads its JSON lines, prints them as one table, writes one JSON beside it.

python bench/cuda_table.py parts.jsonl --json gpu_check.json
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from pathlib import Path
from typing import Any

FIGURES = ("tokens_per_second", "ms", "us", "gb_s", "tflops", "of_floor", "of_copy", "of_gemm", "error", "target")


def read(path: Path) -> list[dict[str, Any]]:
    """One record a line; a line that a time limit cut off becomes a record that says so."""
    return [_record(line) for line in path.read_text().splitlines()]


def _record(line: str) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError:
        return {"part": "table", "case": "a line was cut off", "failed": line[:80]}
    return record


def row(record: dict[str, Any], compiled: dict[str, float]) -> str:
    """One line of the table. compiled: of cases that transformers ran compiled, its tokens a second."""
    name = record["case"] + (f" ({record['engine']})" if "engine" in record else "")
    figures = [f"{key} {record[key]}" for key in FIGURES if record.get(key) is not None]
    if "failed" in record:
        figures.append(f"FAILED {record['failed']}")
    if record["case"] in compiled and "engine" not in record:
        figures.append(f"{record['tokens_per_second'] / compiled[record['case']]:.2f} x transformers compiled")
    return f"{record['part']:<13} {name:<52} {', '.join(figures)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    records = read(args.parts)
    compiled = {
        record["case"]: record["tokens_per_second"]
        for record in records
        if "compiled" in record.get("engine", "") and "tokens_per_second" in record
    }
    for record in records:
        if record["case"] == "status":
            outcome = "ok" if record["exit"] == 0 else f"FAILED (exit {record['exit']})"
            print(f"{record['part']:<13} {outcome} in {record['seconds']} s")
        elif record["case"] == "ceilings":
            print(", ".join(f"{key} {value}" for key, value in record.items() if key not in ("part", "case")))
        elif record["case"] != "versions":
            print(row(record, compiled))
    args.json.write_text(json.dumps({"date": date.today().isoformat(), "records": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
