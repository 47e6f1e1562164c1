"""The last known models of every machine, on disk, so that those of a sleeping one are listed after a restart."""

from __future__ import annotations

from pathlib import Path

import msgspec

from hostler.adapters.remote_models import RemoteModel
from hostler.supervisor.contract import ProfileInfo
from hostler.supervisor.state_store import JsonStore


class _Contents(msgspec.Struct, frozen=True, kw_only=True):
    hosts: dict[str, tuple[ProfileInfo, ...]] = {}
    servers: dict[str, tuple[RemoteModel, ...]] = {}


class HostCache:
    """Without a file nothing is kept. A file that cannot be read or written is logged, and raises nothing."""

    def __init__(self, file: Path | None) -> None:
        self._store = JsonStore(file, _Contents, contents="models of sleeping hosts")
        self._contents = self._store.read() or _Contents()

    def profiles(self, backend: str) -> tuple[ProfileInfo, ...]:
        """The last known profiles of a host; empty if it was never reached."""
        return self._contents.hosts.get(backend, ())

    def update(self, backend: str, profiles: tuple[ProfileInfo, ...]) -> None:
        if self._store.file is None or self.profiles(backend) == profiles:
            return
        self._contents = msgspec.structs.replace(self._contents, hosts={**self._contents.hosts, backend: profiles})
        self._store.write(lambda: self._contents)

    def models(self, backend: str) -> tuple[RemoteModel, ...]:
        """The last known models of a backend without a supervisor."""
        return self._contents.servers.get(backend, ())

    def update_models(self, backend: str, models: tuple[RemoteModel, ...]) -> None:
        if self._store.file is None or self.models(backend) == models:
            return
        self._contents = msgspec.structs.replace(self._contents, servers={**self._contents.servers, backend: models})
        self._store.write(lambda: self._contents)
