"""Which engines are started and stopped, when, and what waiting requests get when that goes wrong."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import httpx
import psutil
import pytest
from fakes.flag_file import FlagFile
from system.running_gateway import RunningGateway, StartGateway, first_token, is_complete, write_keys

pytestmark = pytest.mark.anyio

SHARED = {"memory_budget": "10GiB"}
LONG = {"chunks": 50_000, "chunk_delay": 0.02}

Flags = Callable[[str], FlagFile]


def lives(gateway: RunningGateway) -> list[tuple[str, float, float]]:
    """Every engine that was started: its model, its start and its end (or now)."""
    ends = {note["pid"]: note["time"] for note in gateway.events("stop")}
    return [(note["model"], note["time"], ends.get(note["pid"], time.time())) for note in gateway.events("start")]


async def in_line(gateway: RunningGateway, models: Iterable[str]) -> None:
    """Ask for the models at once, and wait for all answers."""

    async def ask(model: str) -> None:
        assert (await gateway.chat(model)).status_code == 200

    async with anyio.create_task_group() as tasks:
        for model in models:
            tasks.start_soon(ask, model)


async def test_two_cold_models_that_fit_together_load_in_parallel(start_gateway: StartGateway, flags: Flags) -> None:
    ready = flags("ready")
    profile = {"memory": "4GiB", "script": {"ready_when": ready.path}}
    async with start_gateway({"a": profile, "b": profile}, supervisor=SHARED) as gateway:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(in_line, gateway, "ab")
            await gateway.until(lambda: len(gateway.starts()) == 2)
            ready.set()
        assert max(note["time"] for note in gateway.events("start")) < min(
            note["time"] for note in gateway.events("ready")
        )


async def test_a_pinned_model_keeps_running_while_an_exclusive_one_replaces_another(
    start_gateway: StartGateway,
) -> None:
    async with start_gateway({"p": {"pinned": True}, "a": {}, "b": {}}) as gateway:
        for model in "pab":
            assert (await gateway.chat(model)).status_code == 200
        assert [note["model"] for note in gateway.events("stop")] == ["a"]
        assert (await gateway.chat("p")).status_code == 200
        assert gateway.starts() == ["p", "a", "b"]


async def test_two_switches_that_need_the_same_memory_do_not_overlap(start_gateway: StartGateway) -> None:
    profile = {"memory": "6GiB", "script": {"ready_after": 0.1, "slow_exit": 0.1}}
    async with start_gateway({"a": profile, "b": profile, "c": profile}, supervisor=SHARED) as gateway:
        await gateway.chat("a")
        await in_line(gateway, "bc")
        spans = sorted(lives(gateway), key=lambda life: life[1])
        assert spans[0][0] == "a"
        assert sorted(model for model, _, _ in spans) == ["a", "b", "c"]
        for (_, _, end), (_, start, _) in pairwise(spans):
            assert end <= start


async def test_a_key_of_higher_priority_gets_its_model_first(start_gateway: StartGateway, tmp_path: Path) -> None:
    path, keys = write_keys(tmp_path, ordinary=0, important=5)
    profiles = {"a": {"script": LONG}, "b": {}, "c": {}}
    async with start_gateway(profiles, gateway={"api_keys_file": path}) as gateway:
        gateway.http.headers["Authorization"] = f"Bearer {keys['ordinary']}"
        async with gateway.stream("a") as answer, anyio.create_task_group() as tasks:
            await first_token(answer)
            tasks.start_soon(gateway.chat, "c")
            await gateway.until_counts(1, 1)

            async def important() -> None:
                await gateway.chat("b", key=keys["important"])

            tasks.start_soon(important)
            await gateway.until_counts(1, 2)
            await answer.aclose()
        assert gateway.starts() == ["a", "b", "c"]


async def test_an_engine_is_used_after_the_first_poll_that_finds_it_ready(start_gateway: StartGateway) -> None:
    # How soon that poll comes is tested with `poll_pause_s`.
    profiles = {
        f"ready-after-{seconds}": {"memory": "1GiB", "script": {"ready_after": seconds}}
        for seconds in (0, 0.1, 0.3, 0.6, 1.0, 1.3, 2.5)
    }
    async with start_gateway(profiles, supervisor=SHARED) as gateway:
        await in_line(gateway, profiles)
        for model in profiles:
            # The second poll asks whether restoring slots has crashed it.
            assert [request["polls"] for request in gateway.requests(model)] == [2]


async def test_a_model_that_ignores_sigterm_is_killed_after_its_grace_period(start_gateway: StartGateway) -> None:
    profiles = {"a": {"stop_grace_s": 0.3, "script": {"ignore_stop": True}}, "b": {}}
    # With the supervisor's own grace period the test would not end.
    async with start_gateway(profiles, supervisor={"stop_grace_s": 600}) as gateway:
        await gateway.chat("a")
        pid = gateway.events("start", "a")[-1]["pid"]
        asked = time.time()
        assert (await gateway.chat("b")).status_code == 200
        assert gateway.events("start", "b")[-1]["time"] - asked >= 0.3
        assert not psutil.pid_exists(pid)


async def test_an_engine_that_accepts_but_never_answers_is_killed(start_gateway: StartGateway) -> None:
    # Neither does it end by itself, nor is it given the time to.
    profile = {"start_timeout_s": 0.5, "stop_grace_s": 600, "script": {"hang": True, "ignore_stop": True}}
    async with start_gateway({"a": profile}) as gateway:
        answer = await gateway.chat("a")
        assert answer.status_code == 503
        assert "was not ready in time" in answer.json()["error"]["message"]
        pid = gateway.events("start")[-1]["pid"]
        await gateway.until(lambda: not psutil.pid_exists(pid))


async def test_all_waiting_requests_fail_at_once_when_the_engine_dies_during_its_load(
    start_gateway: StartGateway, flags: Flags
) -> None:
    die = flags("die")
    script = {"never_ready": True, "exit_code": 1, "exit_when": die.path}
    # Neither the end of the pause nor that of the time for a start is waited for: the test would not end.
    settings = {"max_failures": 10, "backoff_s": 600.0, "max_backoff_s": 600.0}
    async with start_gateway({"a": {"start_timeout_s": 600, "script": script}}, supervisor=settings) as gateway:
        answers: list[httpx.Response] = []

        async def ask() -> None:
            answers.append(await gateway.chat("a"))

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(ask)
            await gateway.until_counts(0, 4)
            await gateway.until(gateway.starts)
            die.set()
        assert [answer.status_code for answer in answers] == [503] * 4
        assert gateway.starts() == ["a"]
        assert [model["state"] for model in (await gateway.status())["models"]] == ["failed"]


async def test_a_model_that_failed_often_fails_fast_with_its_last_output(start_gateway: StartGateway) -> None:
    script = {"exit_code": 1, "stderr": "E out of luck\n"}
    settings = {"max_failures": 3, "backoff_s": 600.0, "max_backoff_s": 600.0}
    async with start_gateway({"a": {"script": script}}, supervisor=settings) as gateway:
        for _ in range(3):
            assert (await gateway.chat("a")).status_code == 503
        for _ in range(30):
            answer = await gateway.chat("a")
            assert answer.status_code == 503
            assert "out of luck" in answer.json()["error"]["message"]
            assert answer.headers["x-should-retry"] == "false"
        # It was refused without a start, and without waiting for the end of the pause.
        assert gateway.starts() == ["a"] * 3


async def test_last_output_with_invalid_header_characters_is_still_reported(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"script": {"exit_code": 1, "stderr": "out of \0luck\n"}}}) as gateway:
        answer = await gateway.chat("a")
        assert answer.status_code == 503
        assert "out of ?luck" in answer.headers["x-hostler-reason"]


async def test_a_failed_load_is_tried_again_by_the_next_request(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"script": {"exit_code": 1, "exit_times": 1}}}) as gateway:
        assert (await gateway.chat("a")).status_code == 503
        assert (await gateway.chat("a")).status_code == 200


async def test_the_previous_model_is_loaded_again_when_the_next_one_fails(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {}, "b": {"script": {"exit_code": 1}}}) as gateway:
        await gateway.chat("a")
        assert (await gateway.chat("b")).status_code == 503
        await gateway.until(lambda: len(gateway.events("ready", "a")) == 2)
        assert (await gateway.chat("a")).status_code == 200
        assert gateway.starts() == ["a", "b", "a"]


async def test_another_program_on_the_engines_port_is_not_taken_for_the_model(start_gateway: StartGateway) -> None:
    answered = []

    async def impostor(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            answered.append(await stream.receive())
            await stream.send(b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"status":"ok"}')

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, impostor)
        async with start_gateway({"a": {}}, supervisor={"engine_ports": f"{port}-{port}"}) as gateway:
            answer = await gateway.chat("a")
            assert answer.status_code == 503
            assert "port" in answer.json()["error"]["message"]
            assert not any(b"chat" in request for request in answered)
        tasks.cancel_scope.cancel()


async def test_no_child_process_of_an_engine_survives_its_stop(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"stop_grace_s": 0.3, "script": {"grandchild": True}}, "b": {}}) as gateway:
        await gateway.chat("a")
        await gateway.chat("b")
        family = [gateway.events("start", "a")[0]["pid"], gateway.events("grandchild", "a")[0]["grandchild"]]
        await gateway.until(lambda: not any(psutil.pid_exists(pid) for pid in family))


async def test_a_request_after_an_unload_in_mid_load_gets_a_new_process(
    start_gateway: StartGateway, flags: Flags
) -> None:
    ready, gone = flags("ready"), flags("gone")
    profile = {"stop_grace_s": 60, "script": {"ready_when": ready.path, "gone_when": gone.path}}
    async with start_gateway({"a": profile}) as gateway:
        async with anyio.create_task_group() as tasks:
            answers: list[httpx.Response] = []

            async def ask() -> None:
                answers.append(await gateway.chat("a"))

            tasks.start_soon(ask)
            await gateway.until(lambda: gateway.starts() == ["a"])
            tasks.start_soon(lambda: gateway.action("unload", model="a"))
            await gateway.until(lambda: answers)
            # The old process is still on its way out, and gets ready on it.
            await gateway.until(lambda: gateway.events("stop_requested"))
            tasks.start_soon(ask)
            await gateway.until_counts(0, 1)
            ready.set()
            await gateway.until(lambda: gateway.events("ready"))
            gone.set()
        assert [answer.status_code for answer in answers] == [503, 200]
        assert "unloaded on request" in answers[0].json()["error"]["message"]
        assert gateway.starts() == ["a", "a"]


async def test_a_slow_unload_delays_no_other_model(start_gateway: StartGateway, flags: Flags) -> None:
    gone = flags("gone")
    profiles = {
        "a": {"memory": "4GiB", "parallel": 2, "script": {"chunks": 30, "chunk_delay": 0.03}},
        "b": {"memory": "2GiB", "stop_grace_s": 60, "script": {"gone_when": gone.path}},
        "c": {"memory": "2GiB"},
    }
    async with start_gateway(profiles, supervisor=SHARED) as gateway:
        await in_line(gateway, "abc")
        async with anyio.create_task_group() as tasks, gateway.stream("a") as answer:
            lines = await first_token(answer)
            tasks.start_soon(lambda: gateway.action("unload", model="b"))
            await gateway.until(lambda: models_in(gateway, "stopping"))
            for _ in range(9):
                assert (await gateway.chat("c")).status_code == 200
            rest = [line async for line in lines]
            assert models_in(gateway, "stopping") == ["b"]
            gone.set()
        assert is_complete("\n".join(rest))
        assert models_in(gateway, "stopping") == []


def models_in(gateway: RunningGateway, state: str) -> list[str]:
    return [status.model for status in gateway.manager.status_now().models if status.state == state]


async def test_a_forced_unload_ends_the_answers_in_progress_and_frees_their_slots(start_gateway: StartGateway) -> None:
    profile: dict[str, Any] = {"parallel": 2, "script": LONG}
    async with start_gateway({"a": profile}) as gateway:
        answers: list[httpx.Response] = []

        async def ask() -> None:
            answers.append(await gateway.chat("a"))

        async with anyio.create_task_group() as tasks, gateway.stream("a") as answer:
            lines = await first_token(answer)
            tasks.start_soon(ask)
            await gateway.until(lambda: len(gateway.requests()) == 2)
            pid = gateway.events("start")[0]["pid"]
            done = await gateway.action("unload", model="a")
            assert done.json() == {"model": "a", "state": "unloaded"}
            assert not psutil.pid_exists(pid)
            rest = [line async for line in lines]
        assert any('"error"' in line and "unloaded on request" in line for line in rest)
        assert answers[0].status_code == 503
        assert await gateway.counts() == (0, 0)


async def test_an_unload_without_force_lets_the_answers_in_progress_end(
    start_gateway: StartGateway, flags: Flags
) -> None:
    last = flags("last")
    async with start_gateway({"a": {"script": {"last_when": last.path}}}) as gateway, gateway.stream("a") as answer:
        lines = await first_token(answer)
        order = await gateway.action("unload", model="a", force=False)
        assert order.json()["state"] == "draining"
        last.set()
        assert is_complete("\n".join([line async for line in lines]))
        await gateway.until(lambda: gateway.events("stop"))


async def test_an_unload_refuses_the_models_queue_and_no_other(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"script": LONG}, "b": {}, "c": {}}) as gateway:
        answers: dict[str, httpx.Response] = {}

        async def ask(model: str) -> None:
            answers[model] = await gateway.chat(model)

        async with gateway.stream("a") as answer, anyio.create_task_group() as tasks:
            await first_token(answer)
            tasks.start_soon(ask, "b")
            tasks.start_soon(ask, "c")
            await gateway.until_counts(1, 2)
            assert (await gateway.action("unload", model="b")).status_code == 200
            # Until then `a` speaks.
            await gateway.until(lambda: "b" in answers)
            assert await gateway.counts() == (1, 1)
            await answer.aclose()
        assert answers["b"].status_code == 503
        assert answers["c"].status_code == 200
        assert gateway.starts() == ["a", "c"]


async def test_a_switch_waits_for_patience_and_the_answers_in_flight_but_not_for_later_ones(
    start_gateway: StartGateway,
) -> None:
    profiles = {"a": {"parallel": 2, "script": {"chunks": 5, "chunk_delay": 0.04}}, "b": {}}
    async with start_gateway(profiles, gateway={"switching": {"patience_s": 0.5}}) as gateway:
        await gateway.chat("a")
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(gateway.keep_asking, "a")
            # Again and again: each time, `a` is requested without a pause.
            for number in range(3):
                await gateway.until_counts(2, 2)
                began = time.time()
                assert (await gateway.chat("b")).status_code == 200
                assert len(gateway.starts("b")) == number + 1
                assert gateway.events("start", "b")[-1]["time"] - began >= 0.5
                answered = [note["event"] for note in gateway.events(model="a") if note["event"] in ("done", "gone")]
                assert "gone" not in answered
            tasks.cancel_scope.cancel()
