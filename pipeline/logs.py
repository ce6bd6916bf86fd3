"""What a run tells people on stderr: a progress bar on a terminal, one line every ten seconds elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 10.0

log = logging.getLogger("medfocus")


def set_up_logging(*, verbose: bool) -> None:
    """Send the program's log to stderr; other libraries speak from WARNING up."""
    if sys.stderr.isatty():
        handler: logging.Handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False)
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in ("medfocus", "pipeline", "stages", "manifests"):
        logging.getLogger(name).setLevel(logging.DEBUG if verbose else logging.INFO)


class Ticker:
    """Progress of one stage.

    Parameters
    ----------
    title : str
        Name of the node.
    total : int
        Units to do.
    bar : Progress, optional
        The terminal's bar; without it, lines are logged.
    """

    def __init__(self, title: str, total: int, bar: Progress | None) -> None:
        self._title, self._total, self._bar = title, total, bar
        self._done = 0
        self._started = self._spoken = time.monotonic()
        self._task = bar.add_task(title, total=total) if bar else None

    def advance(self) -> None:
        """Count one finished unit."""
        self._done += 1
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task)
        now = time.monotonic()
        if self._bar is None and now - self._spoken >= LINE_EVERY_S and self._done < self._total:
            self._spoken = now
            left_s = (now - self._started) / self._done * (self._total - self._done)
            log.info("%s: %d of %d units, about %s left", self._title, self._done, self._total, duration(left_s))


@contextmanager
def ticker(title: str, total: int) -> Iterator[Ticker]:
    """Show the progress of `total` units until the block ends."""
    if not sys.stderr.isatty():
        yield Ticker(title, total, None)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        yield Ticker(title, total, bar)


def counter(title: str) -> Callable[[int, int], None]:
    """A callback that logs every ten seconds how many of all files are done."""
    spoken = time.monotonic()

    def count(done: int, total: int) -> None:
        nonlocal spoken
        if time.monotonic() - spoken >= LINE_EVERY_S:
            spoken = time.monotonic()
            log.info("%s: %d of %d files", title, done, total)

    return count


def duration(seconds: float) -> str:
    """Read a span of time: `8 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
