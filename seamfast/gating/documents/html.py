"""The gate report as one HTML page: no script, no network, one file."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from seamfast.documents.markup import Child, Markup, element, visible
from seamfast.documents.style import STYLE
from seamfast.gating.documents import wording
from seamfast.gating.documents.charts import curve, dots, scale
from seamfast.gating.documents.png import as_png

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_MOST_ROWS, _MOST_LINES, _MOST_PICTURES, _MOST_CLASSES = 200, 100, 16, 5
_LARGEST_PICTURE = 96  # pixels a side; larger ones are reduced
_MOST_FINDS, _MOST_TEXTS = 20, 60
_BOTH = ("as received", "sanitized")
_TEXTS = {
    "vocabulary": (
        "With tokens and phrases that were found",
        "Clean texts of other classes, with what the search found put before them, and the answers of both models.",
    ),
    "disagreement": (
        "Where the two models disagree",
        "Perturbed texts on which the received and the sanitized model give different answers; marked is what the "
        "clean text does not have.",
    ),
}

Pictures = npt.NDArray[np.uint8]
Values = Mapping[str, Any]  # of the report, or of a part of it
Row = tuple[Child, Values | None, Values | None]  # its name, and the two rates


def as_html(report: Values, pictures: Mapping[str, Pictures]) -> bytes:
    """One self-contained page in UTF-8: the verdict first, then the evidence.

    All strings of the report are text, unprintable characters escapes. Long lists, names and images are cut, with a
    note, so the page stays below a few megabytes. Equal reports and pictures give equal bytes.

    Args:
        report: a gate report, by ``schema/gate-report-v1.json``.
        pictures: uint8 ``(N, H, W, C)`` by ``"samples"``, ``"patterns_before"``, ``"patterns_after"`` (one a class of
            the inversion, in its order) and ``"disagreement"``; each may be missing.
    """
    outcome = report["verdict"]["outcome"]
    whole = outcome not in ("refused", "incomplete")
    parts = [_rules(report), _evidence(report), _run(report)] if whole else []
    parts += [_pictures(report, pictures), _sentences(report)] if whole else []
    sections = [*parts, _statements(report), _files(report), _settings(report)]
    tool = f"{report['tool']['name']} {report['tool']['version']}"
    names = (("viewport", "width=device-width, initial-scale=1"), ("color-scheme", "light dark"))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        [element("meta", name=name, content=content) for name, content in (*names, ("referrer", "no-referrer"))],
        element("title", f"{wording.TITLES[outcome]}: {visible(report['model']['path'], 80)} – seamfast intake gate"),
        element("link", rel="icon", href="data:,"),  # without it browsers request one
        element("style", Markup(STYLE)),
    )
    body = element(
        "body",
        element("header", _line(report), _verdict(report)),
        element("main", sections),
        element("footer", element("p", f"Written by {tool}. Full report for programs: report.json.", class_="soft")),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en-GB')}\n".encode()


# ---- Sections, in the order of the page. ----


def _line(report: Values) -> Markup:
    when = element("time", wording.moment(report["created"]), datetime=visible(report["created"]))
    parts = [element("span", "seamfast intake gate"), element("span", _name(report["model"]["path"]))]
    return element("div", parts, element("span", when, class_="soft"), class_="line")


def _verdict(report: Values) -> Markup:
    verdict, refusal = report["verdict"], report["refusal"]
    outcome = verdict["outcome"]
    title = element("span", _symbol(outcome), wording.TITLES[outcome])
    return element(
        "div",
        element("h1", title, element("span", f"exit code {verdict['exit_code']}", class_="exit")),
        element("p", wording.MEANINGS[outcome]),
        _list(verdict["reasons"]),
        None if refusal is None else element("p", "Refusal code: ", _name(refusal["code"])),
        class_=f"verdict {outcome}",
    )


def _rules(report: Values) -> Markup | None:
    policy = report["policy"]
    if policy is None or not policy["rules"]:
        return None
    rules, more = wording.first(wording.by_urgency(policy["rules"]), _MOST_ROWS)
    rows = [
        (
            [_name(rule["id"]), _note(_name(rule["metric"])), _note(rule["reason"])],
            _chip(rule["outcome"]),
            wording.measured(rule, "value"),
            wording.interval(rule),
            wording.measured(rule, "bound"),
            wording.requirement(rule),
            [wording.samples(rule), _note(f"{rule['min_samples']:,} required") if rule["min_samples"] else None],
        )
        for rule in rules
    ]
    return _section(
        "Rules of the policy",
        element("p", "A rule passes if the bound of its interval on the bad side meets the requirement."),
        _table(("Rule", "Outcome", "Measured", "Interval", "Bound", "Required", "Samples"), rows, "rules"),
        _more(more),
    )


def _evidence(report: Values) -> Markup | None:
    before, after = report["audit"]["before"], report["audit"]["after"]
    if before is None:
        return None
    return _section(
        "Before and after",
        _accuracy_and_battery(report, before, after),
        None if after is None else _lost_classes(report, before, after),
        _inversion(report, before, after),
        _vocabulary(report, before, after),
        _disagreement(report),
    )


def _accuracy_and_battery(report: Values, before: Values, after: Values | None) -> list[Child]:
    change = report["audit"]["change"]
    by_name = {} if after is None else {result["name"]: result for result in after["battery"]}
    battery, more = wording.first(before["battery"], _MOST_ROWS)
    n = before["clean_accuracy"]["n_total"]

    def lost_answers(before: Values, after: Values | None) -> Markup | None:
        counts = (before["n_not_finite"], None if after is None else after["n_not_finite"])
        return _note(wording.not_finite_counts(counts, n))

    rows: list[Row] = [
        (["Clean accuracy", lost_answers(before, after)], before["clean_accuracy"], after and after["clean_accuracy"])
    ]
    for result in battery:
        then = by_name.get(result["name"])
        classes = [wording.class_label(report, each["target"]) for each in (result, then) if each is not None]
        note = f"samples moved to class {' → '.join(dict.fromkeys(classes))}"
        what = [_name(result["name"]), _note(note), lost_answers(result, then)]
        rows.append((what, result["rate"], then and then["rate"]))
    caption = (
        "Clean accuracy should stay high; the share of samples that a built-in trigger moves to one class should be "
        "low. Dots are shares, lines their intervals, on a scale from 0% to 100%."
    )
    lost = None
    if change is not None:
        moved = f"{change['n_lost']:,} went from right to wrong and {change['n_gained']:,} from wrong to right"
        share = wording.rate_with_bounds(change["accuracy_lost"])
        lost = element("p", f"Of {change['n']:,} audit samples, {moved}: accuracy lost {share}.")
    return [lost, _rates("Share of audit samples", rows, _BOTH, caption), _more(more)]


def _lost_classes(report: Values, before: Values, after: Values) -> list[Markup] | None:
    pairs = enumerate(zip(before["class_accuracy"], after["class_accuracy"], strict=True))
    known = [(label, b, a) for label, (b, a) in pairs if b["value"] is not None and a["value"] is not None]
    lost = [one for one in known if one[2]["value"] < one[1]["value"]]
    if not lost:
        return None
    worst = sorted(lost, key=lambda one: one[2]["value"] - one[1]["value"])
    rows: list[Row] = [(f"class {wording.class_label(report, label)}", b, a) for label, b, a in worst[:_MOST_CLASSES]]
    more = f"; the {_MOST_CLASSES} that lost most are shown." if len(worst) > _MOST_CLASSES else "."
    caption = f"{len(worst):,} of {len(known):,} classes lost accuracy{more}"
    return [element("h3", "Classes that lost most"), _rates("Class", rows, _BOTH, caption)]


def _inversion(report: Values, before: Values, after: Values | None) -> list[Markup] | None:
    rows = []
    for name, audit in zip(_BOTH, (before, after), strict=True):
        inversion = None if audit is None else audit["inversion"]
        if inversion is None:
            continue
        suspect = next((one for one in inversion["classes"] if one["class"] == inversion["suspect"]), None)
        index: Child = wording.NOT_KNOWN
        if any(one["n_not_finite"] for one in inversion["classes"]):
            index = [index, _note("some answers were not finite")]
        if inversion["anomaly_index"] is not None:
            index = [f"{inversion['anomaly_index']:.2f}", _note(f"usual threshold {inversion['threshold']:g}")]
        pattern = [wording.NOT_KNOWN] * 3
        if suspect is not None:
            label = element("bdi", f"class {wording.class_label(report, suspect['class'])}")
            pattern = [label, wording.percent(suspect["mask_share"]), wording.rate_with_bounds(suspect["rate"])]
        steps = f"{inversion['steps']:,}" + ("" if inversion["complete"] else ", cut short")
        rows.append((name, index, *pattern, steps))
    if not rows:
        return None
    headings = ("Model", "Anomaly index", "Smallest pattern", "Share of pixels", "Samples moved", "Steps")
    caption = (
        "For each class, the smallest pattern found that moves samples of other classes to it. A class whose pattern "
        "is much smaller than the others' is suspect; large, faint or warping triggers may not be found."
    )
    return [element("h3", "Trigger inversion"), element("p", caption, class_="soft"), _table(headings, rows)]


def _vocabulary(report: Values, before: Values, after: Values | None) -> list[Child] | None:
    """The tokens and phrases that the search found in either model, the strongest first."""
    searched = [None if audit is None else audit.get("vocabulary") for audit in (before, after)]
    if searched == [None, None]:
        return None
    rates: dict[tuple[str, int], list[Values | None]] = {}
    notes: dict[tuple[str, int], list[int | None]] = {}
    for side, search in enumerate(searched):
        for entry in () if search is None else search["classes"]:
            for one in entry["found"]:
                key = (one["text"], entry["class"])
                rates.setdefault(key, [None, None])[side] = one["rate"]
                notes.setdefault(key, [None, None])[side] = one["n_not_finite"]
    order = sorted(rates, key=lambda key: -max((r["value"] or 0.0) for r in rates[key] if r is not None))
    kept, more = wording.first(order, _MOST_FINDS)
    rows: list[Row] = []
    for text, label in kept:
        known = [rate for rate in rates[text, label] if rate is not None]
        lost = wording.not_finite_counts(notes[text, label], known[0]["n_total"])
        what = [_name(text), _note(f"texts moved to class {wording.class_label(report, label)}"), _note(lost)]
        rows.append((what, rates[text, label][0], rates[text, label][1]))
    cut = [name for name, search in zip(_BOTH, searched, strict=True) if search is not None and not search["complete"]]
    caption = (
        "Share of texts of other classes that a token or phrase moves to a class, tested on texts that the search did "
        "not use. Each model is searched by itself: n/a where the other search found it alone. Words with a meaning "
        "move texts of any model."
    )
    return [
        element("h3", "Search of the vocabulary"),
        element("p", f"The search was cut short: {' and '.join(cut)}.") if cut else None,
        _rates("Token or phrase", rows, _BOTH, caption) if rows else element("p", "Nothing was found.", class_="soft"),
        _more(more),
    ]


def _disagreement(report: Values) -> list[Child] | None:
    if not report["disagreement"]:
        return None
    parts, more = wording.first(report["disagreement"], _MOST_ROWS)
    rows: list[Row] = []
    for part in parts:
        counts = (part["n_not_finite_received"], part["n_not_finite_sanitized"])
        note = _note(wording.not_finite_counts(counts, part["rate_clean"]["n_total"]))
        rows.append(([_name(part["perturbation"]), note], part["rate_clean"], part["rate"]))
    caption = "Share of audit samples on which the received and the sanitized model give different answers."
    return [
        element("h3", "Where the two models disagree"),
        _rates("Perturbation", rows, ("unperturbed", "perturbed"), caption),
        _more(more),
    ]


def _run(report: Values) -> Markup | None:
    run = report["sanitize"]
    if run is None:
        return None
    verdict = run["verdict"]
    checks = [
        element("li", f"{check['name']}: {wording.PASSED[check['passed']]} ({check['detail']})")
        for check in verdict["checks"]
    ]
    facts = [
        element("p", f"{verdict['outcome']}: {verdict['reason']}."),
        element("p", f"The verdict rests on {verdict['rests_on']}."),
        element("ul", checks),
    ]
    if not run["history"]:
        return _section("Forgetting and recovery", facts, element("p", "No step was measured."))
    chart = element("div", curve(run["history"], run["holdout"]["before"]["clean_accuracy"]["value"]), class_="plot")
    steps, n_attempts = run["run"]["steps"], run["run"]["n_attempts"]
    attempts = f", in {n_attempts:,} attempts" if n_attempts > 1 else ""
    caption = (
        f"Accuracy on {run['data']['n_holdout']:,} samples held out of the repair data, over "
        f"{steps.get('forget', 0):,} steps of forgetting and {steps.get('recover', 0):,} of recovery{attempts}."
    )
    swatches = (
        ("held-out accuracy", element("line", x1="0", y1="8", x2="24", y2="8", class_="path")),
        ("as received", element("line", x1="0", y1="8", x2="24", y2="8", class_="received")),
        ("forgetting", element("rect", x="0", y="1", width="24", height="14", class_="forget")),
    )
    return _section(
        "Forgetting and recovery", facts, element("figure", _key(swatches), chart, element("figcaption", caption))
    )


def _pictures(report: Values, pictures: Mapping[str, Pictures]) -> Markup | None:
    differ = "Perturbed samples on which the received and the sanitized model give different answers."
    figures = [
        _tiles(pictures.get("samples"), "clean sample", "Clean samples of the audit part, spread over the classes."),
        _patterns(report, pictures, "before", "model as received"),
        _patterns(report, pictures, "after", "sanitized model"),
        _tiles(pictures.get("disagreement"), "perturbed sample", differ),
    ]
    return _section("Pictures", figures) if any(figures) else None


def _sentences(report: Values) -> Markup | None:
    """Texts with what was inserted marked, and the answers to them."""
    texts = report.get("sentences") or []
    tables = [_texts(report, [one for one in texts if one["of"] == what], *told) for what, told in _TEXTS.items()]
    return _section("Texts", tables) if any(tables) else None


def _texts(report: Values, texts: Sequence[Values], title: str, caption: str) -> list[Child] | None:
    if not texts:
        return None
    kept, more = wording.first(texts, _MOST_TEXTS)
    rows = []
    for one in kept:
        parts = [element("mark", part["text"]) if part["inserted"] else part["text"] for part in one["parts"]]
        answers = [_answer(report, one[key]) for key in ("plain", "received", "sanitized")]
        label = _answer(report, one["label"])
        rows.append(([element("bdi", parts), _note(_name(one["name"]))], label, *answers))
    headings = ("Text", "True class", "Clean, as received", "As received", "Sanitized")
    return [element("h3", title), element("p", caption, class_="soft"), _table(headings, rows, "texts"), _more(more)]


def _answer(report: Values, label: int | None) -> Markup:
    return element("bdi", "not finite" if label is None else wording.class_label(report, label))


def _statements(report: Values) -> list[Markup]:
    parts = {
        "Findings": report["statements"],
        "Limits of the evidence": wording.limits(report),
        "Warnings": report["warnings"],
    }
    return [_section(title, _list(lines)) for title, lines in parts.items() if lines]


def _files(report: Values) -> Markup:
    model, sanitized = report["model"], report["sanitized"]
    received, more = wording.first(model["files"], _MOST_ROWS)
    rows = [
        (
            [_name(file["name"]), _note(file["role"])],
            element("bdi", file["kind"]),
            wording.size(file["n_bytes"]),
            "not read" if file["sha256"] is None else _digest(file["sha256"]),
        )
        for file in received
    ]
    chosen = model["architecture"]
    facts: list[tuple[str, Child]] = [("Path", _name(model["path"]))]
    if chosen is not None:
        facts.append(("Architecture", [_name(chosen["name"]), f" ({chosen['source']})"]))
        facts.append(("Its arguments", _name(_json(chosen["arguments"]))))
    if model["n_parameters"] is not None:
        facts.append(("Parameters", f"{model['n_parameters']:,}"))
    if model["n_bytes"] is not None:
        facts.append(("Weights", wording.size(model["n_bytes"])))
    if model["converted_from_pickle"]:
        facts.append(("Origin", "converted from a pickle (--allow-pickle)"))
    content: list[Child] = [element("h3", "As received"), _facts(facts)]
    content += [_table(("File", "Kind", "Size", "SHA-256"), rows) if rows else None, _more(more)]
    content.append(element("h3", "Sanitized"))
    if sanitized is None:
        content.append(element("p", "No sanitized model was written."))
    else:
        written, more = wording.first(sanitized["files"], _MOST_ROWS)
        made = [(_name(file["name"]), wording.size(file["n_bytes"]), _digest(file["sha256"])) for file in written]
        content += [_table(("File", "Size", "SHA-256"), made), _more(more)]
    return _section("Model files", content)


def _settings(report: Values) -> Markup:
    policy, data, run, machine = report["policy"], report["data"], report["sanitize"], report["machine"]
    content: list[Child] = []
    if policy is not None:
        facts: list[tuple[str, Child]] = [("Name", policy["name"]), ("File", _name(policy["path"]))]
        facts.append(("SHA-256", _digest(policy["sha256"])))
        if policy["ignored"]:
            ignored, more = wording.first(policy["ignored"], _MOST_LINES)
            names = [element("div", _name(name)) for name in ignored]
            facts.append(("In the model folder, not read", [names, _more(more)]))
        content += [element("h3", "Policy"), _facts(facts)]
    if data is not None:
        facts = [
            ("Path", _name(data["path"])),
            ("Samples", f"{data['n_samples']:,} in {data['num_classes']:,} classes"),
            ("Repair part", f"{data['n_repair']:,}"),
            ("Audit part", f"{data['n_audit']:,}"),
        ]
        content += [element("h3", "Clean data"), _facts(facts)]
    if run is not None:
        facts = [("method", run["method"]), ("precision", run["run"]["precision"]["chosen"])]
        facts += [("device", run["run"]["device"])]
        facts += [(name, _json(value)) for name, value in list(run["config"].items())[:_MOST_LINES]]
        content += [element("h3", "Sanitization"), _facts([(_words(name), value) for name, value in facts])]
    facts = [(_words(name), "none" if value is None else str(value)) for name, value in machine.items()]
    facts += [(f"time, {name}", wording.duration(seconds)) for name, seconds in report["seconds"].items()]
    if report["peak_memory_bytes"] is not None:
        facts.append(("peak memory", wording.size(report["peak_memory_bytes"])))
    content += [element("h3", "Machine and run"), _facts([*facts, ("seed", str(report["seed"]))])]
    return _section("Settings", content)


# ---- What sections are made of. ----


def _section(title: str, *content: Child) -> Markup:
    return element("section", element("h2", title), content)


def _name(text: str) -> Markup:
    """A name from the report, set apart as code."""
    return element("code", visible(text, wording.LONGEST_NAME))


def _digest(digest: str) -> Markup:
    return element("code", digest, class_="digest")


def _note(text: Child) -> Markup | None:
    return None if text is None else element("span", text, class_="note")


def _more(sentences: Sequence[str]) -> list[Markup]:
    return [element("p", sentence, class_="soft") for sentence in sentences]


def _symbol(outcome: str) -> Markup:
    return element("span", wording.SYMBOLS[outcome], class_="mark", aria_hidden="true")


def _chip(outcome: str) -> Markup:
    return element("span", _symbol(outcome), outcome, class_=f"chip {outcome}")


def _words(name: str) -> str:
    return name.removeprefix("n_").replace("_", " ")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _list(sentences: Sequence[str]) -> Markup | None:
    kept, more = wording.first(sentences, _MOST_LINES)
    lines = [element("li", sentence) for sentence in (*kept, *more)]
    return element("ul", lines) if lines else None


def _facts(pairs: Iterable[tuple[str, Child]]) -> Markup:
    """Terms with their values; a digest takes a line of its own."""
    return element(
        "dl",
        [
            element("div", element("dt", term), element("dd", value), class_="wide" if term == "SHA-256" else None)
            for term, value in pairs
        ],
    )


def _table(headings: Sequence[Child], rows: Iterable[Sequence[Child]], class_: str | None = None) -> Markup:
    """A table whose first column names the rows. On a narrow screen its rows become blocks; roles keep it a table."""
    labels = [heading if type(heading) is str else None for heading in headings[1:]]  # Markup is no attribute

    def row(cells: Sequence[Child]) -> Markup:
        head = element("th", cells[0], scope="row", role="rowheader")
        pairs = zip(cells[1:], labels, strict=True)
        rest = [element("td", cell, role="cell", data_label=label) for cell, label in pairs]
        return element("tr", head, rest, role="row")

    columns = [element("th", heading, scope="col", role="columnheader") for heading in headings]
    head = element("thead", element("tr", columns, role="row"), role="rowgroup")
    body = element("tbody", [row(cells) for cells in rows], role="rowgroup")
    return element("table", head, body, role="table", class_=class_)


def _rates(what: str, rows: Iterable[Row], names: tuple[str, str], caption: str) -> Markup:
    """A figure: a row each of a name, two dots with their intervals, and the same as numbers."""
    body = [(name, dots(before, after), _rate(before), _rate(after)) for name, before, after in rows]
    circles = [element("circle", cx="8", cy="8", r="5", class_=side) for side in ("before", "after")]
    headings = (what, scale(), *(name.capitalize() for name in names))
    return element(
        "figure",
        _key(zip(names, circles, strict=True)),
        _table(headings, body, "rates"),
        element("figcaption", caption),
    )


def _rate(rate: Values | None) -> Child:
    if rate is None:
        return wording.NOT_KNOWN
    if rate["value"] is None:
        return f"{wording.NOT_KNOWN} (no samples)"
    bounds = f"{wording.percent(rate['low'])} to {wording.percent(rate['high'])}, n = {rate['n_total']:,}"
    return [wording.percent(rate["value"]), _note(bounds)]


def _key(swatches: Iterable[tuple[str, Markup]]) -> Markup:
    """The legend of a chart."""
    parts = []
    for name, mark in swatches:
        width = "24" if "line" in mark or "rect" in mark else "16"
        parts.append(element("span", element("svg", mark, width=width, height="16"), name))
    return element("div", parts, class_="key")


def _patterns(report: Values, pictures: Mapping[str, Pictures], when: str, model: str) -> Markup | None:
    """Patterns with their classes, those of the smallest masks first."""
    caption = f"Patterns that inversion found in the {model}, smallest first."
    images = pictures.get(f"patterns_{when}")
    audit = report["audit"][when]
    classes = [] if audit is None or audit["inversion"] is None else audit["inversion"]["classes"]
    if images is None or len(images) != len(classes):
        return _tiles(images, "pattern", caption)
    order = sorted(range(len(classes)), key=lambda i: classes[i]["mask_share"])[:_MOST_PICTURES]
    inversion = audit["inversion"]
    stands_out = inversion["anomaly_index"] is not None and inversion["anomaly_index"] > inversion["threshold"]
    suspect = inversion["suspect"] if stands_out else None  # one class always has the smallest
    tiles = []
    for i in order:
        label = wording.class_label(report, classes[i]["class"])
        share = wording.percent(classes[i]["mask_share"])
        text = element("span", f"class {label}")
        if classes[i]["class"] == suspect:
            text = element("span", f"class {label}, suspect", class_="suspect")
        tiles.append((images[i], f"pattern for class {label}", [text, _note(f"{share} of pixels")]))
    return _figure(tiles, len(images), caption)


def _tiles(images: Pictures | None, alt: str, caption: str) -> Markup | None:
    """Images without names; of many, a spread of them."""
    if images is None or not len(images):
        return None
    chosen = np.unique(np.linspace(0, len(images) - 1, min(_MOST_PICTURES, len(images))).round().astype(int))
    return _figure([(images[i], f"{alt} {i + 1}", None) for i in chosen.tolist()], len(images), caption)


def _figure(tiles: Sequence[tuple[Pictures, str, Child]], n: int, caption: str) -> Markup:
    items = []
    for image, alt, label in tiles:
        source = "data:image/png;base64," + base64.b64encode(as_png(_reduced(image))).decode("ascii")
        items.append(element("li", element("img", src=source, alt=alt, width="80", height="80"), label))
    most = f" {len(tiles)} of {n:,} are shown." if len(tiles) < n else ""
    large = max(tiles[0][0].shape[:2]) > _LARGEST_PICTURE
    smaller = f" Larger images are reduced to at most {_LARGEST_PICTURE} pixels a side." if large else ""
    channels = tiles[0][0].shape[2]
    mean = "" if channels in (1, 3) else f" Each shows the mean of {channels} channels."
    return element(
        "figure",
        element("ul", items, class_="tiles", role="list"),
        element("figcaption", f"{caption}{most}{smaller}{mean}"),
    )


def _reduced(image: Pictures) -> Pictures:
    """``image`` with 1 or 3 channels and no side above the largest: means of channels, and of blocks of pixels."""
    height, width, channels = image.shape
    if channels not in (1, 3):
        image = image.mean(axis=2, keepdims=True).round().astype(np.uint8)
    block = -(-max(height, width) // _LARGEST_PICTURE)
    if block == 1:
        return image
    rows, columns = -(-height // block), -(-width // block)
    filled = np.pad(image, ((0, rows * block - height), (0, columns * block - width), (0, 0)), mode="edge")
    means: Pictures = filled.reshape(rows, block, columns, block, -1).mean(axis=(1, 3)).round().astype(np.uint8)
    return means
