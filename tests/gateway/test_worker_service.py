"""What the main process does for its workers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest

from hostler.gateway.backends.cost import Reservation
from hostler.gateway.context import KeyRules
from hostler.gateway.worker_service import WorkerService, _Handler
from hostler.gateway.workers.frames import (
    AdmitKey,
    FrameFromWorker,
    KeyAdmitted,
    ModelsRefreshed,
    MoneyReserved,
    RefreshModels,
    ReserveMoney,
)

pytestmark = pytest.mark.anyio


class Broken:
    """Every method fails."""

    def __getattr__(self, name: str) -> Any:
        async def fail(*arguments: object, **named: object) -> None:
            raise RuntimeError(f"{name} is broken")

        return fail


class Worker:
    """Keeps what it is sent."""

    number = 1

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, frame: object) -> None:
        self.sent.append(frame)


async def answer(frame: FrameFromWorker) -> Any:
    """The answer to a worker's question by a main process in which nothing works."""
    parts = SimpleNamespace(
        key_usage=Broken(), discovery=Broken(), serving=SimpleNamespace(chain=SimpleNamespace(spending=Broken()))
    )
    service, worker = WorkerService(2, local=None), Worker()
    async with anyio.create_task_group() as service._tasks:
        _Handler(service, cast(Any, parts), cast(Any, worker)).receive(frame)
    [sent] = worker.sent
    return sent


async def test_a_worker_is_answered_whatever_fails(caplog: pytest.LogCaptureFixture) -> None:
    admitted = await answer(AdmitKey(7, "bob", KeyRules(), 1, 0.0, True))
    assert isinstance(admitted, KeyAdmitted)
    assert admitted.number == 7
    assert admitted.admission.reservation is None
    assert "try again" in admitted.admission.refused
    assert await answer(ReserveMoney(8, Reservation("cloud", "m", 1.0))) == MoneyReserved(8, False)
    assert await answer(RefreshModels(9)) == ModelsRefreshed(9, False)
    assert caplog.text.count("could not be answered") == 3
