"""A member's part in the configuration that all share: what it follows, and what it reports of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anyio

from hostler.gateway.cluster.configuration import CHANNEL, ConfigurationFollower, DocumentStore
from hostler.gateway.cluster.store import Store
from hostler.gateway.cluster_settings import ClusterSettings
from hostler.gateway.cluster_view import ConfigurationKind, ConfigurationState
from hostler.gateway.shared_files import Apply


class SharedConfiguration:
    """Follows each kind of document by itself, since to apply profiles may take a while. `run` until cancelled.

    `state` is where a file of this name is kept; `on_state` is called when `states` have changed. Without a `token` nothing
    is followed.
    """

    scripts = DocumentStore.scripts

    def __init__(
        self,
        store: Store,
        settings: ClusterSettings,
        token: str | None,
        *,
        state: Callable[[str], Path],
        clock: Callable[[], float],
        on_state: Callable[[], None],
    ) -> None:
        self._documents = None if token is None else DocumentStore(store, token, settings.name)
        self._settings = settings
        self._state = state
        self._clock = clock
        self._on_state = on_state
        self._followers: list[ConfigurationFollower] = []
        store.on_connect(self._look)
        store.subscribe(CHANNEL, lambda _: self._look())

    @property
    def states(self) -> tuple[ConfigurationState, ...]:
        """What this member has made of each kind that it takes."""
        return tuple(each.state for each in self._followers)

    def follow(self, kind: ConfigurationKind, apply: Apply) -> None:
        """Have `apply` use the documents of a kind. To be called before `run`."""
        if self._documents is not None and kind in self._settings.accept:
            file = self._state(f"cluster-{self._settings.name}-{kind}.json")
            follower = ConfigurationFollower(
                self._documents, kind, apply, file=file, clock=self._clock, on_state=self._on_state
            )
            self._followers.append(follower)
            self._on_state()

    async def run(self) -> None:
        async with anyio.create_task_group() as tasks:
            for each in self._followers:
                tasks.start_soon(each.run)

    def _look(self) -> None:
        for each in self._followers:
            each.look()
