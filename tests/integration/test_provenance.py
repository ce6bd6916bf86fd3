"""The exported crate: valid by its profile's own validator, complete from score to image, without a private word."""

from __future__ import annotations

import csv
import getpass
import json
import platform
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from manifests.fingerprint import digest_file
from tests.conftest import Cli, Finished
from tests.integration.pipelines import QUICK, copy_source
from tests.integration.test_run import Study

pytestmark = [
    pytest.mark.slow,
    # Of rdflib and pyshacl, which the validators use.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

CANARY = "DOE^JANE"
TERMS_1_1 = {
    "ComputationalWorkflow": "https://bioschemas.org/ComputationalWorkflow",
    "FormalParameter": "https://bioschemas.org/FormalParameter",
    "input": "https://bioschemas.org/ComputationalWorkflow#input",
    "output": "https://bioschemas.org/ComputationalWorkflow#output",
}
"""Terms that the context of RO-Crate 1.1 spells otherwise than that of 1.3, which the rocrate package ships."""


@pytest.fixture(scope="module")
def study(cli: Cli, phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A quick study of files, folders and patients that all bear a name."""
    root = tmp_path_factory.mktemp("provenance")
    source = copy_source(phantom_folder, root / f"{CANARY} scans")
    rows = table(source / "labels.csv")
    for number, row in enumerate(rows):
        old = source / row["file"]
        new = old.with_name(f"{CANARY}-{old.name}")
        old.rename(new)
        row["file"], row["group"] = new.relative_to(source).as_posix(), f"{CANARY} {number}"
    with (source / "labels.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    study = Study(cli, root / "work", source)
    assert study.ingest("--columns", "label=label,split=split,group=group,mask=mask").code == 0
    assert study.run("--source", source).code == 0
    return study


@pytest.fixture(scope="module")
def crate(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "crate"
    done = export(study, out)
    assert done.code == 0, done.err
    return out


def export(study: Study, out: Path) -> Finished:
    return study.cli("export", "provenance", out, "--workdir", study.work, *QUICK)


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer every request for a JSON-LD context with the one that the rocrate package ships."""
    from rocrate_validator.utils import document_loader, http

    context: dict[str, Any] = json.loads((files("rocrate") / "data" / "ro-crate.jsonld").read_text("utf-8"))
    context["@context"] |= TERMS_1_1

    class Answer:
        status_code = 200
        text = json.dumps(context)
        content = text.encode()
        headers = {"Content-Type": "application/ld+json"}  # noqa: RUF012

        def json(self) -> Any:
            return context

    monkeypatch.setattr(document_loader, "_fetch_json_ld", lambda url: context)
    for method in ("get", "head"):
        monkeypatch.setattr(http.HttpRequester, method, lambda self, url, **_: Answer(), raising=False)


def problems(crate: Path) -> list[str]:
    """What the profile requires and the crate lacks."""
    from rocrate_validator import models, services

    settings = models.ValidationSettings(
        rocrate_uri=str(crate),
        profile_identifier="workflow-run-crate",
        requirement_severity=models.Severity.REQUIRED,
        offline=True,
    )
    return [f"{issue.check.identifier}: {issue.message}" for issue in services.validate(settings).get_issues()]


def test_crate_is_valid_by_the_validator_of_its_profile(crate: Path, offline: None) -> None:
    assert problems(crate) == []


def test_validator_would_have_told(crate: Path, offline: None, tmp_path: Path) -> None:
    broken = copy_source(crate, tmp_path / "broken")
    file = broken / "ro-crate-metadata.json"
    graph = json.loads(file.read_text())
    for entity in graph["@graph"]:
        if entity["@type"] == "CreateAction":
            del entity["instrument"]
    file.write_text(json.dumps(graph))
    assert problems(broken)


def test_croissant_is_valid_and_its_records_are_the_images(crate: Path, study: Study) -> None:
    import mlcroissant

    described = mlcroissant.Dataset(jsonld=str(crate / "croissant.json"))
    assert described.metadata.ctx.issues.errors == set()
    records = list(described.records("drop-001"))
    inventory = table(study.dataset / "drops" / "drop-001" / "inventory.csv")
    found = [(r["drop-001/image_id"].decode(), r["drop-001/split"].decode()) for r in records]
    assert found == [(row["image_id"], row["split"]) for row in inventory]


def test_every_score_leads_to_its_run_its_stage_and_its_images(crate: Path, study: Study) -> None:
    graph = {e["@id"]: e for e in json.loads((crate / "ro-crate-metadata.json").read_text())["@graph"]}
    cells, workflow = table(crate / "cells.csv"), json.loads((crate / "workflow.json").read_text())
    assert len(cells) == len(table(crate / "scores.csv")) == 16
    stages = {stage["node"]: stage for stage in workflow["stages"]}
    for cell in cells:
        action = graph[f"#run-{cell['run']}"]
        assert (crate / action["subjectOf"]["@id"]).is_file()
        stage = stages[cell["stage"]]
        assert stage["fingerprint"] == cell["fingerprint"]
        folder = study.dataset / "stages" / stage["stage"] / cell["fingerprint"][:12] / "commits" / cell["unit"]
        assert digest_file(folder / "scores.json") == cell["scores_sha256"]
        assert (crate / "drops" / f"{cell['drops']}.csv").is_file()
    told = {stage["fingerprint"] for stage in workflow["stages"]}
    named = {f for stage in workflow["stages"] for name, f in stage["upstream"].items() if name != "data"}
    assert named <= told, "what a stage is made of is described too: text bank and fusion, which have no scores"
    embeddings = next(stage for stage in workflow["stages"] if stage["stage"] == "embeddings")
    assert len(next(iter(embeddings["weights"].values()))) == 64
    digests = {path: e["sha256"] for path, e in graph.items() if "sha256" in e}
    assert {path: digest_file(crate / path) for path in digests} == digests


def test_no_name_path_host_or_user_is_in_the_crate(crate: Path, study: Study) -> None:
    private = [CANARY, str(study.work), str(study.source), platform.node(), f"/home/{getpass.getuser()}", "/tmp/"]
    for file in (f for f in crate.rglob("*") if f.is_file()):
        text = file.read_text("utf-8")
        assert not [word for word in private if word in text], file.name
    assert CANARY in (study.dataset / "drops" / "drop-001" / "inventory.csv").read_text(), "the canary was there"


def test_export_never_overwrites_and_says_what_there_is(crate: Path, study: Study, tmp_path: Path) -> None:
    before = {f: f.read_bytes() for f in crate.rglob("*") if f.is_file()}
    done = export(study, crate)
    assert (done.code, "Name a new folder" in done.err) == (4, True)
    assert {f: f.read_bytes() for f in crate.rglob("*") if f.is_file()} == before
    unknown = study.cli("export", "pictures", "--workdir", study.work)
    assert (unknown.code, "provenance" in unknown.err) == (2, True)
    nothing = study.cli("export", "provenance", tmp_path / "x", "--workdir", study.work)
    assert nothing.code == 4
    assert not list(tmp_path.iterdir())
