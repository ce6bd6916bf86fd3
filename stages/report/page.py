"""The report as one self-contained page without scripts or network, beside its tables and figures as files."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined

from manifests.disk import PARTIAL, disk_errors, make_private, place, write_atomic, write_synced
from manifests.fingerprint import digest_bytes, digest_json
from stages.report import figures, notes, tables
from stages.report.comparison import REFERENCE, compare, comparison_table
from stages.report.data import FAILURE_COLUMNS, SCORE_COLUMNS, GalleryItem, ReportData
from stages.report.published import published_table

PAGE = "index.html"
DROP_COLUMNS = ("id", "n_items", "created")


def layout_digest() -> str:
    """Digest of everything that decides how a page looks: the template and the code of this package."""
    sources = sorted(
        (f for f in files(__package__).iterdir() if f.name.endswith((".py", ".html"))), key=lambda f: f.name
    )
    return digest_json({file.name: digest_bytes(file.read_bytes()) for file in sources})


def write_report(data: ReportData, out: Path) -> Path:
    """Write index.html, tables as CSV, provenance.json and figures/learning_curve.{png,svg,csv}; the page comes last.

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
    summary = tables.summarise(data.scores)
    curve = figures.learning_curve(summary)
    drawn = {kind: figures.figure_bytes(curve, kind) for kind in ("png", "svg")}
    make_private(out)
    folder = make_private(out / "figures")
    for kind, image in drawn.items():
        _replace(folder / f"learning_curve.{kind}", image)
    points = ["mask", "method", "training", "seeds", "accuracy_mean", "accuracy_sd"]
    write_atomic(folder / "learning_curve.csv", summary[points].to_csv(index=False, lineterminator="\n"))
    compared = compare(data.answers)
    write_atomic(out / "comparison.csv", compared.to_csv(index=False, lineterminator="\n"))
    write_atomic(out / "summary.csv", summary.to_csv(index=False, lineterminator="\n"))
    rest = [column for column in data.scores.columns if column not in SCORE_COLUMNS]
    scores = data.scores[[*SCORE_COLUMNS, *rest]]
    write_atomic(out / "scores.csv", scores.to_csv(index=False, lineterminator="\n"))
    record = {"report": data.fingerprint, "command": data.command, **data.provenance}
    write_atomic(out / "provenance.json", json.dumps(record, indent=1) + "\n")
    write_atomic(out / PAGE, render(data, summary, compared, drawn["svg"]))
    return out / PAGE


def render(data: ReportData, summary: pd.DataFrame, compared: pd.DataFrame, curve_svg: bytes) -> str:
    """The page as HTML; every text is escaped.

    Parameters
    ----------
    data : ReportData
        What the report shows.
    summary : DataFrame
        What `tables.summarise` makes of its scores.
    compared : DataFrame
        What `comparison.compare` makes of its answers.
    curve_svg : bytes
        The learning curve.

    Returns
    -------
    str
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    methods = list(dict.fromkeys(summary["method"]))
    template = environment.from_string((files("stages.report") / "page.html").read_text("utf-8"))
    return template.render(
        data=data,
        warnings=notes.warnings_of(data),
        headline=[tables.headline(part) for part in tables.by_kind(summary)],
        unflagged=[tables.headline(part, unflagged=True) for part in tables.by_kind(summary)],
        n_flagged=tables.n_flagged(data.scores),
        measures=tables.other_measures(summary),
        comparison=[comparison_table(part) for part in tables.by_kind(compared)],
        unflagged_comparison=_without_flagged(data.answers),
        reference=REFERENCE,
        published=published_table(data.published) if data.published != "none" else None,
        seeds=tables.each_seed(data.scores),
        not_drawn=len(methods) - len(figures.drawn(summary)),
        curve=figures.data_uri(curve_svg, "image/svg+xml"),
        methods=[(m, tables.description(m)) for m in methods],
        masks=tables.mask_table(data.ledger),
        failures=tables.plain(data.failures, FAILURE_COLUMNS, names=3) if len(data.failures) else None,
        drops=tables.plain(pd.DataFrame(data.drops, columns=DROP_COLUMNS), DROP_COLUMNS, names=1),
        cards=[_card(card) for card in data.cards],
        gallery=_gallery(data.gallery, data.classes),
        unreadable=", ".join(f"{reason} {count}" for reason, count in data.unreadable.items()),
        n_unreadable=sum(data.unreadable.values()),
    )


def _without_flagged(answers: pd.DataFrame) -> list[tables.Table]:
    """The comparison on unflagged test images alone; empty where none is flagged or none is left."""
    clean = answers[~answers["flagged"]]
    if not 0 < len(clean) < len(answers):
        return []
    return [comparison_table(part) for part in tables.by_kind(compare(clean))]


def _card(card: Mapping[str, Any]) -> dict[str, Any]:
    values = [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in card.items()]
    return {
        "name": str(card.get("name", "unnamed")),
        "note": notes.model_note(card),
        "untrained": notes.is_untrained(card),
        "entries": values,
    }


def _gallery(items: Sequence[GalleryItem], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Items by class in the order of the classes, other labels last; one image under all policies side by side."""
    labels = [*classes, *(item.label for item in items if item.label not in classes)]
    images = list(dict.fromkeys(item.caption for item in items))
    ordered = sorted(items, key=lambda item: images.index(item.caption))
    grouped = {label: [_picture(item) for item in ordered if item.label == label] for label in labels}
    return [{"label": label or "(no label)", "pictures": pictures} for label, pictures in grouped.items() if pictures]


def _picture(item: GalleryItem) -> dict[str, Any]:
    panels = [("what the image encoder sees", item.masked)]
    if item.image is not None:
        outlined = figures.outlined(item.image, item.mask)
        panels = [("image", item.image), ("outline of the mask", outlined), *panels]
    return {
        "item": item,
        "right": item.predicted == item.label,
        "panels": [(name, figures.thumbnail_uri(pixels)) for name, pixels in panels],
    }


def _replace(path: Path, data: bytes) -> None:
    """Replace a file so that every reader sees the old or the new one, whole."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    with disk_errors(f"write {place(path)}", path.parent):
        try:
            write_synced(partial, data)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
