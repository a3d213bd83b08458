"""A report as one HTML page that needs nothing else: verdicts, plots of the differences, every row."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from . import plots
from .measure import Difference
from .report import FAIL, Check, Report, Row

STYLE = """
:root { --ink: #1b1f24; --soft: #5b6570; --paper: #f7f7f5; --card: #fff; --edge: #e0e2e4; --good: #1a7f4b;
  --bad: #c0362c; --none: #7a828a; --bar: #3b6fb6; --limit: #c0362c;
  --c0: #3b6fb6; --c1: #d9822b; --c2: #2a9d76; --c3: #a8519b; --c4: #8a7b2f; --c5: #5c6bc0; color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --soft: #a2abb5; --paper: #14171a; --card: #1d2125; --edge: #343a40; --good: #4cc38a;
    --bad: #f2766b; --none: #8d96a0; --bar: #7aa8e6; --limit: #f2766b;
    --c0: #7aa8e6; --c1: #f0a45d; --c2: #5ccda2; --c3: #d58bca; --c4: #cdbb62; --c5: #a0a9ee; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 24px; margin: 0 0 2px; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 0 0 10px; display: flex; gap: 10px; align-items: baseline; flex-wrap: wrap; }
.about { color: var(--soft); margin: 0 0 22px; }
.about span + span::before { content: "\\00b7"; margin: 0 8px; }
.verdict { display: flex; gap: 12px; align-items: center; border: 1px solid var(--edge); border-left: 6px solid;
  background: var(--card); border-radius: 8px; padding: 12px 18px; margin: 0 0 22px; font-size: 18px; font-weight: 600;
}
.verdict.pass { border-left-color: var(--good); } .verdict.fail { border-left-color: var(--bad); }
.card { background: var(--card); border: 1px solid var(--edge); border-radius: 8px; padding: 16px 18px;
  margin: 0 0 18px; }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: 13px; }
th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--edge); vertical-align: top; }
tr:last-child td { border-bottom: 0; }
td.text { overflow-wrap: anywhere; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
.pill { display: inline-block; min-width: 64px; text-align: center; border-radius: 99px; padding: 0 10px;
  border: 1px solid; font-size: 13px; font-weight: 600; }
.pass .pill, .pill.pass { color: var(--good); } .fail .pill, .pill.fail { color: var(--bad); }
.pill.skipped { color: var(--none); }
table.rows { margin-top: 10px; } table.rows td:first-child { width: 90px; } table.rows td:nth-child(2) { width: 36%; }
.note { color: var(--soft); font-weight: 400; font-size: 14px; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 10px 18px; }
figure { margin: 0; } figcaption { font-size: 13px; color: var(--soft); margin: 0 0 2px; }
svg { width: 100%; height: auto; display: block; }
.tick { fill: var(--soft); font-size: 10px; } .mid { text-anchor: middle; } .end { text-anchor: end; }
.grid { stroke: var(--edge); } .base { stroke: var(--soft); } .bar { fill: var(--bar); }
.dot { fill: var(--bar); fill-opacity: .55; } .line { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
.limit { stroke: var(--limit); stroke-dasharray: 5 4; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; font-size: 13px; color: var(--soft); margin: 6px 0 0; }
.legend i { display: inline-block; width: 14px; height: 3px; border-radius: 2px; margin-right: 6px;
  vertical-align: middle; }
.legend i.dashed { height: 0; border-top: 2px dashed var(--limit); border-radius: 0; }
details { margin-top: 10px; } summary { cursor: pointer; color: var(--soft); font-size: 14px; }
"""
SHOWN_LINES = 6  # inputs in one plot


def page(report: Report) -> str:
    """The page as text."""
    verdict = "pass" if report.agrees else "fail"
    about = (
        f"{report.family}, {report.kind}",
        f"pyllm {report.version}, {report.runs_as}",
        f"beside {report.reference}",
    )
    spans = "".join(f"<span>{escape(part)}</span>" for part in about)
    words = report.verdict.capitalize() if report.verdict.startswith("nothing") else f"This model {report.verdict}"
    cards = "".join(_card(check, report.tolerance) for check in report.checks if check.rows)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.model)}: {escape(report.verdict)}</title><style>{STYLE}</style></head><body><main>"
        f'<h1>{escape(report.model)}</h1><p class="about">{spans}</p>'
        f'<p class="verdict {verdict}">{escape(words)}</p>'
        f"{_summary(report.checks)}{cards}</main></body></html>\n"
    )


def _summary(checks: Sequence[Check]) -> str:
    rows = "".join(
        f'<tr><td>{escape(check.name)}</td><td><span class="pill {check.verdict}">{check.verdict}</span></td>'
        f'<td class="number">{check.share}</td><td class="text">{escape(check.note)}</td></tr>'
        for check in checks
    )
    head = "<tr><th>Check</th><th>Verdict</th><th>Agree</th><th>Numbers</th></tr>"
    return f'<section class="card"><table>{head}{rows}</table></section>'


def _card(check: Check, tolerance: float) -> str:
    title = f'{escape(check.name)} <span class="pill {check.verdict}">{check.verdict}</span>'
    title += f'<span class="note">{escape(check.note)}</span>' if check.note else ""
    failed = [row for row in check.rows if row.verdict == FAIL]
    body = _rows(failed) if failed else ""
    every = f"<details><summary>all {len(check.rows)} comparisons</summary>{_rows(check.rows)}</details>"
    return f'<section class="card"><h2>{title}</h2>{_plots(check, tolerance)}{body}{every}</section>'


def _rows(rows: Sequence[Row]) -> str:
    cells = "".join(
        f'<tr><td><span class="pill {row.verdict}">{row.verdict}</span></td><td class="text">{escape(row.label)}</td>'
        f'<td class="text">{escape(row.detail or _numbers(row.difference))}</td></tr>'
        for row in rows
    )
    return f'<table class="rows">{cells}</table>'


def _numbers(difference: Difference | None) -> str:
    if difference is None:
        return ""
    return (
        f"max |\u0394| {difference.max_abs:.2e}, mean {difference.mean_abs:.1e}, deviation {difference.deviation:.3g}"
    )


def _plots(check: Check, tolerance: float) -> str:
    """Three plots of a check's differences, "" for one of tokens."""
    found = [(row.label, row.difference) for row in check.rows if row.difference is not None]
    if not found:
        return ""
    limit = tolerance * max(1.0, min(each.deviation for _, each in found))
    shown = sorted(found, key=lambda pair: -pair[1].max_abs)[:SHOWN_LINES]
    counts = [sum(each) for each in zip(*(each.histogram for _, each in found), strict=True)]
    points = [point for _, each in found for point in each.points]
    legend = "".join(
        f'<span><i style="background:var(--c{number})"></i>{escape(label)}</span>'
        for number, (label, _) in enumerate(shown)
    )
    figures = (
        ("Largest difference at each token", plots.by_position([(name, e.by_row) for name, e in shown], limit)),
        ("How large the differences are", plots.histogram(counts)),
        ("Differences beside the reference\u2019s values", plots.scatter(points, limit)),
    )
    drawn = "".join(f"<figure><figcaption>{title}</figcaption>{plot}</figure>" for title, plot in figures)
    dashed = f'<span><i class="dashed"></i>agrees up to {limit:.1e}</span>'
    return f'<div class="plots">{drawn}</div><p class="legend">{legend}{dashed}</p>'
