"""One real Slurm for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.slurm import Slurm, SlurmMissingError


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A Slurm of one node, started once; skips with a word where it cannot be."""
    cluster = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
    except SlurmMissingError as error:
        pytest.skip(str(error))
    try:
        yield cluster
    finally:
        cluster.stop()
