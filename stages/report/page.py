"""The report as one self-contained page without network, beside its tables and figures as files."""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from collections.abc import Iterable
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from manifests.disk import PARTIAL, disk_errors, make_private, place, write_atomic, write_synced
from manifests.fingerprint import digest_bytes, digest_json
from stages.report import about, figures, notes, region_tables, tables
from stages.report.comparison import REFERENCE, comparison_table
from stages.report.csv_files import csv_text
from stages.report.data import FAILURE_COLUMNS, SCORE_COLUMNS, ReportData
from stages.report.findings import Findings
from stages.report.gallery_view import composed, gallery_groups, shown_classes
from stages.report.kept import KEPT, Kept
from stages.report.markdown import Section, markdown
from stages.report.outcomes import MOST
from stages.report.published import published_table

PAGE, TWIN, PROVENANCE = "index.html", "report.md", "provenance.json"
SOURCES = (".py", ".html", ".css", ".js", ".csv")
DRAWN_WITH = ("features.py", "images.py", "methods.py", "models/rollout.py", "scores.py")
"""Files of other packages that pictures, maps and figures are made with."""
LOOKED = (
    "Maximum inside: the brightest point of the map of where a classifier looked lies in the supplied mask (the "
    "pointing game). Sum inside: the share of the map's sum that lies in it. Padding counts as outside. A map that is "
    "even over the image gets the mask's area, but such chance does not allow for lesions near the middle. A masked "
    "picture is black outside its mask, so that there is little else to look at; a method that is shown the supplied "
    "mask itself is not scored. Cells are coarse (7 × 7 for the models that ship) and see far beyond themselves. Maps "
    "are Grad-CAM of the predicted class, or attention rollout, which knows no class; a hint, no proof."
)


def template_of(name: str) -> Template:
    """A page of this package; every text that it is given is escaped."""
    loader = PackageLoader("stages.report", "")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)


def look() -> dict[str, str]:
    """What every page of this package is given: `style`, `script` and `script_digest`."""
    here = files("stages.report")
    script = (here / "page.js").read_text("utf-8")
    return {
        "style": Markup((here / "page.css").read_text("utf-8")),  # noqa: S704  this package's own file
        "script": Markup(script),  # noqa: S704  likewise
        "script_digest": f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode('ascii')}",
    }


def layout_digest(others: Iterable[Traversable] = ()) -> str:
    """Digest of everything that decides how a page looks: this package, the code it draws with, and files beside."""
    package = files("stages")
    folders = [package / name for name in ("report", "attention")]
    sources = [file for folder in folders for file in folder.iterdir() if file.name.endswith(SOURCES)]
    sources += [package.joinpath(*name.split("/")) for name in DRAWN_WITH]
    digests = sorted([file.name, digest_bytes(file.read_bytes())] for file in (*sources, *others))
    return digest_json(digests)


def write_report(data: ReportData, out: Path) -> Path:
    """Write index.html, report.md, tables as CSV, answers, provenance.json and figures/*.{png,svg,csv}; the page last.

    Parameters
    ----------
    data : ReportData
        What the report shows.
    out : Path
        Folder of the report; created if absent, files of an earlier report are replaced.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    StoreError
        If the disk is full, read-only or forbidden.
    """
    findings = Findings.of(data)
    make_private(out)
    folder = make_private(out / "figures")
    for plot in findings.plots:
        for kind, image in findings.drawn[plot.name].items():
            _replace(folder / f"{plot.name}.{kind}", image)
        write_atomic(folder / f"{plot.name}.csv", csv_text(plot.numbers))
    write_atomic(out / "attention.csv", csv_text(data.attention))
    write_atomic(out / "comparison.csv", csv_text(findings.compared))
    against = [found.assign(form=form) for form, found in findings.baselines.items()]
    write_atomic(out / "baselines.csv", csv_text(pd.concat(against, ignore_index=True)))
    write_atomic(out / "summary.csv", csv_text(findings.summary))
    rest = [column for column in data.scores.columns if column not in SCORE_COLUMNS]
    scores = data.scores[[*SCORE_COLUMNS, *rest]]
    write_atomic(out / "scores.csv", csv_text(scores))
    write_atomic(out / KEPT, Kept.of(data.answers, data.classes).to_bytes())
    made = {"report": data.fingerprint, "created": data.created, "command": data.command}
    record = {**made, "cautions": notes.warnings_of(data), **data.provenance}
    write_atomic(out / PROVENANCE, json.dumps(record, indent=1) + "\n")
    write_atomic(out / TWIN, twin(data, findings))
    write_atomic(out / PAGE, render(data, findings))
    return out / PAGE


def render(data: ReportData, findings: Findings) -> str:
    """The page as HTML; every text is escaped.

    Parameters
    ----------
    data : ReportData
        What the report shows.
    findings : Findings
        What is computed of it.

    Returns
    -------
    str
    """
    summary, (own, against) = findings.summary, findings.own
    template = template_of("page.html")
    first, *others = [
        (plot, figures.data_uri(findings.drawn[plot.name]["svg"], "image/svg+xml")) for plot in findings.plots
    ]
    return template.render(
        data=data,
        **look(),
        answer=findings.answer,
        warnings=notes.warnings_of(data),
        headline=[tables.headline(part, marks=findings.marks) for part in tables.by_kind(summary)],
        unflagged=[tables.headline(part, unflagged=True) for part in tables.by_kind(summary)],
        n_flagged=tables.n_flagged(data.scores),
        measures=tables.other_measures(summary),
        comparison=[comparison_table(part) for part in tables.by_kind(findings.compared)],
        unflagged_comparison=[comparison_table(part) for part in tables.by_kind(findings.unflagged)],
        reference=REFERENCE,
        baselines=[comparison_table(part) for part in tables.by_kind(against)],
        own=own,
        other_forms=findings.distances[1:],
        published=published_table(data.published) if data.published != "none" else None,
        seeds=tables.each_seed(data.scores),
        curve=first,
        plots=[(plot, uri) for plot, uri in others if plot.name not in ("embedding_map", "masks")],
        mask_plot=next(((plot, uri) for plot, uri in others if plot.name == "masks"), None),
        map=findings.map,
        map_picture=next((uri for plot, uri in others if findings.map and plot is findings.map.plot), ""),
        methods=[(m, tables.description(m)) for m in dict.fromkeys(summary["method"])],
        masks=region_tables.mask_table(data.ledger),
        failures=tables.plain(data.failures, FAILURE_COLUMNS, names=3) if len(data.failures) else None,
        facts=about.facts(data, tables.n_flagged(data.scores)),
        drops=about.drops(data.drops),
        cards=[about.card(card) for card in data.cards],
        gallery=gallery_groups(data.gallery, data.classes),
        attention=region_tables.attention_table(data.attention) if len(data.attention) else None,
        has_heats=any(item.heats for item in data.gallery),
        looked=LOOKED,
        composed=composed(data.gallery),
        most_pictures=MOST,
        shown_classes=shown_classes(data.gallery, data.classes),
        outcomes=region_tables.outcome_table(data.outcomes) if len(data.outcomes) else None,
        asked=_asked(data),
        unreadable=", ".join(f"{reason} {count}" for reason, count in data.unreadable.items()),
        n_unreadable=sum(data.unreadable.values()),
    )


def twin(data: ReportData, findings: Findings) -> str:
    """The report as Markdown: the answer, warnings, and the tables that matter."""
    summary, compared = findings.summary, findings.compared
    best = "Bold: best of its column; italic: not significantly worse. Pooled right answers of all, over seeds."
    accuracy = [tables.headline(part, marks=findings.marks) for part in tables.by_kind(summary)]
    unflagged = [tables.headline(part, unflagged=True) for part in tables.by_kind(summary)]
    differences = [comparison_table(part) for part in tables.by_kind(compared)]
    own, against = findings.own
    baselines = [comparison_table(part) for part in tables.by_kind(against)]
    ahead = " ".join([f"Percentage points that {own} is ahead.", *findings.distances[1:]])
    flagged, right = tables.n_flagged(data.scores), region_tables.outcome_table(data.outcomes)
    looked = region_tables.attention_table(data.attention)
    sections = [
        Section("Test accuracy in percent", best, accuracy),
        *([Section(f"Without the {flagged} flagged test images", "", unflagged)] if flagged else []),
        *([Section(f"Against {REFERENCE}", "Percentage points.", differences)] if len(compared) else []),
        *([Section("MedFocusCLIP against every baseline", ahead, baselines)] if baselines else []),
        Section("All measures, on the largest training subset", "", [tables.other_measures(summary)]),
        *([Section("Who was right", _asked(data), [right])] if len(data.outcomes) else []),
        *([Section("Where the classifiers looked", LOOKED, [looked])] if len(data.attention) else []),
        Section("Masks", "", [region_tables.mask_table(data.ledger)]),
    ]
    return markdown(data, findings.answer, notes.warnings_of(data), sections)


def _asked(data: ReportData) -> str:
    seen, blind = data.asked
    return f"Test images by the answers of {seen} and {blind}, each on its largest training subset, first seed."


def _replace(path: Path, data: bytes) -> None:
    """Replace a file so that every reader sees the old or the new one, whole."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    with disk_errors(f"write {place(path)}", path.parent):
        try:
            write_synced(partial, data)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
