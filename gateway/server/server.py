"""Sockets and the HTTP server: bind, announce, serve, drain."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, cast

import anyio
import anyio.lowlevel
import uvicorn
from uvicorn.lifespan.on import LifespanOn

from hostler.gateway.asgi import ASGIApp
from hostler.gateway.server.http_protocol import HTTPProtocol, Limits
from hostler.supervisor.config import TLSSettings
from hostler.supervisor.tls import CertificateError, ServerCertificate

logger = logging.getLogger(__name__)

#: Deadlines of connections are checked once in this many turns of the main loop.
_SWEEP_EVERY = 5

#: Interval of checking whether the last requests have ended, in seconds.
_DRAIN_TICK_S = 0.05

#: Time to accept the connections in the kernel's backlog before the listening socket is closed, in seconds.
_ACCEPT_S = 0.02

#: Time for cancelled requests to write an error answer, and time to send it to the client, in seconds.
_LAST_ERROR_S = 2.0
_FLUSH_S = 0.2

#: Additional time for cancelled requests that have not ended, in seconds.
_CLEAN_UP_S = 2.0

_SO_ATTACH_FILTER = 26

#: Who may use a Unix socket: its owner and its group, to which a reverse proxy can be added.
#: `None` where Python has no such sockets.
UNIX_SOCKETS: Final[int | None] = getattr(socket, "AF_UNIX", None)
#: On Windows, SO_REUSEADDR would let two programs listen at one address.
_KEEPS_OTHERS_OUT: Final[int] = getattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_REUSEADDR)
_UNIX_MODE = 0o660


class ListenError(Exception):
    """An address cannot be listened on; the message has the address, the reason, and what to change."""


def bind(addresses: Sequence[tuple[str, int]], setting: str, *, several: bool = False) -> list[socket.socket]:
    """A listening socket for each address, all or none: host and port, or the path of a Unix socket and 0.

    `setting` names the configuration key for the error. `several`: this user may bind further sockets to the same TCP
    addresses, over which the system spreads connections.
    """
    sockets: list[socket.socket] = []
    try:
        for host, port in addresses:
            sockets.append(_bind_one(host, port, setting, several=several))
    except ListenError:
        for each in sockets:
            each.close()
        raise
    return sockets


def _bind_unix(path: str, setting: str) -> socket.socket:
    """A socket that its owner's group may use, too. One that a killed process left behind is replaced."""
    if UNIX_SOCKETS is None:
        raise ListenError(f"cannot listen on unix:{path}: this system has no such sockets; change {setting}")
    sock = socket.socket(UNIX_SOCKETS, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.stat(path).st_mode):  # noqa: PTH116 - sockets are named by text
                try:
                    sock.connect(path)
                except ConnectionRefusedError:
                    os.unlink(path)  # noqa: PTH108
                else:
                    raise ListenError(
                        f"cannot listen on unix:{path}: another program is using it; stop that program or change {setting}"
                    )
        sock.bind(path)
        os.chmod(path, _UNIX_MODE)  # noqa: PTH101
        sock.listen(2048)
        sock.setblocking(False)
        sock.set_inheritable(False)
    except ListenError:
        sock.close()
        raise
    except OSError as error:
        sock.close()
        raise ListenError(f"cannot listen on unix:{path}: {error.strerror or error}; change {setting}") from error
    return sock


def _bind_one(host: str, port: int, setting: str, *, several: bool) -> socket.socket:
    if host.startswith("/"):
        return _bind_unix(host, setting)
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        # As bytes: for a text the codec of international names is loaded, which takes 0.5 MB.
        name = host.encode("ascii") if host.isascii() else host
        family, kind, protocol, _, address = socket.getaddrinfo(
            name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ListenError(f"cannot listen on {shown}: {error.strerror or error}; change {setting}") from error
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, _KEEPS_OTHERS_OUT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        if several and spreads_connections(sock):
            # Not before it is bound: it would not be noticed that another program is using the address.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.listen(2048)
        sock.setblocking(False)
        sock.set_inheritable(False)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise ListenError(
                f"cannot listen on {shown}: another program is using it; stop that program or change {setting}"
            ) from error
        raise ListenError(f"cannot listen on {shown}: {error.strerror or error}; change {setting}") from error
    return sock


def spreads_connections(sock: socket.socket) -> bool:
    """Whether the system spreads connections over several sockets that are bound to the address of this one."""
    return sys.platform == "linux" and sock.family in (socket.AF_INET, socket.AF_INET6)


def server_certificate(settings: TLSSettings | None, setting: str) -> ServerCertificate | None:
    """The configured certificate. Raises `ListenError`; `setting` names the configuration key for it."""
    if settings is None:
        return None
    try:
        return ServerCertificate(settings.cert, settings.key)
    except CertificateError as error:
        raise ListenError(f"{setting}: {error}") from error


class Server(uvicorn.Server):
    """uvicorn's server without its signal handlers: call `stop` to stop it.

    `started_callback` is called once the sockets accept connections. After `stop`, requests in progress have `drain_s`
    seconds to finish; then they are cancelled, with a moment to send an error. No request outlives `serve`, which closes
    the sockets and raises the error that ended the application's lifespan, if any. With `lifespan`, the application starts
    before the first request and ends after the last one. With a `certificate` it serves TLS, but on Unix sockets. `shared`
    sockets stay open in another process, which accepts new connections after `stop`: that is decided until then.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        drain_s: float,
        lifespan: bool = False,
        shared: bool = False,
        started_callback: Callable[[], None] | None = None,
        limits: Limits | None = None,
        certificate: ServerCertificate | None = None,
    ) -> None:
        config = uvicorn.Config(
            app,
            interface="asgi3",
            lifespan="on" if lifespan else "off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            http=cast(Any, partial(HTTPProtocol, limits=limits or Limits())),
            backlog=2048,
            workers=1,  # else uvicorn reads WEB_CONCURRENCY
        )
        super().__init__(config)
        config.load()
        if certificate is not None:
            config.ssl = certificate.context
        if lifespan:
            config.lifespan_class = cast(Any, partial(_Lifespan, on_end=self._lifespan_ended))
        self._drain_s = drain_s
        self.shared = shared
        self._certificate = certificate
        self._started_callback = started_callback
        self._unix_paths: list[str] = []
        self._refusing = False
        self._stopping = anyio.Event()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        if not self.shared:
            self._unix_paths = [each.getsockname() for each in sockets or () if each.family == UNIX_SOCKETS]
        try:
            await super().serve(sockets)
        finally:
            with anyio.CancelScope(shield=True):
                self._close_listeners(sockets)
                await self._cut_off()
                await self.lifespan.shutdown()
        if isinstance(self.lifespan, _Lifespan) and self.lifespan.error is not None:
            raise self.lifespan.error

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        # Unix sockets stay plain: only this machine reaches them.
        plain = [each for each in sockets or () if self._certificate is not None and each.family == UNIX_SOCKETS]
        await super().startup(sockets=sockets if sockets is None else [each for each in sockets if each not in plain])
        config, loop = self.config, asyncio.get_running_loop()
        state = {"config": config, "server_state": self.server_state, "app_state": self.lifespan.state}
        for each in plain:
            protocol = partial(cast(Any, config.http_protocol_class), **state)
            self.servers.append(await loop.create_server(protocol, sock=each, backlog=config.backlog))
        if self.started and self._started_callback is not None:
            self._started_callback()

    async def accept_from(self, sock: socket.socket) -> asyncio.Server:
        """Accept the connections of a further TCP socket as well, until `stop`, or until the result is closed. Either
        closes the socket."""
        loop, config = asyncio.get_running_loop(), self.config
        state = {"config": config, "server_state": self.server_state, "app_state": self.lifespan.state}
        protocol = partial(cast(Any, config.http_protocol_class), **state)
        server = await loop.create_server(protocol, sock=sock, ssl=config.ssl, backlog=config.backlog)
        self.servers = [*(each for each in self.servers if each.is_serving()), server]
        if self.should_exit:
            server.close()
        return server

    async def main_loop(self) -> None:
        # Like uvicorn's, but `stop` takes effect at once instead of at the next tick.
        counter = 0
        while not await self.on_tick(counter):
            counter = (counter + 1) % 864000
            if counter % _SWEEP_EVERY == 0:
                self._sweep()
            with anyio.move_on_after(0.1):
                await self._stopping.wait()

    def _sweep(self) -> None:
        self._check_descriptors()
        if self._certificate is not None:
            self._certificate.refresh()
        now = asyncio.get_running_loop().time()
        for connection in list(self._connections):
            connection.expire(now)

    def _check_descriptors(self) -> None:
        """Log when no file descriptor is left, and when there is one again: the event loop closes new connections then
        without a word."""
        try:
            os.close(os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE) and not self._refusing:
                self._refusing = True
                logger.error(
                    "out of file descriptors with %d connections, new ones are closed; raise the limit of open files "
                    "(ulimit -n, LimitNOFILE)",
                    len(self._connections),
                )
        else:
            if self._refusing:
                self._refusing = False
                logger.warning("file descriptors are available again")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Closing a listening socket resets the connections in its backlog. So stop new ones, accept those that are
        # there, then close. Those of a shared socket are left to the other process.
        if not self.shared:
            self._remove_paths()
        loop = asyncio.get_running_loop()
        for each in (each for server in self.servers for each in server.sockets):
            if self.shared or not (each.family == UNIX_SOCKETS or _refuse_new_connections(each)):
                loop.remove_reader(each.fileno())  # asyncio would lose connections accepted in the turn of the close
        await anyio.sleep(_ACCEPT_S)
        self._close_listeners(sockets)
        await anyio.lowlevel.checkpoint()
        for connection in list(self._connections):
            connection.shutdown()
        with anyio.move_on_after(self._drain_s):
            while (self._connections or self.server_state.tasks) and not self.force_exit:
                await anyio.sleep(_DRAIN_TICK_S)
                self._sweep()

    def _close_listeners(self, sockets: list[socket.socket] | None) -> None:
        for server in getattr(self, "servers", ()):
            server.close()
        for each in sockets or ():
            each.close()
        self._remove_paths()

    def _remove_paths(self) -> None:
        """Have new connections to the Unix sockets refused."""
        for path in self._unix_paths:
            with contextlib.suppress(OSError):
                os.unlink(path)  # noqa: PTH108 - sockets are named by text
        self._unix_paths = []

    async def _cut_off(self) -> None:
        """Cancel the requests that did not end in time, give them time to send an error, then abort the connections."""
        for limit in (_LAST_ERROR_S, _CLEAN_UP_S):
            tasks = set(self.server_state.tasks)
            for task in tasks:
                task.cancel("the server is stopping")
            if tasks:
                await asyncio.wait(tasks, timeout=limit)
            with anyio.move_on_after(_FLUSH_S):
                while self._connections:  # noqa: ASYNC110 - sockets are closed in several places
                    await anyio.sleep(0.01)
            for connection in list(self._connections):
                connection.transport.abort()

    def _lifespan_ended(self) -> None:
        """Stop at once: the application has ended, at the end of `serve` or by a failure."""
        self.stop()
        self.stop()

    @property
    def _connections(self) -> set[HTTPProtocol]:
        return cast(set[HTTPProtocol], self.server_state.connections)

    def stop(self) -> None:
        """Take no new requests, finish those in progress, then return from `serve`. A second call does not wait."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True
        self._stopping.set()


class _Lifespan(LifespanOn):
    """uvicorn's, but an error is kept for the caller of `serve` instead of logged, and the application's end is detected at
    any time."""

    def __init__(self, config: uvicorn.Config, *, on_end: Callable[[], None]) -> None:
        super().__init__(config)
        self.error: BaseException | None = None
        self._task: asyncio.Task[None] | None = None
        self._on_end = on_end

    async def startup(self) -> None:
        self._task = asyncio.create_task(self.main())
        await self.receive_queue.put({"type": "lifespan.startup"})
        await self.startup_event.wait()
        if self.error is not None:
            raise self.error

    async def shutdown(self) -> None:
        if self.startup_event.is_set():
            await super().shutdown()
        elif self._task is not None:  # cancelled during the application's startup
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def main(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        try:
            await cast(Any, self.config.loaded_app)(scope, self.receive, self._send)
        except BaseException as error:
            self.error, self.error_occurred = error, True
            if not isinstance(error, Exception):
                raise
        finally:
            self.startup_event.set()
            self.shutdown_event.set()
            self._on_end()

    async def _send(self, message: Any) -> None:
        if not message["type"].endswith(".failed"):  # its error is raised, too
            await self.send(message)


def _refuse_new_connections(listening: socket.socket) -> bool:
    """Have the kernel establish no new connections, while those in the backlog can still be accepted.

    Clients retry, and reach the closed socket or the next process. Returns false where this is not possible: it is a packet
    filter, which needs no privileges on Linux, that drops every segment with SYN.
    """
    if sys.platform != "linux":
        return False
    import ctypes  # takes 1 MB, needed only here

    steps = ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    plain = socket.socket(fileno=listening.fileno())  # the loop's sockets may lack `setsockopt`
    try:
        plain.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(steps), ctypes.addressof(program))
        )
    except OSError:
        return False
    finally:
        plain.detach()
    return True
