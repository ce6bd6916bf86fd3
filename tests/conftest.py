"""Fixtures that several test folders share: a small data set of phantoms, and the command line as a process."""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.warm import Warm

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    """One thread a process, before any library counts the cores.

    Threads that wait for each other in a loop are several times slower than one wherever processes share the cores; a
    run of the product limits its threads itself, and tests of threads ask for as many as they need.
    """
    for library in ("OMP", "MKL", "OPENBLAS"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the folders whose files take minutes: short files at the end keep every worker busy."""
    items.sort(key=lambda item: item.path.relative_to(ROOT / "tests").parts[0] == "unit")


def pytest_collection_finish() -> None:
    """Keep the collector of garbage from going through all libraries and tests each time.

    A whole pass takes a second once they are loaded, and statsmodels asks for one with every correction of p values.
    Hypothesis comes first: it looks for who refers to the generators of random numbers that it takes over.
    """
    importlib.import_module("hypothesis")
    gc.collect()
    gc.freeze()


def unavailable(what: str) -> NoReturn:
    """Skip with a word where a program is not installed; fail where `.ci/run` says that it must be."""
    if os.environ.get("MEDFOCUS_REQUIRED"):
        pytest.fail(f"{what}; MEDFOCUS_REQUIRED says that it must be", pytrace=False)
    pytest.skip(what)


@pytest.fixture(scope="session", autouse=True)
def private_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep weights, the salt and Hugging Face's cache of the tests away from the user's own."""
    home = tmp_path_factory.mktemp("home")
    names = {"MEDFOCUS_WEIGHTS": "weights", "MEDFOCUS_SALT_FILE": "salt", "HF_HOME": "hf"}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update({name: str(home / leaf) for name, leaf in names.items()})
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@dataclass(frozen=True)
class Finished:
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out.strip().splitlines()[-1])


Cli = Callable[..., Finished]


def command(*arguments: object) -> list[str]:
    """The command line of a `pipeline` process of this interpreter."""
    return [sys.executable, "-c", "from pipeline.cli import main; main()", *map(str, arguments)]


@pytest.fixture(scope="session")
def cli(private_home: None) -> Iterator[Cli]:
    """Run `pipeline` with arguments in a process of its own, see `tests.warm` for how it begins."""
    warm = Warm()

    def call(*arguments: object, env: Mapping[str, str] | None = None, timeout_s: float = 300) -> Finished:
        words, surroundings = command(*arguments), {**os.environ, **(env or {})}
        if warm.serves(surroundings):
            return Finished(*warm.run(words[3:], surroundings, timeout_s))
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=timeout_s, check=False, cwd=ROOT, env=surroundings
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    yield call
    warm.close()


@pytest.fixture(scope="session")
def phantom_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve training and six test phantoms with masks and labels.csv; never written to after this."""
    from pipeline.phantoms import make_phantoms

    folder = tmp_path_factory.mktemp("phantoms")
    make_phantoms(folder, {"train": 4, "test": 2}, seed=7)
    return folder
