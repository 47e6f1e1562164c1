"""What a member reports of its certificate."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from fakes.certificates import make_pair

from hostler.gateway.cluster.certificate_file import CertificateFile


@pytest.fixture
def cert(tmp_path: Path) -> Path:
    return Path(make_pair(tmp_path, "gpu-box").cert)


def test_the_certificate_is_reported_without_the_rest_of_its_file(cert: Path) -> None:
    file, text = CertificateFile(str(cert)), cert.read_text()
    cert.write_text(
        f"of Ämilie\n{text}-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----\n", encoding="utf-8"
    )
    assert file.read() == text


def test_the_last_certificate_stays_while_the_file_has_none(cert: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    file = CertificateFile(str(cert))
    text = file.read()
    assert text is not None
    for content in (None, None, b"", b"\xff"):
        cert.unlink(missing_ok=True)
        if content is not None:
            cert.write_bytes(content)
        assert file.read() == text
    assert [record.getMessage().partition(": ")[2].partition(";")[0] for record in caplog.records] == [
        "No such file or directory",
        "no certificate is in it",
    ]
    cert.write_text(text)
    assert file.read() == text
