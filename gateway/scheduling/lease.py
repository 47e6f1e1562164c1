"""A request's place in line for a model, and later its lease. Whoever asked waits here; the orchestrator settles it."""

from __future__ import annotations

from typing import Protocol

import anyio

from hostler.adapters.errors import GatewayError
from hostler.adapters.types import Progress
from hostler.supervisor.contract import EngineAddress


class Owner(Protocol):
    """Who gives out turns and takes them back."""

    def progress(self, turn: Lease) -> Progress: ...

    def estimate(self, turn: Lease) -> float: ...

    def give_back(self, turn: Lease) -> None: ...


class Lease:
    """A place in line for a model, and later the lease of it. Whoever asked gives it back, whatever happened.

    `queued`: it had to wait. `taken_away`: the model was stopped on request while it was leased.
    """

    __slots__ = (
        "_address",
        "_error",
        "_event",
        "_moved",
        "_owner",
        "asked_at",
        "client",
        "id",
        "keep_alive_s",
        "model",
        "queued",
        "request_id",
        "switch_s",
        "taken_away",
        "waited_s",
    )

    def __init__(
        self,
        owner: Owner,
        *,
        turn_id: int,
        model: str,
        asked_at: float,
        client: str = "",
        request_id: str = "",
        keep_alive_s: float | None = None,
    ) -> None:
        self._owner = owner
        self._address: EngineAddress | None = None
        self._error: GatewayError | None = None
        self._event: anyio.Event | None = None
        self._moved = False
        self.id = turn_id
        self.model = model
        self.asked_at = asked_at
        self.client = client
        self.request_id = request_id
        self.keep_alive_s = keep_alive_s
        self.queued = False
        self.taken_away = False
        self.waited_s = 0.0
        self.switch_s = 0.0

    @property
    def settled(self) -> bool:
        """Whether the waiting is over, one way or the other."""
        return self._address is not None or self._error is not None

    @property
    def leased(self) -> bool:
        """Whether the model may be used."""
        return self._address is not None

    async def wait(self, seconds: float) -> bool:
        """Wait until the turn has come or been refused, or until there is news to tell, at most `seconds`.

        Returns `settled`.
        """
        if not self.settled and not self._moved:
            self._event = anyio.Event()
            with anyio.move_on_after(max(0.0, seconds)):
                await self._event.wait()
        return self.settled

    def address(self) -> EngineAddress:
        """Where the model listens. Raises the reason if the turn was refused."""
        if self._error is not None:
            raise self._error
        assert self._address is not None, "the turn has not come yet"
        return self._address

    def news(self) -> bool:
        """Whether the switch has entered another phase since the last call."""
        moved, self._moved = self._moved, False
        return moved

    def progress(self) -> Progress:
        """What is being waited for, now."""
        return self._owner.progress(self)

    def estimate_s(self) -> float:
        """In how many seconds the turn will come, from what was seen so far."""
        return self._owner.estimate(self)

    def give_back(self) -> None:
        """The lease ends, or the place in line is left. A second time does nothing."""
        self._owner.give_back(self)

    # For the owner.

    def grant(self, address: EngineAddress) -> None:
        """The turn has come."""
        self._address = address
        self._wake()

    def refuse(self, error: GatewayError) -> None:
        """It will not come."""
        self._error = error
        self._wake()

    def tell(self) -> None:
        """The switch that is waited for has entered another phase."""
        self._moved = True
        self._wake()

    def _wake(self) -> None:
        if self._event is not None:
            self._event.set()
