"""Stores after power cuts, failing reads, foreign files and foreign versions; studies that must not depend on these."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import pickle
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from manifests.commits import committed_units, content_digest, pending, publish_cell, publish_chunk, read_rows
from manifests.errors import StoreError
from manifests.fingerprint import digest_bytes, digest_json
from manifests.integrity import checked_artifacts, verify
from manifests.store import StageStore
from manifests.types import Cell, Split
from pipeline.config import RunConfig, load_config
from pipeline.graph import build_graph
from stages import stage_class
from stages.base import StageContext, StageData
from stages.baselines.settings import BaselinesSettings
from stages.baselines.stage import Baselines
from stages.baselines.tip import Subset, tip_adapter
from stages.features import text_bank, unit_rows
from stages.finetune.lora import ClipLora
from stages.finetune.stage import Finetune, Slca
from stages.finetune.training import Trainer
from stages.focus import focus, head_logits
from stages.fusion.model import Examples, choose_lambda, train
from stages.methods import VARIANTS
from stages.models.weights import ENVIRONMENT, WeightsFolder
from stages.probes.linear import prepare
from stages.probes.logistic import fit as fit_probe
from stages.probes.logistic import rotate
from stages.probes.settings import ProbesSettings
from stages.probes.strength import choose_c
from tests.conftest import ROOT, Finished, command
from tests.faults.test_disk import flip_bit, nobody, open_to_all, remount
from tests.faults.test_torture import check_whole, publish_rest
from tests.integration import test_baselines, test_lora
from tests.integration.pipelines import QUICK, copy_source, digests
from tests.integration.test_adapters import adapter_file
from tests.stores import SPECS, chunks_of, edit_record, open_store, result, write_scores
from tests.unit.stages import small_study, test_finetune, test_fusion
from tests.unit.test_docs import KEYS, OUTSIDE_FINGERPRINTS, SECTIONS_OUTSIDE

UNITS = ["000000", "000001", "000002"]
CELL = "masked-5-0"
Tree = dict[str, bytes | None]
"""Contents of files by path; None for a folder."""


# Power cuts: what was not synced is gone


class Disk:
    """What a power cut at any moment would leave of a folder.

    Parameters
    ----------
    root : Path
        The folder; what is in it now is on the disk.
    names_survive : bool
        Whether names live on without `fsync` of their folder, as on most file systems; bytes never do.
    """

    def __init__(self, root: Path, *, names_survive: bool) -> None:
        self.root = root
        self.names_survive = names_survive
        self.after: list[Tree] = []
        """Each different tree that a cut would have left, in order."""
        self._bytes: dict[int, bytes] = {}
        self._names: dict[int, list[str]] = {}
        self._held: list[int] = []
        for path in (root, *root.rglob("*")):
            self._settle(os.open(path, os.O_RDONLY))

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Look at the disk after every call that changes names, and after every fsync."""
        sync = os.fsync

        def synced(descriptor: int) -> None:
            sync(descriptor)
            self._settle(os.dup(descriptor))
            self._cut()

        def looking(change: Callable[..., None]) -> Callable[..., None]:
            def changed(*args: Any, **options: Any) -> None:
                change(*args, **options)
                self._cut()

            return changed

        monkeypatch.setattr(os, "fsync", synced)
        for name in ("rename", "replace", "mkdir", "rmdir", "unlink"):
            monkeypatch.setattr(os, name, looking(getattr(os, name)))

    def close(self) -> None:
        for descriptor in self._held:
            os.close(descriptor)

    def _settle(self, descriptor: int) -> None:
        # Held open, so that no other file gets the inode's number.
        self._held.append(descriptor)
        number, path = os.fstat(descriptor).st_ino, Path(f"/proc/self/fd/{descriptor}")
        if path.is_dir():
            self._names[number] = {p.name: p.stat().st_ino for p in path.iterdir()}  # type: ignore[assignment]
        else:
            self._bytes[number] = path.read_bytes()

    def _cut(self) -> None:
        tree: Tree = {}
        if self.names_survive:
            for path in sorted(self.root.rglob("*")):
                name = path.relative_to(self.root).as_posix()
                tree[name] = None if path.is_dir() else self._bytes.get(path.stat().st_ino, b"")
        else:
            self._synced(self.root.stat().st_ino, "", tree)
        if not self.after or self.after[-1] != tree:
            self.after.append(tree)

    def _synced(self, folder: int, prefix: str, tree: Tree) -> None:
        for name, number in self._names.get(folder, {}).items():  # type: ignore[attr-defined]
            is_file = number in self._bytes
            tree[prefix + name] = self._bytes[number] if is_file else None
            if not is_file:
                self._synced(number, f"{prefix}{name}/", tree)


def restore(tree: Tree, to: Path) -> Path:
    """Write a tree into a new folder."""
    to.mkdir(parents=True)
    for name, data in tree.items():
        if data is None:
            (to / name).mkdir()
        else:
            (to / name).write_bytes(data)
    return to


def cuts_of(root: Path, act: Callable[[], Any], *, names_survive: bool) -> list[Tree]:
    """Every tree that a power cut during an action could have left."""
    disk = Disk(root, names_survive=names_survive)
    with pytest.MonkeyPatch.context() as patch:
        disk.watch(patch)
        act()
    disk.close()
    return disk.after


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Content digest of a store that nothing happened to."""
    root = tmp_path_factory.mktemp("undisturbed") / "s"
    publish_rest(root)
    return content_digest(root, UNITS)


@pytest.mark.parametrize("names_survive", [False, True], ids=["names-lost", "names-kept"])
def test_store_is_whole_after_a_power_cut_at_any_point_of_a_publish(
    tmp_path: Path, undisturbed: str, names_survive: bool
) -> None:
    root = tmp_path / "s"
    publish_chunk(open_store(root), chunks_of(open_store(root))[0], result(chunks_of(open_store(root))[0], 1))
    chunk = chunks_of(open_store(root))[1]
    cuts = cuts_of(root, lambda: publish_chunk(open_store(root), chunk, result(chunk, 2)), names_survive=names_survive)
    before = 0
    for number, tree in enumerate(cuts):
        left = restore(tree, tmp_path / f"cut-{number}")
        assert verify(left) == []
        standing = committed_units(left)
        assert standing in ((UNITS[0],), tuple(UNITS[:2]))
        assert len(standing) >= before  # once on the disk, a commit stays
        before = len(standing)
        publish_rest(left)
        check_whole(left, undisturbed)
    assert before == 2  # the last cut loses nothing
    assert len(cuts) > (10 if names_survive else 5)


@pytest.mark.parametrize("names_survive", [False, True], ids=["names-lost", "names-kept"])
def test_store_is_whole_after_a_power_cut_at_any_point_of_its_making(
    tmp_path: Path, undisturbed: str, names_survive: bool
) -> None:
    root = tmp_path / "s"
    root.mkdir()
    for number, tree in enumerate(cuts_of(root, lambda: open_store(root), names_survive=names_survive)):
        left = restore(tree, tmp_path / f"cut-{number}")
        assert verify(left) == []
        publish_rest(left)
        check_whole(left, undisturbed)


@pytest.mark.parametrize("names_survive", [False, True], ids=["names-lost", "names-kept"])
def test_cell_is_whole_or_absent_after_a_power_cut_at_any_point(tmp_path: Path, names_survive: bool) -> None:
    root = tmp_path / "s"
    root.mkdir()
    cuts = cuts_of(root, lambda: publish_cell(root, CELL, write_scores), names_survive=names_survive)
    expected = content_digest(root, [CELL])
    for number, tree in enumerate(cuts):
        left = restore(tree, tmp_path / f"cut-{number}")
        assert verify(left) == []
        assert publish_cell(left, CELL, write_scores) is not bool(tree.get(f"commits/{CELL}/commit.json"))
        assert content_digest(left, [CELL]) == expected
        assert verify(left) == []
    assert f"commits/{CELL}/history/loss.csv" in cuts[-1]


def test_simulated_power_cut_loses_what_was_not_synced(tmp_path: Path) -> None:
    root = tmp_path / "s"
    root.mkdir()

    def write() -> None:
        (root / "a").mkdir()
        (root / "a" / "x").write_bytes(b"x")
        (root / "a" / "x").rename(root / "a" / "y")

    assert cuts_of(root, write, names_survive=False)[-1] == {}
    shutil.rmtree(root / "a")
    assert cuts_of(root, write, names_survive=True)[-1] == {"a": None, "a/y": b""}


# Reads and renames that fail, files that a network file system shows late


class NthFails:
    """Let the nth read or rename below a folder fail, once.

    Parameters
    ----------
    root : Path
        The folder.
    nth : int
        Which call, from 0.
    code : int
        Number of the error.
    carried_out : bool
        Whether a rename is carried out all the same, as over NFS when the answer is lost.
    """

    def __init__(self, root: Path, nth: int, code: int, *, carried_out: bool = False) -> None:
        self.root = str(root)
        self.nth = nth
        self.code = code
        self.carried_out = carried_out
        self.passed = 0

    @property
    def has_failed(self) -> bool:
        return self.passed > self.nth

    def _fails(self, path: Any) -> bool:
        if not str(path).startswith(self.root):
            return False
        self.passed += 1
        return self.passed == self.nth + 1

    def reads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        opened = io.open

        def open_(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            if "r" in mode and isinstance(file, Path | str) and self._fails(file):
                raise OSError(self.code, os.strerror(self.code), str(file))
            return opened(file, mode, *args, **options)

        monkeypatch.setattr(io, "open", open_)

    def renames(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rename = os.rename

        def renamed(source: Any, target: Any, **options: Any) -> None:
            fails = self._fails(source)
            if not fails or self.carried_out:
                rename(source, target, **options)
            if fails:
                raise OSError(self.code, os.strerror(self.code), str(source), None, str(target))

        monkeypatch.setattr(os, "rename", renamed)


def refusal(action: Callable[[], Any]) -> StoreError | None:
    """What an action says to a disk's error; None if it got by without."""
    try:
        action()
    except StoreError as error:
        return error
    return None


def use(root: Path) -> None:
    """Make a store, publish what is pending, and read every chunk of it."""
    publish_rest(root)
    store = StageStore.load(root)
    for chunk in chunks_of(store):
        read_rows(store, chunk)


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO])
def test_read_that_fails_at_any_point_is_told_and_harms_nothing(tmp_path: Path, undisturbed: str, code: int) -> None:
    for nth in count():
        root = tmp_path / str(nth)
        fault = NthFails(root, nth, code)
        with pytest.MonkeyPatch.context() as patch:
            fault.reads(patch)
            told = refusal(partial(use, root))
        assert told is None or (os.strerror(code) in told.what and told.fix)
        if not fault.has_failed:
            break
        assert verify(root) == []
        publish_rest(root)
        check_whole(root, undisturbed)
    assert nth > 10


@pytest.mark.parametrize("carried_out", [False, True], ids=["refused", "answer-lost"])
@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO, errno.EXDEV])
def test_rename_that_fails_at_any_point_is_told_and_harms_nothing(
    tmp_path: Path, undisturbed: str, code: int, carried_out: bool
) -> None:
    for nth in count():
        root = tmp_path / str(nth)
        fault = NthFails(root, nth, code, carried_out=carried_out)
        with pytest.MonkeyPatch.context() as patch:
            fault.renames(patch)
            told = refusal(partial(use, root))
        assert told is None or (os.strerror(code) in told.what and told.fix)
        if not fault.has_failed:
            break
        assert verify(root) == []
        publish_rest(root)
        check_whole(root, undisturbed)
    assert nth > 10


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO])
def test_file_that_cannot_be_read_is_told_by_verify_and_no_bug(tmp_path: Path, code: int) -> None:
    publish_rest(tmp_path)
    for nth in count():
        fault = NthFails(tmp_path, nth, code)
        with pytest.MonkeyPatch.context() as patch:
            fault.reads(patch)
            try:
                found = [damage.problem for damage in verify(tmp_path)]
            except StoreError as error:
                found = [error.what]
        if not fault.has_failed:
            break
        assert any(os.strerror(code) in problem for problem in found), found
    assert nth > 10


class Late:
    """What is not there for the first looks at it: opening, or asking whether it is there.

    Parameters
    ----------
    is_late : Callable[[Path], bool]
        Of which paths.
    looks : int
        How often each is not found.
    """

    def __init__(self, is_late: Callable[[Path], bool], looks: int) -> None:
        self.is_late = is_late
        self.looks = looks
        self.seen: dict[str, int] = {}

    def hide(self, monkeypatch: pytest.MonkeyPatch) -> None:
        opened, status = io.open, os.stat

        def look(path: Any) -> None:
            if isinstance(path, Path) and self.is_late(path):
                name = str(path)
                self.seen[name] = self.seen.get(name, 0) + 1
                if self.seen[name] <= self.looks:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)

        def open_(file: Any, *args: Any, **options: Any) -> Any:
            look(file)
            return opened(file, *args, **options)

        def stat_(path: Any, *args: Any, **options: Any) -> os.stat_result:
            look(path)
            return status(path, *args, **options)

        monkeypatch.setattr(io, "open", open_)
        monkeypatch.setattr(os, "stat", stat_)


def is_shard(path: Path) -> bool:
    return path.name.startswith("c.") and path.parent.parent.name == "data.zarr"


@pytest.mark.parametrize("looks", [1, 5])
def test_commit_record_that_comes_late_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks: int
) -> None:
    publish_rest(tmp_path)
    late = Late(lambda path: path.name == "commit.json", looks)
    late.hide(monkeypatch)
    assert pending(tmp_path, UNITS) == {}
    assert content_digest(tmp_path, UNITS)
    assert len(late.seen) == 3


def test_shards_that_come_late_are_looked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_rest(tmp_path)
    store = StageStore.load(tmp_path)
    late = Late(is_shard, 1)
    late.hide(monkeypatch)
    for chunk in chunks_of(store):
        assert read_rows(store, chunk)["score"].tolist() == [chunk.index + 1] * len(chunk)
    assert len(late.seen) == 3 * len(SPECS)


@pytest.mark.parametrize("looks", [1, 2])
def test_store_that_another_node_made_and_that_comes_late_is_not_made_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: str, looks: int
) -> None:
    publish_rest(tmp_path)
    with monkeypatch.context() as patch:
        late = Late(lambda path: path == tmp_path / "data.zarr", looks)
        late.hide(patch)
        open_store(tmp_path)
    assert late.seen
    assert not list((tmp_path / "staging").iterdir())
    check_whole(tmp_path, undisturbed)


def test_verify_calls_no_file_missing_that_comes_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_rest(tmp_path)
    late = Late(is_shard, 1)
    late.hide(monkeypatch)
    assert verify(tmp_path) == []
    assert len(late.seen) == 3 * len(SPECS)


# Foreign files


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_committed_bank_that_is_a_pickled_array_is_refused_and_no_code_runs(tmp_path: Path) -> None:
    def fill(out: Path) -> Mapping[str, Any]:
        np.save(out / "bank.npy", np.array([Code(tmp_path / "executed")], dtype=object), allow_pickle=True)
        (out / "card.json").write_text(json.dumps(small_study.CARD))
        return {}

    publish_cell(tmp_path / "s", "bank", fill)
    assert verify(tmp_path / "s") == []  # its digests fit
    np.load(tmp_path / "s" / "commits" / "bank" / "bank.npy", allow_pickle=True)
    (tmp_path / "executed").rmdir()  # it does hold code
    data = small_study.study_data(small_study.image_rows(dict.fromkeys(small_study.CLASSES, (2, 1))))
    bank = {"texts": checked_artifacts(tmp_path / "s", "bank")}
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        text_bank(replace(data, artifacts=bank), 3)
    assert not (tmp_path / "executed").exists()


def rewrite_metadata(root: Path, array: str, **changes: Any) -> None:
    """Change an array's zarr.json, with digests that fit."""
    file, group = root / "data.zarr" / array / "zarr.json", root / "data.zarr" / "zarr.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    stored = json.loads(group.read_text())
    attributes = stored["attributes"]
    attributes["metadata_sha256"][array] = digest_bytes(file.read_bytes())
    attributes.pop("attributes_sha256")
    group.write_text(json.dumps({**stored, "attributes": {**attributes, "attributes_sha256": digest_json(attributes)}}))


FOREIGN: dict[str, dict[str, Any]] = {
    "codec pickle": {"codecs": [{"name": "pickle", "configuration": {}}]},
    "codec numcodecs.pickle": {"codecs": [{"name": "numcodecs.pickle", "configuration": {"id": "pickle"}}]},
    "codec of a package": {"codecs": [{"name": "os.system", "configuration": {"command": "true"}}]},
    "object dtype": {"data_type": "object", "fill_value": 0},
}


@pytest.mark.parametrize("foreign", FOREIGN)
def test_shard_of_a_foreign_codec_is_refused_and_no_code_runs(tmp_path: Path, foreign: str) -> None:
    root = tmp_path / "s"
    publish_rest(root)
    chunk = chunks_of(open_store(root))[0]
    path = open_store(root).shard_path("score", chunk)
    data = pickle.dumps(Code(tmp_path / "executed"))
    (root / path).write_bytes(data)
    commit = json.loads((root / "commits" / chunk.unit / "commit.json").read_text())
    edit_record(
        root,
        chunk.unit,
        digests={**commit["digests"], path.as_posix(): digest_bytes(data)},
        sizes={**commit["sizes"], path.as_posix(): len(data)},
    )
    rewrite_metadata(root, "score", **FOREIGN[foreign])
    with pytest.raises((StoreError, ValueError), match=r"Unknown codec|No Zarr data type|foreign"):
        read_rows(StageStore.load(root), chunk)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", [spec.name for spec in SPECS])
def test_same_chunk_of_another_run_is_named_by_verify(tmp_path: Path, name: str) -> None:
    for run, shift in (("a", 1), ("b", 50)):
        store = open_store(tmp_path / run)
        for chunk in chunks_of(store):
            publish_chunk(store, chunk, result(chunk, chunk.index + shift))
    path = store.shard_path(name, chunks_of(store)[1])
    same = (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()
    shutil.copy(tmp_path / "b" / path, tmp_path / "a" / path)
    assert same is (name == "status")  # every row is OK in both
    assert [(d.unit, d.path) for d in verify(tmp_path / "a")] == ([] if same else [("000001", path.as_posix())])


@pytest.mark.parametrize("name", [spec.name for spec in SPECS])
def test_plain_zarr_reader_never_reads_a_flipped_bit_as_data(tmp_path: Path, name: str) -> None:
    publish_rest(tmp_path)
    store = open_store(tmp_path)
    file = tmp_path / store.shard_path(name, chunks_of(store)[1])
    good, array = file.read_bytes(), zarr.open_array(tmp_path / "data.zarr" / name, mode="r")
    expected = array[4:8]
    flip_bit(file)
    with pytest.raises(Exception, match=r"(?i)checksum|corrupt|crc|decompress"):
        array[4:8]
    for position in range(len(good)):
        file.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        try:
            found = array[4:8]
        except Exception:  # noqa: BLE001  whatever the codecs raise
            continue
        np.testing.assert_array_equal(found, expected, err_msg=f"byte {position}")


# Whole studies


SITE = """
import os, socket
connect, connect_ex, resolve = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo
LOCAL = ("127.0.0.1", "::1", "localhost", None, "")

def check(host):
    with open(os.environ["NETWORK_LOG"], "a") as log:
        log.write(f"{host}\\n")
    if host not in LOCAL:
        raise OSError(101, "Network is unreachable")

def check_address(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        check(address[0])

def guarded(call):
    def connect(self, address):
        check_address(self, address)
        return call(self, address)
    return connect

def resolved(host, *args, **options):
    check(host.decode() if isinstance(host, bytes) else host)
    return resolve(host, *args, **options)

socket.socket.connect, socket.socket.connect_ex = guarded(connect), guarded(connect_ex)
socket.getaddrinfo = resolved
with open(os.environ["NETWORK_LOG"], "a") as log:
    log.write("guarded\\n")
"""


class Whole:
    """A quick study of its own, and the ways to go on with it.

    Parameters
    ----------
    root : Path
        Folder of its work folder.
    source : Path
        Images and labels.csv.
    network_log : Path, optional
        Forbid the network, and write here which hosts were asked for.
    """

    def __init__(self, root: Path, source: Path, network_log: Path | None = None) -> None:
        self.work = root / "work"
        self.source = source
        self.env = dict(os.environ)
        self.log = network_log
        if network_log:
            site = root / "site"
            site.mkdir()
            (site / "sitecustomize.py").write_text(SITE)
            self.env |= {"PYTHONPATH": str(site), "NETWORK_LOG": str(network_log)}

    @property
    def dataset(self) -> Path:
        return self.work / "phantoms"

    def call(self, *arguments: object, **options: Any) -> Finished:
        done = subprocess.run(
            command(*arguments),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            cwd=ROOT,
            **{"env": self.env, **options},
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    def ingest(self, chunk_items: int = 6, **options: Any) -> Finished:
        return self.call(*self.to_ingest(chunk_items), **options)

    def to_ingest(self, chunk_items: int = 6) -> tuple[object, ...]:
        where = ("--dataset", "phantoms", "--labels", self.source / "labels.csv", "--workdir", self.work)
        return ("ingest", self.source, *where, "--chunk-items", chunk_items)

    def run(self, *more: object, cluster: str = "inline", **options: Any) -> Finished:
        return self.call(*self.to_run(*more, cluster=cluster), **options)

    def to_run(self, *more: object, cluster: str = "inline") -> tuple[object, ...]:
        return ("run", "--workdir", self.work, "--cluster", cluster, *QUICK, *more)

    def copy(self, to: Path) -> Whole:
        shutil.copytree(self.work, to / "work", dirs_exist_ok=True)
        return Whole(to, self.source)

    def content(self) -> dict[str, str]:
        """Digest of every file, but for records of runs."""
        files = (f for f in sorted(self.dataset.rglob("*")) if f.is_file() and "runs" not in f.parts)
        return {f.relative_to(self.dataset).as_posix(): digest_bytes(f.read_bytes()) for f in files}


ZERO_SHOT = ("--set", 'baselines.methods=["zero-shot"]')


@pytest.fixture(scope="module")
def finished(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A study from ingest to report, with every connection but loopback made to fail, under umask 0."""
    root = tmp_path_factory.mktemp("whole")
    study = Whole(root, copy_source(phantom_folder, root / "source"), root / "network.log")
    for done in (
        study.ingest(umask=0),
        study.run("--workers", 1, cluster="local", umask=0),
        study.run("--stage", "baselines", *ZERO_SHOT, umask=0),
        study.call("report", "--workdir", study.work, *QUICK, *ZERO_SHOT, umask=0),
    ):
        assert done.code == 0, done.err
    return study


@pytest.mark.slow
def test_whole_study_runs_without_a_network_and_asks_for_none(finished: Whole) -> None:
    assert finished.log is not None
    asked = finished.log.read_text().split()
    assert asked.count("guarded") >= 5  # each command, and the worker
    assert "127.0.0.1" in asked  # Dask's own
    assert set(asked) <= {"guarded", "127.0.0.1", "localhost"}
    assert {unit.split("/")[0] for unit in digests(finished.dataset)} >= {"masks", "embeddings", "probes", "baselines"}


@pytest.mark.slow
def test_network_guard_of_these_tests_guards(finished: Whole) -> None:
    reach = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"
    done = subprocess.run(
        [command()[0], "-c", reach],
        env={**finished.env, "NETWORK_LOG": os.devnull},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Network is unreachable" in done.stderr


@pytest.mark.slow
def test_every_probe_of_a_finished_study_has_converged(finished: Whole) -> None:
    cells = sorted((finished.dataset / "stages" / "probes").glob("*/commits/*/scores.json"))
    scores = [json.loads(cell.read_text()) for cell in cells]
    assert len(scores) == 16
    fitted = [score for score in scores if score["method"] != "constant"]  # which counts, and fits nothing
    assert len(fitted) == 12
    assert {score["converged"] for score in fitted} == {1}


@pytest.mark.slow
def test_nothing_of_a_data_set_can_be_reached_by_others_even_under_umask_zero(finished: Whole) -> None:
    assert stat.S_IMODE(finished.dataset.stat().st_mode) == 0o700
    below = sorted(finished.dataset.rglob("*"))
    assert any(path.name == "index.html" for path in below)
    assert any(path.stat().st_mode & 0o002 for path in below)  # umask 0 did act: it is the folder that protects
    if os.geteuid() != 0:
        pytest.skip("acting as another user needs root")
    open_to_all(finished.work)
    finished.work.parent.chmod(0o755)
    with nobody():
        assert list(finished.work.iterdir()) == [finished.dataset]
        for path in (finished.dataset / "drops", *below):
            with pytest.raises(PermissionError):
                path.stat()


def another_version(file: Path) -> None:
    """Say in a zarr.json, commit.json or drop.json that another version wrote it."""
    stored = json.loads(file.read_text())
    holder = stored["attributes"] if file.name == "zarr.json" else stored
    holder["schema_version"] = 99
    file.write_text(json.dumps(stored))


@pytest.mark.slow
@pytest.mark.parametrize(
    "file",
    [
        "stages/embeddings/*/drop-001/data.zarr/zarr.json",
        "stages/embeddings/*/drop-001/commits/000001/commit.json",
        "stages/texts/*/commits/*/commit.json",
        "drops/drop-001/drop.json",
    ],
)
def test_run_refuses_what_another_version_wrote_and_changes_nothing(finished: Whole, tmp_path: Path, file: str) -> None:
    study = finished.copy(tmp_path)
    (found,) = study.dataset.glob(file)
    another_version(found)
    before = study.content()
    done = study.run("--set", "study.seeds=[7]")
    refused_in_words(done, "version")
    assert study.content() == before


def edit_json(file: Path, key: str, value: Any) -> None:
    stored = json.loads(file.read_text())
    assert stored[key] != value
    file.write_text(json.dumps({**stored, key: value}, indent=1) + "\n")


EDITS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "audit": ("audit.json", lambda f: edit_json(f, "not_compared", 5)),
    "label": ("inventory.csv", lambda f: f.write_text(f.read_text().replace("round", "other", 1))),
    "bit of the looks": ("looks.npz", flip_bit),
    "order of the classes": ("drop.json", lambda f: edit_json(f, "classes", ["spiculated", "round", "lobed"])),
    "rows of a chunk": ("drop.json", lambda f: edit_json(f, "chunk_items", 9)),
    "drop record cut short": ("drop.json", lambda f: os.truncate(f, f.stat().st_size // 2)),
    "audit lost": ("audit.json", Path.unlink),
}


@pytest.mark.slow
@pytest.mark.parametrize("edit", EDITS)
def test_verify_names_the_drop_whose_files_were_edited(finished: Whole, tmp_path: Path, edit: str) -> None:
    study = finished.copy(tmp_path)
    name, change = EDITS[edit]
    change(study.dataset / "drops" / "drop-001" / name)
    done = study.call("verify", "--workdir", study.work)
    refused_in_words(done, "")
    assert "drop-001" in done.out + done.err


@pytest.mark.slow
def test_verify_finds_nothing_wrong_with_a_finished_study(finished: Whole) -> None:
    done = finished.call("verify", "--workdir", finished.work)
    assert done.code == 0, done.out + done.err
    assert "0 damaged files" in done.out


NOBODY = """
import codecs, contextlib, importlib, io, json, os, pkgutil, sys, traceback
import manifests, multiprocessing.synchronize, pipeline, sklearn.linear_model, sklearn.metrics, stages
for package in (manifests, pipeline, stages):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not found.name.startswith("stages.models."):
            importlib.import_module(found.name)
from pipeline.cli import main
from pipeline.config import load_config
load_config()
for encoding in ("utf-8-sig", "cp437", "latin-1", "ascii", "idna"):
    codecs.lookup(encoding)
os.setgroups([]), os.setresgid(65534, 65534, 65534), os.setresuid(65534, 65534, 65534)
results = []
for arguments in json.loads(sys.argv[1]):
    sys.argv, out, err, code = ["pipeline", *arguments], io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        except Exception:
            code = 1
            traceback.print_exc()
    results.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(results))
"""
"""Imports everything before it becomes nobody: this interpreter may lie where nobody else can read it."""

AsNobody = Callable[..., list[Finished]]


@pytest.fixture
def as_nobody(tmp_path: Path) -> AsNobody:
    """Run commands, one after the other, as a user without rights."""
    if os.geteuid() != 0:
        pytest.skip("acting as another user needs root")
    open_to_all(tmp_path)
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    names = {"HOME": "", "MEDFOCUS_WEIGHTS": "weights", "MEDFOCUS_SALT_FILE": "salt", "HF_HOME": "hf"}
    env = {**os.environ, **{name: str(home / leaf) for name, leaf in names.items()}, "MPLCONFIGDIR": str(home)}

    def call(*commands: tuple[object, ...]) -> list[Finished]:
        arguments = json.dumps([[str(part) for part in command] for command in commands])
        process = [sys.executable, "-c", NOBODY, arguments]
        done = subprocess.run(process, capture_output=True, text=True, check=False, cwd=ROOT, env=env, timeout=300)
        assert done.returncode == 0, done.stderr
        return [Finished(*result) for result in json.loads(done.stdout.splitlines()[-1])]

    return call


def refused_in_words(done: Finished, words: str) -> None:
    """An exit code of 4, and a message instead of a traceback."""
    assert done.code == 4, done.out + done.err
    assert words in done.err
    assert "Traceback" not in done.err


@pytest.mark.slow
def test_work_folder_that_may_not_be_written_is_told(phantom_folder: Path, tmp_path: Path, as_nobody: AsNobody) -> None:
    study = Whole(tmp_path, copy_source(phantom_folder, tmp_path / "source"))
    study.source.chmod(0o755)
    study.work.mkdir()
    (done,) = as_nobody(study.to_ingest())
    refused_in_words(done, "Permission denied")
    assert "--workdir DIR" in done.err
    assert list(study.work.iterdir()) == []


@pytest.mark.slow
def test_data_set_of_another_user_is_told_by_every_command(
    finished: Whole, tmp_path: Path, as_nobody: AsNobody
) -> None:
    study = finished.copy(tmp_path)
    study.source = copy_source(finished.source, tmp_path / "source")
    study.source.chmod(0o755)
    study.work.chmod(0o755)
    before = study.content()
    names = ("ingest", "run", "status", "plan", "verify", "report", "gc", "repair")
    others = ((name, "--workdir", study.work) for name in names[2:])
    found = dict(zip(names, as_nobody(study.to_ingest(), study.to_run(), *others), strict=True))
    told = {name: (done.code, "Permission denied" in done.err, "Traceback" in done.err) for name, done in found.items()}
    assert told == dict.fromkeys(names, (4, True, False))
    assert study.content() == before


@pytest.mark.slow
def test_data_set_that_may_only_be_read_can_be_verified_but_not_run(
    finished: Whole, tmp_path: Path, as_nobody: AsNobody
) -> None:
    study = finished.copy(tmp_path)
    for path in (study.work, *study.work.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    before = study.content()
    verified, status, run = as_nobody(
        ("verify", "--workdir", study.work),
        ("status", "--workdir", study.work),
        study.to_run("--set", "study.seeds=[7]"),
    )
    assert (verified.code, status.code) == (0, 0), verified.err + status.err
    refused_in_words(run, "Permission denied")
    assert study.content() == before


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system that can be made read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting a file system needs root and the right to mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_study_on_a_read_only_file_system_can_be_verified_but_not_run(finished: Whole, mounted: Path) -> None:
    study = finished.copy(mounted)
    remount(mounted, "ro")
    for what in ("verify", "status"):
        done = study.call(what, "--workdir", study.work)
        assert done.code == 0, done.err
    done = study.run("--set", "study.seeds=[7]")
    refused_in_words(done, "Read-only file system")


# What makes a fingerprint


@pytest.mark.slow
def test_weights_replaced_before_a_resume_are_another_fingerprint_and_the_plan_says_so(
    phantom_folder: Path, tmp_path: Path
) -> None:
    base, weights = "sam2-tiny-untrained", WeightsFolder(tmp_path / "weights")
    study = Whole(tmp_path, phantom_folder)
    study.env[ENVIRONMENT] = str(weights.root)
    chosen = ("--stage", "proposals", "--set", "masks.policy=union", "--set", f"proposals.model=samed:{base}")
    assert study.ingest(chunk_items=1).code == 0
    weights.add(f"samed:{base}", adapter_file(base, "samed", tmp_path / "a.safetensors"))
    done = study.run("--limit", 1, *chosen)
    assert done.code == 0, done.err
    weights.add(f"samed:{base}", adapter_file(base, "samed", tmp_path / "b.safetensors", noise=0.1))
    planned = study.call("plan", "--workdir", study.work, "--json", *QUICK, *chosen)
    (row,) = [row for row in json.loads(planned.out) if row["stage"] == "proposals"]
    assert row["units"] == 18
    assert row["why"] == f"weights changed: samed:{base}"


OTHER_VALUES: dict[str, Any] = {
    "proposals.model": "sam2-tiny-untrained",
    "proposals.texts": ["a bone"],
    "masks.policy": "top1",
    "masks.clip_model": "open_clip:ViT-B-32",
    "masks.clip_prompts": ["a bone"],
    "embeddings.model": "open_clip:ViT-B-32",
    "embeddings.views": ["original", "masked", "crop"],
    "embeddings.compositing": "overlay",
    "texts.templates": ["{}"],
    "fusion.view": "original",
    "fusion.contrastive_weight": 0.25,
    "probes.C": 1.0,
    "baselines.view": "masked",
    "baselines.context": "a picture of a",
    "finetune.image_px": 64,
    "slca.encoder": "sam2-tiny-untrained",
    "lora.template": "{}",
}
SHARED = {
    **{(section, "canvas_px"): "canvas_px" for section in ("proposals", "masks", "embeddings")},
    **{(section, key): f"embeddings.{key}" for section in ("texts", "baselines") for key in ("model", "features")},
}
"""Keys that sections must set together."""
INSIDE = [(s, k) for s, k in KEYS if s.partition(".")[0] not in SECTIONS_OUTSIDE and (s, k) not in OUTSIDE_FINGERPRINTS]


def another_value(where: str, key: str, value: Any, choices: Any) -> Any:
    """Some other value that a key may have."""
    if where in OTHER_VALUES:
        return OTHER_VALUES[where]
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return next(v for v in choices if v != value)
    if isinstance(value, int):
        return value + (64 if key == "canvas_px" else 1)
    return value * 0.9 if value else 0.1


def fingerprints(config: RunConfig) -> dict[str, set[str]]:
    """Fingerprints of all nodes of a configuration by stage, on data that never change."""
    nodes, found = {node.key: node for node in build_graph(config)}, dict[str, str]()
    for key, node in nodes.items():
        upstream = {stage: found[other] for stage, other in node.inputs.items()}
        context = StageContext(upstream if node.is_map else {**upstream, "data": "0" * 64}, ("a", "b"), config.study)
        stage: Any = stage_class(node.stage)
        found[key] = stage(node.settings, context).identity().fingerprint
    return {node.stage: {found[k] for k, n in nodes.items() if n.stage == node.stage} for node in nodes.values()}


@pytest.fixture
def made_up_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of weights that are not there: identities read no more than these."""
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    for name in ("clipseg", "open_clip:ViT-B-32"):
        record = {"name": name, "file": "x.pt", "sha256": digest_bytes(name.encode()), "bytes": 1, "added": "2026"}
        (tmp_path / f"{name.replace(':', '-')}.json").write_text(json.dumps(record))


@pytest.mark.usefixtures("made_up_weights")
@pytest.mark.parametrize(("section", "key"), INSIDE)
def test_every_key_that_determines_results_changes_the_fingerprint(section: str, key: str) -> None:
    base = ["masks.policy=clip-rank", 'lora.views=["original"]']
    base += [f'{name}.models=["lite0"]' for name in ("finetune", "slca")]
    if key in ("texts", "text_threshold") and section == "proposals":
        base.append("proposals.model=clipseg")
    before = load_config(overrides=base)
    table: Any = getattr(before, section)
    field = type(table).model_fields[key]
    choices = [v for part in (field.annotation, *getattr(field.annotation, "__args__", ())) for v in literals(part)]
    where = SHARED.get((section, key), f"{section}.{key}")
    other = another_value(where, key, getattr(table, key), choices)
    after = load_config(overrides=[*base, f"{where}={json.dumps(other, ensure_ascii=False)}"])
    assert getattr(getattr(after, section), key) != getattr(table, key)
    assert not fingerprints(before)[section] & fingerprints(after)[section]


def literals(annotation: Any) -> tuple[str, ...]:
    found = getattr(annotation, "__args__", ())
    return found if found and all(isinstance(value, str) for value in found) else ()


# Trainings: what leaks, what repeats, what stays finite


def shuffled_test_rows(data: StageData) -> StageData:
    """The same study with pictures, vectors and labels of its test rows exchanged, each in another way."""
    test = np.array([i for i, row in enumerate(data.rows) if row.split == Split.TEST])
    rows, arrays = list(data.rows), {name: np.array(array) for name, array in data.arrays.items()}
    for here, there in zip(test, np.roll(test, 5), strict=True):
        rows[here] = replace(data.rows[here], label=data.rows[there].label)
    for array in arrays.values():
        array[test] = array[np.roll(test, 2)]
    return replace(data, rows=tuple(rows), arrays=arrays)


def files_of(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in sorted(folder.iterdir())}


SCORED = ("predictions.csv", "scores.json")


def lora_in(folder: Path, data: StageData) -> dict[str, bytes]:
    """Files of one small training of CLIP-LoRA."""
    folder.mkdir()
    context = StageContext({"pictures": "a" * 64}, small_study.CLASSES, small_study.STUDY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stages.models.clip.load_clip", lambda *_: test_lora.vit())
        settings = test_lora.SETTINGS.model_copy(update={"most_shots": 3})
        ClipLora(settings, context).fit(Cell("clip-lora", 1.0, 0), data, folder)
    return files_of(folder)


def trained_in(folder: Path, data: StageData, stage: type[Finetune]) -> dict[str, bytes]:
    """Files of one small training end to end, and a digest of the weights that it ended with."""
    states: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        score = Trainer.probabilities

        def scored(self: Trainer, shown: Any) -> Any:
            state = b"".join(v.detach().cpu().numpy().tobytes() for v in self._model.state_dict().values())
            states.append(hashlib.sha256(state).hexdigest())
            return score(self, shown)

        patch.setattr(Trainer, "probabilities", scored)
        test_finetune.fit(folder, data, stage, epochs=3)
    return {**files_of(folder), "weights": states[-1].encode()}


def learned(files: dict[str, bytes], *names: str) -> tuple[dict[str, bytes], dict[str, Any]]:
    """What training alone wrote: files but for the scored rows, and named values of the scores."""
    scores = json.loads(files["scores.json"])
    return {k: v for k, v in files.items() if k not in SCORED}, {name: scores[name] for name in names}


def test_lora_trains_the_same_whatever_the_test_rows_are(tmp_path: Path) -> None:
    data = test_lora.study()
    plain, other = lora_in(tmp_path / "a", data), lora_in(tmp_path / "b", shuffled_test_rows(data))
    assert learned(plain, "loss", "steps") == learned(other, "loss", "steps")
    assert {"history.csv", "updates.safetensors"} <= set(plain)
    assert plain["predictions.csv"] != other["predictions.csv"]


@pytest.mark.parametrize("stage", [Slca, Finetune])
def test_classifier_trains_the_same_whatever_the_test_rows_are(tmp_path: Path, stage: type[Finetune]) -> None:
    data = test_finetune.study()
    plain = trained_in(tmp_path / "a", data, stage)
    other = trained_in(tmp_path / "b", shuffled_test_rows(data), stage)
    names = ("loss", "held_out_loss", "epoch", "epochs")
    assert learned(plain, *names) == learned(other, *names)
    assert {"history.csv", "weights"} <= set(plain)
    assert plain["predictions.csv"] != other["predictions.csv"]


CHOSEN = {
    "tip-adapter": ("alpha", "beta", "held_out_accuracy"),
    "tip-adapter-f": ("alpha", "beta", "held_out_accuracy"),
    "coop": ("loss", "epochs"),
    "cocoop": ("loss", "epochs"),
}


@pytest.mark.parametrize("method", CHOSEN)
def test_baseline_trains_the_same_whatever_the_test_rows_are(tmp_path: Path, method: str) -> None:
    data = test_baselines.data_in(1280, tmp_path)
    stage = Baselines(BaselinesSettings(cocoop_epochs=1), small_study.context())
    found = []
    for name, study in (("a", data), ("b", shuffled_test_rows(data))):
        (tmp_path / name).mkdir()
        stage.fit(Cell(method, 0.5, 0), study, tmp_path / name)
        found.append(files_of(tmp_path / name))
    plain, other = found
    assert learned(plain, *CHOSEN[method]) == learned(other, *CHOSEN[method])
    assert plain["predictions.csv"] != other["predictions.csv"]


def test_same_seed_gives_the_same_bytes_of_lora(tmp_path: Path) -> None:
    first, again = (lora_in(tmp_path / name, test_lora.study()) for name in "ab")
    assert first == again
    assert len(first) == 4


def test_same_seed_gives_the_same_bytes_of_slca(tmp_path: Path) -> None:
    first, again = (trained_in(tmp_path / name, test_finetune.study(), Slca) for name in "ab")
    assert first == again
    assert len(first) == 4


LABELS = np.arange(18) % 3
FEATURES: dict[str, Callable[[np.random.Generator], Any]] = {
    "constant": lambda _: np.ones((18, small_study.FEATURES)),
    "zero": lambda _: np.zeros((18, small_study.FEATURES)),
    "collinear": lambda r: np.outer(r.normal(size=18), r.normal(size=small_study.FEATURES)),
    "one constant feature": lambda r: np.c_[np.ones(18), r.normal(size=(18, small_study.FEATURES - 1))],
    "times 1e6": lambda r: 1e6 * r.normal(size=(18, small_study.FEATURES)),
    "times 1e-6": lambda r: 1e-6 * r.normal(size=(18, small_study.FEATURES)),
}


@pytest.fixture(params=FEATURES)
def features(request: pytest.FixtureRequest) -> Any:
    return FEATURES[request.param](np.random.default_rng(0)).astype(np.float32)


@pytest.mark.parametrize("variant", VARIANTS)
def test_fusion_of_constant_or_collinear_features_is_finite(features: Any, variant: str) -> None:
    recipe, texts = test_fusion.recipe(variant), test_fusion.bank()
    groups = [str(i) for i in range(18)]
    examples = Examples(features, LABELS, groups)
    weights, history = train(examples, texts, recipe, seed=0)
    assert all(np.isfinite(tensor).all() for tensor in weights.tensors.values())
    assert all(np.isfinite(epoch.loss) for epoch in history)
    assert np.isfinite(head_logits(weights, focus(weights, texts, features))).all()
    assert 0 <= choose_lambda(examples, texts, recipe, 0) <= 1


@pytest.mark.parametrize("normalise", [True, False])
def test_choice_of_c_and_tip_adapter_on_constant_or_collinear_features_are_finite(
    features: Any, normalise: bool
) -> None:
    groups = [str(i) for i in range(18)]
    rotated = rotate(prepare(features, normalise=normalise), LABELS)
    c, loss = choose_c(rotated, groups, ProbesSettings(normalise=normalise), seed=0)
    assert np.isfinite(c)
    assert loss is not None
    assert np.isfinite(loss)
    fitted = fit_probe(rotated, c, 3, 1000, normalise=normalise)
    assert fitted.converged
    assert np.isfinite(fitted.probe.probabilities(features)).all()
    texts = np.eye(3, small_study.FEATURES)
    unit = unit_rows(features)
    tuned = tip_adapter(Subset(unit, LABELS, groups), texts, 100.0, folds=3, seed=0, trained=normalise)
    assert np.isfinite(tuned.probabilities(unit)).all()
