"""HTTP clients for the other gateways of a cluster, each kept while its gateway is there at the same address."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

import anyio
import anyio.to_thread
import httpx

from hostler.gateway.cluster.membership import Member
from hostler.supervisor.tls import certificate_context

#: Gateways close idle connections later, so that none is used that is just being closed.
_LIMITS: Final = httpx.Limits(max_connections=None, max_keepalive_connections=4, keepalive_expiry=2.0)


class _Peer:
    """`users` are requests that have not ended; a client that is `retired` is closed after the last one."""

    def __init__(self, client: httpx.AsyncClient, address: tuple[str | None, str | None]) -> None:
        self.client = client
        self.address = address
        self.users = 0
        self.retired = False


class PeerConnections:
    """`members` are the gateways of the cluster by their ids. To be closed at the end."""

    def __init__(self, members: Callable[[], Mapping[str, Member]]) -> None:
        self._members = members
        self._peers: dict[str, _Peer] = {}

    @asynccontextmanager
    async def client(self, member: Member) -> AsyncIterator[httpx.AsyncClient]:
        """The client for a gateway; its certificate is the one that it has reported."""
        verify: ssl.SSLContext | bool = False
        if not self._is_known(member):
            # Certificates take a while to be read.
            verify = await anyio.to_thread.run_sync(_verification, member)
        before = self._peers.get(member.id)
        if not self._is_known(member):  # no other request has made it meanwhile
            client = httpx.AsyncClient(verify=verify, trust_env=False, follow_redirects=False, limits=_LIMITS)
            self._peers[member.id] = _Peer(client, _address(member))
        peer = self._peers[member.id]
        peer.users += 1
        try:
            if before is not None and before is not peer:
                await _retire(before)
            yield peer.client
        finally:
            peer.users -= 1
            if peer.retired and not peer.users:
                await _close(peer)

    async def close_stale(self) -> None:
        """Close the clients for gateways that have left, or have another address or certificate by now."""
        members = self._members()
        kept = {
            member_id: peer
            for member_id, peer in self._peers.items()
            if (member := members.get(member_id)) is not None and _address(member) == peer.address
        }
        stale = [peer for member_id, peer in self._peers.items() if member_id not in kept]
        self._peers = kept
        for peer in stale:
            await _retire(peer)

    async def aclose(self) -> None:
        """Close all clients."""
        peers, self._peers = self._peers, {}
        for peer in peers.values():
            await _retire(peer)

    def _is_known(self, member: Member) -> bool:
        peer = self._peers.get(member.id)
        return peer is not None and peer.address == _address(member)


async def _retire(peer: _Peer) -> None:
    peer.retired = True
    if not peer.users:
        await _close(peer)


async def _close(peer: _Peer) -> None:
    with anyio.CancelScope(shield=True):
        await peer.client.aclose()


def _address(member: Member) -> tuple[str | None, str | None]:
    return member.url, member.certificate


def _verification(member: Member) -> ssl.SSLContext | bool:
    if member.certificate is not None:
        return certificate_context(member.certificate)
    return member.url is not None and not member.url.startswith("http://") and httpx.create_ssl_context(trust_env=False)
