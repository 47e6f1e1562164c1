"""The main PC, the cloud and the small machine fail in turn while clients chat, configured by the shipped example files."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest
from fakes.fake_openrouter import FakeOpenRouter
from system.fallback_chain import fact
from system.three_machines import (
    CLOUD_KEY,
    TOKEN,
    ChatLoad,
    Machine,
    ThreeMachines,
    chat_load,
    has_addresses,
    start_machines,
)

Action = Callable[[Machine | FakeOpenRouter], Awaitable[None]]

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not has_addresses(), reason="loopback has only one address"),
]


async def check_no_request_is_lost(machines: ThreeMachines, chat: ChatLoad) -> None:
    """Each request finished exactly once for its client and once for the gateway, and none was refused."""
    numbers = [number for number, _ in chat.outcomes]
    assert sorted(numbers) == list(range(chat.sent))
    await machines.gateway.stop()
    logged = re.findall(r" chat-(\d+)$", machines.gateway.log, re.MULTILINE)
    assert sorted(map(int, logged)) == list(range(chat.sent))
    # A backend was always available.
    assert "refused" not in {outcome for _, outcome in chat.outcomes}


async def fail_and_recover_each(machines: ThreeMachines, chat: ChatLoad, *, fail: Action, recover: Action) -> None:
    """Two backends at a time fail: the remaining one is used, and a recovered one is used again."""
    await chat.answered_by("main-pc")
    await fail(machines.pc)
    await chat.answered_by("openrouter")
    await fail(machines.cloud)
    await chat.answered_by("lxc")
    await recover(machines.cloud)
    await chat.answered_by("openrouter")
    await machines.recovered("openrouter")
    await fail(machines.lxc)
    await chat.answered_by("openrouter")
    await recover(machines.pc)
    await chat.answered_by("main-pc")
    await recover(machines.lxc)
    await machines.recovered("lxc")


async def kill(machine: Machine | FakeOpenRouter) -> None:
    await (machine.stop() if isinstance(machine, FakeOpenRouter) else machine.kill())


async def start(machine: Machine | FakeOpenRouter) -> None:
    await machine.start()


async def freeze(machine: Machine | FakeOpenRouter) -> None:
    machine.freeze()


async def resume(machine: Machine | FakeOpenRouter) -> None:
    machine.resume()


async def test_a_killed_machine_is_replaced_and_used_again_when_it_returns(tmp_path: Path) -> None:
    async with start_machines(tmp_path) as machines:
        async with chat_load(machines) as chat:
            await fail_and_recover_each(machines, chat, fail=kill, recover=start)
            await machines.cloud.stop()
            await machines.pc.kill()
            await chat.answered_by("lxc")
        await check_no_request_is_lost(machines, chat)
        sent = "".join(str(request.headers) + str(request.json) for request in machines.cloud.requests)
        assert CLOUD_KEY in sent
        assert TOKEN not in sent
        assert machines.key not in sent


async def test_a_frozen_machine_is_replaced_and_used_again_when_it_resumes(tmp_path: Path) -> None:
    async with start_machines(tmp_path) as machines:
        async with chat_load(machines) as chat:
            await fail_and_recover_each(machines, chat, fail=freeze, recover=resume)
        await check_no_request_is_lost(machines, chat)


async def test_a_frozen_machine_delays_only_the_first_of_consecutive_requests(tmp_path: Path) -> None:
    async with start_machines(tmp_path) as machines:
        assert (await machines.chat()).headers["x-hostler-backend"] == "main-pc"
        machines.pc.freeze()
        answers = [await machines.chat(stream=number % 2 == 0) for number in range(4)]
        assert [fact(answer, "x-hostler-backend") for answer in answers] == ["openrouter"] * 4
        assert [fact(answer, "x-hostler-reason") for answer in answers[1:]] == ["main-pc: circuit_open"] * 3


async def test_a_machine_that_freezes_with_nothing_loaded_is_replaced_as_soon_as_one_that_serves(
    tmp_path: Path,
) -> None:
    async with start_machines(tmp_path) as machines:
        await machines.recovered("main-pc")
        await machines.pc.stop()
        await machines.pc.start()
        await machines.until_reachable("main-pc")
        machines.pc.freeze()
        # The supervisor's connections are given up later, after 30 s of silence.
        with anyio.fail_after(20):
            answer = await machines.chat()
        assert answer.headers["x-hostler-backend"] == "openrouter"
