"""A supervisor as a member of a cluster: what it reports of its certificate."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.certificates import make_pair
from fakes.redis_server import needs_redis

from hostler.gateway.cluster.host_member import HostMember
from hostler.gateway.cluster_settings import ClusterSettings
from hostler.supervisor.config import SupervisorSettings, TLSSettings

pytestmark = needs_redis


@pytest.fixture
def cert(tmp_path: Path) -> Path:
    return Path(make_pair(tmp_path, "gpu-box").cert)


@pytest.fixture
def member(tmp_path: Path, cert: Path) -> Iterator[HostMember]:
    supervisor = SupervisorSettings(tls=TLSSettings(cert=str(cert), key=str(cert.with_suffix(".key"))))
    member = HostMember(
        ClusterSettings(store="redis://127.0.0.1:1"), supervisor, token="t", state=lambda name: tmp_path / name
    )
    yield member
    member.close()


def test_the_certificate_is_reported_without_the_rest_of_its_file(member: HostMember, cert: Path) -> None:
    text = cert.read_text()
    cert.write_text(
        f"of Ämilie\n{text}-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----\n", encoding="utf-8"
    )
    assert member._read_certificate() == text


def test_the_last_certificate_stays_while_the_file_has_none(
    member: HostMember, cert: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    text = member._read_certificate()
    assert text is not None
    for content in (None, None, b"", b"\xff"):
        cert.unlink(missing_ok=True)
        if content is not None:
            cert.write_bytes(content)
        assert member._read_certificate() == text
    assert [record.getMessage().partition(": ")[2].partition(";")[0] for record in caplog.records] == [
        "No such file or directory",
        "no certificate is in it",
    ]
    cert.write_text(text)
    assert member._read_certificate() == text
