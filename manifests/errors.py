"""Every error that the pipeline raises on purpose, and the exit code of each.

PipelineError                1   a bug, or something nobody foresaw
├── UsageError               2   the command line is wrong
│   ├── ConfigError          2   the configuration is wrong
│   └── WeightsError         2   a model's weights are missing, altered or of another architecture
├── RefusedError             4   going on would make the results wrong
│   ├── InventoryError       4   the source folder, the CSV or a drop
│   └── StoreError           4   the work folder, a store, a commit, a full or read-only disk
│       └── DamagedError     4   one committed unit is not what was committed; other units can go on
├── UnitError                3   one unit cannot be computed; other units can go on
├── ReadError                -   one image cannot be read: becomes a row, never ends a run
└── InterruptedRunError     75   stopped by a signal; start again to resume
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """What the process returns to the shell or the batch system."""

    DONE = 0
    BUG = 1
    USAGE = 2
    FAILURES = 3
    REFUSED = 4
    INTERRUPTED = 75


class PipelineError(Exception):
    """An error with one line that says what is wrong and one that says what to do.

    Parameters
    ----------
    what : str
        What is wrong: the file, the value found and the value expected.
    fix : str
        What the reader can do about it; may be empty.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.BUG

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__(what, fix)
        self.what = what
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.what} {self.fix}".strip()


class UsageError(PipelineError):
    """The command line asks for something that does not exist or does not go together."""

    exit_code = ExitCode.USAGE


class ConfigError(UsageError):
    """The configuration has an unknown key, a value out of range or a missing file."""


class WeightsError(UsageError):
    """A model's weights are missing, altered, or belong to another architecture."""


class RefusedError(PipelineError):
    """The request is clear, but carrying it out would make results wrong."""

    exit_code = ExitCode.REFUSED


class InventoryError(RefusedError):
    """The source folder, its CSV or a stored drop cannot be used as it is."""


class StoreError(RefusedError):
    """The work folder or a store in it is damaged, foreign, full or not writable."""


class DamagedError(StoreError):
    """One committed unit is missing a file, or a file is not what was committed."""


class UnitError(PipelineError):
    """One unit cannot be computed from what it is given; the run goes on with the others."""

    exit_code = ExitCode.FAILURES


class InterruptedRunError(PipelineError):
    """A signal asked the run to stop; what was finished is committed and a new run resumes."""

    exit_code = ExitCode.INTERRUPTED


class ReadError(PipelineError):
    """One image cannot be read; the stage turns this into a failed row.

    Parameters
    ----------
    reason : str
        Stable code, such as ``decode.truncated``; see `manifests.readers.REASONS`.
    detail : str
        Free text without any source path.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[ReadError], tuple[str, str]]:
        return type(self), (self.reason, self.detail)
