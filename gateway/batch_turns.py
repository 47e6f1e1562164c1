"""Whose requests those of batches are, and when they have to wait for the requests of clients."""

from __future__ import annotations

from hostler.adapters.errors import GatewayError
from hostler.gateway.batches.records import Batch
from hostler.gateway.context import Client
from hostler.gateway.in_flight import OtherProcesses
from hostler.gateway.serving import ServingComponents


class BatchTurns:
    """When it is a batch's turn at what serves models; `others` are the worker processes."""

    def __init__(self, serving: ServingComponents, others: OtherProcesses | None) -> None:
        self._serving = serving
        self._others = others

    def client_of(self, batch: Batch) -> Client | None:
        """Whose requests those of a batch are; `None` if the key is no longer valid."""
        keys = self._serving.keys
        if keys is None:
            return Client(name=batch.client)
        for record in keys.records():
            client = keys.client_of_hash(record.hash)
            if client is not None and batch.owner == f"{client.name} {client.identity}" and "infer" in client.scopes:
                return client
        return None

    def must_wait(self, model: str) -> bool:
        """Whether batches wait with requests for the model: a local server without a supervisor that has it serves others, or
        a host that may have it has not been reached yet."""
        serving = self._serving
        try:
            places = serving.catalog.find(model).places
        except GatewayError:
            return not serving.catalog.unknown_hosts.isdisjoint(serving.hosts)
        servers = {
            each.backend for each in places if each.backend not in serving.hosts and self._is_local(each.backend)
        }
        busy = {
            context.target.backend
            for context in serving.in_flight.contexts()
            if not context.background and context.target is not None
        }
        if self._others is not None:
            busy |= {view.backend for view in self._others.views() if view.backend is not None}
        return not busy.isdisjoint(servers)

    def _is_local(self, backend: str) -> bool:
        hop = self._serving.chain.hops.get(backend)
        return hop is not None and hop.local
