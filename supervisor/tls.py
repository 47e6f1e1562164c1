"""TLS of gateways and supervisors: certificates of servers, renewed while they run, and pinned ones of their clients."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from hostler.profiles.file_reading import FileTooLarge, home_path, read_limited

logger = logging.getLogger(__name__)

#: Bytes of a file with certificates, at most.
MAX_CERTIFICATE = 1024 * 1024


class CertificateError(Exception):
    """A certificate or its key cannot be used; the message names the file."""


class ServerCertificate:
    """A certificate and its key in PEM files. `context` serves new connections with the latest valid pair."""

    def __init__(self, cert: str, key: str) -> None:
        """Blocks. Raises `CertificateError`."""
        self._cert, self._key = home_path(cert), home_path(key)
        self._stamp = self._mark()
        self.context = self._load()

    def refresh(self) -> None:
        """Read the files again if they have changed. An invalid pair is logged, and the old one stays in use."""
        stamp = self._mark()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._load()  # a pair that does not match would be half loaded
            self.context.load_cert_chain(self._cert, self._key)
        except (CertificateError, OSError) as error:
            logger.error("%s; keeping the previous certificate", error)
        else:
            logger.info("%s: the new certificate is in use", self._cert)

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        for path in (self._cert, self._key):
            try:
                read_limited(path, MAX_CERTIFICATE)
            except (OSError, FileTooLarge) as error:
                reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                raise CertificateError(f"{path}: cannot be read: {reason}") from error
        try:
            # Without a password: the prompt for one would wait for a terminal.
            context.load_cert_chain(self._cert, self._key, password=_no_password)
        except (OSError, ValueError) as error:
            reason = (
                "is encrypted with a password"
                if isinstance(error, ValueError)
                else "do not fit together, or are not PEM"
            )
            files = self._key if isinstance(error, ValueError) else f"{self._cert} and {self._key}"
            raise CertificateError(f"{files} {reason}") from error
        return context

    def _mark(self) -> tuple[tuple[int, ...] | None, ...]:
        return _stamp_of(self._cert), _stamp_of(self._key)


def pinned_context(certificate: str) -> ssl.SSLContext:
    """A client's context that accepts exactly the certificates in this file, whatever names they have.

    Raises `CertificateError`.
    """
    path = home_path(certificate)
    try:
        return certificate_context(read_limited(path, MAX_CERTIFICATE).decode("ascii"))
    except FileTooLarge as error:
        raise CertificateError(f"{path}: the certificate cannot be read: {error}") from error
    except (OSError, ValueError) as error:
        reason = (
            error.strerror if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else "is no PEM file"
        )
        raise CertificateError(f"{path}: the certificate cannot be read: {reason}") from error


def certificate_context(text: str) -> ssl.SSLContext:
    """A client's context that accepts exactly these certificates, PEM, whatever names they have.

    Raises `ssl.SSLError` or `ValueError` for what are none.
    """
    if not text.isascii():
        raise ValueError("a certificate in PEM is ASCII")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False  # only the holder of the key has this certificate
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=text)
    return context


def _no_password() -> str:
    raise ValueError("no password")


def _stamp_of(path: Path) -> tuple[int, ...] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ctime_ns, stat.st_ino
