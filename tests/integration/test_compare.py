"""What changed between two runs: a drop, a setting, a withdrawal; numbers are computed from predictions.csv."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pandas as pd
import pytest

from manifests.drops import load_drops, load_rows
from manifests.layout import DatasetPaths
from manifests.types import Split
from pipeline.phantoms import make_phantoms
from stages.report.kept import KEPT, Kept
from tests.conftest import Cli, Finished
from tests.integration.pipelines import QUICK, events
from tests.integration.test_run import Study

pytestmark = pytest.mark.slow

OTHER = (*QUICK, "--set", "fusion.epochs=5")
Answers = dict[tuple[str, int], dict[str, bool]]
"""By method and seed, on all training images: by image_id whether it was right."""


def answers(study: Study) -> Answers:
    """What every committed probe says now, read by other means than the report's."""
    found: Answers = {}
    for file in study.dataset.glob("stages/probes/*/commits/*-100-*/predictions.csv"):
        method, _, seed = file.parent.name.rpartition("-100-")
        with file.open(newline="") as stream:
            lines = {line["image_id"]: line["predicted"] == line["label"] for line in csv.DictReader(stream)}
        older = found.get((method, int(seed)), {})
        found[method, int(seed)] = lines if len(lines) > len(older) else older
    return found


def compare(study: Study, a: str, b: str) -> Finished:
    return study.cli("report", "--workdir", study.work, "--compare", a, b)


def table(done: Finished) -> pd.DataFrame:
    page = Path(done.out.rstrip().rpartition("Comparison: ")[2])
    assert page.is_file()
    return pd.read_csv(page.with_name("compare.csv"), keep_default_na=False)


@pytest.fixture(scope="module")
def study(cli: Cli, phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """One quick study after its first run."""
    found = Study(cli, tmp_path_factory.mktemp("compare") / "work", phantom_folder)
    assert found.ingest("--chunk-items", 4).code == 0
    return found


def test_a_study_is_compared_through_its_life(study: Study, tmp_path_factory: pytest.TempPathFactory) -> None:
    first = study.run("--json").json
    assert events(study.dataset)[-1]["report"] == first["report"].split("/")[2]
    before = answers(study)

    # A second drop: the added images are told, and every number is that of the predictions before and now.
    more = tmp_path_factory.mktemp("more")
    make_phantoms(more, {"train": 2, "test": 3}, seed=99)
    labels = more / "labels.csv"
    ingested = study.cli("ingest", more, "--dataset", "phantoms", "--labels", labels, "--workdir", study.work)
    assert ingested.code == 0, ingested.err
    second = study.run("--json").json
    done = compare(study, "previous", "latest")
    assert done.code == 0, done.err
    assert "Images: drop-002 is new: 15 images (6 train, 9 test)" in done.out
    assert "Images: test images new: 9 of 15 (lobed 3, round 3, spiculated 3)" in done.out
    now, found = answers(study), table(done)
    for row in found[found["training"] == "100 %"].to_dict("records"):
        check(row, [before[row["method"], s] for s in (0, 1)], [now[row["method"], s] for s in (0, 1)])
    assert set(found["training"]) == {"50 %", "100 %"}
    assert compare(study, first["run"], second["run"]).out == done.out, "a run means the report that it ended with"

    # Another setting and a withdrawal are named; no answer of the image is told, of two older reports neither.
    paths, call = DatasetPaths(study.dataset), ("--workdir", study.work)
    gone = next(r.image_id for d in load_drops(paths) for r in load_rows(paths, d) if r.split is Split.TEST)
    assert gone in kept(study).images.index
    assert study.cli("withdraw", "--image", gone, "--reason", "consent revoked", *call).code == 0
    older = compare(study, "previous", "latest")
    assert "left out, so accuracies can differ from the report's own: " in older.out
    assert not_named(older, gone)
    assert study.run(settings=OTHER).code == 0
    done = compare(study, second["run"], "latest")
    assert "Settings: fusion.epochs: 20 -> 5" in done.out
    assert "1 image left" in done.out
    assert "left out, so accuracies can differ from the report's own: 1 of A." in done.out
    assert set(table(done)["n_common"]) == {14}
    assert not_named(done, gone)

    # gc takes older reports and their answers, and all comparisons with them.
    assert study.cli("gc", "--delete", *call).code == 0
    (left,) = (study.dataset / "reports").glob("?" * 12)
    assert not list((study.dataset / "reports").glob("compare-*"))
    assert gone not in kept(study).images.index
    assert gone not in text(left / "index.html")
    refused = compare(study, first["run"], "latest")
    assert refused.code == 4
    assert "is not there any more" in refused.err


def check(row: dict[str, object], before: list[dict[str, bool]], now: list[dict[str, bool]]) -> None:
    """Compare one row of compare.csv with the predictions of both states, by seed."""
    both = sorted(before[0].keys() & now[0].keys())
    assert (row["n_common"], row["seeds"]) == (len(both), 2) == (6, 2)
    assert (row["correct_a"], row["n_a"]) == (sum(sum(x.values()) for x in before), 12)
    assert (row["correct_b"], row["n_b"]) == (sum(sum(x.values()) for x in now), 30)
    shares = [sum(x[i] for x in told for i in both) / 12 for told in (before, now)]
    assert row["difference"] == pytest.approx(shares[1] - shares[0])
    assert row["accuracy_a_common"] == pytest.approx(shares[0])
    lost = sum(all(x[i] for x in before) and not all(x[i] for x in now) for i in both)
    won = sum(not all(x[i] for x in before) and all(x[i] for x in now) for i in both)
    assert (row["right_to_wrong"], row["wrong_to_right"]) == (lost, won), "of two seeds both make a majority"
    whole = [sum(sum(x.values()) for x in told) / n for told, n in ((before, 12), (now, 30))]
    assert row["by_other_images"] == pytest.approx(whole[1] - whole[0] - (shares[1] - shares[0]))


def not_named(done: Finished, image_id: str) -> bool:
    """Whether the page and all beside it keep silent about an image."""
    folder = Path(done.out.rstrip().rpartition("Comparison: ")[2]).parent
    return image_id not in done.out and not [file for file in folder.iterdir() if image_id in text(file)]


def kept(study: Study) -> Kept:
    newest = max((study.dataset / "reports").glob("?" * 12), key=made)
    return Kept.from_bytes((newest / KEPT).read_bytes(), KEPT)


def made(report: Path) -> str:
    return str(json.loads((report / "provenance.json").read_text())["created"])


def text(file: Path) -> str:
    return file.read_text("utf-8")
