"""The main PC, the cloud and the small box fail in turn while somebody chats, as the shipped example files wire them."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from fakes.fake_openrouter import FakeOpenRouter
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

Moves = Callable[[Machine | FakeOpenRouter], Awaitable[None]]

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not has_addresses(), reason="loopback has one address only here"),
]


async def nothing_is_lost(boxes: ThreeMachines, chat: ChatLoad) -> None:
    """Each request has ended for its client, once, and for the gateway, once; what was whole had one author."""
    numbers = [number for number, _ in chat.verdicts]
    assert sorted(numbers) == list(range(chat.asked))
    await boxes.gateway.off()
    logged = re.findall(r" chat-(\d+)$", boxes.gateway.log, re.MULTILINE)
    assert sorted(map(int, logged)) == list(range(chat.asked))
    # Somebody was always there: nobody was refused.
    assert "refused" not in {verdict for _, verdict in chat.verdicts}


async def all_go_and_come_back(boxes: ThreeMachines, chat: ChatLoad, *, go: Moves, come: Moves) -> None:
    """Two at a time are away: the one that is left stands in, and who is back is used again."""
    await chat.answered_by("main-pc")
    await go(boxes.pc)
    await chat.answered_by("openrouter")
    await go(boxes.cloud)
    await chat.answered_by("lxc")
    await come(boxes.cloud)
    await chat.answered_by("openrouter")
    await boxes.mended("openrouter")
    await go(boxes.lxc)
    await chat.answered_by("openrouter")
    await come(boxes.pc)
    await chat.answered_by("main-pc")
    await come(boxes.lxc)
    await boxes.mended("lxc")


async def die(box: Machine | FakeOpenRouter) -> None:
    await (box.stop() if isinstance(box, FakeOpenRouter) else box.kill())


async def rise(box: Machine | FakeOpenRouter) -> None:
    await (box.start() if isinstance(box, FakeOpenRouter) else box.on())


async def freeze(box: Machine | FakeOpenRouter) -> None:
    box.block()


async def thaw(box: Machine | FakeOpenRouter) -> None:
    box.resume()


async def test_whoever_is_killed_is_stood_in_for_and_used_again_when_it_is_back(tmp_path: Path) -> None:
    async with start_machines(tmp_path) as boxes:
        async with chat_load(boxes) as chat:
            await all_go_and_come_back(boxes, chat, go=die, come=rise)
            await boxes.cloud.stop()
            await boxes.pc.kill()
            await chat.answered_by("lxc")
        await nothing_is_lost(boxes, chat)
        told = "".join(str(asked.headers) + str(asked.json) for asked in boxes.cloud.requests)
        assert CLOUD_KEY in told
        assert TOKEN not in told
        assert boxes.key not in told


async def test_whoever_freezes_is_stood_in_for_and_used_again_when_it_moves(tmp_path: Path) -> None:
    async with start_machines(tmp_path) as boxes:
        async with chat_load(boxes) as chat:
            await all_go_and_come_back(boxes, chat, go=freeze, come=thaw)
        await nothing_is_lost(boxes, chat)


async def test_a_frozen_box_keeps_those_who_ask_one_after_the_other_waiting_once(tmp_path: Path) -> None:
    async with start_machines(tmp_path) as boxes:
        assert (await boxes.ask()).headers["x-hostler-backend"] == "main-pc"
        boxes.pc.block()
        answers = [await boxes.ask(stream=number % 2 == 0) for number in range(4)]
        assert [answer.headers["x-hostler-backend"] for answer in answers] == ["openrouter"] * 4
        assert [answer.headers["x-hostler-reason"] for answer in answers[1:]] == ["main-pc: circuit_open"] * 3
