"""What a member reports of its certificate."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from fakes.certificates import Pair, make_pair

from hostler.gateway.cluster.certificate_file import CertificateFile


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return make_pair(tmp_path, "gpu-box")


def test_the_certificate_is_reported_without_the_rest_of_its_file(pair: Pair) -> None:
    cert, key = Path(pair.cert), Path(pair.key)
    file, text = CertificateFile(str(cert), str(cert)), cert.read_text()
    cert.write_text(f"of Ämilie\n{text}{key.read_text()}", encoding="utf-8")
    assert file.read() == text


def test_the_last_certificate_stays_while_the_file_has_none(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    cert = Path(pair.cert)
    file = CertificateFile(pair.cert, pair.key)
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


def test_a_certificate_is_reported_once_its_key_is_there_as_well(
    pair: Pair, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = CertificateFile(pair.cert, pair.key)
    text = file.read()
    renewed = make_pair(tmp_path, "renewed")
    new_text = renewed.pem()
    pair.take("cert", renewed)
    assert file.read() == file.read() == text
    assert caplog.text.count("do not fit together") == 1
    pair.take("key", renewed)
    assert file.read() == new_text
