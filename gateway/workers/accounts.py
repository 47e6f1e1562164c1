"""A worker's limits of keys and its spending, which the main process counts for all workers."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

from hostler.gateway.backends.cost import Reservation, SpendingTracker
from hostler.gateway.context import KeyRules
from hostler.gateway.key_usage import KeyAdmission, KeyReservation, KeyUsage
from hostler.gateway.workers.channel import Channel
from hostler.gateway.workers.frames import (
    AdmitKey,
    FrameToWorker,
    ReserveMoney,
    SettleKey,
    SettleMoney,
    SpendingState,
)


class WorkerKeyAccounts:
    """`KeyAccounts` of the main process."""

    def __init__(self, channel: Channel[FrameToWorker]) -> None:
        self._channel = channel

    async def admit(
        self, key: str, rules: KeyRules, *, prompt_tokens: int, dollars: float, has_local: bool
    ) -> KeyAdmission:
        """See `KeyAccounts`."""
        admission: KeyAdmission = await self._channel.call(
            lambda number: AdmitKey(number, key, rules, prompt_tokens, dollars, has_local), self._take_back
        )
        return admission

    def settle(self, reservation: KeyReservation, *, prompt_tokens: int, answer_tokens: int, dollars: float) -> None:
        """See `KeyAccounts`."""
        self._channel.send(SettleKey(reservation, prompt_tokens, answer_tokens, dollars))

    def _take_back(self, admission: KeyAdmission) -> None:
        """The request was cancelled before it was admitted, and has used nothing."""
        if admission.reservation is not None:
            self.settle(admission.reservation, prompt_tokens=0, answer_tokens=0, dollars=0.0)


class WorkerSpending(SpendingTracker):
    """The spending as the main process last reported it. Reservations are made there, and settled there."""

    def __init__(
        self,
        channel: Channel[FrameToWorker],
        daily_limit: float | None,
        state: SpendingState,
        wall: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(None, daily_limit, wall)
        self._channel = channel
        self._numbers: dict[Reservation, int] = {}
        self._own = itertools.count(-1, -1)
        self.update(state)

    def update(self, state: SpendingState) -> None:
        """The main process reports what has been spent and reserved."""
        self._state, self._day = state, state.day

    async def try_reserve(self, wanted: Reservation) -> bool:
        """See `SpendingTracker`. Without a limit there is nothing to ask for."""
        if self._limit is None:
            self._numbers[wanted] = next(self._own)
            return True
        number = 0

        def ask(given: int) -> ReserveMoney:
            nonlocal number
            number = given
            return ReserveMoney(given, wanted)

        reserved: bool = await self._channel.call(ask, lambda granted: self._take_back(number, wanted, granted))
        if reserved:
            self._numbers[wanted] = number
        return reserved

    def settle(self, reserved: Reservation, cost: float | None, *, answered: bool = True) -> None:
        """See `SpendingTracker`."""
        number = self._numbers.pop(reserved, None)
        if number is not None:
            self._channel.send(SettleMoney(number, reserved, cost, answered))

    def _take_back(self, number: int, wanted: Reservation, granted: bool) -> None:
        """The request was cancelled before the money was set aside."""
        if granted:
            self._channel.send(SettleMoney(number, wanted, None, False))

    @property
    def today(self) -> float:
        """See `SpendingTracker`: of all workers, and of all gateways of a cluster."""
        elsewhere = self._state.elsewhere if self._state.day.day == self.day.day else 0.0
        return super().today + elsewhere

    @property
    def in_progress(self) -> float:
        """See `SpendingTracker`: of all workers."""
        return self._state.reserved

    @property
    def open_requests(self) -> int:
        """See `SpendingTracker`: of all workers."""
        return self._state.open


class WorkerAccounts:
    """What the requests of one worker have reserved, in the main process. It counts as used if the worker dies."""

    def __init__(self, keys: KeyUsage | None, spending: SpendingTracker) -> None:
        self._keys = keys
        self._spending = spending
        self._key_reservations: dict[int, KeyReservation] = {}
        self._money: dict[int, Reservation] = {}
        self._closed = False

    async def admit(self, frame: AdmitKey) -> KeyAdmission:
        """Count a request of a key with limits."""
        if self._keys is None:
            return KeyAdmission(refused="this gateway counts for no keys; try again", retry_after_s=1.0)
        admission = await self._keys.admit(
            frame.key,
            frame.rules,
            prompt_tokens=frame.prompt_tokens,
            dollars=frame.dollars,
            has_local=frame.has_local,
        )
        if (reservation := admission.reservation) is not None:
            if self._closed:
                self._keys.settle(reservation, prompt_tokens=0, answer_tokens=0, dollars=0.0)
            else:
                self._key_reservations[reservation.id] = reservation
        return admission

    def settle_key(self, frame: SettleKey) -> None:
        """A request of a key with limits has ended."""
        reservation = self._key_reservations.pop(frame.reservation.id, None)
        if reservation is not None and self._keys is not None:
            self._keys.settle(
                reservation,
                prompt_tokens=frame.prompt_tokens,
                answer_tokens=frame.answer_tokens,
                dollars=frame.dollars,
            )

    async def reserve_money(self, frame: ReserveMoney) -> bool:
        """Set money aside for a request to a remote backend."""
        reserved = await self._spending.try_reserve(frame.wanted)
        if reserved and self._closed:
            self._spending.settle(frame.wanted, None, answered=False)
        elif reserved:
            self._money[frame.number] = frame.wanted
        return reserved

    def settle_money(self, frame: SettleMoney) -> None:
        """A request to a remote backend has ended. Without a limit its money was never reserved here."""
        wanted = self._money.pop(frame.number, None)
        if wanted is None:
            wanted = frame.wanted
            if self._spending.limit is not None or not self._spending.reserve(wanted):
                return
        self._spending.settle(wanted, frame.cost, answered=frame.answered)

    def close(self) -> None:
        """The worker has ended: what it has not settled was used, as far as can be known."""
        self._closed = True
        for reservation in self._key_reservations.values():
            if self._keys is not None:
                self._keys.settle(
                    reservation, prompt_tokens=reservation.tokens, answer_tokens=0, dollars=reservation.dollars
                )
        for wanted in self._money.values():
            self._spending.settle(wanted, wanted.amount)
        self._key_reservations.clear()
        self._money.clear()
