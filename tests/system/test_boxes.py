"""The main PC, the cloud and the small box fail in turn while somebody chats, as the shipped example files wire them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from system.boxes import CLOUD_KEY, TOKEN, Boxes, Chat, chatting, has_addresses, open_boxes

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.timeout(240),
    pytest.mark.skipif(not has_addresses(), reason="loopback has one address only here"),
]


async def nothing_is_lost(boxes: Boxes, chat: Chat) -> None:
    """Each request has ended for its client, once, and for the gateway, once; what was whole had one author."""
    numbers = [number for number, _ in chat.verdicts]
    assert sorted(numbers) == list(range(chat.asked))
    await boxes.gateway.off()
    logged = re.findall(r" chat-(\d+)$", boxes.gateway.log, re.MULTILINE)
    assert sorted(map(int, logged)) == list(range(chat.asked))
    # Somebody was always there: nobody was refused.
    assert "refused" not in {verdict for _, verdict in chat.verdicts}


async def test_whoever_is_killed_is_stood_in_for_and_used_again_when_it_is_back(tmp_path: Path) -> None:
    async with open_boxes(tmp_path) as boxes:
        async with chatting(boxes) as chat:
            await chat.answered_by("main-pc")
            await boxes.pc.kill()
            await chat.answered_by("openrouter")
            await boxes.cloud.stop()
            await chat.answered_by("lxc")
            await boxes.cloud.start()
            await chat.answered_by("openrouter")
            await boxes.mended("openrouter")
            await boxes.lxc.kill()
            await chat.answered_by("openrouter")
            await boxes.pc.on()
            await chat.answered_by("main-pc")
            await boxes.lxc.on()
            await boxes.mended("lxc")
            await boxes.cloud.stop()
            await boxes.pc.kill()
            await chat.answered_by("lxc")
        await nothing_is_lost(boxes, chat)
        told = "".join(str(asked.headers) + str(asked.json) for asked in boxes.cloud.asked)
        assert CLOUD_KEY in told
        assert TOKEN not in told
        assert boxes.key not in told


async def test_whoever_freezes_is_stood_in_for_and_used_again_when_it_moves(tmp_path: Path) -> None:
    async with open_boxes(tmp_path) as boxes:
        async with chatting(boxes) as chat:
            await chat.answered_by("main-pc")
            boxes.pc.block()
            await chat.answered_by("openrouter")
            boxes.cloud.block()
            await chat.answered_by("lxc")
            boxes.cloud.resume()
            await chat.answered_by("openrouter")
            await boxes.mended("openrouter")
            boxes.lxc.block()
            await chat.answered_by("openrouter")
            boxes.pc.resume()
            await chat.answered_by("main-pc")
            boxes.lxc.resume()
            await boxes.mended("lxc")
        await nothing_is_lost(boxes, chat)


async def test_a_frozen_box_keeps_those_who_ask_one_after_the_other_waiting_once(tmp_path: Path) -> None:
    async with open_boxes(tmp_path) as boxes:
        assert (await boxes.ask()).headers["x-hostler-backend"] == "main-pc"
        boxes.pc.block()
        answers = [await boxes.ask(stream=number % 2 == 0) for number in range(4)]
        assert [answer.headers["x-hostler-backend"] for answer in answers] == ["openrouter"] * 4
        assert [answer.headers["x-hostler-reason"] for answer in answers[1:]] == ["main-pc: resting"] * 3
