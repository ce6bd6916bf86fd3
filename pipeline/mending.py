"""What is damaged, failed or left over in the stores: made whole, made pending again, or deleted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from manifests.commits import Commit, read_commit, retire
from manifests.drops import load_drops, load_rows
from manifests.errors import DamagedError, ExitCode, StoreError, UsageError
from manifests.forgetting import Trace, find_traces
from manifests.integrity import gc, gc_partials, restore_metadata, verify
from manifests.layout import DatasetPaths
from manifests.readers import REASONS
from manifests.store import make_folders
from manifests.types import Status
from manifests.withdrawals import Withdrawal, load_withdrawals, withdrawn_ids
from pipeline.commands import print_json, say, store_roots
from pipeline.plan import commits_of
from pipeline.workspace import Workspace

UPSTREAM = "upstream.failed"
"""Reason of an image that an earlier stage could not use; that stage says why."""
DAY_S = 86400.0


@dataclass(slots=True)
class Repair:
    """What became of one store's damage."""

    store: str
    """Path below the data set's folder."""
    restored: list[str] = field(default_factory=list)
    """Metadata files that were written anew, relative to the store."""
    retired: list[str] = field(default_factory=list)
    """Units that are pending again."""
    left: list[str] = field(default_factory=list)
    """What could not be repaired: why, and the way out."""


def do_repair(workspace: Workspace, *, as_json: bool) -> int:
    """Restore damaged metadata and make damaged units pending, in every store; return the exit code."""
    roots = store_roots(workspace.paths)
    repairs = [repair for repair in (_repair(workspace, root) for root in roots) if repair]
    if as_json:
        print_json([asdict(repair) for repair in repairs])
    else:
        say(line for repair in repairs for line in _repair_lines(repair))
        retired = sum(len(repair.retired) for repair in repairs)
        advice = "; run again to recompute them, each with its configuration" if retired else ""
        say([f"{len(roots)} stores examined, {retired} units are pending again{advice}."])
    return int(ExitCode.REFUSED if any(repair.left for repair in repairs) else ExitCode.DONE)


def _repair_lines(repair: Repair) -> Iterator[str]:
    yield from (f"{repair.store}: {path} is restored" for path in repair.restored)
    yield from (f"{repair.store}: {unit} is pending again" for unit in repair.retired)
    yield from (f"{repair.store}: not repaired: {why}" for why in repair.left)


def _repair(workspace: Workspace, root: Path) -> Repair | None:
    """Repair one store; None if it is well. Metadata come first: without them no shard finds its place."""
    damages = verify(root)
    if not damages:
        return None
    repair = Repair(root.relative_to(workspace.paths.root).as_posix())
    try:
        make_folders(root)
        if any(not damage.unit for damage in damages):
            repair.restored += _restore(workspace, root)
            damages = verify(root)
    except (StoreError, UsageError) as error:
        repair.left.append(str(error))
        return repair
    for unit in dict.fromkeys(damage.unit for damage in damages):
        try:
            if _retire(root, unit):
                repair.retired.append(unit)
        except StoreError as error:
            repair.left.append(str(error))
    return repair


def _retire(root: Path, unit: str) -> bool:
    """Make a unit pending, also one whose record cannot be read; but not one that another version wrote."""
    try:
        commit = read_commit(root, unit)
    except DamagedError:
        return retire(root, unit)
    return commit is not None and retire(root, unit, commit.attempt)


def _restore(workspace: Workspace, root: Path) -> list[str]:
    """Write damaged metadata of a map store anew, as this configuration makes them."""
    for node, drop in ((n, d) for n in workspace.nodes.values() if n.is_map for d in workspace.drops):
        if workspace.root(node, drop.drop_id) == root:
            specs = workspace.map_stage(node).outputs()
            attributes = workspace.store_attributes(node, drop)
            return restore_metadata(root, specs, drop.n_items, drop.chunk_items, attributes)
    raise StoreError(
        "its metadata are damaged, and it belongs to another configuration.",
        "Give repair the --config, --preset and --set that made it, or move the store's folder away.",
    )


Image = tuple[str, int]
"""Drop and row."""


@dataclass(frozen=True, slots=True)
class FailedChunk:
    """A committed chunk that holds failed images."""

    node: str
    drop: str
    unit: str
    root: Path
    attempt: str
    causes: Mapping[Image, str]
    """Reason of each failed image, as the first stage gave it that could not use the image."""


def do_retry(workspace: Workspace, reason: str, *, as_json: bool) -> int:
    """Make every chunk pending that holds an image which failed for a reason, in all stages of a configuration.

    Parameters
    ----------
    workspace : Workspace
        The data set under the configuration.
    reason : str
        Code, such as `file.missing`.
    as_json : bool
        Print one JSON object instead of lines.

    Returns
    -------
    int
        Exit code.

    Raises
    ------
    UsageError
        If no image can fail for this reason, or images fail for it only because of another one.
    """
    failed = list(_failed_chunks(workspace))
    counts = Counter(cause for _, cause in {pair for chunk in failed for pair in chunk.causes.items()})
    if reason not in counts and (reason == UPSTREAM or reason not in REASONS):
        known = ", ".join(f"{code} ({count} images)" for code, count in sorted(counts.items()))
        raise UsageError(
            f"There is no failure {reason!r} to retry.",
            f"Reasons here: {known}." if known else "No image has failed under this configuration.",
        )
    meant = [chunk for chunk in failed if reason in chunk.causes.values()]
    # What comes last goes first: if this is killed halfway, the cause still stands for the next try.
    retired = [chunk for chunk in reversed(meant) if retire(chunk.root, chunk.unit, chunk.attempt)]
    _say_retried(reason, counts[reason], retired[::-1], as_json=as_json)
    return int(ExitCode.DONE)


def _say_retried(reason: str, images: int, chunks: Sequence[FailedChunk], *, as_json: bool) -> None:
    if as_json:
        units = [{"stage": c.node, "drop": c.drop, "unit": c.unit} for c in chunks]
        print_json({"reason": reason, "images": images, "chunks": units})
    elif not images:
        say([f"No image has failed with {reason} under this configuration: nothing to retry."])
    else:
        stages = ", ".join(f"{count} of {node}" for node, count in Counter(c.node for c in chunks).items())
        say([f"{images} images with {reason}: {len(chunks)} chunks are pending again ({stages}); run again."])


def _failed_chunks(workspace: Workspace) -> Iterator[FailedChunk]:
    """All chunks with failed images, inputs before what needs them."""
    causes: dict[str, dict[Image, str]] = {}
    for node in workspace.nodes.values():
        if not node.is_map:
            continue
        above = {image: cause for key in node.inputs.values() for image, cause in causes[key].items()}
        causes[node.key] = {}
        for (drop_id, unit), commit in commits_of(workspace, node).items():
            here = dict(_causes(commit, drop_id, above))
            causes[node.key] |= here
            if here:
                yield FailedChunk(node.key, drop_id, unit, workspace.root(node, drop_id), commit.attempt, here)


def _causes(commit: Commit, drop_id: str, above: Mapping[Image, str]) -> Iterator[tuple[Image, str]]:
    for item in commit.outcomes():
        image = (drop_id, item.row)
        if item.status == Status.FAILED:
            yield image, above.get(image, UPSTREAM) if item.reason == UPSTREAM else item.reason


def do_gc(paths: DatasetPaths, older_than_s: float, *, delete: bool, as_json: bool) -> int:
    """List what nothing leads to any more, or delete it; return the exit code.

    That is what killed processes left in staging folders and half-written files, and what holds, or was computed from,
    withdrawn images, among predictions too.

    Parameters
    ----------
    paths : DatasetPaths
        The data set.
    older_than_s : float
        Leave leftovers alone that changed within so many seconds: an attempt may be at work there.
    delete : bool
        Delete what is listed.
    as_json : bool
        Print one JSON object instead of lines.

    Returns
    -------
    int
        Exit code.
    """
    roots = [*store_roots(paths), *store_roots(paths.predictions)]
    old = [folder for root in roots for folder in gc(root, older_than_s, dry_run=not delete)]
    old += gc_partials(paths.root, older_than_s, dry_run=not delete)
    names = [left.relative_to(paths.root).as_posix() for left in old]
    withdrawals = load_withdrawals(paths)
    found = {folder: _traces(folder, withdrawals, delete=delete) for folder in (paths, paths.predictions)}
    below = {folder: "" if folder == paths else f"{folder.name}/" for folder in found}
    traces = [replace(trace, path=f"{below[folder]}{trace.path}") for folder in found for trace in found[folder]]
    if as_json:
        told = [{"path": trace.path, "what": trace.what} for trace in traces]
        print_json({"deleted": delete, "leftovers": names, "withdrawn": told})
        return int(ExitCode.DONE)
    say([*names, *(f"{trace.path}: {trace.what}" for trace in traces)])
    what = f"{len(names)} leftovers older than {older_than_s / DAY_S:g} days"
    what += f" and {len(traces)} traces of withdrawn images" if traces else ""
    advice = "; delete them with: pipeline gc --delete" if names or traces else ""
    say([f"{what} deleted." if delete else f"{what}{advice}."])
    if traces and delete:
        say(["What was computed from withdrawn images is pending again: pipeline run"])
    return int(ExitCode.DONE)


def _traces(paths: DatasetPaths, withdrawals: Sequence[Withdrawal], *, delete: bool) -> list[Trace]:
    drops = [(drop, load_rows(paths, drop)) for drop in load_drops(paths)]
    names = [record.withdrawal_id for record in withdrawals]
    traces = list(find_traces(paths, drops, withdrawn_ids(withdrawals), names))
    for trace in traces if delete else ():
        trace.remove()
    return traces
