"""The gate report as a summary in Markdown, for a pull request or the page of a CI job."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from seamfast.documents.markup import visible
from seamfast.gating.documents import wording
from seamfast.gating.documents.subjects import received_weights
from seamfast.terminal import without_commands

MAX_CHARACTERS = 65_536
"""What GitHub takes as a comment."""

_LENGTHS = (600, 120, 16)  # of texts, in characters: the largest whose summary is short enough
_MOST_ROWS, _MOST_LINES = 40, 20

# What Markdown, HTML or a code host may render as more than text: anywhere, at an end of a word, before a character
# that is no space (except in a time of day), after "www", and at the start of a line, which may be an item of a list.
_SPECIAL = re.compile(
    r"""(?ix) [\\`*\[\]<>|~$&@\#] | (?<![a-z0-9])_ | _(?![a-z0-9]) | (?<!\d):(?=\S) | :(?=[^\s\d]) | (?<=www)\.
    | ^[-+] | ^\d(?=\d*[.)](?:\s|$))
    """
)
# After these a code host finds a mention, a reference or an emoji in rendered text, entities or not: a zero-width space
# follows them.
_REFERENCE = "@#:"
_ZERO_WIDTH = "&#8203;"

Values = Mapping[str, Any]  # of the report, or of a part of it


class Markdown(str):
    """A piece of GitHub-flavored Markdown, not to be escaped; any other string is text."""

    __slots__ = ()


def as_markdown(report: Values) -> str:
    """Verdict, rules, key numbers, statements and limits; at most 65,536 characters.

    Names are code and all other strings text: none is rendered as Markdown, HTML, a link or a mention. Long names,
    texts and lists are cut, with a note. Equal reports give equal summaries.

    Args:
        report: a gate report, by ``schema/gate-report-v1.json``.
    """
    for length in _LENGTHS:
        summary = _Writer(length).summary(report)
        if len(summary) <= MAX_CHARACTERS:
            break
    return summary


class _Writer:
    """Writes the parts of a summary, each text and name at most ``length`` characters long."""

    def __init__(self, length: int) -> None:
        self.length = length

    def summary(self, report: Values) -> str:
        verdict = report["verdict"]
        outcome = verdict["outcome"]
        symbol, title = wording.SYMBOLS[outcome], wording.TITLES[outcome].lower()
        lines = [
            f"## {symbol} seamfast intake gate: {title} (exit code {verdict['exit_code']})",
            f"Model {self.code(report['model']['path'])}. {wording.MEANINGS[outcome]}",
            self.bullets(verdict["reasons"]),
        ]
        if report["refusal"] is not None:
            lines.append(f"Refusal code: {self.code(report['refusal']['code'])}")
        lines += [*self.rules(report), *self.numbers(report)]
        sections = {
            "Statements": report["statements"],
            "Limits": wording.limits(report),
            "Warnings": report["warnings"],
        }
        for title, sentences in sections.items():
            if sentences:
                lines += [f"### {title}", self.bullets(sentences)]
        return "\n\n".join([*lines, *self.provenance(report)]) + "\n"

    def rules(self, report: Values) -> list[str]:
        policy = report["policy"]
        if policy is None or not policy["rules"]:
            return []
        rules, more = wording.first(wording.by_urgency(policy["rules"]), _MOST_ROWS)
        rows = [
            (
                f"{wording.SYMBOLS[rule['outcome']]} {rule['outcome']}",
                self.code(rule["id"]),
                self.code(rule["metric"]),
                wording.measured(rule, "value"),
                wording.interval(rule),
                wording.measured(rule, "bound"),
                wording.requirement(rule),
                wording.samples(rule),
            )
            for rule in rules
        ]
        headings = ("Outcome", "Rule", "Metric", "Measured", "Interval", "Bound", "Required", "Samples")
        return ["### Rules", self.table(headings, rows), *more]

    def numbers(self, report: Values) -> list[str]:
        """Accuracy, the worst of the battery and of the searches, before and after."""
        audits = [report["audit"]["before"], report["audit"]["after"]]
        if audits == [None, None]:
            return []
        parts: dict[str, Callable[[Values], str]] = {
            "Clean accuracy": lambda audit: wording.rate_with_bounds(audit["clean_accuracy"]),
            "Battery, worst": lambda audit: self.worst(report, audit),
            "Inversion": lambda audit: self.inversion(report, audit),
        }
        if any(audit is not None and audit.get("vocabulary") for audit in audits):
            parts["Vocabulary, worst"] = lambda audit: self.vocabulary(report, audit)
        without = [wording.most_not_finite(report, when) for when in ("before", "after")]
        rows = [
            (name, *(wording.NOT_KNOWN if audit is None else text(audit) for audit in audits))
            for name, text in parts.items()
        ]
        rows.append(
            (
                "No finite answer",
                *(wording.NOT_KNOWN if audit is None else most for audit, most in zip(audits, without, strict=True)),
            )
        )
        lines = ["### Before and after", self.table(("", "As received", "Sanitized"), rows)]
        change = report["audit"]["change"]
        if change is not None:
            lost = wording.rate_with_bounds(change["accuracy_lost"])
            lines.append(f"Accuracy lost: {lost}, on {change['n']:,} samples.")
        return lines

    def worst(self, report: Values, audit: Values) -> Markdown:
        if not audit["battery"]:
            return Markdown(wording.NOT_KNOWN)
        worst = max(audit["battery"], key=lambda result: result["rate"]["high"])
        label = self.code(wording.class_label(report, worst["target"]))
        return Markdown(f"{wording.rate_with_bounds(worst['rate'])}: {self.code(worst['name'])} to class {label}")

    def inversion(self, report: Values, audit: Values) -> Markdown:
        inversion = audit["inversion"]
        if inversion is None or inversion["anomaly_index"] is None:
            return Markdown(wording.NOT_KNOWN)
        cut = "" if inversion["complete"] else ", cut short"
        label = self.code(wording.class_label(report, inversion["suspect"]))
        return Markdown(
            f"anomaly index {inversion['anomaly_index']:.2f} (usual threshold {inversion['threshold']:g}), "
            f"class {label}{cut}"
        )

    def vocabulary(self, report: Values, audit: Values) -> Markdown:
        searched = audit.get("vocabulary") or {"classes": ()}
        found = [(one, entry["class"]) for entry in searched["classes"] for one in entry["found"]]
        if not found or not searched["complete"]:
            return Markdown(wording.NOT_KNOWN)
        one, label = max(found, key=lambda entry: entry[0]["rate"]["high"])
        name = self.code(wording.class_label(report, label))
        return Markdown(f"{wording.rate_with_bounds(one['rate'])}: {self.code(one['text'])} to class {name}")

    def provenance(self, report: Values) -> list[str]:
        """Digests of the weights and of the policy."""
        sanitized = [] if report["sanitized"] is None else report["sanitized"]["files"]
        rows = [("as received", file) for file in received_weights(report) if file["sha256"] is not None]
        rows += [("sanitized", file) for file in sanitized]
        if report["policy"] is not None:
            policy = report["policy"]
            rows.append(("policy", {"name": policy["path"], "sha256": policy["sha256"]}))
        kept, more = wording.first(rows, _MOST_ROWS)
        cells = [(what, self.code(file["name"]), self.code(file["sha256"], 64)) for what, file in kept]
        tool = report["tool"]
        end = (
            f"{self.text(tool['name'])} {self.text(tool['version'])}, "
            f"{self.text(wording.moment(report['created']), 40)}, {wording.duration(report['seconds']['total'])}. "
            "Full report: report.json, report.html."
        )
        files = ["### Files", self.table(("", "File", "SHA-256"), cells)] if cells else []
        return [*files, *more, end]

    def table(self, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
        lines = [headings, ["---"] * len(headings), *([self.text(cell, 80) for cell in row] for row in rows)]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

    def bullets(self, sentences: Sequence[str]) -> str:
        kept, more = wording.first(sentences, _MOST_LINES)
        return "\n".join(f"- {sentence}" for sentence in (*map(self.text, kept), *more))

    def text(self, text: str, length: int = 0) -> Markdown:
        """``text`` with special characters as numeric entities, so that it renders as it is."""
        if isinstance(text, Markdown):
            return text
        return Markdown(_SPECIAL.sub(_entity, visible(text, max(self.length, length)).strip()))

    def code(self, name: str, length: int = 0) -> Markdown:
        """``name`` as code; what would end the code or the cell, or be a command in a log, is an escape."""
        shown = without_commands(visible(name, max(self.length, length)))
        escaped = shown.replace("`", r"\x60").replace("|", r"\x7c")
        return Markdown(f"`{escaped}`")


def _entity(match: re.Match[str]) -> str:
    character = match[0]
    return f"&#{ord(character)};{_ZERO_WIDTH if character in _REFERENCE else ''}"
