"""The certificate that a member serves, as it reports it to the others."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from hostler.profiles.file_reading import FileTooLarge, read_limited
from hostler.supervisor.tls import MAX_CERTIFICATE

logger = logging.getLogger(__name__)

#: The first certificate of a file, which may contain its key as well.
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----\n?")


class CertificateFile:
    """A file with a certificate. The last one that could be read stays, as the server goes on with it as well."""

    def __init__(self, path: str) -> None:
        self._path = Path(path).expanduser()
        self._certificate: str | None = None
        self._unreadable = ""

    def read(self) -> str | None:
        """The certificate as PEM. Blocks."""
        try:
            found = _CERTIFICATE.search(read_limited(self._path, MAX_CERTIFICATE).decode("utf-8", "replace"))
            reason = "" if found is not None else "no certificate is in it"
        except OSError as error:
            found, reason = None, str(error.strerror or error)
        except FileTooLarge as error:
            found, reason = None, str(error)
        if found is not None:
            self._certificate = found[0]
        elif reason != self._unreadable:
            logger.warning("%s: %s; members of the cluster go on with the previous certificate", self._path, reason)
        self._unreadable = reason
        return self._certificate
