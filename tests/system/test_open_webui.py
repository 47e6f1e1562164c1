"""Open WebUI, unmodified, before a gateway with a server of each kind. It needs gigabytes, so that only `-- all` installs it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fakes.ports import free_port
from fakes.scripted_server import ScriptedAnswer
from system.five_servers import MODELS, five_servers

PROGRAM = Path(os.environ.get("HOSTLER_TEST_CLIENTS", "")) / "webui" / "bin" / "open-webui"
WORDS = "".join(ScriptedAnswer().words)
#: Its imports alone take half a minute of CPU.
START_S = 240.0

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not PROGRAM.is_file(), reason="HOSTLER_TEST_CLIENTS names no folder with Open WebUI"),
]


@asynccontextmanager
async def open_webui(folder: Path, url: str) -> AsyncIterator[httpx.AsyncClient]:
    """Run it with both kinds of connections to the gateway; yield a client that is logged in."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "TMPDIR")}
    settings = {
        "HOME": str(folder),
        "DATA_DIR": str(folder / "data"),
        "OLLAMA_BASE_URLS": url,
        "OPENAI_API_BASE_URLS": f"{url}/v1",
        "OPENAI_API_KEYS": "unused",
        "WEBUI_AUTH": "False",
        "WEBUI_SECRET_KEY": "only-for-this-test-and-long-enough",
        "OFFLINE_MODE": "true",
        "HF_HUB_OFFLINE": "1",
        # Else it loads a model for embeddings itself.
        "RAG_EMBEDDING_ENGINE": "openai",
        "ANONYMIZED_TELEMETRY": "false",
        "NO_PROXY": "127.0.0.1",
    }
    port = free_port()
    with (folder / "open-webui.log").open("wb") as log:
        command = [str(PROGRAM), "serve", "--host", "127.0.0.1", "--port", str(port)]
        async with (
            await anyio.open_process(
                command, cwd=folder, env={**kept, **settings}, stdout=log, stderr=subprocess.STDOUT, stdin=None
            ) as process,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http,
        ):
            try:
                await _until_healthy(http, process)
                account = await http.post("/api/v1/auths/signin", json={"email": "", "password": ""})
                assert account.status_code == 200, account.text
                http.headers["Authorization"] = f"Bearer {account.json()['token']}"
                yield http
            finally:
                process.terminate()


async def _until_healthy(http: httpx.AsyncClient, process: anyio.abc.Process) -> None:
    with anyio.fail_after(START_S):
        while True:
            assert process.returncode is None, "it has ended; see open-webui.log"
            try:
                # Another server may have taken the port meanwhile; then the program ends.
                if (await http.get("/health")).text == '{"status":true}':
                    return
            except httpx.TransportError:
                pass
            await anyio.sleep(0.25)


def text_of(streamed: httpx.Response) -> str:
    """The text of the streamed answer of OpenAI's or Ollama's protocol."""
    pieces = []
    for line in streamed.text.splitlines():
        data = line.removeprefix("data: ").strip()
        if not data or data == "[DONE]":
            continue
        event: dict[str, Any] = json.loads(data)
        message = event["choices"][0]["delta"] if event.get("choices") else event.get("message") or {}
        pieces.append(message.get("content") or "")
    return "".join(pieces)


async def test_open_webui_lists_every_model_and_chats_with_each(tmp_path: Path) -> None:
    ours = {model for model, _, _ in MODELS.values()}
    tagged = {model if ":" in model else f"{model}:latest" for model in ours}
    async with five_servers(tmp_path) as (chain, servers):
        url = str(chain.http.base_url).rstrip("/")
        async with open_webui(tmp_path, url) as http:
            listed = {entry["id"] for entry in (await http.get("/api/models")).json()["data"]}
            openai = {entry["id"] for entry in (await http.get("/openai/models")).json()["data"]}
            ollama = {entry["model"] for entry in (await http.get("/ollama/api/tags")).json()["models"]}
            assert (ours - openai, tagged - ollama, (ours | tagged) - listed) == (set(), set(), set())
            assert (await http.get("/ollama/api/version")).json()["version"]
            for server, (model, _, _) in MODELS.items():
                for name in {model, model if ":" in model else f"{model}:latest"}:
                    for stream in (False, True):
                        servers[server].requests.clear()
                        body = {
                            "model": name,
                            "stream": stream,
                            "messages": [{"role": "user", "content": "Where is the capital?"}],
                        }
                        response = await http.post("/api/chat/completions", json=body)
                        assert response.status_code == 200, (name, response.text)
                        whole = not response.headers["content-type"].startswith("text/event-stream")
                        said = response.json()["choices"][0]["message"]["content"] if whole else text_of(response)
                        assert (said, [sent["model"] for _, sent in servers[server].requests]) == (WORDS, [model]), name
