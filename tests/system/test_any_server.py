"""One installation with a server of each kind, configured with kind and address only: every model in every protocol."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import model_lists
from fakes.scripted_server import ScriptedServer, start_scripted_server
from system.fallback_chain import RunningChain, start_chain

pytestmark = pytest.mark.anyio

#: Kind, path of the address, and what the server answers about its models.
SERVERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ollama": ("ollama", "", model_lists.OLLAMA),
    "studio": ("lmstudio", "", model_lists.LM_STUDIO),
    "llama": ("llamacpp", "", model_lists.LLAMA_SERVER),
    "vllm": ("openai", "", model_lists.VLLM),
    "openrouter": ("openai", "/api/v1", model_lists.OPENROUTER),
}
#: A model of each server, its context, and whether it is known to use tools and to see.
MODELS: dict[str, tuple[str, int, tuple[bool, bool]]] = {
    "ollama": ("qwen3:8b", 8192, (True, True)),
    "studio": ("gemma-3-270m-it-qat", 4096, (True, True)),
    "llama": ("Llama-3.1-8B-Q4_K_M", 16384, (True, True)),
    "vllm": ("Qwen/Qwen3-8B-AWQ", 40960, (False, False)),
    "openrouter": ("openai/gpt-5", 400_000, (True, True)),
}
CHATS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hello"}]},
    "/v1/responses": {"input": "Hello"},
    "/v1/messages": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 9},
    "/api/chat": {"messages": [{"role": "user", "content": "Hello"}]},
    "/api/v1/chat": {"input": "Hello"},
}


@asynccontextmanager
async def installation(tmp_path: Path) -> AsyncIterator[tuple[RunningChain, dict[str, ScriptedServer]]]:
    """The gateway before all of the servers."""
    async with AsyncExitStack() as stack:
        servers: dict[str, ScriptedServer] = {}
        backends: dict[str, dict[str, Any]] = {}
        for name, (kind, path, documents) in SERVERS.items():
            server = servers[name] = await stack.enter_async_context(start_scripted_server())
            server.documents = documents
            server.base = path
            backends[name] = {"kind": kind, "url": server.url + path}
        yield await stack.enter_async_context(start_chain(tmp_path, backends)), servers


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
    async with installation(tmp_path) as (chain, _):
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
    async with installation(tmp_path) as (chain, servers):
        for name, (model, _, _) in MODELS.items():
            body = {"model": model, "stream": stream, **CHATS[path]}
            response = await chain.http.post(path, json=body)
            assert response.status_code == 200, (name, response.text)
            assert "capital" in response.text, (name, response.text)
            assert servers[name].requests[-1][1]["model"] == model
            assert [other for other in servers if servers[other].requests] == [name]
            servers[name].requests.clear()
