"""A data set under one configuration, opened to be read: its rows in order, its nodes, and what they lack."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from manifests.drops import Drop
from manifests.errors import StoreError, UsageError
from manifests.types import Chunk, ImageRow, Split, Status
from pipeline.graph import Node
from pipeline.plan import commits_of, incomplete_inputs, plan_map
from pipeline.workspace import Workspace


class Place(NamedTuple):
    """Where an image stands."""

    position: int
    """Among the rows of all drops, withdrawn ones too."""
    drop: Drop
    row: ImageRow


@dataclass(frozen=True, slots=True)
class OpenedStudy:
    """What `pipeline.api` reads; drops and withdrawals as they were when it was opened."""

    workspace: Workspace

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the class index."""
        return self.workspace.classes

    @property
    def policies(self) -> tuple[str, ...]:
        """Mask policies of the configuration, the main one first."""
        return tuple(node.policy for node in self.workspace.nodes.values() if node.stage == "masks")

    def views(self, policy: str | None = None) -> tuple[str, ...]:
        """Views that embeddings have under a policy, by default the main one.

        Raises
        ------
        UsageError
            If there is no such policy.
        """
        return tuple(self.node("embeddings", policy).settings.model_dump()["views"])

    def node(self, stage: str, policy: str | None = None) -> Node:
        """Node of a map stage under a mask policy, by default the main one.

        Raises
        ------
        UsageError
            If there is no such policy.
        """
        wanted = self.policies[0] if policy is None else policy
        for node in self.workspace.nodes.values():
            if (node.stage, node.policy, node.backbone) == (stage, wanted, ""):
                return node
        raise UsageError(
            f"This configuration has no mask policy {wanted!r}; it has: {', '.join(self.policies)}.",
            'Open the study as it was run: overrides=["masks.policy=..."] or config="run.toml".',
        )

    def places(self, split: str | None = None) -> list[Place]:
        """Images of all drops in order of arrival, or those of one split; withdrawn ones are left out.

        Raises
        ------
        UsageError
            If there is no such split.
        """
        known = [one.value for one in Split]
        if split is not None and split not in known:
            raise UsageError(f"There is no split {split!r}.", f"Splits: {', '.join(known)}.")
        rows = [(drop, row) for drop in self.workspace.drops for row in self.workspace.rows(drop.drop_id)]
        return [
            Place(position, drop, row)
            for position, (drop, row) in enumerate(rows)
            if split in (None, row.split.value) and row.image_id not in self.workspace.withdrawn
        ]

    def chunks(self) -> Iterator[tuple[Drop, Chunk]]:
        """Chunks of all drops in order."""
        return ((drop, chunk) for drop in self.workspace.drops for chunk in drop.chunks())

    def require_complete(self, node: Node) -> None:
        """Refuse a map node that lacks chunks under this configuration, or whose inputs do.

        Raises
        ------
        StoreError
            With how many are lacking, and the command that computes them.
        """
        self.workspace.forget_plans()
        below = incomplete_inputs(self.workspace, node)
        lacking = len(plan_map(self.workspace, node))
        if below or lacking:
            key, count = next(iter(below.items())) if below else (node.key, lacking)
            total = len(list(self.chunks()))
            raise StoreError(
                f"{count} of {total} chunks of {key} are not committed under this configuration.",
                f"Run: pipeline run --stage {node.stage}. Or open the study with the --config and --set of its run.",
            )

    def outcomes(self, node: Node) -> dict[tuple[str, int], Status]:
        """Status by drop and row of every committed chunk of a map node that is not to be replaced."""
        self.workspace.forget_plans()
        planned = {(unit.chunk.drop, unit.unit) for unit in plan_map(self.workspace, node) if unit.chunk}
        commits = {key: commit for key, commit in commits_of(self.workspace, node).items() if key not in planned}
        return {(drop, o.row): Status(o.status) for (drop, _), commit in commits.items() for o in commit.outcomes()}
