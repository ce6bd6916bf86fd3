"""Schedulers that stand already: which files and addresses are taken, before anybody is spoken to."""

from __future__ import annotations

from pathlib import Path

import pytest

from manifests.errors import ConfigError, RefusedError
from pipeline import dask_sites
from pipeline.cluster_config import ClusterConfig, TlsSettings
from pipeline.dask_sites import look_at_standing, security_of


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_sites, "CONNECT_S", 1)


def pem(folder: Path) -> TlsSettings:
    """Three files that nobody else may read; what is in them is not looked at here."""
    files = {name: folder / f"{name}.pem" for name in ("ca", "cert", "key")}
    for file in files.values():
        file.touch(0o600)
    return TlsSettings(**files)


@pytest.mark.parametrize("address", ["tcp://192.0.2.1:8786", "tcp://[2001:db8::1]:8786", "tcp://nowhere.invalid:8786"])
def test_unencrypted_scheduler_on_another_machine_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"is on another machine and not encrypted.*--insecure"):
        look_at_standing(ClusterConfig(scheduler=address))


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "tcp://127.1.2.3:9", "tcp://localhost:9", "tcp://[::1]:9"])
def test_scheduler_of_this_machine_that_does_not_answer_is_named(address: str) -> None:
    with pytest.raises(RefusedError, match=f"The scheduler at {address.replace('[', '.').replace(']', '.')} cannot be"):
        look_at_standing(ClusterConfig(scheduler=address))


def test_scheduler_that_wants_certificates_is_refused_without_them() -> None:
    with pytest.raises(ConfigError, match=r"tls://192\.0\.2\.1:8786 wants certificates"):
        look_at_standing(ClusterConfig(scheduler="tls://192.0.2.1:8786", insecure=True))


def test_scheduler_file_that_is_not_there_is_named_with_the_way_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.json cannot be read: No such file.*--scheduler-file"):
        look_at_standing(ClusterConfig(scheduler_file=tmp_path / "nowhere.json"))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "{}", '{"id": 3}', "\udcff"])
def test_scheduler_file_with_something_else_in_it_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=r"s\.json is no scheduler file"):
        look_at_standing(ClusterConfig(scheduler_file=tmp_path / "s.json"))


def test_address_in_a_scheduler_file_is_checked_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"address": "tcp://192.0.2.1:8786"}')
    with pytest.raises(ConfigError, match="not encrypted"):
        look_at_standing(ClusterConfig(scheduler_file=tmp_path / "s.json"))


@pytest.mark.parametrize("name", ["ca", "cert", "key"])
def test_certificate_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    tls = pem(tmp_path)
    getattr(tls, name).unlink()
    with pytest.raises(ConfigError, match=rf"cluster\.tls\.{name} = '.*{name}\.pem' is no file"):
        security_of(ClusterConfig(tls=tls))


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o660, 0o602, 0o601])
def test_key_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    tls = pem(tmp_path)
    assert tls.key is not None
    tls.key.chmod(mode)
    with pytest.raises(ConfigError, match=r"Others may read the private key.*chmod 600"):
        security_of(ClusterConfig(tls=tls))


def test_every_role_shows_the_same_certificate_and_demands_encryption(tmp_path: Path) -> None:
    tls = pem(tmp_path)
    security = security_of(ClusterConfig(tls=tls))
    assert security.require_encryption
    for role in ("client", "scheduler", "worker"):
        shown = security.get_tls_config_for_role(role)
        assert (shown["ca_file"], shown["cert"], shown["key"]) == (str(tls.ca), str(tls.cert), str(tls.key))
