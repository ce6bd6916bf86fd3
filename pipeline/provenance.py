"""Provenance for others: a Workflow Run RO-Crate of what is committed, with a Croissant description of the data set.

No image, path, host, user or patient name goes in; image_ids, labels, splits and pseudonyms do.
Profiles: https://w3id.org/ro/wfrun/workflow/0.5, http://mlcommons.org/croissant/1.0.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterable, Mapping
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from manifests.disk import disk_errors, make_private, place
from manifests.errors import StoreError
from manifests.fingerprint import digest_bytes
from manifests.inventory_file import format_table
from manifests.runs import RunRecord, load_run
from pipeline.committed import Committed, look_up
from pipeline.fit_tables import score_table
from pipeline.lineage import lineage
from pipeline.results import report_command
from pipeline.workspace import Workspace

PROFILES = (
    "https://w3id.org/ro/wfrun/process/0.5",
    "https://w3id.org/ro/wfrun/workflow/0.5",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0",
)
CRATE_PROFILES = ("https://w3id.org/ro/crate/1.1", "https://w3id.org/workflowhub/workflow-ro-crate/1.0")
LICENCE = "The licence of the source images governs what may be done with what follows from them."
WORKFLOW, SCORES, CELLS, README = "workflow.json", "scores.csv", "cells.csv", "README.md"
CROISSANT = "croissant.json"
KINDS = {".csv": "text/csv", ".json": "application/json", ".md": "text/markdown"}
TEXT = """# Provenance of a MedFocus study

- `scores.csv`: one line a fit, as in the report.
- `cells.csv`: from each score to its stage, the fingerprint of that, its run and its drops.
- `workflow.json`: every stage with settings, weights (sha256) and inputs, and the command that makes the report again.
- `runs/`: the record of each run: versions, configuration, outcome. Paths are hidden.
- `drops/`: the images by id and sha256, with label, split and the pseudonym of the patient. No pixel, no path.
- `croissant.json`: the same images as a Croissant description.
"""
IMAGE_COLUMNS = ("image_id", "sha256", "width", "height", "mode", "label", "split", "group", "withdrawn")


def export_provenance(workspace: Workspace, out: Path) -> Path:
    """Write the crate into a folder that does not exist yet.

    Parameters
    ----------
    workspace : Workspace
        Data set and configuration.
    out : Path
        The new folder.

    Returns
    -------
    Path
        `ro-crate-metadata.json` in it.

    Raises
    ------
    StoreError
        If the folder exists, or cannot be written.
    InventoryError
        If the configuration has no scores yet.
    """
    if out.exists():
        raise StoreError(f"{place(out)} exists already.", "Name a new folder: pipeline export provenance FOLDER")
    committed = look_up(workspace)
    scores = score_table(workspace, committed)
    workflow = {"command": report_command(workspace), **lineage(workspace, committed)}
    files = {
        WORKFLOW: json.dumps(workflow, indent=1).encode(),
        SCORES: scores.to_csv(index=False, lineterminator="\n").encode(),
        CELLS: _cells(workspace, committed),
        **{f"drops/{drop.drop_id}.csv": _images(workspace, drop.drop_id) for drop in workspace.drops},
    }
    files[README] = TEXT.encode()
    files[CROISSANT] = _croissant(workspace, files)
    runs = _runs(workspace, sorted({run for stage in workflow["stages"] for run in stage["runs"]}))
    files |= {f"runs/{run.run_id}.json": run.model_dump_json(indent=1).encode() for run in runs}
    partial = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    with disk_errors(f"write {place(out)}", out.parent):
        try:
            make_private(partial)
            for name, data in files.items():
                (partial / name).parent.mkdir(exist_ok=True)
                (partial / name).write_bytes(data)
            _write_crate(workspace, partial, files, runs)
            partial.rename(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return out / "ro-crate-metadata.json"


def _runs(workspace: Workspace, names: Iterable[str]) -> list[RunRecord]:
    """Records of runs by name; a lost record is left out."""
    found = []
    for name in names:
        try:
            found.append(load_run(workspace.paths.run(name)))
        except StoreError:
            continue
    return found


def _images(workspace: Workspace, drop_id: str) -> bytes:
    gone = workspace.withdrawn
    rows: list[tuple[Any, ...]] = [
        (r.image_id, r.sha256, r.width, r.height, r.mode, r.label, r.split.value, r.group_id, r.image_id in gone)
        for r in workspace.rows(drop_id)
    ]
    return format_table(IMAGE_COLUMNS, rows)


def _cells(workspace: Workspace, committed: Committed) -> bytes:
    """One line a scored cell: from its score to its stage, its run, its drops, and the digest of its answers."""
    header = ("stage", "fingerprint", "unit", "method", "training", "seed", "run", "drops", "scores_sha256")
    rows: list[tuple[Any, ...]] = []
    for key, cells in committed.cells.items():
        fingerprint = workspace.fingerprint(workspace.nodes[key])
        for cell, commit in sorted(cells.items()):
            drops = " ".join(commit.record.get("drops", []))
            told = (cell.unit, cell.method, cell.training, cell.seed, commit.record.get("run", ""), drops)
            rows.append((key, fingerprint, *told, commit.digests.get("scores.json", "")))
    return format_table(header, rows)


def _write_crate(workspace: Workspace, folder: Path, files: Mapping[str, bytes], runs: list[RunRecord]) -> None:
    from rocrate.model.computationalworkflow import ComputationalWorkflow
    from rocrate.rocrate import ROCrate

    crate = ROCrate(version="1.1")
    crate.name = f"MedFocus results on {workspace.paths.name}"
    crate.description = f"What `{report_command(workspace)}` shows: settings, weights, images by id, runs and scores."
    crate.license = _entity(crate, "#licence", "CreativeWork", name="Not stated", description=LICENCE)
    crate.root_dataset["conformsTo"] = [_entity(crate, url, "CreativeWork", name=url) for url in PROFILES]
    crate.metadata["conformsTo"] = [{"@id": url} for url in CRATE_PROFILES]
    language = _entity(crate, "#medfocus", "ComputerLanguage", name="MedFocus", version=_version())
    entities: dict[str, Any] = {}
    for path, data in files.items():
        told = {"encodingFormat": KINDS[Path(path).suffix], "contentSize": str(len(data)), "sha256": digest_bytes(data)}
        if path == WORKFLOW:
            told |= {"name": "The stages, their settings, weights and inputs", "version": _version()}
            entities[path] = crate.add(ComputationalWorkflow(crate, folder / path, path, properties=told))
            entities[path]["programmingLanguage"] = language
            crate.mainEntity = entities[path]
        else:
            entities[path] = crate.add_file(folder / path, path, properties={"name": path, **told})
    entities[README]["about"] = crate.root_dataset
    inputs = [path for path in files if path.startswith("drops/")]
    results = [SCORES, CELLS]
    entities[WORKFLOW]["input"] = _one([_parameter(crate, entities[path]) for path in inputs])
    entities[WORKFLOW]["output"] = _one([_parameter(crate, entities[path]) for path in results])
    entities[WORKFLOW]["conformsTo"] = {"@id": "https://bioschemas.org/profiles/ComputationalWorkflow/1.0-RELEASE"}
    actions = [_action(crate, run, [entities[path] for path in inputs], [entities[p] for p in results]) for run in runs]
    if actions:
        crate.root_dataset["mentions"] = _one(actions)
    crate.metadata.write(folder)


def _action(crate: Any, run: RunRecord, inputs: list[Any], results: list[Any]) -> Any:
    """One run; nobody is named as its agent."""
    state = "CompletedActionStatus" if run.outcome in ("done", "failures") else "FailedActionStatus"
    ended = {"endTime": run.finished} if run.finished else {}
    return _entity(
        crate,
        f"#run-{run.run_id}",
        "CreateAction",
        name=f"Run {run.run_id}",
        description=" ".join(["pipeline", *run.argv[1:]]),
        startTime=run.started,
        **ended,
        actionStatus=f"http://schema.org/{state}",
        instrument={"@id": WORKFLOW},
        object=_one(inputs),
        result=_one(results),
        subjectOf={"@id": f"runs/{run.run_id}.json"},
    )


def _entity(crate: Any, identifier: str, kind: str, /, **told: Any) -> Any:
    from rocrate.model.contextentity import ContextEntity

    entity = crate.add(ContextEntity(crate, identifier, {"@type": kind}))
    for key, value in told.items():
        entity[key] = value
    return entity


def _one(values: list[Any]) -> Any:
    """A list, or its only value: JSON-LD wants no lists of one."""
    return values[0] if len(values) == 1 else values


def _parameter(crate: Any, file: Any) -> Any:
    """A formal parameter of the workflow, of which a file is an example."""
    conforms = {"@id": "https://bioschemas.org/profiles/FormalParameter/1.0-RELEASE"}
    parameter = _entity(crate, f"#parameter-{file.id}", "FormalParameter", name=file.id, additionalType="File")
    parameter["conformsTo"], parameter["workExample"] = conforms, file
    file["exampleOfWork"] = parameter
    return parameter


def _croissant(workspace: Workspace, files: Mapping[str, bytes]) -> bytes:
    """The data set as Croissant: one record set a drop, over the CSV of its images."""
    import mlcroissant as mlc

    kinds = {"width": mlc.DataType.INTEGER, "height": mlc.DataType.INTEGER, "withdrawn": mlc.DataType.BOOL}
    objects, sets = [], []
    for path in (path for path in files if path.startswith("drops/")):
        key = Path(path).stem
        objects.append(
            mlc.FileObject(
                id=path,
                name=path,
                content_url=path,
                encoding_formats=["text/csv"],
                sha256=digest_bytes(files[path]),
            )
        )
        fields = [
            mlc.Field(
                id=f"{key}/{column}",
                name=column,
                data_types=kinds.get(column, mlc.DataType.TEXT),
                source=mlc.Source(file_object=path, extract=mlc.Extract(column=column)),
            )
            for column in IMAGE_COLUMNS
        ]
        sets.append(mlc.RecordSet(id=key, name=key, fields=fields))
    described = mlc.Metadata(
        name=workspace.paths.name,
        description="Images by id, without pixels: what the results of a MedFocus study follow from.",
        conforms_to="http://mlcommons.org/croissant/1.0",
        date_published=datetime.fromisoformat(workspace.drops[-1].created),
        version=f"{len(workspace.drops)}.0.0",
        url=f"urn:medfocus:{workspace.paths.name}",
        license=["https://spdx.org/licenses/LicenseRef-unknown"],
        cite_as="Cite the source of the images.",
        distribution=objects,
        record_sets=sets,
    )
    return (json.dumps(described.to_json(), indent=1, default=str) + "\n").encode()


def _version() -> str:
    return metadata.version("medfocus")
