"""`pipeline predict`: images without a label through both stages, then a committed head, and what is like them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manifests.errors import ExitCode, UsageError
from manifests.fingerprint import digest_json
from pipeline.answers import Likeness, Prediction, answer_all
from pipeline.arrivals import Arrivals, take_in
from pipeline.calibrating import Calibration, calibration_of
from pipeline.commands import print_json, say
from pipeline.destinations import check_outside_sources
from pipeline.head import Head, load_head
from pipeline.overlays import write_overlays
from pipeline.prediction_files import LINES, TABLE, provenance, record_of, write_predictions
from pipeline.terminal import print_table
from pipeline.workspace import Workspace


@dataclass(frozen=True, slots=True)
class PredictOptions:
    """What one call asks for."""

    source: Path
    """Folder of images."""
    cell: str | None = None
    """Name of the head; see `pipeline.head.load_head`."""
    out: Path | None = None
    """Folder of the tables; below the data set's predictions by default."""
    overlay: Path | None = None
    """Folder of the pictures; none are made by default."""
    names: bool = False
    """Whether the tables show the files' paths in the source."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a head says of the images of one source."""

    head: Head
    arrivals: Arrivals
    calibration: Calibration
    predictions: Sequence[Prediction]
    """One an image; one a file where names are wanted."""
    about: Mapping[str, Any]
    """From `prediction_files.provenance`."""


def ask(workspace: Workspace, options: PredictOptions) -> Asked:
    """Take the images through the study's stages and ask the head; writes no table and no picture.

    Raises
    ------
    UsageError
        If there is no such cell, or its method cannot be asked about one image.
    InventoryError
        If the cell is not committed, or the source cannot be used.
    InterruptedRunError
        If a signal stopped it; the same command goes on.
    """
    if options.source.is_file():
        raise UsageError(f"{options.source.name!r} is a file.", "Give the folder that it lies in.")
    head = load_head(workspace, options.cell)
    paths = (options.source, options.out, options.overlay)
    arrivals = take_in(head, options.source, frozenset(str(path) for path in paths if path))
    calibration, likeness = calibration_of(head), Likeness.of(head.data)
    predictions = answer_all(head, arrivals, calibration, likeness)
    if not options.names:  # one line an image, however many files hold it
        predictions = list({prediction.image_id: prediction for prediction in predictions}.values())
    return Asked(head, arrivals, calibration, predictions, provenance(head, calibration, likeness))


def do_predict(workspace: Workspace, options: PredictOptions, *, as_json: bool) -> int:
    """Predict every image of a source, write the tables, say what was found, and return the exit code.

    Raises
    ------
    UsageError
        If there is no such cell, its method cannot be asked about one image, or results would lie in a source.
    InventoryError
        If the cell is not committed, or the source cannot be used.
    InterruptedRunError
        If a signal stopped it; the same command goes on.
    """
    check_outside_sources(workspace.paths, (options.out, options.overlay), options.source)
    asked = ask(workspace, options)
    records = [record_of(prediction, asked.about, names=options.names) for prediction in asked.predictions]
    out = options.out or workspace.paths.predictions.report(digest_json([asked.about, records]))
    write_predictions(out, asked.predictions, asked.about, names=options.names)
    masks = workspace.nodes[asked.head.embeddings.inputs["masks"]]
    pictures = write_overlays(options.overlay, asked.arrivals, masks, asked.predictions) if options.overlay else 0
    _tell(asked, out, pictures, as_json=as_json)
    return int(ExitCode.DONE if all(prediction.answer for prediction in asked.predictions) else ExitCode.FAILURES)


def _tell(told: Asked, out: Path, pictures: int, *, as_json: bool) -> None:
    answers = [prediction.answer for prediction in told.predictions if prediction.answer]
    unlike = sum(answer.unlike for answer in answers)
    failed = Counter(prediction.reason for prediction in told.predictions if not prediction.answer)
    by_class = {name: [a for a in answers if a.predicted == name] for name in told.head.classes}
    if as_json:
        counts = {name: len(those) for name, those in by_class.items()}
        print_json(
            {
                "cell": told.head.name,
                "images": len(told.predictions),
                "predicted": counts,
                "unlike": unlike,
                "failed": dict(failed),
                "temperature": told.calibration.temperature,
                "pictures": pictures,
                "table": _place(out, told.head.workspace) + "/" + TABLE,
            }
        )
        return
    n = len(told.predictions)
    fitted = f"T = {told.calibration.temperature:.3f} from {told.calibration.folds} inner folds"
    sure = fitted if told.calibration.folds else "T = 1: the training subset cannot be folded"
    say([f"{n} images asked of {told.head.name}, fitted on {len(told.head.subset)} images; {sure}."])
    rows = [(name, len(those), sum(a.unlike for a in those)) for name, those in by_class.items()]
    print_table(("class", "images", "unlike"), [*rows, ("all", len(answers), unlike)])
    if unlike:
        say([f"Unlike the training images of the study: {unlike} of {len(answers)}. Doubt what is said of them."])
    say(f"  no answer: {count} ({reason})" for reason, count in sorted(failed.items()))
    say([f"Predictions: {out / TABLE} and {LINES} beside it"])
    say([f"Pictures: {pictures}"] if pictures else [])


def _place(out: Path, workspace: Workspace) -> str:
    """Where the tables are: below the work folder, or as it was asked for."""
    work = workspace.paths.root.parent
    return (out.relative_to(work) if out.is_relative_to(work) else out).as_posix()
