"""Self-signed certificates."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from hostler.gateway.cli.certificate import create_certificate


class Pair(NamedTuple):
    """The files of a certificate and its key."""

    cert: str
    key: str

    def pem(self) -> str:
        """The certificate's text."""
        return Path(self.cert).read_text()

    def take(self, file: str, other: Pair) -> None:
        """Replace the `cert` or the `key` by another pair's."""
        Path(getattr(other, file)).replace(getattr(self, file))


def make_pair(folder: Path, name: str) -> Pair:
    """Create NAME.crt and NAME.key for this machine."""
    cert, key = folder / f"{name}.crt", folder / f"{name}.key"
    create_certificate(cert, key, [name, "localhost", "127.0.0.1"])
    return Pair(str(cert), str(key))
