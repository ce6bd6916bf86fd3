"""What changed between two reports as one self-contained page without network, beside its twin and its table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from manifests.disk import make_private, write_atomic
from stages.report.change_text import (
    alone_table,
    answer_of,
    cautions_of,
    change_table,
    flip_table,
    has_other_images,
    named,
)
from stages.report.changes import Changes
from stages.report.csv_files import csv_text
from stages.report.markdown import Section, plain, sections_of
from stages.report.page import PAGE, look, template_of

TWIN, TABLE = "compare.md", "compare.csv"
MOST_IDS: Final = 20
"""Images of each kind of flip that are named."""
EXPLAINED: Final = (
    "In percent, mean over the seeds that both reports have; below it right answers of all answers, pooled over seeds. "
    "The difference, in percentage points, is that on the test images of both; below it a 95 % bootstrap interval "
    "(by patient where known) and the p of a sign-flip permutation test by patient (McNemar's exact test where each "
    "patient has one image and there is one seed), corrected by Holm's method for the whole table. Beyond chance is a "
    "corrected p below 0.05; not beyond chance is no proof that nothing changed. Below the verdict: answers, one an "
    "image and fit, that name another class. Interval and p take the fits as they are: other training subsets and "
    "initial weights would move an accuracy too; by how much, the standard deviation (sd) over seeds in A shows beside "
    "it."
)
OTHER_IMAGES: Final = (
    "Other images is what is left of accuracy B minus accuracy A: it comes from test images that only one of them "
    "has, not from other answers."
)


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two reports."""

    letter: str
    """`A` or `B`."""
    name: str
    """First 12 digits of its fingerprint, which is the name of its folder."""
    created: str
    """UTC time, ISO 8601."""
    command: str
    """Command line that made it, without any path of the machine."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that the page shows."""

    dataset: str
    sides: tuple[Side, Side]
    changes: Changes
    origins: Mapping[str, Sequence[str]]
    """What went in that differs, by kind: lines in words; kinds without a line are left out."""
    cautions: Sequence[str] = ()
    """What could not be compared of what went in."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What provenance.json says, as JSON values; `withdrawals` decides when `gc` removes it."""

    @property
    def answer(self) -> list[str]:
        """Sentences for the top."""
        return answer_of(self.changes, self.origins)

    @property
    def warnings(self) -> list[str]:
        """What a reader must see before the numbers."""
        return [*cautions_of(self.changes, self.origins), *self.cautions]


def write_comparison(comparison: Comparison, out: Path) -> Path:
    """Write compare.csv, compare.md, index.html and provenance.json; the same comparison gives the same bytes.

    Parameters
    ----------
    comparison : Comparison
        What is shown.
    out : Path
        Its folder; created if absent, files in it are replaced.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    StoreError
        If the disk is full, read-only or forbidden.
    """
    make_private(out)
    write_atomic(out / TABLE, csv_text(comparison.changes.table))
    write_atomic(out / TWIN, twin(comparison))
    write_atomic(out / PAGE, render(comparison))
    # Last: an older page must not pass for one that heeds what was withdrawn since.
    write_atomic(out / "provenance.json", json.dumps(dict(comparison.provenance), indent=1) + "\n")
    return out / PAGE


def render(comparison: Comparison) -> str:
    """The page as HTML; every text is escaped."""
    changes = comparison.changes
    return template_of("change_page.html").render(
        **look(),
        comparison=comparison,
        accuracies=change_table(changes) if len(changes.table) else None,
        explained=explained(changes),
        flips=changes.flips,
        flipped=_flipped(changes),
        by_class=flip_table(changes),
        alone=alone_table(changes),
        most_ids=MOST_IDS,
    )


def twin(comparison: Comparison) -> str:
    """The same as Markdown."""
    changes = comparison.changes
    lines = [f"# {plain(comparison.dataset)}: what changed", ""]
    lines += [f"- {side.letter}: report {side.name}, made {plain(side.created)}" for side in comparison.sides]
    lines += ["", *(plain(sentence) for sentence in comparison.answer), ""]
    lines += [f"> **Caution.** {plain(warning)}\n>" for warning in comparison.warnings]
    lines += ["", "## What went in that differs", ""]
    lines += [f"- {kind}: {plain(line)}" for kind, found in comparison.origins.items() for line in found] or [
        "Nothing."
    ]
    tables = {"Accuracies": change_table(changes)} if len(changes.table) else {}
    by_class, alone = flip_table(changes), alone_table(changes)
    sections = [Section(title, explained(changes), [table]) for title, table in tables.items()]
    if changes.flips is not None and by_class is not None:
        sections.append(Section("Answers that flipped", f"Of {plain(flipping(changes))}.", [by_class]))
    sections += [Section("In one report alone", "", [alone])] if alone else []
    lines += sections_of(sections)
    for title, ids in _flipped(changes):
        more = f" and {len(ids) - MOST_IDS} more" if len(ids) > MOST_IDS else ""
        lines += [f"{title}: {', '.join(plain(name) for name in ids[:MOST_IDS])}{more}", ""] if ids else []
    lines += ["For research only; not a medical device.", ""]
    return "\n".join(lines)


def explained(changes: Changes) -> str:
    """How the table of accuracies is to be read."""
    same = "Both reports have the same test images."
    return f"{EXPLAINED} {OTHER_IMAGES if has_other_images(changes) else same}"


def flipping(changes: Changes) -> str:
    """Whose answers are told one by one, in words; empty where nothing could be compared."""
    flips = changes.flips
    if flips is None:
        return ""
    return named({"method": flips.method, "mask": flips.mask, "training": flips.training})


def _flipped(changes: Changes) -> list[tuple[str, tuple[str, ...]]]:
    flips = changes.flips
    if flips is None:
        return []
    return [("Right, now wrong", flips.right_to_wrong), ("Wrong, now right", flips.wrong_to_right)]
