"""Publishing cells: artifacts and a record in one folder."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from manifests.commits import (
    committed_units,
    pending,
    publish_cell,
    read_commit,
)
from manifests.integrity import verify
from tests.stores import write_scores


def test_cell_commits_its_artifacts_with_digests(tmp_path: Path) -> None:
    assert publish_cell(tmp_path, "masked-5-0", write_scores, {"n_train": 3}) is True
    commit = read_commit(tmp_path, "masked-5-0")
    assert commit is not None
    assert sorted(commit.digests) == ["history/loss.csv", "scores.json"]
    assert (commit.metrics, commit.record) == ({"accuracy": 0.5, "auroc": None}, {"n_train": 3})
    assert (tmp_path / "commits" / "masked-5-0" / "history" / "loss.csv").read_text() == "1,0.5\n"
    assert verify(tmp_path) == []


def test_committed_cell_is_not_fitted_again(tmp_path: Path) -> None:
    publish_cell(tmp_path, "masked-5-0", write_scores)

    def refit(_: Path) -> dict[str, Any]:
        pytest.fail("fitted again")

    assert publish_cell(tmp_path, "masked-5-0", refit) is False


def test_cell_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(out: Path) -> dict[str, Any]:
        write_scores(out)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        publish_cell(tmp_path, "masked-5-0", fail)
    assert pending(tmp_path, ["masked-5-0"]) == {"masked-5-0": "new"}
    assert not list((tmp_path / "staging").iterdir())


def test_error_about_a_file_elsewhere_is_not_blamed_on_the_work_folder(tmp_path: Path) -> None:
    def fail(out: Path) -> dict[str, Any]:
        raise PermissionError(errno.EACCES, "Permission denied", "/weights/model.pt")

    with pytest.raises(PermissionError):
        publish_cell(tmp_path / "s", "masked-5-0", fail)


@pytest.mark.parametrize("write", ["nothing", "link", "commit.json"])
def test_cell_without_proper_artifacts_is_refused(tmp_path: Path, write: str) -> None:
    def fill(out: Path) -> dict[str, Any]:
        if write == "link":
            (out / "a").symlink_to("/etc/hostname")
        elif write == "commit.json":
            (out / "commit.json").write_text("{}")
        return {}

    with pytest.raises(ValueError, match="artifact"):
        publish_cell(tmp_path, "masked-5-0", fill)
    assert committed_units(tmp_path) == ()


def test_metric_that_is_no_number_commits_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"metrics\.auroc: nan"):
        publish_cell(tmp_path, "masked-5-0", lambda out: {**write_scores(out), "auroc": float("nan")})
    assert committed_units(tmp_path) == ()


@pytest.mark.parametrize("unit", ["", "../x", "a/b", ".hidden", "a b"])
def test_unit_that_is_no_safe_name_is_refused(tmp_path: Path, unit: str) -> None:
    with pytest.raises(ValueError, match="name of a unit"):
        publish_cell(tmp_path / "s", unit, write_scores)
