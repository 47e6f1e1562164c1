"""Models that only other servers have: shown as available while they are, and else why they cannot be served now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes.fake_openrouter import FakeOpenRouter
from system.fallback_chain import RunningChain, openai_backend, start_chain

pytestmark = pytest.mark.anyio


def outside(router: FakeOpenRouter, **more: Any) -> dict[str, Any]:
    return openai_backend(router, local=False, models={"m": "m-there"}, api_key="sk-secret", **more)


async def shown(chain: RunningChain, model: str = "m") -> tuple[str, str | None]:
    """The state of the model in the status, and its reason."""
    cards = (await chain.http.get("/admin/status")).json()["models"]
    card = next(card for card in cards if card["name"] == model)
    return card["state"], card["failure"]


async def test_a_model_of_a_working_cloud_is_available(tmp_path: Path, cloud: FakeOpenRouter) -> None:
    async with start_chain(tmp_path, {"cloud": outside(cloud)}) as chain:
        assert await shown(chain) == ("available", None)
        await chain.chat()
        assert await shown(chain) == ("available", None)


async def test_models_of_a_cloud_that_rejected_the_key_are_unavailable(tmp_path: Path, cloud: FakeOpenRouter) -> None:
    cloud.default = (401,)
    async with start_chain(tmp_path, {"cloud": outside(cloud)}) as chain:
        await chain.chat()
        assert await shown(chain) == ("unavailable", "cloud rejected the API key")
        (hop,) = (await chain.http.get("/admin/status")).json()["chain"]["hops"]
        (breaker,) = hop["models"]
        assert (breaker["state"], breaker["reason"]) == ("open", "rejected the API key")
        assert hop["breaker"]["reason"] is None


async def test_models_of_an_unreachable_server_are_unavailable_until_it_returns(
    tmp_path: Path, lan: FakeOpenRouter
) -> None:
    async with start_chain(
        tmp_path, {"lan": openai_backend(lan), "other": {**openai_backend(lan), "models": {"n": "n"}}}
    ) as chain:
        await lan.stop()
        while (await shown(chain))[0] == "available":
            await chain.chat()
        assert await shown(chain) == ("unavailable", "lan cannot be reached")
        assert (await shown(chain, "n"))[0] == "available"  # no request has used the other one
        await lan.start()
        while (await shown(chain))[0] != "available":
            await chain.chat()
        assert await shown(chain) == ("available", None)


async def test_the_fallback_server_is_named(tmp_path: Path, cloud: FakeOpenRouter, lan: FakeOpenRouter) -> None:
    cloud.default = (402,)
    async with start_chain(tmp_path, {"cloud": outside(cloud), "lan": openai_backend(lan)}) as chain:
        await chain.chat()
        assert await shown(chain) == ("available", "cloud requires payment: its account has no credit; served by lan")


async def test_an_exhausted_budget_makes_cloud_models_unavailable(tmp_path: Path, cloud: FakeOpenRouter) -> None:
    spending = {"daily_limit": 0.01, "file": str(tmp_path / "spending.json")}
    async with start_chain(tmp_path, {"cloud": outside(cloud)}, gateway={"spending": spending}) as chain:
        await chain.chat()
        state, why = await shown(chain)
        assert state == "unavailable"
        assert why == "cloud is skipped until tomorrow: the daily spending limit is reached"


async def test_a_model_of_a_server_that_is_not_in_the_chain_is_not_available(
    tmp_path: Path, cloud: FakeOpenRouter, lan: FakeOpenRouter
) -> None:
    backends = {"cloud": outside(cloud), "lan": {**openai_backend(lan), "models": {"n": "n"}}}
    async with start_chain(tmp_path, backends, gateway={"chain": ["cloud"]}) as chain:
        assert await shown(chain, "n") == ("unavailable", "no backend of the chain has it")


async def test_loading_a_model_of_another_server_is_refused_with_the_reason(
    tmp_path: Path, cloud: FakeOpenRouter
) -> None:
    async with start_chain(tmp_path, {"cloud": outside(cloud)}) as chain:
        refused = await chain.http.post("/admin/load", json={"model": "m"})
        assert refused.status_code == 404
        assert "no supervised host has m; models of other servers" in refused.json()["error"]["message"]


async def test_models_of_a_host_that_does_not_answer_are_unavailable(tmp_path: Path, cloud: FakeOpenRouter) -> None:
    tower = {"kind": "supervisor", "url": "http://127.0.0.1:9", "token": "x" * 32, "models": {"m": "m", "big": "big"}}
    async with start_chain(tmp_path, {"tower": tower, "cloud": outside(cloud)}) as chain:
        assert await shown(chain, "big") == ("unavailable", "tower is unreachable")
        # Only its profile says whether it must stay local.
        state, why = await shown(chain)
        assert state == "unavailable"
        assert why is not None
        assert "cloud is not local, and the request must stay local" in why
