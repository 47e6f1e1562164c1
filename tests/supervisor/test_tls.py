"""Certificates: renewed while a server runs, and pinned by its clients."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
from fakes.certificates import Pair, make_pair

from hostler.supervisor.tls import CertificateError, ServerCertificate, pinned_context

pytestmark = pytest.mark.anyio


async def presented(server: ServerCertificate, client: ssl.SSLContext) -> bytes | None:
    """The certificate that a client gets from a server with this context."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server.context) as listening:
        port = listening.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname="any.name")
        try:
            found: bytes | None = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            return found
        finally:
            writer.close()
            await writer.wait_closed()


async def test_a_pinned_certificate_is_accepted_under_any_name_and_no_other_one_is(tmp_path: Path) -> None:
    own, other = make_pair(tmp_path, "own"), make_pair(tmp_path, "other")
    server = ServerCertificate(own.cert, own.key)
    assert await presented(server, pinned_context(own.cert)) == ssl.PEM_cert_to_DER_cert(own.pem())
    with pytest.raises(ssl.SSLCertVerificationError):
        await presented(server, pinned_context(other.cert))
    with pytest.raises(ssl.SSLCertVerificationError):
        await presented(server, ssl.create_default_context())


async def test_a_renewed_certificate_is_used_for_new_connections(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own, new = make_pair(tmp_path, "own"), make_pair(tmp_path, "new")
    both = tmp_path / "both.crt"
    both.write_text(own.pem() + new.pem())
    server, client = ServerCertificate(own.cert, own.key), pinned_context(str(both))
    before = await presented(server, client)
    own.take("cert", new)
    server.refresh()
    assert "keeping the previous certificate" in caplog.text
    assert await presented(server, client) == before
    own.take("key", new)
    server.refresh()
    assert await presented(server, client) not in (before, None)


def spoiled(pair: Pair, what: str) -> Pair:
    cert, key = Path(pair.cert), Path(pair.key)
    if what == "missing":
        cert.unlink()
    elif what == "no PEM":
        cert.write_text("nonsense")
    else:
        key.write_text(ENCRYPTED)
    return pair


@pytest.mark.parametrize(
    ("what", "words"),
    [("missing", "own.crt: cannot be read"), ("no PEM", "not PEM"), ("encrypted", "own.key is encrypted")],
)
def test_a_pair_that_cannot_be_used_is_named(tmp_path: Path, what: str, words: str) -> None:
    pair = spoiled(make_pair(tmp_path, "own"), what)
    with pytest.raises(CertificateError, match=words):
        ServerCertificate(pair.cert, pair.key)


@pytest.mark.parametrize("text", [None, "", "nonsense", "-----BEGIN CERTIFICATE-----\nx\n", "\xff"])
def test_a_pinned_certificate_has_to_be_one(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "a.crt"
    if text is not None:
        file.write_text(text, encoding="latin-1")
    with pytest.raises(CertificateError, match=r"a\.crt"):
        pinned_context(str(file))


#: A key with a password, made for this test.
ENCRYPTED = """-----BEGIN ENCRYPTED PRIVATE KEY-----
MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAh9OmCDJwMFdwICCAAw
DAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoEECJUwg68TO4firMp9qKba8kEgZDH
gqzdgcGfE+5pIHy60O+avXoXa9wc8f2ilG6MGdLsb7OLKoEahkGo3xKn5cBPTIVd
b9lW8c4Ch9UP3ytrwqXNH4l1gEXnh09ML4z6dneu9oPUyW8zPoUvrT+OBl3NU1e/
qxc9CK0G8E1Ql4f1/TwkA06bKvnS5owegBeUHnDhXGISr0VZq6WET2PhGGGDjPM=
-----END ENCRYPTED PRIVATE KEY-----
"""
