"""A WebSocket connection to a backend, and the bytes between it and a client.

Messages are passed on as they are: subprotocols, pings and close codes are between the two ends. So are extensions, unless a
backend's key has to be removed from its messages: compression would hide it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping

from hostler.adapters.errors import BackendBroken, BackendTimeout, BackendUnavailable, UpgradeRequired
from hostler.adapters.redaction import Redactor
from hostler.gateway.asgi import ByteStream
from hostler.gateway.backends.tls import DEFAULT_TLS, tls_context
from hostler.gateway.backends.transport import Endpoint, Timeouts
from hostler.gateway.backends.websocket_frames import GOING_AWAY, INTERNAL_ERROR, FrameScanner, close_frame

#: Unread bytes of each side above which that side has to wait, and the largest head of a backend's answer.
BUFFER_BYTES = 64 * 1024
#: How long one side may read nothing of what the other one sends, in seconds.
STALL_S = 300.0
#: How long the last bytes may take, in seconds.
_LAST_BYTES_S = 1.0
#: Idle connections are probed after so many seconds, so that a peer that has vanished does not keep a model loaded.
_PROBE_AFTER_S = 60

_EXTENSIONS = "sec-websocket-extensions"
_PASSED_ON = ("sec-websocket-key", "sec-websocket-version", "sec-websocket-protocol", _EXTENSIONS)
_REQUESTED = (*_PASSED_ON, "openai-beta", "user-agent")
_ANSWERED = ("sec-websocket-accept", "sec-websocket-protocol", _EXTENSIONS)


class BackendSocket:
    """A backend that has accepted a WebSocket connection. `headers` are those for the client's answer. `secrets` removes
    what must not come back from what the backend sends."""

    def __init__(
        self,
        stream: ByteStream,
        headers: Iterable[tuple[bytes, bytes]],
        name: str,
        secrets: Redactor | None = None,
    ) -> None:
        self._stream = stream
        self.headers = headers
        self._name = name
        self._secrets = secrets

    async def relay(self, client: ByteStream, *, stall_s: float = STALL_S) -> None:
        """Pass bytes on in both directions until one side closes the connection.

        The client gets a close frame with code 1001 if this is cancelled, and with 1011 if the backend has vanished,
        which raises `BackendBroken`.
        """
        _probe_when_idle(client.writer)
        answers, code = FrameScanner(), GOING_AWAY
        down = asyncio.create_task(_pass_on(self._stream.reader, client.writer, answers, stall_s, self._secrets))
        up = asyncio.create_task(_pass_on(client.reader, self._stream.writer, FrameScanner(), stall_s))
        try:
            done, _ = await asyncio.wait((down, up), return_when=asyncio.FIRST_COMPLETED)
            # A client that has disconnected or reads nothing ends it as well, and is not the backend's fault.
            if down in done and down.result() and up not in done and not answers.closed:
                code = INTERNAL_ERROR
                raise BackendBroken(f"{self._name} closed the WebSocket connection", backend=self._name)
        finally:
            for task in (down, up):
                task.cancel()
            await asyncio.wait((down, up))
            if not answers.closed and answers.at_boundary:
                client.writer.write(close_frame(code))
            await _close(client.writer)


async def _pass_on(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    frames: FrameScanner,
    stall_s: float,
    secrets: Redactor | None = None,
) -> bool:
    """Pass bytes on, without `secrets`, until the connection ends, or its other side reads no more; returns whether the
    sender ended it."""
    while True:
        try:
            data = await reader.read(BUFFER_BYTES)
        except OSError:
            return True
        if not data:
            return True
        frames.feed(data)
        if secrets is not None:
            data = secrets.feed(data)
            if frames.at_boundary:
                data += secrets.rest()
        try:
            writer.write(data)
            async with asyncio.timeout(stall_s):  # TimeoutError is an OSError
                await writer.drain()
        except OSError:
            return False


async def _close(writer: asyncio.StreamWriter) -> None:
    """Close the connection once its last bytes are sent."""
    writer.close()
    with contextlib.suppress(OSError):
        async with asyncio.timeout(_LAST_BYTES_S):
            await writer.wait_closed()
    writer.transport.abort()


@contextlib.asynccontextmanager
async def open_socket(
    endpoint: Endpoint, path: str, headers: Mapping[str, str], own: Iterable[tuple[str, str]], timeouts: Timeouts
) -> AsyncIterator[BackendSocket]:
    """Open a WebSocket connection with the client's `headers`, and those of the backend's `own`.

    Raises `UpgradeRequired` if the backend does not speak WebSocket at that path, and other `BackendError`s as
    transports do.
    """
    name = endpoint.name
    secrets = endpoint.redactor()
    if secrets is not None and not endpoint.is_engine:
        headers = {key: value for key, value in headers.items() if key != _EXTENSIONS}
    reader, writer = await _connect(endpoint, timeouts)
    try:
        _probe_when_idle(writer)
        writer.write(_request(endpoint, path, headers, own))
        try:
            async with asyncio.timeout(timeouts.first_byte_s):
                status, answered = _head(await reader.readuntil(b"\r\n\r\n"))
        except TimeoutError:
            raise BackendTimeout(f"{name} did not answer in time", backend=name) from None
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise BackendBroken(f"{name} did not answer the WebSocket handshake", backend=name) from error
        if status >= 500:
            raise BackendBroken(
                f"{name} answered the WebSocket handshake with status {status}", backend=name, backend_status=status
            )
        if status != 101:
            raise UpgradeRequired(f"{name} does not speak WebSocket at {path}: it answered with status {status}")
        if _EXTENSIONS in answered and _EXTENSIONS not in headers:
            raise BackendBroken(f"{name} uses WebSocket extensions that were not offered", backend=name)
        answered = answered if secrets is None else dict(secrets.headers(answered))
        passed_on = [(b"upgrade", b"websocket"), (b"connection", b"Upgrade")]
        passed_on += [(each.encode(), answered[each].encode("latin-1")) for each in _ANSWERED if each in answered]
        yield BackendSocket(ByteStream(reader, writer), passed_on, name, secrets)
    finally:
        await asyncio.shield(_close(writer))


async def _connect(endpoint: Endpoint, timeouts: Timeouts) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    name, options = endpoint.name, DEFAULT_TLS if endpoint.options is None else endpoint.options.tls
    try:
        async with asyncio.timeout(timeouts.connect_s):
            return await asyncio.open_connection(
                endpoint.host,
                endpoint.port,
                limit=BUFFER_BYTES,
                ssl=tls_context(options, name) if endpoint.tls else None,
            )
    except TimeoutError:
        raise BackendUnavailable(f"{name} did not accept a connection in time", backend=name, timed_out=True) from None
    except (OSError, ssl.CertificateError) as error:
        raise BackendUnavailable(f"{name} cannot be reached: {error.strerror or error}", backend=name) from error


def _request(endpoint: Endpoint, path: str, headers: Mapping[str, str], own: Iterable[tuple[str, str]]) -> bytes:
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    sent = {"host": f"{host}:{endpoint.port}", "upgrade": "websocket", "connection": "Upgrade"}
    sent.update({each: headers[each] for each in _REQUESTED if each in headers})
    if endpoint.key is not None:
        sent["authorization"] = f"Bearer {endpoint.key}"
    sent.update({key.lower(): value for key, value in (*own, *endpoint.headers)})
    lines = [f"GET {endpoint.target(path)} HTTP/1.1", *(f"{key}: {value}" for key, value in sent.items())]
    return "\r\n".join((*lines, "", "")).encode("latin-1")


def _head(head: bytes) -> tuple[int, dict[str, str]]:
    """Status and headers, names in lower case. Raises `ValueError` for what is no answer."""
    first, *lines = head.decode("latin-1").split("\r\n")
    if any(char in line for line in lines for char in "\r\n\0"):
        raise ValueError("a header contains a line break")
    protocol, _, rest = first.partition(" ")
    if not protocol.startswith("HTTP/1."):
        raise ValueError("this is not an HTTP answer")
    fields = (line.partition(":") for line in lines if line)
    return int(rest[:3]), {key.strip().lower(): value.strip() for key, _, value in fields}


def _probe_when_idle(writer: asyncio.StreamWriter) -> None:
    sock: socket.socket | None = writer.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option in ("TCP_KEEPIDLE", "TCP_KEEPINTVL"):  # not on every system
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), _PROBE_AFTER_S)
