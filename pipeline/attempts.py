"""A unit on its way through worker processes, and how it may end without a result."""

from __future__ import annotations

from dataclasses import dataclass

from manifests.errors import PipelineError
from pipeline.execute import UnitTask


class WorkerDiedError(PipelineError):
    """A unit's worker process ended without a word, as often as retries allow."""


class WorkersEndedError(PipelineError):
    """A unit's workers were ended from outside, one after the other; its images are not suspected."""


@dataclass(slots=True)
class Attempt:
    """A unit on its way, and what befell its workers."""

    task: UnitTask
    name: str
    deaths: int = 0
    """Workers that died by themselves while they had the unit."""
    ended: int = 0
    """Workers that were ended from outside, or refused."""

    @property
    def key(self) -> str:
        """Key of the next submission; Dask must not know it yet."""
        return f"{self.task.run_id}/{self.name}~{self.deaths + self.ended}"
