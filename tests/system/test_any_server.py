"""One installation with a server of each kind, configured with kind and address only: every model in every protocol."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fakes.scripted_server import ScriptedAnswer
from system.five_servers import MODELS, five_servers

pytestmark = pytest.mark.anyio

CHATS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hello"}]},
    "/v1/responses": {"input": "Hello"},
    "/v1/messages": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 9},
    "/api/chat": {"messages": [{"role": "user", "content": "Hello"}]},
    "/api/v1/chat": {"input": "Hello"},
}


async def lists(http: httpx.AsyncClient) -> dict[str, dict[str, Any]]:
    """The models in the lists of the five protocols, by name."""
    anthropic = (await http.get("/v1/models", headers={"anthropic-version": "2023-06-01"})).json()["data"]
    openai = {entry["id"]: entry for entry in (await http.get("/v1/models")).json()["data"]}
    return {
        "openai": openai,
        "llamacpp": {name: (await http.get("/props", params={"model": name})).json() for name in openai},
        "anthropic": {entry["id"]: entry for entry in anthropic},
        "ollama": {entry["name"]: entry for entry in (await http.get("/api/tags")).json()["models"]},
        "lmstudio": {entry["key"]: entry for entry in (await http.get("/api/v1/models")).json()["models"]},
    }


async def test_every_model_is_in_five_lists_with_context_and_capabilities(tmp_path: Path) -> None:
    async with five_servers(tmp_path) as (chain, _):
        listed = await lists(chain.http)
    for model, context, (tools, vision) in MODELS.values():
        tagged = model if ":" in model else f"{model}:latest"
        assert {protocol for protocol, models in listed.items() if {model, tagged} & models.keys()} == set(listed), (
            model
        )
        assert listed["openai"][model]["context_length"] == context
        assert listed["anthropic"][model]["max_input_tokens"] == context
        assert listed["lmstudio"][model]["max_context_length"] == context
        assert listed["ollama"][tagged]["details"]["context_length"] == context
        assert listed["llamacpp"][model]["default_generation_settings"]["n_ctx"] == context
        assert ("tools" in listed["ollama"][tagged]["capabilities"]) is tools
        assert listed["lmstudio"][model]["capabilities"] == {"vision": vision, "trained_for_tool_use": tools}
        assert listed["llamacpp"][model]["modalities"]["vision"] is vision
    numbers = {protocol: len(models) for protocol, models in listed.items()}
    embedding = 2
    assert numbers.pop("anthropic") + embedding == min(numbers.values()) == max(numbers.values()), "it lists chats only"


@pytest.mark.parametrize("path", CHATS)
@pytest.mark.parametrize("stream", [False, True])
async def test_every_model_chats_in_every_protocol(tmp_path: Path, path: str, stream: bool) -> None:
    async with five_servers(tmp_path) as (chain, servers):
        for name, (model, _, _) in MODELS.items():
            body = {"model": model, "stream": stream, **CHATS[path]}
            response = await chain.http.post(path, json=body)
            assert response.status_code == 200, (name, response.text)
            assert "capital" in response.text, (name, response.text)
            assert servers[name].requests[-1][1]["model"] == model
            assert [other for other in servers if servers[other].requests] == [name]
            servers[name].requests.clear()


async def test_the_doctor_tests_a_model_of_every_server(tmp_path: Path) -> None:
    async with five_servers(tmp_path) as (chain, servers):
        servers["studio"].answer = ScriptedAnswer(error=(500, "out of memory"))
        command = [sys.executable, "-m", "hostler.gateway", "doctor", "--url", str(chain.http.base_url)]
        done = await anyio.run_process([*command, "--json"], check=False)
        shown = await anyio.run_process(command, check=False)
    found = json.loads(done.stdout)
    assert (found["model"], done.returncode, shown.returncode) == (None, 1, 1)
    assert [(each["backend"], each["model"], each["ok"]) for each in found["hops"]] == [
        (server, model, server != "studio") for server, (model, _, _) in MODELS.items()
    ]
    assert found["backends"]["vllm"] == "reachable; its URL has no path, /v1 worked"
    assert shown.stdout.count(b" ok ") == len(MODELS) - 1
    assert all(model.encode() in shown.stdout for model, _, _ in MODELS.values())
