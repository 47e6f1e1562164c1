"""The state of models without a reachable supervisor, as the status lists it."""

from __future__ import annotations

import pytest

from hostler.adapters.model_list import ModelCard
from hostler.gateway.admin.status import BackendView, BreakerView, ChainView, StatusBuilder, with_availability
from hostler.gateway.in_flight import RequestView
from hostler.gateway.model_catalog import Catalog
from hostler.gateway.placements import Placement
from hostler.gateway.plain_models import CatalogBackend

CARD = ModelCard(name="m", state="loaded", memory_bytes=7)
CLOSED = BreakerView(model=None, state="closed")
OPEN = BreakerView(model=None, state="open", reason="rejected the API key")


def backend(name: str, **values: object) -> BackendView:
    fields = {"kind": "openai", "local": True, "reachable": True, "breaker": CLOSED, **values}
    return BackendView(backend=name, **fields)  # type: ignore[arg-type]


def shown(*backends: BackendView, local_only: bool = False, budget_exhausted: bool = False) -> tuple[str, str | None]:
    """The state of a model that all these backends have, and the reason."""
    places = tuple(CatalogBackend(backend=each.backend, name_there="there") for each in backends)
    placement = Placement(model="m", card=CARD, places=places, local_only=local_only)
    card = with_availability(CARD, placement, {each.backend: each for each in backends}, budget_exhausted)
    return card.state, card.failure


def test_a_reachable_supervisor_decides() -> None:
    assert shown(backend("pc", supervised=True)) == ("loaded", None)


def test_another_backend_makes_it_available() -> None:
    assert shown(backend("cloud", local=False)) == ("available", None)
    unreachable = backend("pc", supervised=True, reachable=False)
    assert shown(unreachable, backend("cloud")) == ("available", "pc is unreachable; served by cloud")


def test_a_sleeping_machine_has_it_unloaded() -> None:
    sleeping = backend("pc", supervised=True, reachable=False, wake_on_lan=True)
    assert shown(sleeping) == ("unloaded", "pc is unreachable; a request wakes it")


@pytest.mark.parametrize("part", ["backend", "model"])
def test_an_open_circuit_breaker_makes_it_unavailable(part: str) -> None:
    breakers = (
        {"breaker": OPEN}
        if part == "backend"
        else {"models": (BreakerView(model="there", state="open", reason=OPEN.reason),)}
    )
    assert shown(backend("cloud", **breakers)) == ("unavailable", "cloud rejected the API key")


def test_a_breaker_of_another_model_does_not_count() -> None:
    assert shown(backend("cloud", models=(BreakerView(model="other", state="open"),))) == ("available", None)


def test_clouds_are_skipped_for_local_models_and_beyond_the_budget() -> None:
    cloud = backend("cloud", local=False)
    assert shown(cloud, local_only=True)[0] == "unavailable"
    assert shown(cloud, budget_exhausted=True)[0] == "unavailable"
    assert shown(backend("box"), local_only=True, budget_exhausted=True)[0] == "available"


def test_a_model_without_backends_is_unavailable() -> None:
    assert shown() == ("unavailable", "no backend of the chain has it")


@pytest.mark.parametrize(("cost", "limit", "exhausted"), [(1.0, None, False), (0.9, 1.0, False), (1.0, 1.0, True)])
def test_the_budget_is_exhausted_at_the_limit(cost: float, limit: float | None, exhausted: bool) -> None:
    assert ChainView(cost=cost, limit=limit).budget_exhausted is exhausted


class OtherProcess:
    """Requests that another process of the gateway serves."""

    def __init__(self) -> None:
        self.known: tuple[RequestView, ...] = ()

    def views(self) -> tuple[RequestView, ...]:
        return self.known

    async def refresh(self) -> None:
        view = RequestView(id="there", at=1.0, protocol="openai", operation="chat", client="laptop", phase="prefill")
        self.known = (view,)

    async def cancel(self, request_id: str) -> int:
        return 0


@pytest.mark.anyio
async def test_requests_of_other_processes_are_in_flight_as_well() -> None:
    status = StatusBuilder(
        Catalog({}, (), version="0"), {}, contexts=list, elsewhere=[OtherProcess()], chain=ChainView, version="0",
        clock=lambda: 0.0,
    )  # fmt: skip
    assert status.in_flight() == ()
    await status.refresh()
    assert [view.id for view in status.in_flight()] == ["there"]
