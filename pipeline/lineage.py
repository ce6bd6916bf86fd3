"""From a score back to images, weights and settings: what each committed stage was made of, and by which runs."""

from __future__ import annotations

from typing import Any

from manifests.commits import Commit
from manifests.forgetting import WITHDRAWALS
from pipeline.committed import Committed
from pipeline.graph import Node
from pipeline.plan import commits_of, incomplete_inputs
from pipeline.workspace import Workspace


def lineage(workspace: Workspace, committed: Committed) -> dict[str, Any]:
    """Everything that the committed results of a configuration follow from, as JSON values without any path.

    Parameters
    ----------
    workspace : Workspace
        Data set and configuration.
    committed : Committed
        What `look_up` found.

    Returns
    -------
    dict[str, Any]
        `dataset`; `drops`, each with the digest of its inventory; `withdrawals`, by id; `stages`, inputs first, each
        with its identity in full, its fingerprint, the number of units and the runs that computed them.
    """
    stages = []
    for node in workspace.nodes.values():
        found = _commits(workspace, committed, node)
        if not found:
            continue
        identity = workspace.identity(node)
        stages.append(
            {
                "node": node.key,
                "stage": identity.name,
                "version": identity.version,
                "fingerprint": identity.fingerprint,
                "settings": dict(identity.settings),
                "weights": dict(identity.weights),
                "upstream": dict(identity.upstream),
                "inputs": dict(node.inputs),
                "units": len(found),
                "runs": sorted({str(commit.record["run"]) for commit in found if "run" in commit.record}),
            }
        )
    return {
        "schema_version": 1,
        "dataset": workspace.paths.name,
        "drops": [
            {"id": d.drop_id, "n_items": d.n_items, "inventory_sha256": d.inventory_sha256, "created": d.created}
            for d in workspace.drops
        ],
        WITHDRAWALS: [record.withdrawal_id for record in workspace.withdrawals],
        "stages": stages,
    }


def _commits(workspace: Workspace, committed: Committed, node: Node) -> list[Commit]:
    """What a node has committed: also one without scores of its own, such as the text bank."""
    if node.is_map:
        return list(committed.chunks.get(node.key, {}).values())
    if node.key in committed.cells:
        return list(committed.cells[node.key].values())
    return [] if incomplete_inputs(workspace, node) else list(commits_of(workspace, node).values())
