"""What a report is about: facts for its top, drops and model cards."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from stages.report import notes, tables
from stages.report.data import ReportData

DROP_COLUMNS = {"id": "drop", "created": "created", "n_items": "images"}


def drops(drops: Sequence[Mapping[str, Any]]) -> tables.Table:
    frame = pd.DataFrame(drops, columns=list(DROP_COLUMNS)).rename(columns=DROP_COLUMNS)
    return tables.plain(frame, list(DROP_COLUMNS.values()), names=2)


def card(card: Mapping[str, Any]) -> dict[str, Any]:
    values = [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in card.items()]
    return {
        "name": str(card.get("name", "unnamed")),
        "note": notes.model_note(card),
        "untrained": notes.is_untrained(card),
        "entries": values,
    }


def facts(data: ReportData, flagged: int) -> list[tuple[str, str]]:
    """What the study is about, in the fewest words."""
    low, high = int(data.scores["n_test"].min()), int(data.scores["n_test"].max())
    tested = f"{high} images" if low == high else f"{low} to {high} images"
    told = f"{flagged} of them flagged: they, or their patients, also occur in training" if flagged else "none flagged"
    drops = ", ".join(f"{drop['id']} ({drop['n_items']} images, {drop['created']})" for drop in data.drops)
    seeds = ", ".join(str(seed) for seed in sorted(data.scores["seed"].unique()))
    models = [f"{card.get('name', 'unnamed')}{' (untrained)' * notes.is_untrained(card)}" for card in data.cards]
    return [
        ("Drops", drops),
        ("Test set", f"{tested}, {told}"),
        ("Training", f"up to {int(data.scores['n_train'].max())} images, seeds {seeds}"),
        ("Models", ", ".join(models) or "none"),
        ("Made", data.created),
    ]
