"""What clients are told when the gateway stops before their answer is complete."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import anyio
import httpx
import pytest
from fakes.gate import Gate
from fakes.openrouter import open_router
from system.chain import open_chain, plain
from system.house import House, OpenHouse, data_events, first_word, is_whole

pytestmark = pytest.mark.anyio

ENDLESS = {"chunks": 50_000, "chunk_delay": 0.02}


class Asked:
    """A whole answer that is waited for beside the test."""

    def __init__(self, house: House, model: str) -> None:
        self._house = house
        self._model = model
        self.answer: httpx.Response | None = None
        self.done = anyio.Event()

    async def __call__(self) -> None:
        self.answer = await self._house.chat(self._model)
        self.done.set()


def is_refusal(answer: httpx.Response | None) -> bool:
    assert answer is not None
    error = answer.json()["error"]
    return answer.status_code == 503 and error["code"] == "shutting_down"


async def test_answers_cut_off_at_the_limit_say_so(open_house: OpenHouse, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "hostler.requests")
    profiles = {"a": {"parallel": 2, "script": ENDLESS}}
    async with open_house(profiles, gateway={"drain_s": 0.3}) as house, anyio.create_task_group() as tasks:
        whole = Asked(house, "a")
        async with house.stream("a") as stream:
            lines = await first_word(stream)
            tasks.start_soon(whole)
            await house.until_counts(serving=2, waiting=0)
            house.gateway.stop()
            rest = [line async for line in lines]
        await whole.done.wait()
        assert data_events("\n".join(rest))[-1]["error"]["code"] == "shutting_down"
        assert is_refusal(whole.answer)
    records = [record for record in caplog.records if record.name == "hostler.requests"]
    said = [line for record in records for line in record.getMessage().splitlines()]
    assert sorted(line.split()[0] for line in said) == ["broken", "failed"]
    assert all(line.split()[1] == "503" and "shutting down" in line for line in said)


async def test_a_second_word_to_stop_is_told_too(open_house: OpenHouse) -> None:
    async with open_house({"a": {"script": ENDLESS}}) as house, house.stream("a") as stream:
        lines = await first_word(stream)
        house.gateway.stop()
        house.gateway.stop()
        with anyio.fail_after(20):
            rest = [line async for line in lines]
        assert data_events("\n".join(rest))[-1]["error"]["code"] == "shutting_down"


async def test_those_who_wait_between_two_tries_are_refused_at_once(tmp_path: Path) -> None:
    async with open_router("box") as box, anyio.create_task_group() as tasks:
        box.then = "loading"
        backends = {"box": plain(box, kind="llamacpp")}
        async with open_chain(tmp_path, backends, gateway={"drain_s": 60}) as chain:
            answers: list[httpx.Response] = []

            async def ask() -> None:
                answers.append(await chain.ask())

            tasks.start_soon(ask)
            await chain.until(lambda: box.asked)
            chain.gateway.stop()
            await chain.until(lambda: answers, 20)
    assert is_refusal(answers[0])
    assert answers[0].json()["error"]["message"].startswith("the gateway is shutting down and accepts no new work")
    (finished,) = chain.finished
    assert (finished.outcome, finished.code, finished.status) == ("failed", "shutting_down", 503)
    assert {attempt.outcome for attempt in finished.attempts} == {"loading"}


async def test_those_in_line_are_refused_at_once_and_answers_go_on(
    open_house: OpenHouse, gates: Callable[[str], Gate]
) -> None:
    last = gates("last")
    profiles = {"a": {"script": {"last_when": last.path}}, "b": {}}
    async with open_house(profiles) as house, anyio.create_task_group() as tasks:
        same, other = Asked(house, "a"), Asked(house, "b")
        async with house.stream("a") as stream:
            lines = await first_word(stream)
            tasks.start_soon(same)
            tasks.start_soon(other)
            await house.until_counts(serving=1, waiting=2)
            house.gateway.stop()
            with anyio.fail_after(20):
                await same.done.wait()
                await other.done.wait()
            last.open()
            rest = [line async for line in lines]
        assert is_whole("\n".join(rest))
        assert is_refusal(same.answer)
        assert is_refusal(other.answer)


async def test_an_operators_order_that_is_cut_off_is_told_so(open_house: OpenHouse, tmp_path: Path) -> None:
    gone = Gate(tmp_path / "gone")
    profiles = {"a": {"stop_grace_s": 60, "script": {"gone_when": gone.path}}}
    async with open_house(profiles, gateway={"drain_s": 0.2}) as house, anyio.create_task_group() as tasks:
        await house.chat("a")
        answers: list[httpx.Response] = []

        async def unload() -> None:
            try:
                answers.append(await house.order("unload", model="a"))
            finally:
                gone.open()

        tasks.start_soon(unload)
        await house.until_status(lambda hosts: hosts["local"]["engines"][0]["phase"] == "stopping")
        house.gateway.stop()
    assert is_refusal(answers[0])
    assert answers[0].headers["connection"] == "close"
