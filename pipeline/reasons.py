"""Why a stage that was computed before is to be computed again: what its identity says now, and what it said then."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manifests.commits import committed_units
from manifests.types import StageIdentity
from pipeline.graph import Node
from pipeline.plan import incomplete_inputs
from pipeline.workspace import Workspace

ABSENT = "nothing"
LONGEST = 60
"""Characters of a value that are shown."""


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between two identities of a stage."""

    kind: str
    """`settings`, `weights`, `version`, `upstream` or `data`."""
    what: str
    """Name of the setting, the file or the input."""
    before: Any
    now: Any

    def __str__(self) -> str:
        if self.kind == "settings":
            return f"{self.what} was {_shown(self.before)}, is {_shown(self.now)}"
        if self.kind == "version":
            return f"the code of the stage was version {self.before}, is {self.now}"
        if self.kind == "data":
            return "images arrived, were withdrawn or flagged, or features were computed anew"
        return self.what


HEADINGS = {
    "settings": "settings changed",
    "weights": "weights changed",
    "version": "code changed",
    "upstream": "upstream changed",
    "data": "data changed",
}


def why_new(workspace: Workspace, node: Node, drop_id: str = "") -> tuple[Change, ...]:
    """What differs from the most similar identity under which a stage has results.

    Parameters
    ----------
    workspace : Workspace
        Data set and configuration.
    node : Node
        A node without any result in this drop, or at all if it is a cell node.
    drop_id : str
        The drop, for a map node.

    Returns
    -------
    tuple[Change, ...]
        Nothing if there never was a result, so that the units are new.
    """
    identity = workspace.identity(node)
    candidates = []
    for root in earlier_roots(workspace, node, drop_id):
        folder = root.parent if node.is_map else root
        known = _identity(folder)
        if known is not None and committed_units(root):
            changes = tuple(_compare(known, identity))
            candidates.append((len(changes), -folder.stat().st_mtime, changes))
    return min(candidates, key=lambda candidate: candidate[:2])[2] if candidates else ()


def earlier_roots(workspace: Workspace, node: Node, drop_id: str = "*") -> list[Path]:
    """Folders that hold commits of a node's stage under other identities, sorted.

    A branch of this very configuration is no earlier state of another one.
    """
    same = {workspace.fingerprint(n)[:12] for n in workspace.nodes.values() if _is_planned(workspace, n, node)}
    folders = sorted((workspace.paths.root / "stages" / node.stage).glob("*"))
    others = [folder for folder in folders if folder.name not in {*same, workspace.fingerprint(node)[:12]}]
    return [root for folder in others for root in (sorted(folder.glob(drop_id)) if node.is_map else [folder])]


def _is_planned(workspace: Workspace, other: Node, node: Node) -> bool:
    """Whether another node of the configuration is of the same stage, and can be identified."""
    if other.stage != node.stage or other.key == node.key:
        return False
    return other.is_map or not incomplete_inputs(workspace, other)


def summarise(changes: tuple[Change, ...]) -> str:
    """One reason in words: `settings changed: policy was "top1", is "union"`."""
    kinds = list(dict.fromkeys(change.kind for change in changes))
    # Whatever changed upstream changed the data; the cause is enough.
    if len(kinds) > 1 and "data" in kinds:
        kinds.remove("data")
    return "; ".join(f"{HEADINGS[kind]}: {', '.join(str(c) for c in changes if c.kind == kind)}" for kind in kinds)


def _identity(folder: Path) -> Mapping[str, Any] | None:
    try:
        found = json.loads((folder / "stage.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _compare(before: Mapping[str, Any], now: StageIdentity) -> Iterator[Change]:
    if before.get("version") != now.version:
        yield Change("version", now.name, before.get("version"), now.version)
    # As JSON, as in the file: a tuple there is a list here.
    current = json.loads(json.dumps({"settings": now.settings, "weights": now.weights, "upstream": now.upstream}))
    for kind, values in current.items():
        old = before.get(kind, {})
        for name in sorted({*old, *values}):
            if old.get(name, ABSENT) != values.get(name, ABSENT):
                is_data = kind == "upstream" and name == "data"
                yield Change("data" if is_data else kind, name, old.get(name, ABSENT), values.get(name, ABSENT))


def _shown(value: Any) -> str:
    text = value if value is ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
