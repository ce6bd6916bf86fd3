"""What has arrived, and what was withdrawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from manifests.audit import flagged
from manifests.drops import load_drops, load_rows, load_twins
from manifests.layout import DatasetPaths
from manifests.types import Split
from manifests.withdrawals import load_withdrawals, withdraw, withdrawn_ids
from pipeline.commands import print_json, say
from pipeline.terminal import print_table


def do_drops(paths: DatasetPaths, *, as_json: bool) -> None:
    """Print every drop with its counts, and every withdrawal."""
    withdrawals = load_withdrawals(paths)
    gone = withdrawn_ids(withdrawals)
    drops = [(drop, load_rows(paths, drop)) for drop in load_drops(paths)]
    standing = [row for _, rows in drops for row in rows if row.image_id not in gone]
    leaks = flagged(standing, load_twins(paths, [drop for drop, _ in drops]))
    told: list[dict[str, Any]] = []
    for drop, rows in drops:
        left = [row for row in rows if row.image_id not in gone]
        splits = Counter(row.split.value for row in left)
        told.append(
            {
                "drop": drop.drop_id,
                "created": drop.created,
                "images": len(rows),
                "chunks": len(drop.chunks()),
                "splits": {split.value: splits[split.value] for split in Split if splits[split.value]},
                "flagged": sum(row.split is Split.TEST and row.image_id in leaks for row in left),
                "withdrawn": len(rows) - len(left),
            }
        )
    if as_json:
        print_json({"drops": told, "withdrawals": [record.model_dump(mode="json") for record in withdrawals]})
        return
    header = ("drop", "created", "images", "chunks", "splits", "flagged", "withdrawn")
    print_table(header, [[_cell(row[name]) for name in header] for row in told])
    say(
        f"withdrawal {record.withdrawal_id}: {len(record.image_ids)} images"
        + (f", drop {record.drop}" if record.drop else "")
        + f": {record.reason}"
        for record in withdrawals
    )


def _cell(value: Any) -> str:
    return ", ".join(f"{name} {count}" for name, count in value.items()) if isinstance(value, dict) else str(value)


def do_withdraw(
    paths: DatasetPaths, reason: str, *, drop: str, images: Sequence[str], patient: str, as_json: bool
) -> None:
    """Record a withdrawal, and say which images show the same pictures and stay."""
    twins = load_twins(paths, load_drops(paths))
    record = withdraw(paths, reason, drop=drop, image_ids=images, patient=patient)
    gone = withdrawn_ids(load_withdrawals(paths))
    pairs = [pair for twin in twins for pair in ((twin.image_id, twin.other_id), (twin.other_id, twin.image_id))]
    staying = sorted({other for one, other in pairs if one in record.image_ids and other not in gone})
    if as_json:
        print_json({**record.model_dump(mode="json"), "twins_that_stay": staying})
        return
    say([f"{record.withdrawal_id}: {len(record.image_ids)} images are withdrawn and leave every later result."])
    if staying:
        say([f"  {len(staying)} other images show the same pictures and stay: {', '.join(staying[:5])}"])
    say(["Remove what is stored of them: pipeline gc --delete. Then compute without them: pipeline run"])
