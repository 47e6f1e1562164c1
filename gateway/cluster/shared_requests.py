"""Requests in flight at all gateways of a cluster, and their cancellation from any of them."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence

import anyio
import msgspec

from hostler.gateway.cluster.announcements import Announcements
from hostler.gateway.cluster.membership import Member
from hostler.gateway.cluster.plausibility import is_plausible
from hostler.gateway.events import printable
from hostler.gateway.in_flight import MAX_LISTED, RequestView

_CHANNEL, _ASK, _CANCEL, _CANCELLED = "requests", "requests-asked", "cancel", "cancelled"
#: How often they are announced while somebody looks, and for how long after the last question, in seconds.
_EVERY_S, _LOOKING_S = 0.5, 10.0
#: After which silence a gateway's requests are no longer shown, in seconds.
_LIFETIME_S = 3.0
#: Gateways whose requests are shown, at most.
_MAX_GATEWAYS = 256
#: How long an answer is waited for, in seconds.
_ANSWER_S = 0.25


class _Cancelled(msgspec.Struct, frozen=True, array_like=True):
    """The answer to the question of that number of that gateway: how many requests were cancelled."""

    asker: str
    number: int
    count: int


class SharedRequests:
    """The requests that other gateways serve; see `OtherRequests`. `run` until cancelled.

    `own` returns this gateway's, `cancel_own` cancels those with an id and returns their number; `announce_more` announces
    what else is shown with them. Nothing is sent unless an operator's page or a command asks for it.
    """

    def __init__(
        self,
        announcements: Announcements,
        *,
        own_id: str,
        own: Callable[[], Sequence[RequestView]],
        cancel_own: Callable[[str], Awaitable[int]],
        gateways: Callable[[], Mapping[str, Member]],
        clock: Callable[[], float],
        announce_more: Callable[[], None] = lambda: None,
    ) -> None:
        self._announcements = announcements
        self._own_id = own_id
        self._own = own
        self._cancel_own = cancel_own
        self._gateways = gateways
        self._clock = clock
        self._announce_more = announce_more
        self._others: dict[str, tuple[float, tuple[RequestView, ...]]] = {}
        self._looked_at = -_LOOKING_S
        self._asked = anyio.Event()
        self._answered = anyio.Event()
        self._to_cancel: list[tuple[str, int, str]] = []
        self._cancel_asked = anyio.Event()
        self._numbers = itertools.count(1)
        self._cancelled: dict[int, list[int]] = {}
        announcements.listen(_CHANNEL, self._on_requests)
        announcements.listen(_ASK, self._on_asked)
        announcements.listen(_CANCEL, self._on_cancel)
        announcements.listen(_CANCELLED, self._on_cancelled)

    def views(self) -> Sequence[RequestView]:
        """The requests of other gateways, as far as is known."""
        now = self._clock()
        self._others = {name: each for name, each in self._others.items() if now - each[0] < _LIFETIME_S}
        return [view for _, views in self._others.values() for view in views]

    async def refresh(self) -> None:
        """Ask the other gateways, but wait for none that does not answer."""
        others = len(self._gateways()) - 1
        if others <= 0 or not self._announcements.connected:
            return
        asked_at = self._clock()
        self._announcements.send(_ASK, 0)
        with anyio.move_on_after(_ANSWER_S):
            while sum(at >= asked_at for at, _ in self._others.values()) < others:
                await self._answered.wait()

    async def cancel(self, request_id: str) -> int:
        """Cancel the requests with this id; returns their number."""
        others = len(self._gateways()) - 1
        if others <= 0 or not self._announcements.connected:
            return 0
        number = next(self._numbers)
        counts = self._cancelled[number] = []
        try:
            self._announcements.send(_CANCEL, (number, request_id))
            with anyio.move_on_after(_ANSWER_S):
                while len(counts) < others:
                    await self._answered.wait()
            return sum(counts)
        finally:
            del self._cancelled[number]

    async def run(self) -> None:
        """Announce what is in flight while others look, and cancel what they ask for, until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._announce)
            tasks.start_soon(self._cancel_all)

    async def _cancel_all(self) -> None:
        while True:
            await self._cancel_asked.wait()
            self._cancel_asked = anyio.Event()
            while self._to_cancel:
                asker, number, request_id = self._to_cancel.pop(0)
                count = await self._cancel_own(request_id)
                self._announcements.send(_CANCELLED, _Cancelled(asker, number, count))

    async def _announce(self) -> None:
        while True:
            await self._asked.wait()
            self._asked = anyio.Event()
            while self._clock() - self._looked_at < _LOOKING_S:
                self._announce_more()
                self._announcements.send(_CHANNEL, list(self._own())[:MAX_LISTED])
                with anyio.move_on_after(_EVERY_S):
                    await self._asked.wait()
                self._asked = anyio.Event()

    def _on_asked(self, _: str, message: bytes) -> None:
        self._looked_at = self._clock()
        self._asked.set()

    def _on_requests(self, sender: str, message: bytes) -> None:
        try:
            views = msgspec.json.decode(message, type=tuple[RequestView, ...])
        except (msgspec.MsgspecError, RecursionError):
            return
        if sender not in self._others and len(self._others) >= _MAX_GATEWAYS:
            return
        member = self._gateways().get(sender)
        name = printable(sender if member is None else member.name, 100)
        shown = [msgspec.structs.replace(view, gateway=name) for view in views[:MAX_LISTED] if is_plausible(view)]
        self._others[sender] = (self._clock(), tuple(shown))
        self._wake()

    def _on_cancel(self, sender: str, message: bytes) -> None:
        try:
            number, request_id = msgspec.json.decode(message, type=tuple[int, str])
        except (msgspec.MsgspecError, RecursionError):
            return
        self._to_cancel.append((sender, number, request_id))
        self._cancel_asked.set()

    def _on_cancelled(self, _: str, message: bytes) -> None:
        try:
            answer = msgspec.json.decode(message, type=_Cancelled)
        except (msgspec.MsgspecError, RecursionError):
            return
        if answer.asker == self._own_id and answer.number in self._cancelled:
            self._cancelled[answer.number].append(max(0, answer.count))
            self._wake()

    def _wake(self) -> None:
        answered, self._answered = self._answered, anyio.Event()
        answered.set()
