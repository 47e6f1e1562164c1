"""A whole answer is llama-server's own to the byte, though it was asked for as a stream; the real engine is the judge."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from system.hostler_process import HostlerProcess, run_hostler, write_shipped_model_config

CONFIGURATION = """
gateway: {listen: ["127.0.0.1:0"], queue: {max_wait_s: 100}, switching: {progress: "off"}}
profiles: {smollm2: {model: "%s", sha256: %s, threads: 1, parallel: 2, context: 2048}}
"""

# The same each time: no chance, and nothing of the question is remembered.
SETTLED = {"model": "smollm2", "temperature": 0, "seed": 1, "max_tokens": 6, "cache_prompt": False}
QUESTION = [{"role": "user", "content": 'Count: 1 2 3 4 5 6, and say "é \\ \u2028 🙂"'}]
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 6}}, "required": ["city"]}
CHAT: dict[str, dict[str, Any]] = {
    "plain": {},
    "stop": {"stop": ["is", "the", "1"], "max_tokens": 12},
    "half a letter": {"messages": [{"role": "user", "content": "привет"}]},
    "logprobs": {"logprobs": True, "top_logprobs": 2},
    "logprobs and stop": {"logprobs": True, "stop": ["is", "e"], "max_tokens": 12},
    "logprobs and structure": {"logprobs": True, "response_format": {"type": "json_schema", "schema": CITY}},
    "choices": {"n": 2},
    "structured": {"response_format": {"type": "json_schema", "schema": CITY}, "max_tokens": 30},
    "tools": {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 60},
    "timings": {"timings_per_token": True},
    "progress": {"return_progress": True},
    "debugging": {"verbose": True},
    "nothing": {"max_tokens": 0},
}
PROMPT: dict[str, dict[str, Any]] = {
    "plain": {},
    "logprobs": {"logprobs": 2},
    "stop": {"stop": [","]},
    "choices": {"n": 2},
}
# What differs between two runs.
CHANCE = re.compile(rb'"(id|created|id_slot|t_\w+|[a-z_]+_ms|[a-z_]+_per_second)":("\w[\w-]*"|[0-9.e+-]+)')

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, real_model: Path) -> Iterator[HostlerProcess]:
    folder = tmp_path_factory.mktemp("up")
    path = write_shipped_model_config(folder, CONFIGURATION)
    with run_hostler("up", "--config", path, errors=folder / "log") as up:
        yield up


@pytest.fixture(scope="module")
def engine(running: HostlerProcess) -> Iterator[httpx.Client]:
    """The engine itself, asked without a gateway."""
    ask(running.address, "/v1/completions", {"model": "smollm2", "prompt": "a", "max_tokens": 1})
    for process in psutil.Process(running.process.pid).children(recursive=True):
        key = process.environ().get("LLAMA_API_KEY")
        ports = [each.laddr.port for each in process.net_connections() if each.status == psutil.CONN_LISTEN]
        if key and ports:
            base, headers = f"http://127.0.0.1:{ports[0]}", {"Authorization": f"Bearer {key}"}
            with httpx.Client(base_url=base, headers=headers, timeout=120, trust_env=False) as client:
                yield client
            return
    pytest.fail("the engine was not found")


def ask(address: str, path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(address + path, json=body, timeout=120, trust_env=False)


def settled(answer: httpx.Response) -> tuple[int, str, bytes]:
    """What counts of an answer."""
    return answer.status_code, answer.headers["content-type"], CHANCE.sub(rb'"\1":0', answer.content)


@pytest.mark.parametrize("name", CHAT)
def test_a_whole_chat_is_the_engines_own(running: HostlerProcess, engine: httpx.Client, name: str) -> None:
    body = {**SETTLED, "messages": QUESTION, **CHAT[name]}
    path = "/v1/chat/completions"
    assert settled(ask(running.address, path, body)) == settled(engine.post(path, json=body))


@pytest.mark.parametrize("name", PROMPT)
def test_a_whole_completion_is_the_engines_own(running: HostlerProcess, engine: httpx.Client, name: str) -> None:
    body = {**SETTLED, "prompt": "Once upon a", **PROMPT[name]}
    path = "/v1/completions"
    assert settled(ask(running.address, path, body)) == settled(engine.post(path, json=body))


@pytest.mark.parametrize("more", [{}, {"n_probs": 2, "stop": ["e"]}, {"return_tokens": True}, {"stop": [","]}])
def test_a_whole_native_completion_is_the_engines_own(
    running: HostlerProcess, engine: httpx.Client, more: dict[str, Any]
) -> None:
    body = {**SETTLED, "prompt": "Once upon a", "n_predict": 6, **more}
    assert settled(ask(running.address, "/completion", body)) == settled(engine.post("/completion", json=body))
