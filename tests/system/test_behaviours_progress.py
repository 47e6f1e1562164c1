"""What a client sees while it waits, and that progress neither changes nor delays the answer."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import anyio
import httpx
import openai
import pytest
from fakes.flag_file import FlagFile
from system.running_gateway import RunningGateway, StartGateway, data_events

from hostler.gateway.gateway_settings import SwitchingSettings

pytestmark = pytest.mark.anyio

EAGER = {"switching": {"progress_after_s": 0, "progress_every_s": 0.05}}
OFF = {"switching": {"progress": "off"}}
QUESTION = [{"role": "user", "content": "Hello"}]


async def test_a_cold_stream_gets_progress_until_its_model_is_ready(
    start_gateway: StartGateway, flags: Callable[[str], FlagFile]
) -> None:
    # So soon and so often; that these times are kept is tested with `Heartbeat`.
    defaults = SwitchingSettings()
    assert defaults.progress_after_s <= 1.0
    assert defaults.progress_every_s <= 2.0
    ready = flags("ready")
    async with start_gateway({"a": {"script": {"ready_when": ready.path}}}) as gateway:
        shown = 0
        async with gateway.stream("a") as answer:
            async for line in answer.aiter_lines():
                shown += "x_hostler" in line
                if shown == 3:
                    ready.set()
        assert shown >= 3


async def test_an_early_error_keeps_its_own_status(
    start_gateway: StartGateway, flags: Callable[[str], FlagFile]
) -> None:
    die = flags("die")
    script = {"never_ready": True, "exit_code": 1, "exit_when": die.path}
    # Early is before the first sign, and that is not due in this test.
    async with start_gateway({"a": {"script": script}}, gateway={"switching": {"progress_after_s": 600}}) as gateway:
        async with anyio.create_task_group() as tasks:

            async def end_when_it_is_waited_for() -> None:
                await gateway.until_counts(0, 1)
                die.set()

            tasks.start_soon(end_when_it_is_waited_for)
            async with gateway.stream("a") as answer:
                await answer.aread()
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "model_not_available"


async def test_the_first_token_does_not_wait_for_the_next_progress(start_gateway: StartGateway) -> None:
    # That would come after the end of this test.
    settings = {"switching": {"progress_after_s": 0.1, "progress_every_s": 600}}
    async with start_gateway({"a": {"script": {"ready_after": 0.5}}}, gateway=settings) as gateway:
        async with gateway.stream("a") as answer:
            text = (await answer.aread()).decode()
        assert "x_hostler" in text.partition('"word0')[0]


async def test_every_phase_of_a_switch_is_shown_and_the_second_load_has_an_estimate(
    start_gateway: StartGateway, flags: Callable[[str], FlagFile]
) -> None:
    settings = {"switching": {"progress_after_s": 0, "progress_every_s": 0.05}}
    gone, ready = flags("gone"), flags("ready")
    profiles = {
        "a": {"script": {"gone_when": gone.path}},
        "b": {"script": {"listen_after": 0.2, "ready_when": ready.path}},
    }
    async with start_gateway(profiles, gateway=settings, supervisor={"stop_grace_s": 60}) as gateway:
        ready.set()
        await gateway.chat("b")
        try:
            for _ in range(8):  # a starting engine may be missed while this process is held up, but not every time
                ready.clear()
                gone.clear()
                await gateway.chat("a")
                text, shown = await switched(gateway, "b", stopping=gone, loading=ready)
                if "starting" in {each["phase"] for each in shown}:
                    break
        finally:
            gone.set()
            ready.set()
    assert {"stopping", "starting", "loading"} <= {each["phase"] for each in shown}
    loading = [each for each in shown if each["phase"] == "loading"]
    percents = [each["percent"] for each in loading]
    assert percents == sorted(percents)
    assert all(each["eta_s"] is not None for each in loading)
    assert {each["from"] for each in shown if each["phase"] == "stopping"} == {"a"}
    # What was not known yet when the headers went out follows the answer.
    last = text.rpartition("data: [DONE]")[2]
    assert "x-hostler-switch-ms=" in last and "x-hostler-switch-ms=0 " not in last


async def switched(
    gateway: RunningGateway, model: str, *, stopping: FlagFile, loading: FlagFile
) -> tuple[str, list[dict[str, Any]]]:
    """A stream and the progress in it. The flags are set when their phases are shown, with some of the load done."""
    text, shown = "", list[dict[str, Any]]()
    async with gateway.stream(model) as answer:
        async for line in answer.aiter_lines():
            text += line + "\n"
            for progress in [event["x_hostler"] for event in data_events(line) if "x_hostler" in event]:
                shown.append(progress)
                if progress["phase"] == "stopping":
                    stopping.set()
                if progress["phase"] == "loading" and progress["percent"] > 30:
                    loading.set()
    return text, shown


async def test_a_new_phase_is_shown_when_it_starts(
    start_gateway: StartGateway, flags: Callable[[str], FlagFile]
) -> None:
    settings = {"switching": {"progress_after_s": 0, "progress_every_s": 600}}
    gone, ready = flags("gone"), flags("ready")
    profiles = {"a": {"script": {"gone_when": gone.path}}, "b": {"script": {"ready_when": ready.path}}}
    async with start_gateway(profiles, gateway=settings, supervisor={"stop_grace_s": 60}) as gateway:
        await gateway.chat("a")
        phases: list[str] = []
        try:
            with anyio.fail_after(20):
                async with gateway.stream("b") as answer:
                    async for line in answer.aiter_lines():
                        phases += [event["x_hostler"]["phase"] for event in data_events(line) if "x_hostler" in event]
                        if "stopping" in phases:
                            gone.set()
                        if "loading" in phases:
                            ready.set()
        finally:
            gone.set()
            ready.set()
        assert phases.index("stopping") < phases.index("loading")


async def test_openais_own_package_reads_a_stream_with_progress_in_it(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"script": {"ready_after": 0.4}}}, gateway=EAGER) as gateway:
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="unused", max_retries=0) as client:
            stream = await client.chat.completions.create(model="a", messages=QUESTION, stream=True)  # type: ignore[arg-type]
            chunks = [chunk async for chunk in stream]
            words = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            assert words.split() == ["word0", "word1", "word2", "word3", "word4"]
            assert any("x_hostler" in (chunk.model_extra or {}) for chunk in chunks)
            assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "stop"
            await gateway.action("unload", model="a")
            async with client.chat.completions.stream(model="a", messages=QUESTION) as events:  # type: ignore[arg-type]
                final = await events.get_final_completion()
        assert (final.choices[0].message.content or "").split() == words.split()


async def test_openais_own_package_raises_what_failed_after_progress_began(start_gateway: StartGateway) -> None:
    script = {"never_ready": True, "exit_code": 1, "exit_after": 0.3}
    async with start_gateway({"a": {"script": script}}, gateway=EAGER) as gateway:
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="unused", max_retries=0) as client:
            stream = await client.chat.completions.create(model="a", messages=QUESTION, stream=True)  # type: ignore[arg-type]
            with pytest.raises(openai.APIError) as failed:
                async for _ in stream:
                    pass
        assert failed.value.code == "model_not_available"


async def test_an_engines_rejection_after_progress_began_is_an_event(start_gateway: StartGateway) -> None:
    script = {"ready_after": 0.3, "status": 400, "error": "scripted refusal"}
    async with start_gateway({"a": {"script": script}}, gateway=EAGER) as gateway:
        async with gateway.stream("a") as answer:
            text = (await answer.aread()).decode()
        assert answer.status_code == 200
        events = data_events(text)
        assert "scripted refusal" in events[-1]["error"]["message"]
        assert "x_hostler" in events[-2]


async def test_a_loaded_model_is_as_fast_while_clients_watch_another_one_load(
    start_gateway: StartGateway, flags: Callable[[str], FlagFile]
) -> None:
    ready = flags("ready")
    profiles: dict[str, Any] = {
        "hot": {"memory": "1GiB"},
        "cold": {"memory": "1GiB", "parallel": 4, "script": {"ready_when": ready.path}},
    }
    async with start_gateway(profiles, gateway=EAGER, supervisor={"memory_budget": "10GiB"}) as gateway:
        await gateway.chat("hot")

        async def quickest() -> float:
            seconds = []
            for _ in range(8):
                began = time.monotonic()
                assert (await gateway.chat("hot")).status_code == 200
                seconds.append(time.monotonic() - began)
            return min(seconds)

        before = await quickest()
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                async with gateway.stream("cold") as answer:
                    await answer.aread()

            for _ in range(4):
                tasks.start_soon(watch)
            await gateway.until(lambda: gateway.starts("cold"))
            with anyio.fail_after(30):
                # The machine may have been busy with something else for a while.
                while await quickest() > 5 * before:
                    pass
            assert not gateway.events("ready", "cold")
            ready.set()


@pytest.mark.parametrize("mode", ["thinking", "off"])
async def test_ollamas_stream_gets_lines_without_content_unless_they_are_off(
    start_gateway: StartGateway, mode: str
) -> None:
    settings = {"switching": {**EAGER["switching"], "progress_for": {"ollama": mode}}}
    async with start_gateway({"a": {"script": {"ready_after": 0.3}}}, gateway=settings) as gateway:
        lines = (await posted(gateway, "/api/chat", {"model": "a", "messages": QUESTION})).text.splitlines()
    words = [answer["message"]["content"].strip() for answer in map(json.loads, lines) if not answer["done"]]
    assert [word for word in words if word] == ["word0", "word1", "word2", "word3", "word4"]
    assert ("" in words) is (mode != "off")
    assert json.loads(lines[-1])["done"] is True
    written = [json.loads(line)["created_at"] for line in lines]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z", each) for each in written)
    assert any("." in each for each in written)  # of whole seconds, there would be none


async def posted(
    gateway: RunningGateway, path: str, body: dict[str, Any], headers: dict[str, str] | None = None
) -> httpx.Response:
    return await gateway.http.post(path, json=body, headers=headers)


async def test_without_progress_a_stream_is_the_engines_own_byte_for_byte(start_gateway: StartGateway) -> None:
    body = {"model": "a", "messages": QUESTION, "stream": True, "stream_options": {"include_usage": True}}
    async with start_gateway({"a": {"script": {"ready_after": 0.3}}}, gateway=OFF) as gateway:
        await posted(gateway, "/v1/chat/completions", body)
        warm = (await posted(gateway, "/v1/chat/completions", body)).content
        own = await engines_own(gateway, body)
        await gateway.action("unload", model="a")
        # The engine counts from the beginning and has read nothing yet.
        cold = (await posted(gateway, "/v1/chat/completions", body)).content
        await engines_own(gateway, body)
    assert warm == renumbered(own, 3, 2)
    assert len(gateway.starts()) == 2
    usage = data_events(own.decode())[-1]
    fresh = {"cached_tokens": 0, "cache_n": 0, "prompt_n": usage["usage"]["prompt_tokens"]}
    for name, value in fresh.items():
        old = usage["timings"].get(name, usage["usage"]["prompt_tokens_details"].get(name))
        own = own.replace(f'"{name}": {old}'.encode(), f'"{name}": {value}'.encode())
    assert cold == renumbered(own, 3, 1)


async def test_a_whole_answer_equals_the_engines_own(start_gateway: StartGateway) -> None:
    body = {"model": "a", "messages": QUESTION}
    async with start_gateway({"a": {}}) as gateway:
        await posted(gateway, "/v1/chat/completions", body)
        ours = (await posted(gateway, "/v1/chat/completions", body)).content
        own = await engines_own(gateway, body)
    assert json.loads(ours) == json.loads(renumbered(own, 3, 2))


async def engines_own(gateway: RunningGateway, body: dict[str, Any]) -> bytes:
    """The engine's answer without a gateway."""
    address = await gateway.manager.locate("a")
    assert address is not None
    url = f"http://{address.host}:{address.port}/v1/chat/completions"
    return (await gateway.http.post(url, json=body, headers={"Authorization": f"Bearer {address.key}"})).content


def renumbered(answer: bytes, number: int, other: int) -> bytes:
    return answer.replace(f"chatcmpl-{number}".encode(), f"chatcmpl-{other}".encode())
