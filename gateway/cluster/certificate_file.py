"""The certificate that a member serves, as it reports it to the others."""

from __future__ import annotations

import logging
import re

from hostler.profiles.file_reading import FileTooLarge, home_path, read_limited
from hostler.supervisor.tls import MAX_CERTIFICATE, CertificateError, ServerCertificate

logger = logging.getLogger(__name__)

#: The first certificate of a file, which may contain its key as well.
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----\n?")


class CertificateFile:
    """A file with a certificate, and that with its key. The last one that could be read, and fits the key, stays, as the
    server goes on with it as well."""

    def __init__(self, cert: str, key: str) -> None:
        self._path, self._key = home_path(cert), key
        self._certificate: str | None = None
        self._problem = ""

    def read(self) -> str | None:
        """The certificate as PEM. Blocks."""
        found = None
        try:
            found = _CERTIFICATE.search(read_limited(self._path, MAX_CERTIFICATE).decode("utf-8", "replace"))
            problem = "" if found is not None else f"{self._path}: no certificate is in it"
            if found is not None and found[0] != self._certificate:
                ServerCertificate(str(self._path), self._key)
        except OSError as error:
            problem = f"{self._path}: {error.strerror or error}"
        except FileTooLarge as error:
            problem = f"{self._path}: {error}"
        except CertificateError as error:
            problem = str(error)
        if found is not None and not problem:
            self._certificate = found[0]
        elif problem != self._problem:
            logger.warning("%s; members of the cluster go on with the previous certificate", problem)
        self._problem = problem
        return self._certificate
