"""What the driver knows of worker processes beside their units: how they ended, and whether others come."""

from __future__ import annotations

import logging
import math
from typing import Any, Final

NOT_STARTED: Final = "a worker did not start"


class LastWords(logging.Handler):
    """Keeps what Dask's nannies last said of a worker's end: the signal, the exit status or the memory limit."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.text = "no cause is known"

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line that names a cause."""
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None and "Failed to start" in text:
            self.text = f"{NOT_STARTED}: {record.exc_info[1]}"
        elif self.text.startswith(NOT_STARTED) and "signal 15" in text:
            pass  # its nanny ends what did not start
        elif any(word in text for word in ("killed by signal", "exited with status", "memory budget")):
            self.text = text


class Workforce:
    """The worker processes of a cluster, as far as the driver sees to them; of a cluster of others not at all."""

    elastic = False
    """Whether another worker may come where one was sent away and none is left."""
    come_and_go = False
    """Whether the number of workers is for others to say."""
    hint = ""
    """Where to look if none comes."""
    patience_s = math.inf
    """How long a run waits without any worker, in seconds."""

    def __init__(self, last_words: LastWords | None = None) -> None:
        self.last_words = last_words or LastWords()

    def look_after(self) -> None:
        """Ask again for what was lost."""

    def dismiss(self, name: Any) -> None:
        """Know that a worker is sent away, and not lost."""
