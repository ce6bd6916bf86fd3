"""What a run has done so far, as counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from manifests.errors import ExitCode
from manifests.readers import WITHDRAWN
from manifests.types import Status
from pipeline.execute import UnitReport
from pipeline.graph import Node
from pipeline.plan import commits_of
from pipeline.workspace import Workspace


@dataclass(slots=True)
class Tally:
    """What a run has done so far, by node."""

    planned: Counter[str] = field(default_factory=Counter)
    committed: Counter[str] = field(default_factory=Counter)
    elsewhere: Counter[str] = field(default_factory=Counter)
    """Units that another run committed first."""
    images: dict[str, Counter[str]] = field(default_factory=dict)
    """Images by status."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Failed and fallback images by reason."""
    failed_units: dict[str, str] = field(default_factory=dict)
    """What ended a unit for good, by its name."""
    waiting: dict[str, str] = field(default_factory=dict)
    """Nodes that could not start, and for what they wait."""
    gpus: set[str] = field(default_factory=set)
    """GPUs that computed units, with the version of torch."""
    failed_images: Counter[str] = field(default_factory=Counter)
    """Images without a result by reason, from earlier runs too."""

    def add(self, node: str, report: UnitReport) -> None:
        """Count one committed unit; one that another run committed first is not ours."""
        if report.on_gpu:
            self.gpus.add(report.device)
        if not report.won:
            self.elsewhere[node] += 1
            return
        self.committed[node] += 1
        self.images.setdefault(node, Counter()).update(report.images)
        self.reasons.update(report.reasons)

    def count_failed(self, workspace: Workspace, nodes: Sequence[Node]) -> None:
        """Count each image that failed once, under the reason of the first stage that could not use it."""
        seen: dict[tuple[str, int], str] = {}
        for node in nodes:
            for (drop_id, _), commit in commits_of(workspace, node).items():
                for item in commit.outcomes():
                    if item.status == Status.FAILED:
                        seen.setdefault((drop_id, item.row), item.reason)
        # What was withdrawn has no result on purpose.
        self.failed_images = Counter(reason for reason in seen.values() if reason != WITHDRAWN)

    def exit_code(self) -> ExitCode:
        """FAILURES if a unit failed for good or an image has no result."""
        return ExitCode.FAILURES if self.failed_units or self.failed_images else ExitCode.DONE

    def as_json(self) -> dict[str, Any]:
        """Counts as JSON values."""
        return {
            "planned": dict(self.planned),
            "committed": dict(self.committed),
            "elsewhere": dict(self.elsewhere),
            "images": {node: dict(counts) for node, counts in self.images.items()},
            "reasons": dict(self.reasons),
            "failed_images": dict(self.failed_images),
            "failed_units": self.failed_units,
            "waiting": self.waiting,
        }
