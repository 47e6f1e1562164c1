"""One installation with a server of each kind, configured with kind and address only."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from fakes import model_lists
from fakes.scripted_server import ScriptedServer, start_scripted_server
from system.fallback_chain import RunningChain, start_chain

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


@asynccontextmanager
async def five_servers(tmp_path: Path) -> AsyncIterator[tuple[RunningChain, dict[str, ScriptedServer]]]:
    """The gateway before all of the servers, when it knows what each has."""
    async with AsyncExitStack() as stack:
        servers: dict[str, ScriptedServer] = {}
        backends: dict[str, dict[str, Any]] = {}
        for name, (kind, path, documents) in SERVERS.items():
            server = servers[name] = await stack.enter_async_context(start_scripted_server())
            server.documents = documents
            server.base = path
            backends[name] = {"kind": kind, "url": server.url + path}
        chain = await stack.enter_async_context(start_chain(tmp_path, backends))
        with anyio.fail_after(20):
            while not all(each["found"] for each in (await chain.http.get("/admin/backends")).json()["backends"]):  # noqa: ASYNC110 - asked as an operator would
                await anyio.sleep(0.01)
        yield chain, servers
