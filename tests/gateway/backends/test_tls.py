"""TLS contexts: what is trusted, and what the reason is where nothing can be."""

from __future__ import annotations

import ssl
from pathlib import Path

import certifi
import pytest

from hostler.adapters.errors import BackendUnavailable
from hostler.gateway.backends.tls import certificate_reason, tls_context
from hostler.gateway.backends.transport import TlsOptions


def test_a_server_is_verified_by_default_and_not_where_that_is_off() -> None:
    usual, insecure = tls_context(TlsOptions(), "b", {}), tls_context(TlsOptions(insecure=True), "b", {})
    assert (usual.verify_mode, usual.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert (insecure.verify_mode, insecure.check_hostname) == (ssl.CERT_NONE, False)


def test_a_ca_file_is_trusted_alone(tmp_path: Path) -> None:
    first = Path(certifi.where()).read_text().partition("-----END CERTIFICATE-----")
    file = tmp_path / "ca.pem"
    file.write_text(first[0] + first[1])
    context = tls_context(TlsOptions(ca_file=str(file)), "b", {"SSL_CERT_FILE": "/no/such/file"})
    assert context.cert_store_stats()["x509_ca"] == 1


@pytest.mark.parametrize(
    ("options", "environ", "words"),
    [
        (TlsOptions(), {"SSL_CERT_FILE": "/no/such.pem"}, "SSL_CERT_FILE names /no/such.pem"),
        (TlsOptions(), {"SSL_CERT_DIR": "/no/such"}, "SSL_CERT_DIR names /no/such"),
        (TlsOptions(ca_file="/no/ca.pem"), {}, "ca_file names /no/ca.pem"),
        (TlsOptions(client_cert_file="/no/c.pem"), {}, "client_cert_file names /no/c.pem"),
        (TlsOptions(client_cert_file=__file__, client_key_file="/no/k.pem"), {}, "client_key_file names /no/k.pem"),
        (TlsOptions(ca_file=__file__), {}, "certificates cannot be used"),
        (TlsOptions(client_cert_file=__file__), {}, "certificates cannot be used"),
    ],
)
def test_what_is_missing_is_named(options: TlsOptions, environ: dict[str, str], words: str) -> None:
    with pytest.raises(BackendUnavailable, match=words):
        tls_context(options, "b", environ)


def test_a_key_log_that_cannot_be_written_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", "/no/such/folder/keys")
    assert tls_context(TlsOptions(), "b", {}).verify_mode == ssl.CERT_REQUIRED


def test_a_rejected_certificate_is_found_behind_other_errors() -> None:
    cause = ssl.SSLCertVerificationError()
    cause.verify_message = "self-signed certificate"
    error = OSError("it failed")
    error.__cause__ = cause
    assert certificate_reason(error) == "its certificate is not valid: self-signed certificate"
    assert certificate_reason(OSError()) is None
