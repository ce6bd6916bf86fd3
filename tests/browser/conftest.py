"""Chromium without a window, and a report's page with names that want to harm it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages.report.data import Heat
from stages.report.embedding_map import MapPoints
from stages.report.figures import THUMBNAIL_PX
from stages.report.outcomes import COUNT_COLUMNS
from stages.report.page import write_report
from tests.conftest import unavailable
from tests.unit.stages.test_report import answers, data, item, ledger, probabilities, study

CHROMIUM = shutil.which("chromium")
SCRIPT = "<script>alert(1)</script>"
QUOTES = "\"a' onerror='alert(2)' \"`${alert(3)}`"
LONG = "adenocarcinoma-" * 20
LEFTWARD = "ورم חיובי"
NAMES = (SCRIPT, QUOTES, LONG, LEFTWARD)
N_POINTS = 40
WIDTHS = (1440, 390)
SCHEMES = ("light", "dark")


@dataclass
class Opened:
    """A page in the browser, and what it did that nobody asked for."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    """Messages of the console, uncaught errors and dialogs."""
    requests: list[str] = field(default_factory=list)
    """Addresses but for data URIs."""


Open = Callable[..., Opened]


def points() -> MapPoints:
    """Forty images of four classes in all splits, each thumbnail of one grey that is not black."""
    random = np.random.default_rng(0)
    labels = [index % len(NAMES) for index in range(N_POINTS)]
    vectors = np.eye(8)[labels] + random.normal(0, 0.1, (N_POINTS, 8))
    return MapPoints(
        images=[f"image-{index:02}" for index in range(N_POINTS)],
        labels=[NAMES[label] for label in labels],
        splits=[("test", "train", "val", "none")[index // 4 % 4] for index in range(N_POINTS)],
        groups=[str(index) for index in range(N_POINTS)],
        vectors={"original": vectors.astype(np.float32), "masked": vectors[::-1].astype(np.float32)},
        thumbnails=np.full((N_POINTS, 8, 8), 200, np.uint8),
        n_all=N_POINTS + 2,
    )


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of a small study."""
    told = probabilities(answers(study()))
    tables = [ledger((1, 9), classes=NAMES[:2]), ledger(classes=NAMES[2:])]
    gallery = [
        item(
            name,
            predicted=other,
            without=name,
            caption=f"picture of {name}",
            outcome="worst" if name == LEFTWARD else "lost",
            proposals=np.zeros((3, THUMBNAIL_PX, THUMBNAIL_PX), bool),
            heats=(Heat("medfocus", np.zeros((THUMBNAIL_PX, THUMBNAIL_PX), np.float32)),),
        )
        for name in NAMES
        for other in NAMES[:2]
    ]
    measured = {"mask": "union", "split": "test", "status": "ok", "area": 0.2, "score": 0.6, "iou": 0.5}
    outcomes = [("union", name, 10, 4, 3, 2, 1) for name in NAMES]
    shown = data(
        dataset=SCRIPT,
        classes=NAMES,
        command=f"pipeline report --dataset {LONG}",
        probabilities=told.assign(p_2=0.0, p_3=0.0),
        ledger=pd.concat(tables, ignore_index=True),
        gallery=gallery,
        masks=pd.DataFrame([{**measured, "class": name} for name in NAMES for _ in range(5)]),
        outcomes=pd.DataFrame(outcomes, columns=list(COUNT_COLUMNS)),
        asked=("medfocus", "original"),
        cards=[{"name": LONG, QUOTES: SCRIPT}],
        points=points(),
    )
    return write_report(shown, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium of the system; skips with a word where it is not installed, or fails if it must be."""
    if CHROMIUM is None:
        unavailable("chromium is not installed (apt-get install chromium)")
    try:
        playwright = import_module("playwright.sync_api")
    except ImportError:
        unavailable("playwright is not installed (the extra dev)")
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def open_report(browser: Any, report: Path) -> Iterator[Open]:
    """Open the page from the disk, in a window of its own."""
    contexts = []

    def opened(width_px: int = 1440, scheme: str = "light", *, scripted: bool = True) -> Opened:
        size = {"width": width_px, "height": 900}
        context = browser.new_context(viewport=size, color_scheme=scheme, java_script_enabled=scripted)
        contexts.append(context)
        found = Opened(context.new_page())
        found.page.on("console", lambda message: found.complaints.append(f"{message.type}: {message.text}"))
        found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
        found.page.on("dialog", lambda dialog: (found.complaints.append(dialog.message), dialog.dismiss()))
        found.page.on("request", lambda request: found.requests.append(request.url))
        found.page.goto(report.as_uri())
        found.requests = [url for url in found.requests if not url.startswith("data:")]
        return found

    yield opened
    for context in contexts:
        context.close()
