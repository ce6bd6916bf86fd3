"""What the driver knows of worker processes beside their units: how they ended, and whether others come."""

from __future__ import annotations

import logging


class LastWords(logging.Handler):
    """Keeps what Dask's nannies last said of a worker's end: the signal, the exit status or the memory limit."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.text = "no cause is known"

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line that names a cause."""
        text = record.getMessage()
        if any(word in text for word in ("killed by signal", "exited with status", "memory budget")):
            self.text = text


class Workforce:
    """The worker processes of a cluster, as far as the driver sees to them; those of this machine need nothing."""

    elastic = False
    """Whether a worker that is sent away is followed by another."""
    come_and_go = False
    """Whether the number of workers is for others to say."""
    hint = ""
    """Where to look if none comes."""

    def __init__(self) -> None:
        self.last_words = LastWords()

    def look_after(self) -> None:
        """Ask again for what was lost."""
