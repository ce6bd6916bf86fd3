"""A Dask scheduler and workers that stand by themselves, each a process, and the certificates they show each other."""

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

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

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
    def options(self) -> list[str]:
        """For `dask scheduler` and `dask worker`."""
        return ["--tls-ca-file", str(self.ca), "--tls-cert", str(self.cert), "--tls-key", str(self.key)]

    def config(self, file: Path, more: str = "") -> Path:
        """Write a configuration that names them, for `pipeline run --config`."""
        tls = "".join(f'{name} = "{getattr(self, name)}"\n' for name in ("ca", "cert", "key"))
        file.write_text(f"{more}\n[cluster.tls]\n{tls}")
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
        self._start("scheduler", "--protocol", "tls", "--port", "0", *self.certificates.options, env=env)
        self.wait_until(self.file.exists)
        return self

    def start_worker(
        self, name: str, *more: str, certificates: Certificates | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start one worker of one thread under a nanny, both of a process group of their own."""
        files, scratch = certificates or self.certificates, str(self.folder / name)
        self._start(
            name, "--name", name, "--nthreads", "1", "--local-directory", scratch, *files.options, *more, env=env
        )
        return self.processes[name]

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

    def _start(self, name: str, *options: str, env: Mapping[str, str] | None = None) -> None:
        module = f"distributed.cli.dask_{'scheduler' if name == 'scheduler' else 'worker'}"
        command = [sys.executable, "-m", module, "--scheduler-file", str(self.file), "--host", "127.0.0.1"]
        surroundings = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [*command, "--no-dashboard", *options],
                cwd=ROOT, env=surroundings, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

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
