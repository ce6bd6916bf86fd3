"""`pipeline report --compare`: what changed between two reports, and whether chance explains it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from manifests.errors import UsageError
from manifests.forgetting import WITHDRAWALS
from manifests.layout import DatasetPaths
from manifests.withdrawals import load_withdrawals, withdrawn_ids
from pipeline.commands import say
from pipeline.origins import lost_runs, origins
from pipeline.stored_reports import StoredReport, find_report
from pipeline.terminal import print_table
from stages.report.change_page import Comparison, Side, write_comparison
from stages.report.change_text import change_table
from stages.report.changes import Changes
from stages.report.kept import Kept


def compare_reports(paths: DatasetPaths, names: tuple[str, str]) -> tuple[Path, Comparison]:
    """Write the page of what changed from one report to another, and return it with what it shows.

    What is withdrawn by now is left out of both, also where the reports were made before.

    Parameters
    ----------
    paths : DatasetPaths
        The data set.
    names : tuple[str, str]
        What the user calls them, see `find_report`; the earlier one first.

    Raises
    ------
    UsageError
        If a name means nothing or several things, or the reports are of two data sets.
    InventoryError
        If a report is not there, or was made before answers were kept as they are now, or a withdrawal is damaged.
    StoreError
        If answers are damaged, or the page cannot be written.
    """
    a, b = find_report(paths, names[0]), find_report(paths, names[1])
    _check_one_data_set(paths, a, b)
    heeded = [set(report.provenance.get(WITHDRAWALS, [])) for report in (a, b)]
    whole, gone = (a.kept(), b.kept()), withdrawn_ids(load_withdrawals(paths))
    kept = _without(whole[0], gone), _without(whole[1], gone)
    comparison = Comparison(
        dataset=paths.name,
        sides=(_side("A", a), _side("B", b)),
        changes=Changes.of(*kept),
        origins=origins(paths, (a, b), kept),
        cautions=[
            *_left_out(zip("AB", whole, kept, strict=True)),
            *_lost("A", lost_runs(paths, a)),
            *_lost("B", lost_runs(paths, b)),
        ],
        # Its numbers come from fits that an image withdrawn since may have trained, so it goes with the older report.
        provenance={"compared": [a.name, b.name], WITHDRAWALS: sorted(heeded[0] & heeded[1])},
    )
    return write_comparison(comparison, paths.comparison(a.name, b.name)), comparison


def do_compare(paths: DatasetPaths, names: tuple[str, str]) -> None:
    """Write the page; print the answer, what differs, the table and the page's path."""
    page, comparison = compare_reports(paths, names)
    say(f"{side.letter}: report {side.name}, made {side.created}" for side in comparison.sides)
    say(["", *comparison.answer])
    say(f"Caution: {warning}" for warning in comparison.warnings)
    if comparison.origins:
        say(["", "What went in that differs"])
        say(f"  {kind}: {line}" for kind, lines in comparison.origins.items() for line in lines)
    if len(comparison.changes.table):
        table = change_table(comparison.changes)
        say(["", "Accuracies in percent, differences in percentage points on the test images of both"])
        texts = [[" ".join(entry.text.split() + _bracketed(entry.note)) for entry in row] for row in table.rows]
        print_table([entry.text for entry in table.header], texts)
    if flips := comparison.changes.flips:
        lost, won = len(flips.right_to_wrong), len(flips.wrong_to_right)
        say(["", f"Of {flips.method} at {flips.training}: {lost} right and now wrong, {won} wrong and now right."])
    if n_alone := len(comparison.changes.alone):
        say([f"Not compared, because one report alone has it: {n_alone}; see the page."])
    say([f"Comparison: {page}"])


def _bracketed(note: str) -> list[str]:
    """A note in brackets, unless it has some."""
    text = ", ".join(note.splitlines())
    return [text if text.startswith("(") else f"({text})"] if text else []


def _side(letter: str, report: StoredReport) -> Side:
    return Side(letter, report.name, report.created, report.command)


def _without(kept: Kept, image_ids: Collection[str]) -> Kept:
    """The same answers but for those to some images, copies of them included."""
    return kept.of_images(~kept.images["image_id"].isin(list(image_ids)).to_numpy())


def _left_out(sides: Iterable[tuple[str, Kept, Kept]]) -> list[str]:
    counts = {letter: len(whole.images) - len(kept.images) for letter, whole, kept in sides}
    told = " and ".join(f"{n} of {letter}" for letter, n in counts.items() if n)
    if not told:
        return []
    return [f"Test images withdrawn since are left out, so accuracies can differ from the report's own: {told}."]


def _lost(letter: str, runs: list[str]) -> list[str]:
    if not runs:
        return []
    return [f"Records of runs that computed {letter} are gone, so their software is not known: {', '.join(runs)}."]


def _check_one_data_set(paths: DatasetPaths, *reports: StoredReport) -> None:
    for report in reports:
        dataset = report.provenance.get("dataset", paths.name)
        if dataset != paths.name:
            raise UsageError(
                f"Report {report.name} is of the data set {dataset!r}, and this one is {paths.name!r}.",
                "Two reports of one data set can be compared.",
            )
