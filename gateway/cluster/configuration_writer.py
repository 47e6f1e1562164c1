"""Publishes what a cluster's members share, and shows what each of them has made of it: for commands, which are no members."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import msgspec

from hostler.gateway.cluster.configuration import CHANNEL, DocumentStore, SharedDocument
from hostler.gateway.cluster.hosts import LIST, HostKeys, opened_host
from hostler.gateway.cluster.membership import Member, Signer
from hostler.gateway.cluster.store import BACKGROUND_LIMIT_S, Store, StoreAway
from hostler.gateway.cluster_settings import ClusterSettings, store_address
from hostler.gateway.cluster_view import ConfigurationKind, ConfigurationState
from hostler.gateway.shared_files import MAX_BYTES

#: How long a command waits for the store, in seconds.
_CONNECT_S = 5.0
#: How long members have to put back what the store has lost, and how often it is looked for, in seconds.
_PUT_BACK_S, _LOOK_S = 1.0, 0.05


class WriterError(Exception):
    """The store cannot be used, or the document not be published; the message says why, and what to do."""


class UnreadableDocument(WriterError):
    """What is in the store was not signed with this token, or is damaged."""


class MemberConfiguration(msgspec.Struct, frozen=True, kw_only=True):
    """What a member has in use: `member` is its name, `role` whether it is a gateway or a host."""

    member: str
    role: str
    configuration: tuple[ConfigurationState, ...]


class ConfigurationWriter:
    """The store of a cluster as one with its token sees it."""

    def __init__(self, store: Store, token: str, cluster: str) -> None:
        self._store = store
        self._documents = DocumentStore(store, token, cluster)
        self._gateways = Signer(token, cluster)
        self._hosts = HostKeys(token, cluster).signer

    async def current(self, kind: ConfigurationKind) -> SharedDocument | None:
        """The document in the store. Raises `UnreadableDocument`, and `WriterError`."""
        try:
            mark, record = await self._documents.read(kind)
        except StoreAway:
            raise WriterError(self._away()) from None
        document = self._documents.opened(kind, record)
        if document is None and mark:
            raise UnreadableDocument(
                f"the shared {kind} in the store are damaged or signed with another token than cluster.token; correct "
                f"the token, or publish them again: hostler config push {kind} FILE"
            )
        return document

    async def publish(self, kind: ConfigurationKind, text: str, *, by: str, base: int | None = None) -> SharedDocument:
        """Publish a text as the newest version. With `base`, only if the one before it has that version. Raises `WriterError`."""
        if len(text.encode()) > MAX_BYTES:
            raise WriterError(f"{len(text.encode()):,} bytes are too many; at most {MAX_BYTES:,} are shared of a kind")
        try:
            mark, record = await self._documents.read(kind)
            states = [state for each in await self.members() for state in each.configuration if state.kind == kind]
            found = self._documents.opened(kind, record)
            known = 0 if found is None else found.version
            newest = max([known, *(max(state.version, state.refused) for state in states)])
            if base is not None and base != newest:
                raise WriterError(f"{kind} have version {newest} by now, not {base}; look at it and change it again")
            if newest and not mark:
                mark, found = await self._put_back(kind)
            # After what is known, also where a clock is behind.
            at = max(round(time.time(), 3), 0.0 if found is None else round(found.at + 0.001, 3))
            document = SharedDocument(kind=kind, version=newest + 1, at=at, by=by, text=text)
            if not await self._documents.write(kind, self._documents.signed(document), mark):
                raise WriterError(f"{kind} were changed by another one at the same time; look at them and try again")
        except StoreAway:
            raise WriterError(self._away()) from None
        return document

    async def _put_back(self, kind: ConfigurationKind) -> tuple[str, SharedDocument | None]:
        """What members put into a store that has lost what they use, if they do so at once; as `DocumentStore.read`."""
        mark, record = "", b""
        await self._store.execute("PUBLISH", self._store.prefix + CHANNEL, kind, limit_s=BACKGROUND_LIMIT_S)
        with anyio.move_on_after(_PUT_BACK_S):
            while not mark:
                await anyio.sleep(_LOOK_S)
                mark, record = await self._documents.read(kind)
        return mark, self._documents.opened(kind, record)

    async def members(self) -> list[MemberConfiguration]:
        """All members, by their roles and names. Raises `StoreAway`."""
        found = []
        for record in await self._records("gateways", "gateway:"):
            member = self._gateways.decoded(record, Member)
            if member is not None:
                found.append(
                    MemberConfiguration(member=member.name, role="gateway", configuration=member.configuration)
                )
        for record in await self._records("hosts", "host:"):
            host = opened_host(self._hosts, record)
            if host is not None:
                found.append(MemberConfiguration(member=host.name, role="host", configuration=host.configuration))
        return sorted(found, key=lambda each: (each.role, each.member))

    async def states(self) -> list[MemberConfiguration]:
        """See `members`. Raises `WriterError`."""
        try:
            return await self.members()
        except StoreAway:
            raise WriterError(self._away()) from None

    async def _records(self, index: str, prefix: str) -> list[bytes]:
        found: list[bytes] = await self._store.run_script(
            LIST, [index], self._store.prefix + prefix, limit_s=BACKGROUND_LIMIT_S
        )
        return found

    def _away(self) -> str:
        return f"the cluster's store does not answer ({self._store.state.reason}); try again"


@asynccontextmanager
async def open_writer(settings: ClusterSettings, token: str) -> AsyncIterator[ConfigurationWriter]:
    """Connected to the store inside. Raises `WriterError`."""
    store = Store(
        store_address(settings.store),
        name=settings.name,
        scripts=(*DocumentStore.scripts, LIST),
        clock=time.monotonic,
        wall=time.time,
    )
    connected = anyio.Event()
    store.on_connect(connected.set)
    failure: WriterError | None = None
    async with store.running():  # an error would leave it in a group
        with anyio.move_on_after(_CONNECT_S):
            await connected.wait()
        if connected.is_set():
            try:
                yield ConfigurationWriter(store, token, settings.name)
            except WriterError as error:
                failure = error
        else:
            failure = WriterError(f"the cluster's store {settings.shown_store} does not answer: {store.state.reason}")
    if failure is not None:
        raise failure
