"""Fixtures that several test folders share: a small data set of phantoms, and the command line as a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.phantoms import make_phantoms

ROOT = Path(__file__).resolve().parent.parent


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
def cli() -> Cli:
    """Run `pipeline` with arguments in a process of its own."""

    def call(*arguments: object, env: Mapping[str, str] | None = None, timeout_s: float = 300) -> Finished:
        done = subprocess.run(
            command(*arguments),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture(scope="session")
def phantom_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve training and six test phantoms with masks and labels.csv; never written to after this."""
    folder = tmp_path_factory.mktemp("phantoms")
    make_phantoms(folder, {"train": 4, "test": 2}, seed=7)
    return folder
