"""The names of gateways that are, or were, in the cluster, so that errors can name one that is away."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from hostler.gateway.cluster.membership import Member
from hostler.supervisor.state_store import JsonStore

#: Gateways whose names are kept, at most; those that were seen last.
_MAX_NAMES = 200


class _Names(msgspec.Struct, frozen=True):
    names: dict[str, str] = {}


class GatewayNames:
    """Names by ids, kept in `file` over restarts."""

    def __init__(self, file: Path | None) -> None:
        self._file = JsonStore(file, _Names, contents="names of gateways")
        self._names: dict[str, str] = dict((self._file.read() or _Names()).names)

    def find(self, gateway: str) -> str | None:
        """The name of the gateway with an id; `None` if it was never seen."""
        return self._names.get(gateway)

    def add(self, members: Iterable[Member]) -> None:
        """Keep the names of these. Writes a file if any is new."""
        before, present = self._names, {member.id: member.name for member in members}
        names = {gateway: name for gateway, name in before.items() if gateway not in present} | present
        self._names = dict(list(names.items())[-_MAX_NAMES:])
        if self._names != before:
            self._file.write(lambda: _Names(self._names))
