"""One gateway's connection: its requests for leases, and what it is sent. See `lease_frames` for the protocol."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Final

import anyio
import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hostler.supervisor.events import run_until
from hostler.supervisor.lease_frames import (
    DEAD_S,
    MAX_LEASES,
    MEDIA_TYPE,
    AskFrame,
    ErrorFrame,
    GrantFrame,
    HelloFrame,
    InvalidAsk,
    InvalidFrame,
    LostFrame,
    PlacesFrame,
    QueuePlace,
    RefuseFrame,
    ReleaseFrame,
    RequestFrame,
    RevokeFrame,
    SeedFrame,
    encode_frames,
    request_reader,
)
from hostler.supervisor.scheduling.lease import Lease
from hostler.supervisor.scheduling.types import RefusalReason, SchedulerSettings

if TYPE_CHECKING:
    from hostler.supervisor.lease_server import LeaseServer

#: What a gateway may leave unread, in bytes. It is disconnected as soon as there is more.
MAX_UNREAD: Final = 32 * 1024 * 1024

#: A gateway that takes none of so many bytes for `DEAD_S` seconds does not read.
PIECE: Final = 64 * 1024

#: With so many leases the place of a new one is sent with all others, not at once.
SHORT: Final = 50

#: Time to write what is left and to end the stream properly, in seconds.
LAST_WRITE_S: Final = 0.5

#: When a gateway that has too many leases may ask for one again, in seconds.
_RETRY_S: Final = 1.0

logger = logging.getLogger(__name__)


class LeaseSession(Response):
    """The response to `POST /leases`: a stream of frames for as long as the connection lasts.

    `limits` are the gateway's, once it has introduced itself; `heard_at` is when it last sent anything.
    """

    media_type = MEDIA_TYPE

    def __init__(self, server: LeaseServer, stopping: anyio.Event) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._server = server
        self._stopping = stopping
        self._leases: dict[int, Lease] = {}
        self._instance: str | None = None
        self._name = ""
        self._outbox: list[bytes] = []
        self._unread = 0
        self._writing_at: float | None = None
        self._wanted = anyio.Event()
        self._written: anyio.Event | None = None
        self._scope = anyio.CancelScope()
        self.peer = ""
        self.limits: SchedulerSettings | None = None
        self.heard_at = self._server.clock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.peer = (scope.get("client") or ("an unknown address",))[0]
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            with self._server.opened(self), self._scope:
                await self._serve(receive, send)
        finally:
            if self._instance is not None:
                self._server.leave(self, self._instance)
                logger.info("gateway %s disconnected", self._name)
        with anyio.move_on_after(LAST_WRITE_S):
            await send({"type": "http.response.body", "body": b""})

    async def _serve(self, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._write, send)
            await run_until(self._stopping, partial(self._read, receive))
            with anyio.move_on_after(LAST_WRITE_S):
                await self._flush()
            tasks.cancel_scope.cancel()

    async def _read(self, receive: Receive) -> None:
        reader = request_reader()
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return
            more = message.get("more_body", False)
            self.heard_at = self._server.clock()
            try:
                for frame in reader.feed(message.get("body", b"")):
                    self._on_frame(frame)
            except InvalidFrame as error:
                logger.warning("gateway %s at %s is disconnected: %s", self._name or "?", self.peer, error)
                self.send(encode_frames([ErrorFrame(str(error))]))
                return

    async def _write(self, send: Send) -> None:
        while True:
            if not self._outbox:
                if self._written is not None:
                    self._written.set()
                self._wanted = anyio.Event()
                await self._wanted.wait()
            body = b"".join(self._outbox)
            self._outbox.clear()
            for start in range(0, len(body), PIECE):
                piece = body[start : start + PIECE]
                self._writing_at = self._server.clock()
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                self._writing_at = None
                self._unread -= len(piece)

    async def _flush(self) -> None:
        """Wait until everything is written."""
        self._written = anyio.Event()
        self._wanted.set()
        await self._written.wait()

    # Called by the server.

    def send(self, data: bytes) -> None:
        """Send encoded frames, without waiting for the gateway to read them."""
        self._unread += len(data)
        if self._unread > MAX_UNREAD:
            self.close("it reads too slowly")
            return
        self._outbox.append(data)
        if not self._wanted.is_set():
            self._wanted.set()

    def close(self, reason: str) -> None:
        """End the connection."""
        if not self._scope.cancel_called:
            logger.warning("gateway %s at %s is disconnected: %s", self._name or "?", self.peer, reason)
            self._scope.cancel()

    def check(self, now: float) -> None:
        """End the connection if it went silent, or takes nothing."""
        if self._writing_at is not None and now - self._writing_at > DEAD_S:
            self.close("it does not read")
        if now - self.heard_at > self._server.silence_s:
            self.close(f"silent for {self._server.silence_s:g} s")

    def excuse(self, now: float) -> None:
        """What the gateway has not done before now says nothing of it."""
        self.heard_at = now
        if self._writing_at is not None:
            self._writing_at = now

    def take_leases(self) -> dict[int, Lease]:
        """Hand over all leases."""
        leases, self._leases = self._leases, {}
        for lease in leases.values():
            lease.on_change = None
        return leases

    def adopt(self, number: int, lease: Lease) -> None:
        """The gateway still holds this lease of its earlier connection."""
        self._leases[number] = lease
        lease.on_change = partial(self._on_change, number)
        if lease.revoked is not None:
            self._on_change(number, lease)

    def send_places(self) -> None:
        """Send where the queued leases are."""
        places = tuple(self._places())
        if places:
            self.send(encode_frames([PlacesFrame(places, whole=True)]))

    def _places(self) -> Iterator[QueuePlace]:
        for number, lease in self._leases.items():
            if not lease.settled:
                yield QueuePlace(number, *self._server.host.place(lease))

    # Frames.

    def _on_frame(self, frame: RequestFrame | InvalidAsk) -> None:
        if self._instance is None:
            if not isinstance(frame, HelloFrame):
                raise InvalidFrame("the first frame must be hello")
            self._instance, self._name, self.limits = frame.instance, frame.name, frame.limits
            self._server.join(self, frame)
        elif isinstance(frame, AskFrame):
            self._ask(frame)
        elif isinstance(frame, ReleaseFrame):
            lease = self._leases.pop(frame.id, None)
            if lease is not None:
                lease.on_change = None
                if frame.answered and lease.granted:
                    lease.report_answer(frame.usage)
                elif frame.timed_out and lease.granted:
                    lease.report_timeout()
                lease.release()
                self._server.mark_changed()
        elif isinstance(frame, InvalidAsk):
            logger.warning("gateway %s at %s is refused a lease: %s", self._name, self.peer, frame.problem)
            self._refuse(frame.id, "invalid")
        elif isinstance(frame, LostFrame):
            self._server.engine_lost(frame.model, frame.generation)
        elif isinstance(frame, SeedFrame):
            self._server.seed_service_times(frame.answers)
        elif isinstance(frame, HelloFrame):
            raise InvalidFrame("a second hello")

    def _ask(self, frame: AskFrame) -> None:
        if self._server.closing:
            self._refuse(frame.id, "stopping")
            return
        if len(self._leases) >= MAX_LEASES:
            self._refuse(frame.id, "queue_full", _RETRY_S)
            return
        self._check_unused(frame.id)
        lease = self._server.host.lease(
            frame.model,
            client=self._client(frame.client),
            request_id=frame.request_id,
            keep_alive_s=frame.keep_alive_s,
            priority=frame.priority,
            prompt=frame.prompt,
            waited_s=frame.waited_s,
            client_port=frame.client_port,
            background=frame.background,
        )
        self._leases[frame.id] = lease
        lease.on_change = partial(self._on_change, frame.id)
        if lease.settled:
            self._on_change(frame.id, lease)
        elif len(self._leases) < SHORT:
            self.send(encode_frames([PlacesFrame((QueuePlace(frame.id, *self._server.host.place(lease)),))]))
        self._server.mark_changed()

    def _refuse(self, number: int, reason: RefusalReason, retry_after_s: float = 0.0) -> None:
        self._check_unused(number)
        self.send(encode_frames([RefuseFrame(number, reason, retry_after_s)]))

    def _check_unused(self, number: int) -> None:
        if number in self._leases:
            raise InvalidFrame(f"lease {number} exists")

    def _client(self, name: str) -> str:
        """The client's name among those of all gateways. One without a key is named by its address, and a loopback address
        means another machine at every gateway."""
        if not _is_loopback(name):
            return name
        return f"{name} at {self._name if _is_loopback(self.peer) else self.peer}"

    def _on_change(self, number: int, lease: Lease) -> None:
        """The lease was settled or revoked."""
        frame: msgspec.Struct
        if lease.revoked is not None:
            frame = RevokeFrame(number, lease.revoked)
        elif lease.granted:
            frame = GrantFrame(number, lease.address(), lease.waited_s, lease.switch_s, lease.slot)
        else:
            refusal = lease.refusal
            del self._leases[number]
            lease.release()
            frame = RefuseFrame(
                number,
                "host_gone" if refusal is None else refusal.reason,
                0.0 if refusal is None else refusal.retry_after_s,
                None if refusal is None else refusal.failure,
                lease.waited_s,
                lease.switch_s,
                None if refusal is None else refusal.model_lease,
            )
        self.send(encode_frames([frame]))


def _is_loopback(address: str) -> bool:
    if not address.startswith("127.") and ":" not in address:
        return False  # as for most names
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback
