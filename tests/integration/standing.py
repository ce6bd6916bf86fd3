"""A Dask scheduler and workers that stand by themselves, started as docs/cluster.md says, and their certificates."""

from __future__ import annotations

import datetime
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests import documented
from tests.conftest import ROOT

WAIT_S = 90.0
"""Longest time that a test waits for a process to reach a point."""
Key = ec.EllipticCurvePrivateKey


@dataclass(frozen=True)
class Certificates:
    """Files in PEM form: an authority, a certificate that it signed, and that one's key."""

    ca: Path
    cert: Path
    key: Path

    @classmethod
    def make(cls, folder: Path) -> Self:
        """Write all three into a new folder; the key with mode 600."""
        folder.mkdir()
        files = cls(folder / "ca.pem", folder / "cert.pem", folder / "secret-key.pem")
        authority, own = (ec.generate_private_key(ec.SECP256R1()) for _ in "ab")
        files.ca.write_bytes(_signed("authority", authority, authority, is_authority=True))
        files.cert.write_bytes(_signed("medfocus", own, authority, is_authority=False))
        files.key.touch(0o600)
        plain = serialization.NoEncryption()
        files.key.write_bytes(own.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
        return files

    @property
    def documented(self) -> dict[str, str]:
        """The files by the names that docs/cluster.md gives them."""
        return {f"{name}.pem": str(getattr(self, name)) for name in ("ca", "cert", "key")}

    def config(self, file: Path) -> Path:
        """Write the documented configuration that names them, for `pipeline run --config`."""
        file.write_text(documented.configuration("[cluster.tls]", self.documented))
        return file


def _signed(name: str, key: Key, authority: Key, *, is_authority: bool) -> bytes:
    """A certificate for a key, in PEM form."""
    now = datetime.datetime.now(datetime.UTC)
    subject, issuer = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, n)]) for n in (name, "authority"))
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
    )
    return builder.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@dataclass
class StandingCluster:
    """A scheduler on the loopback interface and the workers that were started for it."""

    folder: Path
    certificates: Certificates
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        """What `--scheduler-file` names."""
        return self.folder / "scheduler.json"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes.values():
            kill_group(process)

    def start_scheduler(self, env: Mapping[str, str] | None = None) -> Self:
        """Start the scheduler, and return once its file is there."""
        self.folder.mkdir(exist_ok=True)
        self._start("scheduler", self._command("scheduler", "", {"10.1.0.1": "127.0.0.1"}), "--port", "0", env=env)
        self.wait_until(self.file.exists)
        return self

    def start_worker(
        self, name: str, *more: str, certificates: Certificates | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start one of the documented workers of one thread under a nanny, both of a process group of their own."""
        command = self._command("worker", "--nthreads 1", {"ib0": "lo"}, certificates)
        scratch = str(self.folder / name)
        self._start(name, command, "--name", name, "--nworkers", "1", "--local-directory", scratch, *more, env=env)
        return self.processes[name]

    def start_gpu_workers(self, count: int) -> None:
        """Start so many of the documented workers that offer a GPU."""
        command = self._command("worker", "--resources GPU=1", {"ib0": "lo"})
        self._start("gpu", command, "--nworkers", str(count), "--local-directory", str(self.folder / "gpu"))

    def _command(
        self, program: str, having: str, place: Mapping[str, str], certificates: Certificates | None = None
    ) -> list[str]:
        """A command of docs/cluster.md, in another place and with the files here."""
        replaced = {"shared/dask.json": self.file, **place, **(certificates or self.certificates).documented}
        return [sys.executable, "-m", "dask", program, *documented.command(f"dask {program}", having, replaced)]

    def start(self, env: Mapping[str, str] | None = None) -> Self:
        """Start the scheduler and the workers `one` and `two`, and return once both are there."""
        self.start_scheduler(env)
        for name in ("one", "two"):
            self.start_worker(name, env=env)
        self.wait_until(lambda: all("Registered to" in self.said(name) for name in ("one", "two")))
        return self

    def said(self, name: str) -> str:
        """What a process has printed."""
        return (self.folder / f"{name}.log").read_text()

    def stands(self) -> bool:
        """Whether every process that was started is still there."""
        return all(process.poll() is None for process in self.processes.values())

    def listens_on(self) -> list[str]:
        """The addresses of all ports that are open, one a port."""
        started = [psutil.Process(process.pid) for process in self.processes.values()]
        family = [process for parent in started for process in (parent, *parent.children(recursive=True))]
        sockets = [socket for process in family for socket in process.net_connections("inet")]
        return [socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN]

    def _start(self, name: str, command: list[str], *more: str, env: Mapping[str, str] | None = None) -> None:
        surroundings = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [*command, *more], cwd=ROOT, env=surroundings, stdout=log, stderr=log, start_new_session=True
            )

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Return once something is so; a process that ended meanwhile has failed the test."""
        end = time.monotonic() + WAIT_S
        while not ready():
            assert self.stands(), "\n".join(self.said(name) for name in self.processes)
            assert time.monotonic() < end
            time.sleep(0.1)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a process and all that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(WAIT_S)
