"""uvloop's event loop, or asyncio's where there is none; names are resolved in threads that nothing waits for."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uvloop import Loop as _Base
else:
    try:
        from uvloop import Loop as _Base
    except ModuleNotFoundError:  # Windows
        _Base = getattr(asyncio, "ProactorEventLoop", asyncio.SelectorEventLoop)

_Found = list[tuple[Any, ...]]


class Loop(_Base):
    """A lookup that hangs keeps neither the loop nor the process from ending: with uvloop's own, both wait for libuv.

    Equal lookups share a thread, so that there are no more of these than names.
    """

    #: Blocks, as `socket.getaddrinfo`.
    look_up: Callable[..., _Found] = staticmethod(socket.getaddrinfo)

    def __init__(self) -> None:
        super().__init__()
        self._lookups: dict[tuple[Any, ...], asyncio.Future[_Found]] = {}

    async def getaddrinfo(
        self,
        host: Any,
        port: Any,
        *,
        family: int = 0,
        type: int = 0,  # noqa: A002 - its callers pass it by name
        proto: int = 0,
        flags: int = 0,
    ) -> _Found:
        """See `asyncio`'s."""
        wanted = (host, port, family, type, proto, flags)
        with contextlib.suppress(socket.gaierror):  # an address needs no lookup
            return socket.getaddrinfo(host, port, family, type, proto, flags | socket.AI_NUMERICHOST)
        running = self._lookups.get(wanted)
        if running is None:
            running = self._lookups[wanted] = self.create_future()
            running.add_done_callback(lambda _: self._lookups.pop(wanted, None))
            threading.Thread(target=self._resolve, args=(running, wanted), name="lookup", daemon=True).start()
        return await asyncio.shield(running)

    def _resolve(self, result: asyncio.Future[_Found], wanted: tuple[Any, ...]) -> None:
        found: _Found | OSError
        try:
            found = self.look_up(*wanted)
        except (OSError, UnicodeError) as error:
            found = error if isinstance(error, OSError) else socket.gaierror(socket.EAI_NONAME, str(error))
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.call_soon_threadsafe(_settle, result, found)


def _settle(result: asyncio.Future[_Found], found: _Found | OSError) -> None:
    if result.done():
        return
    if isinstance(found, OSError):
        result.set_exception(found)
        result.exception()  # it may be that nothing waits for it any more
    else:
        result.set_result(found)
