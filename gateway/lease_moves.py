"""Moves queued requests to other hosts that serve them sooner: with a second ticket there, until either is granted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import anyio

from hostler.gateway.context import RequestContext, Target
from hostler.gateway.conversation_hints import ConversationHints, with_hint
from hostler.gateway.gateway_settings import PlacementSettings
from hostler.gateway.host_ranking import better_host, is_replica, needs_load
from hostler.supervisor.scheduling.host import Host
from hostler.supervisor.scheduling.lease import Lease
from hostler.supervisor.scheduling.views import HostOffer

#: How often queued requests are looked at, in seconds, and how many of each model at most: the oldest.
_LOOK_EVERY_S: Final = 0.1
_LOOKED_AT: Final = 50

#: Asks a host for a lease of a target's model, with all that the first ticket said.
Ask = Callable[[Host, Target], Lease]


class MovedElsewhere(Exception):
    """A queued request was granted a lease at another target. Not an error: no client sees it."""

    def __init__(self, target: Target, lease: Lease) -> None:
        super().__init__(target.backend)
        self.target = target
        self.lease = lease


class QueuedLease:
    """A queued lease that may be granted elsewhere first."""

    def __init__(self, context: RequestContext, lease: Lease, ask: Ask) -> None:
        self.context = context
        self.lease = lease
        self._ask = ask
        self._refused_by: set[str] = set()
        self.second: Lease | None = None
        self._target: Target | None = None

    def targets(self) -> list[Target]:
        """Where else it may be served."""
        return [each for each in self.context.alternatives if each.backend not in self._refused_by]

    def ask_at(self, host: Host, target: Target) -> None:
        """Take a second ticket."""
        self._target, self.second = target, self._ask(host, target)
        self.second.on_change = self._on_change
        if self.second.settled:
            self._on_change(self.second)

    def _on_change(self, second: Lease) -> None:
        if second.granted:
            self.lease.notify()  # its request looks at `check_moved`
        elif self._target is not None:
            self._refused_by.add(self._target.backend)
            self.withdraw()

    def check_moved(self) -> None:
        """Raise `MovedElsewhere` with the second lease if it was granted; whoever catches that releases it."""
        second, target = self.second, self._target
        if second is not None and target is not None and second.granted:
            second.on_change = None
            self.second = None
            raise MovedElsewhere(target, second)

    def withdraw(self) -> None:
        """Give the second ticket back."""
        second, self.second = self.second, None
        if second is not None:
            second.on_change = None
            second.release()


class LeaseMoves:
    """Owner of the requests that are queued at hosts. `run` until cancelled."""

    def __init__(self, hosts: Mapping[str, Host], settings: PlacementSettings, clock: Callable[[], float]) -> None:
        self._hosts = hosts
        self._settings = settings
        self._clock = clock
        self.hints: ConversationHints | None = None
        self._queued: dict[str, dict[QueuedLease, None]] = {}
        self._some = anyio.Event()

    @contextmanager
    def queued(self, context: RequestContext, lease: Lease, ask: Ask) -> Iterator[QueuedLease]:
        """The lease may be moved while this context lasts, unless it is of background work."""
        entry = QueuedLease(context, lease, ask)
        if not context.alternatives or context.background:
            yield entry
            return
        self._queued.setdefault(lease.model, {})[entry] = None
        self._some.set()
        try:
            yield entry
        finally:
            of_model = self._queued[lease.model]
            del of_model[entry]
            if not of_model:
                del self._queued[lease.model]
            entry.withdraw()

    def replica_keep_alive_s(self, backend: str, targets: tuple[Target, ...]) -> float | None:
        """How long a model stays loaded after a request at this host if it is a replica there; `None` if it is none."""
        names = {each.backend for each in targets}
        if len(names) < 2 or (host := self._hosts.get(backend)) is None:
            return None
        model = next(each.model for each in targets if each.backend == backend)
        # In the order of the configuration, which is the same for all requests.
        offers = {name: each.offer(model) for name, each in self._hosts.items() if name in names}
        if not is_replica(backend, offers):
            return None
        profiles = () if host.status is None else host.status.profiles
        own_s = next((each.ttl_s for each in profiles if each.name == model), None)
        return self._settings.replica_idle_s if own_s is None else min(own_s, self._settings.replica_idle_s)

    async def run(self) -> None:
        """Look for better hosts until cancelled."""
        while True:
            await self._some.wait()
            self._some = anyio.Event()
            while self._queued:
                self.look()
                await anyio.sleep(_LOOK_EVERY_S)

    def look(self) -> None:
        """Take second tickets where they are of use. The oldest requests come first, and one load at a time is begun for
        each model."""
        for model, entries in list(self._queued.items()):
            offers: dict[str, HostOffer] = {}
            loads = any(each.second is not None and not each.second.settled for each in entries)
            for entry in list(entries)[:_LOOKED_AT]:
                if entry.second is None and not entry.lease.settled:
                    loads = self._look_for(entry, model, offers, loads=loads) or loads

    def _look_for(self, entry: QueuedLease, model: str, offers: dict[str, HostOffer], *, loads: bool) -> bool:
        """Returns whether a load was begun for the entry."""
        progress = entry.lease.progress()
        if progress.position is None:
            return False  # its host has not queued it: it is about to be granted there
        targets = {each.backend: each for each in entry.targets() if each.backend in self._hosts}
        own, prompt = entry.context.current.target.backend, entry.context.prompt
        if prompt is not None and prompt.marks:
            offers = {}  # they depend on the conversation
        for name in (*targets, own):
            if name not in offers:
                offers[name] = self._hosts[name].offer(model, prompt)
        shown = with_hint({name: offers[name] for name in (*targets, own)}, model, prompt, self.hints)
        chosen = better_host(
            shown[own],
            {name: shown[name] for name in targets},
            waited_s=self._clock() - entry.lease.requested_at,
            rest_s=progress.eta_s,
            replica_wait_s=self._settings.replica_wait_s,
            may_load=not loads,
        )
        if chosen is None:
            return False
        begins_load = needs_load(offers.pop(chosen))  # it has one request more from now on
        entry.ask_at(self._hosts[chosen], targets[chosen])
        return begins_load
