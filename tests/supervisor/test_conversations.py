"""Several conversations over a switch, with the real engine: each finds the slot that holds it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from hostler.profiles.schema import Profile
from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.contract import EngineAddress
from hostler.supervisor.manager import EngineManager, create_manager

pytestmark = [pytest.mark.anyio, pytest.mark.engine, pytest.mark.timeout(180)]


async def ask(address: EngineAddress, messages: list[dict[str, str]]) -> Any:
    headers = {"Authorization": f"Bearer {address.key}"}
    async with httpx.AsyncClient(headers=headers, timeout=120, trust_env=False) as http:
        body = {"messages": messages, "max_tokens": 4, "temperature": 0}
        answer = await http.post(f"http://{address.host}:{address.port}/v1/chat/completions", json=body)
    return answer.raise_for_status().json()


async def test_each_conversation_comes_back_to_the_slot_that_holds_it(
    real_model: Path, running: Callable[[EngineManager], AbstractAsyncContextManager[EngineManager]], tmp_path: Path
) -> None:
    pytest.importorskip("xllamacpp")
    profiles = [
        Profile(name=name, model=str(real_model), engine="embedded", context=1024, parallel=2, threads=1)
        for name in ("a", "b")
    ]
    settings = SupervisorSettings(slots_dir=str(tmp_path / "slots"), slots_min_tokens=100)
    stories = [
        " ".join(f"{what} number {number} is {number * 7 % 11} years old." for number in range(24))
        for what in ("The horse", "A ship")
    ]
    talks = [[{"role": "user", "content": story}] for story in stories]
    async with running(create_manager(profiles, settings, environ={"HOSTLER_CACHE": str(tmp_path)})) as manager:
        address = await manager.switch("a")
        for talk in talks:
            answer = await ask(address, talk)
            assert answer["timings"]["cache_n"] < 30
            talk += [answer["choices"][0]["message"], {"role": "user", "content": "Which is the oldest?"}]
        await manager.switch("b")
        assert len(list((tmp_path / "slots").glob("*.kv"))) == 2
        address = await manager.switch("a")
        for talk in reversed(talks):
            timings = (await ask(address, talk))["timings"]
            assert timings["cache_n"] >= 0.9 * (timings["cache_n"] + timings["prompt_n"])
