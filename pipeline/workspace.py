"""One data set under one configuration: its drops, its stage objects, and where each keeps its units."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from manifests.audit import flagged
from manifests.commits import Commit, content_digest, read_commit
from manifests.disk import write_atomic
from manifests.drops import Drop, load_drops, load_locations, load_rows, load_twins
from manifests.errors import ConfigError, InventoryError
from manifests.fingerprint import canonical_json, digest_json
from manifests.layout import DatasetPaths
from manifests.readers import POISON, WITHDRAWN, ImageSource
from manifests.records import load_record
from manifests.store import StageStore
from manifests.twins import Twin
from manifests.types import Chunk, ImageRow, Split, StageIdentity
from manifests.withdrawals import Withdrawal, load_withdrawals, withdrawn_ids
from pipeline.config import RunConfig
from pipeline.graph import Node, build_graph
from stages import stage_class
from stages.base import CellStage, MapStage, StageContext


class Workspace:
    """What the driver and the workers share: everything can be rebuilt from paths and configuration.

    Parameters
    ----------
    paths : DatasetPaths
        The data set's folders.
    config : RunConfig
        The run's configuration.
    source : Path, optional
        Where the source folder is mounted here, if not where it was ingested.
    drop_ids : tuple[str, ...], optional
        Leave out every other drop.

    Raises
    ------
    InventoryError
        If the data set has no drop.
    """

    def __init__(
        self,
        paths: DatasetPaths,
        config: RunConfig,
        source: Path | None = None,
        drop_ids: tuple[str, ...] | None = None,
    ) -> None:
        self.paths = paths
        self.config = config
        self.source = source
        self.withdrawals: tuple[Withdrawal, ...] = load_withdrawals(paths)
        self.withdrawn = withdrawn_ids(self.withdrawals)
        self._rows: dict[str, tuple[ImageRow, ...]] = {}
        known = tuple(d for d in load_drops(paths) if drop_ids is None or d.drop_id in drop_ids)
        self.drops: tuple[Drop, ...] = tuple(drop for drop in known if self._stands(drop))
        if not self.drops:
            raise InventoryError(
                f"The data set {paths.name!r} has no drop{' that is not withdrawn' if known else ''}.",
                f"Start with: pipeline ingest SOURCE --dataset {paths.name}",
            )
        self.nodes: Mapping[str, Node] = {n.key: n for n in build_graph(config)}
        self.looking = False
        """Whether this process only looks: then each commit record is read once, and none is completed."""
        self._records: dict[tuple[Path, str], Commit | None] = {}
        self._fingerprints: dict[str, str] = {}
        self.plans: dict[str, Any] = {}
        """Units that each node lacks, as last planned; `forget_plans` after anything was committed or retired."""
        self._data: dict[str, str] = {}
        self._stages: dict[str, MapStage | CellStage] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the class index; none that only withdrawn images had."""
        names = self.drops[-1].classes
        if not self.withdrawn:
            return names
        left = {row.label for drop in self.drops for row in self.rows(drop.drop_id)}
        return tuple(name for name in names if name in left)

    def _stands(self, drop: Drop) -> bool:
        """Whether a drop has an image that is not withdrawn."""
        return not self.withdrawn or any(row.image_id not in self.withdrawn for row in load_rows(self.paths, drop))

    @cached_property
    def locations(self) -> Mapping[str, str]:
        """Where renamed source files are now."""
        return load_locations(self.paths)

    @cached_property
    def twins(self) -> tuple[Twin, ...]:
        """Pairs of images that show the same picture, as the audits of all drops found them."""
        return load_twins(self.paths, self.drops)

    def check_reading(self) -> None:
        """Refuse a configuration that asks in so many words for another reading than that of the drops.

        Raises
        ------
        ConfigError
            Names the settings.
        """
        if differences := self.config.reading.differences(self.drops[-1].reading):
            raise ConfigError(
                f"The configuration asks for another reading than the drops were ingested with: reading.{differences}.",
                "Leave [reading] out, or ingest the source with it into another data set.",
            )

    def drop(self, drop_id: str) -> Drop:
        """Return one drop of this data set.

        Raises
        ------
        InventoryError
            If there is no such drop.
        """
        for drop in self.drops:
            if drop.drop_id == drop_id:
                return drop
        known = ", ".join(d.drop_id for d in self.drops)
        raise InventoryError(f"The data set {self.paths.name!r} has no drop {drop_id!r}.", f"Drops: {known}.")

    def rows(self, drop_id: str) -> tuple[ImageRow, ...]:
        """All rows of one drop, read once; a withdrawn image has no label and is in no split."""
        if drop_id not in self._rows:
            self._rows[drop_id] = tuple(
                replace(row, label="", split=Split.NONE) if row.image_id in self.withdrawn else row
                for row in load_rows(self.paths, self.drop(drop_id))
            )
        return self._rows[drop_id]

    def image_source(self, drop_id: str, poison: Iterable[str] = ()) -> ImageSource:
        """Reader of one drop's image files, but for withdrawn ones and for those whose ids are `poison`."""
        root = self.source or Path(self.drop(drop_id).source_root)
        refused = dict.fromkeys(poison, POISON) | dict.fromkeys(self.withdrawn, WITHDRAWN)
        return ImageSource(root, self.locations, refused=refused, reading=self.drop(drop_id).reading)

    def map_stage(self, node: Node) -> MapStage:
        """The stage object of a map node, built once."""
        return cast("MapStage", self._stage(node))

    def cell_stage(self, node: Node) -> CellStage:
        """The stage object of a cell node, built once; its inputs must be complete."""
        return cast("CellStage", self._stage(node))

    def _stage(self, node: Node) -> MapStage | CellStage:
        if node.key not in self._stages:
            upstream = {stage: self.fingerprint(self.nodes[key]) for stage, key in node.inputs.items()}
            if not node.is_map and node.inputs:
                upstream["data"] = self.data_digest(node)
            cluster = self.config.cluster
            context = StageContext(
                upstream, self.classes, self.config.study, cluster.batch_items, compiled=cluster.compiled
            )
            build = cast("Any", stage_class(node.stage))
            self._stages[node.key] = build(node.settings, context)
        return self._stages[node.key]

    def identity(self, node: Node) -> StageIdentity:
        """Everything that determines a node's results under this configuration."""
        return self._stage(node).identity()

    def fingerprint(self, node: Node) -> str:
        """Full fingerprint of a node under this configuration; measured once, as the stage is built once."""
        if node.key not in self._fingerprints:
            self._fingerprints[node.key] = self.identity(node).fingerprint
        return self._fingerprints[node.key]

    def commit(self, node: Node, unit: str, drop_id: str = "") -> Commit | None:
        """Commit record of a unit; None if it is not committed."""
        key = self.root(node, drop_id), unit
        if not self.looking:
            return read_commit(*key)
        if key not in self._records:
            self._records[key] = load_record(*key)
        return self._records[key]

    def data_digest(self, node: Node) -> str:
        """Digest of all arrays that a cell node's map input has committed, by any attempt; measured once.

        What the audit flags is part of it, because every score tells flagged test images apart; and so is what was
        withdrawn.
        """
        if node.key not in self._data:
            rows = [row for drop in self.drops for row in self.rows(drop.drop_id)]
            gone = [row.image_id for row in rows if row.image_id in self.withdrawn]
            parts: dict[str, Any] = {"flagged": sorted(flagged(rows, self.twins)), "withdrawn": sorted(gone)}
            for stage, key in node.inputs.items():
                if self.nodes[key].is_map:
                    parts[stage] = self.measure_data(self.nodes[key])
            self._data[node.key] = digest_json(parts)
        return self._data[node.key]

    def measure_data(self, node: Node) -> list[list[str]]:
        """Drop, inventory digest and digest of all committed arrays, for every drop of a map node, as it is now."""
        return [self._drop_digest(node, drop) for drop in self.drops]

    def forget_plans(self) -> None:
        """Plan every node anew when next asked, because commits have changed."""
        self.plans.clear()

    def check_sources(self, drop_ids: Iterable[str]) -> None:
        """Refuse to go on where a drop's source folder cannot be seen, before its images are recorded as failed.

        Raises
        ------
        InventoryError
            If the source folder of one of these drops is not a folder here, or `--source` stands for several.
        """
        roots = {self.drop(drop_id).source_root for drop_id in drop_ids}
        if self.source and len(roots) > 1:
            raise InventoryError(
                "The drops at hand came from several source folders, and --source names one.", "Add: --drop DROP"
            )
        for root in [self.source] if self.source and roots else map(Path, roots):
            if not root.is_dir():
                raise InventoryError(
                    f"The source folder {root} is not there.",
                    "Mount it, or say where it is mounted here: --source FOLDER",
                )

    def _drop_digest(self, node: Node, drop: Drop) -> list[str]:
        units = [chunk.unit for chunk in drop.chunks()]
        return [drop.drop_id, drop.inventory_sha256, content_digest(self.root(node, drop.drop_id), units)]

    def root(self, node: Node, drop_id: str = "") -> Path:
        """Folder whose commits hold a node's units: one a drop for a map node, one in all for a cell node."""
        fingerprint = self.fingerprint(node)
        if node.is_map:
            return self.paths.map_store(node.stage, fingerprint, drop_id)
        return self.paths.stage(node.stage, fingerprint)

    def chunk_rows(self, chunk: Chunk) -> tuple[ImageRow, ...]:
        """Rows of one chunk."""
        return self.rows(chunk.drop)[chunk.start : chunk.stop]

    def store(self, node: Node, drop_id: str) -> StageStore:
        """Open a map node's store for one drop; create it, with all metadata, if it is not there yet."""
        drop, specs = self.drop(drop_id), self.map_stage(node).outputs()
        attributes = self.store_attributes(node, drop)
        return StageStore.open(self.root(node, drop_id), specs, drop.n_items, drop.chunk_items, attributes)

    def store_attributes(self, node: Node, drop: Drop) -> dict[str, Any]:
        """What a map node's group says of itself for one drop."""
        return {
            "stage": node.stage,
            "fingerprint": self.fingerprint(node),
            "drop": drop.drop_id,
            "inventory_sha256": drop.inventory_sha256,
            "upstream": {name: self.fingerprint(self.nodes[key]) for name, key in node.inputs.items()},
            **self.map_stage(node).attributes(),
        }

    def write_identity(self, node: Node) -> None:
        """Write stage.json, the identity in full, unless it stands already."""
        identity = self.identity(node)
        file = self.paths.stage_identity(node.stage, identity.fingerprint)
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            fields = {name: getattr(identity, name) for name in ("name", "version", "settings", "weights", "upstream")}
            text = json.dumps(json.loads(canonical_json(fields)), indent=1, sort_keys=True)
            write_atomic(file, text + "\n")
