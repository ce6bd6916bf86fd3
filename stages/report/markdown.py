"""The report's twin for terminals and pull requests: the same answer, warnings and tables as GitHub's Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stages.report.data import ReportData
from stages.report.tables import Entry, Table

SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~&!])")
MENTION = re.compile(r"(?<![A-Za-z0-9_])@")
"""What GitHub takes for the beginning of a user's or team's name."""
MARKS = {"best": "**{}**", "changed": "**{}**", "near": "_{}_"}


@dataclass(frozen=True, slots=True)
class Section:
    """Tables below one heading."""

    title: str
    text: str
    tables: Sequence[Table]


def markdown(data: ReportData, answer: Sequence[str], warnings: Sequence[str], sections: Iterable[Section]) -> str:
    """The report as text; every text from outside is escaped."""
    lines = [f"# {plain(data.dataset)}", "", *(f"{plain(sentence)}" for sentence in answer), ""]
    lines += [f"> **Caution.** {plain(warning)}\n>" for warning in warnings]
    lines += sections_of(sections)
    lines += ["## Where it comes from", "", "```", data.command.replace("```", "'''"), "```", ""]
    lines += [f"Fingerprint {data.fingerprint}, made {data.created}. For research only; not a medical device.", ""]
    return "\n".join(lines)


def sections_of(sections: Iterable[Section]) -> list[str]:
    """Lines of sections; the titles and texts are this package's own, tables are escaped."""
    lines = []
    for section in sections:
        lines += ["", f"## {section.title}", "", section.text, ""]
        for table in section.tables:
            lines += [*_table(table), ""]
    return lines


def plain(text: str) -> str:
    """A text that Markdown shows as it is, on one line, and that names no user and sets no formula on GitHub.

    GitHub looks for both in what Markdown has made of the text, where a backslash or an entity is gone: a space of no
    width parts a mention, and its documentation keeps a dollar sign from formulas by a span.
    """
    escaped = SPECIAL.sub(r"\\\1", " ".join(text.split()))
    return MENTION.sub("@&#8203;", escaped).replace("$", "<span>$</span>")


def _table(table: Table) -> list[str]:
    right = ["---" if index < table.names else "---:" for index in range(len(table.header))]
    rows = [_line(row) for row in table.rows]
    return [_line(table.header), f"| {' | '.join(right)} |", *rows]


def _line(entries: Sequence[Entry]) -> str:
    return f"| {' | '.join(_cell(entry) for entry in entries)} |"


def _cell(entry: Entry) -> str:
    text = plain(entry.text)
    text = MARKS[entry.mark].format(text) if entry.mark and text else text
    return f"{text}<br>{plain(entry.note)}" if entry.note else text
