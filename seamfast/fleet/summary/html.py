"""The summary of a fleet as one HTML page: no network, one file; a small script sorts and filters its table."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Sequence

from seamfast._version import __version__
from seamfast.documents.markup import Child, Markup, element, visible
from seamfast.documents.style import STYLE
from seamfast.fleet.summary.figures import GOOD, MEANINGS, Row, Tally, histogram, quantile

MOST_ROWS, _MOST_URGENT = 2000, 30
_REPORT = re.compile(r"(jobs|quarantine)/[A-Za-z0-9][A-Za-z0-9._-]*/[a-z.]+")
_LOST = (-0.05, -0.03, -0.01, 0.01, 0.03, 0.05, 0.1, 0.2, 1.0)
_RATES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0)
_HEIGHT, _TOP, _BOTTOM = 176, 22, 146  # of a chart, in pixels: all, and where 100 % and 0 % are

_STYLE = """
.outcomes { display: flex; flex-wrap: wrap; gap: .5rem .75rem; margin: 1rem 0; padding: 0; list-style: none;
  max-width: none; }
.outcomes li { margin: 0; }
.outcomes b { font-variant-numeric: tabular-nums; }
[hidden] { display: none !important; }  /* the stylesheet's own display would win otherwise */
.accepted { background: #009e73; } .undecided { background: #e69f00; } .quarantined { background: #cc79a7; }
.refused, .fail { background: #d55e00; } .invalid { background: #f0e442; } .error { background: #56b4e9; }
.waiting { background: var(--shade); color: var(--ink); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 1rem 2rem; }
.charts figure { margin: 0; min-width: 0; }
.charts h3 { margin: 1rem 0 .25rem; }
.charts svg text { font-size: 12px; }
.charts figcaption { margin-top: .25rem; text-wrap: pretty; }
.bar { fill: var(--after); } .bar.before { fill: var(--before); fill-opacity: .75; }
.tools { display: flex; flex-wrap: wrap; align-items: center; gap: .75rem; margin: .75rem 0; }
.tools label { display: inline-flex; gap: .5rem; align-items: center; color: var(--soft); font-size: .9rem; }
.tools input, .tools select { font: inherit; color: inherit; background: var(--panel); padding: .3rem .5rem;
  border: 1px solid var(--rule); border-radius: .3rem; max-width: 16rem; }
.box { --wide: max(100%, min(100vw - 4rem, 78rem)); overflow-x: auto; width: var(--wide);
  margin-left: calc((100% - var(--wide)) / 2); }
.jobs { font-size: .9rem; }
.jobs td, .jobs th { padding: .4rem .7rem .4rem 0; white-space: nowrap; vertical-align: middle; }
.jobs td:nth-child(3) { max-width: 9rem; overflow: hidden; text-overflow: ellipsis; }
.jobs tbody th { max-width: 16rem; overflow: hidden; text-overflow: ellipsis; }
.jobs th:first-child { position: sticky; left: 0; z-index: 1; background: var(--paper); }
.jobs thead th { white-space: normal; vertical-align: bottom; }
.jobs .number, .jobs .number button { text-align: right; }
.jobs button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer;
  text-align: left; }
.jobs button::after { content: "\\2195"; padding-left: .2em; opacity: .4; }
.jobs [aria-sort="ascending"] button::after { content: "\\2191"; opacity: 1; }
.jobs [aria-sort="descending"] button::after { content: "\\2193"; opacity: 1; }
a { color: inherit; }
a:focus-visible, button:focus-visible, input:focus-visible, select:focus-visible, .box:focus-visible {
  outline: 2px solid var(--after); outline-offset: 2px; }
.urgent { list-style: none; padding: 0; max-width: none; }
.urgent li { display: grid; grid-template-columns: 8.5rem minmax(0, 15rem) minmax(0, 1fr); gap: 0 1rem;
  align-items: baseline; margin: .35rem 0; }
.urgent .chip { justify-self: start; }
@media screen and (max-width: 46rem) {
  .urgent li { grid-template-columns: auto minmax(0, 1fr); margin: .7rem 0; }
  .urgent .note { grid-column: 1 / -1; }
  .jobs, .jobs tbody { display: table; width: 100%; } .jobs tbody { display: table-row-group; }
  .jobs thead th { border-top: 0; }
  .jobs thead { position: static; width: auto; height: auto; clip-path: none; display: table-header-group; }
  .jobs tr { display: table-row; }
  .jobs td, .jobs th, .jobs tbody th, .jobs tbody td { display: table-cell; padding: .4rem .9rem .4rem 0;
    border-top: 1px solid var(--rule); }
  .jobs tbody th { max-width: 11rem; }
}
@media print { .tools { display: none; } .box { overflow: visible; } }
"""

# Without it the table is there, in the order of urgency. It reads cells, and makes no element and no request.
_SCRIPT = """
const table = document.querySelector('.jobs'), body = table.tBodies[0], rows = [...body.rows];
const text = document.querySelector('#text'), outcome = document.querySelector('#outcome');
const shown = document.querySelector('#shown');
document.querySelector('.tools').hidden = false;
const show = () => {
  const words = text.value.toLowerCase();
  let n = 0;
  for (const row of rows) {
    const is = (outcome.selectedIndex === 0 || row.dataset.outcome === outcome.value) &&
      (!words || row.textContent.toLowerCase().includes(words));
    row.hidden = !is;
    n += is;
  }
  shown.textContent = `${n} of ${rows.length} jobs`;
};
text.addEventListener('input', show);
outcome.addEventListener('change', show);
const heads = [...table.tHead.rows[0].cells];
heads.forEach((head, place) => head.querySelector('button').addEventListener('click', () => {
  const down = head.getAttribute('aria-sort') === 'ascending' ? -1 : 1;
  heads.forEach(other => other.removeAttribute('aria-sort'));
  head.setAttribute('aria-sort', down === 1 ? 'ascending' : 'descending');
  const numeric = head.classList.contains('number');
  const key = row => numeric ? row.cells[place].dataset.value ?? '' : row.cells[place].textContent;
  rows.sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (!numeric) return down * x.localeCompare(y);
    return (x === '') - (y === '') || down * (x - y);
  });
  body.append(...rows);
}));
show();
"""

_SIDES = {"before": "as received", "after": "sanitized"}
_COLUMNS = (
    ("ACC before", "accuracy_before"),
    ("ACC lost", "accuracy_lost"),
    ("ASR before", "asr_before"),
    ("ASR after", "asr_after"),
    ("Battery before", "battery_before"),
    ("Battery after", "battery_after"),
    ("Disagreement", "disagreement"),
)


def as_html(tally: Tally, *, name: str, created: str, seconds: float | None, workers: int | None) -> bytes:
    """One self-contained page in UTF-8: counts, distributions, what needs a look, all jobs.

    All strings of the rows are text. Long lists are cut, with a note. Equal arguments give equal bytes.

    Args:
        tally: of the rows that ``seamfast.fleet.rows`` gives.
        name: of the fleet's folder.
        created: time, in ISO 8601.
        seconds, workers: of the last call, where known.
    """
    allowed = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{allowed}'; "
    names = (("viewport", "width=device-width, initial-scale=1"), ("color-scheme", "light dark"))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=f"{policy}base-uri 'none'; form-action 'none'"),
        [element("meta", name=key, content=value) for key, value in (*names, ("referrer", "no-referrer"))],
        element("title", f"Fleet {visible(name, 80)} – seamfast"),
        element("link", rel="icon", href="data:,"),  # without it browsers request one
        element("style", Markup(STYLE + _STYLE)),
    )
    body = element(
        "body",
        element("header", _line(name, created), _counts(tally, seconds, workers)),
        element("main", _charts(tally), _urgent(tally), _table(tally)),
        element(
            "footer",
            element(
                "p", f"Written by seamfast {__version__}. For programs: summary.csv, summary.jsonl.", class_="soft"
            ),
        ),
        element("script", Markup(_SCRIPT)) if tally.n_rows else None,
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en-GB')}\n".encode()


def _line(name: str, created: str) -> Markup:
    when = element("time", visible(created), datetime=visible(created))
    return element(
        "div",
        element("span", "seamfast fleet"),
        element("span", element("code", visible(name, 200))),
        element("span", when, class_="soft"),
        class_="line",
    )


def _counts(tally: Tally, seconds: float | None, workers: int | None) -> Markup:
    found, n_jobs = tally.outcomes(), tally.n_jobs
    chips = [
        element(
            "li",
            element("span", element("b", f"{n:,}"), f" {outcome}", class_=f"chip {outcome}", title=MEANINGS[outcome]),
        )
        for outcome, n in found.items()
    ]
    facts = []
    if seconds is not None:
        facts.append(f"{seconds:,.0f} s in all")
    if workers is not None:
        facts.append(f"{workers:,} {'worker' if workers == 1 else 'workers'}")
    if times := tally.column("seconds"):
        facts.append(f"{quantile(times, 0.5):.1f} s a job in the median, {times[-1]:.1f} s at most")
    return element(
        "div",
        element("h1", f"{n_jobs:,} {'model' if n_jobs == 1 else 'models'}"),
        element("ul", chips, class_="outcomes"),
        element("p", "; ".join(facts), class_="soft") if facts else None,
    )


# ---- Charts ----


def _charts(tally: Tally) -> Markup | None:
    figures = [
        _chart("Accuracy lost", "of the model, on held-out samples", _LOST, [("after", tally.column("accuracy_lost"))]),
        _chart("Attack success (ASR)", "largest of the known triggers", _RATES, _both(tally, "asr")),
        _chart("Battery", "largest rate of known kinds of triggers, blind", _RATES, _both(tally, "battery")),
        _chart(
            "Disagreement",
            "of both models on perturbed samples, blind",
            _RATES,
            [("after", tally.column("disagreement"))],
        ),
        _chart("Seconds", "of a job", _second_edges(tally.column("seconds")), [("after", tally.column("seconds"))]),
    ]
    kept = [figure for figure in figures if figure is not None]
    return element("section", element("h2", "Distributions"), element("div", kept, class_="charts")) if kept else None


def _both(tally: Tally, name: str) -> list[tuple[str, list[float]]]:
    return [(when, tally.column(f"{name}_{when}")) for when in ("before", "after")]


def _second_edges(values: Sequence[float]) -> tuple[float, ...]:
    """Eight buckets up to the largest value, each 1, 2, 2.5 or 5 times a power of ten wide."""
    wide = max(max(values, default=1.0) / 8, 1e-3)
    power = 10.0 ** math.floor(math.log10(wide))
    width = next((step * power for step in (1.0, 2.0, 2.5, 5.0) if step * power >= wide), 10.0 * power)
    return tuple(width * place for place in range(9))


def _chart(
    title: str, what: str, edges: Sequence[float], series: Sequence[tuple[str, Sequence[float]]]
) -> Markup | None:
    """Shares of the models by bucket; a bar for each series, side by side."""
    known = [(side, values) for side, values in series if values]
    if not known:
        return None
    in_percent = edges[-1] <= 1 and title != "Seconds"
    tall = max(max(histogram(values, edges)) / len(values) for _, values in known)
    n_buckets = len(edges) - 1
    shapes: list[Child] = [element("text", "share of models", x="-52", y="10")]
    shapes += [_grid(share, tall) for share in (0.0, 0.5, 1.0)]
    described = []
    for number, (side, values) in enumerate(known):
        width = 0.8 / len(known)
        for bucket, n in enumerate(histogram(values, edges)):
            share = n / len(values)
            height = (_BOTTOM - _TOP) * share / tall
            left = (bucket + 0.1 + number * width) / n_buckets
            ends = " to ".join(_edge(edge, in_percent) for edge in edges[bucket : bucket + 2])
            label = f"{n:,} of {len(values):,} models: {ends}"
            shapes.append(
                element(
                    "rect",
                    element("title", label),
                    x=f"{100 * left:.2f}%",
                    y=f"{_BOTTOM - height:.1f}",
                    width=f"{100 * width / n_buckets:.2f}%",
                    height=f"{height:.1f}",
                    class_=f"bar {side}" if len(known) > 1 else "bar",
                )
            )
        name = f"{_SIDES[side]}: " if len(known) > 1 else ""
        median, last = (_edge(quantile(values, share), in_percent) for share in (0.5, 1.0))
        described.append(f"{name}median {median}, largest {last}, {len(values):,} models")
    ticks = [
        element(
            "text",
            _edge(edge, in_percent),
            x=f"{100 * place / n_buckets:.2f}%",
            y=str(_BOTTOM + 18),
            text_anchor="middle",
        )
        for place, edge in enumerate(edges)
        if place % 2 == 0
    ]
    picture = element(
        "svg",
        shapes,
        ticks,
        width="100%",
        height=str(_HEIGHT),
        role="img",
        aria_label=f"{title}: {'; '.join(described)}",
    )
    key = [element("span", _swatch(side), _SIDES[side]) for side, _ in known]
    return element(
        "figure",
        element("h3", title),
        element("div", key, class_="key") if len(known) > 1 else None,
        element("div", picture, class_="plot"),
        element("figcaption", f"{what}; {'; '.join(described)}"),
    )


def _grid(share: float, tall: float) -> list[Markup]:
    y = _BOTTOM - share * (_BOTTOM - _TOP)
    line = element("line", x1="0%", x2="100%", y1=f"{y:.1f}", y2=f"{y:.1f}", class_="grid")
    return [line, element("text", f"{100 * share * tall:.0f}%", x="-8", y=f"{y + 4:.1f}", text_anchor="end")]


def _swatch(side: str) -> Markup:
    return element("svg", element("rect", width="12", height="12", class_=f"bar {side}"), width="12", height="12")


def _edge(value: float, in_percent: bool) -> str:
    if in_percent:
        return f"{100 * value:.3g}%".replace("-", "−")
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


# ---- Jobs ----


def _urgent(tally: Tally) -> Markup | None:
    urgent = [row for row in tally.first() if row["outcome"] not in GOOD]
    if not urgent:
        return None
    lines: list[Child] = [
        element(
            "li",
            _chip(row["outcome"]),
            element("span", _link(row)),
            element("span", row["reason"] or "–", class_="note"),
        )
        for row in urgent[:_MOST_URGENT]
    ]
    found = tally.outcomes()
    more = sum(n for outcome, n in found.items() if outcome not in (*GOOD, "waiting")) - _MOST_URGENT
    note = element("p", f"{more:,} more are in the table below.", class_="soft") if more > 0 else None
    return element("section", element("h2", "What needs a look"), element("ul", lines, class_="urgent"), note)


def _table(tally: Tally) -> Markup | None:
    rows = tally.first()
    if not rows:
        return None
    heads = [
        _head("Job"),
        _head("Outcome"),
        _head("Architecture"),
        *(_head(label, number=True) for label, _ in _COLUMNS),
        _head("Seconds", number=True),
        _head("Attempts", number=True),
    ]
    lines = [
        element(
            "tr",
            element("th", _link(row), scope="row"),
            element("td", _chip(row["outcome"])),
            element("td", row["architecture"] or "–"),
            [_number(row[name], 100, ".1f") for _, name in _COLUMNS],
            _number(row["seconds"], 1, ".1f"),
            _number(row["attempts"], 1, ".0f"),
            data_outcome=row["outcome"],
        )
        for row in rows
    ]
    more = tally.n_rows - len(rows)
    note = f"{more:,} more jobs are in summary.csv. " if more > 0 else ""
    options = [
        element("option", "all"),
        *(element("option", outcome, value=outcome) for outcome in tally.outcomes() if outcome != "waiting"),
    ]
    tools = element(
        "div",
        element("label", "Find", element("input", type="search", id="text")),
        element("label", "Outcome", element("select", options, id="outcome")),
        element("span", id="shown", class_="soft", role="status"),
        class_="tools",
        hidden="hidden",
    )
    table = element(
        "table",
        element("caption", "All jobs", class_="soft", hidden="hidden"),
        element("thead", element("tr", heads)),
        element("tbody", lines),
        class_="jobs",
    )
    return element(
        "section",
        element("h2", "All jobs"),
        element("p", f"{note}Accuracies and rates in percent.", class_="soft"),
        tools,
        element("div", table, class_="box", tabindex="0", role="region", aria_label="All jobs"),
    )


def _head(label: str, *, number: bool = False) -> Markup:
    return element("th", element("button", label, type="button"), scope="col", class_="number" if number else None)


def _number(value: float | None, scale: int, style: str) -> Markup:
    if value is None:
        return element("td", element("span", "–", class_="soft"), class_="number")
    shown = format(scale * value, style)
    return element("td", shown.replace("-", "−"), class_="number", data_value=f"{value:.6g}")


def _chip(outcome: str) -> Markup:
    return element("span", outcome, class_=f"chip {outcome}")


def _link(row: Row) -> Markup:
    name = element("bdi", visible(row["id"], 200))
    if row["report"] is None or not _REPORT.fullmatch(row["report"]):
        return name
    return element("a", name, href=row["report"])
