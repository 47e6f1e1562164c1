"""The queue on sockets: its order, its limit, and how requests are turned away."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import anyio
import httpx
import pytest
from fakes.gate import Gate
from system.house import OpenHouse, first_word, keys_in

from hostler.gateway.events import Event, RequestFinished

pytestmark = pytest.mark.anyio

LONG = {"chunks": 50_000, "chunk_delay": 0.02}

Gates = Callable[[str], Gate]


async def test_a_load_whose_only_client_disconnected_is_finished_and_kept(open_house: OpenHouse, gates: Gates) -> None:
    ready = gates("ready")
    async with open_house({"a": {"ttl_s": 30, "script": {"ready_when": ready.path}}}) as house:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(house.chat, "a")
            await house.until(house.starts)
            await house.until_counts(0, 1)
            tasks.cancel_scope.cancel()
        await house.until_counts(0, 0)
        ready.open()
        await house.until(lambda: [each.state for each in house.manager.status_now().models] == ["ready"])
        await anyio.wait_all_tasks_blocked()
        assert (await house.chat("a")).status_code == 200
        assert house.starts() == ["a"]
        assert house.events("stop") == []


async def test_the_engine_sees_within_200_ms_that_a_streaming_client_disconnected(open_house: OpenHouse) -> None:
    async with open_house({"a": {"script": LONG}}) as house:
        delays = []
        for _ in range(3):  # a busy machine may be late once, but not every time
            async with house.stream("a") as answer:
                lines = answer.aiter_lines()
                for _ in range(5):
                    await anext(lines)
            left, seen = time.time(), len(delays)
            await house.until(lambda seen=seen: len(house.events("gone")) > seen)
            delays.append(house.events("gone")[-1]["time"] - left)
        assert min(delays) <= 0.2


async def test_a_client_that_leaves_the_queue_frees_its_place_at_once(open_house: OpenHouse) -> None:
    async with open_house({"a": {"script": LONG}}, gateway={"queue": {"max_waiting": 1}}) as house:
        waiting = anyio.CancelScope()
        async with house.stream("a") as running, anyio.create_task_group() as tasks:
            await first_word(running)

            async def wait() -> None:
                with waiting:
                    await house.chat("a")

            tasks.start_soon(wait)
            await house.until_counts(1, 1)
            assert (await house.chat("a")).status_code == 429
            waiting.cancel()
            await house.until_counts(1, 0)
            tasks.start_soon(house.chat, "a")
            await house.until_counts(1, 1)
            await running.aclose()
            tasks.cancel_scope.cancel()


async def test_requests_being_served_do_not_count_as_waiting(open_house: OpenHouse, gates: Gates) -> None:
    gateway, speak = {"queue": {"max_waiting": 2}}, gates("speak")
    profile = {"parallel": 2, "script": {"queue": True, "answer_when": speak.path}}
    async with open_house({"a": profile}, gateway=gateway) as house:
        speak.open()
        await house.chat("a")
        speak.close()
        codes: list[int] = []

        async def ask() -> None:
            codes.append((await house.chat("a")).status_code)

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(ask)
            await house.until_counts(2, 2)
            assert (await house.chat("a")).status_code == 429
            speak.open()
        assert codes == [200] * 4
        assert await house.counts() == (0, 0)


async def test_a_whole_answer_tells_how_long_it_waited_and_how_long_the_switch_took(
    open_house: OpenHouse, gates: Gates
) -> None:
    speak, ready = gates("speak"), gates("ready")
    profiles = {"a": {"script": {"answer_when": speak.path, "ready_when": ready.path}}}
    async with open_house(profiles) as house, anyio.create_task_group() as tasks:
        answers: list[httpx.Response] = []

        async def ask() -> None:
            answers.append(await house.chat("a"))

        async def held(gate: Gate) -> None:
            await anyio.sleep(0.06)  # at least: a slow machine makes it longer
            gate.open()

        tasks.start_soon(ask)
        await house.until_counts(0, 1)
        await held(ready)
        await house.until_counts(1, 0)
        tasks.start_soon(ask)
        await house.until_counts(1, 1)
        await held(speak)
        await house.until(lambda: len(answers) == 2)
    told = [
        (int(answer.headers["x-hostler-queue-ms"]), int(answer.headers["x-hostler-switch-ms"])) for answer in answers
    ]
    assert told[0][1] >= 50 and told[1][0] >= 50
    assert told[1][1] == 0


async def test_an_engine_never_gets_more_requests_than_it_has_slots(open_house: OpenHouse) -> None:
    async with open_house({"a": {"script": {"first_delay": 0.05}}}) as house:
        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(house.chat, "a")
        # An answer takes 50 ms at least, so that questions that come earlier than that overlap.
        asked = [note["time"] for note in house.asked()]
        assert len(asked) == 8
        assert all(later - earlier >= 0.05 for earlier, later in pairwise(asked))


async def test_a_full_queue_is_429_before_any_stream_starts(open_house: OpenHouse, gates: Gates) -> None:
    ready = gates("ready")
    gateway = {"queue": {"max_waiting": 1}, "switching": {"progress_after_s": 0, "progress_every_s": 0.05}}
    async with open_house({"a": {"script": {"ready_when": ready.path}}}, gateway=gateway) as house:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(house.chat, "a")
            await house.until_counts(0, 1)
            async with house.stream("a") as refused:
                body = (await refused.aread()).decode()
            ready.open()
        assert refused.status_code == 429
        assert refused.headers["content-type"].startswith("application/json")
        assert int(refused.headers["retry-after"]) >= 1
        assert '"queue_full"' in body


async def test_retry_after_is_the_rest_of_the_load_as_measured_before(open_house: OpenHouse, gates: Gates) -> None:
    ready = gates("ready")
    profiles = {"a": {"script": {"ready_after": 1.3, "ready_when": ready.path}}}
    async with open_house(profiles, gateway={"queue": {"max_waiting": 1}}) as house:
        ready.open()
        await house.chat("a")
        await house.order("unload", model="a")
        ready.close()
        takes = house.manager.status_now().profiles[0].load_s
        assert takes is not None
        async with anyio.create_task_group() as tasks:
            began = time.monotonic()
            tasks.start_soon(house.chat, "a")
            await house.until_counts(0, 1)
            begun = time.monotonic()
            told = 0
            while told != 1:
                asked = time.monotonic()
                answer = await house.chat("a")
                assert answer.status_code == 429
                told = int(answer.headers["retry-after"])
                # By the time that has passed since the load began, at most and at least.
                assert max(1, math.ceil(takes - (time.monotonic() - began) - 0.1)) <= told
                assert told <= max(1, math.ceil(takes - (asked - begun) + 0.1))
            ready.open()


async def test_many_requests_of_one_client_do_not_hold_up_another(open_house: OpenHouse, tmp_path: Path) -> None:
    path, keys = keys_in(tmp_path, first=0, swarm=0, person=0)
    async with open_house({"a": {"script": LONG}}, gateway={"api_keys_file": path}) as house:
        house.http.headers["Authorization"] = f"Bearer {keys['first']}"
        served: list[str] = []

        async def ask(who: str) -> None:
            answer = await house.chat("a", key=keys[who], max_tokens=1)
            assert answer.status_code == 200
            served.append(who)

        async with anyio.create_task_group() as tasks, house.stream("a") as running:
            await first_word(running)
            for _ in range(8):
                tasks.start_soon(ask, "swarm")
            await house.until_counts(1, 8)
            tasks.start_soon(ask, "person")
            await house.until_counts(1, 9)
            await running.aclose()
        assert served.index("person") <= 1


async def test_one_client_cannot_keep_another_out_of_the_queue(
    open_house: OpenHouse, tmp_path: Path, gates: Gates
) -> None:
    speak = gates("speak")
    path, keys = keys_in(tmp_path, swarm=0, person=0)
    gateway = {"api_keys_file": path, "queue": {"max_waiting": 4}}
    profiles = {"a": {"script": {"first_delay": 0.15, "answer_when": speak.path}}}
    async with open_house(profiles, gateway=gateway) as house:
        house.http.headers["Authorization"] = f"Bearer {keys['person']}"
        async with anyio.create_task_group() as tasks:

            async def keep_asking() -> None:
                while True:
                    await house.chat("a", key=keys["swarm"])

            for _ in range(8):
                tasks.start_soon(keep_asking)
            await house.until_counts(1, 4)
            refused = await house.chat("a")
            assert refused.status_code == 429
            speak.open()
            with anyio.fail_after(int(refused.headers["retry-after"]) + 20.0):
                while (await house.chat("a")).status_code == 429:
                    await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()


async def test_waiting_ends_with_an_error_at_its_limit(open_house: OpenHouse) -> None:
    gateway = {"queue": {"max_wait_s": 1.0}}
    async with open_house({"a": {"script": LONG}, "b": {}}, gateway=gateway) as house:
        # The first one has to be there in time, too.
        await house.manager.switch("a")
        took: list[float] = []
        async with house.stream("a") as running:
            await first_word(running)
            while not took or (min(took) > 2.0 and len(took) < 4):
                began = time.monotonic()
                answer = await house.chat("b")
                took.append(time.monotonic() - began)
        assert 1.0 <= min(took) <= 2.0
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "wait_limit_reached"
        assert int(answer.headers["retry-after"]) >= 1
        assert house.starts() == ["a"]


async def test_an_operator_can_cancel_a_waiting_request_and_a_streaming_one(open_house: OpenHouse) -> None:
    async with open_house({"a": {"script": LONG}, "b": {}}) as house:
        answers: list[httpx.Response] = []
        events: list[Event] = []
        house.gateway.bus.listen(events.append)

        async def wait() -> None:
            headers = {"X-Request-ID": "the-second"}
            body = {"model": "b", "messages": []}
            answers.append(await house.http.post("/v1/chat/completions", json=body, headers=headers))

        async with house.stream("a") as running, anyio.create_task_group() as tasks:
            lines = await first_word(running)
            tasks.start_soon(wait)
            await house.until_counts(1, 1)
            waiting = (await house.status())["hosts"][0]["queue"]
            assert [(each["id"], each["model"], each["position"]) for each in waiting] == [("the-second", "b", 1)]
            assert (await house.order("cancel", id="the-second")).json() == {"id": "the-second", "cancelled": 1}
            await house.until(lambda: answers)
            assert await house.counts() == (1, 0)
            assert (await house.order("cancel", id=running.headers["x-request-id"])).status_code == 200
            rest = [line async for line in lines]
            await house.until(lambda: house.events("gone"))
        assert answers[0].status_code == 499
        assert answers[0].json()["error"]["code"] == "request_cancelled"
        assert any('"request_cancelled"' in line for line in rest)
        assert await house.counts() == (0, 0)
        assert house.starts() == ["a"]
        assert (await house.order("cancel", id="the-second")).status_code == 404
    asked = [event for event in events if isinstance(event, RequestFinished) and event.operation == "chat"]
    assert [event.outcome for event in asked] == ["cancelled", "cancelled"]
    assert [attempt.outcome for event in asked for attempt in event.attempts] == ["cancelled", "cancelled"]
