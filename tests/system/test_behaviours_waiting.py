"""The queue on sockets: its order, its limit, and how requests are turned away."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fakes.flag_file import FlagFile
from system.running_gateway import WORKERS, RunningGateway, StartGateway, first_token, remote_supervisor, write_keys

from hostler.gateway.events import Event, RequestFinished

pytestmark = pytest.mark.anyio

LONG = {"chunks": 50_000, "chunk_delay": 0.02}

Flags = Callable[[str], FlagFile]


async def test_a_load_whose_only_client_disconnected_is_finished_and_kept(
    start_gateway: StartGateway, flags: Flags
) -> None:
    ready = flags("ready")
    async with start_gateway({"a": {"ttl_s": 30, "script": {"ready_when": ready.path}}}) as gateway:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(gateway.chat, "a")
            await gateway.until(gateway.starts)
            await gateway.until_counts(0, 1)
            tasks.cancel_scope.cancel()
        await gateway.until_counts(0, 0)
        ready.set()
        await gateway.until(lambda: [each.state for each in gateway.manager.status_now().models] == ["ready"])
        await anyio.wait_all_tasks_blocked()
        assert (await gateway.chat("a")).status_code == 200
        assert gateway.starts() == ["a"]
        assert gateway.events("stop") == []


async def test_the_engine_sees_in_mid_answer_that_a_streaming_client_disconnected(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"script": LONG}}) as gateway:
        async with gateway.stream("a") as answer:
            await first_token(answer)
        await gateway.until(lambda: gateway.events("gone"))
        assert gateway.events("done") == []


async def test_a_queued_client_that_disconnects_frees_its_place_at_once(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"script": LONG}}, gateway={"queue": {"max_waiting": 1}}) as gateway:
        waiting = anyio.CancelScope()
        async with gateway.stream("a") as running, anyio.create_task_group() as tasks:
            await first_token(running)

            async def wait() -> None:
                with waiting:
                    await gateway.chat("a")

            tasks.start_soon(wait)
            await gateway.until_counts(1, 1)
            assert (await gateway.chat("a")).status_code == 429
            waiting.cancel()
            await gateway.until_counts(1, 0)
            tasks.start_soon(gateway.chat, "a")
            await gateway.until_counts(1, 1)
            await running.aclose()
            tasks.cancel_scope.cancel()


async def test_requests_being_served_do_not_count_as_waiting(start_gateway: StartGateway, flags: Flags) -> None:
    settings, speak = {"queue": {"max_waiting": 2}}, flags("speak")
    profile = {"parallel": 2, "script": {"queue": True, "answer_when": speak.path}}
    async with start_gateway({"a": profile}, gateway=settings) as gateway:
        speak.set()
        await gateway.chat("a")
        speak.clear()
        codes: list[int] = []

        async def ask() -> None:
            codes.append((await gateway.chat("a")).status_code)

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(ask)
            await gateway.until_counts(2, 2)
            assert (await gateway.chat("a")).status_code == 429
            speak.set()
        assert codes == [200] * 4
        assert await gateway.counts() == (0, 0)


async def test_a_whole_answer_reports_queue_and_switch_time(start_gateway: StartGateway, flags: Flags) -> None:
    speak, ready = flags("speak"), flags("ready")
    profiles = {"a": {"script": {"answer_when": speak.path, "ready_when": ready.path}}}
    async with start_gateway(profiles) as gateway, anyio.create_task_group() as tasks:
        answers: list[httpx.Response] = []

        async def ask() -> None:
            answers.append(await gateway.chat("a"))

        async def held(gate: FlagFile) -> None:
            await anyio.sleep(0.06)  # at least: a slow machine makes it longer
            gate.set()

        tasks.start_soon(ask)
        await gateway.until_counts(0, 1)
        await held(ready)
        await gateway.until_counts(1, 0)
        tasks.start_soon(ask)
        await gateway.until_counts(1, 1)
        await held(speak)
        await gateway.until(lambda: len(answers) == 2)
    waits = [
        (int(answer.headers["x-hostler-queue-ms"]), int(answer.headers["x-hostler-switch-ms"])) for answer in answers
    ]
    assert waits[0][1] >= 50 and waits[1][0] >= 50
    assert waits[1][1] == 0


async def test_an_engine_never_gets_more_requests_than_it_has_slots(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"script": {"first_delay": 0.05}}}) as gateway:
        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(gateway.chat, "a")
        notes = [note for note in gateway.events() if note.get("method") == "POST" or note["event"] == "done"]
        assert [note["event"] for note in notes] == ["request", "done"] * 8


async def test_a_full_queue_is_429_before_any_stream_starts(start_gateway: StartGateway, flags: Flags) -> None:
    ready = flags("ready")
    # A host that another process schedules refuses in a moment: later than a sign of life that is sent at once.
    progress = {} if WORKERS > 1 else {"progress_after_s": 0, "progress_every_s": 0.05}
    settings = {"queue": {"max_waiting": 1}, "switching": progress}
    async with start_gateway({"a": {"script": {"ready_when": ready.path}}}, gateway=settings) as gateway:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(gateway.chat, "a")
            await gateway.until_counts(0, 1)
            async with gateway.stream("a") as refused:
                body = (await refused.aread()).decode()
            ready.set()
        assert refused.status_code == 429
        assert refused.headers["content-type"].startswith("application/json")
        assert int(refused.headers["retry-after"]) >= 1
        assert '"queue_full"' in body


async def test_retry_after_is_the_rest_of_the_load_as_measured_before(
    start_gateway: StartGateway, flags: Flags
) -> None:
    ready = flags("ready")
    profiles = {"a": {"script": {"ready_after": 1.3, "ready_when": ready.path}}}
    async with start_gateway(profiles, gateway={"queue": {"max_waiting": 1}}) as gateway:
        ready.set()
        await gateway.chat("a")
        await gateway.action("unload", model="a")
        ready.clear()
        takes = (await gateway.status())["hosts"][0]["engines"][0]["load_s"]

        async def rest() -> float:
            (waiting,) = (await gateway.status())["hosts"][0]["queue"]
            return float(waiting["eta_s"])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(gateway.chat, "a")
            await gateway.until_counts(0, 1)
            before = await rest()
            # What is shown of a load is rounded to hundredths of a second.
            assert before <= takes + 0.005
            retry_after = 0
            while retry_after != 1:
                answer = await gateway.chat("a")
                assert answer.status_code == 429
                retry_after = int(answer.headers["retry-after"])
                # Between what is shown before and after; that is rounded to milliseconds.
                after = await rest()
                assert max(1, math.ceil(after - 0.001)) <= retry_after <= max(1, math.ceil(before + 0.001))
                before = after
            ready.set()


async def test_many_requests_of_one_client_do_not_hold_up_another(start_gateway: StartGateway, tmp_path: Path) -> None:
    path, keys = write_keys(tmp_path, first=0, swarm=0, person=0)
    async with start_gateway({"a": {"script": LONG}}, gateway={"api_keys_file": path}) as gateway:
        gateway.http.headers["Authorization"] = f"Bearer {keys['first']}"
        served: list[str] = []

        async def ask(who: str) -> None:
            answer = await gateway.chat("a", key=keys[who], max_tokens=1)
            assert answer.status_code == 200
            served.append(who)

        async with anyio.create_task_group() as tasks, gateway.stream("a") as running:
            await first_token(running)
            for _ in range(8):
                tasks.start_soon(ask, "swarm")
            await gateway.until_counts(1, 8)
            tasks.start_soon(ask, "person")
            await gateway.until_counts(1, 9)
            await running.aclose()
        assert served.index("person") <= 1


async def test_one_client_cannot_keep_another_out_of_the_queue(
    start_gateway: StartGateway, tmp_path: Path, flags: Flags
) -> None:
    speak = flags("speak")
    path, keys = write_keys(tmp_path, swarm=0, person=0)
    settings = {"api_keys_file": path, "queue": {"max_waiting": 4}}
    profiles = {"a": {"script": {"first_delay": 0.15, "answer_when": speak.path}}}
    async with start_gateway(profiles, gateway=settings) as gateway:
        gateway.http.headers["Authorization"] = f"Bearer {keys['person']}"
        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(gateway.keep_asking, "a", keys["swarm"])
            await gateway.until_counts(1, 4)
            refused = await gateway.chat("a")
            assert refused.status_code == 429
            speak.set()
            with anyio.fail_after(int(refused.headers["retry-after"]) + 20.0):
                while (await gateway.chat("a")).status_code == 429:
                    await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()


async def test_waiting_ends_with_an_error_at_its_limit(start_gateway: StartGateway) -> None:
    settings = {"queue": {"max_wait_s": 1.0}}
    async with start_gateway({"a": {"script": LONG}, "b": {}}, gateway=settings) as gateway:
        # The first one has to be there in time, too.
        await gateway.manager.switch("a")
        async with gateway.stream("a") as running:
            await first_token(running)
            began = time.monotonic()
            answer = await gateway.chat("b")
            assert time.monotonic() - began >= 1.0
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "wait_limit_reached"
        assert int(answer.headers["retry-after"]) >= 1
        assert gateway.starts() == ["a"]


async def test_an_operator_can_cancel_a_waiting_request_and_a_streaming_one(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"script": LONG}, "b": {}}) as gateway:
        answers: list[httpx.Response] = []
        events: list[Event] = []
        gateway.app.bus.listen(events.append)

        async def wait() -> None:
            headers = {"X-Request-ID": "the-second"}
            body = {"model": "b", "messages": []}
            answers.append(await gateway.http.post("/v1/chat/completions", json=body, headers=headers))

        async with gateway.stream("a") as running, anyio.create_task_group() as tasks:
            lines = await first_token(running)
            tasks.start_soon(wait)
            await gateway.until_counts(1, 1)
            waiting = (await gateway.status())["hosts"][0]["queue"]
            assert [(each["id"], each["model"], each["position"]) for each in waiting] == [("the-second", "b", 1)]
            assert (await gateway.action("cancel", id="the-second")).json() == {"id": "the-second", "cancelled": 1}
            await gateway.until(lambda: answers)
            assert await gateway.counts() == (1, 0)
            assert (await gateway.action("cancel", id=running.headers["x-request-id"])).status_code == 200
            rest = [line async for line in lines]
            await gateway.until(lambda: gateway.events("gone"))
        assert answers[0].status_code == 499
        assert answers[0].json()["error"]["code"] == "request_cancelled"
        assert any('"request_cancelled"' in line for line in rest)
        assert await gateway.counts() == (0, 0)
        assert gateway.starts() == ["a"]
        assert (await gateway.action("cancel", id="the-second")).status_code == 404
    asked = [event for event in events if isinstance(event, RequestFinished) and event.operation == "chat"]
    assert [event.outcome for event in asked] == ["cancelled", "cancelled"]
    assert [attempt.outcome for event in asked for attempt in event.attempts] == ["cancelled", "cancelled"]


async def test_all_of_a_crowd_that_obeys_retry_after_get_in(start_gateway: StartGateway) -> None:
    profiles = {"a": {"script": {"chunks": 2, "chunk_delay": 0.05}}}
    async with start_gateway(profiles, gateway={"queue": {"max_waiting": 5}}) as gateway:
        tries: list[int] = []

        async def insist() -> None:
            for number in range(1, 30):
                answer = await gateway.chat("a")
                if answer.status_code == 200:
                    tries.append(number)
                    return
                assert answer.status_code == 429
                assert "x-should-retry" not in answer.headers
                await anyio.sleep(int(answer.headers["retry-after"]))

        async with anyio.create_task_group() as tasks:
            for _ in range(30):
                tasks.start_soon(insist)
        assert len(tries) == 30
        assert max(tries) < 10


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("remote", [True, False], ids=["remote", "local"])
async def test_a_load_longer_than_the_longest_wait_is_waited_for(
    start_gateway: StartGateway, tmp_path: Path, flags: Callable[[str], FlagFile], remote: bool, stream: bool
) -> None:
    ready = flags("ready")
    profiles: dict[str, Any] = {"a": {"script": {"ready_when": ready.path}}}
    queue = {"queue": {"max_wait_s": 0.2}, "switching": {"progress_after_s": 0, "progress_every_s": 0.05}}

    async def ask(gateway: RunningGateway) -> None:
        async with anyio.create_task_group() as tasks:

            async def later() -> None:
                await gateway.until_counts(0, 1)
                await anyio.sleep(0.8)  # several times the longest wait
                ready.set()

            tasks.start_soon(later)
            response = await gateway.chat("a", stream=stream)
        assert response.status_code == 200
        assert '"error"' not in response.text

    if not remote:
        async with start_gateway(profiles, gateway=queue) as gateway:
            await ask(gateway)
        return
    async with (
        remote_supervisor(tmp_path / "far", profiles) as far,
        start_gateway({}, gateway=queue, backends={"far": far.backend}) as gateway,
    ):
        await ask(gateway)
