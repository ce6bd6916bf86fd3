"""What `explain` found, as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pipeline.commands import print_json, say
from pipeline.explain import Record, explain
from pipeline.terminal import print_table
from pipeline.workspace import Workspace


def do_explain(workspace: Workspace, what: str, *, as_json: bool) -> None:
    """Print what is recorded of an image, a chunk or a cell."""
    record = explain(workspace, what)
    if as_json:
        print_json(record)
        return
    {"image": _print_image, "chunk": _print_chunk, "cell": _print_cell}[record["kind"]](record)


def _print_image(record: Record) -> None:
    say([f"image {record['image']}"])
    for row in record["rows"]:
        size = f"{row['width']} x {row['height']} px {row['mode']}"
        file = row["file"] if row["frame"] is None else f"{row['file']}#{row['frame']}"
        say([f"  {row['drop']} row {row['row']}, chunk {row['chunk']}: {file} ({size})"])
        say([f"    label {row['label'] or 'none'}, split {row['split']}, group {row['group']}"])
        if row["transforms"]:
            say([f"    read with: {row['transforms']}"])
    say(f"  withdrawn: {withdrawal}" for withdrawal in record["withdrawn"])
    if record["audit"]["flagged"]:
        say(["  flagged: its file, picture or patient is in train or val too"])
    for twin in record["audit"]["twins"]:
        where = f"{twin['split']}, {twin['label'] or 'no label'}" if twin["split"] else "withdrawn"
        say([f"  same picture: {twin['image']} ({twin['how']}, correlation {twin['correlation']}; {where})"])
    _print_stages(record["stages"], ("status", "reason", "detail"))
    if record["cells"]:
        say([""])
        header = ("stage", "method", "training", "role", "seeds", "correct")
        print_table(header, _by_training(record["cells"]))


def _by_training(cells: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """One row for all seeds of a method and training subset."""
    groups: dict[tuple[str, str, str, str], list[Mapping[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell["stage"], cell["method"], cell["training"], cell["role"]), []).append(cell)
    rows: list[tuple[str, ...]] = []
    for key, members in groups.items():
        seeds = ", ".join(str(cell["seed"]) for cell in members)
        answers = [cell["correct"] for cell in members if "correct" in cell]
        wrong = Counter(cell["predicted"] for cell in members if cell.get("correct") is False)
        told = ", ".join(f"{name} {count}" for name, count in wrong.items())
        text = f"{sum(answers)}/{len(answers)}" + (f" (else {told})" if told else "") if answers else ""
        rows.append((*key, seeds, text))
    return rows


def _print_stages(stages: Iterable[Mapping[str, Any]], columns: tuple[str, ...]) -> None:
    header = ("stage", *columns, "fingerprint", "committed", "run", "retired", "pending")
    print_table(header, [tuple(stage.get(name) for name in header) for stage in stages])


def _print_chunk(record: Record) -> None:
    first, last = record["rows"]
    say([f"chunk {record['chunk']}: rows {first} to {last - 1}"])
    stages = [{**s, "images": ", ".join(f"{k} {v}" for k, v in s["images"].items())} for s in record["stages"]]
    _print_stages(stages, ("images",))
    say(f"  {stage['stage']}: {image}: {why}" for stage in record["stages"] for image, why in stage["reasons"].items())


def _print_cell(record: Record) -> None:
    for result in record["results"]:
        say([f"{result['stage']}: cell {record['unit']}"])
        print_table(("record", "value"), list(_cell_lines(result)))


def _cell_lines(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in result.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{key}", str(inner)) for key, inner in value.items())
        elif name != "stage" and value is not None:
            yield name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)
