"""Embeddings out of a chat model, by the real engine."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import httpx
import pytest

from hostler.profiles.schema import Profile
from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.manager import EngineManager

pytestmark = [pytest.mark.anyio, pytest.mark.engine, pytest.mark.timeout(180)]


def likeness(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True)) / (math.hypot(*one) * math.hypot(*other))


@pytest.mark.parametrize("args", [(), ("--pooling", "last")])
async def test_a_chat_model_makes_embeddings_of_short_and_long_texts(
    real_model: Path,
    running: Callable[[EngineManager], AbstractAsyncContextManager[EngineManager]],
    args: tuple[str, ...],
) -> None:
    pytest.importorskip("xllamacpp")
    profile = Profile(
        name="a", model=str(real_model), engine="embedded", context=2048, embeddings=True, threads=1, args=args
    )
    async with running(EngineManager([profile], SupervisorSettings())) as manager:
        address = await manager.switch("a")
        headers = {"Authorization": f"Bearer {address.key}"}
        url = f"http://{address.host}:{address.port}"
        texts = ["A cat sleeps.", "A kitten naps.", "word " * 700]
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120, trust_env=False) as http:
            answer = await http.post("/v1/embeddings", json={"model": "a", "input": texts})
    assert answer.status_code == 200, answer.text
    cat, kitten, long = (each["embedding"] for each in answer.json()["data"])
    assert len(cat) == len(long) == 576
    assert answer.json()["usage"]["prompt_tokens"] > 700
    assert likeness(cat, kitten) > likeness(cat, long)
