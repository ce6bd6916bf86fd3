"""Processes of `pipeline` that find their libraries imported: forks of an interpreter that has done nothing else.

An import of torch, pandas and their like takes longer than most commands and proves nothing the second time. Each
command still is a process of its own whose exit code, output and signals are told as they are. `Warm` keeps two
interpreters in turn, so that what must not depend on the seed of `hash` is still asked under two of them. Commands
with an environment that libraries read while they are imported, and every process that a test starts by `command`,
begin from nothing.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = (
    "PIL.Image",
    "pandas",
    "pydantic",
    "rich.console",
    "rich.progress",
    "rich.table",
    "scipy.ndimage",
    "scipy.stats",
    "sklearn.decomposition",
    "sklearn.linear_model",
    "sklearn.manifold",
    "sklearn.metrics",
    "statsmodels.stats.multitest",
    "matplotlib.backends.backend_agg",
    "jinja2",
    "zarr",
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "open_clip",
    "distributed",
)
"""What commands import; only what starts no thread of its own that a fork would lose."""
OWN = (
    "pipeline.cluster",
    "pipeline.commands",
    "pipeline.execute",
    "pipeline.overview",
    "pipeline.results",
    "stages.baselines.stage",
    "stages.embeddings.stage",
    "stages.fusion.stage",
    "stages.masks.stage",
    "stages.probes.stage",
    "stages.proposals.stage",
    "stages.texts.stage",
)
"""Likewise: without bytecode files their compilation takes as long again as a short command."""
HARMLESS = ("MEDFOCUS_", "PYTEST_CURRENT_TEST", "TMPDIR")
"""Beginnings of the names of variables that no library keeps from its import; `tempfile` is told to ask again."""


class Warm:
    """Two interpreters with their libraries imported, started when first needed."""

    def __init__(self) -> None:
        self._before = _read_at_import(os.environ), os.geteuid()
        self._interpreters = [_Interpreter(), _Interpreter()]
        self._turns = cycle(self._interpreters)

    def serves(self, env: Mapping[str, str]) -> bool:
        """Whether a process with these variables, of the present user, is as if it had them before its imports."""
        return (_read_at_import(env), os.geteuid()) == self._before

    def run(self, arguments: Sequence[str], env: Mapping[str, str], timeout_s: float) -> tuple[int, str, str]:
        """Exit code as `subprocess` tells it, stdout and stderr of one command.

        Raises
        ------
        TimeoutExpired
            If it runs longer; it is killed.
        """
        return next(self._turns).run(arguments, env, timeout_s)

    def close(self) -> None:
        for interpreter in self._interpreters:
            interpreter.close()


def _read_at_import(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if not name.startswith(HARMLESS)}


class _Interpreter:
    """One process that imports, and then forks whenever it is asked."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def run(self, arguments: Sequence[str], env: Mapping[str, str], timeout_s: float) -> tuple[int, str, str]:
        ours, theirs = socket.socketpair()
        with ours, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            with theirs:
                fds = [theirs.fileno(), out.fileno(), err.fileno()]
                socket.send_fds(self._started(), [b"x"], fds)
            asked = json.dumps({"arguments": list(arguments), "env": dict(env)}).encode()
            with ours.makefile("rwb") as stream:
                stream.write(asked + b"\n")
                stream.flush()
                pid = int(stream.readline())
                in_time, _, _ = select.select([ours], [], [], timeout_s)  # it is closed behind the code
                if not in_time:
                    os.kill(pid, signal.SIGKILL)
                code = int(stream.readline())
            if not in_time:
                raise subprocess.TimeoutExpired(list(arguments), timeout_s)
            return code, _text(out), _text(err)

    def _started(self) -> socket.socket:
        if self._socket is None:
            ours, theirs = socket.socketpair()
            with theirs:
                code = f"from tests.warm import serve; serve({theirs.fileno()})"
                self._process = subprocess.Popen(
                    [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
                )
            self._socket = ours
        return self._socket

    def close(self) -> None:
        """End the interpreter: it stops when nobody holds the other end."""
        if self._socket is not None and self._process is not None:
            self._socket.close()
            self._process.wait(60)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode().replace("\r\n", "\n")


def serve(fd: int) -> None:
    """Import, then fork for every message on a socket until its other end is closed; returns in the forks, too."""
    for name in (*LIBRARIES, *OWN):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait
    with socket.socket(fileno=fd) as asked:
        while True:
            _, fds, _, _ = socket.recv_fds(asked, 1, 3)
            if not fds:
                return
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                break
            for each in fds:
                os.close(each)
    _watch(*fds)


def _watch(connection: int, out: int, err: int) -> None:
    """Fork the command, and tell its pid and later how it ended; returns when it has."""
    with socket.socket(fileno=connection) as told, told.makefile("rwb") as stream:
        asked = json.loads(stream.readline())
        pid = os.fork()
        if pid != 0:
            stream.write(b"%d\n" % pid)
            stream.flush()
            _, status = os.waitpid(pid, 0)
            stream.write(b"%d\n" % os.waitstatus_to_exitcode(status))
            stream.flush()
            os._exit(0)
    _become(asked, out, err)


def _become(asked: Mapping[str, Any], out: int, err: int) -> None:
    """Be the process of a command."""
    for target, fd in ((1, out), (2, err)):
        os.dup2(fd, target)
        os.close(fd)
    os.environ.clear()
    os.environ.update(asked["env"])
    tempfile.tempdir = None
    sys.argv = ["-c", *asked["arguments"]]
    from pipeline.cli import main

    main()
